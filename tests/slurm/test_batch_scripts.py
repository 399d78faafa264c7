"""The batch scripts under a real SLURM of two nodes: packing, training, scores, detections, requeueing."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, EndedJob, is_required, why_not

# All of them at once, so that the skip is one line; where SLURM is required, the fixture fails.
if (reason := why_not()) is not None and not is_required():
    pytest.skip(reason, allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

SCRIPTS = Path(__file__).resolve().parents[2] / "slurm"
BIN = Path(sys.executable).parent
TWO_NODES = ["--nodes=2", "--ntasks-per-node=1"]
# Little work: two cores are enough for all that these tests do.
SMALL = [
    "--loader.image_size", "96", "--loader.workers", "1", "--train.log_every", "1",
    "--distributed.cycle_time", "5", "--distributed.threads", "1",
]  # fmt: skip
# The tests may run as root, whom Open MPI refuses; a site's users are not root.
VARIABLES = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def run_job(cluster: Cluster, script: str, words: list[object], *options: str) -> EndedJob:
    job = cluster.submit(SCRIPTS / script, words, *options, variables=VARIABLES)
    return cluster.wait_for_end(job)


def train_words(data: Path, run: Path, *more: object) -> list[object]:
    return ["--config", "yolov5n_bccd", "--data", data, "--run", run, *SMALL, *more]


def outcome(run: Path) -> dict[str, Any]:
    return json.loads((run / "outcome.json").read_text())


def steps(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    entries = map(json.loads, path.read_text().splitlines()) if path.exists() else iter(())
    return [entry["step"] for entry in entries if entry["kind"] == "step"]


@pytest.fixture(scope="session")
def packed(cluster: Cluster, bccd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BCCD, packed by ``pack.sh`` on both nodes."""
    out = tmp_path_factory.mktemp("packed by a job") / "bccd"
    ended = run_job(cluster, "pack.sh", ["--source", "voc", "--root", bccd, "--out", out], *TWO_NODES)
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.log
    return out


@pytest.fixture(scope="session")
def trained(cluster: Cluster, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch by ``train.sh`` on both nodes; its log is beside it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    ended = run_job(
        cluster, "train.sh", train_words(packed, run, "--train.epochs", "1", "--train.eval_every", "1"),
        *TWO_NODES,
    )  # fmt: skip
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.log
    run.with_name("log").write_text(ended.log)
    return run


def test_packing_on_two_nodes_gives_verified_data(packed: Path) -> None:
    verified = subprocess.run(
        [BIN / "hvdyolo", "verify", packed], text=True, capture_output=True, timeout=120, check=False
    )
    assert verified.returncode == 0, verified.stderr
    manifest = json.loads((packed / "manifest.json").read_text())
    assert "train" in json.dumps(manifest)


def test_training_uses_both_nodes_and_tells_its_outcome(trained: Path) -> None:
    assert outcome(trained) | {"exit_code": 0, "reason": "done", "attempt": 1} == outcome(trained)
    nodes = [
        re.search(r"attempt 1, rank (\d) of 2 on .*\(SLURM node (\w+)\)", path.read_text())
        for path in sorted((trained / "logs").glob("rank-*.log"))
    ]
    assert [found and found.groups() for found in nodes] == [("0", "n1"), ("1", "n2")]


def test_a_job_prints_the_mpirun_line_that_it_runs(trained: Path, packed: Path) -> None:
    log = trained.with_name("log").read_text()
    printed = next(line for line in log.splitlines() if line.startswith("hvdyolo: on n[1-2]: mpirun "))
    words = shlex.split(printed.removeprefix("hvdyolo: on n[1-2]: "))
    options = words[: words.index("bash")]
    assert options[:8] == [
        "mpirun", "--bind-to", "none", "--map-by", "ppr:1:node", "--mca", "odls_base_sigkill_timeout", "10",
    ]  # fmt: skip
    assert set(options[8::2]) == {"-x"}
    assert {"PATH", "HDF5_USE_FILE_LOCKING"} <= set(options[9::2])
    assert words[words.index("hvdyolo") :] == [
        "hvdyolo", "train",
        *map(str, train_words(packed, trained, "--train.epochs", "1", "--train.eval_every", "1")),
    ]  # fmt: skip


def test_evaluation_prints_and_writes_ap(
    cluster: Cluster, trained: Path, packed: Path, tmp_path: Path
) -> None:
    report = tmp_path / "scores.json"
    words = ["--weights", trained / "weights" / "last.safetensors", "--data", packed, "--json", report]
    ended = run_job(cluster, "eval.sh", words, *TWO_NODES)
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.log
    assert re.search(r"all classes +\d\.\d{3}", ended.log), ended.log
    assert 0 <= json.loads(report.read_text())["ap"] <= 1


def test_detections_of_two_nodes_are_merged(
    cluster: Cluster, trained: Path, bccd: Path, tmp_path: Path
) -> None:
    out = tmp_path / "detections"
    images = tmp_path / "images"
    images.mkdir()
    for photograph in sorted((bccd / "JPEGImages").iterdir())[:24]:
        shutil.copy(photograph, images)
    weights = trained / "weights" / "last.safetensors"
    ended = run_job(
        cluster, "detect.sh", ["--weights", weights, "--source", images, "--out", out], *TWO_NODES
    )
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.log
    merged = subprocess.run(
        [BIN / "hvdyolo", "merge", out, "--format", "coco"],
        text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert merged.returncode == 0, merged.stderr
    assert (out / "merged" / "detections.json").exists()
    records = [json.loads(line) for part in (out / "parts").glob("part-*.jsonl") for line in part.open()]
    assert len([record for record in records if "image" in record]) == 24


def test_a_preempted_job_is_requeued_and_finishes(cluster: Cluster, packed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = train_words(packed, run, "--train.epochs", "3", "--train.eval_every", "3")
    job = cluster.submit(SCRIPTS / "train.sh", words, *TWO_NODES, variables=VARIABLES)
    cluster.wait_until(job, lambda: len(steps(run)) >= 3, "step 3")
    cluster.command("scancel", "--signal=USR1", "--batch", str(job))
    cluster.wait_until(job, lambda: cluster.show(job)["Restarts"] == "1", "the requeue")
    stopped = outcome(run)
    assert (stopped["reason"], stopped["exit_code"], stopped["attempt"]) == ("preempted", 75, 1)
    assert "requeue: preempted, restart 1 of at most 20" in cluster.log(job)
    cluster.start_requeued(job)
    ended = cluster.wait_for_end(job)
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.log
    assert outcome(run) | {"exit_code": 0, "reason": "done", "attempt": 2} == outcome(run), ended.log
    assert f"step-{stopped['step']:08d}" in ended.log  # resumed from there, and the log goes on
    done = steps(run)
    assert done == list(range(1, done[-1] + 1))  # each once, none missing


def test_ranks_that_slurm_itself_asks_to_end_save_too(cluster: Cluster, packed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = train_words(packed, run, "--train.epochs", "200")
    job = cluster.submit(SCRIPTS / "train.sh", words, *TWO_NODES, variables=VARIABLES)
    cluster.wait_until(job, lambda: len(steps(run)) >= 3, "step 3")
    cluster.command("scancel", "--signal=TERM", str(job))
    cluster.wait_until(job, lambda: cluster.show(job)["Restarts"] == "1", "the requeue")
    cluster.command("scancel", str(job))
    assert (outcome(run)["reason"], outcome(run)["exit_code"]) == ("preempted", 75)


def test_a_job_whose_rank_was_killed_is_requeued_and_goes_on(
    cluster: Cluster, packed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = train_words(packed, run, "--train.epochs", "2", "--train.eval_every", "2",
                        "--train.checkpoint_every", "1")  # fmt: skip
    job = cluster.submit(SCRIPTS / "train.sh", words, *TWO_NODES, variables=VARIABLES)
    cluster.wait_until(job, lambda: (run / "checkpoints" / "LATEST").exists(), "a checkpoint")
    log = (run / "logs" / "rank-0001.log").read_text()
    victim = re.search(r"attempt 1, rank 1 .* process (\d+)", log)
    assert victim is not None, log
    os.kill(int(victim[1]), signal.SIGKILL)
    cluster.wait_until(job, lambda: cluster.show(job)["Restarts"] == "1", "the requeue")
    assert "no outcome of this attempt" in cluster.log(job)
    assert "requeue: died, restart 1 of at most 20" in cluster.log(job)
    cluster.start_requeued(job)
    ended = cluster.wait_for_end(job)
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.log
    assert outcome(run)["reason"] == "done"
    done = steps(run)
    assert done == list(range(1, done[-1] + 1))  # each once, none missing


def test_a_usage_error_is_not_requeued(cluster: Cluster, packed: Path, tmp_path: Path) -> None:
    ended = run_job(
        cluster, "train.sh", train_words(packed, tmp_path / "run", "--optimizer.lrr", "1"), *TWO_NODES
    )
    assert (ended.state, ended.exit_code) == ("FAILED", 2), ended.log
    assert "did you mean 'optimizer.lr'?" in ended.log
    assert "no requeue: usage" in ended.log
    assert cluster.show(ended.number)["Restarts"] == "0"


def test_a_cancelled_job_stays_cancelled(cluster: Cluster, packed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = train_words(packed, run, "--train.epochs", "200", "--train.checkpoint_every", "1")
    job = cluster.submit(SCRIPTS / "train.sh", words, *TWO_NODES, variables=VARIABLES)
    cluster.wait_until(job, lambda: (run / "checkpoints" / "LATEST").exists(), "a checkpoint")
    cluster.command("scancel", str(job))
    ended = cluster.wait_for_end(job)
    assert (ended.state, cluster.show(job)["Restarts"]) == ("CANCELLED", "0"), ended.log


def test_a_job_submitted_from_elsewhere_by_a_relative_path_finds_its_files(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "my scripts").mkdir()
    for name in ("common.sh", "pack.sh"):
        shutil.copy(SCRIPTS / name, tmp_path / "my scripts")
    (tmp_path / "my scripts" / "site.sh").write_text(
        f"HVDYOLO_ENVIRONMENT={shlex.quote(str(BIN.parent))}\nHVDYOLO_MPIRUN_ARGUMENTS=(--tag-output)\n"
    )
    job = cluster.submit(
        Path("my scripts/pack.sh"), ["--help"], *TWO_NODES, variables=VARIABLES, cwd=tmp_path
    )
    ended = cluster.wait_for_end(job)
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.log
    assert "--tag-output bash -c" in ended.log
    assert "--skip-unreadable" in ended.log  # of the help

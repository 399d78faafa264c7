"""``hvdyolo detect`` and ``hvdyolo merge`` as a pipeline calls them."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hvdyolo.cli import main
from hvdyolo.data.reader import PackedSplit
from hvdyolo.engine.claims import read_claims
from hvdyolo.models.build import build_model, save_model

IMAGES = 60
# Small chunks, so that there is a middle to be killed in.
SETTINGS = ("--detect.chunk", 2, "--detect.batch", 2, "--detect.pictures", 3)


def draw(path: Path, seed: int) -> None:
    """A photograph of nothing in particular."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize((160 + seed % 3 * 40, 120)).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        draw(root / f"day{number % 3}" / f"{number:02d}.jpg", number)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, but with scores from end to end, so that there are boxes."""
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    torch.manual_seed(0)
    model = build_model("yolov5n", 4, names=["a", "b", "c", "d"])
    for convolution in model.head.m:
        torch.nn.init.normal_(convolution.weight)
        torch.nn.init.normal_(convolution.bias)
    model.image_size = 128
    save_model(model, path)
    return path


@pytest.fixture(scope="module")
def undisturbed(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of one process that nobody troubled."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert run_here(words(photos, weights, out)) == 0
    assert run_here(["merge", out, "--format", "coco"]) == 0
    return out


def run_here(words: Sequence[object]) -> int:
    """The command in this process, which spares the seconds a new one takes to start."""
    numbers = (signal.SIGUSR1, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        return main([str(word) for word in words])
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def words(photos: Path, weights: Path, out: Path, *more: object) -> list[object]:
    return ["detect", "--weights", weights, "--source", photos, "--out", out, *SETTINGS, *more]


def merged(out: Path) -> bytes:
    assert run_here(["merge", out, "--format", "coco"]) == 0
    return (out / "merged/detections.json").read_bytes()


def parts(out: Path) -> dict[str, tuple[int, int]]:
    """Names of the parts with what a rewrite would change."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in (out / "parts").glob("part-*.jsonl")
    }


def test_one_process_leaves_a_complete_output(undisturbed: Path) -> None:
    content = json.loads((undisturbed / "merged/detections.json").read_text())
    assert [image["id"] for image in content["images"]] == list(range(IMAGES))
    names = [image["file_name"] for image in content["images"]]
    assert names == sorted(names)
    assert names[:2] == ["day0/00.jpg", "day0/03.jpg"]
    assert len(content["annotations"]) > IMAGES
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    assert set(sizes.values()) == {(160, 120), (200, 120), (240, 120)}
    for annotation in content["annotations"]:
        left, top, width, height = annotation["bbox"]
        limit_x, limit_y = sizes[annotation["image_id"]]
        assert left >= 0
        assert top >= 0
        assert left + width <= limit_x + 1e-6
        assert top + height <= limit_y + 1e-6
    pictures = sorted(path.name for path in (undisturbed / "pictures").iterdir())
    assert pictures == ["000000-00.jpg", "000001-03.jpg", "000002-06.jpg"]
    assert list((undisturbed / "claims").iterdir()) == []


@pytest.mark.slow
def test_two_ranks_give_the_same_bytes(
    launch: Any, photos: Path, weights: Path, undisturbed: Path, tmp_path: Path
) -> None:
    ended = launch(words(photos, weights, tmp_path / "out"), "mpirun", 2)
    assert ended.code == 0, ended.output
    assert f"{IMAGES} images" in ended.output
    assert "images/s" in ended.output
    assert merged(tmp_path / "out") == (undisturbed / "merged/detections.json").read_bytes()


@pytest.mark.slow
def test_jobs_that_know_nothing_of_each_other_share_an_output(
    launch: Any, photos: Path, weights: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """As the tasks of a job array do."""
    out = tmp_path / "out"
    jobs = [launch.start(words(photos, weights, out)) for _ in range(2)]
    ended = [launch.wait(job) for job in jobs]
    assert [job.code for job in ended] == [0, 0], ended
    done = [int(re.search(r"(\d+) images now", job.output)[1]) for job in ended]
    # Neither did anything twice, as far as claims can tell.
    assert sum(done) == IMAGES
    assert merged(out) == (undisturbed / "merged/detections.json").read_bytes()


@pytest.mark.slow
def test_after_kill_9_the_same_command_does_what_is_missing(
    launch: Any,
    capfd: pytest.CaptureFixture[str],
    photos: Path,
    weights: Path,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    process = launch.start(words(photos, weights, out), "mpirun", 2)
    deadline = time.monotonic() + 120
    while len(list((out / "parts").glob("part-*.jsonl"))) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    for claim in read_claims(out / "claims"):
        if claim.holder is not None:
            os.kill(claim.holder.pid, signal.SIGKILL)
    assert launch.wait(process, 60).code != 0
    before = parts(out)
    assert 3 <= len(before) < IMAGES // 2
    assert run_here(["detect", "--out", out, "--status"]) == 0
    status = capfd.readouterr().out
    assert f"{2 * len(before)} of {IMAGES} images" in status
    assert "(dead)" in status
    assert "not finished" in status

    # The claims of the dead, who were on this machine, expire at once.
    ended = launch(words(photos, weights, out, "--detect.claim_expiry", 3600), "mpirun", 2)
    assert ended.code == 0, ended.output
    after = parts(out)
    assert len(after) == IMAGES // 2
    assert {name: after[name] for name in before} == before
    assert merged(out) == (undisturbed / "merged/detections.json").read_bytes()
    leftovers = [path for path in out.rglob("*") if path.name.startswith(".")]
    assert leftovers == []
    assert run_here(["detect", "--out", out, "--status"]) == 0
    assert "\nfinished" in capfd.readouterr().out


def test_a_finished_output_is_left_alone(launch: Any, photos: Path, weights: Path, undisturbed: Path) -> None:
    before = parts(undisturbed)
    assert run_here(words(photos, weights, undisturbed)) == 0
    assert parts(undisturbed) == before


@pytest.mark.slow
def test_broken_images_are_recorded_and_counted(
    launch: Any, photos: Path, weights: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(photos / "day0", source)
    whole = (source / "00.jpg").read_bytes()
    (source / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (source / "empty.jpg").write_bytes(b"")
    (source / "text.jpg").write_text("not an image")
    (source / "gone.jpg").symlink_to("nowhere")
    out = tmp_path / "out"
    ended = launch(words(source, weights, out), "mpirun", 2)
    assert ended.code == 65, ended.output
    assert "4 of 24 images are unusable, more than --max-bad 0.05" in ended.output
    assert "cut.jpg" in ended.output
    assert "Traceback" not in ended.output
    # All the same every image has its record, and a higher limit takes the output as it is.
    before = parts(out)
    assert run_here(words(source, weights, out, "--max-bad", 0.2)) == 0
    assert parts(out) == before
    failed = {item["file_name"]: item["error"] for item in json.loads(merged(out))["failed"]}
    assert failed == {
        "cut.jpg": "broken",
        "empty.jpg": "empty",
        "gone.jpg": "missing",
        "text.jpg": "not_an_image",
    }


@pytest.mark.slow
def test_another_fingerprint_is_refused_with_the_difference(
    launch: Any, capfd: pytest.CaptureFixture[str], photos: Path, weights: Path, undisturbed: Path
) -> None:
    before = parts(undisturbed)
    changed = words(photos, weights, undisturbed, "--detect.confidence", 0.9)
    ended = launch(changed, "mpirun", 2)
    assert ended.code == 78, ended.output
    assert "detect.confidence is 0.25 there and 0.9 now" in ended.output
    assert "Traceback" not in ended.output
    assert run_here(words(photos / "day0", weights, undisturbed)) == 78
    assert "images is 60," in capfd.readouterr().err
    assert parts(undisturbed) == before


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("no source", 2, "does not exist"),
        ("empty source", 65, "has no images"),
        ("no weights", 2, "no weights file"),
        ("damaged weights", 65, "damaged"),
        ("out is a file", 74, "out"),
        ("out in source", 2, "outside"),
        ("odd size", 2, "multiple of 32"),
        ("not a fraction", 2, "0 … 1"),
    ],
)
def test_wrong_input_ends_with_one_sentence(
    capfd: pytest.CaptureFixture[str],
    photos: Path,
    weights: Path,
    tmp_path: Path,
    what: str,
    code: int,
    message: str,
) -> None:
    source, out = photos, tmp_path / "out"
    more: tuple[object, ...] = ()
    if what == "no source":
        source = tmp_path / "nowhere"
    elif what == "empty source":
        source = tmp_path / "empty"
        source.mkdir()
    elif what == "no weights":
        weights = tmp_path / "none.safetensors"
    elif what == "damaged weights":
        damaged = tmp_path / "damaged.safetensors"
        damaged.write_bytes(weights.read_bytes()[:1000])
        weights = damaged
    elif what == "out is a file":
        out.write_text("")
    elif what == "out in source":
        out = photos / "out"
    elif what == "odd size":
        more = ("--detect.image_size", 100)
    elif what == "not a fraction":
        more = ("--max-bad", 5)
    assert run_here(words(source, weights, out, *more)) == code
    told = capfd.readouterr().err
    assert message in told
    assert told.startswith("hvdyolo")
    assert told.count("\n") == 1
    assert not (photos / "out").exists()
    assert not out.is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["no source", "empty source", "out is a file"])
def test_all_ranks_end_together(launch: Any, photos: Path, weights: Path, tmp_path: Path, what: str) -> None:
    """Errors that every rank finds, that only the first one finds, and that lie in the output."""
    codes = {"no source": 2, "empty source": 65, "out is a file": 74}
    source = tmp_path / "source"
    if what == "empty source":
        source.mkdir()
    elif what == "out is a file":
        source = photos
        (tmp_path / "out").write_text("")
    ended = launch(words(source, weights, tmp_path / "out"), "mpirun", 2)
    assert ended.code == codes[what], ended.output
    assert len([line for line in ended.output.splitlines() if line.startswith("hvdyolo")]) == 1
    assert "Traceback" not in ended.output


def test_dry_run_writes_nothing(
    capfd: pytest.CaptureFixture[str], photos: Path, weights: Path, tmp_path: Path
) -> None:
    assert run_here(words(photos, weights, tmp_path / "out", "--dry-run")) == 0
    assert f"{IMAGES} images in {IMAGES // 2} chunks" in capfd.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_list_means_the_files_it_names(launch: Any, photos: Path, weights: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "day1", tmp_path / "photos")
    (tmp_path / "list.txt").write_text("photos/04.jpg\n\nphotos/01.jpg\n")
    out = tmp_path / "out"
    assert run_here(words(tmp_path / "list.txt", weights, out)) == 0
    images = json.loads(merged(out))["images"]
    assert [image["file_name"] for image in images] == ["photos/04.jpg", "photos/01.jpg"]


@pytest.mark.slow
def test_a_stop_request_ends_in_order_and_can_be_taken_up_again(
    launch: Any, photos: Path, weights: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = launch.start(words(photos, weights, out), "mpirun", 2)
    deadline = time.monotonic() + 120
    while len(list((out / "parts").glob("part-*.jsonl"))) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGUSR1)
    ended = launch.wait(process, 60)
    assert ended.code == 75, ended.output
    assert list((out / "claims").iterdir()) == []
    assert run_here(words(photos, weights, out)) == 0
    assert merged(out) == (undisturbed / "merged/detections.json").read_bytes()


def test_packed_data_is_a_source(synthetic: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_here(words(synthetic / "val", weights, out)) == 0
    val = PackedSplit(synthetic, "val")
    images = json.loads(merged(out))["images"]
    assert [image["file_name"] for image in images] == [f"val/{val.name(index)}" for index in range(len(val))]
    sizes = [(image["height"], image["width"]) for image in images]
    assert sizes == [val.source_size(index) for index in range(len(val))]
    assert len(list((out / "pictures").iterdir())) == 3

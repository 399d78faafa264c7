"""The packing scripts for real: on one rank and several, and misused."""

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from hvdyolo.data.reader import PackedSplit

pytestmark = pytest.mark.slow

TOOLS = Path(__file__).resolve().parents[2] / "data_tools"


def script(name: str, *words: object) -> list[object]:
    return [sys.executable, TOOLS / f"{name}.py", *words]


def packing(source: str, root: Path, out: Path, *more: object) -> list[object]:
    return script("pack", "--source", source, "--root", root, "--out", out, *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(("launcher", "ranks"), [("single", 1), ("mpirun", 2), ("mpirun", 4), ("gloo", 2)])
def test_ranks_of_any_launcher_pack_the_same_bytes(
    launch, drawn, synthetic, tmp_path, launcher, ranks
) -> None:
    ended = launch.program(packing("yolo", drawn, tmp_path / "out"), launcher, ranks)
    assert ended.code == 0, ended.output
    assert ended.output.count("packed into") == 1
    assert contents(tmp_path / "out") == contents(synthetic)


SMALL = """
import sys
from hvdyolo.data import pack, pack_shards
pack._BYTES_A_MIB, pack_shards._BYTES_A_PROCESS = 50 << 10, 1  # many shards, a process for few images
from hvdyolo.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_ranks_that_have_processes_pack_the_same_bytes(launch, drawn, tmp_path) -> None:
    for out, launcher, ranks, workers in (("one", "single", 1, 1), ("many", "mpirun", 2, 2)):
        words = ["pack", "--source", "yolo", "--root", drawn, "--out", tmp_path / out, "--shard-mb", 1]
        ended = launch.program(
            [sys.executable, "-c", SMALL, *words, "--workers", workers], launcher, ranks, timeout=60
        )
        assert ended.code == 0, ended.output
        assert ended.output.count("packed into") == 1
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert len(list((tmp_path / "one").glob("*.h5"))) >= 8


def test_the_scripts_are_the_command(launch, bccd, packed_bccd, tmp_path) -> None:
    ended = launch(["pack", "--source", "voc", "--root", bccd, "--out", tmp_path / "out"])
    assert ended.code == 0, ended.output
    assert contents(tmp_path / "out") == contents(packed_bccd)
    # The two degenerate boxes, by file and line, for whoever watches.
    assert "BloodImage_00338.xml:158" in ended.output
    assert "BloodImage_00343.xml:50" in ended.output
    verified = launch.program(script("verify", tmp_path / "out"))
    assert (verified.code, "364 samples in 3 splits" in verified.output) == (0, True), verified.output
    resharded = launch.program(
        script("reshard", tmp_path / "out", "--out", tmp_path / "new", "--shard-mb", 1)
    )
    assert (resharded.code, "364 samples in" in resharded.output) == (0, True), resharded.output
    refused = launch.program(script("reshard", tmp_path / "out", "--out", tmp_path / "new"))
    assert (refused.code, refused.output.count("\n")) == (78, 1), refused.output
    assert refused.output.startswith("reshard: ")
    shown = launch.program(
        script("inspect", tmp_path / "out", "--out", tmp_path / "pictures", "--samples", 1)
    )
    assert shown.code == 0, shown.output
    assert len(list((tmp_path / "pictures").iterdir())) == 3


def test_drawing_packing_and_inspecting_fit_together(launch, tmp_path) -> None:
    for words in (
        script("synth", "--out", tmp_path / "source", "--images", 8, "--classes", 6),
        packing("yolo", tmp_path / "source", tmp_path / "packed", "--imgsz", 160, "--workers", 1),
        script("inspect", tmp_path / "packed"),
        script("verify", tmp_path / "packed"),
    ):
        ended = launch.program(words)
        assert ended.code == 0, ended.output
    assert PackedSplit(tmp_path / "packed", "val").size(0) == (160, 160)


@pytest.mark.parametrize(("launcher", "ranks"), [("single", 1), ("mpirun", 3)])
@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ("root", 2, "there is no"),
        ("word", 2, "unrecognized arguments: --shards"),
        ("nc", 2, "nc is 7 and there are 4 names"),
        ("image", 65, "000003.jpg is not an image"),
        ("label", 65, "000000.txt:1: unknown class: class 9 is beyond the 4 names"),
        ("pixels", 65, "000000.txt:1: unreadable row: 100 looks like pixels"),
        ("empty", 65, "the split 'val' is empty"),
        ("file", 74, "cannot write"),
        ("other", 78, "is not empty"),
    ],
)
def test_a_mistake_is_one_sentence_once_and_an_exit_code(
    launch, drawn, tmp_path, launcher, ranks, fault, code, says
) -> None:
    root, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(drawn, root)
    words = packing("yolo", root, out, "--shard-mb", 1)
    description = root / "data.yaml"
    if fault == "root":
        shutil.rmtree(root)
    elif fault == "word":
        words += ["--shards", 3]
    elif fault == "nc":
        description.write_text(description.read_text() + "nc: 7\n")
    elif fault == "image":
        (root / "images/train/000003.jpg").write_text("no image")
    elif fault in ("label", "pixels"):
        for path in (root / "labels/train").iterdir():
            path.write_text("9 0.5 0.5 0.1 0.1\n" if fault == "label" else "1 100 100 20 20\n")
    elif fault == "empty":
        shutil.rmtree(root / "images/val")
        (root / "images/val").mkdir()
    elif fault == "file":
        out.write_text("")
    elif fault == "other":
        out.mkdir()
        (out / "thesis.tex").write_text("")
    ended = launch.program(words, launcher, ranks, timeout=60)
    assert ended.code == code, ended.output
    told = [line for line in ended.output.splitlines() if line.startswith("hvdyolo")]
    assert len(told) == 1, ended.output
    assert says in told[0]
    assert "Traceback" not in ended.output
    if out.is_dir():
        assert not (out / "manifest.json").exists()


def test_a_reader_that_leaves_early_is_no_bug(launch, drawn, tmp_path) -> None:
    words = ["pack", "--source", "yolo", "--root", drawn, "--out", tmp_path / "out"]
    command = shlex.join(["hvdyolo", *map(str, words)])
    ended = launch.program(["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"])
    assert "Traceback" not in ended.output
    assert "BrokenPipe" not in ended.output
    assert ended.code in (0, 74)  # whether `true` was gone already

import gc
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvdyolo.data import manifest as manifest_module
from hvdyolo.data import pack as pack_module
from hvdyolo.data import reshard as reshard_module
from hvdyolo.data.manifest import read_manifest
from hvdyolo.data.pack import main as pack
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.reshard import main, reshard
from hvdyolo.data.verify import verify_packed
from hvdyolo.data.writer import Sample, ShardWriter
from hvdyolo.utils.errors import DataError, InternalError, MismatchError, StorageError, UsageError

Build = Callable[..., Any]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path, encode: Callable[..., bytes]) -> Path:
    """A YOLO folder of two splits with images of very different sizes."""
    root = tmp_path / "source"
    for split, count in (("train", 30), ("val", 7)):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            side = 16 + 8 * (number % 5)
            pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
            kind = "PNG" if number % 2 else "JPEG"
            (root / f"images/{split}/{number:03d}.{kind.lower()}").write_bytes(encode(pixels, kind))
            rows = "".join(f"{row} 0.5 0.5 0.{row + 1} 0.25\n" for row in range(number % 3))
            (root / f"labels/{split}/{number:03d}.txt").write_text(rows)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    return root


@pytest.fixture(autouse=True)
def small_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of ``--shard-mb`` KiB, so that few images make many."""
    for module in (pack_module, reshard_module):
        monkeypatch.setattr(module, "_BYTES_A_MIB", 1 << 10)


def packed_with(source: Path, out: Path, shard_mb: int) -> Path:
    assert (
        pack(["--source", "yolo", "--root", str(source), "--out", str(out), "--shard-mb", str(shard_mb)]) == 0
    )
    return out


@pytest.mark.parametrize(("before", "after"), [(8, 20), (20, 8), (8, 1000), (1000, 3)])
def test_it_gives_the_bytes_of_packing_with_that_size(
    source: Path, tmp_path: Path, before: int, after: int
) -> None:
    old = packed_with(source, tmp_path / "old", before)
    kept = contents(old)
    wanted = packed_with(source, tmp_path / "wanted", after)
    assert len(contents(wanted)) != len(kept)
    assert main([str(old), "--out", str(tmp_path / "new"), "--shard-mb", str(after)]) == 0
    assert contents(tmp_path / "new") == contents(wanted)
    assert contents(old) == kept


def test_everything_of_every_sample_is_kept_in_order(packed: Build, tmp_path: Path) -> None:
    """Other names, sizes and settings than packing itself would make; 'new' has other borders."""
    data = packed(shards=4, each=5)
    manifest = reshard(data.root, tmp_path / "new", 9000)
    shards = manifest.splits["train"].shards
    assert [record.samples for record in shards] != [5] * 4
    assert len(shards) > 1
    split = PackedSplit(tmp_path / "new", "train")
    assert len(split) == 20
    for index, sample in enumerate(data.samples):
        assert split.read(index) == sample.encoded
        np.testing.assert_array_equal(split.labels(index), sample.labels)
        np.testing.assert_array_equal(split.flags(index), sample.flags)
        assert split.size(index) == (sample.height, sample.width)
        assert split.source_size(index) == (sample.source_height, sample.source_width)
        assert (split.name(index), split.sample_id(index)) == (sample.name, sample.sample_id)
    assert verify_packed(tmp_path / "new").samples == 20
    assert manifest.dataset_id == read_manifest(data.root).dataset_id
    assert manifest.settings == {"max_side": None, "shard_bytes": 9000}


OLD_ID = "0123456789abcdef" * 2


def test_the_identity_that_runs_know_is_kept_even_if_it_was_derived_otherwise(
    packed: Build, tmp_path: Path
) -> None:
    root = packed().root
    content = json.loads((root / "manifest.json").read_text())
    del content["digest"]
    content["dataset_id"] = OLD_ID
    content["digest"] = manifest_module._digest(content)
    (root / "manifest.json").write_text(json.dumps(content))
    assert reshard(root, tmp_path / "new", 5000).dataset_id == OLD_ID


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 8
    path.write_bytes(raw)


@pytest.mark.parametrize("where", ["image", "index"])
def test_damage_is_found_on_the_way_and_no_dataset_is_left(packed: Build, tmp_path: Path, where: str) -> None:
    data = packed(shards=3, each=4)
    record = data.records[1]
    place = record.data_offset + record.data_bytes - 1 if where == "image" else record.data_offset // 2
    flip(data.root / record.file, place)
    what = r"sample 3 \(folder/ü7\.png\) is damaged" if where == "image" else "is damaged"
    with pytest.raises(DataError, match=rf"{record.file}.*{what}"):
        reshard(data.root, tmp_path / "new", 5000)
    assert not (tmp_path / "new" / "manifest.json").exists()
    flip(data.root / record.file, place)  # copied again
    reshard(data.root, tmp_path / "new", 5000)
    assert verify_packed(tmp_path / "new").samples == 12
    assert not (tmp_path / "new" / ".packing").exists()


def test_it_goes_on_after_the_last_whole_shard(
    packed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = packed(shards=2, each=10)
    reshard(data.root, tmp_path / "whole", 4000)
    written: list[str] = []
    write = ShardWriter._finish

    def interrupted(self: ShardWriter) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(self.path.name)
        write(self)

    monkeypatch.setattr(ShardWriter, "_finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reshard(data.root, tmp_path / "new", 4000)
    with pytest.raises(UsageError, match="not a packed dataset"):
        read_manifest(tmp_path / "new")
    with pytest.raises(MismatchError, match="for another --shard-mb"):
        reshard(data.root, tmp_path / "new", 5000)
    first = written.copy()
    written.append("so that it is not interrupted again")
    reshard(data.root, tmp_path / "new", 4000)
    assert not set(first) & set(written[3:])
    assert contents(tmp_path / "new") == contents(tmp_path / "whole")


def test_a_copy_that_is_not_what_was_read_is_no_dataset(
    packed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reshard_module, "_FORMATS", {})  # a bug that loses the codecs, which nothing reads
    with pytest.raises(InternalError, match="differs"):
        reshard(packed().root, tmp_path / "new", 5000)
    assert not (tmp_path / "new" / "manifest.json").exists()


CHILD = """
import os, signal, sys
from pathlib import Path
from hvdyolo.data import writer
from hvdyolo.data.reshard import reshard
replace, left = os.replace, int(sys.argv[3])
def counted(source, target):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = counted
reshard(Path(sys.argv[1]), Path(sys.argv[2]), 6000)
"""


def test_killed_before_any_rename_it_leaves_nothing_that_looks_whole(packed: Build, tmp_path: Path) -> None:
    """Renames: of the plan, of each shard and its record, of the manifest."""
    data = packed(shards=2, each=6)
    reshard(data.root, tmp_path / "whole", 6000)
    shards = len(read_manifest(tmp_path / "whole").splits["train"].shards)
    assert shards >= 2
    for renames in range(2 * shards + 2):
        out = tmp_path / f"killed-{renames}"
        ended = subprocess.run([sys.executable, "-c", CHILD, data.root, out, str(renames)])
        assert ended.returncode == -signal.SIGKILL
        with pytest.raises(UsageError, match="not a packed dataset"):
            read_manifest(out)
        reshard(data.root, out, 6000)
        assert contents(out) == contents(tmp_path / "whole")


def test_what_is_in_the_way_is_left_alone(packed: Build, tmp_path: Path) -> None:
    root = packed().root
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("years")
    before = contents(tmp_path)
    with pytest.raises(MismatchError, match="is not empty"):
        reshard(root, tmp_path / "other", 1 << 20)
    with pytest.raises(MismatchError, match="already holds a packed dataset"):
        reshard(root, root, 1 << 20)
    with pytest.raises(UsageError, match="not a packed dataset"):
        reshard(tmp_path / "other", tmp_path / "new", 1 << 20)
    with pytest.raises(StorageError, match="cannot write"):
        reshard(root, tmp_path / "other/thesis.tex", 1 << 20)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--out", "new", "--shard-mb", "0"], "--shard-mb must be at least 1, not 0"),
        (["--out", "new", "--shards", "3"], "unrecognized arguments"),
        ([], "required: --out"),
    ],
)
def test_wrong_words_are_said_in_one_sentence(packed: Build, words: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        main([str(packed().root), *words])
    assert "\n" not in str(caught.value)


def test_no_image_is_held_until_its_shard_is_written(
    packed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = packed(shards=6, each=5)
    data.samples.clear()
    before = images_alive()
    held: list[int] = []
    write = ShardWriter._finish

    def counted(self: ShardWriter) -> None:
        held.append(images_alive() - before)
        write(self)

    monkeypatch.setattr(ShardWriter, "_finish", counted)
    reshard(data.root, tmp_path / "new", 4000)
    assert len(held) > 3
    assert max(held) <= 1  # the one just added


def images_alive() -> int:
    gc.collect()
    return sum(isinstance(thing, Sample) and len(thing.encoded) > 0 for thing in gc.get_objects())

import copy
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvdyolo.data import node_memory
from hvdyolo.data import reader as reader_module
from hvdyolo.data.manifest import build_manifest, read_manifest, write_manifest
from hvdyolo.data.reader import DamagedSampleError, PackedSplit
from hvdyolo.data.split_index import SplitIndex
from hvdyolo.utils.errors import DataError, StorageError, UsageError

Build = Callable[..., Any]


@pytest.fixture(params=["read", "mapped"])
def packed_somehow(
    request: pytest.FixtureRequest, packed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Build:
    """As ``packed``; the index is in the process, or mapped from the node's copy."""
    if request.param == "mapped":
        monkeypatch.setattr(node_memory, "_SHARED_FROM", 1)
        monkeypatch.setattr(node_memory, "_places", lambda: (tmp_path,))
    return packed


def test_every_sample_comes_back_over_the_borders_of_shards(packed_somehow: Build) -> None:
    data = packed_somehow(shards=3, each=4)
    split = PackedSplit(data.root, "train")
    assert split.names == ("cat", "dog", "emu")
    assert len(split) == 12
    for index, sample in enumerate(data.samples):
        assert split.read(index) == sample.encoded
        np.testing.assert_array_equal(split.labels(index), sample.labels)
        np.testing.assert_array_equal(split.flags(index), sample.flags)
        assert split.size(index) == (sample.height, sample.width) == (16, 24)
        assert split.source_size(index) == (sample.source_height, sample.source_width)
        assert split.name(index) == sample.name
        assert split.sample_id(index) == sample.sample_id
        assert split.shard_file(index) == f"train-{index // 4:05d}-of-00003.h5"


def test_boxes_are_counted_by_class_and_crowds_are_not(packed_somehow: Build) -> None:
    data = packed_somehow(shards=3, each=4)
    # A sample's first box, of three in four samples, is a cat, the second a crowd of dogs, the third an emu.
    assert PackedSplit(data.root, "train").class_counts().tolist() == [9, 0, 3]


@pytest.mark.parametrize("index", [-1, 12, 1 << 40])
def test_there_is_no_sample_beyond_the_ends(packed: Build, index: int) -> None:
    split = PackedSplit(packed(shards=3, each=4).root, "train")
    for method in (split.read, split.labels, split.flags, split.size, split.name, split.sample_id):
        with pytest.raises(IndexError):
            method(index)


def test_many_samples_come_in_the_order_asked_for(packed_somehow: Build) -> None:
    data = packed_somehow(shards=3, each=4)
    split = PackedSplit(data.root, "train")
    asked = [11, 0, 5, 1, 10, 5, 4]
    read = [bytes(encoded) for encoded in split.read_many(asked)]
    assert read == [data.samples[index].encoded for index in asked]
    assert list(split.read_many([])) == []
    with pytest.raises(IndexError):
        list(split.read_many([0, 12]))


def test_many_samples_are_read_into_the_same_memory(packed: Build) -> None:
    data = packed(each=5)
    asked = sorted(range(5), key=lambda index: len(data.samples[index].encoded), reverse=True)
    split = PackedSplit(data.root, "train")
    assert len({id(encoded.obj) for encoded in list(split.read_many(asked))}) == 1
    one, other = split.read_many(asked[:1]), split.read_many(asked[1:2])
    assert bytes(next(one)) != bytes(next(other))


def test_memory_for_many_samples_grows_with_them(packed: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_USUAL_BYTES", 1)
    data = packed(each=5)
    images = [bytes(encoded) for encoded in PackedSplit(data.root, "train").read_many(range(5))]
    assert images == [sample.encoded for sample in data.samples]


def test_one_damaged_sample_of_many_is_named_when_it_is_its_turn(packed: Build) -> None:
    data = packed(each=4)
    path = data.root / data.records[0].file
    raw = bytearray(path.read_bytes())
    raw[data.records[0].data_offset + len(data.samples[0].encoded)] ^= 1
    path.write_bytes(raw)
    split = PackedSplit(data.root, "train")
    many = split.read_many([3, 1, 2])
    assert bytes(next(many)) == data.samples[3].encoded
    with pytest.raises(DamagedSampleError, match="sample 1 "):
        next(many)
    assert [bytes(encoded) for encoded in split.read_many([2])] == [data.samples[2].encoded]


def test_a_flip_in_any_byte_of_an_image_is_noticed_in_that_image_only(packed: Build) -> None:
    data = packed(each=3)
    record = data.records[0]
    path = data.root / record.file
    good = path.read_bytes()
    first, last = len(data.samples[0].encoded), len(data.samples[0].encoded + data.samples[1].encoded)
    for place in [first, first + 7, (first + last) // 2, last - 1]:
        raw = bytearray(good)
        raw[record.data_offset + place] ^= 4
        path.write_bytes(raw)
        split = PackedSplit(data.root, "train")
        with pytest.raises(DataError, match=rf"{record.file}: sample 1 \(folder/ü1\.png\) is damaged"):
            split.read(1)
        assert (split.read(0), split.read(2)) == (data.samples[0].encoded, data.samples[2].encoded)
        unchecked = PackedSplit(data.root, "train", verify=False).read(1)
        assert unchecked != data.samples[1].encoded
        assert len(unchecked) == len(data.samples[1].encoded)


@pytest.mark.parametrize("verify", [True, False])
def test_a_file_that_is_cut_while_it_is_open_is_noticed(packed: Build, verify: bool) -> None:
    data = packed()
    split = PackedSplit(data.root, "train", verify=verify)
    os.truncate(data.root / data.records[0].file, data.records[0].data_offset + 10)
    with pytest.raises(DataError, match="is damaged"):
        split.read(0)
    with pytest.raises(DataError, match="is damaged"):
        next(split.read_many([0]))


def test_a_file_that_goes_while_it_is_not_open_is_named(packed: Build) -> None:
    data = packed()
    split = PackedSplit(data.root, "train")
    (data.root / data.records[0].file).unlink()
    with pytest.raises(DataError, match=r"of-00001\.h5 is missing"):
        split.read(0)


def test_a_file_system_that_fails_is_exit_74(packed: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    split = PackedSplit(packed().root, "train")

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(StorageError, match=r"cannot read .*h5: Input/output error") as caught:
        split.read(0)
    assert caught.value.exit_code == 74


def test_reading_opens_each_file_once(packed: Build) -> None:
    """Watched from outside Python's audit hooks' reach of other tests: in a process of its own."""
    data = packed(shards=3, each=4)
    script = (
        "import sys\nfrom pathlib import Path\nfrom hvdyolo.data.reader import PackedSplit\n"
        "split = PackedSplit(Path(sys.argv[1]), 'train')\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(args[0]) if event == 'open' else None)\n"
        "for _ in range(20):\n"
        "    for index in range(len(split)):\n"
        "        split.read(index); split.labels(index); split.name(index)\n"
        "print(len(opened), len(set(opened)))\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, data.root], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["3", "3"]


def open_files(root: Path) -> int:
    links = list(Path("/proc/self/fd").iterdir())
    return sum(str(link.readlink()).startswith(str(root)) for link in links if link.is_symlink())


def test_the_number_of_open_files_is_bounded(packed: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reader_module._MOST_OPEN_FILES == 64
    monkeypatch.setattr(reader_module, "_MOST_OPEN_FILES", 3)
    data = packed(shards=8, each=1)
    split = PackedSplit(data.root, "train")
    assert open_files(data.root) == 0
    for index in [*range(8), *range(8)]:
        assert split.read(index) == data.samples[index].encoded
        assert open_files(data.root) <= 3
    split.close()
    assert open_files(data.root) == 0
    assert split.read(5) == data.samples[5].encoded


def test_open_files_end_with_their_reader(packed: Build) -> None:
    data = packed()
    split = PackedSplit(data.root, "train")
    split.read(0)
    assert open_files(data.root) == 1
    del split
    assert open_files(data.root) == 0


@pytest.mark.parametrize("duplicate", [copy.copy, lambda split: pickle.loads(pickle.dumps(split))])
def test_no_descriptor_crosses_a_copy(packed_somehow: Build, duplicate: Callable[[Any], Any]) -> None:
    data = packed_somehow()
    split = PackedSplit(data.root, "train")
    split.read(0)
    other = duplicate(split)
    split.close()
    # Another file takes the number that was just freed: a borrowed descriptor would read from it.
    with open(data.root / "manifest.json", "rb"):
        assert other.read(1) == data.samples[1].encoded


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_it_reads_in_another_process(packed_somehow: Build, method: str) -> None:
    data = packed_somehow(shards=2, each=3)
    split = PackedSplit(data.root, "train")
    split.read(0)  # so that there is an open file to inherit
    context = multiprocessing.get_context(method)
    # Not a Pool: it ends its processes by SIGTERM, which they have blocked where another test has started the
    # server of the loader's workers.
    with ProcessPoolExecutor(2, context) as pool:
        assert list(pool.map(split.read, range(6))) == [sample.encoded for sample in data.samples]
    assert split.read(0) == data.samples[0].encoded


def test_what_is_handed_out_cannot_be_changed(packed_somehow: Build) -> None:
    split = PackedSplit(packed_somehow().root, "train")
    for array in (split.labels(1), split.flags(1)):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_what_is_handed_out_outlives_the_split(packed_somehow: Build) -> None:
    data = packed_somehow()
    split = PackedSplit(data.root, "train")
    labels, flags = split.labels(3), split.flags(3)
    del split
    np.testing.assert_array_equal(labels, data.samples[3].labels)
    np.testing.assert_array_equal(flags, data.samples[3].flags)


def test_of_a_mapped_index_a_worker_is_sent_no_more_than_where_it_is(
    packed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each shard, what the manifest says; of the samples, nothing."""
    root = packed(shards=2, each=100).root
    small = pickle.dumps(PackedSplit(root, "train"))
    monkeypatch.setattr(node_memory, "_SHARED_FROM", 1)
    monkeypatch.setattr(node_memory, "_places", lambda: (tmp_path,))
    index = SplitIndex(root, read_manifest(root).splits["train"].shards, 3).size
    mapped = pickle.dumps(PackedSplit(root, "train"))
    assert len(mapped) < len(small) - index + 500
    assert len(mapped) < 2500


def test_an_unknown_split_is_wrong_usage_and_tells_which_there_are(packed: Build) -> None:
    with pytest.raises(UsageError, match="no split 'val'; it has train"):
        PackedSplit(packed().root, "val")


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    write_manifest(build_manifest("0" * 32, ("cat",), {"val": []}, {}), tmp_path)
    with pytest.raises(DataError, match=r"'val' .* is empty"):
        PackedSplit(tmp_path, "val")


def test_shards_swapped_between_datasets_are_noticed(packed: Build, tmp_path: Path) -> None:
    data = packed(shards=2, each=4)
    shutil.copy(data.root / data.records[1].file, data.root / data.records[0].file)
    for index in range(4):
        with pytest.raises(DataError, match=r"00000-of-00002\.h5.* is damaged"):
            PackedSplit(data.root, "train").read(index)

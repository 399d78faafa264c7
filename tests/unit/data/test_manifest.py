import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hvdyolo.data import manifest as manifest_module
from hvdyolo.data.manifest import read_manifest, write_manifest
from hvdyolo.data.writer import ShardRecord
from hvdyolo.utils.errors import DataError, MismatchError, UsageError

Build = Callable[..., Any]


def rewrite(root: Path, change: Callable[[dict[str, Any]], None], *, honest: bool = True) -> None:
    """Change the manifest; an honest change also renews its digest, as an attacker would."""
    path = root / "manifest.json"
    content = json.loads(path.read_text())
    digest = content.pop("digest")
    change(content)
    if honest:
        digest = manifest_module._digest(content)
    path.write_text(json.dumps({**content, "digest": digest}))


def test_what_is_written_is_read(packed: Build) -> None:
    data = packed(shards=3, each=4)
    manifest = read_manifest(data.root)
    assert manifest.names == ("cat", "dog", "emu")
    assert manifest.splits["train"].shards == tuple(data.records)
    assert manifest.splits["train"].samples == 12
    assert manifest.settings == {"max_side": None}


def test_every_flipped_byte_is_noticed(packed: Build) -> None:
    path = packed().root / "manifest.json"
    good = path.read_bytes()
    expected = read_manifest(path.parent)
    for place in range(len(good)):
        for bit in (0, 5):
            raw = bytearray(good)
            raw[place] ^= 1 << bit
            path.write_bytes(raw)
            with suppress(DataError, MismatchError):
                # White space may change; nothing that is used may.
                assert read_manifest(path.parent) == expected


@pytest.mark.parametrize("kept", [0, 1, 10, 0.5, -2])
def test_a_truncated_manifest_is_damaged(packed: Build, kept: float) -> None:
    path = packed().root / "manifest.json"
    raw = path.read_bytes()
    path.write_bytes(raw[: kept if isinstance(kept, int) else int(len(raw) * kept)])
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        read_manifest(path.parent)


@pytest.mark.parametrize("text", ["[]", "null", "3", '{"schema": []}', "[" * 100_000, '"\\ud800"'])
def test_other_json_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError):
        read_manifest(tmp_path)


def test_another_version_is_a_mismatch_that_names_both(packed: Build) -> None:
    root = packed().root
    rewrite(root, lambda content: content.update(version=7), honest=False)
    with pytest.raises(MismatchError, match="version 7, this program reads 2") as caught:
        read_manifest(root)
    assert caught.value.exit_code == 78


def test_no_manifest_and_no_directory_are_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a packed dataset"):
        read_manifest(tmp_path)
    with pytest.raises(UsageError, match="no directory"):
        read_manifest(tmp_path / "none")


def change_shard(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["splits"]["train"]["shards"][0].update(values)


def change_columns(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["splits"]["train"]["shards"][0]["columns"].update(values)


@pytest.mark.parametrize(
    "change",
    [
        change_columns(labels=-1),
        change_columns(labels=True),
        change_columns(index="5"),
        change_columns(name_ptr=1 << 60),
        change_columns(name_bytes=1 << 60),
        change_columns(name_bytes=None),
        change_columns(digest="../" + "0" * 29),
        change_columns(digest="0" * 31),
        change_columns(digest=None),
        change_columns(extra=1),
        change_shard(digest=5),
        change_shard(digest=None),
        change_shard(digest="0" * 31),
        change_shard(columns=[]),
        change_shard(columns=None),
        change_shard(boxes=1 << 50),
        lambda content: content["splits"]["train"]["shards"][0].pop("columns"),
        lambda content: content["splits"]["train"].update(samples=5.0),
        lambda content: content["splits"].update({"a\0b": {"shards": [], "samples": 0}}),
        lambda content: content["splits"].update({"a\nb": {"shards": [], "samples": 0}}),
        lambda content: content["splits"].update({"a\ud800": {"shards": [], "samples": 0}}),
        lambda content: content.update(dataset_id="x/../../../escaped"),
        lambda content: content.update(dataset_id=None),
        lambda content: content["splits"]["train"]["shards"][0]["columns"].pop("names"),
        change_shard(file="../elsewhere.h5"),
        change_shard(file="/etc/passwd"),
        change_shard(file="train-00001-of-00001.h5"),
        change_shard(samples=-1),
        change_shard(samples=4),
        change_shard(samples="5"),
        change_shard(data_offset=1 << 60),
        change_shard(data_bytes=1 << 60),
        change_shard(boxes=1.5),
        change_shard(extra=1),
        lambda content: content["splits"]["train"].update(samples=6),
        lambda content: content.update(names=[1, 2]),
        lambda content: content.pop("names"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(packed: Build, change: Any) -> None:
    root = packed().root
    rewrite(root, change)
    with pytest.raises(DataError):
        read_manifest(root)


def test_the_manifest_is_written_whole(packed: Build, tmp_path: Path) -> None:
    manifest = read_manifest(packed().root)
    write_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert isinstance(manifest.splits["train"].shards[0], ShardRecord)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "packed"]

"""Equal content has equal identities, in whatever shards; any other content has another."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from hvdyolo.data.identity import ContentDigest
from hvdyolo.data.shard import Shard
from hvdyolo.data.writer import Sample

COUNT = 12


def sample(number: int) -> Sample:
    boxes = number % 3
    return Sample(
        encoded=bytes([number] * (number + 1)),
        format="JPEG",
        width=10 + number,
        height=20 + number,
        source_width=30 + number,
        source_height=40 + number,
        labels=np.full((boxes, 5), 1 / (number + 1), dtype=np.float32),
        flags=np.full(boxes, number, dtype=np.uint8),
        name=f"ü{number}" * (number % 4),
        sample_id=100 + number,
    )


def shard(samples: Sequence[Sample], start: int = 0) -> Shard:
    """As :func:`read_shard` would give it."""
    lengths = np.array([len(sample.encoded) for sample in samples], dtype=np.int64)
    names = [sample.name.encode() for sample in samples]
    return Shard(
        path=Path("none"),
        starts=start + np.cumsum(lengths) - lengths,
        lengths=lengths,
        checksums=np.array([xxh3_64_intdigest(sample.encoded) for sample in samples], dtype=np.uint64),
        sizes=np.array([(s.height, s.width) for s in samples], dtype=np.int32).reshape(-1, 2),
        source_sizes=np.array([(s.source_height, s.source_width) for s in samples], dtype=np.int32).reshape(
            -1, 2
        ),
        sample_ids=np.array([sample.sample_id for sample in samples], dtype=np.int64),
        codecs=np.zeros(len(samples), dtype=np.uint8),
        labels=np.concatenate([np.zeros((0, 5), "f4"), *(sample.labels for sample in samples)]),
        label_flags=np.concatenate([np.zeros(0, "u1"), *(sample.flags for sample in samples)]),
        label_ptr=np.cumsum([0, *(len(sample.labels) for sample in samples)]),
        names=b"".join(names),
        name_ptr=np.cumsum([0, *map(len, names)]),
    )


def identity(shards: Sequence[Shard], names: Sequence[str] = ("cat", "dog"), split: str = "train") -> str:
    content = ContentDigest(names)
    for each in shards:
        content.add(split, each)
    return content.dataset_id()


SAMPLES = [sample(number) for number in range(COUNT)]
WHOLE = identity([shard(SAMPLES)])


@settings(deadline=None)
@given(st.sets(st.integers(0, COUNT)), st.integers(0, 1 << 20))
def test_it_is_blind_to_the_borders_of_shards(borders: set[int], start: int) -> None:
    runs = pairwise([0, *sorted(borders), COUNT])
    assert identity([shard(SAMPLES[first:last], start) for first, last in runs]) == WHOLE


def test_it_is_what_the_specification_says() -> None:
    """Of one sample without boxes and name: its row in bytes, and the digests of nothing."""
    values = [(1, 4), (xxh3_64_intdigest(b"\0"), 8), (10, 2), (20, 2), (30, 2), (40, 2), (100, 8)]
    values += [(0, 1), (0, 8), (0, 8)]  # codec, boxes, bytes of the name
    row = b"".join(value.to_bytes(size, "little") for value, size in values)
    columns = [xxh3_128_hexdigest(column) for column in (row, b"", b"", b"")]
    content = json.dumps([["cat", "dog"], {"train": columns}], separators=(",", ":"))
    assert identity([shard(SAMPLES[:1])]) == xxh3_128_hexdigest(content.encode())


def changed(**values: Any) -> Callable[[list[Sample]], list[Sample]]:
    return lambda samples: [*samples[:5], replace(samples[5], **values), *samples[6:]]


def moved_box(samples: list[Sample]) -> list[Sample]:
    """The last box of sample 4 becomes the first of sample 5: all boxes in a row stay what they are."""
    fourth, fifth = samples[4], samples[5]
    return [
        *samples[:4],
        replace(fourth, labels=fourth.labels[:-1], flags=fourth.flags[:-1]),
        replace(
            fifth,
            labels=np.concatenate([fourth.labels[-1:], fifth.labels]),
            flags=np.concatenate([fourth.flags[-1:], fifth.flags]),
        ),
        *samples[6:],
    ]


def moved_letter(samples: list[Sample]) -> list[Sample]:
    return [
        *samples[:5],
        replace(samples[5], name=samples[5].name + samples[6].name[:1]),
        replace(samples[6], name=samples[6].name[1:]),
        *samples[7:],
    ]


@pytest.mark.parametrize(
    "change",
    [
        changed(encoded=b"\5\5\5\5\5\4"),
        changed(width=1),
        changed(height=1),
        changed(source_width=1),
        changed(source_height=1),
        changed(sample_id=1),
        changed(name="other"),
        changed(labels=np.zeros((2, 5), np.float32)),
        changed(flags=np.array([5, 4], np.uint8)),
        moved_box,
        moved_letter,
        lambda samples: samples[:-1],
        lambda samples: samples[::-1],
        lambda samples: [*samples, samples[0]],
    ],
)
def test_it_changes_with_whatever_a_reader_is_told(change: Callable[[list[Sample]], list[Sample]]) -> None:
    assert identity([shard(change(SAMPLES))]) != WHOLE


def test_it_changes_with_codecs_class_names_and_splits() -> None:
    whole = shard(SAMPLES)
    others = [
        identity([replace(whole, codecs=whole.codecs + np.uint8(1))]),
        identity([whole], names=("dog", "cat")),
        identity([whole], names=("catdog",)),
        identity([whole], split="val"),
    ]
    assert len({WHOLE, *others}) == 5


def test_splits_may_be_given_in_any_order() -> None:
    first, second = shard(SAMPLES[:5]), shard(SAMPLES[5:])
    contents = []
    for order in ((("val", first), ("train", second)), (("train", second), ("val", first))):
        content = ContentDigest(("cat",))
        for split, each in order:
            content.add(split, each)
        contents.append(content.dataset_id())
    assert contents[0] == contents[1]

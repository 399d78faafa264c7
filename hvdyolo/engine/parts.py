"""Results of one chunk each: immutable files of JSON lines whose existence is the commit.

Every image of the chunk has one line, in the order of the ids, found or failed; the last line tells what
must be above it. docs/detections.md is the specification.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from hvdyolo.engine.detection_plan import Plan
from hvdyolo.utils.create_once import create_once, remove_leftovers
from hvdyolo.utils.errors import DataError

PARTS_DIRECTORY = "parts"
# The last line is much shorter; reading it alone spares reading the part.
_LAST_LINE_BYTES = 1024

ErrorCode = Literal["missing", "unreadable", "empty", "not_an_image", "too_large", "broken", "checksum"]


@dataclass(frozen=True)
class Found:
    """What was detected on one image.

    Attributes:
        image: its name in the source.
        id: its number in the source.
        width: of the source image, pixels, as are height and boxes.
        boxes_xyxy: left, top, right, bottom.
        scores: 0 … 1, falling.
        labels: numbers of classes.
        capped: there were more candidates or boxes than are kept.
    """

    image: str
    id: int
    width: int
    height: int
    boxes_xyxy: Sequence[Sequence[float]]
    scores: Sequence[float]
    labels: Sequence[int]
    capped: bool


@dataclass(frozen=True)
class Failed:
    """Why an image has no detections."""

    image: str
    id: int
    error: ErrorCode
    detail: str


Record = Found | Failed


@dataclass(frozen=True)
class PartTotals:
    """The last line of a part."""

    images: int
    boxes: int
    errors: int
    fingerprint: str
    checksum: str


class Parts:
    """The parts of one output directory."""

    def __init__(self, out: Path, plan: Plan) -> None:
        self.directory = out / PARTS_DIRECTORY
        self._plan = plan

    def path(self, chunk: int) -> Path:
        """Where the part of ``chunk`` is, or will be."""
        return self.directory / f"part-{chunk:08d}.jsonl"

    def finished(self) -> set[int]:
        """Chunks whose part is there, by one listing of the directory."""
        return {int(path.stem.removeprefix("part-")) for path in self.directory.glob("part-*.jsonl")}

    def check_complete(self) -> None:
        """Raises:
        DataError: a part is missing.
        """
        chunks = self._plan.chunks
        missing = sorted(set(range(chunks)) - self.finished())
        if missing:
            raise DataError(
                f"{self.directory} lacks {len(missing)} of {chunks} parts, "
                f"{self.path(missing[0]).name} first; run the same hvdyolo detect again."
            )

    def commit(self, chunk: int, records: Sequence[Record]) -> bool:
        """Write the part of ``chunk``; false if another was there first, which stands.

        Raises:
            StorageError: it cannot be written.
        """
        body = "".join(json.dumps(vars(record)) + "\n" for record in records).encode()
        totals = _totals(records, self._plan.digest, xxhash.xxh3_64_hexdigest(body))
        return create_once(self.path(chunk), body + _last_line(totals))

    def totals(self, chunk: int) -> PartTotals:
        """The last line of a part.

        Raises:
            DataError: the part is damaged or of another plan.
        """
        path = self.path(chunk)
        with open(path, "rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _LAST_LINE_BYTES))
            line = stream.read().splitlines()[-1:]
        try:
            values: dict[str, Any] = json.loads(line[0])
            values.pop("end")
            totals = PartTotals(**values)
        except (IndexError, ValueError, KeyError, TypeError, AttributeError):
            raise _damaged(path, "its last line is not one") from None
        if totals.fingerprint != self._plan.digest:
            raise _damaged(path, f"it belongs to {totals.fingerprint}, not {self._plan.digest}")
        return totals

    def records(self, chunk: int) -> Iterator[Record]:
        """The records of a part.

        Raises:
            DataError: the part is damaged; raised after the last record where only the checksum tells.
        """
        path = self.path(chunk)
        totals = self.totals(chunk)
        checksum = xxhash.xxh3_64()
        read: list[Record] = []
        with open(path, "rb") as stream:
            for expected_id in self._plan.ids(chunk):
                line = stream.readline()
                checksum.update(line)
                record = _parse(path, line)
                if record.id != expected_id:
                    raise _damaged(path, f"image {record.id} stands where {expected_id} belongs")
                read.append(record)
                yield record
            rest = stream.read()
        actual = _totals(read, self._plan.digest, checksum.hexdigest())
        if rest != _last_line(actual) or actual != totals:
            raise _damaged(path, "its content does not fit its last line")

    def remove_leftovers(self) -> None:
        """Delete the unfinished files of killed processes."""
        remove_leftovers(self.directory)


def _totals(records: Sequence[Record], fingerprint: str, checksum: str) -> PartTotals:
    found = [record for record in records if isinstance(record, Found)]
    return PartTotals(
        images=len(records),
        boxes=sum(len(record.scores) for record in found),
        errors=len(records) - len(found),
        fingerprint=fingerprint,
        checksum=checksum,
    )


def _last_line(totals: PartTotals) -> bytes:
    return json.dumps({"end": True, **vars(totals)}).encode() + b"\n"


def _parse(path: Path, line: bytes) -> Record:
    try:
        values: dict[str, Any] = json.loads(line)
        return Failed(**values) if "error" in values else Found(**values)
    except (ValueError, TypeError):
        raise _damaged(path, "a line is no record") from None


def _damaged(path: Path, how: str) -> DataError:
    return DataError(f"{path} is damaged: {how}; delete it and run hvdyolo detect again.")

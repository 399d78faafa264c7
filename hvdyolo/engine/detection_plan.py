"""What an output directory of batch detection is about: which images, in which chunks, by which detector.

``plan.json`` is written once, by whoever comes first, and never changes; everybody else compares.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hvdyolo.config import DetectConfig
from hvdyolo.utils.create_once import create_once
from hvdyolo.utils.errors import MismatchError, UsageError

PLAN_NAME = "plan.json"
FORMAT_VERSION = 1
# Small sources are cut finer than the setting says, so that this many workers have something to do.
_WISHED_CHUNKS = 64

Fingerprint = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Plan:
    """The work, cut into chunks.

    Attributes:
        images: how many; their ids are 0 … images - 1.
        chunk: images a chunk; the last one may have fewer.
        image_list: name of the file with the images' names, see :mod:`hvdyolo.engine.image_list`.
        class_names: what a label means.
        source: where the images were, for people; the detections do not depend on where a source lies.
        fingerprint: everything a part depends on besides its chunk.
        version: of the format of the output directory.
    """

    images: int
    chunk: int
    image_list: str
    class_names: tuple[str, ...]
    source: str
    fingerprint: Fingerprint
    version: int = FORMAT_VERSION

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.images // self.chunk)

    @property
    def digest(self) -> str:
        """The fingerprint in 16 hexadecimal digits; every part carries it."""
        text = json.dumps(dict(self.fingerprint), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def ids(self, chunk: int) -> range:
        """Ids of the images of a chunk."""
        first = chunk * self.chunk
        return range(first, min(first + self.chunk, self.images))


def chunk_size(images: int, settings: DetectConfig) -> int:
    """Images a chunk: the setting, or fewer whole batches where the source is small.

    It depends on the source and the settings only, never on the ranks: batches are formed inside chunks,
    and the last bits of a detection depend on how many images were computed together.
    """
    batches = -(-images // (settings.batch * _WISHED_CHUNKS))
    return min(settings.chunk, batches * settings.batch)


def commit_plan(out: Path, plan: Plan) -> None:
    """Write ``plan`` into ``out`` unless there is one, which must be the same.

    Raises:
        MismatchError: it is another; says how they differ.
        StorageError: it cannot be written.
    """
    create_once(out / PLAN_NAME, json.dumps(asdict(plan), indent=2) + "\n")
    check_plan(out, plan)


def check_plan(out: Path, plan: Plan) -> None:
    """Compare ``plan`` with the one in ``out``, if there is one.

    Raises:
        MismatchError: they differ; says how.
        UsageError: the one in ``out`` cannot be read.
    """
    if not (out / PLAN_NAME).exists():
        return
    there, now = read_plan(out).fingerprint, plan.fingerprint
    differences = [
        f"{key} is {there.get(key)} there and {now.get(key)} now"
        for key in {**there, **now}
        if there.get(key) != now.get(key)
    ]
    if differences:
        raise MismatchError(
            f"{out} holds detections that these would not fit: {', '.join(differences)}; "
            "give another --out, or what it was begun with."
        )


def read_plan(out: Path) -> Plan:
    """The plan of an output directory.

    Raises:
        UsageError: it is no output of ``hvdyolo detect``.
        MismatchError: it was written by another version of the format.
    """
    try:
        values: dict[str, Any] = json.loads((out / PLAN_NAME).read_text())
        version = values["version"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{out} is no output of hvdyolo detect: it has no readable {PLAN_NAME}.") from None
    if version != FORMAT_VERSION:
        raise MismatchError(
            f"{out} has detection format {version} and this program has {FORMAT_VERSION}; give another --out."
        )
    return Plan(**{**values, "class_names": tuple(values["class_names"])})

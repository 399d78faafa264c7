"""``hvdyolo verify`` for packed data: every checksum, every count."""

from dataclasses import dataclass
from pathlib import Path

from hvdyolo.data.manifest import read_manifest
from hvdyolo.data.reader import PackedSplit


@dataclass(frozen=True)
class Verified:
    """What was read and found as it should be."""

    splits: int
    samples: int
    bytes: int


def verify_packed(root: Path) -> Verified:
    """Read everything in a packed dataset.

    Raises:
        HvdyoloError: the first thing that is wrong.
    """
    manifest = read_manifest(root)
    samples = total = 0
    for name in manifest.splits:
        split = PackedSplit(root, name)
        for index in range(len(split)):
            total += len(split.read(index))
        samples += len(split)
        split.close()
    return Verified(len(manifest.splits), samples, total)

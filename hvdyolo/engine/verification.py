"""``hvdyolo verify``: packed data, a detection output or a checkpoint."""

from pathlib import Path

from hvdyolo.data.format import MANIFEST_NAME
from hvdyolo.data.verify import verify_packed
from hvdyolo.engine.checkpoint import verify_checkpoint
from hvdyolo.engine.detection_plan import PLAN_NAME, read_plan
from hvdyolo.engine.detection_status import count_parts
from hvdyolo.engine.parts import Parts
from hvdyolo.utils.errors import DataError, UsageError


def verify(path: Path) -> str:
    """Check what is at ``path``; returns what was found good, in words.

    Raises:
        UsageError: it is nothing this program writes.
        HvdyoloError: the first thing that is wrong.
    """
    if (path / PLAN_NAME).exists():
        return _verify_detections(path)
    if (path / "MANIFEST.json").exists() and (path / "state.json").exists():
        verify_checkpoint(path)
        return f"{path}: a whole checkpoint"
    if (path / MANIFEST_NAME).exists():
        packed = verify_packed(path)
        return (
            f"{path}: {packed.samples} samples in {packed.splits} splits, {packed.bytes} bytes, all as packed"
        )
    raise UsageError(f"{path} is no packed dataset, detection output or checkpoint.")


def _verify_detections(path: Path) -> str:
    plan = read_plan(path)
    done = count_parts(Parts(path, plan))
    if done.chunks != plan.chunks:
        raise DataError(
            f"{path} is not finished: {plan.chunks - done.chunks} of {plan.chunks} parts are missing."
        )
    return (
        f"{path}: {done.images} images in {done.chunks} parts, {done.boxes} boxes, {done.errors} bad images"
    )

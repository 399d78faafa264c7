"""What is checked and agreed on before a batch detection begins."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from hvdyolo.config import DetectConfig
from hvdyolo.distributed.communicator import Communicator
from hvdyolo.engine.agreement import on_every_rank, on_first_rank
from hvdyolo.engine.claims import CLAIMS_DIRECTORY
from hvdyolo.engine.detection_plan import (
    FORMAT_VERSION,
    Fingerprint,
    Plan,
    check_plan,
    chunk_size,
    commit_plan,
    read_plan,
)
from hvdyolo.engine.detector import Detector
from hvdyolo.engine.image_list import (
    ImageList,
    encode_names,
    list_digest,
    list_name,
    open_image_list,
    write_image_list,
)
from hvdyolo.engine.image_sources import ImageSource, open_source
from hvdyolo.engine.parts import PARTS_DIRECTORY
from hvdyolo.utils.digests import file_sha256
from hvdyolo.utils.errors import DataError, MismatchError, UsageError
from hvdyolo.utils.files import make_directory


@dataclass(frozen=True)
class DetectionWork:
    """All that a rank needs to take part."""

    out: Path
    plan: Plan
    images: ImageList
    source: ImageSource
    detector: Detector


def set_up(
    comm: Communicator,
    weights: Path,
    source: Path,
    out: Path,
    settings: DetectConfig,
    device: torch.device,
    *,
    write: bool,
) -> DetectionWork:
    """Open everything on every rank and agree on the plan, which is written into ``out`` if ``write``.

    Every rank raises the same error.

    Raises:
        UsageError: no such weights or source, or ``out`` is not the same directory on every rank.
        DataError: the weights are damaged, or there are no images.
        StorageError: a directory cannot be read or written.
        MismatchError: ``out`` was begun with something else, or the ranks' machines differ.
    """
    detector = on_every_rank(comm, "load weights", lambda: open_detector(weights, settings, device))
    opened = on_every_rank(comm, "open source", lambda: open_source(source))
    fingerprint = on_every_rank(
        comm, "read weights", lambda: _fingerprint(weights, detector, settings, opened)
    )
    everyone = comm.gather_objects("compare machines", (comm.world.host, fingerprint))
    on_first_rank(comm, "check machines", lambda: _check_alike(everyone))

    def agree() -> tuple[Plan, ImageList]:
        _check_outside(source, out)
        names = opened.list_names()
        if not names:
            raise DataError(f"--source {source} has no images.")
        content = encode_names(names)
        plan = Plan(
            images=len(names),
            chunk=chunk_size(len(names), settings),
            image_list=list_name(content),
            class_names=detector.class_names,
            source=str(source.absolute()),
            fingerprint={**fingerprint, "images": f"{len(names)}, list {list_digest(content)}"},
        )
        check_plan(out, plan)
        if write:
            make_directory(out)
            make_directory(out / PARTS_DIRECTORY)
            make_directory(out / CLAIMS_DIRECTORY)
            write_image_list(out, content)
            commit_plan(out, plan)
        return plan, open_image_list(out / plan.image_list, content, plan.chunk)

    plan, images = on_first_rank(comm, "plan", agree)
    if write:
        on_every_rank(comm, "open output", lambda: _check_shared(out, plan, comm.world.host))
    return DetectionWork(out, plan, images, opened, detector)


def open_detector(weights: Path, settings: DetectConfig, device: torch.device) -> Detector:
    """The detector that ``settings`` describe."""
    return Detector(
        weights,
        confidence=settings.confidence,
        iou=settings.iou,
        image_size=settings.image_size,
        max_boxes=settings.max_boxes,
        batch=settings.batch,
        max_pixels=settings.max_pixels,
        device=device,
    )


def _fingerprint(
    weights: Path, detector: Detector, settings: DetectConfig, source: ImageSource
) -> Fingerprint:
    """Everything a part depends on but the list of images."""
    return {
        "output format": FORMAT_VERSION,
        "weights": file_sha256(weights),
        "source": source.identity,
        "detect.image_size": detector.image_size,
        "detect.batch": settings.batch,
        "detect.confidence": settings.confidence,
        "detect.iou": settings.iou,
        "detect.max_boxes": settings.max_boxes,
        "detect.chunk": settings.chunk,
        "detect.max_pixels": settings.max_pixels,
        "dtype": "float32",
        "threads": 1,  # a lane, however many lanes there are
        "processor": _processor(detector.device),
        "torch": torch.__version__,
        "pillow": version("pillow"),
        "simplejpeg": version("simplejpeg"),
    }


def _processor(device: torch.device) -> str:
    """What the last bits of a result depend on: the kind of GPU, or the vector instructions of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.backends.cpu.get_cpu_capability()}"


def _check_alike(everyone: list[tuple[str, Fingerprint]]) -> None:
    first_host, first = everyone[0]
    for host, other in everyone[1:]:
        for key, value in first.items():
            if other[key] != value:
                raise MismatchError(
                    f"{key} is {value} on {first_host} and {other[key]} on {host}, which would give "
                    "detections that depend on who made them; use like machines."
                )


def _check_outside(source: Path, out: Path) -> None:
    """Pictures drawn into the source would be images of it the next time."""
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"--out {out} is inside --source {source}; give a directory outside it.")


def _check_shared(out: Path, plan: Plan, host: str) -> None:
    for directory in (out / PARTS_DIRECTORY, out / CLAIMS_DIRECTORY):
        if not directory.is_dir():
            raise UsageError(
                f"--out {out} on {host} is not the directory of the other ranks; give one on a "
                "file system that all nodes share."
            )
        make_directory(directory)
    if read_plan(out).digest != plan.digest:
        raise MismatchError(f"{out} has another plan on {host} than on the first rank's node.")

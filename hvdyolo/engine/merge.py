"""One file of all detections, in a format that other programs read.

Parts are read one after the other and records written as they come, so memory does not grow with the
source. A merged file appears whole or not at all, and the same parts give the same bytes.
"""

import csv
import difflib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from hvdyolo.data.detections_file import DetectedImage, write_detections
from hvdyolo.engine.detection_plan import Plan, read_plan
from hvdyolo.engine.detection_status import count_parts
from hvdyolo.engine.parts import Failed, Found, Parts, Record
from hvdyolo.utils.errors import DataError, UsageError
from hvdyolo.utils.files import make_directory, storage_errors, sync_directory

MERGED_DIRECTORY = "merged"

_CSV_COLUMNS = (
    "image", "id", "width", "height", "error",
    "label", "name", "score", "left", "top", "right", "bottom",
)  # fmt: skip


def merge_detections(out: Path, format: str) -> Path:  # noqa: A002 - as the option is called
    """Write ``out/merged`` in ``format``: coco, hdf5, yolo or csv; returns the file or directory.

    Raises:
        UsageError: unknown format, or ``out`` is no output of ``hvdyolo detect``.
        DataError: parts are missing or damaged.
        StorageError: it cannot be written.
    """
    if format not in _FORMATS:
        close = difflib.get_close_matches(format, _FORMATS, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise UsageError(f"--format takes {', '.join(_FORMATS)}, not '{format}'{hint}.")
    plan = read_plan(out)
    parts = Parts(out, plan)
    parts.check_complete()
    name, write = _FORMATS[format]
    path = make_directory(out / MERGED_DIRECTORY) / name
    write(path, plan, parts)
    return path


def _records(plan: Plan, parts: Parts) -> Iterator[Record]:
    for chunk in range(plan.chunks):
        yield from parts.records(chunk)


def _write_coco(path: Path, plan: Plan, parts: Parts) -> None:
    """A COCO data set whose annotations have scores; ``failed`` lists the images that have none.

    Category 1 is label 0, as COCO counts from 1. ``loadRes`` takes the list under ``annotations``.
    """
    with _replaced(path) as stream:
        info = {"description": "hvdyolo detections", "fingerprint": plan.digest}
        categories = [
            {"id": label + 1, "name": name, "supercategory": ""}
            for label, name in enumerate(plan.class_names)
        ]
        stream.write(f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(categories)}')
        _write_array(stream, "images", map(_coco_image, _found(plan, parts)))
        _write_array(stream, "annotations", _coco_annotations(plan, parts))
        failed = (record for record in _records(plan, parts) if isinstance(record, Failed))
        _write_array(stream, "failed", map(_coco_failed, failed))
        stream.write("}\n")


def _found(plan: Plan, parts: Parts) -> Iterator[Found]:
    return (record for record in _records(plan, parts) if isinstance(record, Found))


def _write_array(stream: TextIO, key: str, values: Iterable[dict[str, Any]]) -> None:
    stream.write(f',\n"{key}": [')
    separator = "\n"
    for value in values:
        stream.write(separator + json.dumps(value))
        separator = ",\n"
    stream.write("]")


def _coco_image(record: Found) -> dict[str, Any]:
    return {
        "id": record.id,
        "file_name": record.image,
        "width": record.width,
        "height": record.height,
    }


def _coco_failed(record: Failed) -> dict[str, Any]:
    return {
        "id": record.id,
        "file_name": record.image,
        "error": record.error,
        "detail": record.detail,
    }


def _coco_annotations(plan: Plan, parts: Parts) -> Iterator[dict[str, Any]]:
    number = 0
    for record in _found(plan, parts):
        for box, score, label in zip(record.boxes_xyxy, record.scores, record.labels, strict=True):
            left, top, right, bottom = box
            width, height = round(right - left, 3), round(bottom - top, 3)
            # From 1: pycocotools takes annotation 0 for none.
            number += 1
            yield {
                "id": number,
                "image_id": record.id,
                "category_id": label + 1,
                "bbox": [left, top, width, height],
                "area": round(width * height, 3),
                "iscrowd": 0,
                "score": score,
            }


def _write_csv(path: Path, plan: Plan, parts: Parts) -> None:
    """A row a box; an image without boxes has one row too."""
    with _replaced(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_CSV_COLUMNS)
        for record in _records(plan, parts):
            if isinstance(record, Failed):
                writer.writerow([record.image, record.id, "", "", record.error, *[""] * 7])
                continue
            image = [record.image, record.id, record.width, record.height, ""]
            if not record.scores:
                writer.writerow([*image, *[""] * 7])
            for box, score, label in zip(record.boxes_xyxy, record.scores, record.labels, strict=True):
                writer.writerow([*image, label, plan.class_names[label], score, *box])


def _write_yolo(path: Path, plan: Plan, parts: Parts) -> None:
    """A text file an image: class, centre and size in 0..1 of the image, score. None for a bad image."""
    building = path.with_name(f".{path.name}.building")
    with storage_errors(path):
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        try:
            for record in _found(plan, parts):
                _write_label_file(building, record)
            shutil.rmtree(path, ignore_errors=True)
            building.rename(path)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        sync_directory(path.parent)


def _write_label_file(directory: Path, record: Found) -> None:
    # A name from a list may lead out of the directory; a label file must not.
    steps = [step for step in PurePosixPath(record.image).parts if step not in ("/", "..")]
    path = directory.joinpath(*steps).with_suffix(".txt")
    lines = []
    for box, score, label in zip(record.boxes_xyxy, record.scores, record.labels, strict=True):
        left, top, right, bottom = box
        values = (
            (left + right) / 2 / record.width,
            (top + bottom) / 2 / record.height,
            (right - left) / record.width,
            (bottom - top) / record.height,
            score,
        )
        lines.append(f"{label} " + " ".join(f"{value:.6f}" for value in values) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x") as stream:
            stream.writelines(lines)
    except FileExistsError:
        raise DataError(
            f"{record.image} and another image differ in nothing but what a label file's name "
            "leaves out; merge to coco, csv or hdf5 instead."
        ) from None


def _write_hdf5(path: Path, plan: Plan, parts: Parts) -> None:
    with _temporary(path) as temporary:
        write_detections(
            temporary,
            class_names=plan.class_names,
            fingerprint=plan.digest,
            images=plan.images,
            boxes=count_parts(parts).boxes,
            batches=(
                [_detected_image(record) for record in parts.records(chunk)] for chunk in range(plan.chunks)
            ),
        )


def _detected_image(record: Record) -> DetectedImage:
    if isinstance(record, Failed):
        return DetectedImage(record.image, 0, 0, (), (), (), False, record.error)
    return DetectedImage(
        name=record.image,
        width=record.width,
        height=record.height,
        boxes_xyxy=record.boxes_xyxy,
        scores=record.scores,
        labels=record.labels,
        capped=record.capped,
        error="",
    )


@contextmanager
def _replaced(path: Path) -> Iterator[TextIO]:
    """A text stream that becomes ``path`` once the body has ended well."""
    with (
        _temporary(path) as temporary,
        # Names that are not UTF-8 come out as they went in.
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        yield stream


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A path whose file becomes ``path``, durably, once the body has ended well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        try:
            yield temporary
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)


_FORMATS: dict[str, tuple[str, Callable[[Path, Plan, Parts], None]]] = {
    "coco": ("detections.json", _write_coco),
    "hdf5": ("detections.h5", _write_hdf5),
    "yolo": ("labels", _write_yolo),
    "csv": ("detections.csv", _write_csv),
}

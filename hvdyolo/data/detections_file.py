"""Detections of many images in one HDF5 file, in columns that other programs read in one go.

::

    /box_ptr u8 [N+1]      image i's boxes are rows box_ptr[i]:box_ptr[i+1] of
    /boxes_xyxy f4 [M, 4]  left, top, right, bottom in pixels of the image
    /scores f4 [M], /labels i4 [M]
    /size u4 [N, 2]        width, height; 0, 0 for an image that could not be used
    /capped u1 [N]         1 if the image had more boxes than are kept
    /error u1 [N]          number in error_codes of why it could not be used, 0 if it could
    /names u1 [bytes], /name_ptr u8 [N+1]   names of the images, utf-8, back to back
    /class_names u1 [bytes]   JSON list
    attributes: schema, version, fingerprint (of what made the detections), error_codes (JSON list)
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import h5py
import numpy as np

SCHEMA = "hvdyolo-detections"
VERSION = 1
_NAMES_CHUNK = 1 << 20


@dataclass(frozen=True)
class DetectedImage:
    """One image; ``error`` is empty if it could be used. Boxes are (n, 4), scores and labels (n)."""

    name: str
    width: int
    height: int
    boxes_xyxy: Sequence[Sequence[float]]
    scores: Sequence[float]
    labels: Sequence[int]
    capped: bool
    error: str


def write_detections(
    path: Path,
    *,
    class_names: Sequence[str],
    fingerprint: str,
    images: int,
    boxes: int,
    batches: Iterable[Sequence[DetectedImage]],
) -> None:
    """Write ``batches``, which must hold ``images`` images with ``boxes`` boxes, to ``path``.

    Only one batch is in memory at a time. The same detections give the same bytes.
    """
    # Not 'latest': HDF5 1.14 cannot open what 2.0 writes so.
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        columns = _Columns(file, images, boxes)
        for batch in batches:
            columns.append(batch)
        file.attrs["schema"] = np.bytes_(SCHEMA)
        file.attrs["version"] = VERSION
        file.attrs["fingerprint"] = np.bytes_(fingerprint)
        file.attrs["error_codes"] = np.bytes_(json.dumps(columns.error_codes))
        raw = json.dumps(list(class_names)).encode()
        file.create_dataset("class_names", data=np.frombuffer(raw, np.uint8))


class _Columns:
    def __init__(self, file: h5py.File, images: int, boxes: int) -> None:
        self.error_codes = [""]
        self._images = 0
        self._boxes = 0
        self._name_bytes = 0
        self._box_ptr = file.create_dataset("box_ptr", (images + 1,), "u8")
        self._boxes_xyxy = file.create_dataset("boxes_xyxy", (boxes, 4), "f4")
        self._scores = file.create_dataset("scores", (boxes,), "f4")
        self._labels = file.create_dataset("labels", (boxes,), "i4")
        self._size = file.create_dataset("size", (images, 2), "u4")
        self._capped = file.create_dataset("capped", (images,), "u1")
        self._error = file.create_dataset("error", (images,), "u1")
        self._name_ptr = file.create_dataset("name_ptr", (images + 1,), "u8")
        # The one column whose length is not known beforehand.
        self._names = file.create_dataset("names", (0,), "u1", maxshape=(None,), chunks=(_NAMES_CHUNK,))

    def append(self, batch: Sequence[DetectedImage]) -> None:
        rows = slice(self._images, self._images + len(batch))
        self._size[rows] = [(image.width, image.height) for image in batch]
        self._capped[rows] = [image.capped for image in batch]
        self._error[rows] = [self._error_number(image.error) for image in batch]
        self._append_boxes(batch)
        self._append_names(batch)
        self._images = rows.stop

    def _append_boxes(self, batch: Sequence[DetectedImage]) -> None:
        ends = list(accumulate((len(image.scores) for image in batch), initial=self._boxes))
        rows = slice(self._boxes, ends[-1])
        self._box_ptr[self._images : self._images + len(ends)] = ends
        boxes = [box for image in batch for box in image.boxes_xyxy]
        self._boxes_xyxy[rows] = np.array(boxes, np.float32).reshape(-1, 4)
        self._scores[rows] = [score for image in batch for score in image.scores]
        self._labels[rows] = [label for image in batch for label in image.labels]
        self._boxes = rows.stop

    def _append_names(self, batch: Sequence[DetectedImage]) -> None:
        names = [image.name.encode(errors="surrogateescape") for image in batch]
        ends = list(accumulate(map(len, names), initial=self._name_bytes))
        self._name_ptr[self._images : self._images + len(ends)] = ends
        self._names.resize((ends[-1],))
        self._names[self._name_bytes :] = np.frombuffer(b"".join(names), np.uint8)
        self._name_bytes = ends[-1]

    def _error_number(self, error: str) -> int:
        if error not in self.error_codes:
            self.error_codes.append(error)
        return self.error_codes.index(error)

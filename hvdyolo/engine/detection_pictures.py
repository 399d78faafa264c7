"""Pictures of the first images with what was found on them."""

from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np

from hvdyolo.data.draw import draw_detections
from hvdyolo.engine.chunk_detection import decode_stored
from hvdyolo.engine.detection_setup import DetectionWork
from hvdyolo.engine.image_sources import BadImageError
from hvdyolo.engine.parts import Found, Parts
from hvdyolo.utils.create_once import create_once, remove_leftovers
from hvdyolo.utils.files import make_directory

PICTURES_DIRECTORY = "pictures"
_STEM_LENGTH = 30


def draw_pictures(work: DetectionWork, parts: Parts, count: int) -> list[Path]:
    """Draw what the parts say of the first ``count`` images; pictures that exist are left alone.

    Returns the pictures there are now.
    """
    if count < 1:
        return []
    directory = make_directory(work.out / PICTURES_DIRECTORY)
    remove_leftovers(directory)
    paths = []
    for chunk in range(work.plan.chunks):
        ids = work.plan.ids(chunk)
        if ids.start >= count:
            break
        for record in parts.records(chunk):
            if record.id < count and isinstance(record, Found):
                # Short enough for any file system, whatever the image is called.
                stem = PurePosixPath(record.image).stem[:_STEM_LENGTH]
                path = directory / f"{record.id:06d}-{stem}.jpg"
                if path.exists() or _draw(work, record, path):
                    paths.append(path)
    return paths


def _draw(work: DetectionWork, record: Found, path: Path) -> bool:
    """False if the image has gone meanwhile."""
    try:
        stored = work.source.read(record.id, record.image)
        image = decode_stored(stored, work.detector.max_pixels)
    except BadImageError:
        return False
    height, width = image.shape[:2]
    boxes = np.array(record.boxes_xyxy, dtype=np.float32).reshape(-1, 4)
    with TemporaryDirectory() as scratch:
        drawn = Path(scratch) / "picture.jpg"
        draw_detections(
            image,
            boxes * np.array([width / record.width, height / record.height] * 2, dtype=np.float32),
            np.array(record.labels, dtype=np.int64),
            np.array(record.scores, dtype=np.float32),
            work.plan.class_names,
            drawn,
        )
        # Whole or not at all: what a kill cuts short would never be drawn again. Another job may be
        # drawing the same.
        create_once(path, drawn.read_bytes())
    return True

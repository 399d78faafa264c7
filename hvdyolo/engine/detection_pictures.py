"""Pictures of the first images with what was found on them."""

from pathlib import Path, PurePosixPath

import numpy as np

from hvdyolo.data.draw import draw_detections
from hvdyolo.engine.chunk_detection import decode_stored
from hvdyolo.engine.detection_setup import DetectionWork
from hvdyolo.engine.image_sources import BadImageError
from hvdyolo.engine.parts import Found, Parts
from hvdyolo.utils.files import make_directory, storage_errors

PICTURES_DIRECTORY = "pictures"
_STEM_LENGTH = 60


def draw_pictures(work: DetectionWork, parts: Parts, count: int) -> list[Path]:
    """Draw what the parts say of the first ``count`` images; pictures that exist are left alone.

    Returns the pictures there are now.
    """
    if count < 1:
        return []
    directory = make_directory(work.out / PICTURES_DIRECTORY)
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
    # Under another name first: a picture cut short by a kill would never be drawn again.
    temporary = path.with_name(f".{path.name}")
    with storage_errors(path):
        draw_detections(
            image,
            boxes * np.array([width / record.width, height / record.height] * 2, dtype=np.float32),
            np.array(record.labels, dtype=np.int64),
            np.array(record.scores, dtype=np.float32),
            work.plan.class_names,
            temporary,
        )
        temporary.replace(path)
    return True

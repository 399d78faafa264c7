"""Images with one rectangle each, rendered so that its pixels can be told from everything else."""

from dataclasses import dataclass

import numpy as np
import pytest

from hvdyolo.data.augment import augment
from hvdyolo.data.parameters import AugmentParameters, PictureParameters
from hvdyolo.data.placement import Homography
from hvdyolo.data.render import Renderer, renderer

RESAMPLINGS = ("triangle", "bilinear", "exact")
SIZES = ((100, 150), (150, 100), (128, 128), (60, 90), (200, 300))


@dataclass(frozen=True)
class DrawnImages:
    """Image i is black but for the object of class i, if that is ``shown``, which is red and blue."""

    shown: int | None = None
    missing: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return 1000

    def size(self, index: int) -> tuple[int, int]:
        return SIZES[index % len(SIZES)]

    def box(self, index: int) -> tuple[int, int, int, int]:
        """In whole pixels, a fifth to three fifths of the image a side."""
        height, width = self.size(index)
        x, y, w, h = np.random.default_rng(index).random(4)
        sides = int(width * (0.2 + 0.4 * w)), int(height * (0.2 + 0.4 * h))
        left, top = int(x * (width - sides[0])), int(y * (height - sides[1]))
        return left, top, left + sides[0], top + sides[1]

    def image(self, index: int, rows: int) -> np.ndarray | None:
        """No more than is asked for, as :class:`ImageSource` allows."""
        if index in self.missing:
            return None
        pixels = np.zeros((*self.size(index), 3), dtype=np.uint8)
        if index == self.shown:
            left, top, right, bottom = self.box(index)
            pixels[top:bottom, left:right] = 255, 0, 255
        return pixels[:rows]

    def labels(self, index: int) -> np.ndarray:
        height, width = self.size(index)
        left, top, right, bottom = self.box(index)
        row = [
            index,
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
        ]
        return np.array([row], dtype=np.float32)

    def outlines(self, index: int) -> list[list[np.ndarray]]:
        """The rectangle itself."""
        height, width = self.size(index)
        left, top, right, bottom = self.box(index)
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        return [[(corners / (width, height)).astype(np.float32)]]


def picture(
    sources: tuple[int, ...], meeting: tuple[float, float] = (1.0, 1.0), **homography: float
) -> PictureParameters:
    return PictureParameters(sources, meeting, Homography(**homography))


def parameters(of: PictureParameters, **others: object) -> AugmentParameters:
    values: dict[str, object] = {
        "mixup": None,
        "policy": None,
        "patches": (),
        "flip_up_down": False,
        "flip_left_right": False,
        "colour_gains": (1.0, 1.0, 1.0),
    }
    return AugmentParameters(picture=of, **(values | others))


def renderer_of(resampling: str) -> Renderer:
    if resampling != "triangle":
        pytest.importorskip(
            "cv2", reason=f"resampling {resampling} needs OpenCV: pip install 'hvdyolo[opencv]'"
        )
    return renderer(resampling)


def labels_by_class(drawn: AugmentParameters, resampling: str, size: int) -> dict[int, np.ndarray]:
    """Boxes in pixels of the final picture, left and right mirrored too."""
    output = np.empty((size, size, 3), dtype=np.uint8)
    labels = augment(DrawnImages(), drawn, renderer_of(resampling), output).labels
    assert len(set(labels[:, 0])) == len(labels)
    centres, halves = labels[:, 1:3], labels[:, 3:5] / 2
    boxes = np.concatenate([centres - halves, centres + halves], axis=1) * size
    return {int(label): box for label, box in zip(labels[:, 0], boxes, strict=True)}


def seen(
    drawn: AugmentParameters, resampling: str, size: int, shown: int, threshold: float = 0.5
) -> np.ndarray:
    """(size, size): where the final picture shows the object of image ``shown``."""
    output = np.empty((size, size, 3), dtype=np.uint8)
    sample = augment(DrawnImages(shown), drawn, renderer_of(resampling), output)
    image = sample.image[:, ::-1] if sample.flip else sample.image
    # Everything else, the grey of empty places included, has no difference of red and green.
    return image[..., 0].astype(int) - image[..., 1] > threshold * 255


def bounds(mask: np.ndarray) -> np.ndarray | None:
    """x1, y1, x2, y2 of the true pixels."""
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])

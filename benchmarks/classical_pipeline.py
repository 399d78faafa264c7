"""The usual way to make a mosaic sample, all on the CPU, from its published description with OpenCV.

Decode four images, paste them around a random point of a canvas of twice the size, warp the canvas to the
output, shift hue, saturation and value by tables, mirror, and bring the pixels into channel-first order.
Images whose longer side is not the output's side are resized to it first. It is what the project's own
loader is compared with, so it must not waste time: ``bare_batch`` does the same operations on pixels and
nothing else, and has to take nearly as long.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
FILL = 114


@dataclass(frozen=True)
class ClassicalSettings:
    """Strengths of the `low` preset."""

    size: int = 640
    translate: float = 0.1
    scale: float = 0.5
    hue: float = 0.015
    saturation: float = 0.7
    value: float = 0.4


class ClassicalPipeline:
    """Samples from encoded images, one core."""

    def __init__(
        self,
        encoded: Sequence[bytes],
        labels: Sequence[NDArray[np.float32]],
        seed: int = 0,
        settings: ClassicalSettings | None = None,
    ) -> None:
        self._encoded = [np.frombuffer(raw, dtype=np.uint8) for raw in encoded]
        self._labels = labels
        self._random = np.random.default_rng(seed)
        self._settings = settings or ClassicalSettings()
        # Made once: the system takes longer to find new memory for them than the work in them takes.
        side = 2 * self._settings.size
        self._canvas = np.empty((side, side, 3), dtype=np.uint8)
        cv2.setNumThreads(1)

    def sample(self, index: int, target: Pixels) -> NDArray[np.float32]:
        """(n, 5) labels: class, cx, cy, w, h in 0..1; ``target`` is filled with (3, size, size) RGB."""
        canvas, boxes = self._mosaic([index, *self._random.integers(len(self._encoded), size=3).tolist()])
        image, boxes = self._warp(canvas, boxes)
        image = shift_colours(image, self._gains())
        if self._random.random() < 0.5:
            image = np.fliplr(image)
            boxes[:, [1, 3]] = self._settings.size - boxes[:, [3, 1]]
        fill_channel_first(image, target)
        return _normalised(boxes, self._settings.size)

    def batch(self, indices: Sequence[int], images: Pixels) -> list[NDArray[np.float32]]:
        """Labels of samples whose images fill ``images``, (B, 3, size, size)."""
        return [self.sample(index, target) for index, target in zip(indices, images, strict=True)]

    def bare_batch(self, images: Pixels) -> dict[str, float]:
        """Seconds of each operation on random samples as :meth:`batch` makes them, and nothing but these."""
        clock = _Clock()
        for target in images:
            sources = self._random.integers(len(self._encoded), size=4).tolist()
            matrix, gains = self._matrix(), self._gains()
            clock.start()
            decoded = [decode(self._encoded[index]) for index in sources]
            clock.lap("decode four")
            canvas, _ = self._paste(decoded)
            clock.lap("canvas")
            image = warp(canvas, matrix, self._settings.size)
            clock.lap("warp")
            image = shift_colours(image, gains)
            clock.lap("colours")
            fill_channel_first(image, target)
            clock.lap("layout")
        return clock.seconds

    def _mosaic(self, sources: Sequence[int]) -> tuple[Pixels, NDArray[np.float64]]:
        canvas, places = self._paste([self._load(index) for index in sources])
        boxes = []
        for index, (left, top, width, height) in zip(sources, places, strict=True):
            labels = self._labels[index].astype(np.float64)
            corners = np.hstack([labels[:, 1:3] - labels[:, 3:5] / 2, labels[:, 1:3] + labels[:, 3:5] / 2])
            corners = corners * [width, height, width, height] + [left, top, left, top]
            boxes.append(np.hstack([labels[:, :1], corners]))
        joined = np.concatenate(boxes)
        joined[:, 1:] = joined[:, 1:].clip(0, 2 * self._settings.size)
        return canvas, joined

    def _load(self, index: int) -> Pixels:
        """A decoded image whose longer side is the output's."""
        image = decode(self._encoded[index])
        height, width = image.shape[:2]
        zoom = self._settings.size / max(height, width)
        if zoom == 1:
            return image
        return np.asarray(cv2.resize(image, (round(width * zoom), round(height * zoom))), dtype=np.uint8)

    def _paste(self, images: Sequence[Pixels]) -> tuple[Pixels, list[tuple[int, int, int, int]]]:
        """The canvas, and left, top, width and height of each image on it."""
        size = self._settings.size
        meeting_x, meeting_y = self._random.integers(size // 2, size + size // 2, size=2).tolist()
        canvas = self._canvas
        canvas.fill(FILL)
        places = []
        for number, image in enumerate(images):
            height, width = image.shape[:2]
            left = meeting_x if number % 2 else meeting_x - width
            top = meeting_y if number // 2 else meeting_y - height
            x1, y1 = max(left, 0), max(top, 0)
            x2, y2 = min(left + width, 2 * size), min(top + height, 2 * size)
            canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
            places.append((left, top, width, height))
        return canvas, places

    def _matrix(self) -> NDArray[np.float64]:
        """(2, 3): the canvas centre to the origin, zoom, and shift into the output."""
        size, settings = self._settings.size, self._settings
        zoom = self._random.uniform(1 - settings.scale, 1 + settings.scale)
        shift = self._random.uniform(0.5 - settings.translate, 0.5 + settings.translate, 2) * size
        return np.array([[zoom, 0, shift[0] - zoom * size], [0, zoom, shift[1] - zoom * size]])

    def _warp(self, canvas: Pixels, boxes: NDArray[np.float64]) -> tuple[Pixels, NDArray[np.float64]]:
        matrix, size = self._matrix(), self._settings.size
        moved = boxes.copy()
        moved[:, 1::2] = (boxes[:, 1::2] * matrix[0, 0] + matrix[0, 2]).clip(0, size)
        moved[:, 2::2] = (boxes[:, 2::2] * matrix[1, 1] + matrix[1, 2]).clip(0, size)
        before = (boxes[:, 3:5] - boxes[:, 1:3]) * matrix[0, 0]
        after = moved[:, 3:5] - moved[:, 1:3]
        sides = np.maximum(after, 1e-9)
        aspect = np.maximum(sides[:, 0] / sides[:, 1], sides[:, 1] / sides[:, 0])
        kept = (after > 2).all(1) & (after.prod(1) > 0.1 * before.prod(1)) & (aspect < 100)
        return warp(canvas, matrix, size), moved[kept]

    def _gains(self) -> NDArray[np.float64]:
        strengths = [self._settings.hue, self._settings.saturation, self._settings.value]
        return self._random.uniform(-1, 1, 3) * strengths + 1


def decode(encoded: NDArray[np.uint8]) -> Pixels:
    """(H, W, 3) BGR."""
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), dtype=np.uint8)


def warp(canvas: Pixels, matrix: NDArray[np.float64], size: int) -> Pixels:
    """Bilinear, grey where there is nothing."""
    return np.asarray(
        cv2.warpAffine(canvas, matrix, (size, size), borderValue=(FILL, FILL, FILL)), dtype=np.uint8
    )


def shift_colours(image: Pixels, gains: NDArray[np.float64]) -> Pixels:
    """BGR to BGR, each of hue, saturation and value through a table of 256 entries."""
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    steps = np.arange(256, dtype=np.float64)
    tables = [
        (steps * gains[0] % 180).astype(np.uint8),
        np.clip(steps * gains[1], 0, 255).astype(np.uint8),
        np.clip(steps * gains[2], 0, 255).astype(np.uint8),
    ]
    shifted = cv2.merge(
        [cv2.LUT(plane, table) for plane, table in zip((hue, saturation, value), tables, strict=True)]
    )
    return np.asarray(cv2.cvtColor(shifted, cv2.COLOR_HSV2BGR), dtype=np.uint8)


def fill_channel_first(image: Pixels, target: Pixels) -> None:
    """(H, W, 3) BGR into (3, H, W) RGB."""
    target[...] = image.transpose(2, 0, 1)[::-1]


def _normalised(boxes: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    centres, sides = (boxes[:, 1:3] + boxes[:, 3:5]) / 2, boxes[:, 3:5] - boxes[:, 1:3]
    return np.hstack([boxes[:, :1], centres / size, sides / size]).astype(np.float32)


class _Clock:
    """Adds up what laps of one name take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = 0.0

    def start(self) -> None:
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

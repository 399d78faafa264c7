"""Objects on images, in one process: what a program that uses the library calls."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdyolo.data.images import decode_upright
from hvdyolo.data.resizing import letterbox_image
from hvdyolo.models.build import load_model
from hvdyolo.models.fuse import fuse_batch_norms
from hvdyolo.ops.letterbox import Letterbox, fit_letterbox
from hvdyolo.ops.nms import Detections, find_candidates, suppress
from hvdyolo.ops.pixels import prepare_images
from hvdyolo.utils.errors import DataError, UsageError

Image = str | Path | NDArray[np.uint8]


@dataclass(frozen=True)
class ImageDetections:
    """What was found on one image, best first.

    Attributes:
        boxes_xyxy: (n, 4) left, top, right, bottom in pixels of the image, within it. A photograph's
            pixels are those one sees: turned as its EXIF orientation says.
        scores: (n,) 0 … 1.
        labels: (n,) numbers of classes.
        names: (n) names of those classes.
        capped: there was more than is kept.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    capped: bool


@dataclass(frozen=True)
class NetworkInput:
    """An image in the network's size.

    Attributes:
        pixels: (size, size, 3) RGB.
        letterbox: how it was brought to that size.
        height: of the image, pixels, as is the width.
    """

    pixels: NDArray[np.uint8]
    letterbox: Letterbox
    height: int
    width: int


class Detector:
    """A trained network ready to find objects.

    ``Detector("best.safetensors")("street.jpg")[0].names`` names what is on a photograph.

    Args:
        weights: safetensors file that ``hvdyolo train`` wrote.
        confidence: lowest score of a detection.
        iou: a box that overlaps a better one of its class by more is dropped.
        image_size: side of the square network input, pixels; by default what the weights were trained at.
        max_boxes: most boxes of an image.
        batch: images computed together; more is faster on a GPU and takes more memory.
        max_pixels: larger files are refused before they are decoded.
        device: where to compute; a GPU by default, if there is one.

    Raises:
        UsageError: there are no such weights, or an argument is out of range.
        DataError: the weights are damaged.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        confidence: float = 0.25,
        iou: float = 0.45,
        image_size: int | None = None,
        max_boxes: int = 300,
        batch: int = 16,
        max_pixels: int = 178_956_970,
        device: str | torch.device | None = None,
    ) -> None:
        model = load_model(Path(weights))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                # Every score would be NaN, every comparison false: images without objects, silently.
                raise DataError(f"{weights} is of no use: {name} holds numbers that are not finite.")
        self.image_size = model.image_size if image_size is None else image_size
        _check_range("confidence", confidence, 0, 1)
        _check_range("iou", iou, 0, 1)
        _check_range("max_boxes", max_boxes, 1, None)
        _check_range("batch", batch, 1, None)
        stride = model.size_multiple
        if self.image_size < stride or self.image_size % stride:
            raise UsageError(
                f"image_size must be a multiple of {stride}, not {self.image_size}; "
                f"{weights} was trained at {model.image_size}."
            )
        self.class_names = model.names
        self.confidence = confidence
        self.iou = iou
        self.max_boxes = max_boxes
        self.batch = batch
        self.max_pixels = max_pixels
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # On a GPU images that several threads compute at once are no faster than one after the other, and
        # their memory adds up.
        self._turn: AbstractContextManager[object] = Lock() if self.device.type == "cuda" else nullcontext()
        self._model = fuse_batch_norms(model).to(self.device).eval()
        # Unlike in training nothing asks for contiguous weights here, and these are the faster ones.
        self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs

    def __call__(self, images: Image | Sequence[Image]) -> list[ImageDetections]:
        """Find objects on images, given as files or as (height, width, 3) RGB arrays.

        Raises:
            UsageError: a file does not exist, or an array has another form.
            DataError: a file is no image that can be read.
        """
        if isinstance(images, str | Path) or (isinstance(images, np.ndarray) and images.ndim == 3):
            images = [images]
        found: list[ImageDetections] = []
        for first in range(0, len(images), self.batch):
            batch = images[first : first + self.batch]
            found += self.detect([self.fit(_pixels(image, self.max_pixels)) for image in batch])
        return found

    def fit(self, image: NDArray[np.uint8]) -> NetworkInput:
        """Bring an RGB image to the network's size."""
        height, width = image.shape[:2]
        letterbox = fit_letterbox(height, width, self.image_size)
        return NetworkInput(letterbox_image(image, letterbox), letterbox, height, width)

    @torch.inference_mode()
    def detect(self, inputs: Sequence[NetworkInput]) -> list[ImageDetections]:
        """Find objects on images that are computed together. Threads may call it at the same time."""
        if not inputs:
            return []
        pixels = torch.from_numpy(np.stack([item.pixels for item in inputs]))
        with self._turn:
            predictions: Tensor = self._model(prepare_images(pixels.to(self.device)))[0]
            pictures = find_candidates(predictions, self.confidence)
        selected = [
            suppress(picture, self.confidence, self.iou, self.max_boxes, multi_label=False)
            for picture in pictures
        ]
        return [self._on_image(item, detections) for item, detections in zip(inputs, selected, strict=True)]

    def _on_image(self, item: NetworkInput, detections: Detections) -> ImageDetections:
        boxes = item.letterbox.to_image(detections.boxes_xyxy.numpy())
        limits = np.array([item.width, item.height] * 2, dtype=np.float32)
        boxes = boxes.clip(0, limits)
        # The grey bars around an image are input too, and what is found in them is nowhere on the image.
        on_image = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        labels = detections.labels.numpy()[on_image]
        return ImageDetections(
            boxes_xyxy=boxes[on_image].astype(np.float32),
            scores=detections.scores.numpy()[on_image],
            labels=labels,
            names=tuple(self.class_names[label] for label in labels),
            capped=detections.capped,
        )


def _pixels(image: Image, max_pixels: int) -> NDArray[np.uint8]:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise UsageError(
                f"An image array must be uint8 of shape (height, width, 3), not {image.dtype} of "
                f"{image.shape}."
            )
        return image
    try:
        encoded = Path(image).read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read the image {image}: {error.strerror}.") from None
    try:
        return decode_upright(encoded, max_pixels)
    except DataError as error:
        raise DataError(f"{image}: {error}") from None


def _check_range(name: str, value: float, low: float, high: float | None) -> None:
    if value < low or (high is not None and value > high):
        valid = f"at least {low}" if high is None else f"{low} … {high}"
        raise UsageError(f"{name} must be {valid}, not {value}.")

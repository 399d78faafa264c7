"""Multi-scale training: one size of the network's input for each optimizer step.

It follows from the seed and the step, so all ranks have it without telling each other, and a resumed run goes
on with it. The loader's images keep their own size, and are resized where the network is.
"""

import math
from dataclasses import dataclass

from hvdyolo.data.random import Purpose, sample_generator
from hvdyolo.engine.schedule import TrainingSchedule
from hvdyolo.models.build import DetectionModel
from hvdyolo.utils.errors import UsageError


@dataclass(frozen=True)
class InputSizes:
    """Which size each batch has.

    Attributes:
        image_size: of the loader's images, pixels.
        stride: sizes are multiples of it.
        fraction: of ``image_size``, by which a size is at most larger or smaller.
    """

    schedule: TrainingSchedule
    seed: int
    image_size: int
    stride: int
    fraction: float

    @property
    def choices(self) -> list[int]:
        """The sizes there are; all are equally likely."""
        least = math.ceil(self.image_size * (1 - self.fraction) / self.stride)
        most = math.floor(self.image_size * (1 + self.fraction) / self.stride)
        return [self.stride * cells for cells in range(least, most + 1)]

    def at(self, epoch: int, batch: int) -> int:
        """The size of a batch: that of all batches of its optimizer step."""
        step = self.schedule.step_at(epoch, batch)
        choices = self.choices
        generator = sample_generator(self.seed, epoch, step.first, Purpose.INPUT_SIZE)
        return choices[int(generator.integers(len(choices)))]


def check_image_size(key: str, size: int, model: DetectionModel) -> None:
    """Raise a :class:`UsageError` unless ``size`` is a multiple of the model's largest stride."""
    stride = model.size_multiple
    if size % stride:
        nearest = max(round(size / stride), 1) * stride
        raise UsageError(f"{key} must be a multiple of {stride}, not {size}; {nearest} is nearest.")

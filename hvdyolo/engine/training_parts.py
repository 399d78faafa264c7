"""Parts of a training that others build too: pictures of its inputs, and benchmarks."""

from hvdyolo.config import Config
from hvdyolo.data.order import BatchPlan
from hvdyolo.data.reader import PackedSplit
from hvdyolo.engine.feed import CellCounts
from hvdyolo.engine.image_weighting import Evaluations, ImageWeighting
from hvdyolo.engine.input_size import InputSizes
from hvdyolo.engine.schedule import TrainingSchedule
from hvdyolo.models.build import DetectionModel
from hvdyolo.objective.assign import Assigner


def build_plan(config: Config, samples: int) -> BatchPlan:
    """Which of so many samples are in which batch."""
    return BatchPlan(
        samples=samples,
        batch=config.train.batch,
        seed=config.train.seed,
        order=config.loader.order,
        partners=config.augment.partners,
    )


def build_schedule(config: Config, plan: BatchPlan) -> TrainingSchedule:
    """When the optimizer steps, and with which rates."""
    return TrainingSchedule(config.optimizer, config.train.epochs, plan.batches_per_epoch, config.train.batch)


def build_assigner(model: DetectionModel, threshold: float) -> Assigner:
    """The assignment that loader workers compute for ``model``."""
    return Assigner(model.strides, model.anchors_pixels.cpu().numpy(), threshold)


def count_cells(model: DetectionModel, images: int) -> CellCounts:
    """The cells of ``model`` in batches of ``images``."""
    return CellCounts(images, anchors=model.anchors_pixels.shape[1], strides=model.strides)


def build_input_sizes(config: Config, schedule: TrainingSchedule, model: DetectionModel) -> InputSizes:
    """The sizes of the network's inputs, one an optimizer step."""
    return InputSizes(
        schedule,
        config.train.seed,
        config.loader.image_size,
        model.size_multiple,
        config.augment.multi_scale,
    )


def build_image_weighting(
    config: Config, training: PackedSplit, evaluations: Evaluations = ()
) -> ImageWeighting | None:
    """What draws the images, if it is not the plan."""
    return ImageWeighting(training, config.train.seed, evaluations) if config.train.image_weighting else None

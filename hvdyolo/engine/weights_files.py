"""``hvdyolo weights``: published weights as safetensors, and what a weights file holds."""

from pathlib import Path

from hvdyolo.models.build import DetectionModel, save_model
from hvdyolo.models.published_weights import read_published, read_weights
from hvdyolo.utils.digests import file_sha256
from hvdyolo.utils.errors import UsageError


def import_weights(source: Path, destination: Path, image_size: int | None) -> str:
    """Write the model in the published file ``source`` to ``destination``; returns what it is, in words.

    Raises:
        UsageError: there is no such file, ``destination`` is no name of a safetensors file, or the size does
            not fit the network.
        DataError: ``source`` is damaged, harmful, or no YOLOv5 detection model.
        StorageError: ``destination`` cannot be written.
    """
    if destination.suffix != ".safetensors":
        raise UsageError(f"Weights are written to a file ending in .safetensors, not to {destination}.")
    model = read_published(source)
    if image_size is not None:
        if image_size < 1 or image_size % model.size_multiple:
            raise UsageError(f"--image-size must be a multiple of {model.size_multiple}, not {image_size}.")
        model.image_size = image_size
    save_model(model, destination, {"imported_from": source.name, "imported_sha256": file_sha256(source)})
    return describe_weights(destination)


def describe_weights(path: Path) -> str:
    """What a weights file holds, in lines.

    Raises:
        HvdyoloError: as :func:`~hvdyolo.models.published_weights.read_weights` raises.
    """
    model = read_weights(path)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return "\n".join(
        [
            f"{path}: {parameters:,} parameters, for images of {model.image_size} pixels",
            f"  classes ({len(model.names)}): {', '.join(model.names)}",
            *(f"  stride {stride}: anchors {anchors}" for stride, anchors in _levels(model)),
        ]
    )


def _levels(model: DetectionModel) -> list[tuple[int, str]]:
    """Each level's stride and the widths and heights of its anchors in pixels."""
    return [
        (stride, ", ".join(f"{width:.5g} x {height:.5g}" for width, height in anchors))
        for stride, anchors in zip(model.strides, model.anchors_pixels.tolist(), strict=True)
    ]

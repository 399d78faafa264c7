"""The loss of one batch by itself."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from hvdyolo.config import LossConfig
from hvdyolo.models.build import DetectionModel, build_model
from hvdyolo.objective import yolov5_loss
from hvdyolo.objective.assign import Assigner
from hvdyolo.objective.loss import StepCounts, detection_loss
from hvdyolo.objective.targets import pad_matches

SIZE = 64
# Image, class, cx, cy, w, h; in no order of images, and image 0 twice on one place.
TARGETS = torch.tensor(
    [
        [2.0, 1.0, 0.40, 0.60, 0.30, 0.50],
        [0.0, 0.0, 0.52, 0.47, 0.20, 0.25],
        [2.0, 2.0, 0.71, 0.33, 0.60, 0.20],
        [0.0, 1.0, 0.52, 0.47, 0.22, 0.24],
    ]
)


@pytest.fixture
def model() -> DetectionModel:
    torch.manual_seed(0)
    return build_model("yolov5n", 3).double().eval()


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(1)
    return torch.rand(3, 3, SIZE, SIZE, dtype=torch.float64)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ([3.0, 0.0, 0.5, 0.5, 0.2, 0.2], "images beyond 0 … 2"),
        ([-1.0, 0.0, 0.5, 0.5, 0.2, 0.2], "images beyond 0 … 2"),
        ([0.5, 0.0, 0.5, 0.5, 0.2, 0.2], "images beyond 0 … 2"),
        ([0.0, 3.0, 0.5, 0.5, 0.2, 0.2], "classes beyond 0 … 2"),
        ([0.0, 0.0, float("nan"), 0.5, 0.2, 0.2], "not finite"),
        ([0.0, 0.0, 0.5, 0.5, 0.2], r"not \(1, 5\)"),
    ],
)
def test_targets_that_would_be_lost_are_refused(
    model: DetectionModel, images: Tensor, row: list[float], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        yolov5_loss(model, images, torch.tensor([row]))


def test_half_precision_of_either_kind_is_near(model: DetectionModel, images: Tensor) -> None:
    exact = yolov5_loss(model, images, TARGETS)["total"].item()
    for dtype in (torch.float16, torch.bfloat16):
        found = yolov5_loss(copy.deepcopy(model).to(dtype), images.to(dtype), TARGETS.to(dtype))
        assert found["total"].item() == pytest.approx(exact, rel=0.05)


def test_equals_the_trainers_loss_of_the_same_batch(model: DetectionModel, images: Tensor) -> None:
    rows = TARGETS.numpy()
    labels = [rows[[1, 3], 1:], np.zeros((0, 5), np.float32), rows[[0, 2], 1:]]
    matches = Assigner(model.strides, model.anchors_pixels.float().numpy(), 4.0)(labels, SIZE, SIZE)
    levels = model(images)[1]
    expected = detection_loss(
        levels,
        pad_matches([matches], [level[..., 0].numel() for level in levels]),
        torch.ones(3),
        StepCounts(torch.tensor(3.0), torch.tensor([float(len(level.cell)) for level in matches])),
        LossConfig(),
        SIZE,
    )
    found = yolov5_loss(model, images, TARGETS)
    assert list(found) == ["box", "obj", "cls", "total"]
    assert found["box"].item() == pytest.approx(expected.box.item(), rel=1e-12)
    assert found["obj"].item() == pytest.approx(expected.objectness.item(), rel=1e-12)
    assert found["cls"].item() == pytest.approx(expected.classification.item(), rel=1e-12)
    assert found["total"].item() == pytest.approx(expected.total.item(), rel=1e-12)
    terms = found["box"] + found["obj"] + found["cls"]
    assert found["total"].item() == pytest.approx(3 * terms.item(), rel=1e-12)
    assert min(found[name].item() for name in ("box", "obj", "cls")) > 0


def test_batch_norm_does_what_the_models_mode_says(model: DetectionModel, images: Tensor) -> None:
    before = model.state_dict()["model.0.bn.running_mean"].clone()
    evaluated = yolov5_loss(model, images, TARGETS)["total"]
    assert before.equal(model.state_dict()["model.0.bn.running_mean"])
    trained = yolov5_loss(model.train(), images, TARGETS)["total"]
    assert not model.state_dict()["model.0.bn.running_mean"].equal(before)
    assert abs(trained.item() - evaluated.item()) > 1e-3


def test_it_can_be_learned_from(model: DetectionModel, images: Tensor) -> None:
    yolov5_loss(model.train(), images, TARGETS)["total"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_no_targets(model: DetectionModel, images: Tensor) -> None:
    found = yolov5_loss(model, images, TARGETS[:0])
    assert found["box"].item() == 0
    assert found["cls"].item() == 0
    assert found["total"].item() == pytest.approx(3 * found["obj"].item())


def test_of_boxes_on_one_place_the_last_row_counts(model: DetectionModel, images: Tensor) -> None:
    swapped = TARGETS[[0, 3, 2, 1]]
    first, second = yolov5_loss(model, images, TARGETS), yolov5_loss(model, images, swapped)
    assert first["box"].item() == pytest.approx(second["box"].item(), rel=1e-12)
    assert first["obj"].item() != pytest.approx(second["obj"].item(), rel=1e-9)
    # The order of images among themselves does not matter.
    sorted_rows = yolov5_loss(model, images, TARGETS[[1, 3, 0, 2]])
    assert first["obj"].item() == pytest.approx(sorted_rows["obj"].item(), rel=1e-12)

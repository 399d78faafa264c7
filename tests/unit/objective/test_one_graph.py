"""Network and loss are one graph without shapes that depend on the data, and never wait for a GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from hvdyolo.config import LossConfig
from hvdyolo.models.build import DetectionModel, build_model
from hvdyolo.objective.assign import Assigner
from hvdyolo.objective.loss import StepCounts, detection_loss
from hvdyolo.objective.targets import LevelTargets, move_targets, pad_matches

SIZE = 64
IMAGES = 2
CLASSES = 3
# Every term and weight there is.
SETTINGS = LossConfig(label_smoothing=0.1, positive_objectness=2.0, positive_class=0.5)


@pytest.fixture
def model(small_network: Path) -> DetectionModel:
    torch.manual_seed(0)
    return build_model(small_network, CLASSES).train()


def batch(model: DetectionModel, boxes: int) -> tuple[Tensor, tuple[LevelTargets, ...], StepCounts]:
    """Images, padded targets and counts of a batch with so many boxes an image."""
    random = np.random.default_rng(boxes)
    labels = [
        np.hstack(
            [
                random.integers(0, CLASSES, (boxes, 1)),
                random.uniform(0.2, 0.8, (boxes, 2)),
                random.uniform(0.1, 0.4, (boxes, 2)),
            ]
        ).astype(np.float32)
        for _ in range(IMAGES)
    ]
    matches = Assigner(model.strides, model.anchors_pixels.cpu().numpy(), 4.0)(labels, SIZE, SIZE)
    cells = [IMAGES * 3 * (SIZE // stride) ** 2 for stride in model.strides]
    images = torch.from_numpy(random.random((IMAGES, 3, SIZE, SIZE), dtype=np.float32))
    counts = StepCounts(torch.tensor(2.0), torch.tensor([float(len(level.cell)) for level in matches]))
    return images, pad_matches([matches], cells), counts


def loss_of(model: DetectionModel) -> Callable[..., Tensor]:
    def loss(
        images: Tensor, targets: tuple[LevelTargets, ...], weights: Tensor, counts: StepCounts
    ) -> Tensor:
        return detection_loss(model(images), targets, weights, counts, SETTINGS, SIZE).total

    return loss


def unknown_until_run(graph: torch.fx.GraphModule) -> list[str]:
    """Operations that look at a value, or give a shape that depends on values: torch traces them too."""
    kinds = (Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)
    values = {node.name: node.meta.get("example_value") for node in graph.graph.nodes}
    return [
        name for name, value in values.items() if isinstance(value, kinds) and free_unbacked_symbols(value)
    ]


def test_one_graph_serves_batches_of_different_boxes(model: DetectionModel) -> None:
    graphs = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    plain = loss_of(model)
    # What cannot be in one graph is an error here.
    compiled = torch.compile(plain, fullgraph=True, dynamic=False, backend=keep)
    weights = torch.ones(IMAGES)
    few, more, many = batch(model, 1), batch(model, 3), batch(model, 60)
    assert few[1][0].cell.shape == more[1][0].cell.shape < many[1][0].cell.shape
    for images, targets, counts in (few, more):
        expected = plain(images, targets, weights, counts)
        torch.testing.assert_close(compiled(images, targets, weights, counts), expected)
    assert len(graphs) == 1
    assert unknown_until_run(graphs[0]) == []
    # The next power of two has another.
    assert torch.isfinite(compiled(many[0], many[1], weights, many[2]))
    assert len(graphs) == 2


def test_no_value_is_looked_at(model: DetectionModel) -> None:
    """Forward or backward: on a GPU each look waits for all that was computed before."""
    images, targets, counts = batch(model, 3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss_of(model)(images, targets, torch.ones(IMAGES), counts).backward()
    operations = {event.key for event in profile.key_averages()}
    assert "aten::convolution_backward" in operations
    assert not operations & {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: what waits for one is not looked for")
def test_nothing_waits_for_the_gpu(model: DetectionModel) -> None:
    device = torch.device("cuda")
    images, targets, counts = batch(model.to(device), 3)
    inputs = (
        images.to(device),
        tuple(move_targets(targets, device)),
        torch.ones(IMAGES, device=device),
        StepCounts(counts.images.to(device), counts.matches.to(device)),
    )
    loss = loss_of(model)
    loss(*inputs).backward()  # libraries wait while they start
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(*inputs).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")

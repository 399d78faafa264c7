"""What is taken from other weights, what is held fixed, and what learns at another rate."""

from pathlib import Path

import pytest
import torch
from torch import nn

from hvdyolo.engine.transfer import freeze, read_lr_factors, transfer_weights
from hvdyolo.models.build import DetectionModel, build_model, save_model
from hvdyolo.utils.errors import DataError, UsageError


def built(name: str = "yolov5n", classes: int = 2, seed: int = 0) -> DetectionModel:
    torch.manual_seed(seed)
    return build_model(name, classes)


def saved(tmp_path: Path, model: DetectionModel) -> Path:
    save_model(model, tmp_path / "source.safetensors")
    return tmp_path / "source.safetensors"


def test_all_of_an_equal_model_is_taken(tmp_path: Path) -> None:
    source, target = built(seed=1), built(seed=2)
    source(torch.rand(2, 3, 64, 64))
    source.head.anchors *= 1.5
    transfer = transfer_weights(saved(tmp_path, source), target)
    assert (transfer.taken, transfer.total, transfer.left) == (349, 349, {})
    for name, value in target.state_dict().items():
        assert value.equal(source.state_dict()[name]), name


def test_all_but_the_head_is_taken_for_other_classes(tmp_path: Path) -> None:
    source, target = built(classes=5, seed=1), built(classes=2, seed=2)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    transfer = transfer_weights(saved(tmp_path, source), target)
    assert (transfer.taken, transfer.total) == (343, 349)  # anchors are equal
    assert set(transfer.left) == {
        f"model.24.m.{level}.{part}" for level in range(3) for part in ("weight", "bias")
    }
    assert transfer.left["model.24.m.0.weight"] == "(30, 64, 1, 1) there, (21, 64, 1, 1) here"
    for name, value in target.state_dict().items():
        assert value.equal(before[name] if name in transfer.left else source.state_dict()[name]), name


def test_other_anchors_stay_with_the_head_that_learned_them(tmp_path: Path) -> None:
    source, target = built(classes=5), built(classes=2)
    source.head.anchors *= 1.5
    before = target.head.anchors.clone()
    transfer = transfer_weights(saved(tmp_path, source), target)
    assert (transfer.taken, transfer.keeps_anchors) == (342, True)
    assert transfer.left["model.24.anchors"] == "other anchors, of a head that does not fit"
    assert target.head.anchors.equal(before)


def test_another_layout_gives_what_has_the_same_name_and_shape(tmp_path: Path) -> None:
    source, target = built("yolov5n", seed=1), built("yolov5n-transformer", seed=2)
    transfer = transfer_weights(saved(tmp_path, source), target)
    assert {name.split(".m.")[0] for name in transfer.left} == {"model.8"}
    assert set(transfer.left.values()) == {"not there"}
    assert target.state_dict()["model.23.cv3.conv.weight"].equal(
        source.state_dict()["model.23.cv3.conv.weight"]
    )
    assert target.state_dict()["model.8.cv1.conv.weight"].equal(
        source.state_dict()["model.8.cv1.conv.weight"]
    )


def test_nothing_that_fits(tmp_path: Path) -> None:
    description = tmp_path / "tiny.yaml"
    description.write_text(
        "{nc: 2, depth_multiple: 1, width_multiple: 1, anchors: 3, backbone: [[-1, 1, Conv, [64, 3, 2]]], "
        "head: [[[0], 1, Detect, [nc, anchors]]]}"
    )
    with pytest.raises(UsageError, match=r"No tensor of .*source"):
        transfer_weights(saved(tmp_path, built()), build_model(description, 3))


def test_what_is_frozen_must_be_there(tmp_path: Path) -> None:
    weights = saved(tmp_path, built(classes=5))
    target = built(classes=2)
    freeze(target, "head")
    before = {name: value.clone() for name, value in target.state_dict().items()}
    says = r"model\.24\.m\.0\.weight at random .*\(30, 64, 1, 1\) there, \(21, 64, 1, 1\) here\); freeze less"
    with pytest.raises(UsageError, match=says):
        transfer_weights(weights, target)
    assert all(value.equal(before[name]) for name, value in target.state_dict().items())
    freeze(target, "backbone, neck")
    assert transfer_weights(weights, target).taken == 343


def test_no_weights_at_all(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pt"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(DataError, match=name):
            transfer_weights(tmp_path / name, built())


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_frozen_rows_do_not_learn_and_keep_their_statistics() -> None:
    model = built()
    freeze(model, "backbone, model.13.cv1.*")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {int(name.split(".")[1]) for name in frozen} == {*range(10), 13}
    assert {name for name in frozen if name.startswith("model.13")} == {
        f"model.13.cv1.{part}" for part in ("conv.weight", "bn.weight", "bn.bias")
    }
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for mode in (True, False, True):
        model.train(mode)
        assert all(norm.training == (mode and norm.weight.requires_grad) for norm in norms(model))
    model.train()
    sum(level.square().sum() for level in model(torch.rand(2, 3, 64, 64))).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    assert all((parameter.grad is None) == (name in frozen) for name, parameter in model.named_parameters())
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert not {name for name in changed if name.startswith(tuple(f"model.{row}." for row in range(10)))}
    assert not {name for name in changed if name.startswith("model.13.cv1.")}
    assert "model.13.cv2.bn.running_mean" in changed
    assert "model.10.bn.running_mean" in changed


def test_convolutions_alone_can_be_frozen() -> None:
    model = built()
    freeze(model, "*.conv.weight")
    assert all(norm.training for norm in norms(model.train()))
    assert model.model[0].bn.weight.requires_grad
    assert not model.model[0].conv.weight.requires_grad


def test_freezing_nothing_frees_everything() -> None:
    model = built()
    freeze(model, "0-3")
    freeze(model, "")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(norm.training for norm in norms(model.train()))


def test_something_has_to_learn() -> None:
    with pytest.raises(UsageError, match="leaves nothing to learn"):
        freeze(built(), "backbone, neck, head")
    with pytest.raises(UsageError, match="'35' selects no parameter"):
        freeze(built(), "0, 35")


def test_factors_of_the_learning_rate() -> None:
    model = built()
    factors = read_lr_factors(model, "backbone=0.1, 8-10 = 0.5, *.bias=2")
    assert factors["model.0.conv.weight"] == 0.1
    assert factors["model.8.cv1.conv.weight"] == 0.5
    assert factors["model.10.conv.weight"] == 0.5
    assert factors["model.0.bn.bias"] == 2
    assert factors["model.24.m.0.bias"] == 2
    assert "model.24.m.0.weight" not in factors
    assert read_lr_factors(model, "") == {}


@pytest.mark.parametrize(
    "word", ["backbone", "backbone=", "backbone=fast", "backbone=0", "backbone=-1", "head=inf", "0=nan"]
)
def test_factors_that_are_none(word: str) -> None:
    with pytest.raises(UsageError, match=r"factor above 0.*model\.freeze"):
        read_lr_factors(built(), word)


def test_factors_of_nothing() -> None:
    with pytest.raises(UsageError, match="'spine' selects no parameter"):
        read_lr_factors(built(), "spine=2")

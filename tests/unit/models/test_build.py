"""Structure of the shipped networks against published figures, and what builds from a user's file."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from hvdyolo.models.build import DetectionModel, build_model
from hvdyolo.models.description import read_description
from hvdyolo.utils.errors import UsageError

# Published: billions of operations of one 640-pixel image, after fusion.
OPERATIONS = {
    "yolov5n": 4.496, "yolov5s": 16.485, "yolov5m": 48.967, "yolov5l": 109.145, "yolov5x": 205.669,
}  # fmt: skip


def build_empty(description: str | Path, classes: int = 80) -> DetectionModel:
    """Without memory for weights."""
    with torch.device("meta"):
        return build_model(description, classes)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str) -> None:
    """Twice the multiply-adds and bias additions of all convolutions: differs if a size or stride does."""
    model = build_empty(name)
    operations = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal operations
        assert isinstance(module, nn.Conv2d)
        window = module.weight[0].numel()
        operations += 2 * output.numel() * (window + 1)

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    levels = model(torch.empty(1, 3, 640, 640, device="meta"))
    assert round(operations / 1e9, 3) == OPERATIONS[name]
    assert [tuple(level.shape) for level in levels] == [(1, 3, side, side, 85) for side in (80, 40, 20)]


def test_state_has_the_published_names() -> None:
    state = build_empty("yolov5n", 3).state_dict()
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert list(state)[:6] == ["model.0.conv.weight", *(f"model.0.bn.{part}" for part in norm)]
    assert {name for name in state if name.startswith("model.24.")} == {
        "model.24.anchors",
        *(f"model.24.m.{level}.{part}" for level in range(3) for part in ("weight", "bias")),
    }
    shapes = {
        "model.0.conv.weight": (16, 3, 6, 6),
        "model.2.cv3.conv.weight": (32, 32, 1, 1),
        "model.4.m.1.cv2.conv.weight": (32, 32, 3, 3),
        "model.6.m.2.cv1.conv.weight": (64, 64, 1, 1),
        "model.9.cv2.conv.weight": (256, 512, 1, 1),
        "model.13.cv1.conv.weight": (64, 256, 1, 1),
        "model.23.m.0.cv2.bn.weight": (128,),
        "model.24.m.0.weight": (24, 64, 1, 1),
        "model.24.anchors": (3, 3, 2),
    }
    for name, shape in shapes.items():
        assert state[name].shape == shape


def test_attributes() -> None:
    model = build_model("yolov5n", 2, names=("disc", "square"))
    assert model.names == ("disc", "square")
    assert model.strides == (8, 16, 32)
    assert model.image_size == 640
    assert model.anchors_pixels[0].tolist() == [[10, 13], [16, 30], [33, 23]]
    assert model.anchors_pixels[2, 2].tolist() == [373, 326]
    assert build_empty("yolov5n", 2).names == ("class0", "class1")
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        assert (norm.eps, norm.momentum) == (1e-3, 0.03)


def test_every_row_reads_the_rows_it_should() -> None:
    """The published wiring written out: counts of parameters do not see the order in a concatenation."""
    torch.manual_seed(0)
    model = build_model("yolov5n", 2).eval()
    m = model.model
    images = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        x4 = m[4](m[3](m[2](m[1](m[0](images)))))
        x6 = m[6](m[5](x4))
        x10 = m[10](m[9](m[8](m[7](x6))))
        x14 = m[14](m[13](torch.cat([m[11](x10), x6], 1)))
        x17 = m[17](torch.cat([m[15](x14), x4], 1))
        x20 = m[20](torch.cat([m[18](x17), x14], 1))
        x23 = m[23](torch.cat([m[21](x20), x10], 1))
        expected = m[24]([x17, x20, x23])[0]
        assert model(images)[0].equal(expected)


def test_only_the_backbone_has_shortcuts() -> None:
    model = build_empty("yolov5n")
    adds = {
        int(name.split(".")[1]): module.adds
        for name, module in model.named_modules()
        if hasattr(module, "adds")
    }
    assert adds == {**dict.fromkeys((2, 4, 6, 8), True), **dict.fromkeys((13, 17, 20, 23), False)}


def test_training_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = build_model("yolov5n", 2)
    levels = model(torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last))
    assert [level.shape for level in levels] == [(2, 3, side, side, 7) for side in (8, 4, 2)]
    sum(level.square().sum() for level in levels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        # Horovod reduces contiguous gradients only.
        assert parameter.grad.is_contiguous(), name


def write(tmp_path: Path, **changes: Any) -> Path:
    """A small description in the published format, with some keys replaced."""
    values = {
        "nc": 80,
        "depth_multiple": 0.5,
        "width_multiple": 0.5,
        "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
        "backbone": [
            [-1, 1, "Conv", [16, 3, 2]],
            [-1, 4, "Conv", [16, 3]],
            [-1, 3, "C3", [32]],
            [-2, 1, "Conv", [32, 3, 2]],
        ],
        "head": [
            [[-1], 1, "nn.Upsample", ["None", 2, "nearest"]],
            [[-1, 2, -5], 1, "Concat", [1]],
            [-1, 1, "SPPF", [20, 3]],
            [[6, 3], 1, "Detect", ["nc", "anchors"]],
        ],
        **changes,
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_users_file(tmp_path: Path) -> None:
    model = build_model(write(tmp_path, released="2026-11-24", note={"a": 1}), 4)
    assert model.strides == (2, 4)
    assert set(model.description) == {"nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head"}
    assert model.description["nc"] == 4
    # Repeats times depth, in a sequence: 4 -> 2 convolutions of 16 * 0.5 channels.
    assert model.state_dict()["model.1.1.conv.weight"].shape == (8, 8, 3, 3)
    # In C3 inside: round(3 * 0.5) = 2, as Python rounds.
    assert len(model.model[2].m) == 2
    # Rows 4, 2 and 5 - 5 = 0: 16 + 16 + 8 channels; 20 * 0.5 = 10 is rounded up to 16.
    assert model.state_dict()["model.6.cv1.conv.weight"].shape == (20, 40, 1, 1)
    assert model.state_dict()["model.6.cv2.conv.weight"].shape[0] == 16
    fine, coarse = model(torch.zeros(1, 3, 16, 8))
    assert fine.shape == (1, 2, 8, 4, 9)
    assert coarse.shape == (1, 2, 4, 2, 9)
    boxes, _ = model.eval()(torch.zeros(1, 3, 16, 8))
    assert boxes.shape == (1, 2 * 32 + 2 * 8, 9)


def test_published_modules_of_older_networks(tmp_path: Path) -> None:
    """Those of v5.0, and torch's own that published files name."""
    backbone = [
        [-1, 1, "Focus", [16, 3]],
        [-1, 1, "DWConv", [32, 3, 2]],
        [-1, 1, "nn.MaxPool2d", [3, 1, 1]],
        [-1, 1, "nn.Identity", []],
        [-1, 1, "SPP", [32, [3, 5]]],
        [-1, 2, "GhostConv", [32, 1, 1]],
        [-1, 1, "nn.MaxPool2d", [2]],
    ]
    head = [[[5, 6], 1, "Detect", ["nc", "anchors"]]]
    model = build_model(write(tmp_path, backbone=backbone, head=head, depth_multiple=1), 2)
    assert model.strides == (4, 8)
    state = model.state_dict()
    assert state["model.0.conv.conv.weight"].shape == (8, 12, 3, 3)
    assert state["model.1.conv.weight"].shape == (16, 1, 3, 3)
    assert state["model.4.cv2.conv.weight"].shape == (16, 24, 1, 1)
    assert state["model.5.1.cv2.conv.weight"].shape == (8, 1, 5, 5)
    assert [tuple(level.shape) for level in model(torch.rand(2, 3, 16, 32))] == [
        (2, 2, 4, 8, 7),
        (2, 2, 2, 4, 7),
    ]


def test_attention_and_weighted_fusion_in_a_users_file(tmp_path: Path) -> None:
    backbone = [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "sam_cbam", []],
        [-1, 1, "sam_v4", []],
        [[-1, 0, 1], 1, "WeightedFusion", []],
        [-1, 1, "Conv", [16, 3, 2]],
        [[3, 4], 4, "BiFPN", [24]],
        [-1, 1, "Level", [1]],
        [5, 1, "Level", [0]],
    ]
    head = [[[7, 6], 1, "Detect", ["nc", "anchors"]]]
    model = build_model(write(tmp_path, backbone=backbone, head=head), 2)
    state = model.state_dict()
    assert state["model.1.conv.weight"].shape == (1, 2, 7, 7)
    assert state["model.2.conv.weight"].shape == (8, 8, 1, 1)
    assert state["model.3.weight"].tolist() == [1, 1, 1]
    assert len(model.model[5].layers) == 2  # 4 x depth 0.5
    assert state["model.5.layers.1.top_down.0.pointwise.conv.weight"].shape == (16, 16, 1, 1)
    assert model.strides == (2, 4)
    assert [tuple(level.shape) for level in model(torch.rand(2, 3, 16, 32))] == [
        (2, 2, 8, 16, 7),
        (2, 2, 4, 8, 7),
    ]


def test_anchors_to_be_fitted_stand_at_2_4_and_8_strides(tmp_path: Path) -> None:
    model = build_model(write(tmp_path, anchors=3), 2)
    assert model.strides == (2, 4)
    assert model.anchors_pixels.tolist() == [
        [[4, 4], [8, 8], [16, 16]],
        [[8, 8], [16, 16], [32, 32]],
    ]
    assert build_model(write(tmp_path, anchors=1), 2).anchors_pixels.tolist() == [[[8, 8]], [[16, 16]]]
    assert model.description["anchors"] == 3


@pytest.mark.parametrize(
    ("written", "given", "classes"),
    [({"nc": 4}, {}, 4), ({}, {}, 80), ({"nc": 4}, {"classes": 3}, 3), ({"nc": 4}, {"names": ["a", "b"]}, 2)],
)
def test_number_of_classes(
    tmp_path: Path, written: dict[str, int], given: dict[str, Any], classes: int
) -> None:
    file = tmp_path / "own.yaml"
    values = {key: value for key, value in read_description("yolov5n").items() if key != "nc"}
    file.write_text(yaml.safe_dump({**written, **values}))
    assert build_model(file, **given).head.classes == classes


def test_a_number_of_classes_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    for number in (0, "many", 2.5, True):
        file.write_text(yaml.safe_dump({**read_description("yolov5n"), "nc": number}))
        with pytest.raises(UsageError, match="at least one class"):
            build_model(file)


DETECT = [[[2], 1, "Detect", ["nc", "anchors"]]]
CONV = [-1, 1, "Conv", [16, 3, 2]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": [CONV, [-1, 1, "Convv", [16]]]}, ["row 1", "Convv", "did you mean 'Conv'"]),
        ({"backbone": [CONV, [-1, 1, "Conv", []]]}, ["row 1", "[]", "Conv"]),
        ({"backbone": [CONV, [-1, 1, "Conv", ["wide", 3]]]}, ["row 1", "wide"]),
        ({"backbone": [CONV, [-1, 1, "Conv", [16, 3, 2, 1, 1, 1, 1]]]}, ["row 1"]),
        ({"backbone": [CONV, [5, 1, "Conv", [16]]]}, ["row 1", "no row 5"]),
        ({"backbone": [CONV, [1, 1, "Conv", [16]]]}, ["row 1", "no row 1"]),
        ({"backbone": [CONV, [-2, 1, "Conv", [16]]]}, ["row 1", "no row -2"]),
        ({"backbone": [CONV, [[0, -1], 1, "Conv", [16]]]}, ["row 1", "one input"]),
        ({"backbone": [CONV, [[], 1, "Concat", [1]]]}, ["row 1", "names no row"]),
        ({"backbone": [CONV, [-1, 0, "Conv", [16]]]}, ["row 1", "at least once"]),
        ({"backbone": [CONV, [-1, 1.5, "Conv", [16]]]}, ["row 1"]),
        ({"backbone": [CONV, [-1, 1, "Conv"]]}, ["row 1", "[from, repeats, module, args]"]),
        ({"backbone": [CONV, CONV, [[0, 1], 1, "Concat", [1]]]}, ["row 2", "different sizes"]),
        ({"backbone": [CONV, [[-1, 0], 1, "Concat", [2]]]}, ["row 1", "[2]", "Concat"]),
        ({"backbone": [CONV, [-1, 1, "nn.Upsample", [None, 0, "nearest"]]]}, ["row 1"]),
        ({"backbone": [CONV, [-1, 1, "nn.Upsample", [[20, 20], None, "nearest"]]]}, ["row 1"]),
        ({"backbone": [CONV, [-1, 1, "nn.Upsample", [None, 4, "nearest"]]]}, ["row 2", "larger than"]),
        ({"backbone": "Conv"}, ["backbone", "list of rows"]),
        ({"head": None}, ["head", "list of rows"]),
        ({"head": [CONV]}, ["last row", "Detect"]),
        ({"head": [*DETECT, CONV]}, ["row 4", "Detect"]),
        ({"head": DETECT}, ["1 levels", "anchors for 2"]),
        ({"anchors": 3, "head": [[[3] * 6, 1, "Detect", ["nc", "anchors"]]]}, ["row 4", "6 levels", "5"]),
        ({"anchors": 0}, ["anchors"]),
        ({"anchors": 1000}, ["anchors"]),
        ({"anchors": True}, ["anchors"]),
        ({"activation": "nn.ReLU()"}, ["activation", "nn.ReLU()", "nn.SiLU()", "leave the key out"]),
        ({"head": [[[2, 3], 1, "Detect", [80, [[1, 2]]]]]}, ["row 4", "[nc, anchors]", "keys"]),
        ({"head": [[[2, 3], 2, "Detect", ["nc", "anchors"]]]}, ["row 4", "once"]),
        ({"backbone": [CONV, [-1, 101, "Conv", [16]]]}, ["row 1", "at most 100", "101"]),
        ({"backbone": [CONV] * 1001}, ["1002 rows", "at most 1000"]),
        ({"backbone": [CONV, [-1, 2, "nn.Identity", []]]}, ["row 1", "nn.Identity", "repeated"]),
        ({"backbone": [CONV, [-1, 1, "Conv", [16, 3, 0]]]}, ["row 1", "[16, 3, 0]", "Conv"]),
        (
            {"backbone": [CONV, [-1, 1, "Conv", [16, 2, 2]]]},
            ["row 1", "kernel, stride and padding", "stride", "4 would be"],
        ),
        ({"backbone": [CONV, [-1, 1, "nn.MaxPool2d", [3, 1]]]}, ["row 1", "kernel, stride and padding"]),
        ({"backbone": [CONV, [-1, 1, "nn.MaxPool2d", [3, 1, 9]]]}, ["row 1", "[3, 1, 9]", "nn.MaxPool2d"]),
        ({"backbone": [CONV, [-1, 1, "Bottleneck", [16, True, 3]]]}, ["row 1", "Bottleneck"]),
        ({"backbone": [CONV, [-1, 1, "BiFPN", [16]]]}, ["row 1", "two or more levels"]),
        ({"backbone": [CONV, CONV, [[1, 0], 1, "BiFPN", [16]]]}, ["row 2", "finest first", "[4.0, 2.0]"]),
        ({"backbone": [CONV, CONV, [[0, 1], 1, "BiFPN", [16, 3]]]}, ["row 2", "[16, 3]", "BiFPN"]),
        ({"backbone": [CONV, CONV, [[0, 1], 1, "BiFPN", [16]]]}, ["row 3", "gives 2 levels", "Level"]),
        (
            {"backbone": [CONV, CONV, [[0, 1], 1, "BiFPN", [16]], [-1, 1, "Conv", [16]]]},
            ["row 3", "gives 2 levels", "Level"],
        ),
        (
            {"backbone": [CONV, CONV, [[0, 1], 1, "BiFPN", [16]], [-1, 1, "Level", [2]]]},
            ["row 3", "no level 2", "0 … 1"],
        ),
        ({"backbone": [CONV, [-1, 1, "Level", [0]]]}, ["row 1", "Level", "BiFPN"]),
        (
            {"backbone": [CONV, [-1, 1, "Conv", [32]], [[0, 1], 1, "WeightedFusion", []]]},
            ["row 2", "different widths", "[8, 16]"],
        ),
        ({"backbone": [CONV, CONV, [[0, 1], 1, "WeightedFusion", []]]}, ["row 2", "different sizes"]),
        ({"backbone": [CONV, [-1, 1, "WeightedFusion", [2]]]}, ["row 1", "[2]", "WeightedFusion"]),
        ({"backbone": [CONV, [-1, 1, "sam_cbam", [6]]]}, ["row 1", "[6]", "sam_cbam"]),
        ({"backbone": [CONV, [-1, 1, "sam_v4", [3]]]}, ["row 1", "[3]", "sam_v4"]),
        ({"anchors": [[10, 13, 16], [30, 61, 62]]}, ["anchors"]),
        ({"anchors": [[10, 13], [30, 61, 62, 45]]}, ["as many anchors"]),
        ({"anchors": [[10, 0], [30, 61]]}, ["anchors"]),
        ({"anchors": [["ten", 13], [30, 61]]}, ["anchors"]),
        ({"depth_multiple": "deep"}, ["depth_multiple", "deep"]),
        ({"width_multiple": 0}, ["width_multiple"]),
        ({"width_multiple": 10**400}, ["width_multiple"]),
        ({"depth_multiple": float("nan")}, ["depth_multiple"]),
        ({"anchors": [[10**400, 10], [30, 61]]}, ["anchors"]),
        ({"backbone": [CONV, [-1, 9, "Conv", [16, 1, 1000]]]}, ["row 1", "[16, 1, 1000]", "Conv"]),
        ({"backbone": [CONV, [-1, 1, "Conv", [10**400]]]}, ["row 1", "Conv"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    if isinstance(changes.get("backbone"), list):  # a head that fits it but for the mistake
        changes = {**changes, "head": [[[0, len(changes["backbone"]) - 1], 1, "Detect", ["nc", "anchors"]]]}
    with pytest.raises(UsageError) as raised:
        build_model(write(tmp_path, **changes), 2)
    for word in [*words, "own.yaml"]:
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["depth_multiple", "width_multiple", "anchors", "backbone", "head"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    path = write(tmp_path)
    values = yaml.safe_load(path.read_text())
    del values[key]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UsageError, match=key):
        build_model(path, 2)


@pytest.mark.parametrize(
    "content",
    [
        b"anchors: [",
        b"- 1\n- 2\n",
        b"",
        b"\xff\xfe\x00",
        b"when: 2026-11-24\n",
        b"when: 2026-99-99\n",
        b"width_multiple: " + b"9" * 5000,
        b"[" * 5000,
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"own\.yaml"):
        build_model(path, 2)


def test_unknown_names_and_wrong_classes() -> None:
    with pytest.raises(UsageError, match=r"'yolo5s'.*did you mean 'yolov5s'.*yolov5x.*-transformer"):
        build_model("yolo5s", 2)
    with pytest.raises(UsageError, match=r"'yolov5s_p2'.*did you mean 'yolov5s-p2'"):
        build_model("yolov5s_p2", 2)
    with pytest.raises(UsageError, match="at least one class"):
        build_model("yolov5n", 0)
    with pytest.raises(UsageError, match="2 names were given for 3 classes"):
        build_model("yolov5n", 3, names=["a", "b"])

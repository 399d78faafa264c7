"""Every shipped network: its published size, its names, its levels, and what it computes."""

import zlib

import pytest
import torch
from torch import Tensor

from hvdyolo.models.build import DetectionModel, build_model
from hvdyolo.models.description import read_description
from hvdyolo.models.shipped import shipped_names

# Published: parameters of 80 classes, batch norms not fused.
PARAMETERS = {
    "yolov5n": 1_872_157,
    "yolov5s": 7_235_389,
    "yolov5m": 21_190_557,
    "yolov5l": 46_563_709,
    "yolov5x": 86_749_405,
    "yolov5n6": 3_246_940,
    "yolov5s6": 12_626_620,
    "yolov5m6": 35_731_932,
    "yolov5l6": 76_770_172,
    "yolov5x6": 140_794_780,
    "yolov5s-p6": 12_626_620,
    "yolov5s-p2": 7_394_684,
    "yolov5s-p34": 5_331_518,
    "yolov5s-p7": 24_183_227,
    "yolov5s-fpn": 6_200_893,
    "yolov5s-panet": 7_235_389,
    "yolov5l-panet": 46_563_709,
    "yolov5s-bifpn-concat": 7_300_925,
    "yolov5s-ghost": 3_897_605,
    "yolov5s-transformer": 7_235_645,
}

STRIDES = {
    "": (8, 16, 32),
    "6": (8, 16, 32, 64),
    "-p2": (4, 8, 16, 32),
    "-p34": (8, 16),
    "-p6": (8, 16, 32, 64),
    "-p7": (8, 16, 32, 64, 128),
    "-fpn": (8, 16, 32),
    "-panet": (8, 16, 32),
    "-bifpn": (8, 16, 32),
    "-bifpn-concat": (8, 16, 32),
    "-ghost": (8, 16, 32),
    "-transformer": (8, 16, 32),
}

# Not published: what this code computed when it was checked (see fingerprint), so that a change of any
# connection, activation, norm or order shows.
FINGERPRINTS = {
    "": (17.520965149666875, 35.4494327840392),
    "6": (35.736357218738874, 73.05762115150118),
    "-p2": (14.842557508773327, 26.32204688516881),
    "-p34": (15.626140218728924, 29.360227685740508),
    "-p6": (35.736357218738874, 73.05762115150118),
    "-p7": (45.512283114101905, 84.30674496053602),
    "-fpn": (17.622684879249213, 36.14089836056683),
    "-panet": (17.520965149666875, 35.4494327840392),
    "-bifpn": (17.49584690426228, 35.093251512563526),
    "-bifpn-concat": (17.5373968375334, 35.48812339615799),
    "-ghost": (17.5315659470909, 35.284145987399675),
    "-transformer": (17.519400530050383, 35.44007829472208),
}


def build_empty(name: str) -> DetectionModel:
    """Without memory for weights."""
    with torch.device("meta"):
        return build_model(name, 80)


def fill(model: DetectionModel) -> None:
    """Weights of moderate size that depend on each tensor's name and shape alone."""
    for name, value in model.state_dict().items():
        if name.endswith(("num_batches_tracked", "anchors")):
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        drawn = torch.rand(value.shape, generator=generator, dtype=torch.float64)
        if value.ndim >= 2:
            drawn = (drawn - 0.5) * (12 / value[0].numel()) ** 0.5  # keeps the variance of its input
        elif name.endswith(("bias", "running_mean")):
            drawn = (drawn - 0.5) * 0.2
        else:
            drawn = 0.5 + drawn
        value.copy_(drawn)


def fingerprint(name: str) -> tuple[float, float]:
    """Mean and root mean square of all decoded boxes on a picture of waves."""
    model = build_model(name, 3).double().eval()
    fill(model)
    side = 2 * max(model.strides)
    row, column = torch.arange(side, dtype=torch.float64)[:, None], torch.arange(side, dtype=torch.float64)
    image = torch.stack([torch.sin(0.3 * row * k + 0.2 * column + k) * 0.5 + 0.5 for k in (1, 2, 3)])
    with torch.inference_mode():
        boxes: Tensor = model(image[None])[0]
    assert torch.isfinite(boxes).all()
    return boxes.mean().item(), boxes.square().mean().sqrt().item()


def test_names_are_each_scale_with_each_layout() -> None:
    assert set(shipped_names()) == {f"yolov5{scale}{ending}" for scale in "nsmlx" for ending in STRIDES}


def test_scales() -> None:
    factors = {"n": (0.33, 0.25), "s": (0.33, 0.5), "m": (0.67, 0.75), "l": (1, 1), "x": (1.33, 1.25)}
    for scale, expected in factors.items():
        for ending in STRIDES:
            values = read_description(f"yolov5{scale}{ending}")
            assert (values["depth_multiple"], values["width_multiple"]) == expected


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name: str) -> None:
    assert sum(parameter.numel() for parameter in build_empty(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("scale", ["n", "m"])
@pytest.mark.parametrize("ending", STRIDES)
def test_levels(scale: str, ending: str) -> None:
    strides = STRIDES[ending]
    model = build_empty(f"yolov5{scale}{ending}")
    assert model.strides == strides
    assert model.size_multiple == max(32, strides[-1])  # p34's backbone goes on to stride 32
    height, width = model.size_multiple, 2 * model.size_multiple
    images = torch.empty(2, 3, height, width, device="meta")
    assert [tuple(level.shape) for level in model(images)] == [
        (2, 3, height // stride, width // stride, 85) for stride in strides
    ]
    boxes = model.eval()(images)[0]
    assert boxes.shape == (2, sum(3 * height * width // stride**2 for stride in strides), 85)


@pytest.mark.parametrize("ending", STRIDES)
def test_training_reaches_every_parameter(ending: str) -> None:
    torch.manual_seed(0)
    model = build_model(f"yolov5n{ending}", 2)
    side = 2 * model.strides[-1]
    images = torch.rand(2, 3, side, side).contiguous(memory_format=torch.channels_last)
    sum(level.square().sum() for level in model(images)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        # Horovod reduces contiguous gradients only.
        assert parameter.grad.is_contiguous(), name


@pytest.mark.parametrize("ending", STRIDES)
def test_what_it_computes_stays(ending: str) -> None:
    assert fingerprint(f"yolov5n{ending}") == pytest.approx(FINGERPRINTS[ending], rel=1e-9)


def test_published_anchors_of_p6() -> None:
    anchors = build_model("yolov5n6", 2).anchors_pixels
    assert anchors[0].tolist() == [[19, 27], [44, 40], [38, 94]]
    assert anchors[3].tolist() == [[436, 615], [739, 380], [925, 792]]


def test_fpns_levels_are_in_the_order_of_its_anchors() -> None:
    model = build_model("yolov5n-fpn", 2)
    assert model.description["head"][-1][0] == [18, 14, 10]
    assert model.anchors_pixels[:, 0].tolist() == [[10, 13], [30, 61], [116, 90]]


def test_layouts_are_files_that_users_can_start_from() -> None:
    """Scale l, in the published format."""
    for ending in STRIDES:
        values = read_description(f"yolov5l{ending}")
        assert list(values) == ["nc", "depth_multiple", "width_multiple", "anchors", "backbone", "head"]
        assert (values["depth_multiple"], values["width_multiple"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("scale", "layers", "width"), [("n", 3, 64), ("s", 3, 128), ("m", 5, 192), ("l", 8, 256)]
)
def test_depth_and_width_of_the_bifpn(scale: str, layers: int, width: int) -> None:
    """Not published, so counted: one width, and as many layers as EfficientDet-D0 has at the least."""
    neck = build_empty(f"yolov5{scale}-bifpn").model[10]
    narrowing = (1 + 2 + 4) * width**2 + 3 * 2 * width  # P3, P4 and P5 come 1, 2 and 4 times as wide
    fusions = 2 + 2 + 3 + 2
    layer = fusions + 4 * (9 * width + 2 * width + width**2 + 2 * width)
    expected = narrowing + layers * layer
    assert sum(parameter.numel() for parameter in neck.parameters()) == expected


# Names and shapes at scale s with 80 classes, after the published definition of each module.
NAMES = {
    "yolov5s6": {
        "model.11.cv2.conv.weight": (512, 1024, 1, 1),
        "model.33.anchors": (4, 3, 2),
        "model.33.m.3.weight": (255, 512, 1, 1),
    },
    "yolov5s-ghost": {
        "model.0.conv.weight": (32, 3, 6, 6),
        "model.1.cv1.conv.weight": (32, 32, 3, 3),
        "model.1.cv2.conv.weight": (32, 1, 5, 5),
        "model.2.cv1.conv.weight": (32, 64, 1, 1),
        "model.2.m.0.conv.0.cv1.conv.weight": (8, 32, 1, 1),
        "model.2.m.0.conv.0.cv2.bn.weight": (8,),
        "model.2.m.0.conv.2.cv1.conv.weight": (16, 16, 1, 1),
        "model.2.m.0.conv.2.cv2.conv.weight": (16, 1, 5, 5),
        "model.10.cv2.conv.weight": (128, 1, 5, 5),
    },
    "yolov5s-transformer": {
        "model.8.m.linear.weight": (256, 256),
        "model.8.m.linear.bias": (256,),
        "model.8.m.tr.0.q.weight": (256, 256),
        "model.8.m.tr.0.v.weight": (256, 256),
        "model.8.m.tr.0.ma.in_proj_weight": (768, 256),
        "model.8.m.tr.0.ma.in_proj_bias": (768,),
        "model.8.m.tr.0.ma.out_proj.weight": (256, 256),
        "model.8.m.tr.0.ma.out_proj.bias": (256,),
        "model.8.m.tr.0.fc1.weight": (256, 256),
        "model.8.m.tr.0.fc2.weight": (256, 256),
        "model.8.cv3.conv.weight": (512, 512, 1, 1),
    },
    "yolov5s-fpn": {"model.19.m.0.weight": (255, 128, 1, 1), "model.19.m.2.weight": (255, 512, 1, 1)},
    "yolov5s-bifpn-concat": {"model.20.cv1.conv.weight": (128, 512, 1, 1)},
    "yolov5s-p2": {"model.31.m.0.weight": (255, 64, 1, 1), "model.21.m.0.cv1.conv.weight": (32, 32, 1, 1)},
}


@pytest.mark.parametrize("name", NAMES)
def test_state_has_the_published_names(name: str) -> None:
    state = build_empty(name).state_dict()
    for key, shape in NAMES[name].items():
        assert tuple(state[key].shape) == shape, key


def test_ghost_and_transformer_have_no_other_names() -> None:
    ghost, transformer = (
        build_empty("yolov5s-ghost").state_dict(),
        build_empty("yolov5s-transformer").state_dict(),
    )
    parts = {name.removeprefix("model.2.m.0.").rsplit(".", 2)[0] for name in ghost if ".2.m.0." in name[:14]}
    assert parts == {f"conv.{place}.{part}" for place in (0, 2) for part in ("cv1", "cv2")}
    layer = {name.removeprefix("model.8.m.tr.0.") for name in transformer if ".8.m.tr.0." in name}
    assert layer == {
        "q.weight", "k.weight", "v.weight", "fc1.weight", "fc2.weight", "ma.in_proj_weight",
        "ma.in_proj_bias", "ma.out_proj.weight", "ma.out_proj.bias",
    }  # fmt: skip
    heads = [name for name in transformer if name.startswith("model.24.")]
    assert sorted(heads) == sorted(
        ["model.24.anchors", *(f"model.24.m.{n}.{part}" for n in range(3) for part in ("weight", "bias"))]
    )

"""Published ``.pt`` files, made here with classes of the published names, and files that mean harm.

The classes exist while a file is written and not while it is read, as on a machine without YOLOv5.
"""

import argparse
import collections
import contextlib
import copy
import functools
import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from hvdyolo.cli import main
from hvdyolo.models.build import DetectionModel, build_model, load_model
from hvdyolo.models.published_weights import read_published, read_weights
from hvdyolo.utils.errors import DataError, UsageError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Couldn't retrieve source code", "ignore:.torch.jit.script. is deprecated"
)

SMALL = {
    "nc": 80,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "C3", [8]], [-1, 1, "Conv", [16, 3, 2]]],
    "head": [[-1, 1, "SPPF", [16, 5]], [[1, 3], 1, "Detect", ["nc", "anchors"]]],
}

# v5.0's stem and pooling, and three levels as published.
V5_0 = {
    "nc": 80,
    "depth_multiple": 0.33,
    "width_multiple": 0.125,
    "anchors": [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]],
    "backbone": [
        [-1, 1, "Focus", [64, 3]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 3, "C3", [128]],
        [-1, 1, "Conv", [256, 3, 2]],
        [-1, 9, "C3", [256]],
        [-1, 1, "Conv", [512, 3, 2]],
        [-1, 9, "C3", [512]],
        [-1, 1, "Conv", [1024, 3, 2]],
        [-1, 1, "SPP", [1024, [5, 9, 13]]],
        [-1, 3, "C3", [1024, False]],
    ],
    "head": [
        [-1, 1, "Conv", [512, 1, 1]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 6], 1, "Concat", [1]],
        [-1, 3, "C3", [512, False]],
        [-1, 1, "Conv", [256, 1, 1]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
        [-1, 3, "C3", [256, False]],
        [-1, 1, "Conv", [256, 3, 2]],
        [[-1, 14], 1, "Concat", [1]],
        [-1, 3, "C3", [512, False]],
        [-1, 1, "Conv", [512, 3, 2]],
        [[-1, 10], 1, "Concat", [1]],
        [-1, 3, "C3", [1024, False]],
        [[17, 20, 23], 1, "Detect", ["nc", "anchors"]],
    ],
}


def made(tmp_path: Path, values: dict[str, Any], classes: int = 2) -> DetectionModel:
    """A network with weights and statistics of its own."""
    file = tmp_path / "layout.yaml"
    file.write_text(yaml.safe_dump(values))
    torch.manual_seed(0)
    model = build_model(file, classes, names=[f"thing {number}" for number in range(classes)])
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
        if name.endswith("num_batches_tracked"):
            value.fill_(7)
    return model.eval()


class Foreign:
    """The published classes, as empty as the tensors allow: `models.yolo` and `models.common`."""

    def __init__(self) -> None:
        self.modules = {name: ModuleType(name) for name in ("models", "models.yolo", "models.common")}

    def cls(self, module: str, name: str) -> type[nn.Module]:
        home = self.modules[module]
        if not hasattr(home, name):
            setattr(home, name, type(name, (nn.Module,), {"__module__": module, "__qualname__": name}))
        return getattr(home, name)

    def copy(self, module: nn.Module) -> nn.Module:
        """``module`` as an object of the published class of the same name."""
        if type(module).__module__.startswith("torch."):
            new = copy.copy(module)
            new._modules = {}
        else:
            name = {"DetectionModel": "Model"}.get(type(module).__name__, type(module).__name__)
            home = "models.yolo" if name in ("Model", "Detect") else "models.common"
            new = self.cls(home, name)()
            new._parameters.update(module._parameters)
            new._buffers.update(module._buffers)
        for child, part in module.named_children():
            new._modules[child] = self.copy(part)
        return new

    def model(self, model: DetectionModel, **attributes: Any) -> nn.Module:
        new = self.copy(copy.deepcopy(model))
        values: dict[str, Any] = {
            "yaml": {**model.description, "ch": 3, "yaml_file": "layout.yaml"},
            "names": list(model.names),
            "stride": torch.tensor([float(stride) for stride in model.strides]),
            "inplace": True,
            "hyp": {"lr0": 0.01},
        }
        for name, value in {**values, **attributes}.items():
            setattr(new, name, value)
        return new


@contextlib.contextmanager
def foreign() -> Iterator[Foreign]:
    classes = Foreign()
    sys.modules.update(classes.modules)
    try:
        yield classes
    finally:
        for name in classes.modules:
            del sys.modules[name]


def stripped(path: Path, model: DetectionModel, **attributes: Any) -> Path:
    """A file as the published ones are: half precision, no optimizer, the average in place of the model."""
    with foreign() as classes:
        network = classes.model(model, **attributes).half()
        content = {"epoch": -1, "best_fitness": None, "model": network, "ema": None, "optimizer": None}
        torch.save(content, path)
    return path


def assert_same(found: DetectionModel, expected: DetectionModel, atol: float) -> None:
    state = expected.state_dict()
    assert list(found.state_dict()) == list(state)
    for name, value in found.state_dict().items():
        assert value.dtype == state[name].dtype, name
        assert torch.allclose(value.double(), state[name].double(), rtol=1e-3, atol=atol), name
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(found(image)[0], expected(image)[0], rtol=0.02, atol=0.05)


def test_a_stripped_file_in_half_precision(tmp_path: Path) -> None:
    model = made(tmp_path, SMALL)
    found = read_published(stripped(tmp_path / "a.pt", made(tmp_path, SMALL)))
    assert_same(found, model, 1e-3)
    assert found.names == ("thing 0", "thing 1")
    assert found.strides == (2, 4)
    assert found.anchors_pixels.tolist() == model.anchors_pixels.tolist()
    assert found.image_size == 640
    assert not found.training
    assert "models" not in sys.modules
    assert all(parameter.requires_grad for parameter in found.parameters())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("names", [["a", "b"], {0: "a", 1: "b"}])
def test_a_training_checkpoint_gives_its_moving_average(tmp_path: Path, zipped: bool, names: Any) -> None:
    average = made(tmp_path, SMALL)
    with foreign() as classes:
        optimizer = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1, momentum=0.9)
        content = {
            "epoch": 5,
            "best_fitness": np.float64(0.5),
            "fitness_per_class": np.ones(3, np.float32),
            "model": classes.model(made(tmp_path, {**SMALL, "anchors": [[1, 2, 3, 4], [5, 6, 7, 8]]})),
            "ema": classes.model(made(tmp_path, SMALL), names=names),
            "updates": 1234,
            "optimizer": optimizer.state_dict(),
            "opt": argparse.Namespace(imgsz=416, save_dir=Path("runs/exp"), weights="", freeze=[0]),
            "wandb_id": None,
            "date": "2026-11-25T12:00:00",
        }
        torch.save(content, tmp_path / "last.pt", _use_new_zipfile_serialization=zipped)
    found = read_published(tmp_path / "last.pt")
    for name, value in found.state_dict().items():
        assert value.equal(average.state_dict()[name]), name
    assert found.names == ("a", "b")
    assert found.image_size == 416


def test_options_as_a_mapping_and_sizes_that_do_not_fit(tmp_path: Path) -> None:
    for size, expected in ((1280, 1280), (641, 640), ("640", 640), (0, 640), (10**9, 640)):
        with foreign() as classes:
            content = {"model": classes.model(made(tmp_path, SMALL)), "opt": {"imgsz": size}}
            torch.save(content, tmp_path / "a.pt")
        assert read_published(tmp_path / "a.pt").image_size == expected


@pytest.mark.parametrize("zipped", [True, False])
def test_v5_0_with_focus_spp_and_a_second_buffer_of_anchors(tmp_path: Path, zipped: bool) -> None:
    model = made(tmp_path, V5_0, 3)
    with foreign() as classes:
        network = classes.model(made(tmp_path, V5_0, 3))
        network.model[-1].register_buffer("anchor_grid", torch.ones(3, 1, 3, 1, 1, 2))
        torch.save({"model": network.half()}, tmp_path / "old.pt", _use_new_zipfile_serialization=zipped)
    assert_same(read_published(tmp_path / "old.pt"), model, 1e-3)


@pytest.mark.parametrize(
    "name", ["yolov5n", "yolov5n6", "yolov5n-ghost", "yolov5n-transformer", "yolov5n-p2"]
)
def test_published_layouts(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 4)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.head.anchors *= 1.5  # as fitted to data: the buffer counts, not the description
    found = read_published(stripped(tmp_path / "a.pt", model))
    assert list(found.state_dict()) == list(state)
    assert torch.allclose(found.head.anchors, state[f"model.{len(model.model) - 1}.anchors"] * 1.5, rtol=1e-3)
    assert found.strides == model.strides
    assert found.image_size == (1280 if name == "yolov5n6" else 640)


def test_a_whole_model_without_a_checkpoint_around_it(tmp_path: Path) -> None:
    with foreign() as classes:
        torch.save(classes.model(made(tmp_path, SMALL)), tmp_path / "a.pt")
    assert read_published(tmp_path / "a.pt").names == ("thing 0", "thing 1")


def test_tensors_in_other_layouts(tmp_path: Path) -> None:
    model = made(tmp_path, SMALL)
    with foreign() as classes:
        network = classes.model(made(tmp_path, SMALL))
        network.to(memory_format=torch.channels_last)
        weight = network.model[2].conv.weight
        shared = torch.cat([torch.zeros(5), weight.data.flatten(), torch.zeros(3)])
        weight.data = shared[5:-3].view(weight.shape)  # a part of a longer storage
        torch.save({"model": network}, tmp_path / "a.pt")
    found = read_published(tmp_path / "a.pt").state_dict()
    for name, value in model.state_dict().items():
        assert found[name].equal(value), name
        assert found[name].is_contiguous()


def test_the_command_writes_safetensors_and_shows_them(tmp_path: Path, capsys: Any) -> None:
    source, target = (
        stripped(tmp_path / "yolov5.pt", made(tmp_path, SMALL)),
        tmp_path / "new" / "w.safetensors",
    )
    assert main(["weights", "import", str(source), str(target), "--image-size", "320"]) == 0
    assert "classes (2): thing 0, thing 1" in capsys.readouterr().out
    model = load_model(target)
    assert model.image_size == 320
    for name, value in read_weights(source).state_dict().items():
        assert value.equal(model.state_dict()[name])
    with safe_open(target, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["imported_from"] == "yolov5.pt"
    assert len(metadata["imported_sha256"]) == 64
    for path in (source, target):
        assert main(["weights", "show", str(path)]) == 0
        shown = capsys.readouterr().out
        assert "stride 2: anchors 10 x 13, 16 x 30" in shown
    assert "320 pixels" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["import", "none.pt", "w.safetensors"], "none.pt"),
        (["import", "a.safetensors", "a.pt"], "ending in .safetensors, not to a.pt"),
        (["show", "none.safetensors"], "none.safetensors"),
        (["look"], "invalid choice: 'look'"),
        ([], "required: action"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: Any) -> None:
    assert main(["weights", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_an_image_size_that_does_not_fit(tmp_path: Path, capsys: Any) -> None:
    source = stripped(tmp_path / "a.pt", made(tmp_path, SMALL))
    words = ["weights", "import", str(source), str(tmp_path / "w.safetensors"), "--image-size"]
    assert main([*words, "322"]) == 2
    assert "multiple of 4, not 322" in capsys.readouterr().err
    assert not (tmp_path / "w.safetensors").exists()


# What is wrong with the model, though nothing is harmful.


def refused(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as raised:
        read_published(path)
    message = str(raised.value)
    for word in [*words, path.name]:
        assert word in message, message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"yaml": None}, ["no description"]),
        ({"yaml": {**SMALL, "backbone": [[-1, 1, "BottleneckCSP", [8]]] * 3}}, ["row 0", "BottleneckCSP"]),
        ({"yaml": {**SMALL, "activation": "nn.ReLU()"}}, ["activation", "nn.ReLU()"]),
        (
            {"yaml": {**SMALL, "width_multiple": 2.0}},
            ["model.0.conv.weight", "(8, 3, 3, 3)", "(16, 3, 3, 3)"],
        ),
        ({"yaml": {**SMALL, "depth_multiple": 1e8}}, ["much larger network"]),
        (
            {"yaml": {**SMALL, "backbone": [[-1, 1, "Conv", [torch.zeros(1)]]]}},
            ["more than text and numbers"],
        ),
        ({"names": ["a", "b", "c"]}, ["model.4.m.0.weight", "shape"]),
        ({"yaml": {**SMALL, "activation": "\x1b[2J\n"}}, ["activation", "?[2J?"]),
        ({"stride": torch.ones(1000)}, ["strides are not (2, 4)"]),
        ({"names": ["a", "b\x1b[2J"]}, ["no class names"]),
        ({"yaml": {**SMALL, "width_multiple": 10**5000}}, ["more than text and numbers"]),
        ({"names": []}, ["no class names"]),
        ({"names": [1, 2]}, ["no class names"]),
        ({"names": {1: "a", 2: "b"}}, ["no class names"]),
        ({"stride": torch.tensor([8.0, 16.0])}, ["strides are not (2, 4)"]),
    ],
)
def test_models_that_do_not_fit(tmp_path: Path, attributes: dict[str, Any], words: list[str]) -> None:
    with foreign() as classes:
        torch.save({"model": classes.model(made(tmp_path, SMALL), **attributes)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", *words)


def test_differences_that_no_tensor_shows(tmp_path: Path) -> None:
    with foreign() as classes:
        network = classes.model(made(tmp_path, SMALL))
        network.model[0].act = nn.LeakyReLU(0.1)
        torch.save({"model": network}, tmp_path / "a.pt")
        network.model[0].act = nn.SiLU()
        network.model[0].bn.eps = 1e-5
        torch.save({"model": network}, tmp_path / "b.pt")
        network.model[0].bn.eps = 1e-3
        network.model[0].extra = nn.Parameter(torch.zeros(1))
        torch.save({"model": network}, tmp_path / "c.pt")
        del network.model[0].extra, network.model[0].bn
        torch.save({"model": network}, tmp_path / "d.pt")
    refused(tmp_path / "a.pt", "model.0.act is LeakyReLU")
    refused(tmp_path / "b.pt", "model.0.bn", "eps")
    refused(tmp_path / "c.pt", "'model.0.extra'", "not in its description")
    refused(tmp_path / "d.pt", "'model.0.bn.weight'", "missing")


@pytest.mark.parametrize("content", [{"weight": torch.zeros(2)}, [1, 2], 3, {"model": None}, {"model": {}}])
def test_files_without_a_model(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "holds no model of YOLOv5")


def test_torchscript_and_other_zip_files(tmp_path: Path) -> None:
    torch.jit.script(nn.Conv2d(1, 1, 1)).save(str(tmp_path / "a.pt"))
    refused(tmp_path / "a.pt", "TorchScript")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("weights.txt", "1 2 3")
    refused(tmp_path / "b.pt", "torch.save did not write")


# Files that mean harm. Each leaves a canary where it runs, which is shown by running it.


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def payloads(canary: Path) -> dict[str, Any]:
    command = f"touch {canary}"
    python = f"open({str(canary)!r}, 'w')"
    inner = io.BytesIO()
    torch.save(Call(os.system, command), inner)
    legacy = io.BytesIO()
    torch.save(Call(os.system, command), legacy, _use_new_zipfile_serialization=False)
    return {
        "os.system": Call(os.system, command),
        "builtins.eval": Call(eval, python),
        "builtins.exec": Call(exec, python),
        "subprocess": Call(subprocess.call, ["touch", str(canary)]),
        "call in a call": Call(dict, [("names", Call(eval, python))]),
        "torch.load inside": Call(torch.storage._load_from_bytes, inner.getvalue()),
        "old torch.load inside": Call(torch.storage._load_from_bytes, legacy.getvalue()),
        "pickle inside": Call(pickle.loads, pickle.dumps(Call(os.system, command))),
        "numpy's runstring": Call(np.testing.runstring, python, {}),
        "mapping with a factory": collections.defaultdict(list, {"a": Call(eval, python)}),
        "partial": Call(functools.partial, Call(eval, python)),
    }


PLACES = {
    "alone": lambda model, payload: payload,
    "as the model": lambda model, payload: {"model": payload},
    "beside the model": lambda model, payload: {"model": model, "optimizer": payload},
    "before the model": lambda model, payload: {"date": payload, "model": model},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", payloads(Path("/nowhere")))
def test_a_canary_is_never_run(tmp_path: Path, name: str, place: str, zipped: bool, capsys: Any) -> None:
    canary, path, target = tmp_path / "canary", tmp_path / "evil.pt", tmp_path / "w.safetensors"
    with foreign() as classes:
        content = PLACES[place](classes.model(made(tmp_path, SMALL)), payloads(canary)[name])
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        canary.unlink(missing_ok=True)
        assert main(["weights", "import", str(path), str(target)]) == 65
        assert not canary.exists()
        assert not target.exists()
        message = capsys.readouterr().err
        assert "evil.pt is refused" in message
        assert "nothing in it was run" in message
        # The file is as harmful as it means to be.
        with contextlib.suppress(Exception):
            torch.load(path, weights_only=False)
        assert canary.exists()


def test_the_script_ends_with_the_exit_codes_of_the_command(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[3] / "data_tools" / "import_weights.py"
    good, evil, canary = (
        stripped(tmp_path / "a.pt", made(tmp_path, SMALL)),
        tmp_path / "b.pt",
        tmp_path / "canary",
    )
    torch.save({"model": Call(os.system, f"touch {canary}")}, evil)
    for source, code in ((good, 0), (evil, 65), (tmp_path / "none.pt", 2)):
        target = tmp_path / f"{source.stem}.safetensors"
        ended = subprocess.run(
            [sys.executable, script, source, target], capture_output=True, text=True, timeout=120, check=False
        )
        assert ended.returncode == code, ended.stderr
        assert target.exists() == (code == 0)
        assert "Traceback" not in ended.stderr
        assert len(ended.stderr.splitlines()) == (1 if code else 0)
    assert not canary.exists()


def write_pickle(path: Path, content: bytes) -> Path:
    """A file of torch's zip format with this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
    return path


def named(module: str, name: str) -> bytes:
    """A pickle of protocol 4 that calls a function by a dotted name."""
    text = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
    return b"\x80\x04" + text + b"\x93\x8c\x02id\x85R."


@pytest.mark.parametrize(
    "content",
    [
        named("torch.nn.modules.module", "torch.os.system"),
        named("torch.nn.modules.module", "functools.partial"),
        named("models", "yolo.os.system"),
        named("models.common", "os"),
        named("torch.nn.modules.module", "_forward_unimplemented"),
        named("torch.hub", "load"),
        named("torch.jit", "load"),
        named("torch.serialization", "load"),
        named("numpy.f2py", "compile"),
        named("builtins", "getattr"),
        named("builtins", "bytearray"),
        named("copyreg", "_reconstructor"),
        b"cos\nsystem\n(S'id'\ntR.",
        b"cposix\nsystem\n(S'id'\ntR.",
    ],
)
def test_names_that_weights_have_no_use_for(tmp_path: Path, content: bytes) -> None:
    refused(write_pickle(tmp_path / "a.pt", content), "is refused: it asks for", "nothing in it was run")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"(S'id'\nios\nsystem\n.", "INST"),
        (b"(cmodels.yolo\nModel\no.", "OBJ"),
        (b"\x82\x01.", "EXT1"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "pickle"),
        (b"\x80\x05\x96" + struct.pack("<Q", 3) + b"abc.", "BYTEARRAY8"),
        (b"Nr\xff\xff\xff\x7f.", "memory"),
        (b"Np999999999999\n.", "memory"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc.", "ends early"),
        (b"\x8b" + struct.pack("<i", 1 << 30) + b"\x01.", "ends early"),
        # A tuple of a tuple twice, and so on, as the key of a mapping: hashing it takes for ever.
        (b"}N" + b"2\x86" * 60 + b"Ns.", "nests tuples"),
        (b"}N" + b"q\x01h\x01\x86" * 60 + b"Ns.", "nests tuples"),
        (b"}N\x94" + b"".join(b"h" + bytes([n]) + b"\x86\x94" for n in range(60)) + b"Ns.", "nests tuples"),
        (b"}(NN\x91" + b"2\x86" * 60 + b"Ns.", "nests tuples"),
        (b"", "ends early"),
        (b"N", "ends early"),
        (b"0.", "ends early"),
        (b"h\x00.", "cannot be followed"),
        (b"cmodels.yolo\nModel\n(dS'a'\nI1\nsb.", "cannot be followed"),
        (b"]\x94Q.", "refers to something"),
        (b"(lp0\ncmodels.yolo\nModel\na" * 2 + b".", ""),
    ],
)
def test_pickles_that_ask_for_too_much_or_are_cut(tmp_path: Path, content: bytes, word: str) -> None:
    refused(write_pickle(tmp_path / "a.pt", content), word)


def rewritten(path: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """The zip file with every entry changed by ``change(name, content)``."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))
    return path


def test_zip_bombs(tmp_path: Path) -> None:
    path = stripped(tmp_path / "a.pt", made(tmp_path, SMALL))
    refused(rewritten(path, lambda name, content: content, zipfile.ZIP_DEFLATED), "compressed")
    path = stripped(tmp_path / "b.pt", made(tmp_path, SMALL))
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            bomb = "/data/" in name and not name.endswith("_id")
            archive.writestr(
                name,
                bytes(1 << 20) if bomb else content,
                zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED,
            )
    refused(path, "compressed")


def test_storages_of_other_lengths(tmp_path: Path) -> None:
    path = stripped(tmp_path / "a.pt", made(tmp_path, SMALL))
    refused(
        rewritten(path, lambda name, content: content + (b"" if "/data/" not in name else b"\0")), "bytes"
    )
    path = stripped(tmp_path / "b.pt", made(tmp_path, SMALL))
    refused(rewritten(path, lambda name, content: content[:-1] if "/data/" in name else content), "bytes")


def with_tensor(tmp_path: Path, replace: Callable[[Tensor], Any], zipped: bool = True) -> Path:
    """A file whose first convolution's weight is ``replace(weight)``."""
    with foreign() as classes:
        network = classes.model(made(tmp_path, SMALL))
        network.model[0].conv._parameters["weight"] = replace(network.model[0].conv.weight)
        torch.save({"model": network}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    return tmp_path / "a.pt"


class Rebuilt:
    """Pickled as a tensor rebuilt with other numbers."""

    def __init__(self, tensor: Tensor, offset: Any, size: Any, stride: Any) -> None:
        self.arguments = (tensor.untyped_storage(), offset, size, stride)
        self.tensor = tensor

    def __reduce__(self) -> Any:
        from torch._utils import _rebuild_tensor_v2

        _, offset, size, stride = self.arguments
        storage = self.tensor.detach()._typed_storage()
        return _rebuild_tensor_v2, (storage, offset, size, stride, False, collections.OrderedDict())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("offset", "size", "stride", "word"),
    [
        (0, (8, 3, 3, 3), (0, 0, 0, 1 << 40), "does not lie within"),
        (1, (8, 3, 3, 3), (27, 9, 3, 1), "does not lie within"),
        (-1, (8, 3, 3, 3), (27, 9, 3, 1), "whole numbers"),
        (0, (8, 3, 3, 3), (27, 9, 3, -1), "whole numbers"),
        (0, (8, 3, 3, 3), (27, 9, 3), "whole numbers"),
        (0, (8, 3, 3, 3), (27.0, 9, 3, 1), "whole numbers"),
        (0, [8, 3, 3, 3], (27, 9, 3, 1), "whole numbers"),
        (0, (8, 3, 3, "3"), (27, 9, 3, 1), "whole numbers"),
        (0, (8, 3, 3, 1 << 40), (0, 0, 0, 0), "has shape"),
    ],
)
def test_tensors_outside_their_storage(
    tmp_path: Path, offset: Any, size: Any, stride: Any, word: str, zipped: bool
) -> None:
    refused(with_tensor(tmp_path, lambda weight: Rebuilt(weight, offset, size, stride), zipped), word)


def test_a_tensor_from_fewer_values_than_it_has(tmp_path: Path) -> None:
    replace = functools.partial(Rebuilt, offset=0, size=(8, 3, 3, 3), stride=(0, 0, 0, 0))
    refused(with_tensor(tmp_path, lambda weight: replace(torch.ones(1))), "does not lie within its 1 values")


def test_a_tensor_expanded_from_little(tmp_path: Path) -> None:
    """A network so wide that its tensors would fill the memory, each from one value."""
    wide = {**SMALL, "width_multiple": 4096.0}
    with foreign() as classes:
        with torch.device("meta"):
            file = tmp_path / "wide.yaml"
            file.write_text(yaml.safe_dump(wide))
            model = build_model(file, 2)
        network = classes.copy(model)
        for module in network.modules():
            for values in (module._parameters, module._buffers):
                for name, value in values.items():
                    if value is not None:
                        values[name] = Rebuilt(torch.ones(1), 0, tuple(value.shape), (0,) * value.ndim)
        network.yaml, network.names = model.description, ["a", "b"]
        torch.save({"model": network}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "too small for the tensors")


@pytest.mark.parametrize("value", [3, "text", torch.nn.SiLU(), (1, 2)])
def test_parameters_that_are_no_tensors(tmp_path: Path, value: Any) -> None:
    refused(with_tensor(tmp_path, lambda weight: value), "a tensor was expected")


def test_modules_that_hold_each_other(tmp_path: Path) -> None:
    with foreign() as classes:
        network = classes.model(made(tmp_path, SMALL))
        network._modules["self"] = network
        torch.save({"model": network}, tmp_path / "a.pt")
        doubled: nn.Module = classes.cls("models.common", "C3")()
        for _ in range(60):
            outer = classes.cls("models.common", "C3")()
            outer._modules.update(a=doubled, b=doubled)
            doubled = outer
        network = classes.model(made(tmp_path, SMALL))
        network._modules["doubled"] = doubled
        torch.save({"model": network}, tmp_path / "b.pt")
    refused(tmp_path / "a.pt", "hold each other")
    refused(tmp_path / "b.pt", "hold each other")


def test_descriptions_that_grow_when_they_are_printed(tmp_path: Path) -> None:
    rows: list[Any] = [1]
    for _ in range(60):
        rows = [rows, rows]
    with foreign() as classes:
        network = classes.model(made(tmp_path, SMALL), yaml={**SMALL, "backbone": rows})
        torch.save({"model": network}, tmp_path / "a.pt")
        network.yaml = {**SMALL, "backbone": [[[-1], 1, "Conv", [8]]] * 900}
        network.names = rows
        torch.save({"model": network}, tmp_path / "b.pt")
    refused(tmp_path / "a.pt", "too large")
    refused(tmp_path / "b.pt", "too large")


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_files(tmp_path: Path, zipped: bool) -> None:
    with foreign() as classes:
        content = {"model": classes.model(made(tmp_path, SMALL))}
        torch.save(content, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole.pt").read_bytes()
    path = tmp_path / "a.pt"
    for keep in [0, 1, 3, 4, 10, 30, 100, 1000, *range(2000, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:keep])
        refused(path)


@pytest.mark.parametrize(
    "content", [b"\x80\x02}q\x00.", b"{}", b"\0" * 64, b"model.0.conv", b"\x89HDF\r\n\x1a\n"]
)
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    refused(tmp_path / "a.pt", "no file of torch.save")


def test_a_flipped_bit_in_a_tensor_is_found(tmp_path: Path) -> None:
    path = stripped(tmp_path / "a.pt", made(tmp_path, SMALL))
    with zipfile.ZipFile(path) as archive:
        entry = max((e for e in archive.infolist() if "/data/" in e.filename), key=lambda e: e.file_size)
    raw = bytearray(path.read_bytes())
    raw[entry.header_offset + 200] ^= 1
    path.write_bytes(raw)
    refused(path, "checksum")


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    folder = tmp_path_factory.mktemp("whole")
    files = []
    for zipped in (True, False):
        with foreign() as classes:
            content = {"model": classes.model(made(folder, SMALL)), "opt": {"imgsz": 320}}
            torch.save(content, folder / "a.pt", _use_new_zipfile_serialization=zipped)
        files.append((folder / "a.pt").read_bytes())
    return folder / "damaged.pt", files


@given(st.data())
def test_any_damage_is_a_data_error_or_harmless(
    whole_files: tuple[Path, list[bytes]], data: st.DataObject
) -> None:
    path, files = whole_files
    raw = bytearray(data.draw(st.sampled_from(files)))
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, min(len(raw), 30_000) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    with contextlib.suppress(DataError):
        read_published(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        read_published(tmp_path / "nowhere.pt")


def test_no_global_of_the_file_is_imported(tmp_path: Path) -> None:
    """Not even where a module of that name exists and does something when it is imported."""
    path = stripped(tmp_path / "a.pt", made(tmp_path, SMALL))
    package = tmp_path / "path" / "models"
    package.mkdir(parents=True)
    for name in ("__init__", "yolo", "common"):
        (package / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    sys.path.insert(0, str(package.parent))
    try:
        read_published(path)
    finally:
        sys.path.remove(str(package.parent))
    assert not (tmp_path / "canary").exists()
    assert any(op.name == "GLOBAL" and "models.yolo" in arg for op, arg, _ in _operations(path))


def _operations(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        return list(pickletools.genops(archive.read(name)))

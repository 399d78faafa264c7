"""Weights files: all that is needed comes back, and nothing damaged does."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hvdyolo.models.build import DetectionModel, build_model, load_model, save_model
from hvdyolo.utils.errors import DataError, MismatchError, StorageError, UsageError


@pytest.fixture(scope="module")
def model() -> DetectionModel:
    torch.manual_seed(0)
    made = build_model("yolov5n", 2, names=["disc", "größeres Quadrat"])
    made.image_size = 320
    made.data_digest = "d1935e"
    made.head.anchors *= 1.25  # as fitted to data
    made(torch.rand(2, 3, 64, 64))  # running statistics of their own
    return made


@pytest.fixture
def path(model: DetectionModel, tmp_path: Path) -> Path:
    file = tmp_path / "new folder" / "best.safetensors"
    save_model(model, file)
    return file


def rewrite(path: Path, **changes: str) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, **changes})


def test_everything_comes_back(model: DetectionModel, path: Path) -> None:
    loaded = load_model(path)
    assert not loaded.training
    expected, found = model.state_dict(), loaded.state_dict()
    assert list(expected) == list(found)
    for name, value in expected.items():
        assert value.equal(found[name]), name
        assert value.dtype == found[name].dtype
    assert loaded.names == ("disc", "größeres Quadrat")
    assert (loaded.image_size, loaded.data_digest) == (320, "d1935e")
    assert loaded.strides == (8, 16, 32)
    assert torch.allclose(loaded.anchors_pixels[0, 0], torch.tensor([12.5, 16.25]))
    # With the anchors it has, which need not be those it was built with.
    anchors = model.anchors_pixels.flatten(1).tolist()
    assert loaded.description == {**model.description, "anchors": anchors}
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        model.eval()
        assert loaded(images)[0].equal(model(images)[0])
        model.train()


def test_a_loaded_model_learns(path: Path) -> None:
    loaded = load_model(path).train()
    loaded(torch.rand(2, 3, 64, 64))[0].sum().backward()
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_what_other_programs_can_read(model: DetectionModel, tmp_path: Path) -> None:
    file = tmp_path / "last.safetensors"
    save_model(model, file, {"epoch": "7"})
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["format_version"] == "1"
    assert metadata["epoch"] == "7"
    assert metadata["resampling"] == "triangle"
    assert metadata["image_size"] == "320"
    assert metadata["data_digest"] == "d1935e"
    assert json.loads(metadata["names"]) == ["disc", "größeres Quadrat"]
    assert json.loads(metadata["strides"]) == [8, 16, 32]
    assert json.loads(metadata["anchors"])[2][2] == [373 * 1.25, 326 * 1.25]
    assert json.loads(metadata["model_yaml"])["head"][-1] == [[17, 20, 23], 1, "Detect", ["nc", "anchors"]]


def test_channels_last_weights_are_saved(model: DetectionModel, tmp_path: Path) -> None:
    turned = build_model("yolov5n", 2).to(memory_format=torch.channels_last)
    save_model(turned, tmp_path / "turned.safetensors")
    loaded = load_model(tmp_path / "turned.safetensors")
    assert all(parameter.is_contiguous() for parameter in loaded.parameters())
    assert loaded.state_dict()["model.3.conv.weight"].equal(turned.state_dict()["model.3.conv.weight"])


def test_a_failed_save_leaves_the_old_file(model: DetectionModel, path: Path) -> None:
    (path.parent / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        save_model(model, path.parent / "file" / "best.safetensors")
    before = path.read_bytes()
    rows = model.description["backbone"]
    model.description["backbone"] = object()  # cannot be written as JSON
    try:
        with pytest.raises(TypeError):
            save_model(model, path)
    finally:
        model.description["backbone"] = rows
    assert path.read_bytes() == before
    assert {entry.name for entry in path.parent.iterdir()} == {"best.safetensors", "file"}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no weights file .*nowhere"):
        load_model(tmp_path / "nowhere.safetensors")


def test_a_file_to_be_imported_is_told_from_damage(tmp_path: Path) -> None:
    (tmp_path / "yolov5s.pt").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"hvdyolo weights import .*yolov5s\.pt"):
        load_model(tmp_path / "yolov5s.pt")


@pytest.mark.parametrize("keep", [0, 5, 100, 50_000, -1])
def test_a_cut_file_is_damaged(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"best\.safetensors"):
        load_model(path)


@pytest.mark.parametrize("content", [b"\x80\x02}q\x00.", b"PK\x03\x04 something else", b"\0" * 64])
def test_other_files_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"best\.safetensors"):
        load_model(path)


def test_safetensors_of_another_program(tmp_path: Path) -> None:
    file = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, file)
    with pytest.raises(DataError, match=r"not a weights file of hvdyolo.*format_version"):
        load_model(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_yaml": "{"},
        {"model_yaml": "[]"},
        {"model_yaml": "{}"},
        {"names": '["one"]'},
        {"names": "[]"},
        {"names": "3"},
        {"image_size": "large"},
    ],
)
def test_metadata_that_does_not_fit(path: Path, changes: dict[str, str]) -> None:
    rewrite(path, **changes)
    with pytest.raises(DataError, match=r"best\.safetensors") as raised:
        load_model(path)
    assert "\n" not in str(raised.value)


def test_missing_tensor(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors["model.24.m.1.bias"]
    save_file(tensors, path, metadata)
    with pytest.raises(DataError, match=r"model\.24\.m\.1\.bias"):
        load_model(path)


def test_another_version_is_told_apart_from_damage(path: Path) -> None:
    rewrite(path, format_version="2")
    with pytest.raises(MismatchError, match=r"format 2, this program reads 1"):
        load_model(path)

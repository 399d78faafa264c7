"""Checkpoints: directories that are complete or absent, hold no pickle, and prove their content.

``checkpoints/step-00012000/`` holds ``model``, ``ema`` and ``optimizer.safetensors``, ``state.json`` and
``MANIFEST.json`` with the SHA-256 of each. It is built under a temporary name, synced and renamed;
``LATEST``, which names the one to go on from, is replaced last. docs/checkpoints.md is the specification.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from hvdyolo.engine.early_stopping import BestScore
from hvdyolo.engine.ema import MovingAverage
from hvdyolo.engine.tally import EpochSums
from hvdyolo.utils.errors import DataError, MismatchError
from hvdyolo.utils.files import storage_errors, sync_directory, write_atomically, write_json

FORMAT_VERSION = 1
LATEST = "LATEST"
_MANIFEST = "MANIFEST.json"
_STATE = "state.json"


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands, besides its tensors.

    Attributes:
        step: optimizer steps done.
        epoch: epoch of the next batch.
        batch: the next batch within that epoch; behind its last one if only its evaluation is left.
        best_ap: best COCO AP of any evaluation, -1 before the first.
        ema_updates: updates of the moving average.
        dataset: identity of the packed data.
        config: every setting, ``section.key`` to value.
        best_epoch: epochs that were done at the evaluation with ``best_ap``.
        evaluated_epoch: epochs that were done at the last evaluation.
        anchors: what was found of the anchors before the first epoch, for `derived.json`; ``None``: nothing.
        class_scores: the latest evaluations for image weighting: epochs that were done, and each class's AP.
        scaler: of the loss in fp16, as torch's ``GradScaler`` gives its state; empty where there is none.
        network: what `model.description` said; ``None``: a checkpoint from before it was kept.
        weights: what was taken from `model.weights`, for `derived.json`; ``None``: nothing.
        so_far: what was counted of ``epoch``, if it has begun.
    """

    step: int
    epoch: int
    batch: int
    best_ap: float
    ema_updates: int
    dataset: str
    config: dict[str, Any]
    best_epoch: int = 0
    evaluated_epoch: int = 0
    anchors: dict[str, Any] | None = None
    class_scores: Sequence[tuple[int, Sequence[float]]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] | None = None
    weights: dict[str, Any] | None = None
    so_far: EpochSums = field(default_factory=EpochSums)

    @property
    def best_score(self) -> BestScore:
        """What early stopping goes by."""
        return BestScore(self.best_ap, self.best_epoch, self.evaluated_epoch)


def save_checkpoint(
    directory: Path,
    state: TrainingState,
    model: nn.Module,
    average: MovingAverage,
    optimizer: Optimizer,
    keep: int,
) -> Path:
    """Write a checkpoint into ``directory`` and drop all but the ``keep`` newest. One rank calls it.

    Those of later steps go too: training went on from an older one, and they are not of its past.

    Raises:
        StorageError: it cannot be written; the one before it is untouched.
    """
    final = directory / f"step-{state.step:08d}"
    building = directory / f".{final.name}.building"
    with storage_errors(final):
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        _save_tensors(model.state_dict(), building / "model.safetensors")
        _save_tensors(average.model.state_dict(), building / "ema.safetensors")
        _save_tensors(_optimizer_tensors(optimizer, model), building / "optimizer.safetensors")
        write_json(building / _STATE, {"format_version": FORMAT_VERSION, **dataclasses.asdict(state)})
        digests = {path.name: _sha256(path) for path in sorted(building.iterdir())}
        write_json(building / _MANIFEST, {"sha256": digests})
        if final.exists():  # this step was saved before: a stop right after a resume
            # Not deleted: until the new one has its name, it may be the only one.
            shutil.rmtree(_aside(final), ignore_errors=True)
            os.rename(final, _aside(final))
        os.rename(building, final)
        sync_directory(directory)
    write_atomically(directory / LATEST, final.name + "\n")
    verify_checkpoint(final)
    _drop_old(directory, final, keep)
    return final


def latest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that ``LATEST`` names, else the newest that verifies; ``None`` if there is none at all.

    Raises:
        DataError: there are checkpoints and none of them verifies.
    """
    candidates = sorted(directory.glob("step-*"), reverse=True)
    with contextlib.suppress(OSError, ValueError):  # no such file, or none that it names
        named = directory / (directory / LATEST).read_text().strip()
        candidates.insert(0, candidates.pop(candidates.index(named)))
    failure: DataError | None = None
    for candidate in candidates:
        try:
            verify_checkpoint(candidate)
            return candidate
        except DataError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return None


def verify_checkpoint(path: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        DataError: a file is missing or differs.
    """
    try:
        digests = json.loads((path / _MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path} is not a complete checkpoint: its {_MANIFEST} is unreadable.") from None
    for name, digest in digests.items():
        if not (path / name).is_file() or _sha256(path / name) != digest:
            raise DataError(f"{path / name} is missing or damaged; resume from another checkpoint.")


def read_state(path: Path) -> TrainingState:
    """The state of a checkpoint.

    Raises:
        MismatchError: it was written by another version of the format.
    """
    values = json.loads((path / _STATE).read_text())
    version = values.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise MismatchError(f"{path} has checkpoint format {version}, this program reads {FORMAT_VERSION}.")
    # Before patience came to be, nothing was noted of when AP was best: it is counted from here on.
    values.setdefault("best_epoch", values["epoch"])
    values.setdefault("evaluated_epoch", values["epoch"])
    # Nor was anything kept of a begun epoch: its entry will be of its rest.
    so_far = EpochSums(**values.pop("so_far", {}))
    return TrainingState(so_far=so_far, **values)


def load_tensors(path: Path, model: nn.Module, average: MovingAverage, optimizer: Optimizer) -> None:
    """Load the tensors of a checkpoint into ``model``, ``average`` and ``optimizer``."""
    model.load_state_dict(load_file(path / "model.safetensors"))
    average.model.load_state_dict(load_file(path / "ema.safetensors"))
    _load_optimizer(optimizer, model, load_file(path / "optimizer.safetensors"))


def _load_optimizer(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what :func:`_optimizer_tensors` gave.

    By torch's own loading: it knows which slots, such as AdamW's count of steps, stay where the CPU is.
    """
    parameters = dict(model.named_parameters())
    learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {parameter: number for number, parameter in enumerate(learned)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        state.setdefault(numbers[parameters[name]], {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as ``parameter name/slot`` → tensor.

    By name, not by torch's running number: groups may be arranged differently when it is read.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if value is not None:  # SGD keeps None until a parameter has a momentum
                tensors[f"{name}/{slot}"] = torch.as_tensor(value)
    return tensors


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    # safetensors refuses tensors that are not contiguous.
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path)
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(8 << 20):
            digest.update(block)
    return digest.hexdigest()


def _drop_old(directory: Path, newest: Path, keep: int) -> None:
    """Drop all but ``newest`` and those before it, ``keep`` in all."""
    found = sorted(directory.glob("step-*"))
    past = [path for path in found if path.suffix == "" and path <= newest]
    for path in found:
        if path not in past[-keep:]:
            shutil.rmtree(path, ignore_errors=True)


def _aside(checkpoint: Path) -> Path:
    """Where one waits while another takes its name; a checkpoint all the same."""
    return checkpoint.with_suffix(".replaced")

"""A run directory: what is in it and who may use it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hvdyolo.config import Config
from hvdyolo.engine.checkpoint import TrainingState, latest_checkpoint, read_state, verify_checkpoint
from hvdyolo.models.description import read_description
from hvdyolo.settings import config_values
from hvdyolo.utils.errors import MismatchError, UsageError

# Settings that do not change what is learnt, so a resumed run may choose them anew.
_FREE_SECTIONS = ("evaluation", "detect", "distributed", "watchdog")
_FREE_KEYS = (
    "loader.workers",
    "loader.prefetch",
    "loader.verify",
    "loader.max_pixels",
    "loader.stage",
    # A run that ended at a damaged sample can go on without it: up to there both policies learn the same.
    "loader.damaged",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    # Of a run that stopped early, more patience is a way to go on.
    "train.patience",
)


def starts_afresh(run: Path, resume: str) -> bool:
    """Whether there is nothing that :func:`choose_checkpoint` could find."""
    return resume in ("auto", "never") and not any((run / "checkpoints").glob("step-*"))


def choose_checkpoint(run: Path, resume: str) -> Path | None:
    """The checkpoint that ``--resume`` means; ``None`` starts afresh.

    Args:
        run: the run directory.
        resume: ``auto`` (the newest, if there is any), ``never`` or the path of a checkpoint.

    Raises:
        MismatchError: ``never``, and the run has checkpoints that would be lost.
        UsageError: the path is not a checkpoint.
        DataError: no checkpoint verifies.
    """
    checkpoints = run / "checkpoints"
    if resume == "auto":
        return latest_checkpoint(checkpoints)
    if resume == "never":
        if any(checkpoints.glob("step-*")):
            raise MismatchError(
                f"{run} already holds checkpoints; give another --run, or --resume auto to go on."
            )
        return None
    path = Path(resume)
    if not path.is_dir():
        raise UsageError(
            f"--resume takes auto, never or the directory of a checkpoint, and '{resume}' is none of them."
        )
    verify_checkpoint(path)
    return path


def read_matching_state(path: Path, config: Config, dataset: str) -> TrainingState:
    """The state of a checkpoint, if it belongs to this configuration, network and dataset.

    Raises:
        MismatchError: it does not; names the differences.
        UsageError: there is no network of this description.
    """
    state = read_state(path)
    if state.dataset != dataset:
        raise MismatchError(
            f"{path} was trained on dataset {state.dataset} and --data is dataset {dataset}; "
            "give that data, or another --run."
        )
    # What was trained before a setting came to be was trained as its default now says.
    there = config_values(Config()) | state.config
    differences = [
        f"{key}: {there[key]!r} there, {value!r} here"
        for key, value in config_values(config).items()
        if not _is_free(key) and there[key] != value
    ]
    if differences:
        raise MismatchError(
            f"{path} belongs to another configuration ({'; '.join(differences)}); "
            "give the same settings, or another --run."
        )
    network = describe_network(config)
    # Of a checkpoint that does not tell, the description is taken to be what it was.
    there, here = _parts(state.network or network), _parts(network)
    changed = [part for part in there | here if there.get(part) != here.get(part)]
    if changed:
        was, became = there.get(changed[0], "nothing"), here.get(changed[0], "nothing")
        raise MismatchError(
            f"{path} belongs to another network than {config.model.description} now describes "
            f"({changed[0]}: {was} there, {became} here); give the same description, or another --run."
        )
    return replace(state, network=network)


def describe_network(config: Config) -> dict[str, Any]:
    """What checkpoints keep of a description, whose file may be edited while its name stays.

    Raises:
        UsageError: there is none.
    """
    # The number of classes is the data's, whatever the file says.
    return {key: value for key, value in read_description(config.model.description).items() if key != "nc"}


def _parts(network: Mapping[str, Any]) -> dict[str, Any]:
    """A description as it is told where it differs, rows numbered through."""
    rows = [*network["backbone"], *network["head"]]
    return {
        **{key: value for key, value in network.items() if key not in ("backbone", "head")},
        "rows of the backbone": len(network["backbone"]),
        **{f"row {number}": row for number, row in enumerate(rows)},
    }


def _is_free(key: str) -> bool:
    return key in _FREE_KEYS or key.split(".")[0] in _FREE_SECTIONS

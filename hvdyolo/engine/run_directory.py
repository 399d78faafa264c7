"""A run directory: what is in it and who may use it."""

from pathlib import Path

from hvdyolo.config import Config
from hvdyolo.engine.checkpoint import TrainingState, latest_checkpoint, read_state, verify_checkpoint
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
    """The state of a checkpoint, if it belongs to this configuration and dataset.

    Raises:
        MismatchError: it does not; names the differences.
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
    return state


def _is_free(key: str) -> bool:
    return key in _FREE_KEYS or key.split(".")[0] in _FREE_SECTIONS

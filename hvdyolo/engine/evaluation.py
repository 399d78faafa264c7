"""``hvdyolo eval``: weights against a packed split."""

import dataclasses
import time
from pathlib import Path

from hvdyolo.config import Config
from hvdyolo.data.manifest import read_manifest
from hvdyolo.data.reader import PackedSplit
from hvdyolo.data.staging import local_shards
from hvdyolo.data.worker_count import with_workers
from hvdyolo.engine.agreement import on_every_rank, on_first_rank
from hvdyolo.engine.evaluator import evaluate
from hvdyolo.engine.input_size import check_image_size
from hvdyolo.engine.job import Job, open_job
from hvdyolo.metrics.average_precision import CocoScores
from hvdyolo.models.build import DetectionModel, load_model
from hvdyolo.utils.errors import MismatchError, UsageError
from hvdyolo.utils.files import write_json

_TITLES = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "small": "ap_small",
    "medium": "ap_medium",
    "large": "ap_large",
}


def evaluate_weights(config: Config, weights: Path, data: Path, split: str, report: Path | None) -> None:
    """Print COCO's average precision of ``weights`` on ``split``, and write it to ``report``."""
    with open_job(config) as job:
        started = time.monotonic()
        model, packed = on_every_rank(job.comm, "check", lambda: _load(config, weights, data, split, job))
        loading = with_workers(config.loader, job.cores)
        scores = evaluate(model, packed, job.comm, job.device, config.evaluation, loading, job.beacon)
        seconds = time.monotonic() - started

        def tell() -> None:
            if report is not None:
                write_json(report, {**dataclasses.asdict(scores), "seconds": round(seconds, 3)})
            print(score_table(scores, f"{weights} on {split} of {data}, {seconds:.1f} s"))

        on_first_rank(job.comm, "tell", tell)


def score_table(scores: CocoScores, title: str) -> str:
    """The scores as a table, the mean over classes first."""
    width = max([len("all classes"), *map(len, scores.classes)])
    lines = [
        title,
        f"{scores.images} images, {scores.instances} boxes",
        f"{'':{width}}  " + " ".join(f"{title:>6}" for title in _TITLES),
        f"{'all classes':{width}}  " + " ".join(_cell(getattr(scores, name)) for name in _TITLES.values()),
    ]
    for name, values in scores.classes.items():
        lines.append(f"{name:{width}}  {_cell(values['ap'])} {_cell(values['ap50'])}")
    return "\n".join(lines)


def _cell(value: float) -> str:
    """-1 is COCO's word for nothing to score."""
    return f"{value:6.3f}" if value >= 0 else "     -"


def _load(
    config: Config, weights: Path, data: Path, split: str, job: Job
) -> tuple[DetectionModel, PackedSplit]:
    manifest = read_manifest(data)
    if split not in manifest.splits:
        raise UsageError(f"{data} has no split '{split}'; it has {', '.join(manifest.splits)}.")
    model = load_model(weights)
    if model.names != manifest.names:
        raise MismatchError(
            f"{weights} knows the classes {', '.join(model.names)} and {data} has "
            f"{', '.join(manifest.names)}; evaluate on data with the same classes."
        )
    if config.evaluation.image_size is not None:
        check_image_size("evaluation.image_size", config.evaluation.image_size, model)
    shards = local_shards(data, (split,), config.loader.stage, lambda: job.beacon.beat("stage", 0))
    return model, PackedSplit(data, split, verify=config.loader.verify, shards=shards)

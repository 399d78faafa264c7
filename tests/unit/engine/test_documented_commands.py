"""The commands for hundreds of GPUs in docs/training.md give what its table says."""

import shlex
from pathlib import Path

import pytest

from hvdyolo.config import Config
from hvdyolo.engine.derived import doubts
from hvdyolo.engine.schedule import TrainingSchedule
from hvdyolo.settings import read_config

PAGE = Path(__file__).parents[3] / "docs" / "training.md"
COCO_IMAGES = 118_287


def documented(optimizer: str) -> Config:
    """What is said to be set for ``optimizer``."""
    section = PAGE.read_text().split("### What to set")[1].split("###")[0]
    commands = section.split("```")[1].replace("\\\n", " ").splitlines()
    (command,) = [line for line in commands if f"--optimizer.name {optimizer}" in line]
    words = shlex.split(command)
    assert words[0] == "sbatch"
    after = words[words.index("slurm/train.sh") + 1 :]
    options = dict(zip(after[::2], after[1::2], strict=True))
    for command_line in ("--data", "--run"):
        del options[command_line]
    recipe = options.pop("--config")
    return read_config(recipe, [word for option in options.items() for word in option])


@pytest.mark.parametrize(
    ("optimizer", "batch", "lr", "decay", "clip", "warmup"),
    [
        ("lars", 4096, 0.01, 0.032, 640, 696),
        ("adamw", 4096, 0.008, 0.4, 640, 696),
        # 232 batches an epoch, 3 epochs times the root of 8.
        ("sgd", 512, 0.01, 0.004, 80, round(3 * 8**0.5 * 232)),
    ],
)
def test_they_are_accepted_and_resolve_to_the_table(
    optimizer: str, batch: int, lr: float, decay: float, clip: float, warmup: int
) -> None:
    config = documented(optimizer)
    assert (config.train.batch, config.train.precision) == (batch, "bf16")
    assert config.train.sync_batch_norm == (batch // 256 < 8)
    batches = -(-COCO_IMAGES // batch)
    schedule = TrainingSchedule(config.optimizer, config.train.epochs, batches, batch)
    found = schedule.resolved
    assert (found.lr, found.weight_decay, found.clip_norm) == pytest.approx((lr, decay, clip))
    assert schedule.warmup_batches == warmup
    derived = {"samples": COCO_IMAGES, "batches_per_epoch": batches, "warmup_batches": warmup}
    assert list(doubts(config, derived)) == []

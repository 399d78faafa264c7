"""What the optimizer's settings become for batches above the nominal one.

docs/training.md derives the rule and names its sources. Behind it is that the loss of a step is the sum over
its images, so gradients grow with the batch by themselves.
"""

import math
from dataclasses import replace

from hvdyolo.config import OptimizerConfig

LONGEST_WARMUP = 0.2
"""Of a run, if its batches are large: what is set for a nominal batch may grow to so much."""


def settings_for_batch(
    settings: OptimizerConfig, batch: int, accumulation: int, epochs: int
) -> OptimizerConfig:
    """``settings``, which are for steps of ``nominal_batch`` images, as they hold for larger ones.

    Up to a nominal batch all but the decay stay as they are; that of gradients which are sums follows the
    images of a step exactly, for accumulation cannot always meet the nominal batch.

    Args:
        settings: as configured.
        batch: global batch, images.
        accumulation: batches a step.
        epochs: of the run.
    """
    growth = max(batch / settings.nominal_batch, 1.0)
    root = math.sqrt(growth)
    # Its steps have the length of the rate: unlike SGD's they do not grow with the gradient by themselves.
    adamw = settings.name == "adamw"
    return replace(
        settings,
        lr=settings.lr * root if adamw else settings.lr,
        trust_coefficient=settings.trust_coefficient * root,
        weight_decay=(
            settings.weight_decay * root
            if adamw
            else settings.weight_decay * (batch * accumulation) / settings.nominal_batch
        ),
        clip_norm=settings.clip_norm * growth,
        warmup_epochs=min(
            settings.warmup_epochs * root, max(settings.warmup_epochs, LONGEST_WARMUP * epochs)
        ),
        warmup_bias_lr=0.0 if adamw else settings.warmup_bias_lr / growth,
        ema_decay=settings.ema_decay**growth,
        ema_ramp=settings.ema_ramp / growth,
    )

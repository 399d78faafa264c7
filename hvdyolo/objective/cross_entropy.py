"""Binary cross entropy of logits, plain or focal."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

_ALPHA = 0.25  # weight of positives in the focal loss; negatives have the rest


def binary_cross_entropies(logits: Tensor, targets: Tensor, positive: float, focal_gamma: float) -> Tensor:
    """Element by element.

    The focal loss (arXiv 1708.02002) multiplies each by alpha_t * (1 - p_t)^gamma. Targets between 0 and 1
    have p_t and alpha_t between those of the two.

    Args:
        logits: of any shape.
        targets: of the same, 0..1.
        positive: weight of positive targets in the cross entropy.
        focal_gamma: 0 is plain, without alpha too.
    """
    # Filled on the device: a number that is copied there would have to be waited for.
    weight = None if positive == 1 else logits.new_full((), positive)
    losses = binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=weight)
    return losses if focal_gamma == 0 else losses * _focus(logits, targets, focal_gamma)


def _focus(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    probabilities = logits.sigmoid()
    alpha = targets * _ALPHA + (1 - targets) * (1 - _ALPHA)
    missed = targets * (1 - probabilities) + (1 - targets) * probabilities  # 1 - p_t
    # It rounds to 0 for the best predictions, where powers below 1 have no finite slope.
    return alpha * missed.clamp_min(torch.finfo(missed.dtype).tiny) ** gamma

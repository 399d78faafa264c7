"""Folding batch norm into the convolution before it: fewer passes over memory at inference."""

import copy

import torch
from torch import nn

from hvdyolo.models.blocks import Conv
from hvdyolo.models.build import DetectionModel


def fuse_batch_norms(model: DetectionModel) -> DetectionModel:
    """A copy of ``model`` for inference whose convolutions include their batch norms."""
    fused = copy.deepcopy(model).eval()
    for module in fused.modules():
        if isinstance(module, Conv) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = _fold(module.conv, module.bn)
            module.bn = nn.Identity()
    return fused.requires_grad_(False)


@torch.no_grad()
def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    folded = copy.deepcopy(convolution)
    folded.weight.copy_(convolution.weight * scale[:, None, None, None])
    folded.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
    return folded

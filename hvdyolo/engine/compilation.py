"""Faster networks in training: compiled by torch, or replayed as CUDA graphs.

Both change how the network is called and nothing else: parameters keep their objects and names, and the
moving average, which is evaluated and saved, is a plain network.
"""

import os
import shutil

import torch

from hvdyolo.config import TrainConfig
from hvdyolo.engine.precision import Precision, reduced_precision
from hvdyolo.models.build import DetectionModel
from hvdyolo.ops.tensor_lists import copies_of, copy_tensors
from hvdyolo.utils.errors import UsageError


def check_compilation(settings: TrainConfig, device: torch.device, *, several_sizes: bool) -> None:
    """See that this rank can do what ``settings`` ask for.

    Raises:
        UsageError: there is no compiler, no GPU, more than one size of the input for a graph, or norms that
            wait for other ranks in the middle of one.
    """
    for name in ("compile", "cuda_graphs"):
        if getattr(settings, name) and settings.sync_batch_norm:
            raise UsageError(
                f"train.{name} and train.sync_batch_norm exclude each other; leave one of them out."
            )
    if settings.compile:
        compiler = os.environ.get("CXX", "g++")  # as torch looks for it
        if shutil.which(compiler) is None:
            raise UsageError(
                f"train.compile needs a C++ compiler, and there is no {compiler} on this host; name one by "
                "the variable CXX, or leave the setting out."
            )
    if settings.cuda_graphs:
        if device.type != "cuda":
            raise UsageError(f"train.cuda_graphs needs a GPU, not {device.type}; leave the setting out.")
        if several_sizes:
            raise UsageError("train.cuda_graphs needs one size of the input; set augment.multi_scale to 0.")


def compile_network(model: DetectionModel, settings: TrainConfig, *, several_sizes: bool) -> None:
    """Let torch compile ``model`` in place, at its first call; with CUDA graphs if both are set."""
    model.compile(
        mode="reduce-overhead" if settings.cuda_graphs else "default",
        # One network a size would take a minute each; torch makes one for all sizes when it meets the second.
        dynamic=None if several_sizes else False,
    )


def record_network(model: DetectionModel, images: int, size: int, precision: Precision) -> None:
    """Make ``model`` replay CUDA graphs in training, for batches of ``images`` of one ``size``.

    What other threads ask of the GPU meanwhile may end the recording with an error: it comes before loading.
    """
    parameter = next(model.parameters())
    batch = torch.zeros(images, 3, size, size, dtype=parameter.dtype, device=parameter.device)
    model.train()
    buffers = copies_of(list(model.buffers()))
    # Weights that were cast outside would be stale in the graph.
    with reduced_precision(precision, parameter.device, keep_casts=False):
        torch.cuda.make_graphed_callables(model, (batch.contiguous(memory_format=torch.channels_last),))
    # Recording runs the network some times, and batch norm counted them.
    copy_tensors(model.buffers(), buffers)

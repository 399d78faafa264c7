"""Batch norm over the images of all ranks, on any device.

Horovod's own works on GPUs alone and has no converter; torch's needs torch.distributed. With S images on
all ranks together this computes what one process does with a batch of S, whatever each rank has of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from hvdyolo.distributed.communicator import Communicator
from hvdyolo.utils.errors import UsageError

Sum = Callable[[str, Tensor], Tensor]
"""Sums a tensor over ranks; every rank gives the same name."""


def convert_sync_batch_norm(model: nn.Module, comm: Communicator) -> int:
    """Make every 2d batch norm in ``model`` look at the images of all ranks when it trains; returns how many.

    Parameters and buffers stay the same objects under the same names: optimizers, checkpoints and weights
    files do not notice. The model can no longer be copied, because its norms hold ``comm``. One process
    has all images already, and keeps the norms it has.

    Raises:
        UsageError: a batch norm is of another kind, whose results would go on depending on the ranks; the
            model is as it was.
    """
    if comm.world.size == 1:
        return 0
    norms = []
    # A norm that is used in two places has to be replaced in both.
    for path, module in model.named_modules(remove_duplicate=False):
        # A class that is made from it may compute something else.
        if type(module) is nn.BatchNorm2d and path:
            norms.append((path, module))
        elif isinstance(module, _BatchNorm):
            raise UsageError(
                f"{path or 'The model'} is a {type(module).__name__}, and only torch's BatchNorm2d, inside a "
                "model, can look at the images of all ranks; do without batch norm over ranks here."
            )
    for path, norm in norms:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, SyncBatchNorm2d(norm, path, comm.sum))
    return len(norms)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """``norm``, with the statistics of all ranks' images in training.

    Each costs one small sum over ranks forward and one backward. Both wait for the other ranks, so all
    must come through their norms in the same order. Gradients of the reduction that is under way then wait
    for nobody, so the two cannot hold each other up.
    """

    def __init__(self, norm: nn.BatchNorm2d, name: str, sum_over_ranks: Sum) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
        )
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)
        self._name = name
        self._sum = sum_over_ranks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        x = _summable(x)
        moments = self._moments(x)
        if self.track_running_stats:
            self._track(moments)
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if not self.affine:
            weight = x.new_ones(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
            bias = torch.zeros_like(weight)
        return _Normalise.apply(x, weight, bias, moments, self.eps, self._sum_gradients)  # type: ignore[no-any-return, no-untyped-call]

    @torch.no_grad()
    def _moments(self, x: Tensor) -> "_Moments":
        """Mean and variance of each channel over all ranks."""
        # Torch's own statistics of a batch: `var_mean` takes fifty times as long on a CPU.
        # Its precision is that of the running statistics it is given, which momentum 0 leaves alone.
        precise = torch.promote_types(x.dtype, torch.float32)
        unused = x.new_zeros(x.shape[1], dtype=precise)
        mean, variance = torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)
        mean, variance = mean.double(), variance.double()
        count = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float64)
        # In double precision the squares of the means cancel without loss, and sums can be sent as they are.
        own = torch.cat([count, count * mean, count * (variance + mean.square())])
        whole = self._sum(f"{self._name}: moments", own)
        count, total, squares = torch.split(whole, [1, len(mean), len(mean)])
        mean = total / count
        return _Moments(count, mean, (squares / count - mean.square()).clamp_min(0))

    @torch.no_grad()
    def _track(self, moments: "_Moments") -> None:
        """Move the running statistics by this batch, the variance without bias, as torch does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        unbiased = moments.variance * (moments.count / (moments.count - 1))
        self.num_batches_tracked.add_(1)
        for running, value in ((self.running_mean, moments.mean), (self.running_var, unbiased)):
            if self.momentum is None:  # then they are the means over all batches so far
                share = self.num_batches_tracked.to(running.dtype).reciprocal()
                running.lerp_(value.to(running.dtype), share)
            else:
                running.lerp_(value.to(running.dtype), self.momentum)

    def _sum_gradients(self, sums: Tensor) -> Tensor:
        return self._sum(f"{self._name}: gradients", sums)


def _summable(tensor: Tensor) -> Tensor:
    """``tensor`` in a layout whose sums are right.

    On GPUs torch adds half precision up in half precision, unless channels are last: 204,800 values of a
    channel were off by 0.4 %.
    """
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.is_cuda else tensor


@dataclass(frozen=True)
class _Moments:
    """Over all ranks, in double precision.

    Attributes:
        count: (1,) values a channel.
        mean: (C,).
        variance: (C,), with bias.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor


class _Normalise(torch.autograd.Function):
    """Normalisation by given moments, and the gradient that knows how they come from all ranks' inputs."""

    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        moments: _Moments,
        eps: float,
        sum_over_ranks: Callable[[Tensor], Tensor],
    ) -> Tensor:
        mean, variance = moments.mean.to(weight.dtype), moments.variance.to(weight.dtype)
        context.save_for_backward(x, weight, mean, variance)
        context.count, context.eps, context.sum_over_ranks = moments.count, eps, sum_over_ranks
        return batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """With y = weight z + bias, z = (x - mean) / s, g = dL/dy and means over all ranks' values:

        dL/dx = weight / s (g - mean(g) - z mean(g z)).

        The gradients of weight and bias, sums of g z and of g, stay this rank's share: they are summed with
        all others.
        """
        x, weight, mean, variance = context.saved_tensors
        gradient = _summable(gradient)
        inverse = (variance + context.eps).rsqrt()
        # Torch's kernel for fixed statistics gives just these two sums. It reads mean and variance on CPUs,
        # mean and inverse on GPUs.
        _, own_gz, own_g = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, mean, inverse, False, context.eps, [False, True, True]
        )
        sums = context.sum_over_ranks(torch.cat([own_gz, own_g]).double())
        mean_gz, mean_g = (sums / context.count).to(weight.dtype).split(len(mean))
        of_x = -weight * inverse.square() * mean_gz
        of_gradient = weight * inverse
        constant = -of_gradient * mean_g - of_x * mean
        along = (slice(None), None, None)
        x_gradient = torch.addcmul(constant[along], gradient, of_gradient[along]).addcmul_(x, of_x[along])
        return x_gradient.to(x.dtype), own_gz, own_g, None, None, None

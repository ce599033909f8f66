"""Batch normalisation over the batch of all ranks. On CPUs too, unlike torch's SyncBatchNorm."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


class GlobalNorms(TorchFunctionMode):
    """A context in which `F.batch_norm` in training takes mean and variance over the images of all ranks.

    The function is replaced, not the modules, so that layers of timm or of a user's own are covered and no module, name
    or buffer changes. Every rank ends with the running statistics that one process would have.
    """

    def __init__(self, own: int, total: int) -> None:
        """Set how many of the batch's `total` images are this rank's `own`; with 0, its input counts for nothing."""
        super().__init__()
        self.own, self.total = own, total

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self.batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))

    def batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Compute `F.batch_norm`, in training over all ranks. ValueError for one value a channel."""
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        positions = input[0, 0].numel()
        mine, values = self.own * positions, self.total * positions
        if values == 1:  # torch's message
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.shape}")
        out, mean, variance = _Norm.apply(input, weight, bias, eps, mine, values)
        with torch.no_grad():
            if running_mean is not None:
                running_mean.lerp_(mean.to(running_mean), momentum)
            if running_var is not None:
                running_var.lerp_((variance * (values / (values - 1))).to(running_var), momentum)
        return out


class _Norm(torch.autograd.Function):
    """x [B, C, *] → (x - mean) / √(variance + eps) · weight + bias, over the `values` of all ranks in each channel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mine: int, values: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = whole_statistics(x, mine, values)
        ctx.set_materialize_grads(False)
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        ctx.save_for_backward(x, weight, mean.to(kind), torch.rsqrt(variance + eps).to(kind))
        ctx.mine, ctx.values, ctx.has_bias = mine, values, bias is not None
        out = F.batch_norm(x, mean.to(kind), variance.to(kind), weight, bias, False, 0.0, eps)
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        across, shape = [d for d in range(x.dim()) if d != 1], [1, -1, *[1] * (x.dim() - 2)]
        normal = (x - mean.view(shape)) * scale.view(shape)
        of_bias, of_weight = grad.sum(across, dtype=scale.dtype), (grad * normal).sum(across)
        sums = torch.cat((of_bias, of_weight))
        if not ctx.mine:
            sums.zero_()
        dist.all_reduce(sums)
        by_bias, by_weight = (sums / ctx.values).view(2, *shape).unbind()
        factor = scale if weight is None else scale * weight
        of_x = ((grad - by_bias - normal * by_weight) * factor.view(shape)).to(x.dtype)
        if not ctx.mine:
            of_x, of_weight, of_bias = of_x.zero_(), of_weight.zero_(), of_bias.zero_()
        return of_x, of_weight if weight is not None else None, of_bias if ctx.has_bias else None, None, None, None


def whole_statistics(x: Tensor, mine: int, values: int) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and variance (divided by the count) over all ranks, float64 [C].

    They are combined by Chan et al.'s formula in the order of the ranks, so that all ranks get the same bits.
    """
    channels = x.shape[1]
    local = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
    if mine:
        of_mine = x if x.dtype == torch.float64 else x.float()
        variance, mean = torch.var_mean(of_mine, [d for d in range(x.dim()) if d != 1], correction=0)
        local[:channels], local[channels:-1], local[-1] = mean, variance, mine
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, local)
    found = torch.stack(gathered)
    means, variances, share = found[:, :channels], found[:, channels:-1], found[:, -1:] / values
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0)

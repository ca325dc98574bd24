"""From a direction x of the device to a step δ of the parameters, no longer than a bound of the model's own measure.

δ = -η x, or what another optimizer makes of x as its gradient;     ½ δᵀRᵀR δ <= ε:  δ ← δ min(1, sqrt(2 ε)/|R δ|)
"""

import torch
from torch import Tensor

from tngd.curvature.factor import Factor
from tngd.optimizer.groups import Groups, descend, flat, hand_over, rates, trained


def shortened(groups: Groups, direction: Tensor, factor: Factor, limit: float | None) -> tuple[Tensor, float]:
    """The direction (N,) whose step with each group's lr meets the limit ε (None: no limit), and its scale."""
    if limit is None:
        return direction, 1.0
    scale = _scale(factor, rates(groups) * direction, limit)
    return scale * direction, scale


def take_step(
    groups: Groups,
    direction: Tensor,
    inner: torch.optim.Optimizer | None = None,
    factor: Factor | None = None,
    limit: float | None = None,
) -> float:
    """Step along a direction (N,), in place; with `inner` by that optimizer, whose own step meets the limit ε.

    Returns the scale of the inner optimizer's step, 1 without one.
    """
    if inner is None:
        descend(groups, direction)
        return 1.0
    own = trained(groups)
    before = None if limit is None else flat(own)
    hand_over(groups, direction)
    inner.step()
    if limit is None:
        return 1.0
    change = flat(own) - before
    scale = _scale(factor, change, limit)
    if scale < 1:
        parts = (before + scale * change).split([p.numel() for p in own])
        for parameter, part in zip(own, parts, strict=True):
            parameter.copy_(part.view_as(parameter))
    return scale


def _scale(factor: Factor, step: Tensor, limit: float) -> float:
    return min(1.0, (2 * limit) ** 0.5 / max(float(factor.forward(step).norm()), 1e-30))

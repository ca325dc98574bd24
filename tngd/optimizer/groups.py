"""Parameter groups of an optimizer as one flat vector, and which optimizer has which parameters.

From a direction x of the device to a step δ of the parameters, no longer than a bound of the model's own measure.

δ = -η x, or what another optimizer makes of x as its gradient;     ½ δᵀRᵀR δ <= ε:  δ ← δ min(1, sqrt(2 ε)/|R δ|)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tngd.curvature.factor import Factor

Groups = list[dict[str, Any]]


def members(groups: Groups) -> list[tuple[dict[str, Any], Tensor]]:
    """Every trained parameter with its group, in the order of the flat vector; empty ones are not in it."""
    return [(group, p) for group in groups for p in group["params"] if p.requires_grad and not _is_empty(p)]


def trained(groups: Groups) -> list[Tensor]:
    """The parameters of members."""
    return [parameter for _, parameter in members(groups)]


def identities(parameters: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    """Identities of the parameters that a device is made for: object, shape, dtype and device of each."""
    return [(id(p), tuple(p.shape), p.dtype, p.device) for p in parameters]


def flat(parameters: Sequence[Tensor]) -> Tensor:
    """One vector (N,) of parameters, detached."""
    return torch.cat([p.detach().reshape(-1) for p in parameters])


def matrix_shapes(parameters: Sequence[Tensor], model: torch.nn.Module | None) -> dict[int, tuple[int, int]]:
    """Every parameter as a matrix (n, m), n its first extent, by its offset in the flat vector.

    A convolution in groups is no matrix: its parameters are left out.
    """
    layers = [] if model is None else [layer for layer in model.modules() if getattr(layer, "groups", 1) != 1]
    grouped = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
    shapes, start = {}, 0
    for p in parameters:
        if id(p) not in grouped:
            shapes[start] = (p.shape[0], p.numel() // max(p.shape[0], 1)) if p.ndim else (1, 1)
        start += p.numel()
    return shapes


def descend(groups: Groups, direction: Tensor) -> None:
    """θ ← (1 - η w) θ - η x, in place, with each group's lr η and weight_decay w."""
    start = 0
    for group, parameter in members(groups):
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(direction[start : start + parameter.numel()].view_as(parameter), alpha=group["lr"])
        start += parameter.numel()


def hand_over(groups: Groups, direction: Tensor) -> None:
    """Put the direction (N,) into the parameters' `.grad`, for another optimizer; frozen ones get none."""
    drop_frozen(groups)
    start = 0
    for parameter in trained(groups):
        parameter.grad = direction[start : start + parameter.numel()].view_as(parameter).clone()
        start += parameter.numel()


@torch.no_grad()
def step_along(optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor]) -> None:
    """A step of another optimizer with these gradients of its trained parameters; frozen ones get none."""
    drop_frozen(optimizer.param_groups)
    for parameter, gradient in zip(trained(optimizer.param_groups), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def drop_frozen(groups: Groups) -> None:
    """Take the `.grad` of frozen parameters away: torch's optimizers step along whatever is there."""
    for parameter in (p for group in groups for p in group["params"] if not p.requires_grad):
        parameter.grad = None


def rates(groups: Groups) -> Tensor:
    """The step size of every number of the flat vector, (N,)."""
    return torch.cat([p.new_full((p.numel(),), group["lr"]) for group, p in members(groups)])


def left_to(model: torch.nn.Module, companion: torch.optim.Optimizer | None) -> list[Tensor]:
    """The parameters of a model that its companion does not have."""
    groups = companion.param_groups if isinstance(companion, torch.optim.Optimizer) else []
    taken = {id(p) for group in groups for p in group["params"]}
    return [p for p in model.parameters() if id(p) not in taken]


def _is_empty(parameter: Tensor) -> bool:
    return not torch.nn.parameter.is_lazy(parameter) and not parameter.numel()


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

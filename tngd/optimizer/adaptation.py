"""Levenberg-Marquardt: the damping follows how well the quadratic model of the loss held.

    ρ = (L(θ + δ) - L(θ)) / (gᵀδ + ½ |Rδ|²),    λ ← ω λ where ρ > 3/4,  λ/ω where ρ < 1/4,  ω = (19/20)^steps

for a check every so many steps. The loss after the step is taken with the same random numbers (dropout) as before it.
A step that raised a loss the model said it would raise, or left none that is finite, is as bad as can be: ρ = -∞. Where
both changes are in the rounding of the loss, ρ is no number and λ stays. With m the largest eigenvalue of RᵀR, λ is not
lowered below what the precision resolves beside m, nor raised where A is λI to as many digits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf, isfinite, isnan, nan
from typing import Any

import torch
from torch import Tensor

from circuits.errors import InputError
from tngd.curvature.factor import Factor
from tngd.curvature.losses import Loss
from tngd.optimizer.batch import Batch, joined_value

RATE = 19 / 20
GOOD, BAD = 3 / 4, 1 / 4
FASTEST = 1e-2  # factor of one change, however many steps it is for
RESOLVED = 100.0  # units in the last place of the largest eigenvalue
ROUNDING = 8.0  # units in the last place of the loss
PRODUCTS = 5


def random_state(parameter: Tensor) -> tuple[Tensor, list[Tensor]]:
    """State of torch's own generators, of the CPU and, for parameters there, of the CUDA devices."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if parameter.is_cuda else []


def reduction_ratio(
    batch: Batch,
    factor: Factor,
    change: Tensor,
    closures: tuple[Callable, ...],
    loss: Loss,
    random: tuple,
    model: torch.nn.Module | None = None,
) -> float:
    """ρ of the step `change` (N,), already made; calls the closures again, with the random numbers of before.

    Buffers of the model's modules (running means) are afterwards as they were. InputError if it is another batch the
    second time.
    """
    predicted = batch.gradient @ change + factor.forward(change).square().sum() / 2
    with torch.random.fork_rng(), torch.no_grad(), _same_buffers(model):
        torch.set_rng_state(random[0])
        if random[1]:
            torch.cuda.set_rng_state_all(random[1])
        results = [closure() for closure in closures]
        for before, (_, again) in zip(batch.targets, results, strict=True):
            if not torch.equal(before, again):
                raise InputError(
                    "adapt compares the loss of one batch before and after the step, and the closure returned other "
                    "targets the second time; draw the batch outside it. The step was made, the damping is as it was"
                )
        try:
            after = float(joined_value(results, loss))
        except InputError:  # the step is made: that the loss has no value after it is the worst there is to say of it
            after = inf
    rise, expected = after - float(batch.value), float(predicted)
    seen = ROUNDING * torch.finfo(change.dtype).eps * abs(float(batch.value))
    if max(abs(rise), abs(expected)) <= seen:
        return nan
    return rise / expected if isfinite(rise) and not (expected >= 0 and rise > 0) and expected else -inf


def adapted(damping: float, ratio: float, steps: int, factor: Factor, gradient: Tensor) -> float:
    """The next damping after a check every `steps` steps, on a device that holds `factor`; `gradient` (N,) is there."""
    if isnan(ratio) or BAD <= ratio <= GOOD:
        return damping
    change, largest = max(RATE**steps, FASTEST), _largest(factor, gradient)
    resolved = RESOLVED * torch.finfo(gradient.dtype).eps
    if ratio > GOOD:
        return min(damping, max(damping * change, resolved * largest))
    return max(damping, min(damping / change, largest / resolved))


@contextmanager
def _same_buffers(model: torch.nn.Module | None) -> Iterator[None]:
    """Give all modules their buffers back that they have on entry; without a model those that are called inside."""
    kept: dict[tuple[int, str], tuple[torch.nn.Module, str, Tensor, Tensor]] = {}

    def keep(module: torch.nn.Module, *_: Any) -> None:
        for name, value in module._buffers.items():
            if value is not None:
                kept.setdefault((id(module), name), (module, name, value, value.clone()))

    hook = None if model is not None else torch.nn.modules.module.register_module_forward_pre_hook(keep)
    for module in () if model is None else model.modules():
        keep(module)
    try:
        yield
    finally:
        if hook:
            hook.remove()
        for module, name, value, before in kept.values():
            module._buffers[name] = value.copy_(before)


def _largest(factor: Factor, vector: Tensor) -> float:
    """The largest eigenvalue of RᵀR, or less: by a few products from a vector (N,) on."""
    found = 0.0
    for _ in range(PRODUCTS):
        length = float(vector.norm())
        if not length:
            break
        vector = factor.transpose(factor.forward(vector / length))
        found = float(vector.norm())
    return found

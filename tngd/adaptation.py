"""Levenberg-Marquardt: the damping follows how well the quadratic model of the loss held.

    ρ = (L(θ + δ) - L(θ)) / (gᵀδ + ½ |Rδ|²),    λ ← ω λ where ρ > 3/4,  λ/ω where ρ < 1/4,  ω = (19/20)^steps

for a check every so many steps. The loss after the step is taken with the same random numbers (dropout) as before it.
A step that raised a loss the model said it would raise, or left none that is finite, is as bad as can be: ρ = -∞.
"""

from collections.abc import Callable
from math import inf, isfinite, nan

import torch
from torch import Tensor

from circuits.errors import InputError
from tngd.batches import Batch, joined_value
from tngd.gram import Factor
from tngd.losses import Loss

RATE = 19 / 20
GOOD, BAD = 3 / 4, 1 / 4


def random_state(parameter: Tensor) -> tuple[Tensor, list[Tensor]]:
    """State of torch's own generators, of the CPU and, for parameters there, of the CUDA devices."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if parameter.is_cuda else []


def reduction_ratio(
    batch: Batch, factor: Factor, change: Tensor, closures: tuple[Callable, ...], loss: Loss, random: tuple
) -> float:
    """ρ of the step `change` (N,), already made; calls the closures again, with the random numbers of before."""
    predicted = batch.gradient @ change + factor.forward(change).square().sum() / 2
    with torch.random.fork_rng(), torch.no_grad():
        torch.set_rng_state(random[0])
        if random[1]:
            torch.cuda.set_rng_state_all(random[1])
        try:
            after = float(joined_value(closures, loss))
        except InputError:  # the step is made: that the loss has no value after it is the worst there is to say of it
            after = inf
    rise, expected = after - float(batch.value), float(predicted)
    if not isfinite(rise) or (expected >= 0 and rise > 0):
        return -inf
    return rise / expected if expected else nan


def adapted(damping: float, ratio: float, steps: int) -> float:
    """The next damping after a check every `steps` steps; a ratio that is not a number counts as bad."""
    if ratio > GOOD:
        return damping * RATE**steps
    return damping if ratio >= BAD else damping / RATE**steps

"""Converters between numbers and an array, in torch: single values, and covariances of Gaussian readings behind an ADC.

Single values follow the law of `circuits.model.converters.convert`,

    Δ = 2 F / 2ᵇ,  F = range · rms,   value = clip(round(x / Δ), -2ᵇ⁻¹, 2ᵇ⁻¹ - 1) Δ,

with halves rounded to even; offset and noise, both in multiples of the rms, are added before rounding in an ADC and
after rounding in a DAC.

Covariances of the readings of many tiles follow the law of `circuits.model.converters.converted_law`. In multiples of
the standard deviation σ of a reading, with its mean at 0, the codes are δ = Δ/σ apart, with thresholds τ midway between
codes. With q the converted reading and the normalised Hermite polynomials h_k,

    a_k = (δ/√k) Σ φ(τ) h_{k-1}(τ),     Cov(q_i, q_j) = σ_i σ_j Σ_{k≥1} a_k^i a_k^j ρ_ij^k.

Where δ < FINE the sums over thresholds are midpoint rules on [l, h], from the lowest code to the highest, corrected
after Euler and Maclaurin by terms at the ends alone:

    δ Σ f(τ) = ∫ f + Σ_j c_j δ^(2j) [f^(2j-1)]_l^h,    (φ h_k)' = -√(k+1) φ h_{k+1}.

Elsewhere the sums run over the thresholds within REACH σ of the mean. Both methods neglect less than 1e-9 of a
variance. Covariances are computed in double precision.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from math import pi, prod, sqrt

import torch
from torch import Tensor
from torch.special import ndtr

from circuits.errors import InputError
from circuits.model.converters import TERMS, Converter

FINE = 1 / 8
REACH = 8.5
MIDPOINT = (-1 / 24, 7 / 5760, -31 / 967680)  # c_j = B_2j(½)/(2j)!


@dataclass(frozen=True, eq=False)
class _Grid:
    """Codes of readings (…): `step` δ, `mean` of a reading in its standard deviations, and `most` = 2ᵇ⁻¹."""

    step: Tensor
    mean: Tensor
    most: int

    @property
    def ends(self) -> Tensor:
        """The lowest and the highest code, (2, …)."""
        return torch.stack([-self.most * self.step, (self.most - 1) * self.step]) - self.mean

    def of(self, which: Tensor) -> "_Grid":
        """The grid of some of the readings, (k,)."""
        return _Grid(self.step[which], self.mean[which], self.most)


def read_law(
    covariance: Tensor, mean: Tensor, rms: Tensor, converter: Converter, error: float
) -> tuple[Tensor, Tensor]:
    """Covariances (n, n, tiles) of Gaussian readings behind an ADC with bits, and the clipped shares (n, tiles).

    The readings have the `covariance` (n, n, tiles) and `mean` (n, tiles); `rms` (tiles,) sets the full scale. Mean and
    rms are in the unit of the readings. The noise of each reading is independent. Terms ρ^k below `error` are
    neglected.
    """
    S, rms = covariance.double(), rms.double()
    most = 2 ** (converter.bits - 1)
    sigma = (S.diagonal(dim1=0, dim2=1).movedim(-1, 0) + (converter.noise * rms) ** 2).sqrt()
    grid = _Grid(converter.range * rms / most / sigma, (mean.double() + converter.offset * rms) / sigma, most)
    both = sigma[:, None] * sigma
    law = _mehler(S / both, _coefficients(grid), error)
    law.diagonal(dim1=0, dim2=1).copy_(_variance(grid).movedim(0, -1))
    low, high = grid.ends
    clipped = ndtr(low - grid.step / 2) + ndtr(-high - grid.step / 2)
    return law.mul_(both).to(covariance.dtype), clipped


def _mehler(correlation: Tensor, coefficients: Iterator[Tensor], error: float) -> Tensor:
    """Σ_k a_k a_kᵀ ρ^k (n, n, tiles), valid off the diagonal only."""
    n = len(correlation)
    apart = ~torch.eye(n, dtype=torch.bool, device=correlation.device)
    largest = float(correlation[apart].abs().amax()) if n > 1 else 0.0
    law, power = torch.zeros_like(correlation), torch.ones_like(correlation)
    for k, a in enumerate(islice(coefficients, TERMS), 1):
        power *= correlation
        law.addcmul_(a[:, None] * a, power)
        if largest**k < error:
            break
    return law


def _coefficients(grid: _Grid) -> Iterator[Tensor]:
    """a_1, a_2, … of readings (n, tiles)."""
    fine = grid.step < FINE
    smooth, coarse = grid.of(fine), grid.of(~fine)
    tau = _thresholds(coarse)[1]
    for ends, summed in zip(_by_ends(smooth), _by_thresholds(tau, coarse.step), strict=True):
        a = torch.empty_like(grid.step)
        a[fine], a[~fine] = ends, summed
        yield a


def _by_ends(grid: _Grid) -> Iterator[Tensor]:
    functions = _hermite(grid.ends)
    # φ h_m at both ends for m from k - 2 on; the first is -∫ φ, with which k = 1 follows the rule of all other k.
    held = deque([-ndtr(grid.ends), *islice(functions, 2 * len(MIDPOINT))], maxlen=2 * len(MIDPOINT) + 1)
    for k in count(1):
        total = -_jump(held[0]) / sqrt(max(k - 1, 1))
        for j, c in enumerate(MIDPOINT, 1):
            total -= c * sqrt(prod(range(k, k + 2 * j - 1))) * grid.step ** (2 * j) * _jump(held[2 * j])
        yield total / sqrt(k)
        held.append(next(functions))


def _by_thresholds(tau: Tensor, step: Tensor) -> Iterator[Tensor]:
    for k, function in enumerate(_hermite(tau), 1):
        yield step * function.sum(0) / sqrt(k)


def _variance(grid: _Grid) -> Tensor:
    """Variance of q in σ² (n, tiles), the rounding error included."""
    fine = grid.step < FINE
    found = torch.empty_like(grid.step)
    found[fine], found[~fine] = _variance_by_ends(grid.of(fine)), _variance_by_thresholds(grid.of(~fine))
    return found


def _variance_by_ends(grid: _Grid) -> Tensor:
    """<q²> - <q>² from <q> = l + δ Σ Q(τ) and <q²> = l² + δ Σ 2 τ Q(τ), Q(τ) = Φ(-τ)."""
    ends = grid.ends
    low, high = ends
    f = [function * sqrt(prod(range(1, m + 1))) for m, function in enumerate(islice(_hermite(ends), 5))]  # φ He_m
    beyond = ndtr(torch.stack([low, -high]))
    first = (ends * beyond).sum(0) - _jump(f[0])
    second = (ends.square() * beyond).sum(0) + _jump(ndtr(ends) - ends * f[0])
    for j, c in enumerate(MIDPOINT, 1):
        p = 2 * j - 1
        before = ndtr(-ends) if p == 1 else f[p - 2]  # Q^(p-1), Q^(p) = -φ He_(p-1)
        first -= c * grid.step ** (2 * j) * _jump(f[p - 1])
        second += c * grid.step ** (2 * j) * _jump(2 * p * before - 2 * ends * f[p - 1])
    return second - first.square()


def _variance_by_thresholds(grid: _Grid) -> Tensor:
    codes, tau = _thresholds(grid)  # counted from the code of the mean: no large numbers cancel
    weight = torch.where(codes > 0, ndtr(-tau), -ndtr(tau))
    square = ((2 * codes - 1).abs() * weight.abs()).sum(0)
    return grid.step.square() * (square - weight.sum(0).square())


def _thresholds(grid: _Grid) -> tuple[Tensor, Tensor]:
    """Codes relative to the code of the mean, and the threshold τ below each, (c, …), within REACH σ of the mean."""
    half = int(REACH / FINE) + 2
    number = min(2 * half, 2 * grid.most - 1)
    own = (grid.mean / grid.step).round().clamp(-grid.most, grid.most - 1)
    first = (own - half + 1).clamp(1 - grid.most, grid.most - number)
    steps = torch.arange(number, dtype=first.dtype, device=first.device).view(-1, *[1] * first.ndim)
    codes = first + steps
    return codes - own, (codes - 0.5) * grid.step - grid.mean


def _hermite(x: Tensor) -> Iterator[Tensor]:
    """φ h_0, φ h_1, … at x; the factor φ from the start prevents overflow."""
    before, now = torch.zeros_like(x), torch.exp(-x.square() / 2) / sqrt(2 * pi)
    for m in count():
        yield now
        before, now = now, (x * now - sqrt(m) * before) / sqrt(m + 1)


def _jump(values: Tensor) -> Tensor:
    """Difference (…) of values (2, …) at the upper end and at the lower end."""
    return values[1] - values[0]


@dataclass(frozen=True, eq=False)
class ConvertedTensor:
    """Output of a converter, and the number of values at its full scale."""

    values: Tensor
    saturated: int


def root_mean_square(values: Tensor) -> Tensor:
    """The rms of all values, a scalar; 0 for an empty tensor."""
    return values.norm() / max(values.numel(), 1) ** 0.5


def convert(
    values: Tensor, converter: Converter, rms: Tensor, white: Tensor | None = None, to_analog: bool = False
) -> ConvertedTensor:
    """Pass values (any shape) through an ADC, or `to_analog` through a DAC; `rms` broadcasts against them.

    `white` are standard normal numbers of the shape of the values, for a converter with noise. Where the rms is 0 every
    value other than 0 saturates. InputError if there is noise and no `white`.
    """
    if converter.noise and white is None:
        raise InputError("a converter with noise needs normal numbers; draw them from a seeded generator")
    analog = converter.offset * rms
    if converter.noise:
        analog = analog + converter.noise * rms * white
    if to_analog:
        rounded = _rounded(values, converter, rms)
        return ConvertedTensor(rounded.values + analog, rounded.saturated)
    return _rounded(values + analog, converter, rms)


def _rounded(values: Tensor, converter: Converter, rms: Tensor) -> ConvertedTensor:
    if converter.bits is None:
        return ConvertedTensor(values, 0)
    most = 2.0 ** (converter.bits - 1)
    step = (converter.range * rms / most).expand_as(values)
    beyond = torch.where(values == 0, values, values.sign() * torch.inf)
    codes = torch.where(step > 0, values / torch.where(step > 0, step, 1), beyond).round()
    held = codes.clamp(-most, most - 1)
    return ConvertedTensor(held * step, int((held != codes).sum()))


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers in the shape of a tensor, drawn on the CPU: the same on every device."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)

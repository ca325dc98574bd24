"""The exact transition of dx = -(A x - b) dt + N(0, D dt) over any time t: a short series, then doubling.

    x(t) = Φ x(0) + β + N(0, Σ),   Φ = e^{-At},   β = ∫₀ᵗ e^{-As} b ds,   Σ = ∫₀ᵗ e^{-As} D e^{-Aᵀs} ds,
    Φ(2h) = Φ²,   β(2h) = β + Φ β,   Σ(2h) = Σ + Φ Σ Φᵀ;   Σ(∞) solves A Σ + Σ Aᵀ = D.

No matrix is inverted or diagonalised: A may be non-normal, defective, singular or (at finite times) unstable, and D
singular. Every doubling adds a positive semidefinite matrix, without cancellation; Φ - I is doubled instead of Φ, so
that slow modes keep their digits beside fast ones. The state is first scaled to units (powers of two) that balance A.
"""

import math
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor

from circuits.errors import InputError

SHORT = 0.5  # |A| h of the series
TERMS = {torch.float64: (4, 17), torch.float32: (2, 9)}  # fours of powers of Φ - I, powers of Σ: rest below rounding
SETTLED = {torch.float64: 1e-9, torch.float32: 1e-5}  # of Φ: the missing part of Σ(∞) is its square
MOST_DOUBLINGS = {torch.float64: 46, torch.float32: 21}  # with more doublings rounding alone would make a mode decay
BALANCINGS = 12
MOST_BITS = 60  # largest |log2| of a unit

ROUNDING = 16  # units in the last place of the latest time within which steps are equal


@dataclass(frozen=True, eq=False)
class Transition:
    """x(t) = matrix x(0) + drive + N(0, covariance)."""

    matrix: Tensor  # (…, d, d), Φ
    drive: Tensor  # (…, d), β
    covariance: Tensor  # (…, d, d), Σ


def exact_transition(A: Tensor, D: Tensor, b: Tensor, times: Tensor) -> Transition:
    """The transition over `times` (…) [s]; A, D (…, d, d) and b (…, d), all axes but the last ones broadcast."""
    batch, d = np.broadcast_shapes(A.shape[:-2], D.shape[:-2], b.shape[:-1], times.shape), A.shape[-1]
    unit = balancing_units(A)
    A, D, b = _scaled(A, D, b, unit)
    doublings = _doublings(A, times)
    step = (times * 0.5**doublings).expand(batch).reshape(-1)
    A, D = A.expand(*batch, d, d).reshape(-1, d, d), D.expand(*batch, d, d).reshape(-1, d, d)
    driven = bool(b.count_nonzero())
    psi, beta, sigma = _short_step(A, D, b.expand(*batch, d).reshape(-1, d, 1) if driven else None, step)
    for _ in range(doublings):
        psi, beta, sigma = _doubled(psi, beta, sigma)
    psi.diagonal(dim1=-2, dim2=-1).add_(1)
    drive = beta.view(*batch, d) * unit if driven else b.new_zeros(*batch, d)
    row, column = unit[..., :, None], unit[..., None, :]
    return Transition(psi.view(*batch, d, d) * (row / column), drive, sigma.view(*batch, d, d) * (row * column))


def lyapunov(A: Tensor, D: Tensor) -> Tensor:
    """Σ, (…, d, d), with A Σ + Σ Aᵀ = D; InputError if A (…, d, d) has an eigenvalue of real part zero or less."""
    batch, d = np.broadcast_shapes(A.shape[:-2], D.shape[:-2]), A.shape[-1]
    unit = balancing_units(A)
    drift, D, _ = _scaled(A, D, torch.zeros_like(unit), unit)
    drift, D = drift.expand(*batch, d, d).reshape(-1, d, d), D.expand(*batch, d, d).reshape(-1, d, d)
    psi, _, sigma = _short_step(drift, D, None, SHORT / _norm(drift))
    eye = torch.eye(d, dtype=A.dtype, device=A.device)
    for _ in range(MOST_DOUBLINGS[A.dtype]):
        left = (psi + eye).abs().amax((-2, -1))
        if bool((left <= SETTLED[A.dtype]).all()):
            return sigma.view(*batch, d, d) * (unit[..., :, None] * unit[..., None, :])
        if not bool(torch.isfinite(left).all()):
            break
        psi, _, sigma = _doubled(psi, None, sigma)
    unsettled = ~(left <= SETTLED[A.dtype]).view(batch)
    raise _unstable(A.expand(*batch, d, d), unsettled)


def noise_factor(covariance: Tensor) -> Tensor:
    """F (…, d, d) with F Fᵀ the covariance (…, d, d), which may be singular: Cholesky, or eigenvectors where it fails.

    InputError if a covariance is not positive semidefinite.
    """
    size = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    size = torch.where(size > 0, size, torch.ones_like(size))
    correlation = covariance / size[..., :, None] / size[..., None, :]
    factor, failed = torch.linalg.cholesky_ex(correlation)
    bad = failed > 0
    if bool(bad.any()):
        values, V = torch.linalg.eigh(correlation[bad])
        lowest = float(values.min())
        if not lowest >= -1000 * torch.finfo(values.dtype).eps * values.shape[-1]:
            raise InputError(
                f"expected a positive semidefinite diffusion, but the noise of a step has the eigenvalue {lowest:.1e} "
                "on the scale of its own variances; check the diffusion"
            )
        factor[bad] = V * values.clamp(min=0).sqrt()[..., None, :]
    return size[..., :, None] * factor


def balancing_units(A: Tensor) -> Tensor:
    """Units (…, d) of the state, powers of two, in which rows and columns of A (…, d, d) are of similar size."""
    scaled = off = A.abs()
    off.diagonal(dim1=-2, dim2=-1).zero_()
    bits = torch.zeros(A.shape[:-1], dtype=A.dtype, device=A.device)
    for _ in range(BALANCINGS):
        # A row or a column of zeros needs no balancing.
        step = (scaled.sum(dim=-1) / scaled.sum(dim=-2)).log2_().nan_to_num_(0.0, 0.0, 0.0).div_(4)
        if float(step.abs().max()) < 0.5:
            break
        bits = (bits + step).clamp(-MOST_BITS, MOST_BITS).round()
        unit = torch.exp2(bits)
        scaled = off * (unit[..., None, :] / unit[..., :, None])
    return torch.exp2(bits)


def _scaled(A: Tensor, D: Tensor, b: Tensor, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    across = unit[..., None, :] / unit[..., :, None]
    return A * across, D / unit[..., :, None] / unit[..., None, :], b / unit


def _norm(A: Tensor) -> Tensor:
    """A bound of the spectral norm, (…)."""
    size = A.abs()
    return (size.sum(dim=-1).amax(dim=-1) * size.sum(dim=-2).amax(dim=-1)).sqrt().clamp(min=torch.finfo(A.dtype).tiny)


def _doublings(A: Tensor, times: Tensor) -> int:
    reach = float((_norm(A) * times).max()) / SHORT
    return max(0, math.ceil(math.log2(reach))) if reach > 0 else 0


def _short_step(A: Tensor, D: Tensor, b: Tensor | None, step: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Φ - I, β and Σ (b, d, d or 1) over steps (b,) with |A| step ≤ SHORT, by Taylor series; β is None if b is."""
    fours, terms = TERMS[A.dtype]
    step = step[:, None, None]
    X = A * -step
    psi, sigma, beta = _expm1(X, fours), D, b
    for k in range(terms + 1, 1, -1):  # Σ = h Σ_k L^k D / (k + 1)!, L S = X S + S Xᵀ; β likewise
        half = torch.baddbmm(D, X, sigma, beta=0.5, alpha=1 / k)
        sigma = half + half.mT
        if b is not None:
            beta = torch.baddbmm(b, X, beta, alpha=1 / k)
    return psi, None if b is None else beta * step, sigma * step


def _expm1(X: Tensor, fours: int) -> Tensor:
    """e^X - I, (b, d, d), by its series to the power 4 `fours`, from X, X², X³ and X⁴."""
    square = torch.bmm(X, X)
    fourth = torch.bmm(square, square)
    powers = torch.stack([X, square, torch.bmm(square, X), fourth])
    shares = [[1 / math.factorial(4 * k + j) for j in range(1, 5)] for k in range(fours)]
    parts = (X.new_tensor(shares) @ powers.view(4, -1)).view(fours, *X.shape).unbind()
    total = parts[-1]
    for part in parts[-2::-1]:
        total = torch.baddbmm(part, fourth, total)
    return total


def _doubled(psi: Tensor, beta: Tensor | None, sigma: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    carried = torch.baddbmm(sigma, psi, sigma)  # Φ Σ
    half = torch.baddbmm(sigma + carried, carried, psi.mT).mul_(0.5)
    if beta is not None:
        beta = torch.baddbmm(beta, psi, beta, beta=2)
    return torch.baddbmm(psi, psi, psi, beta=2), beta, half + half.mT


def _unstable(A: Tensor, unsettled: Tensor) -> InputError:
    """The InputError for drifts that did not settle, with the batch index and rates of the worst."""
    places = unsettled.nonzero()
    if not bool(torch.isfinite(A).all()):
        return InputError("expected finite entries in the drift, got inf or nan")
    values = torch.linalg.eigvals(A[unsettled])
    lowest, worst = values.real.amin(dim=-1).min(dim=0)
    where = f" at batch index {tuple(places[int(worst)].tolist())}" if places.shape[-1] else ""
    if float(lowest) > 0:
        return InputError(
            f"the drift{where} is too close to unstable for this precision: its slowest mode has the rate "
            f"{float(lowest):.3g} 1/s, its fastest {float(values[worst].abs().max()):.3g} 1/s; take out the fast ones"
        )
    return InputError(
        f"the drift is unstable{where}: an eigenvalue has the real part {float(lowest):.3g} 1/s, "
        "expected all above zero; there is no stationary state"
    )


def distinct_steps(times: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct steps (u,) [s] of times (T,), and indices of the steps (T - 1,); InputError unless times increase."""
    if times.ndim != 1 or len(times) < 2:
        raise _not_times(times)
    steps = times.diff()
    least, most = (float(step) for step in steps.aminmax())
    if not least > 0 or not most < inf:
        if not bool(torch.isfinite(times).all()):
            raise _not_times(times)
        raise InputError(f"expected increasing times, got a step of {least:g} s at {int(steps.argmin())}")
    close = ROUNDING * torch.finfo(times.dtype).eps * max(abs(float(times[0])), abs(float(times[-1])))
    if most - least <= close:
        return (times[-1:] - times[:1]) / len(steps), torch.zeros(len(steps), dtype=torch.long)
    order = steps.argsort()
    jumps = steps[order].diff() > close
    which = torch.empty_like(order)
    which[order] = torch.cat([torch.zeros(1, dtype=torch.long), jumps.cumsum(0)])
    count = torch.bincount(which)
    return torch.zeros(len(count), dtype=times.dtype).index_add_(0, which, steps) / count, which


def _not_times(times: Tensor) -> InputError:
    return InputError(f"expected two or more finite times in one row, got shape {tuple(times.shape)}")

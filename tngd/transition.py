"""The exact transition of dx = -(A x - b) dt + N(0, D dt) over any time t: a short series, then doubling.

    x(t) = Φ x(0) + β + N(0, Σ),   Φ = e^{-At},   β = ∫₀ᵗ e^{-As} b ds,   Σ = ∫₀ᵗ e^{-As} D e^{-Aᵀs} ds,
    Φ(2h) = Φ²,   β(2h) = β + Φ β,   Σ(2h) = Σ + Φ Σ Φᵀ;   Σ(∞) solves A Σ + Σ Aᵀ = D.

Nothing is inverted and nothing diagonalised: A may be non-normal, defective, singular or (at finite times) unstable,
and D singular. Every doubling adds a positive matrix, so nothing cancels; it is Φ - I that is doubled, so that slow
modes keep their digits beside fast ones. The state is first put into units (powers of two) that balance A.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.errors import InputError

SHORT = 0.5  # |A| h of the series
TERMS = {torch.float64: (4, 18), torch.float32: (3, 11)}  # fours of powers of Φ - I, powers of Σ: below rounding
SETTLED = {torch.float64: 1e-9, torch.float32: 1e-5}  # of Φ: what is left of Σ(∞) is its square
MOST_DOUBLINGS = 70  # after which rounding has taken the slowest mode
BALANCINGS = 12
MOST_BITS = 60  # of a unit


@dataclass(frozen=True, eq=False)
class Transition:
    """x(t) = matrix x(0) + drive + N(0, covariance)."""

    matrix: Tensor  # (…, d, d), Φ
    drive: Tensor  # (…, d), β
    covariance: Tensor  # (…, d, d), Σ


def exact_transition(A: Tensor, D: Tensor, b: Tensor, times: Tensor) -> Transition:
    """The transition over `times` (…) [s]; A, D (…, d, d) and b (…, d), all axes but the last ones broadcast."""
    batch = torch.broadcast_shapes(A.shape[:-2], D.shape[:-2], b.shape[:-1], times.shape)
    unit = balancing_units(A)
    A, D, b = _scaled(A, D, b, unit)
    doublings = _doublings(A, times)
    step = times * 0.5**doublings
    psi, beta, sigma = _short_step(A, D, b, step)
    for _ in range(doublings):
        psi, beta, sigma = _doubled(psi, beta, sigma)
    phi = psi + torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return Transition(
        (phi * (unit[..., :, None] / unit[..., None, :])).expand(*batch, *A.shape[-2:]),
        (beta * unit).expand(*batch, A.shape[-1]),
        (sigma * (unit[..., :, None] * unit[..., None, :])).expand(*batch, *A.shape[-2:]),
    )


def lyapunov(A: Tensor, D: Tensor) -> Tensor:
    """Σ, (…, d, d), with A Σ + Σ Aᵀ = D; InputError if A (…, d, d) has an eigenvalue of real part zero or less."""
    unit = balancing_units(A)
    drift, D, _ = _scaled(A, D, torch.zeros_like(unit), unit)
    norm = _norm(drift)[..., None, None]
    psi, _, sigma = _short_step(drift / norm, D / norm, torch.zeros_like(unit), norm.new_tensor(SHORT))
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    for _ in range(MOST_DOUBLINGS):
        left = (psi + eye).abs().amax((-2, -1))
        if bool((left <= SETTLED[A.dtype]).all()):
            return sigma * (unit[..., :, None] * unit[..., None, :])
        if not bool(torch.isfinite(left).all()):
            break
        psi, _, sigma = _doubled(psi, None, sigma)
    raise _unstable(A, ~(left <= SETTLED[A.dtype]))


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
    """Units (…, d) of the state, powers of two, in which rows and columns of A (…, d, d) are of one size."""
    off = A.abs() * (1 - torch.eye(A.shape[-1], dtype=A.dtype, device=A.device))
    bits = torch.zeros(A.shape[:-1], dtype=A.dtype, device=A.device)
    for _ in range(BALANCINGS):
        unit = torch.exp2(bits)
        scaled = off * (unit[..., None, :] / unit[..., :, None])
        rows, columns = scaled.sum(dim=-1), scaled.sum(dim=-2)
        step = torch.where((rows > 0) & (columns > 0), (rows / columns).log2() / 4, torch.zeros_like(bits))
        if float(step.abs().max()) < 0.5:
            break
        bits = (bits + step).clamp(-MOST_BITS, MOST_BITS).round()
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
    return max(0, int(torch.tensor(reach, dtype=torch.float64).log2().ceil())) if reach > 0 else 0


def _short_step(A: Tensor, D: Tensor, b: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Φ - I, β and Σ over a step (…) with |A| step ≤ SHORT, by their Taylor series."""
    fours, terms = TERMS[A.dtype]
    X = -A * step[..., None, None]
    psi = _expm1(X, fours)
    sigma, beta = D, b
    for k in range(terms + 1, 1, -1):  # Σ = h Σ_k L^k D / (k + 1)!, L S = X S + S Xᵀ; β likewise
        half = X @ sigma / k
        sigma = D + half + half.mT
        beta = b + (X @ beta[..., None])[..., 0] / k
    return psi, beta * step[..., None], sigma * step[..., None, None]


def _expm1(X: Tensor, fours: int) -> Tensor:
    """e^X - I by its series to the power 4 `fours`, from X, X², X³ and X⁴."""
    square = X @ X
    powers = torch.stack([X, square, square @ X, square @ square])
    factorials = torch.arange(1, 4 * fours + 1, dtype=X.dtype, device=X.device).cumprod(0).reciprocal()
    parts = torch.tensordot(factorials.reshape(fours, 4), powers, 1)
    total = parts[-1]
    for part in parts[:-1].flip(0):
        total = part + powers[3] @ total
    return total


def _doubled(psi: Tensor, beta: Tensor | None, sigma: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    carried = sigma + psi @ sigma  # Φ Σ
    moved = carried + carried @ psi.mT
    if beta is not None:
        beta = 2 * beta + (psi @ beta[..., None])[..., 0]
    return 2 * psi + psi @ psi, beta, sigma + (moved + moved.mT) / 2


def _unstable(A: Tensor, unsettled: Tensor) -> InputError:
    """The error that names the worst of the drifts that did not settle."""
    places = unsettled.nonzero()
    if not bool(torch.isfinite(A).all()):
        return InputError("expected finite entries in the drift, got inf or nan")
    lowest = torch.linalg.eigvals(A[unsettled]).real.amin(dim=-1)
    worst = int(lowest.argmin())
    where = f" at batch index {tuple(places[worst].tolist())}" if places.shape[-1] else ""
    return InputError(
        f"the drift is unstable{where}: an eigenvalue has the real part {float(lowest[worst]):.3g} 1/s, "
        "expected all above zero; there is no stationary state"
    )

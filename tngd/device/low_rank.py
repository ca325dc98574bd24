"""Exact state of a linear device that is not symmetric: dx = -(A x - g) dt + N(0, 2 κ₀ dt), A = λI + L Mᵀ.

L and M are N x r. For a function f of the matrix, with K = Mᵀ L (r x r, neither symmetric nor always diagonalisable),

    f(A) v = f(λ) v + L f[λ, λ + K] Mᵀ v,     f[λ, a] = (f(a) - f(λ))/(a - λ).

At t = ∞, f = 1/a and f[λ, λ + K] = -(λ + K)⁻¹/λ. At a finite time x(t) = e^{-λt} x₀ + φ_t(λ) g + L c, and the
coefficients c obey

    dc/dt = -(λ + K) c - e^{-λt} Mᵀx₀ - φ_t(λ) Mᵀg,     c(0) = 0,

which one matrix exponential of size r + 3 solves, whatever the eigenvalues of K. The noise has the covariance κ₀ Σ,
Σ = 2 ∫₀ᵗ e^{-As} e^{-Aᵀs} ds. On the complement orthogonal to L and M, Σ is (1 - e^{-2λt})/λ. On an orthonormal basis Q
of the span of L and M (q <= 2r), with B = Qᵀ A Q, Σ_h comes from a Taylor series and is doubled by

    Σ_2h = Σ_h + e^{-Bh} Σ_h e^{-Bᵀh};  at t = ∞ it is the solution of B Σ + Σ Bᵀ = 2.

No N x N matrix is formed. The r x r work is in double precision: powers of a matrix that is not normal may grow before
they decay.
"""

from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, exp, expm1, inf, isinf, log2

import torch
from torch import Tensor

from circuits.errors import InputError
from tngd.device.dynamics import check_evolution

SERIES = 18  # terms of Σ_h where |B| h <= 1/4: the next term is below 1e-21 of the first
DOUBLINGS = 80  # at t = ∞: enough for |B| / slowest rate up to 2^80


@dataclass(frozen=True, eq=False)
class LowRank:
    """The matrix λI + L Mᵀ without its λ: `left` is Lᵀ and `right` Mᵀ, (r, N)."""

    left: Tensor
    right: Tensor
    roots: dict[tuple[float, float], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @cached_property
    def K(self) -> Tensor:
        """Mᵀ L, (r, r), in double precision."""
        return (self.right @ self.left.T).double()

    @cached_property
    def lowest(self) -> float:
        """The smallest real part of K's eigenvalues."""
        return float(torch.linalg.eigvals(self.K).real.min())

    @cached_property
    def basis(self) -> Tensor:
        """Q (N, q), orthonormal, q = min(N, 2r): its span holds L and M."""
        return torch.linalg.qr(torch.cat([self.left, self.right]).T)[0]


def is_stable(A: LowRank, damping: float, time: float) -> bool:
    """Whether the device settles; at a finite time, whether no mode grows (up to rounding).

    A positive definite symmetric part of λ + K, which is cheap to test, is sufficient; else the eigenvalues decide.
    """
    K = A.K
    if not len(K):
        return True
    half = (K + K.T) / 2
    half.diagonal().add_(damping)
    if damping > 0 and not int(torch.linalg.cholesky_ex(half)[1]):
        return True
    rate = A.lowest + damping
    rounding = 0.0 if isinf(time) else torch.finfo(A.left.dtype).eps * float(K.norm())
    return rate > 0 or (not isinf(time) and rate >= -rounding)


def low_rank_state(
    A: LowRank,
    gradient: Tensor,
    start: Tensor | None,
    damping: float,
    time: float,
    noise: float = 0.0,
    white: Tensor | None = None,
) -> Tensor:
    """The state x (N,) after `time` under λI + L Mᵀ and the gradient (N,), from `start` (N,), zero if None.

    Like `tngd.device.dynamics.device_state`. A finite time needs no stability; at t = ∞ the caller checks stability
    (`is_stable`). InputError for a negative damping, time or noise, and for time inf without damping.
    """
    check_evolution(damping, time, noise)
    if time == 0:
        return torch.zeros_like(gradient) if start is None else start.clone()
    if isinf(time):
        state = gradient / damping
        coefficients = _settled(A, A.right @ gradient, damping)
    else:
        state = _relax(damping, time) * gradient
        driven = A.right @ gradient
        begun = None
        if start is not None:
            state = state + exp(-damping * time) * start
            begun = driven if start is gradient else A.right @ start
        coefficients = _coefficients(A.K, begun, driven, damping, time)
    state = state + coefficients.to(state.dtype) @ A.left
    if noise > 0:
        state = state + noise**0.5 * _deviation(A, damping, time, white)
    return state


def _relax(a: float, time: float) -> float:
    return -expm1(-a * time) / a if a else time


def _settled(A: LowRank, driven: Tensor, damping: float) -> Tensor:
    shifted = A.K.clone()
    shifted.diagonal().add_(damping)
    return torch.linalg.solve(shifted, driven.double()) / -damping if len(shifted) else driven.double()


def _coefficients(K: Tensor, begun: Tensor | None, driven: Tensor, damping: float, time: float) -> Tensor:
    """c(t), (r,), from Mᵀx₀ and Mᵀg; two columns of one matrix exponential, each for a drive of length 1."""
    r = len(K)
    system = K.new_zeros(r + 3, r + 3)
    system[:r, :r] = -K
    system.diagonal()[: r + 2] -= damping
    lengths = []
    for column, drive in ((r, begun), (r + 2, driven)):
        length = 0.0 if drive is None else float(drive.double().norm())
        lengths.append(length)
        if length:
            system[:r, column] = drive.double() / -length
    system[r + 2, r + 1] = 1  # column r decays as e^{-λt}; r + 1 does too, and its integral r + 2 is φ_t
    columns = torch.linalg.matrix_exp(system * time)[:r, r : r + 2]
    return columns @ K.new_tensor(lengths)


def _deviation(A: LowRank, damping: float, time: float, white: Tensor) -> Tensor:
    """Σ^{1/2} ξ (N,) for standard normal ξ (N,)."""
    Q = A.basis
    if (damping, time) not in A.roots:
        A.roots.clear()
        B = ((A.left @ Q).T @ (A.right @ Q)).double()
        B.diagonal().add_(damping)
        A.roots[damping, time] = _root(_covariance(B, time)).to(white.dtype)
    within = white @ Q
    beyond = 1 / damping if isinf(time) else _relax(damping, 2 * time)
    return beyond**0.5 * (white - Q @ within) + Q @ (A.roots[damping, time] @ within)


def _covariance(B: Tensor, time: float) -> Tensor:
    """2 ∫₀ᵗ e^{-Bs} e^{-Bᵀs} ds, (q, q)."""
    if not len(B):
        return B
    size = max(float(torch.linalg.matrix_norm(B)), torch.finfo(B.dtype).tiny)
    doublings = DOUBLINGS if isinf(time) else max(0, ceil(log2(4 * size * time)))
    step = 1 / (4 * size) if isinf(time) else time / 2**doublings
    term = torch.eye(len(B), dtype=B.dtype, device=B.device) * (2 * step)
    total = term.clone()
    for k in range(SERIES):
        half = B @ term
        term = (half + half.T) * (-step / (k + 2))
        total += term
    decay = torch.linalg.matrix_exp(-step * B)
    last = inf
    for _ in range(doublings):
        added = decay @ total @ decay.T
        total = total + (added + added.T) / 2
        last = float(added.norm()) / float(total.norm())
        if isinf(time) and last < torch.finfo(B.dtype).eps / 4:
            break
        decay = decay @ decay
    if isinf(time) and not last < torch.finfo(B.dtype).eps / 4:
        raise InputError("the device has no stationary noise at time inf, it is not stable; raise the damping")
    return total


def _root(covariance: Tensor) -> Tensor:
    C, failed = torch.linalg.cholesky_ex(covariance)
    if not int(failed):
        return C
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()

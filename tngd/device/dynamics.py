"""Exact state of the symmetric device at any time: dx = -(A x - g) dt + N(0, 2 κ₀ dt), A = λI + RᵀR.

A acts on the whole parameter vector. Started at x₀ and read after time t (in units of the device's time constant),

    x(t) = φ_t(A) g + e^{-At} x₀ + sqrt(κ₀) s_t(A) ξ,   φ_t(a) = (1 - e^{-at})/a,   s_t(a)² = (1 - e^{-2at})/a,

with ξ standard normal. Each term is a function of A applied to a vector. With K = R Rᵀ, whose size is the rank r of the
batch and not N,

    f(A) v = f(λ) v + Rᵀ f[λ, λ + K] R v,     f[λ, λ + w] = (f(λ + w) - f(λ))/w,     f'(λ) where w is 0,

where the divided difference is taken on the eigenvalues w of K. No N x N matrix is formed. Where a curvature serves one
gradient only, (K + λ) c = R g is solved by conjugate gradients on products with the parts of K, until the residual
reaches rounding as in a factorisation, ε ‖K + λ‖ ‖c‖; K is formed where conjugate gradients take too long.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite, isinf

import torch
from torch import Tensor

from circuits.errors import InputError
from tngd.curvature.factor import Factor

NEAR = 1e-5  # of λ + 1/t: smaller eigenvalues use f' at the midpoint, with an error of the order of NEAR²
SERIES = 1e-2  # a t below which h(a t) of _relax_slope is its series
LARGEST = 4096  # rank up to which K is formed for Lanczos steps, for reuse with later gradients
PRODUCTS = 12  # rank / PRODUCTS products with the parts of K take less time than K and its factorisation
FEWEST = 16  # conjugate gradients are not tried with fewer steps than this


@dataclass(frozen=True, eq=False)
class Held:
    """A curvature on the device: its factor R, K (r, r), and the Lanczos steps to use (None: K's eigenvectors).

    K is None where products with R may suffice: for Lanczos steps, and for a curvature that serves one gradient only.
    """

    factor: Factor
    K: Tensor | None
    lanczos: int | None = None
    lower: dict[float, Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues w (r,), none below 0, and eigenvectors (r, r) of K."""
        w, V = torch.linalg.eigh(self.gram)
        return w.clamp(min=0), V

    @property
    def formed(self) -> bool:
        """Whether K has been formed."""
        return self.K is not None or "gram" in vars(self)

    @cached_property
    def parts(self) -> tuple[Tensor, list[Tensor]] | None:
        """K in the parts of `Factor.parted`, None if there are no such parts or K would be large."""
        return None if self.factor.rank > LARGEST else self.factor.parted()

    @cached_property
    def gram(self) -> Tensor:
        """K, formed at the first use; InputError if K is not finite."""
        return _finite_gram(self.factor, self.factor.values) if self.K is None else self.K

    def product(self, vector: Tensor) -> Tensor:
        """K v, (r,), a new tensor."""
        if self.formed:
            return self.gram @ vector
        if self.parts is None:
            return self.factor.forward(self.factor.transpose(vector))
        K, written = self.parts
        return sum((R @ (vector @ R) for R in written), K @ vector)

    def cholesky(self, damping: float) -> Tensor:
        """Cholesky factor of K + λI, kept for the last damping; empty if K + λI is singular in this precision."""
        if damping not in self.lower:
            self.lower.clear()
            shifted = self.gram.clone()
            shifted.diagonal().add_(damping)
            L, failed = torch.linalg.cholesky_ex(shifted)
            # Empty if singular in this precision: callers then use the eigenvectors.
            self.lower[damping] = L if not int(failed) else torch.empty(0, dtype=L.dtype, device=L.device)
        return self.lower[damping]


def held_curvature(factor: Factor, like: Tensor, lanczos: int | None = None, once: bool = False) -> Held:
    """Put a factor on the device, K in the precision and place of `like`; InputError if K is not finite.

    `once`: the curvature serves one gradient only, so that K is formed only if products with R do not suffice.
    """
    approximate = lanczos is not None and lanczos < factor.rank
    if approximate and (once or factor.rank > LARGEST):
        return Held(factor, None, lanczos)
    if once and factor.blocks and factor.rank >= FEWEST * PRODUCTS:
        return Held(factor, None, None)
    return Held(factor, _finite_gram(factor, like), lanczos)


def device_state(
    held: Held,
    gradient: Tensor,
    start: Tensor | None,
    damping: float,
    time: float,
    noise: float = 0.0,
    white: Tensor | None = None,
) -> Tensor:
    """The state x (N,) after `time` under A = λI + RᵀR and the gradient (N,), from `start` (N,), zero if None.

    `time` from 0 to inf in time constants; `noise` κ₀, with `white` (N,) standard normal. Relative error about
    cond(A) times the precision of the gradient. InputError for a negative or not-a-number damping, time or noise, and
    for time inf without damping.
    """
    check_evolution(damping, time, noise)
    if time == 0:
        return torch.zeros_like(gradient) if start is None else start.clone()
    relax, decay, spread = _functions(time)
    if start is gradient and not isinf(time):
        terms = [(gradient, _Function(lambda a: relax(a) + decay(a), lambda a: relax.slope(a) + decay.slope(a)))]
    else:
        terms = [(gradient, relax)]
        if start is not None and not isinf(time):
            terms.append((start, decay))
    if noise > 0:
        terms.append((noise**0.5 * white, spread))
    state = sum(_at(function, damping) * vector for vector, function in terms)
    if not held.factor.rank:
        return state
    coefficients = sum(_coefficients(held, held.factor.forward(v), f, damping, time) for v, f in terms)
    return state + held.factor.transpose(coefficients)


def check_evolution(damping: float, time: float, noise: float) -> None:
    """Raise InputError for a negative or not-a-number damping, time or noise, and for time inf without damping."""
    for name, value in (("damping", damping), ("time", time), ("noise", noise)):
        if not value >= 0:
            raise InputError(f"{name} must be 0 or above, got {value}")
    if isinf(time) and damping == 0:
        raise InputError("time inf without damping has no end state; give a damping above 0 or a finite time")


def _finite_gram(factor: Factor, like: Tensor) -> Tensor:
    K = factor.gram(like)
    _check_finite(float(K.diagonal().sum()))  # K is positive semidefinite: its diagonal bounds the rest
    return K


def _check_finite(value: float) -> None:
    if not isfinite(value):
        raise InputError("the curvature is not finite, the step was not made; check the outputs, or lower lr")


def _conjugate_gradients(held: Held, vector: Tensor, damping: float) -> Tensor | None:
    """(K + λI)⁻¹ v (r,) to rounding, or None if forming and factorising K seems faster."""
    steps = held.factor.rank // PRODUCTS
    x, residual, direction = torch.zeros_like(vector), vector.clone(), vector
    first = rest = float(vector @ vector)
    bound = torch.finfo(vector.dtype).eps
    norm = 0.0  # lower bound of ‖K + λI‖
    for k in range(1, steps + 1):
        if rest == 0:
            return x
        image = held.product(direction).add_(direction, alpha=damping)
        bend = float(direction @ image)
        _check_finite(bend)
        norm = max(norm, bend / float(direction @ direction))
        x.add_(direction, alpha=rest / bend)
        residual.sub_(image, alpha=rest / bend)
        before, rest = rest, float(residual @ residual)
        goal = (bound * norm) ** 2 * float(x @ x)
        if rest <= goal:
            return x
        # A third of the steps shows the rate of convergence, which later steps exceed.
        if k == steps // 3 and rest > first * (goal / first) ** (k / (1.5 * steps)):
            return None
        direction = torch.add(residual, direction, alpha=rest / before)
    return None


@dataclass(frozen=True)
class _Function:
    """A function of an eigenvalue and its derivative."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    inverse: bool = False  # whether the function is 1/a, for which Cholesky suffices

    def __call__(self, a: Tensor) -> Tensor:
        return self.value(a)


def _functions(time: float) -> tuple[_Function, _Function, _Function]:
    """φ_t, e^{-at} and s_t."""
    if isinf(time):
        relax = _Function(lambda a: 1 / a, lambda a: -1 / a**2, inverse=True)
        decay = _Function(torch.zeros_like, torch.zeros_like)
        return relax, decay, _Function(lambda a: a**-0.5, lambda a: -0.5 * a**-1.5)
    decay = _Function(lambda a: torch.exp(-a * time), lambda a: -time * torch.exp(-a * time))

    def deviation(a: Tensor) -> Tensor:
        return _relax(a, 2 * time).sqrt()

    spread = _Function(deviation, lambda a: _relax_slope(a, 2 * time) / (2 * deviation(a)))
    return _Function(lambda a: _relax(a, time), lambda a: _relax_slope(a, time)), decay, spread


def _relax(a: Tensor, time: float) -> Tensor:
    return torch.where(a == 0, time, -torch.expm1(-a * time) / torch.where(a == 0, 1, a))


def _relax_slope(a: Tensor, time: float) -> Tensor:
    """dφ/da = t² h(at), h(x) = (x e^{-x} + e^{-x} - 1)/x²."""
    x = a * time
    near = x < SERIES
    safe = torch.where(near, 1, x)
    series = -1 / 2 + x / 3 - x**2 / 8 + x**3 / 30 - x**4 / 144
    return time**2 * torch.where(near, series, (safe * torch.exp(-safe) + torch.expm1(-safe)) / safe**2)


def _at(function: _Function, damping: float) -> float:
    return float(function(torch.tensor(damping, dtype=torch.float64)))


def _difference(function: _Function, damping: float, w: Tensor, time: float) -> Tensor:
    """f[λ, λ + w] of eigenvalues w >= 0, in double precision because of cancellation."""
    w = w.double()
    near = w < NEAR * (damping + 1 / time)
    base = torch.full_like(w, damping)
    ratio = (function(base + w) - function(base)) / torch.where(near, 1, w)
    return torch.where(near, function.slope(base + w / 2), ratio)


def _coefficients(held: Held, vector: Tensor, function: _Function, damping: float, time: float) -> Tensor:
    """f[λ, λ + K] applied to a vector (r,)."""
    if function.inverse and held.lanczos is None:
        found = None if held.formed else _conjugate_gradients(held, vector, damping)
        if found is not None:
            return found / -damping
        L = held.cholesky(damping)
        if L.numel():
            return torch.cholesky_solve(vector[:, None], L)[:, 0] / -damping
    if held.lanczos is None or held.lanczos >= held.factor.rank:
        w, V = held.eigen
        return V @ (_difference(function, damping, w, time).to(V.dtype) * (V.T @ vector))
    Q, T = _lanczos(held.product, vector, held.lanczos)
    w, V = torch.linalg.eigh(T)
    projected = V @ (_difference(function, damping, w.clamp(min=0), time).to(V.dtype) * V[0])
    return vector.norm() * (projected @ Q)


def _lanczos(product: Callable[[Tensor], Tensor], vector: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Orthonormal rows Q (m, r), Q[0] along the vector, and T = Q K Qᵀ, tridiagonal; zero rows once exhausted."""
    Q = vector.new_zeros(steps, len(vector))
    T = vector.new_zeros(steps, steps)
    zero = torch.zeros_like(vector)
    length = vector.norm()
    q = torch.where(length > 0, vector / length, zero)
    tiny = torch.finfo(vector.dtype).eps * 4
    for j in range(steps):
        Q[j] = q
        u = product(q)
        size = u.norm()
        T[j, j] = q @ u
        # Orthogonalise against all earlier vectors twice: after one pass rounding errors remain.
        for _ in range(2):
            u = u - (Q[: j + 1] @ u) @ Q[: j + 1]
        beta = u.norm()
        going = beta > tiny * size
        q = torch.where(going, u / beta, zero)
        if j + 1 < steps:
            T[j, j + 1] = T[j + 1, j] = torch.where(going, beta, torch.zeros_like(beta))
    return Q, T

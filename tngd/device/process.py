"""The reduced-order board as an Ornstein-Uhlenbeck process in torch: dx = -(A x - b) dt + N(0, D dt), y = H x.

The state is x = (v, φ), so A is not normal and D is singular. All laws are exact (tngd.device.transition). From a start
with mean m and covariance S, after time t the mean is Φ m + β and the covariance Φ S Φᵀ + Σ. The stationary mean is
A⁻¹ b, and the stationary covariance solves A Σ + Σ Aᵀ = D; stationary readings τ apart have the covariance
H e^{-Aτ} Σ Hᵀ.

The log-likelihood of recorded readings y_k = H x(t_k), without measurement noise, is exact too. Where the readings
determine the whole state (H square) it is the sum of the transition densities,

    log p = log N(x_0; m, S) + Σ log N(x_k; Φ x_{k-1} + β, Σ) - T log |det H|,

otherwise the sum of the log densities of the innovations r = y - H m of the Kalman filter, of covariance H P Hᵀ:

    K = P Hᵀ (H P Hᵀ)⁻¹,  m ← Φ (m + K r) + β,  P ← Φ (I - K H) P (I - K H)ᵀ Φᵀ + Σ.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuits.board import Program
from circuits.errors import InputError
from circuits.model.device import Device, predict
from circuits.model.reduction import reduce_order
from circuits.nodal import Circuit
from circuits.ou import diffusion, drift
from tngd.device.transition import Transition, balancing_units, distinct_steps, exact_transition, lyapunov

SKEW = 1e-5  # of the largest entry: tolerated asymmetry of a diffusion

STEADY = 64  # units in the last place: a covariance that changes by less is taken as steady
LOST = 1e3  # units in the last place: a squared pivot below this share of its variance is rounding


@dataclass(frozen=True, eq=False)
class Process:
    """An OU process with any leading batch axes; times in seconds unless the drift was scaled.

    In float64. In float32 (`to`) laws have relative errors up to 1e-5, and a process with a mode 1e6 times as slow as
    the fastest is refused.
    """

    drift: Tensor  # (…, d, d), A, 1/s
    diffusion: Tensor  # (…, d, d), D
    bias: Tensor  # (…, d), b
    readout: Tensor  # (n, d) or (…, n, d), H

    def __post_init__(self) -> None:
        """InputError if the shapes do not fit together, an entry is not finite, or the diffusion not symmetric."""
        d = self.drift.shape[-1]
        kinds = {part.dtype for part in (self.drift, self.diffusion, self.bias, self.readout)}
        if kinds not in ({torch.float64}, {torch.float32}):
            raise InputError(f"expected parts all float64 or all float32, got {', '.join(sorted(map(str, kinds)))}")
        shapes = [tuple(part.shape) for part in (self.drift, self.diffusion, self.bias, self.readout)]
        if [shape[-2:] for shape in shapes[:2]] != [(d, d)] * 2 or any(shape[-1:] != (d,) for shape in shapes[2:]):
            raise InputError(
                "expected a drift and a diffusion (…, d, d), a bias (…, d) and a readout (…, n, d) of one d, got the "
                "shapes " + ", ".join(map(str, shapes))
            )
        try:
            _ = self.batch
        except ValueError:
            raise InputError(
                "expected batch axes that broadcast, got parts of the shapes " + ", ".join(map(str, shapes))
            ) from None
        for name in ("drift", "diffusion", "bias", "readout"):
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise InputError(f"expected finite entries in the {name}, got inf or nan; check the circuit")
        D = self.diffusion
        skew = float((D - D.mT).abs().max())
        if skew > SKEW * float(D.abs().max()):
            raise InputError(f"expected a symmetric diffusion, got entries that differ by {skew:.3g} from their mirror")
        least = float(D.diagonal(dim1=-2, dim2=-1).min()) if D.numel() else 0.0
        if least < -SKEW * float(D.abs().max()):
            raise InputError(f"expected a diffusion without negative variances, got {least:.3g} on its diagonal")

    @property
    def batch(self) -> torch.Size:
        """The leading axes: the batch axes of the four parts, broadcast."""
        parts = self.drift.shape[:-2], self.diffusion.shape[:-2], self.bias.shape[:-1], self.readout.shape[:-2]
        return torch.Size(np.broadcast_shapes(*parts))

    def to(self, where: torch.device | str | torch.dtype) -> "Process":
        """The same process on another device or in another precision (float64 or float32)."""
        return Process(*(part.to(where) for part in (self.drift, self.diffusion, self.bias, self.readout)))


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal law of k quantities, with batch axes."""

    mean: Tensor  # (…, k)
    covariance: Tensor  # (…, k, k)


def program_process(device: Device, copy: int, program: Program, dtype: torch.dtype = torch.float64) -> Process:
    """The process of copy number `copy` (from 0) of a device, reduced to the order of the device, under a program.

    InputError if the device has no such copy.
    """
    if not 0 <= copy < len(device.copies):
        raise InputError(f"the device has copies 0 to {len(device.copies) - 1}, got {copy}")
    circuit = predict(device, copy, program)
    if device.order is None:
        return circuit_process(circuit, dtype)
    found = reduce_order(circuit, device.order)
    A, D, H = (torch.as_tensor(part, dtype=dtype) for part in (found.drift, found.diffusion, found.readout))
    return Process(A, D, torch.zeros(len(A), dtype=dtype), H)


def circuit_process(circuit: Circuit, dtype: torch.dtype = torch.float64) -> Process:
    """The process of a circuit (or batch of circuits): the law of circuits.ou as torch tensors."""
    A = torch.as_tensor(drift(circuit), dtype=dtype)
    coils = np.zeros((*circuit.readout.shape[:-1], circuit.coils.shape[-1]))
    H = np.concatenate([circuit.readout, coils], axis=-1)
    return Process(
        A,
        torch.as_tensor(diffusion(circuit), dtype=dtype),
        torch.zeros(A.shape[:-1], dtype=dtype),
        torch.as_tensor(H, dtype=dtype),
    )


def transition(process: Process, times: Tensor | float) -> Transition:
    """x(t) = Φ x(0) + β + N(0, Σ) over times of any shape (s) [s], axes (…, s) of the batch and of the times.

    Exact for every drift, unstable and singular ones included. InputError if a time is negative.
    """
    times = torch.as_tensor(times, dtype=torch.float64, device=process.drift.device)
    if not times.numel():
        raise InputError("expected at least one time, got none")
    if not bool((times >= 0).all()) or not bool(torch.isfinite(times).all()):
        raise InputError(f"expected finite times of zero or more, got {float(times.min()):g} s")
    batch, ones = process.batch, (1,) * times.ndim
    d = process.drift.shape[-1]
    A, D = (part.expand(*batch, d, d).reshape(*batch, *ones, d, d) for part in (process.drift, process.diffusion))
    b = process.bias.expand(*batch, d).reshape(*batch, *ones, d)
    return exact_transition(A, D, b, times.to(process.drift.dtype))


def law_after(process: Process, times: Tensor | float, start: Gaussian | Tensor) -> Gaussian:
    """Law of the state at `times` (s) [s] after a start, a law (…, d) or a fixed state (…, d): axes (…, s)."""
    over = transition(process, times)
    ones = (1,) * torch.as_tensor(times).ndim
    mean = start if isinstance(start, Tensor) else start.mean
    mean = mean.reshape(*mean.shape[:-1], *ones, mean.shape[-1])
    covariance = over.covariance
    if isinstance(start, Gaussian):
        S = start.covariance.reshape(*start.covariance.shape[:-2], *ones, *start.covariance.shape[-2:])
        covariance = covariance + over.matrix @ S @ over.matrix.mT
    return Gaussian((over.matrix @ mean[..., None])[..., 0] + over.drive, covariance)


def stationary_law(process: Process) -> Gaussian:
    """Stationary law of the state; InputError, with batch index and eigenvalue, if a drift is unstable."""
    batch, d = process.batch, process.drift.shape[-1]
    covariance = lyapunov(process.drift, process.diffusion).expand(*batch, d, d)
    unit = balancing_units(process.drift)
    A = process.drift * (unit[..., None, :] / unit[..., :, None])
    mean = torch.linalg.solve(A, (process.bias / unit)[..., None])[..., 0] * unit
    return Gaussian(mean.expand(*batch, d), covariance)


def readings(process: Process, states: Tensor) -> Tensor:
    """H x, (…, n), of states (…, d); batch axes of the readout, if any, are the first axes of the states."""
    H = process.readout
    extra = states.ndim - 1 - (H.ndim - 2)
    if H.ndim == 2:
        return states @ H.mT
    return (H.reshape(*H.shape[:-2], *(1,) * extra, *H.shape[-2:]) @ states[..., None])[..., 0]


def reading_law(process: Process, state: Gaussian) -> Gaussian:
    """Law of the readings, mean H m (…, n) and covariance H S Hᵀ (…, n, n), for a law of the state."""
    H = process.readout
    if H.ndim > 2:
        H = H.reshape(*H.shape[:-2], *(1,) * (state.mean.ndim - 1 - (H.ndim - 2)), *H.shape[-2:])
    S = H @ state.covariance @ H.mT
    return Gaussian((H @ state.mean[..., None])[..., 0], (S + S.mT) / 2)


def stationary_mean(process: Process) -> Tensor:
    """H A⁻¹ b, (…, n); InputError if the drift is unstable."""
    return reading_law(process, stationary_law(process)).mean


def stationary_covariance(process: Process) -> Tensor:
    """H Σ Hᵀ, (…, n, n), the covariance of the readings; InputError if the drift is unstable.

    >>> oscillator = Process(
    ...     torch.tensor([[0.4, 1.0], [-1.0, 0.0]], dtype=torch.float64),
    ...     torch.tensor([[0.8, 0.0], [0.0, 0.0]], dtype=torch.float64),
    ...     torch.zeros(2, dtype=torch.float64),
    ...     torch.eye(2, dtype=torch.float64),
    ... )
    >>> stationary_covariance(oscillator).round(decimals=12).abs()
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    return reading_law(process, stationary_law(process)).covariance


def autocovariance(process: Process, lags: Tensor | float) -> Tensor:
    """<y(t + τ) y(t)ᵀ> about the mean, (…, s, n, n), of the stationary readings at lags τ (s) [s], zero or more."""
    covariance = stationary_law(process).covariance
    over = transition(process, lags)
    ones = (1,) * (over.matrix.ndim - covariance.ndim)
    S = covariance.reshape(*covariance.shape[:-2], *ones, *covariance.shape[-2:])
    H = process.readout
    if H.ndim > 2:
        H = H.reshape(*H.shape[:-2], *ones, *H.shape[-2:])
    return H @ over.matrix @ S @ H.mT


def log_likelihood(
    process: Process, times: Tensor | Sequence[float], record: Tensor, start: Gaussian | None = None
) -> Tensor:
    """Natural logarithm of the density of a record (…, T, n) at increasing times (T,) [s], shape (…).

    The axes of the record are the batch axes of the process, then any others (independent records). `start` is the law
    of the state at the first time, by default the stationary law. InputError if the shapes do not fit, or if some
    readings are determined by others, so that there is no density.
    """
    times = torch.as_tensor(times, dtype=torch.float64)
    batch, (n, d) = process.batch, process.readout.shape[-2:]
    if record.shape[: len(batch)] != batch or record.shape[-2:] != (len(times), n):
        raise InputError(
            f"expected a record of shape {(*batch, '…', len(times), n)}: the axes of the process, times, readings; "
            f"got {tuple(record.shape)}"
        )
    if not bool(torch.isfinite(record).all()):
        raise InputError("expected a record without gaps, got readings that are not finite; leave those times out")
    steps, which = distinct_steps(times)
    over = transition(process, steps)
    law = stationary_law(process) if start is None else start
    law = Gaussian(law.mean.expand(*batch, d).reshape(-1, d), law.covariance.expand(*batch, d, d).reshape(-1, d, d))
    flat = Transition(
        *(part.reshape(-1, *part.shape[len(batch) :]) for part in (over.matrix, over.drive, over.covariance))
    )
    H = process.readout.expand(*batch, n, d).reshape(-1, n, d)
    y = record.reshape(len(H), -1, len(times), n)
    found = (_transitions if n == d else _innovations)(flat, which, law, H, y)
    return found.reshape(record.shape[:-2])


def _transitions(over: Transition, which: Tensor, law: Gaussian, H: Tensor, y: Tensor) -> Tensor:
    size, volume = torch.linalg.slogdet(H)
    if not bool((size != 0).all()):
        raise InputError("expected a readout of full rank, but some readings are fixed by others; leave those out")
    x = torch.linalg.solve(H[:, None], y.mT).mT
    total = _density(x[:, :, :1] - law.mean[:, None, None], _factor(law.covariance))
    for u in range(over.matrix.shape[1]):
        there = (which == u).nonzero()[:, 0].to(x.device)
        before, after = x[:, :, there], x[:, :, there + 1]
        residual = after - before @ over.matrix[:, None, u].mT - over.drive[:, None, u, None]
        total = total + _density(residual, _factor(over.covariance[:, u]))
    return total - y.shape[2] * volume[:, None]


def _innovations(over: Transition, which: Tensor, law: Gaussian, H: Tensor, y: Tensor) -> Tensor:
    mean, P = law.mean[:, None].expand(-1, y.shape[1], -1), law.covariance
    eye = torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
    parts, last, steady = [], None, False
    for k, step in enumerate([*which.tolist(), int(which[-1])]):  # the prediction after the last reading is not used
        if not steady or step != last:  # with equal steps the covariance becomes steady, and only the mean changes
            known = P @ H.mT
            parts.append((_factor(H @ known), []))
            gain = torch.linalg.solve(H @ known, known.mT).mT
            onward, carry = (over.matrix[:, step] @ part for part in (eye - gain @ H, gain))
            before, P = P, onward @ P @ onward.mT + over.covariance[:, step]
            P = (P + P.mT) / 2
            steady, last = _alike(before, P), step
        parts[-1][1].append(y[:, :, k] - mean @ H.mT)
        mean = mean @ onward.mT + y[:, :, k] @ carry.mT + over.drive[:, None, step]
    return sum(_density(torch.stack(residuals, dim=2), factor) for factor, residuals in parts)


def _alike(before: Tensor, after: Tensor) -> bool:
    size = after.diagonal(dim1=-2, dim2=-1).sqrt()
    rounding = STEADY * torch.finfo(size.dtype).eps * size[:, :, None] * size[:, None, :]
    return bool(((after - before).abs() <= rounding).all())


def _factor(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations (b, k) and the Cholesky factor (b, k, k) of the correlations; InputError if singular."""
    size = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    factor, failed = torch.linalg.cholesky_ex(covariance / size[:, :, None] / size[:, None, :])
    pivots = factor.diagonal(dim1=-2, dim2=-1)
    if bool((failed > 0).any()) or not bool((pivots**2 > LOST * torch.finfo(size.dtype).eps).all()):
        raise InputError(
            "the readings have no density: some are fixed by others, or by those before; leave those out, take the "
            "readings further apart, or give a start that is not fixed"
        )
    return size, factor


def _density(residual: Tensor, factor: tuple[Tensor, Tensor]) -> Tensor:
    """Σ over rows of log N(r; 0, S), (b, s), of residuals (b, s, rows, k), for the factor of S (b, k, k)."""
    size, L = factor
    rows, k = residual.shape[2:]
    scaled = (residual / size[:, None, None]).flatten(1, 2)
    square = torch.linalg.solve_triangular(L, scaled.mT, upper=False).square().sum(dim=1)
    volume = (L.diagonal(dim1=-2, dim2=-1).log() + size.log()).sum(dim=-1) + k / 2 * math.log(2 * math.pi)
    return -square.unflatten(1, (-1, rows)).sum(dim=-1) / 2 - rows * volume[:, None]

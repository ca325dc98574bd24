"""Exact log-likelihood of recorded readings y_k = H x(t_k) of dx = -(A x - b) dt + N(0, D dt), without other noise.

Where the readings tell the whole state (H square) it is the sum of the transition densities,
    log p = log N(x_0; m, S) + Σ log N(x_k; Φ x_{k-1} + β, Σ) - T log |det H|,
otherwise the sum of the innovations r = y - H m of the Kalman filter, of covariance H P Hᵀ:
    K = P Hᵀ (H P Hᵀ)⁻¹,  m ← Φ (m + K r) + β,  P ← Φ (I - K H) P (I - K H)ᵀ Φᵀ + Σ.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from circuits.errors import InputError
from tngd.device.process import Gaussian, Process, stationary_law, transition
from tngd.device.transition import Transition
from tngd.paths import distinct_steps

STEADY = 64  # units in the last place by which a covariance may change that is taken to stay
LOST = 1e3  # units in the last place: a variance that small beside what it was before is rounding


def log_likelihood(
    process: Process, times: Tensor | Sequence[float], record: Tensor, start: Gaussian | None = None
) -> Tensor:
    """Natural logarithm of the density of a record (…, T, n) at increasing times (T,) [s], shape (…).

    The axes of the record are those of the process, then any others (independent records). `start` is the law of the
    state at the first time, by default the stationary one. InputError if the shapes do not fit, or if some readings
    are fixed by others, so that there is no density.
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
    for k, step in enumerate([*which.tolist(), int(which[-1])]):  # what comes after the last reading is not used
        if not steady or step != last:  # equal steps soon have one covariance, and nothing but the mean moves
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

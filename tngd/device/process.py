"""The reduced-order board as an Ornstein-Uhlenbeck process in torch: dx = -(A x - b) dt + N(0, D dt), y = H x.

State x = (v, φ), so A is not normal and D is singular. Laws are exact (tngd.device.transition): from any start with mean m
and covariance S, after t the mean is Φ m + β and the covariance Φ S Φᵀ + Σ; stationary mean A⁻¹ b, and covariance from
A Σ + Σ Aᵀ = D; stationary readings τ apart have the covariance H e^{-Aτ} Σ Hᵀ.
"""

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
from tngd.device.transition import Transition, balancing_units, exact_transition, lyapunov

SKEW = 1e-5  # of the largest entry, by which a diffusion may fail to be symmetric


@dataclass(frozen=True, eq=False)
class Process:
    """An OU process with any leading batch axes; times in seconds unless the drift was scaled.

    In float64; in float32 (`to`) laws are off by up to 1e-5 of their size, and a mode 1e6 times as slow as the fastest
    is refused.
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
        """The leading axes, those of the parts broadcast."""
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
    """The process of copy number `copy` (from 0) of a device, of the device's order, under a program for its board."""
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
    """Stationary law of the state; InputError if a drift is unstable, naming which and its eigenvalue's real part."""
    batch, d = process.batch, process.drift.shape[-1]
    covariance = lyapunov(process.drift, process.diffusion).expand(*batch, d, d)
    unit = balancing_units(process.drift)
    A = process.drift * (unit[..., None, :] / unit[..., :, None])
    mean = torch.linalg.solve(A, (process.bias / unit)[..., None])[..., 0] * unit
    return Gaussian(mean.expand(*batch, d), covariance)


def readings(process: Process, states: Tensor) -> Tensor:
    """H x, (…, n), of states (…, d); batch axes of the readout, if it has any, are the first of the states."""
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

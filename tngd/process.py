"""The reduced-order board as an Ornstein-Uhlenbeck process in torch: dx = -(A x - b) dt + N(0, D dt), y = H x.

State x = (v, φ), so A is not normal and D is singular. Stationary mean A⁻¹ b; stationary covariance from
A Σ + Σ Aᵀ = D, by doubling the exact transition: Σ(2t) = Σ(t) + e^{-At} Σ(t) e^{-Aᵀt}.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuits.assembly import Circuit
from circuits.board import Program
from circuits.device import Device, predict
from circuits.errors import InputError
from circuits.ou import diffusion, drift

SETTLED = 1e-9  # of e^{-At}: what is left of the covariance is its square


@dataclass(frozen=True, eq=False)
class Process:
    """An OU process with any leading batch axes; times in seconds unless the drift was scaled."""

    drift: Tensor  # (…, d, d), A, 1/s
    diffusion: Tensor  # (…, d, d), D
    bias: Tensor  # (…, d), b
    readout: Tensor  # (n, d), H


def program_process(device: Device, copy: int, program: Program, dtype: torch.dtype = torch.float64) -> Process:
    """The process of copy number `copy` (from 0) of a device under a program for its board."""
    if not 0 <= copy < len(device.copies):
        raise InputError(f"the device has copies 0 to {len(device.copies) - 1}, got {copy}")
    return circuit_process(predict(device, copy, program), dtype)


def circuit_process(circuit: Circuit, dtype: torch.dtype = torch.float64) -> Process:
    """The process of a circuit (or batch of circuits): the law of circuits.ou as torch tensors."""
    A = torch.as_tensor(drift(circuit), dtype=dtype)
    H = np.concatenate([circuit.readout, np.zeros((len(circuit.readout), circuit.coils.shape[-1]))], axis=1)
    return Process(
        A,
        torch.as_tensor(diffusion(circuit), dtype=dtype),
        torch.zeros(A.shape[:-1], dtype=dtype),
        torch.as_tensor(H, dtype=dtype),
    )


def stationary_mean(process: Process) -> Tensor:
    """H A⁻¹ b, (…, n)."""
    return torch.linalg.solve(process.drift, process.bias) @ process.readout.T


def stationary_covariance(process: Process) -> Tensor:
    """H Σ Hᵀ, (…, n, n), the covariance of the readings; the drift must be stable.

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
    A, unit = _balanced(process)
    D = process.diffusion / (unit[..., :, None] * unit[..., None, :])
    d = A.shape[-1]
    block = torch.zeros(*A.shape[:-2], 2 * d, 2 * d, dtype=A.dtype)
    block[..., :d, :d], block[..., :d, d:], block[..., d:, d:] = -A, D, A.mT
    exponential = torch.linalg.matrix_exp(block * (0.1 / A.abs().sum(dim=-1).max()))
    transition = exponential[..., :d, :d]
    covariance = exponential[..., :d, d:] @ transition.mT
    while not transition.abs().max() <= SETTLED:
        if not torch.isfinite(transition).all():
            raise InputError("the drift is unstable: an eigenvalue has a real part of zero or less")
        covariance = covariance + transition @ covariance @ transition.mT
        transition = transition @ transition
    H = process.readout * unit[..., None, :]
    return H @ covariance @ H.mT


def _balanced(process: Process) -> tuple[Tensor, Tensor]:
    """Drift in units of the state that make its off-diagonal blocks alike, and those units (…, d)."""
    A = process.drift
    unit = torch.ones(A.shape[:-1], dtype=A.dtype)
    half = A.shape[-1] // 2
    if half and A.shape[-1] % 2 == 0:
        ratio = A[..., half:, :half].abs().amax((-2, -1)) / A[..., :half, half:].abs().amax((-2, -1))
        unit[..., half:] = torch.nan_to_num(ratio.sqrt(), nan=1.0, posinf=1.0)[..., None].clamp(min=1e-30)
    return A * (unit[..., None, :] / unit[..., :, None]), unit

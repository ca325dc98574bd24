"""The linear recursion x_k = Φ x_{k-1} + w_k over many steps, in place, as a few wide matrix products.

The N steps are cut into blocks of B. The ends of the blocks from a zero start, e = Σ Φ^{B-1-j} w_j, need one product a
step of all blocks at once; the true ends are the same recursion with Φ^B; from them all blocks are walked through
together. Rows are states, so a step is X Φᵀ. Small systems, whose products are too small to be worth a call, take
several steps in one product instead: a block of B rows (w_1 … w_B) times the block Toeplitz matrix of powers of Φ.
"""

import torch
from torch import Tensor

WIDE = 32  # rows of one product from which walking step by step costs less than two passes
SHORT = 24  # steps that are walked through one by one
TOEPLITZ = 64  # rows of the matrix of several steps


def scan_in_place(matrix: Tensor, noise: Tensor) -> None:
    """Turn w_0 … w_{N-1} into x_0 = w_0, x_k = Φ x_{k-1} + w_k.

    `matrix` Φ (b, d, d), `noise` w (b, s, N, d): s sequences of every one of b systems.
    """
    systems, sequences, steps, d = noise.shape
    if steps <= SHORT or sequences >= WIDE:
        _walk(matrix, noise)
    elif systems * sequences * d <= TOEPLITZ and 2 * d <= TOEPLITZ:
        _leap(matrix, noise, TOEPLITZ // d)
    else:
        _in_blocks(matrix, noise)


def powers(matrix: Tensor, count: int) -> Tensor:
    """Φ, Φ², …, Φ^count of Φ (b, d, d), as (b, count, d, d), by doubling."""
    found = matrix[:, None]
    while found.shape[1] < count:
        more = min(found.shape[1], count - found.shape[1])
        found = torch.cat([found, found[:, -1:] @ found[:, :more]], dim=1)
    return found


def _walk(matrix: Tensor, noise: Tensor) -> None:
    step = matrix.mT
    rows = noise[:, :, 0].clone()
    for k in range(1, noise.shape[2]):
        rows = torch.bmm(rows, step).add_(noise[:, :, k])
        noise[:, :, k] = rows


def _in_blocks(matrix: Tensor, noise: Tensor) -> None:
    systems, sequences, steps, d = noise.shape
    block = int(steps**0.5)
    blocks = steps // block
    whole = noise[:, :, : blocks * block].unflatten(2, (blocks, block))
    by_step = [whole[:, :, :, j].reshape(systems, -1, d) for j in range(block)]
    step = matrix.mT
    end = by_step[0]
    for part in by_step[1:]:
        end = torch.baddbmm(part, end, step)
    ends = end.view(systems, sequences, blocks, d)
    scan_in_place(torch.linalg.matrix_power(matrix, block), ends)
    rows = torch.zeros_like(ends)
    rows[:, :, 1:] = ends[:, :, :-1]
    rows = rows.view(systems, -1, d)
    for j, part in enumerate(by_step):
        rows = torch.baddbmm(part, rows, step)
        whole[:, :, :, j] = rows.view(systems, sequences, blocks, d)
    if blocks * block < steps:
        _walk(matrix, noise[:, :, blocks * block - 1 :])


def _leap(matrix: Tensor, noise: Tensor, block: int) -> None:
    systems, sequences, steps, d = noise.shape
    blocks = steps // block
    ladder = powers(matrix, block).mT  # Φᵀ, Φ²ᵀ, …
    lags = torch.arange(block, device=noise.device)[None, :] - torch.arange(block, device=noise.device)[:, None]
    eye = torch.eye(d, dtype=noise.dtype, device=noise.device).expand(systems, 1, d, d)
    toeplitz = torch.cat([eye, ladder], dim=1)[:, lags.clamp(min=0)] * (lags >= 0)[:, :, None, None]
    toeplitz = toeplitz.transpose(2, 3).reshape(systems, block * d, block * d)
    onward = ladder.transpose(1, 2).reshape(systems, d, block * d)
    whole = noise[:, :, : blocks * block].reshape(systems, -1, block * d) @ toeplitz
    whole = whole.view(systems, sequences, blocks, block * d)
    ends = whole[..., -d:].clone()
    scan_in_place(matrix @ ladder[:, -2].mT if block > 1 else matrix, ends)
    starts = ends[:, :, :-1].reshape(systems, -1, d)
    whole[:, :, 1:] += (starts @ onward).view(systems, sequences, blocks - 1, block * d)
    noise[:, :, : blocks * block] = whole.view(systems, sequences, blocks * block, d)
    if blocks * block < steps:
        _walk(matrix, noise[:, :, blocks * block - 1 :])

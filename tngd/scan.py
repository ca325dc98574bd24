"""The random recursion x_k = Φ x_{k-1} + β + F z_k over many equal steps, as few and wide matrix products.

Rows are states, so a step is X Φᵀ. Many sequences of one system are walked through together, step by step. Few long
ones are cut into blocks of B steps: from a zero start all blocks are walked through at once to their ends e; the true
ends obey the same recursion with Φ^B; from them all blocks are walked through again, which is exact and takes one
product more a step. Small systems, whose products are not worth a call, take several steps in one product: a row of
noises (w_1 … w_m) times the block Toeplitz matrix of the powers of Φ, and so on for the ends.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

WIDE = 32  # rows of one product from which walking step by step costs less than walking twice
SMALL = 16  # states of a system that takes several steps in one product
TOEPLITZ = 128  # rows of the matrix of several steps
SCRATCH = 4 << 20  # bytes of noise at a time: what a cache holds
PIECE = 1 << 16  # random numbers at a time, likewise
Fill = Callable[[Tensor], Tensor]  # fills a contiguous tensor with independent N(0, 1)


@dataclass(frozen=True, eq=False)
class Recursion:
    """One step of each of b systems."""

    matrix: Tensor  # (b, d, d), Φ
    drive: Tensor  # (b, d), β
    factor: Tensor  # (b, d, d), F

    def __getitem__(self, part: slice) -> "Recursion":
        """Some of the systems."""
        return Recursion(self.matrix[part], self.drive[part], self.factor[part])


def run(recursion: Recursion, path: Tensor, fill: Fill) -> None:
    """Fill `path` (b, s, N, d), s sequences of every system, from its first states path[:, :, 0]."""
    systems, sequences, points, d = path.shape
    each = max(1, SCRATCH // (sequences * points * d * path.element_size()))
    for first in range(0, systems, each):
        part = slice(first, first + each)
        some, there = recursion[part], path[part]
        if sequences >= WIDE or points <= WIDE:
            _walk(some, there, fill)
        elif d <= SMALL and there.shape[0] * sequences < WIDE:
            _leap(some, there, fill)
        else:
            _in_blocks(some, there, fill)


def normals(like: Tensor, generator: Generator) -> Fill:
    """What fills tensors of this kind with independent N(0, 1), a stream of its own that the generator starts.

    In float64 on a CPU by numpy's ziggurat on SFC64, twice and more as fast as torch's own.
    """
    if like.dtype == torch.float64 and like.device.type == "cpu":
        words = torch.randint(2**62, (4,), generator=generator).tolist()
        stream = np.random.Generator(np.random.SFC64(words))

        def by_numpy(out: Tensor) -> Tensor:
            stream.standard_normal(out=out.numpy())
            return out

        return by_numpy
    if like.dtype != torch.float64:
        return lambda out: out.normal_(generator=generator)
    return lambda out: _by_box_and_muller(out, generator)


def powers(matrix: Tensor, count: int) -> Tensor:
    """Φ, Φ², …, Φ^count of Φ (b, d, d), as (b, count, d, d), by doubling."""
    found = matrix[:, None]
    while found.shape[1] < count:
        more = min(found.shape[1], count - found.shape[1])
        found = torch.cat([found, found[:, -1:] @ found[:, :more]], dim=1)
    return found


def _by_box_and_muller(out: Tensor, generator: Generator) -> Tensor:
    for piece in out.view(-1).split(PIECE):
        half = (len(piece) + 1) // 2
        radius = torch.rand(half, dtype=out.dtype, device=out.device, generator=generator)
        angle = torch.rand(half, dtype=out.dtype, device=out.device, generator=generator).mul_(2 * torch.pi)
        radius = radius.neg_().log1p_().mul_(-2).sqrt_()
        torch.cos(angle, out=piece[:half]).mul_(radius)
        rest = len(piece) - half
        torch.sin(angle[:rest], out=piece[half:]).mul_(radius[:rest])
    return out


def _walk(recursion: Recursion, path: Tensor, fill: Fill) -> None:
    step, factor, drive = recursion.matrix.mT, recursion.factor.mT, recursion.drive[:, None]
    rows = path[:, :, 0].contiguous()
    z = torch.empty_like(rows)
    for k in range(1, path.shape[2]):
        moved = torch.baddbmm(drive, fill(z), factor)
        rows = moved.baddbmm_(rows, step)
        path[:, :, k] = rows


def _in_blocks(recursion: Recursion, path: Tensor, fill: Fill) -> None:
    systems, sequences, points, d = path.shape
    block, blocks = _division(points - 1)
    step = recursion.matrix.mT.contiguous()
    noise = _noise(recursion, fill(path.new_empty(systems, sequences * blocks * block, d)))
    noise = noise.view(systems, sequences * blocks, block, d)
    end = noise[:, :, 0].contiguous()
    for k in range(1, block):
        end = torch.baddbmm(noise[:, :, k], end, step)
    ends = end.view(systems, sequences, blocks, d)
    rows = torch.empty_like(ends)
    rows[:, :, 0] = path[:, :, 0]
    leap = torch.linalg.matrix_power(recursion.matrix, block).mT
    for k in range(1, blocks):
        rows[:, :, k] = torch.baddbmm(ends[:, :, k - 1], rows[:, :, k - 1], leap)
    rows = rows.view(systems, -1, d)
    for k in range(block):
        rows = torch.baddbmm(noise[:, :, k], rows, step)
        noise[:, :, k] = rows
    # The last block may reach beyond the end.
    path[:, :, 1:] = noise.view(systems, sequences, blocks * block, d)[:, :, : points - 1]


def _noise(recursion: Recursion, z: Tensor) -> Tensor:
    """β + F z of standard normal rows (b, r, d)."""
    if not bool(recursion.drive.count_nonzero()):
        return torch.bmm(z, recursion.factor.mT)
    return torch.baddbmm(recursion.drive[:, None], z, recursion.factor.mT)


def _division(steps: int) -> tuple[int, int]:
    """Length and number of blocks, about alike, that waste few steps."""
    root = int(steps**0.5)
    block = min(range(max(1, root - root // 4), root + 1), key=lambda size: (-(-steps // size) * size, -size))
    return block, -(-steps // block)


def _leap(recursion: Recursion, path: Tensor, fill: Fill) -> None:
    systems, sequences, points, d = path.shape
    noise = _noise(recursion, fill(path.new_empty(systems, sequences * (points - 1), d)))
    noise = noise.view(systems, sequences, points - 1, d)
    noise[:, :, 0] += path[:, :, 0] @ recursion.matrix.mT
    path[:, :, 1:] = _sums(recursion.matrix, noise)


def _sums(matrix: Tensor, noise: Tensor) -> Tensor:
    """Σ_{i ≤ k} Φ^{k-i} w_i of w (b, s, N, d), by blocks, their ends, and so on."""
    systems, sequences, steps, d = noise.shape
    block = min(steps, TOEPLITZ // d)
    blocks = -(-steps // block)
    if blocks * block > steps:
        noise = torch.nn.functional.pad(noise, (0, 0, 0, blocks * block - steps))
    ladder = powers(matrix, block)
    found = noise.reshape(systems, sequences * blocks, block * d) @ _toeplitz(ladder)
    found = found.view(systems, sequences, blocks, block * d)
    if blocks > 1:
        ends = _sums(ladder[:, -1], found[:, :, :-1, -d:])
        onward = ladder.mT.transpose(1, 2).reshape(systems, d, block * d)
        found[:, :, 1:] += (ends.reshape(systems, -1, d) @ onward).view(systems, sequences, blocks - 1, block * d)
    return found.view(systems, sequences, blocks * block, d)[:, :, :steps]


def _toeplitz(ladder: Tensor) -> Tensor:
    """(b, m d, m d): what a row of m noises makes of the states after each of them."""
    systems, block, d, _ = ladder.shape
    # One row of blocks 0 … 0 I Φᵀ … ; row i of the matrix starts i blocks earlier.
    row = ladder.new_zeros(systems, d, 2 * block - 1, d)
    row[:, :, block - 1] = torch.eye(d, dtype=ladder.dtype, device=ladder.device)
    row[:, :, block:] = ladder[:, :-1].mT.transpose(1, 2)
    windows = row.unfold(2, block, 1).flip(2)  # (b, d, i, d', j)
    return windows.permute(0, 2, 1, 4, 3).reshape(systems, block * d, block * d)

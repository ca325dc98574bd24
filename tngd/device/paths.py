"""Exact paths of dx = -(A x - b) dt + N(0, D dt) on any grid of times, and draws of the stationary state.

From one time to the next, x_k = Φ x_{k-1} + β + F z_k with z ~ N(0, I) and F Fᵀ = Σ (tngd.device.transition), exact for
steps of any length. Over many equal steps this recursion is computed by few and wide matrix products. Rows are states,
so a step is X Φᵀ.

* Many sequences of one system advance together, step by step.
* Few long sequences are cut into blocks of B steps. From a zero start all blocks advance at once to their ends e; the
  true ends obey the same recursion with Φ^B; from the true ends all blocks advance again. The result is exact and takes
  one product more a step.
* Small systems, for which one product a step is not worth a call, take m steps in one product: a row of normals
  (z_1 … z_m) times the block Toeplitz matrix of F, Φ F, Φ² F …; the ends of the blocks follow in the same way.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from tngd.device.process import Gaussian, Process, reading_law, stationary_law, transition
from tngd.device.transition import distinct_steps, noise_factor

WIDE = 32  # rows of one product from which one pass step by step costs less than two passes over blocks
SMALL = 16  # largest number of states of a system that takes several steps in one product
TOEPLITZ = 128  # rows of the block Toeplitz matrix of several steps
SCRATCH = 4 << 20  # bytes of noise at a time: the size of a cache
PIECE = 1 << 17  # random numbers at a time, likewise
NARROW = 64  # states up to which numpy multiplies float64 matrices faster than torch, three times at 16
Fill = Callable[[Tensor], Tensor]  # fills a contiguous tensor with independent N(0, 1)


@dataclass(frozen=True, eq=False)
class Recursion:
    """One step x ← Φ x + β + F z of each of b systems."""

    matrix: Tensor  # (b, d, d), Φ
    drive: Tensor  # (b, d), β
    factor: Tensor  # (b, d, d), F

    def __getitem__(self, part: slice) -> "Recursion":
        """The recursion of some of the systems."""
        return Recursion(self.matrix[part], self.drive[part], self.factor[part])


def run(recursion: Recursion, path: Tensor, fill: Fill) -> None:
    """Fill `path` (b, s, N, d), s sequences of N states of every system, from the first states path[:, :, 0]."""
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
    """Return a function that fills tensors like this one with independent N(0, 1); the generator seeds its stream.

    On a CPU the Box-Muller method on numpy's SFC64: faster than torch's own normals in float32, and three times as fast
    in float64.
    """
    pairs = PAIRS.get(like.dtype)
    if like.device.type == "cpu" and pairs is not None:
        stream = np.random.SFC64(torch.randint(2**62, (4,), generator=generator).tolist())

        def by_numpy(out: Tensor) -> Tensor:
            flat = out.view(-1).numpy()
            for first in range(0, len(flat), PIECE):
                piece = flat[first : first + PIECE]
                half = (len(piece) + 1) // 2
                pairs(stream, piece[:half], piece[half:])
            return out

        return by_numpy
    if like.dtype != torch.float64:
        return lambda out: out.normal_(generator=generator)
    return lambda out: _by_box_and_muller(out, generator)


def product(rows: Tensor, matrix: Tensor, out: Tensor | None = None) -> Tensor:
    """Rows (b, r, k) times matrices (b, k, c), written into `out` if given."""
    if matrix.dtype == torch.float64 and matrix.device.type == "cpu" and matrix.shape[-1] <= NARROW:
        given = None if out is None else out.numpy()
        return torch.from_numpy(np.matmul(rows.numpy(), matrix.numpy(), out=given))
    return torch.bmm(rows, matrix, out=out)


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


def _pairs(stream: np.random.SFC64, first: np.ndarray, second: np.ndarray) -> None:
    """Box-Muller pairs r cos θ and r sin θ in float64, by torch: vector instructions on every CPU, unlike numpy."""
    uniform = torch.from_numpy(np.random.Generator(stream).random(2 * len(first)))
    radius, angle = uniform[: len(first)], uniform[len(first) :].mul_(2 * math.pi)
    radius.neg_().add_(1).log_().mul_(-2).sqrt_()  # of 1 - u, never zero
    torch.cos(angle, out=torch.from_numpy(first)).mul_(radius)
    many = len(second)
    torch.sin(angle[:many], out=torch.from_numpy(second)).mul_(radius[:many])


def _single_pairs(stream: np.random.SFC64, first: np.ndarray, second: np.ndarray) -> None:
    """Box-Muller pairs in float32, from the halves of 64 random bits: radii up to 6.8 (5.8 with 24 bits each)."""
    uniform = stream.random_raw(len(first)).view(np.uint32).astype(np.float32)
    radius, angle = uniform[: len(first)], uniform[len(first) :]
    radius += np.float32(0.5)
    radius *= np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle *= np.float32(2 * np.pi * 2.0**-32)
    np.cos(angle, out=first)
    first *= radius
    np.sin(angle[: len(second)], out=second)
    second *= radius[: len(second)]


PAIRS = {torch.float64: _pairs, torch.float32: _single_pairs}


def _walk(recursion: Recursion, path: Tensor, fill: Fill) -> None:
    systems, sequences, points, d = path.shape
    step, rows = recursion.matrix.mT.contiguous(), path[:, :, 0].contiguous()
    chunk = max(PIECE // rows.numel(), 1)
    for first in range(1, points, chunk):
        many = min(chunk, points - first)
        noise = _noise(recursion, fill(path.new_empty(systems, many * sequences, d)))
        noise = noise.view(systems, many, sequences, d)
        for k in range(many):
            rows = product(rows, step).add_(noise[:, k])
            path[:, :, first + k] = rows


def _in_blocks(recursion: Recursion, path: Tensor, fill: Fill) -> None:
    systems, sequences, points, d = path.shape
    block, blocks = _division(points - 1)
    step = recursion.matrix.mT.contiguous()
    z = fill(path.new_empty(systems, sequences * blocks * block, d))
    there = sequences == 1 and blocks * block == points - 1  # saves a copy
    states = _noise(recursion, z, path[:, 0, 1:] if there else torch.empty_like(z))
    states = states.unflatten(1, (sequences * blocks, block))
    end = states[:, :, 0].contiguous()
    for k in range(1, block):
        end = product(end, step).add_(states[:, :, k])
    starts = torch.cat([path[:, :, :1], end.view(systems, sequences, blocks, d)[:, :, :-1]], dim=2)
    rows = _summed(starts, recursion.matrix.mT.contiguous(), block)
    rows = rows.view(systems, -1, d)
    for k in range(block):
        rows = states[:, :, k].add_(product(rows, step))
    if not there:  # the last block may reach beyond the end
        path[:, :, 1:] = states.view(systems, sequences, blocks * block, d)[:, :, : points - 1]


def _summed(rows: Tensor, step: Tensor, block: int) -> Tensor:
    """x_j = Φ^B x_(j-1) + e_j, (b, s, blocks, d), from rows x_0, e_1, e_2 …, which are overwritten."""
    systems, _, blocks, d = rows.shape
    leap = step
    for bit in bin(block)[3:]:
        leap = product(leap, leap)
        leap = product(leap, step) if bit == "1" else leap
    if d > NARROW:
        for k in range(1, blocks):
            rows[:, :, k] += product(rows[:, :, k - 1], leap)
        return rows
    reach = 1
    while reach < blocks:  # sums over 2, 4, 8 … rows
        rows[:, :, reach:] += product(rows[:, :, :-reach].reshape(systems, -1, d), leap).view_as(rows[:, :, reach:])
        leap, reach = product(leap, leap), 2 * reach
    return rows


def _noise(recursion: Recursion, z: Tensor, out: Tensor | None = None) -> Tensor:
    """β + F z of standard normal rows z (b, r, d), written into `out` if given."""
    found = product(z, recursion.factor.mT.contiguous(), out)
    return found.add_(recursion.drive[:, None]) if bool(recursion.drive.count_nonzero()) else found


def _division(steps: int) -> tuple[int, int]:
    """Length and number of blocks, of similar size, that waste few steps."""
    root = int(steps**0.5)
    block = min(range(max(1, root - root // 4), root + 1), key=lambda size: (-(-steps // size) * size, -size))
    return block, -(-steps // block)


def _leap(recursion: Recursion, path: Tensor, fill: Fill) -> None:
    systems, sequences, points, d = path.shape
    block = _leap_size(points - 1, d)
    z = fill(path.new_empty(systems, sequences, -(-(points - 1) // block) * block, d))
    drive = recursion.drive if bool(recursion.drive.count_nonzero()) else None
    path[:, :, 1:] = _sums(recursion.matrix, recursion.factor, drive, path[:, :, 0], z)[:, :, : points - 1]


def _leap_size(steps: int, d: int) -> int:
    """Number of steps in one product, about the same at all levels of recursion."""
    most = max(TOEPLITZ // d, 2)
    levels = max(math.ceil(math.log(steps) / math.log(most)), 1)
    return min(math.ceil(steps ** (1 / levels)), most)


def _sums(matrix: Tensor, factor: Tensor | None, drive: Tensor | None, start: Tensor, z: Tensor) -> Tensor:
    """x_1 … x_N from x_0 (b, s, d) and z (b, s, N, d), by blocks and recursively their ends; None: F = 1, β = 0."""
    systems, sequences, steps, d = z.shape
    block = _leap_size(steps, d)
    blocks = -(-steps // block)
    if blocks * block > steps:
        z = torch.nn.functional.pad(z, (0, 0, 0, blocks * block - steps))
    onward = _powers(matrix, block)
    found = torch.bmm(z.reshape(systems, sequences * blocks, block * d), _toeplitz(onward, factor))
    if drive is not None:
        course = torch.cat([drive[:, None], drive[:, None] @ onward[:, :, : (block - 1) * d]], dim=2)
        found += course.view(systems, block, d).cumsum(1).view(systems, 1, block * d)
    before = start[:, :, None]
    if blocks > 1:
        ends = found.view(systems, sequences, blocks, block * d)[..., -d:]
        before = torch.cat([before, _sums(onward[:, :, -d:].mT, None, None, start, ends)[:, :, :-1]], dim=2)
    found.baddbmm_(before.reshape(systems, -1, d), onward)
    return found.view(systems, sequences, blocks * block, d)[:, :, :steps]


def _powers(matrix: Tensor, count: int) -> Tensor:
    """(Φ Φ² … Φ^count)ᵀ side by side, (b, d, count d), by doubling."""
    d = matrix.shape[-1]
    found = matrix.new_empty(len(matrix), d, count * d)
    found[:, :, :d] = matrix.mT
    done = 1
    while done < count:
        more = min(done, count - done) * d
        last = found[:, :, (done - 1) * d : done * d]
        found[:, :, done * d : done * d + more] = torch.bmm(last, found[:, :, :more])
        done *= 2
    return found


def _toeplitz(onward: Tensor, factor: Tensor | None) -> Tensor:
    """(b, m d, m d): the matrix from a row of m noises to the m states after each of them."""
    systems, d, width = onward.shape
    # One row of blocks 0 … 0 Fᵀ (Φ F)ᵀ … ; row i of the matrix starts i blocks earlier.
    row = onward.new_zeros(systems, d, 2 * width - d)
    if factor is None:
        row[:, :, width - d : width] = torch.eye(d, dtype=row.dtype, device=row.device)
        row[:, :, width:] = onward[:, :, :-d]
    else:
        row[:, :, width - d : width] = factor.mT
        row[:, :, width:] = torch.bmm(factor.mT, onward[:, :, :-d])
    return row.unfold(2, width, d).flip(2).transpose(1, 2).reshape(systems, width, width)


@dataclass(frozen=True, eq=False)
class Steps:
    """Precomputed transitions for paths on one grid of T times: u distinct steps of processes with batch axes (…)."""

    times: Tensor  # (T,), s
    matrix: Tensor  # (…, u, d, d), Φ
    drive: Tensor  # (…, u, d), β
    factor: Tensor  # (…, u, d, d), F
    which: Tensor  # (T - 1,), index into the u steps


def prepare_steps(process: Process, times: Tensor | Sequence[float]) -> Steps:
    """Transitions and noise factors of a process over a grid of times (T,) [s], increasing.

    Steps that are equal to rounding share one transition, which makes paths fast. Memory grows with the number of
    distinct steps. InputError if the times do not increase or the diffusion is not positive semidefinite.
    """
    times = torch.as_tensor(times, dtype=torch.float64)
    distinct, which = distinct_steps(times)
    over = transition(process, distinct)
    return Steps(times, over.matrix, over.drive, noise_factor(over.covariance), which)


def sample_paths(steps: Steps, start: Tensor, seed: int | Generator, samples: int | None = None) -> Tensor:
    """Draw exact paths of the state (…, T, d) from the first state `start` (…, d); with `samples` (…, samples, T, d).

    A start has the batch axes of the process, then an axis of samples or none; fewer axes broadcast. The same seed, or
    generator (on the device of the process) in the same state, gives the same bytes.
    """
    batch, d = steps.matrix.shape[:-3], steps.matrix.shape[-1]
    several = () if samples is None else (samples,)
    if samples is not None and start.ndim == len(batch) + 1:
        start = start[..., None, :]
    path = _room(steps.matrix, (*batch, *several, len(steps.times), d))
    path[..., 0, :] = start
    flat = path.view(-1, samples or 1, len(steps.times), d)
    fill = normals(path, generator_of(seed, path))
    parts = [part.reshape(-1, *part.shape[len(batch) :]) for part in (steps.matrix, steps.drive, steps.factor)]
    if steps.matrix.shape[-3] == 1:
        run(Recursion(*(part[:, 0] for part in parts)), flat, fill)
        return path
    for k, step in enumerate(steps.which.tolist()):
        run(Recursion(*(part[:, step] for part in parts)), flat[:, :, k : k + 2], fill)
    return path


def stationary_draws(process: Process, samples: int, seed: int | Generator) -> Tensor:
    """Independent draws of the stationary state, (…, samples, d)."""
    return draws_of(stationary_law(process), samples, seed)


def reading_draws(process: Process, samples: int, seed: int | Generator) -> Tensor:
    """Independent draws of the stationary readings, (…, samples, n); cheaper than draws of the state."""
    return draws_of(reading_law(process, stationary_law(process)), samples, seed)


def draws_of(law: Gaussian, samples: int, seed: int | Generator) -> Tensor:
    """Independent draws of a normal law, (…, samples, k)."""
    batch, k = law.mean.shape[:-1], law.mean.shape[-1]
    factor = noise_factor(law.covariance).mT.expand(*batch, k, k).reshape(-1, k, k)
    found = _room(law.mean, (*batch, samples, k))
    flat = found.view(-1, samples, k)
    fill = normals(found, generator_of(seed, found))
    # Few rows at a time, so that the normal numbers stay in the cache until used.
    rows = max(PIECE // max(len(factor) * k, 1), 1)
    z = found.new_empty(len(factor), min(rows, samples), k)
    for part in flat.split(rows, dim=1):
        many = part.shape[1]
        own = z if many == z.shape[1] else z.view(-1)[: len(factor) * many * k].view(len(factor), many, k)
        product(fill(own), factor, part)
    return found if not bool(law.mean.count_nonzero()) else found.add_(law.mean[..., None, :])


def generator_of(seed: int | Generator, like: Tensor) -> Generator:
    """The generator itself, or a new one with this seed on the device of `like`."""
    return seed if isinstance(seed, Generator) else Generator(like.device).manual_seed(seed)


def _room(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An uninitialised tensor of this shape, with the precision and device of `like`."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    # Numpy asks the system for huge pages, which halves the time of the first access to a large array.
    return torch.from_numpy(np.empty(shape, dtype=torch.empty(0, dtype=like.dtype).numpy().dtype))

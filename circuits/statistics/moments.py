"""Second moments of a record in blocks, in memory that does not grow with the record; chunks of a record.

A block b of N_b consecutive readings keeps S_b = (1/N_b) Σ y yᵀ. The running means (Σ N_b S_b)/(Σ N_b) give the error
of an estimate against the number of samples. A record of any length is kept in at most MOST_BLOCKS blocks (simulated
readings, whose mean is zero) or MOST_KEPT_BLOCKS (recorded readings, whose mean is removed at the end).
"""

from dataclasses import dataclass

import numpy as np

BLOCK = 500  # readings
CHUNK = 25_000  # readings; about two seconds for eight differential cells
MOST_BLOCKS = 1000  # sums that an Accumulator holds
MOST_KEPT_BLOCKS = 1024  # blocks that BlockMoments holds; when all are in use, neighbours are added in pairs
NOISE_STREAM = 2  # stream of random numbers of the noise; parts have another


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments `means` (blocks, n, n) [V²] of blocks of `readings` (blocks,) readings, in the order of time."""

    readings: np.ndarray
    means: np.ndarray

    @property
    def samples(self) -> int:
        """Number of readings."""
        return int(self.readings.sum())

    @property
    def mean(self) -> np.ndarray:
        """Second moment of the whole record, (n, n)."""
        return np.tensordot(self.readings, self.means, 1) / self.samples


class Accumulator:
    """Sums of the blocks of one record, which may arrive in any order; at most MOST_BLOCKS sums."""

    def __init__(self, blocks: int, size: int, cells: int) -> None:
        """Prepare for a record of `blocks` blocks of `size` readings of `cells` cells."""
        self._blocks, self._size = blocks, size
        groups = min(blocks, MOST_BLOCKS)
        self._readings = np.zeros(groups, dtype=np.int64)
        self._sums = np.zeros((groups, cells, cells))

    def add(self, first: int, means: np.ndarray) -> None:
        """Add the second moments (k, n, n) of k consecutive blocks, the first of which is number `first`."""
        group = (first + np.arange(len(means))) * len(self._readings) // self._blocks
        np.add.at(self._readings, group, self._size)
        np.add.at(self._sums, group, self._size * means)

    def moments(self) -> Moments:
        """Second moments of all blocks added so far."""
        there = self._readings > 0
        return Moments(self._readings[there], self._sums[there] / self._readings[there][:, None, None])


def running(moments: Moments, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of readings (p,), about `points`, even in the logarithm, and second moments (p, n, n) of so many."""
    chosen = np.unique(np.geomspace(1, len(moments.readings), points).round().astype(int)) - 1
    readings = np.cumsum(moments.readings)
    sums = np.cumsum(moments.means * moments.readings[:, None, None], axis=0)[chosen]
    return readings[chosen], sums / readings[chosen][:, None, None]


def chunk_sizes(samples: int) -> list[int]:
    """Split `samples` into chunks of at most CHUNK readings, each of whole blocks, the total rounded up."""
    blocks = -(-samples // BLOCK)
    per_chunk = CHUNK // BLOCK
    full, rest = divmod(blocks, per_chunk)
    return [CHUNK] * full + [rest * BLOCK] * (rest > 0)


def chunk_seed(seed: int, copy: int, chunk: int) -> int:
    """A positive 31-bit seed for ngspice, distinct and independent for every (seed, copy, chunk)."""
    return int(np.random.SeedSequence([NOISE_STREAM, seed, copy, chunk]).generate_state(1)[0] >> 1) or 1


class BlockMoments:
    """Sums and products of blocks of readings relative to the first reading, so that an offset costs no digits."""

    def __init__(self, cells: int):
        self.origin: np.ndarray | None = None
        self.total = self.doubled = 0
        self.readings = np.zeros(MOST_KEPT_BLOCKS, dtype=int)
        self.sums, self.products = np.zeros((MOST_KEPT_BLOCKS, cells)), np.zeros((MOST_KEPT_BLOCKS, cells, cells))

    def add(self, y: np.ndarray) -> None:
        """Add the next readings (readings, n)."""
        if not len(y):
            return
        self.origin = y[0].copy() if self.origin is None else self.origin
        block = (self.total + np.arange(len(y))) // BLOCK
        self.total += len(y)
        while block[-1] >> self.doubled >= MOST_KEPT_BLOCKS:
            for kept in (self.readings, self.sums, self.products):
                kept[: MOST_KEPT_BLOCKS // 2], kept[MOST_KEPT_BLOCKS // 2 :] = kept[::2] + kept[1::2], 0
            self.doubled += 1
        edges = np.flatnonzero(np.diff(block)) + 1
        for slot, z in zip(block[np.r_[0, edges]] >> self.doubled, np.split(y - self.origin, edges), strict=True):
            self.readings[slot] += len(z)
            self.sums[slot] += z.sum(axis=0)
            self.products[slot] += z.T @ z

    def close(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean (n,), second moments about the mean (blocks, n, n), numbers of readings (blocks,)."""
        used = self.readings > 0
        count, sums = self.readings[used, None, None], self.sums[used]
        mean = sums.sum(axis=0) / self.total
        cross = sums[:, :, None] * mean
        about = self.products[used] - cross - cross.transpose(0, 2, 1) + count * np.outer(mean, mean)
        return self.origin + mean, about / count, self.readings[used]

"""Second moments of a record in blocks, so that memory does not grow with the record.

A block of N_b consecutive readings keeps S_b = (1/N_b) Σ y yᵀ. Any question about error against samples is answered by
the running means (Σ N_b S_b)/(Σ N_b); a record of any length is kept in at most MOST_BLOCKS blocks.
"""

from dataclasses import dataclass

import numpy as np

MOST_BLOCKS = 1000

BLOCK = 500  # readings
NOISE_STREAM = 2  # of random numbers: not that of parts
CHUNK = 25_000  # readings; about two seconds for eight differential cells

MOST_KEPT_BLOCKS = 1024  # kept of a copy: when they are full, pairs of them are added up


@dataclass(frozen=True, eq=False)
class Moments:
    """`means` (blocks, n, n) [V²] of blocks of so many `readings` (blocks,), in the order in which they were taken."""

    readings: np.ndarray
    means: np.ndarray

    @property
    def samples(self) -> int:
        """How many readings there are."""
        return int(self.readings.sum())

    @property
    def mean(self) -> np.ndarray:
        """Second moment of the whole record, (n, n)."""
        return np.tensordot(self.readings, self.means, 1) / self.samples


class Accumulator:
    """Adds up blocks of one record that arrive in any order; holds at most MOST_BLOCKS sums."""

    def __init__(self, blocks: int, size: int, cells: int) -> None:
        """For `blocks` blocks of `size` readings of `cells` cells."""
        self._blocks, self._size = blocks, size
        groups = min(blocks, MOST_BLOCKS)
        self._readings = np.zeros(groups, dtype=np.int64)
        self._sums = np.zeros((groups, cells, cells))

    def add(self, first: int, means: np.ndarray) -> None:
        """Put blocks (k, n, n), the first of which is number `first`, where they belong."""
        group = (first + np.arange(len(means))) * len(self._readings) // self._blocks
        np.add.at(self._readings, group, self._size)
        np.add.at(self._sums, group, self._size * means)

    def moments(self) -> Moments:
        """What has been added, block by block."""
        there = self._readings > 0
        return Moments(self._readings[there], self._sums[there] / self._readings[there][:, None, None])


def running(moments: Moments, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Readings (p,) and second moment so far (p, n, n) at about `points` places, evenly in the logarithm."""
    chosen = np.unique(np.geomspace(1, len(moments.readings), points).round().astype(int)) - 1
    readings = np.cumsum(moments.readings)
    sums = np.cumsum(moments.means * moments.readings[:, None, None], axis=0)[chosen]
    return readings[chosen], sums / readings[chosen][:, None, None]


def chunk_sizes(samples: int) -> list[int]:
    """Split `samples` into chunks of at most CHUNK readings, whole blocks each, rounding the total up."""
    blocks = -(-samples // BLOCK)
    per_chunk = CHUNK // BLOCK
    full, rest = divmod(blocks, per_chunk)
    return [CHUNK] * full + [rest * BLOCK] * (rest > 0)


def chunk_seed(seed: int, copy: int, chunk: int) -> int:
    """A positive 31-bit seed for ngspice, distinct and independent for every (seed, copy, chunk)."""
    return int(np.random.SeedSequence([NOISE_STREAM, seed, copy, chunk]).generate_state(1)[0] >> 1) or 1


class BlockMoments:
    """Sums and products of blocks of readings, taken from the first reading so that an offset costs no digits."""

    def __init__(self, cells: int):
        self.origin: np.ndarray | None = None
        self.total = self.doubled = 0
        self.readings = np.zeros(MOST_KEPT_BLOCKS, dtype=int)
        self.sums, self.products = np.zeros((MOST_KEPT_BLOCKS, cells)), np.zeros((MOST_KEPT_BLOCKS, cells, cells))

    def add(self, y: np.ndarray) -> None:
        """Take in the next readings (readings, n)."""
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
        """Mean (n,), moments about it (blocks, n, n), readings in each (blocks,)."""
        used = self.readings > 0
        count, sums = self.readings[used, None, None], self.sums[used]
        mean = sums.sum(axis=0) / self.total
        cross = sums[:, :, None] * mean
        about = self.products[used] - cross - cross.transpose(0, 2, 1) + count * np.outer(mean, mean)
        return self.origin + mean, about / count, self.readings[used]

"""Second moments of a record in blocks, so that memory does not grow with the record.

A block of N_b consecutive readings keeps S_b = (1/N_b) Σ y yᵀ. Any question about error against samples is answered by
the running means (Σ N_b S_b)/(Σ N_b); a record of any length is kept in at most MOST_BLOCKS blocks.
"""

from dataclasses import dataclass

import numpy as np

MOST_BLOCKS = 1000


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

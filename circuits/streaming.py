"""Statistics of one copy's record, gathered while its rows go by, in memory that does not grow with them.

Second moments by blocks; the numbers of readings so many periods apart, wherever the gaps are; the two outermost
values of every cell, which show clipping.
"""

from collections.abc import Callable

import numpy as np

from circuits.errors import InputError
from circuits.ou import MEMORY
from circuits.sampled import BLOCK

LEAST = 2 * BLOCK  # readings of a copy
STEP = 0.01  # relative, how far a time step may be from a whole number of periods
LONGEST = 1e15  # periods in a step that can be counted
MOST_BLOCKS = 1024  # kept of a copy: when they are full, pairs of them are added up
MOST_LAGS = 5e7  # numbers in the lagged covariances: 400 MB


class PairCounts:
    """Counts c(k) of pairs of readings k periods apart, from the edges of the stretches without gaps.

    The signal that is +1 where a stretch starts and -1 behind its end has the correlation 2 c(k) - c(k-1) - c(k+1).
    """

    def __init__(self, lags: int):
        self.last: int | None = None
        self.readings = self.edges = 0
        self.correlation, self.tail = np.zeros(lags, dtype=int), np.zeros(0, dtype=int)

    def add(self, position: np.ndarray) -> None:
        """Take in the next readings, by their numbers of periods since any beginning."""
        if not len(position):
            return
        first = self.last is None
        before = np.concatenate([[position[0] - 2 if first else self.last], position[:-1]])
        cut = position - before > 1
        self._correlate(np.column_stack([before[cut] + 1, position[cut]]).ravel()[first:])
        self.readings, self.last = self.readings + len(position), int(position[-1])

    def close(self) -> np.ndarray:
        """c(k), (lags,); nothing can be added after."""
        self._correlate(np.array([self.last + 1]))
        slope = -self.edges // 2 - np.cumsum(self.correlation)
        return self.readings + np.concatenate([[0], np.cumsum(slope)[:-1]])

    def _correlate(self, edges: np.ndarray) -> None:
        """Every edge with the first, second, … before it, as long as that is less than `lags` away."""
        self.edges += len(edges)
        known, lags, back = len(self.tail), len(self.correlation), 1
        edges = np.concatenate([self.tail, edges])
        later = np.arange(max(known, 1), len(edges))
        while len(later):
            apart = edges[later] - edges[later - back]
            near = apart < lags
            self.correlation += (-1) ** back * np.bincount(apart[near], minlength=lags)
            back += 1
            later = later[near & (later >= back)]
        self.tail = edges[edges > edges[-1:] - lags]


class BlockMoments:
    """Sums and products of blocks of readings, taken from the first reading so that an offset costs no digits."""

    def __init__(self, cells: int):
        self.origin: np.ndarray | None = None
        self.total = self.doubled = 0
        self.readings = np.zeros(MOST_BLOCKS, dtype=int)
        self.sums, self.products = np.zeros((MOST_BLOCKS, cells)), np.zeros((MOST_BLOCKS, cells, cells))

    def add(self, y: np.ndarray) -> None:
        """Take in the next readings (readings, n)."""
        if not len(y):
            return
        self.origin = y[0].copy() if self.origin is None else self.origin
        block = (self.total + np.arange(len(y))) // BLOCK
        self.total += len(y)
        while block[-1] >> self.doubled >= MOST_BLOCKS:
            for kept in (self.readings, self.sums, self.products):
                kept[: MOST_BLOCKS // 2], kept[MOST_BLOCKS // 2 :] = kept[::2] + kept[1::2], 0
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


class Stream:
    """What is kept of one copy while its rows go by; the first rows wait until the period is known."""

    def __init__(self, name: str, cells: int, decay: float, place: Callable[[int], str]):
        self.name, self.decay, self.place = name, decay, place
        self.period: float | None = None
        self.waiting: list[tuple[np.ndarray, ...]] = []
        self.rows = self.position = self.gaps = self.longest = self.dropped = 0
        self.last_time, self.singles, self.single_time = np.nan, 0, 0.0
        self.lacking = np.zeros(cells, dtype=int)
        self.moments = BlockMoments(cells)
        self.levels, self.counts = np.full((2, 2, cells), -np.inf), np.zeros((2, 2, cells), dtype=int)

    def add(self, row: np.ndarray, time: np.ndarray, volts: np.ndarray) -> None:
        """Take in rows: their numbers in the file, times [s], and readings (rows, n) [V], NaN where there is none."""
        self.rows += len(row)
        if self.period is None:
            self.waiting.append((row, time, volts))
            if self.rows < LEAST:
                return
            row, time, volts = (np.concatenate(parts) for parts in zip(*self.waiting, strict=True))
            self.waiting = []
            self._start(row, time, volts.shape[1])
        position = self.position + np.cumsum(self._steps(row, time))
        self.position, self.last_time = int(position[-1]), float(time[-1])
        there = np.isfinite(volts)
        kept = there.all(axis=1)
        self.dropped, self.lacking = self.dropped + int((~kept).sum()), self.lacking + (~there).sum(axis=0)
        self.pairs.add(position[kept])
        self.moments.add(volts[kept])
        for side, sign in enumerate((1, -1)):
            values = np.concatenate([self.levels[side], sign * volts[kept]])
            counts = np.concatenate([self.counts[side], np.ones_like(volts[kept], dtype=int)])
            self.levels[side], self.counts[side] = _two_largest(values, counts)

    def _start(self, row: np.ndarray, time: np.ndarray, cells: int) -> None:
        self.last_time = float(time[0])
        self.period = float(np.median(np.diff(time[:LEAST])))
        if self.period > 0:
            lags = 1.02 * MEMORY * self.decay / self.period + 3
            if lags * cells**2 > MOST_LAGS:
                raise InputError(
                    f"{self.name} is sampled every {self.period:.3g} s, too often for a slowest mode of "
                    f"{self.decay:.3g} s; keep one reading in {int(lags * cells**2 / MOST_LAGS) + 1}"
                )
            self.pairs = PairCounts(int(lags))

    def _steps(self, row: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Whole periods since the row before; 0 for the first row of all."""
        step = np.diff(time, prepend=self.last_time)
        steps = np.rint(step / max(self.period, 1e-300))
        wrong = (step <= 0) | (np.abs(step - steps * self.period) > STEP * step) | (steps > LONGEST)
        wrong[0] &= self.position > 0  # the first row of all has none before it
        if wrong.any():
            k = int(wrong.argmax())
            what = f"{self.place(int(row[k]))} is {step[k]:.6g} s after the reading of {self.name} before it"
            if step[k] <= 0:
                raise InputError(f"{what}; the rows of a copy must be in time order")
            raise InputError(
                f"{what}, no whole multiple of the period {self.period:.6g} s to 1 %; sample on a grid, write times "
                "with more digits or start them at zero"
            )
        single = steps == 1
        self.singles, self.single_time = self.singles + int(single.sum()), self.single_time + float(step[single].sum())
        self.gaps, self.longest = self.gaps + int((steps > 1).sum()), max(self.longest, int(steps.max()))
        return steps.astype(int)


def _two_largest(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two largest values (2, n) of every column and how often they occur (2, n)."""
    top = values.max(axis=0)
    levels = np.array([top, np.where(values < top, values, -np.inf).max(axis=0)])
    return levels, np.array([np.where(values == level, counts, 0).sum(axis=0) for level in levels])

"""Statistics of the record of one copy, computed row by row in memory that does not grow with the record.

Second moments by blocks; counts of pairs of readings 0, 1, 2, … periods apart in a record with gaps; sums of fourth
powers and lagged products; the outermost values of every cell, for clipping and outliers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, ndtri

from circuits.errors import InputError
from circuits.ou import MEMORY
from circuits.statistics.equilibrium import Sums
from circuits.statistics.moments import BLOCK, BlockMoments

LEAST = 2 * BLOCK  # readings that a copy needs
STEP = 0.01  # largest relative deviation of a time step from a whole number of periods
LONGEST = 1e15  # largest number of periods in a step
LARGEST = 1e3  # V, largest voltage taken for a reading; instruments write 9.9e37 when overloaded
MOST_LAGS = 5e7  # numbers in the lagged covariances: 400 MB
KEPT = 17  # outermost values of a cell and side; all of them but the innermost are tested for clipping
PIECE = 1000  # rows sorted at a time
PILE_UP = 3.0  # least ratio of the readings at a limit to those at the next value inwards
FINE = 0.1  # standard deviations; values closer than this are about equally frequent anywhere in a Gaussian
FAR = 8.0  # standard deviations; no reading of a board within tolerance is farther from the mean
FALSE_ALARM = 1e-5  # probability of a false alarm: one side of a column clipped, or outliers of a cell


@dataclass(frozen=True)
class Clipping:
    """Number and fraction of the readings of a cell at the limit `level_V` of its converter, or beyond."""

    cell: str
    level_V: float
    readings: int
    fraction: float


@dataclass(frozen=True)
class Outliers:
    """Number of readings of a cell (`at_least`: a lower bound) farther than `deviations` from the mean.

    One deviation is the standard deviation of the nominal board; `largest_V` is the reading farthest from the mean.
    """

    cell: str
    readings: int
    at_least: bool
    deviations: float
    largest_V: float


class PairCounts:
    """Counts c(k) of pairs of readings k periods apart, from the edges of the stretches without gaps.

    The signal that is +1 at the first reading of a stretch and -1 one period after its last reading has the
    autocorrelation 2 c(k) - c(k-1) - c(k+1).
    """

    def __init__(self, lags: int):
        self.last: int | None = None
        self.readings = self.edges = 0
        self.correlation, self.tail = np.zeros(lags, dtype=int), np.zeros(0, dtype=int)

    def add(self, position: np.ndarray) -> None:
        """Add the next readings, at these numbers of periods (readings,) since a fixed beginning."""
        if not len(position):
            return
        first = self.last is None
        before = np.concatenate([[position[0] - 2 if first else self.last], position[:-1]])
        cut = position - before > 1
        self._correlate(np.column_stack([before[cut] + 1, position[cut]]).ravel()[first:])
        self.readings, self.last = self.readings + len(position), int(position[-1])

    def close(self) -> np.ndarray:
        """c(k), (lags,); close the record, to which no reading can be added afterwards."""
        self._correlate(np.array([self.last + 1]))
        slope = -self.edges // 2 - np.cumsum(self.correlation)
        return self.readings + np.concatenate([[0], np.cumsum(slope)[:-1]])

    def _correlate(self, edges: np.ndarray) -> None:
        """Correlate every edge with the first, second, … edge before it that is less than `lags` away."""
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


class LaggedSums:
    """Sums of powers of readings z, and of products of readings `lag` periods apart in a stretch without gaps."""

    def __init__(self, lag: int, lags: int, cells: int):
        self.lag, self.pairs = lag, PairCounts(lags)
        self.position, self.last = np.zeros(0, dtype=int), np.zeros((0, cells))
        self.powers, self.ends, self.products = np.zeros((5, cells)), np.zeros((2, cells)), np.zeros((cells, cells))

    def add(self, position: np.ndarray, z: np.ndarray) -> None:
        """Add the next readings (readings, n) at these numbers of periods (readings,)."""
        squares = z * z
        self.powers += [p.sum(axis=0) for p in (np.ones_like(z), z, squares, squares * z, squares * squares)]
        position, z = np.concatenate([self.position, position]), np.concatenate([self.last, z])
        whole = position[self.lag :] - position[: -self.lag] == self.lag
        late, early = z[self.lag :][whole], z[: -self.lag][whole]
        self.ends += [late.sum(axis=0), early.sum(axis=0)]
        self.products += late.T @ early
        self.pairs.add(position[self.lag :][whole])
        self.position, self.last = position[-self.lag :], z[-self.lag :]

    def close(self, mean: np.ndarray) -> tuple[Sums | None, np.ndarray]:
        """Sums about a mean (n,), None without pairs; and counts (lags,) of these pairs 0, 1, 2, … periods apart."""
        (late, early), pairs, (N, first, second, third, fourth) = self.ends, self.pairs.readings, self.powers
        if not pairs:
            return None, self.pairs.correlation
        lagged = self.products - np.outer(late, mean) - np.outer(mean, early) + pairs * np.outer(mean, mean)
        about = fourth - 4 * mean * third + 6 * mean**2 * second - 4 * mean**3 * first + N * mean**4
        return Sums(self.lag, pairs, lagged, int(N[0]), about), self.pairs.close()


class Outermost:
    """The KEPT largest values of y and of -y of every cell (2, KEPT, n), -inf if fewer, and their frequencies."""

    def __init__(self, cells: int):
        self.readings = 0
        self.levels, self.counts = np.full((2, KEPT, cells), -np.inf), np.zeros((2, KEPT, cells), dtype=int)

    def add(self, y: np.ndarray) -> None:
        """Add the next readings (readings, n)."""
        self.readings += len(y)
        for piece in np.split(y, range(PIECE, len(y), PIECE)):
            near = (piece >= self.levels[0, -1]) | (-piece >= self.levels[1, -1])
            rows = piece[near.any(axis=1)]
            values = np.concatenate([self.levels, [rows, -rows]], axis=1)
            counts = np.concatenate([self.counts, np.ones((2, *rows.shape), dtype=int)], axis=1)
            order = np.argsort(-values, axis=1)
            values, counts = np.take_along_axis(values, order, 1), np.take_along_axis(counts, order, 1)
            rank = np.zeros(values.shape, dtype=int)
            rank[:, 1:] = np.cumsum(values[:, 1:] != values[:, :-1], axis=1)
            side, row, cell = np.nonzero(rank < KEPT)
            place = side, rank[side, row, cell], cell
            self.levels, self.counts = np.full_like(self.levels, -np.inf), np.zeros_like(self.counts)
            self.levels[place] = values[side, row, cell]
            np.add.at(self.counts, place, counts[side, row, cell])

    def clipped(self, cells: list[str], worth: np.ndarray, sigma: np.ndarray) -> tuple[Clipping, ...]:
        """Limits at which readings of standard deviation `sigma` (n,) [V] pile up, by cell and side.

        Correlated readings: `worth` (n,) of them count as one. A pile-up is tested where the outer of two values is
        surely the rarer one without clipping: in the outer half of the readings, or between fine steps.
        """
        outer, inner = self.counts[:, :-1], self.counts[:, 1:]
        beyond = np.cumsum(outer, axis=1)
        with np.errstate(invalid="ignore"):  # inf - inf, where values are missing
            step = self.levels[:, :-1] - self.levels[:, 1:]
        judged = (2 * beyond < self.readings) | (step < FINE * sigma)
        judged[:, 0] = True
        chance = betainc(np.maximum(outer, 1) / worth, inner / worth + 1, 0.5)  # of as many heads or more
        found = judged & (outer >= PILE_UP * inner) & (chance < FALSE_ALARM / (KEPT - 1))
        innermost = KEPT - 2 - found[:, ::-1].argmax(axis=1)
        limits = []
        for i, s in np.argwhere(found.any(axis=1).T):
            at = s, innermost[s, i], i
            level, count = float((1, -1)[s] * self.levels[at]), int(beyond[at])
            limits.append(Clipping(cells[i], level, count, count / self.readings))
        return tuple(limits)

    def outliers(self, cells: list[str], mean: np.ndarray, sigma: np.ndarray) -> tuple[Outliers, ...]:
        """Cells with outliers: readings beyond FAR and beyond the bound that one Gaussian record in 1e5 passes.

        Distances are from the mean without the kept values, unless these are half of the
        record or more; `mean` (n,) is that of all readings, `sigma` (n,) [V] the standard deviation.
        """
        bound = float(max(FAR, -ndtri(FALSE_ALARM / 2 / self.readings)))
        sign = np.array([1, -1])[:, None, None]
        kept = self.counts.sum(axis=(0, 1))
        sums = (sign * self.counts * np.where(self.counts, self.levels, 0)).sum(axis=(0, 1))
        few = 2 * kept < self.readings
        mean = np.where(few, (self.readings * mean - sums) / np.where(few, self.readings - kept, 1), mean)
        distance = self.levels - sign * mean
        far = distance > bound * sigma
        count, more = np.where(far, self.counts, 0).sum(axis=(0, 1)), far[:, -1].any(axis=0)
        farthest = np.where(distance[0, 0] > distance[1, 0], self.levels[0, 0], -self.levels[1, 0])
        return tuple(
            Outliers(cells[i], int(count[i]), bool(more[i]), bound, float(farthest[i])) for i in np.flatnonzero(count)
        )


class Stream:
    """All statistics of the record of one copy, row by row; the first rows wait until the period is known."""

    def __init__(self, name: str, cells: int, times: tuple[float, float], place: Callable[[int], str]):
        """Begin a record; `times` [s]: decay time of the slowest mode, and lag of the test of detailed balance.

        `place` names the line of a row for messages.
        """
        self.name, (self.decay, self.lag), self.place = name, times, place
        self.period: float | None = None
        self.waiting: list[tuple[np.ndarray, ...]] = []
        self.rows = self.position = self.gaps = self.longest = self.dropped = 0
        self.last_time, self.singles, self.single_time = np.nan, 0, 0.0
        self.lacking = np.zeros(cells, dtype=int)
        self.moments = BlockMoments(cells)
        self.outermost = Outermost(cells)

    def add(self, row: np.ndarray, time: np.ndarray, volts: np.ndarray) -> None:
        """Add rows: numbers in the file, times [s], and readings (rows, n) [V]; NaN or beyond LARGEST: no reading.

        InputError if the times are not in order or not on a grid, or the period is too short.
        """
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
        there = np.abs(volts) <= LARGEST
        kept = there.all(axis=1)
        self.dropped, self.lacking = self.dropped + int((~kept).sum()), self.lacking + (~there).sum(axis=0)
        self.pairs.add(position[kept])
        self.moments.add(volts[kept])
        self.outermost.add(volts[kept])
        if kept.any():
            self.lagged.add(position[kept], volts[kept] - self.moments.origin)

    def _start(self, row: np.ndarray, time: np.ndarray, cells: int) -> None:
        """Find the period from the first rows; InputError if it is too short for the slowest mode."""
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
            self.lagged = LaggedSums(max(1, round(self.lag / self.period)), int(lags), cells)

    def _steps(self, row: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Whole periods since the previous row, (rows,); 0 for the first row of the record."""
        step = np.diff(time, prepend=self.last_time)
        steps = np.rint(step / max(self.period, 1e-300))
        wrong = (step <= 0) | (np.abs(step - steps * self.period) > STEP * step) | (steps > LONGEST)
        wrong[0] &= self.position > 0  # the first row of the record follows no other
        if wrong.any():
            same = wrong & (step == 0)
            k = int(same.argmax() if same.any() else wrong.argmax())
            what = f"{self.place(int(row[k]))} is {step[k]:.6g} s after the reading of {self.name} before it"
            if step[k] == 0:
                raise InputError(f"{what}; no two may share a time: write more digits, or start them at zero")
            if step[k] < 0:
                raise InputError(f"{what}; the rows of a copy must be in time order")
            raise InputError(
                f"{what}, no whole multiple of the period {self.period:.6g} s to 1 %; sample on a grid, write times "
                "with more digits or start them at zero"
            )
        single = steps == 1
        self.singles, self.single_time = self.singles + int(single.sum()), self.single_time + float(step[single].sum())
        self.gaps, self.longest = self.gaps + int((steps > 1).sum()), max(self.longest, int(steps.max()))
        return steps.astype(int)

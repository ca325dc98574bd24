"""Many copies: how the error of the inverse is spread, how many meet a bound, what matters, and what averaging gains.

Fresh copies are drawn and solved by the Lyapunov equation (a resistive board by its mean), all causes on unless the
circuit has too many states. Independent errors of first order average: the mean of three copies has an error smaller by
sqrt(3), as a law over many triples (one proves nothing: the mean beats a single copy in about three of four).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special

from circuits.assembly import assemble_gains, is_stable, nominal_circuit, states
from circuits.board import REFERENCE_CELSIUS, Conditions, ideal_conditions
from circuits.copies import draw_gains
from circuits.design import Design
from circuits.inversion import Inversion
from circuits.sensitivity import expected_error, part_sensitivities
from circuits.solve import circuit_inverses

COPIES = 600
POPULATION_SEED = 10_000_019  # added to the design's seed: never the copies themselves
MOST_STATES = 120  # of a copy in a population; with more it is drawn without parasitics
BATCH = 4e6  # entries of a batch of state matrices
CONFIDENCE = 0.95  # of the interval of a yield


@dataclass(frozen=True)
class Averaging:
    """`gain` is rms(single)/rms(mean of three), with its standard error by the jackknife over triples."""

    triples: int
    gain_expected: float
    mean_of_three_median: float
    gain: float
    gain_standard_error: float
    mean_of_three_errors: tuple[float, ...]


@dataclass(frozen=True)
class Yield:
    """Share of copies whose inverse is off by at most `bound`, with its interval (Clopper and Pearson, CONFIDENCE)."""

    bound: float
    share: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Contribution:
    """A role of parts: how many there are, and their share of the mean square error, to first order."""

    role: str
    parts: int
    share: float


@dataclass(frozen=True)
class Population:
    """Sorted errors of `copies` drawn copies; `unstable` of them run away and have none.

    `parasitics` says whether they were on. `expected` is the root mean square error that first-order sensitivities
    give, `rms` that of the copies. With no two triples left there is no averaging.
    """

    copies: int
    unstable: int
    parasitics: bool
    errors: tuple[float, ...]
    rms: float | None
    single_median: float | None
    expected: float
    yields: tuple[Yield, ...]
    contributions: tuple[Contribution, ...]
    averaging: Averaging | None


def population(
    design: Design,
    rule: Inversion,
    copies: int = COPIES,
    bound: float | None = None,
    ambient: float = REFERENCE_CELSIUS,
) -> Population:
    """Draw `copies` fresh copies, look at them at `ambient` [°C], judge them by `bound` (None: the median error)."""
    inverses, stable = _draw(design, rule, copies, ambient)
    errors = np.sort(rule.error(inverses)) if len(inverses) else np.zeros(0)
    if bound is None and len(errors):
        bound = float(np.median(errors))
    return Population(
        copies,
        int((~stable).sum()),
        _with_parasitics(design),
        tuple(errors.tolist()),
        float(np.sqrt(np.mean(errors**2))) if len(errors) else None,
        float(np.median(errors)) if len(errors) else None,
        expected_error(design.board, design.program),
        tuple(yield_at(errors, copies, x) for x in _bounds(errors, bound)),
        contributions(design),
        _averaging(rule, inverses, stable),
    )


def yield_at(errors: np.ndarray, copies: int, bound: float) -> Yield:
    """Share of `copies` whose error is at most `bound`; those without an error (unstable) are not."""
    good = int((errors <= bound).sum())
    outside = (1 - CONFIDENCE) / 2
    low = special.betaincinv(good, copies - good + 1, outside) if good else 0.0
    high = special.betaincinv(good + 1, copies - good, 1 - outside) if good < copies else 1.0
    return Yield(float(bound), good / copies, (float(low), float(high)))


def contributions(design: Design) -> tuple[Contribution, ...]:
    """Shares of the first-order mean square error by role of part, largest first; they add up to one."""
    tolerance = {entry.name: entry.tolerance for entry in (*design.board.parts, *design.board.sources)}
    found: dict[str, list[float]] = {}
    for entry in part_sensitivities(design.board, design.program):
        found.setdefault(entry.role, []).append((entry.value * tolerance[entry.part]) ** 2)
    total = sum(map(sum, found.values())) or 1.0
    rows = [Contribution(role, len(squares), sum(squares) / total) for role, squares in found.items() if sum(squares)]
    return tuple(sorted(rows, key=lambda row: -row.share))


def _bounds(errors: np.ndarray, bound: float | None) -> list[float]:
    """The bound that was asked for, then those of a curve from the smallest to the largest error."""
    curve = np.quantile(errors, np.linspace(0.05, 1, 20)).tolist() if len(errors) else []
    return ([] if bound is None else [bound]) + curve


def _with_parasitics(design: Design) -> bool:
    return states(nominal_circuit(design.board, design.program, Conditions())) <= MOST_STATES


def _draw(design: Design, rule: Inversion, copies: int, ambient: float) -> tuple[np.ndarray, np.ndarray]:
    """Inverses (stable copies, n, n), and which copies are stable."""
    board, program = design.board, design.program
    off = frozenset() if _with_parasitics(design) else ideal_conditions(board).off
    gains = draw_gains(board, design.seed + POPULATION_SEED, copies)
    read, stable = [], []
    for batch in _batches(gains, states(nominal_circuit(board, program, Conditions(off=off)))):
        circuits = assemble_gains(board, program, batch, Conditions(ambient, off))
        good = is_stable(circuits)
        stable.append(good)
        read.append(circuit_inverses(design, rule, circuits[good]))
    return np.concatenate(read), np.concatenate(stable)


def _batches(gains: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Rows of `gains` in batches whose state matrices (size x size) fit the memory."""
    step = max(1, int(BATCH / size**2))
    for start in range(0, len(gains), step):
        yield gains[start : start + step]


def _averaging(rule: Inversion, inverses: np.ndarray, stable: np.ndarray) -> Averaging | None:
    """What means of three gain, over the triples whose copies are all stable."""
    place = np.cumsum(stable) - 1
    whole = len(stable) // 3 * 3
    triples = place[:whole].reshape(-1, 3)[stable[:whole].reshape(-1, 3).all(axis=1)]
    if len(triples) < 2:
        return None
    single, mean = rule.error(inverses[triples]), rule.error(inverses[triples].mean(axis=1))
    if not mean.any():
        return None
    gain, standard_error = _gain((single**2).mean(axis=1), mean**2)
    errors = tuple(np.sort(mean).tolist())
    return Averaging(len(triples), float(np.sqrt(3)), float(np.median(mean)), gain, standard_error, errors)


def _gain(single: np.ndarray, mean: np.ndarray) -> tuple[float, float]:
    """Square root of the ratio of two sums over triples, and its standard error by leaving each triple out."""
    gain = np.sqrt(single.sum() / mean.sum())
    without = np.sqrt((single.sum() - single) / (mean.sum() - mean))
    count = len(single)
    return float(gain), float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum()))

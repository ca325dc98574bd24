"""Errors of a population of fresh copies: their spread, yield, causes by role of part, and the gain of averaging.

Fresh copies are drawn and solved by the Lyapunov equation (a resistive board by the mean), with all causes on. If the
circuit has too many states, copies are drawn without parasitics, and the effect of the parasitics on the nominal board
is added to every copy; the spread of the parasitics is neglected. To first order errors are independent and average:
the root mean square error of the mean of three copies is smaller by sqrt(3). This is tested over many triples (a single
triple shows little: its mean is better than a single copy in about three of four cases).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special

from circuits.board import REFERENCE_CELSIUS, Conditions, Design, ideal_conditions
from circuits.copies import draw_gains
from circuits.nodal import assemble_gains, is_stable, nominal_circuit, states
from circuits.ou import MOST_STATES
from circuits.statistics.inversion import Inversion, circuit_inverses
from circuits.synthesis.sensitivity import expected_error, part_sensitivities

COPIES = 600
POPULATION_SEED = 10_000_019  # added to the design's seed: never the copies themselves
LARGE = 120  # most states of a copy with parasitics of its own; above, their effect is that on the nominal board
BOUND = 0.01  # default bound of the relative error of a good copy
ON, NOMINAL, OFF = "on", "as on the nominal board", "left out"
BATCH = 4e6  # entries of a batch of state matrices
CONFIDENCE = 0.95  # of the interval of a yield


@dataclass(frozen=True)
class Averaging:
    """Gain rms(single)/rms(mean of three), expected and found, and standard error by the jackknife over triples."""

    triples: int
    gain_expected: float
    mean_of_three_median: float
    gain: float
    gain_standard_error: float
    mean_of_three_errors: tuple[float, ...]


@dataclass(frozen=True)
class Yield:
    """Share of copies with a relative error up to `bound`, and interval (Clopper and Pearson, CONFIDENCE)."""

    bound: float
    share: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Contribution:
    """Number of parts of a role, and their share of the mean square error to first order."""

    role: str
    parts: int
    share: float


@dataclass(frozen=True)
class Population:
    """Sorted relative errors of `copies` drawn copies; `unstable` copies have no error.

    `parasitics` says how parasitics were taken into account. `expected` is the root mean square error by first-order
    sensitivities, `rms` that of the copies. `averaging` is None with fewer than two triples of stable copies.
    """

    copies: int
    unstable: int
    parasitics: str
    errors: tuple[float, ...]
    rms: float | None
    single_median: float | None
    expected: float
    yields: tuple[Yield, ...]
    contributions: tuple[Contribution, ...]
    averaging: Averaging | None


def draw_population(
    design: Design,
    rule: Inversion,
    copies: int = COPIES,
    bound: float | None = None,
    ambient: float = REFERENCE_CELSIUS,
) -> Population:
    """Draw `copies` fresh copies and find their errors at `ambient` [°C] and their yield at `bound` (None: BOUND)."""
    parasitics = _parasitics(design)
    inverses, stable = _draw(design, rule, copies, ambient, parasitics)
    errors = np.sort(rule.error(inverses))
    return Population(
        copies,
        int((~stable).sum()),
        parasitics,
        tuple(errors.tolist()),
        float(np.sqrt(np.mean(errors**2))) if len(errors) else None,
        float(np.median(errors)) if len(errors) else None,
        expected_error(design.board, design.program),
        tuple(yield_at(errors, copies, x) for x in _bounds(errors, bound or BOUND)),
        contributions(design),
        _averaging(rule, inverses, stable),
    )


def yield_at(errors: np.ndarray, copies: int, bound: float) -> Yield:
    """Share of `copies` with an error of at most `bound`; unstable copies, without an error, count as bad."""
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


def _bounds(errors: np.ndarray, bound: float) -> list[float]:
    """The bound of the yield, then the bounds of a curve from the smallest to the largest error."""
    return [bound, *(np.quantile(errors, np.linspace(0.05, 1, 20)).tolist() if len(errors) else [])]


def _parasitics(design: Design) -> str:
    """Treatment of the parasitics of a design, in words."""
    size = states(nominal_circuit(design.board, design.program, Conditions()))
    most = np.inf if design.board.inputs else MOST_STATES
    return ON if size <= LARGE else NOMINAL if size <= most else OFF


def _draw(
    design: Design, rule: Inversion, copies: int, ambient: float, parasitics: str
) -> tuple[np.ndarray, np.ndarray]:
    """Inverses (stable copies, n, n), and a mask (copies,) of the stable copies."""
    board, program = design.board, design.program
    off = frozenset() if parasitics == ON else ideal_conditions(board).off
    gains = draw_gains(board, design.seed + POPULATION_SEED, copies)
    read, stable = [np.zeros((0, *rule.inverse.shape))], []
    common = np.zeros_like(rule.inverse)
    if parasitics == NOMINAL:
        every, ideal = (nominal_circuit(board, program, Conditions(ambient, without)) for without in ((), off))
        common = circuit_inverses(design, rule, every) - circuit_inverses(design, rule, ideal)
    for batch in _batches(gains, states(nominal_circuit(board, program, Conditions(off=off)))):
        circuits = assemble_gains(board, program, batch, Conditions(ambient, off))
        good = is_stable(circuits)
        stable.append(good)
        if good.any():
            read.append(circuit_inverses(design, rule, circuits[good]) + common)
    return np.concatenate(read), np.concatenate(stable)


def _batches(gains: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Rows of `gains` in batches whose state matrices (size x size) fit the memory."""
    step = max(1, int(BATCH / size**2))
    for start in range(0, len(gains), step):
        yield gains[start : start + step]


def _averaging(rule: Inversion, inverses: np.ndarray, stable: np.ndarray) -> Averaging | None:
    """Gain of means of three copies, over the triples whose copies are all stable; None with fewer than two."""
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

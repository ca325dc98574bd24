"""Ensemble of boards: spread of the parts of calibrated copies, its uncertainty, and new boards drawn from it.

Parts of one kind (bits, what leads to ground, temperatures, …) of all copies are one sample: with estimates v of
standard errors e, its mean is that of v, and its variance that of v less the mean of e². n of them know the variance
of v to n - 1 degrees of freedom. A drawn board has its own variance, drawn from what is known of it (scaled inverse χ²,
less the mean of e²), so an uncertain spread is drawn widely; boards of any size take the kinds that they need.
Of a kind that no copy showed, as elements that no program used, only the tolerance is known.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy import special

from circuits.board import Board
from circuits.errors import InputError
from circuits.model.device import Device, ideal_device
from circuits.model.fitted_copy import Estimate, FittedCopy

ENSEMBLE_STREAM = 7  # of random numbers
CONFIDENCE = 0.95
WIDEST = 3.0  # standard deviations: parts are sorted
COUPLINGS = ("straight", "crossed", "bit")  # kinds of elements that hold entries of a matrix


@dataclass(frozen=True)
class Spread:
    """One kind of part: `count` observed ones, their mean and standard deviation (relative), and its interval.

    `error` is the root mean square of their standard errors: what a spread below it is lost in.
    """

    count: int
    mean: float
    deviation: float
    interval: tuple[float, float]
    error: float = 0.0


@dataclass(frozen=True)
class Ensemble:
    """Spreads by kind, and from how many copies."""

    copies: int
    spreads: dict[str, Spread]


def ensemble_of(device: Device) -> Ensemble:
    """Return the spread of parts over a device's copies, by kind; InputError if nothing was observed twice."""
    values: dict[str, list[Estimate]] = {}
    for copy in device.copies:
        for name, estimate in _estimates(copy):
            if estimate.observed:
                values.setdefault(kind_of(name), []).append(estimate)
    spreads = {kind: _spread(found) for kind, found in values.items() if len(found) > 1}
    if not spreads:
        raise InputError("the device observed no kind of part twice; calibrate copies of a board first")
    return Ensemble(len(device.copies), spreads)


def draw_boards(known: Ensemble, board: Board, copies: int, seed: int) -> Device:
    """A device of fresh copies of any board, each with parts drawn from the ensemble.

    Elements of a kind that the ensemble does not know are drawn from their tolerance. InputError if another kind of
    part is not known, or there is nothing to draw.
    """
    if copies < 1 or seed < 0:
        raise InputError(f"expected one board or more and a seed of 0 or more, got {copies} and {seed}")
    blank = ideal_device(board).copies[0]
    spreads = _tolerances(board) | known.spreads
    missing = sorted({kind_of(name) for name, _ in _estimates(blank)} - spreads.keys())
    if missing:
        raise InputError(f"nothing is known of the spread of {', '.join(missing)}; calibrate a board that has them")
    drawn = tuple(_drawn(spreads, blank, np.random.default_rng([ENSEMBLE_STREAM, seed, k]), k) for k in range(copies))
    told = {kind: asdict(spread) for kind, spread in sorted(spreads.items())}
    return Device(board, drawn, {"route": "ensemble", "copies_known": known.copies, "seed": seed, "spreads": told})


def element_spread(device: Device, seed: int | None = None) -> Spread:
    """Relative gain of one coupling element (a matched pair where cells are differential; a bit where there are banks).

    All couplings of all copies that are known are one sample, so one copy will do: observed ones, and exact ones. With
    a `seed` the deviation is drawn from what is known of it (scaled inverse χ²), else it is the estimate. InputError if
    fewer than two couplings are known.
    """
    every = [estimate for copy in device.copies for name, estimate in copy.gains.items() if kind_of(name) in COUPLINGS]
    known = [estimate for estimate in every if estimate.observed or estimate.standard_error == 0]
    if len(known) < 2:
        raise InputError("the device knows fewer than two of its couplings; calibrate a board that has more of them")
    found = _spread(known)
    if seed is None:
        return found
    rng = np.random.default_rng([ENSEMBLE_STREAM, seed])
    return replace(found, deviation=_uncertain(found, rng))


def kind_of(name: str) -> str:
    """The kind of a parameter.

    >>> kind_of("bank_1_2_bit_3"), kind_of("bank_1_2_switch_straight_0"), kind_of("crossed_1_4"), kind_of("ground_2")
    ('bit', 'switch', 'crossed', 'ground')
    """
    words = name.split("_")
    return words[3] if words[0] == "bank" else words[0]


def _estimates(copy: FittedCopy) -> Iterator[tuple[str, Estimate]]:
    yield from copy.gains.items()
    yield from ((f"temperature_{i}", e) for i, e in enumerate(copy.temperatures, start=1))
    yield from ((f"inductance_{i}", e) for i, e in enumerate(copy.inductances, start=1))


def _spread(found: list[Estimate]) -> Spread:
    value = np.array([estimate.value for estimate in found])
    error = np.array([estimate.standard_error for estimate in found])
    free = len(value) - 1
    total, noise, tail = value.var(ddof=1), np.mean(error**2), (1 - CONFIDENCE) / 2
    low, high = (_beyond(total * free / (2 * special.gammaincinv(free / 2, q)), noise) for q in (1 - tail, tail))
    return Spread(len(value), float(value.mean()), _beyond(total, noise), (low, high), float(np.sqrt(noise)))


def _beyond(total: float, noise: float) -> float:
    """The deviation of the parts themselves, of a variance in all."""
    return float(np.sqrt(max(total - noise, 0.0)))


def _uncertain(spread: Spread, rng: np.random.Generator) -> float:
    """A deviation drawn from what is known of it; a tolerance is known."""
    if spread.count < 2:
        return spread.deviation
    noise, free = spread.error**2, spread.count - 1
    return _beyond((spread.deviation**2 + noise) * free / rng.chisquare(free), noise)


def _tolerances(board: Board) -> dict[str, Spread]:
    """Return spreads of the elements of an unseen board: parts are uniform within their tolerance."""
    found = {}
    for element in board.elements:
        parts = [part.tolerance for part in board.parts if part.element == element.name]
        if parts:
            deviation = max(parts) / float(np.sqrt(3 * len(parts)))
            found[kind_of(element.name)] = Spread(0, 1.0, deviation, (deviation, deviation))
    return found


def _drawn(spreads: dict[str, Spread], blank: FittedCopy, rng: np.random.Generator, number: int) -> FittedCopy:
    own = {kind: (spread.mean, _uncertain(spread, rng)) for kind, spread in spreads.items()}

    def draw(name: str) -> Estimate:
        mean, deviation = own[kind_of(name)]
        step = deviation * np.clip(rng.standard_normal(), -WIDEST, WIDEST)
        return Estimate(float(max(mean + step, 0.01)), 0.0, True)

    cells = range(1, len(blank.temperatures) + 1)
    return FittedCopy(
        f"drawn-{number + 1}",
        {name: draw(name) for name in blank.gains},
        tuple(draw(f"temperature_{i}") for i in cells),
        tuple(draw(f"inductance_{i}") for i in cells),
    )

"""Elements from an E series: the values near each exact one, held by one part or by two in parallel.

circuits.synthesis.rounding chooses from them.
"""

from dataclasses import replace

import eseries
import numpy as np

from circuits.board import Board, Program
from circuits.synthesis.options import SMALLEST_PART
from circuits.synthesis.rounding import round_to_grid

NEAR_VALUES = 4  # values of the grid that are considered for an element


def round_to_series(board: Board, program: Program, series: str, load: np.ndarray) -> Program:
    """The program with every populated element held by parts of an E series, one or two in parallel."""
    exact = list(program.values.values())
    parallel = any(element.second for element in board.elements)
    resistive = board.coupling == "resistive"
    floor = board.limits.smallest or SMALLEST_PART[board.element_unit]
    near = [_splits(value, series, resistive, parallel and value > 0, floor) for value in exact]
    grid = np.array([[first + second for first, second in choices] for choices in near])
    rounding = round_to_grid(board, program, grid, series, load)
    values: dict[str, float] = {}
    for (name, total), choices in zip(rounding.values.items(), near, strict=True):
        first, second = next(pair for pair in choices if sum(pair) == total)
        values |= ({name: first} if first else {}) | ({f"{name}b": second} if second else {})
    return replace(program, values=values, scaling=rounding.scaling, rounding=rounding.cost)


def halved(values: dict[str, float]) -> dict[str, float]:
    """Every element but the negative ones as two equal parts in parallel."""
    halves: dict[str, float] = {}
    for name, value in values.items():
        halves |= {name: value / 2, f"{name}b": value / 2} if value > 0 else {name: value}
    return halves


def round_fixed(board: Board, series: str) -> Board:
    """The board with its resistors, inductors and storage capacitors at the nearest values of a series.

    They move no nominal inverse. The noise is set for the resistors as they are.
    """
    parts = tuple(
        part if part.nominal is None else replace(part, nominal=float(series_near(part.nominal, series)[0]))
        for part in board.parts
    )
    if board.coupling == "resistive":
        capacitance = next(part.nominal for part in parts if part.role == "storage")
        return replace(board, parts=parts, capacitance=capacitance)
    conductance = 1 / next(part.nominal for part in parts if part.role == "damping")
    sources = tuple(replace(source, conductance=conductance) for source in board.sources)
    return replace(board, parts=parts, sources=sources)


def series_near(value: float, series: str) -> np.ndarray:
    """The NEAR values of a series closest to `value`, closest first, with its sign.

    >>> (series_near(4.87e-11, "E24") * 1e12).round(6).tolist()
    [47.0, 51.0, 43.0, 56.0]
    """
    candidates = _decades(value, series, 1)
    near = candidates[np.argsort(np.abs(candidates - abs(value)), kind="stable")[:NEAR_VALUES]]
    return np.sign(value) * near


def _decades(value: float, series: str, away: int) -> np.ndarray:
    """All values of a series from `away` decades below that of `value` to as many above."""
    base = eseries.series(eseries.ESeries[series])  # one decade, from 10 to below 100
    decade = int(np.floor(np.log10(abs(value)))) - 1
    return np.array([float(f"{b}e{decade + step}") for step in range(-away, away + 1) for b in base])


def _splits(value: float, series: str, resistive: bool, parallel: bool, floor: float) -> list[tuple[float, float]]:
    """The NEAR closest ways to hold an element [F or S], closest first: one part, or two in parallel, or none.

    No part is smaller than `floor`, an element below it may be left out.
    """
    decades = 2 if parallel else 1
    size = max(abs(value), floor)
    one = 1 / _decades(1 / size, series, decades) if resistive else _decades(size, series, decades)
    one = np.sort(one[one >= floor * (1 - 1e-12)])
    second = np.concatenate([[0.0], one]) if parallel else np.zeros(1)
    first = np.concatenate([[0.0], one]) if abs(value) < one[0] else one
    off = np.abs(first[:, None] + second - abs(value))
    found: dict[float, tuple[float, float]] = {}
    for k in np.argsort(off, axis=None, kind="stable"):
        i, j = np.unravel_index(k, off.shape)
        smaller, larger = sorted((float(first[i]), float(second[j])))
        found.setdefault(round((larger + smaller) / size, 12), (np.sign(value) * larger, np.sign(value) * smaller))
        if len(found) == NEAR_VALUES:
            break
    return [(float(larger), float(smaller)) for larger, smaller in found.values()]

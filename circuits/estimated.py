"""The records of a fitted copy: an estimate of everything that is known of it, with what a board of its kind has.

Each element (a matched pair of parts) has one relative gain, each cell a relative temperature and inductance; on boards
with banks or parasitics, and on resistive ones, every pair of parts has a gain (circuits.model.pairs). A cell's reading y is
shown as readout gain · y + readout offset.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np
from pydantic import Field

from circuits.board import Board
from circuits.model.pairs import PairModel, pair_model


@dataclass(frozen=True)
class Estimate:
    """A relative quantity: value, standard error, and whether the data said anything about it (else: its prior)."""

    value: float
    standard_error: float
    observed: bool


@dataclass(frozen=True)
class FittedCopy:
    """Estimates of one copy: gain of every element by name, relative temperature and inductance of every cell.

    Where parts are known pair by pair (`by_pairs`) `gains` are those of all pairs, and of the power of sources.
    `readout_gains` are relative, `readout_offsets` in V, a cell each; none at all are exact ones.
    """

    name: str
    gains: dict[str, Estimate]
    temperatures: tuple[Estimate, ...]
    inductances: tuple[Estimate, ...]
    readout_gains: tuple[Estimate, ...] = ()
    readout_offsets: Annotated[tuple[Estimate, ...], Field(alias="readout_offsets_V")] = ()


def by_pairs(board: Board) -> bool:
    """Whether the parts of a copy are known pair by pair, rather than element by element: what is no element counts."""
    parasitic = bool(board.mutuals) or any(part.cause for part in board.parts)
    return bool(board.banks) or board.coupling == "resistive" or parasitic


@lru_cache(maxsize=8)
def pairs_of(board: Board) -> PairModel:
    """`pair_model`, once for a board."""
    return pair_model(board)


def gain_names(board: Board) -> tuple[str, ...]:
    """Of what a copy has gains."""
    if not by_pairs(board):
        return tuple(element.name for element in board.elements)
    return tuple(name for name in pairs_of(board).names if name.split("_")[0] not in ("temperature", "inductance"))


def nominal_cell(board: Board) -> tuple[float, float]:
    """Resistance [ohm] and inductance [H] of every cell of a capacitive board."""
    resistance = next(part.nominal for part in board.parts if part.kind == "R")
    inductance = next(part.nominal for part in board.parts if part.kind == "L")
    return resistance, inductance


def nominal_values(board: Board) -> dict[str, dict[str, float]]:
    """Nominal values of what gains are relative to, in F, ohm, H, but for elements that a program sets."""
    if not by_pairs(board):
        resistance, inductance = nominal_cell(board)
        cells = range(1, len(board.cells) + 1)
        found = {f"temperature_{i}": {"nominal_ohm": resistance} for i in cells}
        return found | {f"inductance_{i}": {"nominal_H": inductance} for i in cells}
    model, unit = pairs_of(board), {"C": "F", "R": "ohm", "L": "H"}
    found = {}
    for members, row in zip(model.pairs, model.exponents, strict=True):
        part = board.parts[members[0]]
        if part.nominal is not None and row.any():
            found[model.names[int(np.abs(row).argmax())]] = {f"nominal_{unit[part.kind]}": part.nominal}
    return found

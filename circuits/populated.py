"""What one program shows of a soldered capacitive board: its populated elements and its cells, as a vector θ.

    θ = relative gain of every populated element, relative temperature of every cell, relative inductance of every cell

A differential pair is one parameter, the mean of its parts. What the program leaves out keeps its prior.
"""

from dataclasses import dataclass, replace

import numpy as np

from circuits.assembly import Circuit
from circuits.board import Board, Design, Program
from circuits.estimated import Estimate, FittedCopy, by_pairs
from circuits.fitting import Fit, plain_fit
from circuits.leavings import DRAWS, FEW
from circuits.pairs import PairModel, pair_model
from circuits.specimen import reduced_circuit


@dataclass(frozen=True)
class Layout:
    """Which parameters the vector θ holds, in order: populated elements, then temperatures, then inductances."""

    elements: tuple[str, ...]
    cells: int

    @property
    def names(self) -> tuple[str, ...]:
        """One name a parameter."""
        count = range(1, self.cells + 1)
        return (
            *self.elements,
            *(f"temperature_{i}" for i in count),
            *(f"inductance_{i}" for i in count),
        )


def layout_of(design: Design) -> Layout:
    """What the own program of a design shows."""
    board = design.board
    return Layout(tuple(e.name for e in board.elements if e.name in design.program.values), len(board.cells))


def element_means(board: Board, layout: Layout, gains: np.ndarray) -> np.ndarray:
    """What the reduced parameters of drawn copies are: part gains (…, parts) averaged within pairs, (…, parameters).

    A temperature is the inverse of the mean conductance, an inductance that of the mean inverse inductance.
    """
    names = {part.name: k for k, part in enumerate(board.parts)}
    columns = [
        gains[..., [k for k, part in enumerate(board.parts) if part.element == name]].mean(axis=-1)
        for name in layout.elements
    ]
    for kind in "RL":
        columns += [
            1 / (1 / gains[..., [names[f"{kind}{node}"] for node in cell.nodes]]).mean(axis=-1) for cell in board.cells
        ]
    return np.stack(columns, axis=-1)


def model_circuit(board: Board, program: Program, layout: Layout, theta: np.ndarray) -> Circuit:
    """The reduced-order circuit at parameters θ (parameters,)."""
    count, n = len(layout.elements), layout.cells
    gains = dict.fromkeys((element.name for element in board.elements), 1.0)
    gains |= dict(zip(layout.elements, theta[:count].tolist(), strict=True))
    return reduced_circuit(board, program, gains, theta[count : count + n], theta[count + n :])


def prior_of(board: Board, layout: Layout) -> np.ndarray:
    """Standard deviation of every parameter before any data: uniform parts, averaged within the pair."""
    tolerance = {part.element or part.name: part.tolerance for part in board.parts}
    count = {name: sum(part.element == name for part in board.parts) for name in layout.elements}
    elements = [tolerance[name] / np.sqrt(3 * count[name]) for name in layout.elements]
    cells = [
        tolerance[f"{kind}{cell.nodes[0]}"] / np.sqrt(3 * len(cell.nodes)) for kind in "RL" for cell in board.cells
    ]
    return np.maximum(elements + cells, 1e-6)  # a part without tolerance is still a parameter


def fitted_copy(board: Board, name: str, layout: Layout, fit: Fit) -> FittedCopy:
    """The record of a fit; observed is what is known twice as well as before, as in circuits.device."""
    error = np.sqrt(np.diag(fit.covariance))
    found = {
        parameter: Estimate(float(value), float(own), bool(own < spread / 2))
        for parameter, value, own, spread in zip(layout.names, fit.values, error, prior_of(board, layout), strict=True)
    }
    spread = {element.name: prior_of(board, Layout((element.name,), layout.cells))[0] for element in board.elements}
    cells = range(1, layout.cells + 1)
    return FittedCopy(
        name,
        {e.name: found.get(e.name, Estimate(1.0, float(spread[e.name]), False)) for e in board.elements},
        tuple(found[f"temperature_{i}"] for i in cells),
        tuple(found[f"inductance_{i}"] for i in cells),
    )


def paired(design: Design, route: str, fits: dict[str, Fit]) -> tuple[PairModel, dict[str, Fit]]:
    """Fits of `calibrate` by the parameters of the pair model: those that the program leaves out keep their prior."""
    board, model = design.board, pair_model(design.board)
    if by_pairs(board):
        return model, fits
    names = layout_of(design).names
    known = [k for k, name in enumerate(names) if name in model.names]
    place = [model.names.index(names[k]) for k in known]
    checks = (DRAWS if route == "exact" else FEW) if board.nodes_per_cell == 2 else 0

    def widened(own: Fit) -> Fit:
        values, covariance = np.ones(len(model.names)), np.diag(model.spreads**2)
        values[place] = own.values[known]
        covariance[np.ix_(place, place)] = own.covariance[np.ix_(known, known)]
        wide = plain_fit(values, covariance, own.residuals_nominal, own.residuals, checks)
        return replace(wide, excess=own.excess)

    return model, {name: widened(own) for name, own in fits.items()}

"""Fitted copy: the estimates of one copy, and its circuit under any program at any temperature.

The reduced-order model of a copy has one node a cell, the reading. Each element (a matched pair of parts) has one
relative gain, each cell a relative temperature t_i = T_i/T (so its conductance is g/t_i) and a relative inductance.
With the element values e of a program

    M~_ii = Σ e_coupling γ + e_ground γ + 2 e_negative γ,   M~_ij = (e_crossed γ - e_straight γ),
    C = M~,  G = diag(g/t_i),  Γ = diag(1/(L l_i)),  Q = k kT g I  (k nodes a cell),

and the law of the readings is that of circuits.ou. Mismatch inside a pair enters in second order only. A board with
banks or parasitics, and a resistive one, has a gain of every pair of parts (circuits.model.pairs): bits, switches,
pads, windings, elements to ground; its reduced circuit keeps the inner nodes that hold a state. The readout turns a
cell's reading y into readout gain · y + readout offset.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from circuits.board import Board, Program
from circuits.model.pairs import PairModel, half_circuit, half_of, pair_model
from circuits.nodal import Circuit


@dataclass(frozen=True)
class Estimate:
    """A relative quantity: value, standard error, and whether the data determined it (else: its prior)."""

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


def fitted_circuit(
    board: Board, copy: FittedCopy, program: Program, coefficients: dict[str, float], kelvin: float = 0.0
) -> Circuit:
    """Return the reduced-order circuit of a copy under a program, `kelvin` above the temperature it was calibrated at.

    `coefficients` [1/K] are those of all kinds of part, "R", "L", "C" and "I".
    """
    if by_pairs(board):
        model = pair_model(board)
        circuit = half_circuit(half_of(model, program), parameters_of(model, copy))
    else:
        circuit = reduced_circuit(
            board,
            program,
            {name: estimate.value for name, estimate in copy.gains.items()},
            np.array([estimate.value for estimate in copy.temperatures]),
            np.array([estimate.value for estimate in copy.inductances]),
        )
    return _warmed(circuit, coefficients, kelvin)


def reduced_circuit(
    board: Board, program: Program, gains: dict[str, float], temperatures: np.ndarray, inductances: np.ndarray
) -> Circuit:
    """The reduced-order circuit, matrices (n, n), of a copy with these relative gains, temperatures, inductances."""
    n, k = len(board.cells), board.nodes_per_cell
    C = np.zeros((n, n))
    for element in board.elements:
        value = program.values.get(element.name, 0.0) * gains[element.name]
        if element.kind in ("ground", "negative"):
            C[element.cells * 2] += value * (2 if element.kind == "negative" else 1)
        else:
            i, j = element.cells
            C[i, i] += value
            C[j, j] += value
            C[i, j] = C[j, i] = C[i, j] + (value if element.kind == "crossed" else -value)
    resistance, inductance = nominal_cell(board)
    eye = np.eye(n)
    return Circuit(
        C,
        np.diag(1 / (resistance * temperatures)),
        eye,
        np.diag(1 / (inductance * inductances)),
        0 * eye,
        k * program.energy / resistance * eye,
        eye,
    )


def parameters_of(model: PairModel, copy: FittedCopy) -> np.ndarray:
    """θ (parameters,) of a fitted copy."""
    cells = {f"temperature_{i}": e for i, e in enumerate(copy.temperatures, start=1)}
    cells |= {f"inductance_{i}": e for i, e in enumerate(copy.inductances, start=1)}
    found = copy.gains | cells
    return np.array([found[name].value for name in model.names])


def readout_of(copy: FittedCopy, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the relative gains (n,) and offsets (n,) [V] of the readout of a copy with n = `cells` cells."""
    gains = np.array([estimate.value for estimate in copy.readout_gains]) if copy.readout_gains else np.ones(cells)
    offsets = np.array([e.value for e in copy.readout_offsets]) if copy.readout_offsets else np.zeros(cells)
    return gains, offsets


def _warmed(circuit: Circuit, coefficients: dict[str, float], kelvin: float) -> Circuit:
    """The circuit with all parts `kelvin` warmer: stars of one kind of part at inner nodes scale as that kind does."""
    if kelvin == 0:
        return circuit
    R, L, C, I = (1 + coefficients.get(kind, 0.0) * kelvin for kind in "RLCI")  # noqa: E741
    return replace(
        circuit,
        capacitance=circuit.capacitance * C,
        conductance=circuit.conductance / R,
        inverse_inductance=circuit.inverse_inductance / L,
        loss=circuit.loss * R,
        noise=circuit.noise * I,
    )


def by_pairs(board: Board) -> bool:
    """Tell whether parts are known pair by pair (parts besides elements matter), rather than element by element."""
    parasitic = bool(board.mutuals) or any(part.cause for part in board.parts)
    return bool(board.banks) or board.coupling == "resistive" or parasitic


def gain_names(board: Board) -> tuple[str, ...]:
    """Return the names of the gains of a copy."""
    if not by_pairs(board):
        return tuple(element.name for element in board.elements)
    return tuple(name for name in pair_model(board).names if name.split("_")[0] not in ("temperature", "inductance"))


def nominal_cell(board: Board) -> tuple[float, float]:
    """Resistance [ohm] and inductance [H] of every cell of a capacitive board."""
    resistance = next(part.nominal for part in board.parts if part.kind == "R")
    inductance = next(part.nominal for part in board.parts if part.kind == "L")
    return resistance, inductance


def nominal_values(board: Board) -> dict[str, dict[str, float]]:
    """Nominal values of what gains are relative to, in F, ohm, H, except elements that a program sets."""
    if not by_pairs(board):
        resistance, inductance = nominal_cell(board)
        cells = range(1, len(board.cells) + 1)
        found = {f"temperature_{i}": {"nominal_ohm": resistance} for i in cells}
        return found | {f"inductance_{i}": {"nominal_H": inductance} for i in cells}
    model, unit = pair_model(board), {"C": "F", "R": "ohm", "L": "H"}
    found = {}
    for members, row in zip(model.pairs, model.exponents, strict=True):
        part = board.parts[members[0]]
        if part.nominal is not None and row.any():
            found[model.names[int(np.abs(row).argmax())]] = {f"nominal_{unit[part.kind]}": part.nominal}
    return found

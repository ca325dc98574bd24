"""Means of the readings of a resistive board: solutions of linear systems, and how the readings settle to them.

    <y> = M⁻¹ b / g   for bias currents b,      v(t) = (I - e^{-At}) G⁻¹ i,   A = C⁻¹ G

In ngspice, noise off: one operating point for every cell, with a unit current into the cell (½ into p, -½ into n of a
differential cell), gives a column of M⁻¹ / g; a step of all these currents at once, from rest, gives the settling.
"""

from dataclasses import dataclass

import numpy as np

from circuits.board import Board, Program
from circuits.errors import SimulationError
from circuits.netlist.deck import control
from circuits.nodal import nominal_circuit, readout_matrix
from circuits.simulation.ngspice import run_deck

STEPS = 100  # of the simulator, per time constant of the fastest mode: the trapezoidal rule is off by 1e-5
MOST_STEPS = 50_000
TIMES = 50  # number of instants at which the settling is kept
LONG = 5.0  # length of the settling in slowest time constants, if MOST_STEPS allows


@dataclass(frozen=True, eq=False)
class SolveRun:
    """Columns (n, n) [V]: the readings for the current `bias` [A] into one cell, a column for each cell.

    `settling` (times, n) [V] holds the readings at `times` [s] after all inputs were stepped from zero to `bias`.
    """

    bias: float
    columns: np.ndarray
    times: np.ndarray
    settling: np.ndarray


def solve_run(board: Board, program: Program, circuit: str) -> SolveRun:
    """Run the circuit part of a deck without its noise sources; SimulationError if ngspice fails."""
    bias = board.unit * board.limits.reading_rms
    end, step = _times(board, program)
    deck = quiet(circuit, board) + _analysis(board, bias, end, step)
    plots = run_deck(deck, board.nodes, "solve", len(board.cells) + 1)
    *points, settled = plots
    H = readout_matrix(board)
    times = np.linspace(0, end, TIMES + 1)[1:]
    rows = np.abs(settled.scale[:, None] - times).argmin(axis=0)  # the row of time zero is there or not
    if np.abs(settled.scale[rows] - times).max() > 1e-6 * end:
        raise SimulationError("ngspice stopped inside the settling; run it again")
    columns = np.stack([H @ plot.voltages[0] for plot in points], axis=1)
    return SolveRun(bias, columns, times, settled.voltages[rows] @ H.T)


def quiet(circuit: str, board: Board) -> str:
    """Circuit part of a deck without its noise sources, which a transient analysis would switch on."""
    noisy = {source.name for source in board.sources}
    return "\n".join(line for line in circuit.splitlines() if line.split(" ")[0] not in noisy) + "\n"


def _times(board: Board, program: Program) -> tuple[float, float]:
    """End of the settling and step of the simulator [s], from the modes of the nominal board."""
    circuit = nominal_circuit(board, program)
    rates = np.linalg.eigvalsh(circuit.conductance) / circuit.capacitance[0, 0]
    step = 1 / rates[-1] / STEPS
    return float(min(LONG / rates[0], MOST_STEPS * step)), float(step)


def _analysis(board: Board, bias: float, end: float, step: float) -> str:
    """Lines of one operating point for each cell, and of the settling."""
    saved = " ".join(f"v({node})" for node in board.nodes)
    lines = ["set appendwrite"]
    for cell in range(len(board.cells)):
        for other in (cell - 1, cell):
            lines += [
                f"alter {entry.name.lower()} dc = {entry.share * bias * (other == cell)!r}"
                for entry in board.inputs
                if entry.cell == other
            ]
        lines += ["op", f"write solve.raw {saved}"]
    lines += [f"alter {entry.name.lower()} dc = {entry.share * bias!r}" for entry in board.inputs]
    lines += [f"tran {end / TIMES!r} {end * (1 + 0.5 / TIMES)!r} 0 {step!r} uic", f"write solve.raw {saved}"]
    return "\n".join([".options interp", f".save {saved}", *control(lines)])

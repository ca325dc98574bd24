"""Charge readout of a capacitive board, noise off: a packet of charge on one cell gives a column of the inverse.

    C dv/dt = -G v - E Γ φ + W i(t),   ∫ i dt = q:   y(0+) = q H C⁻¹ W = q M⁻¹ / c,   W = Hᵀ/k

With k = 2 nodes a cell, p gets ½ q and n gets -½ q. As H C⁻¹ Hᵀ = k M⁻¹/c (for the same reason Cov(y) = k kT/c M⁻¹),
M⁻¹ = c y/q for plain and for differential cells. The voltages are right once the switches in the couplings have
settled (time constant Ron C), until currents through the inductors and resistors change them; the instant of the
reading is chosen by the law of the nominal board. One packet for each cell, each from rest, gives all of M⁻¹.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import expm, matrix_balance

from circuits.board import Board, Program
from circuits.errors import InputError, SimulationError
from circuits.netlist.deck import control
from circuits.nodal import Circuit, nominal_circuit, readout_matrix
from circuits.ou import drift
from circuits.simulation.ngspice import run_deck
from circuits.simulation.operating_point import quiet

PULSE = 1e-3  # length of a pulse, in units of the window
EDGE = 0.1  # rise time and fall time, in units of the pulse
INSTANTS = 31  # from the end of the pulse to the end of the window
STEPS = 100  # least number of steps of the simulator in a window
ACCURACY = 1e-6  # relative tolerance of the simulator's step control; readings are accurate to some 1e-5


@dataclass(frozen=True, eq=False)
class ChargeRun:
    """Readings (packet, t, reading) [V] at `times` (t,) [s] after the beginning of a packet of `charge` [C].

    There are as many packets as readings, n. The first of the times is the end of the pulse.
    """

    charge: float
    times: np.ndarray
    readings: np.ndarray


def charge_run(board: Board, program: Program, circuit: str) -> ChargeRun:
    """Run the circuit part of a deck without its noise sources, once for every cell.

    The largest reading is about the largest that the board may have. InputError for a resistive board, SimulationError
    if ngspice fails.
    """
    check_capacitive(board)
    charge, times = _charge(board, program), _times(board, program)
    deck = quiet(circuit, board) + _generator(board, times) + _analysis(board, charge, times)
    plots = run_deck(deck, board.nodes, "charge", len(board.cells))
    H = readout_matrix(board)
    readings = []
    for plot in plots:
        rows = np.abs(plot.scale[:, None] - times).argmin(axis=0)
        if np.abs(plot.scale[rows] / times - 1).max() > 1e-6:
            raise SimulationError("ngspice stopped after a packet of charge, or left out an instant; run it again")
        readings.append(plot.voltages[rows] @ H.T)
    return ChargeRun(charge, times, np.array(readings))


def charge_law(board: Board, circuit: Circuit, charge: float, times: np.ndarray) -> np.ndarray:
    """Readings (packet, t, reading) [V] by the law of a circuit; the first of `times` [s] is the end of the pulse."""
    A = drift(circuit)
    m = circuit.capacitance.shape[-1]
    # Volts and webers differ by orders of magnitude.
    balanced, (scale, _) = matrix_balance(A, permute=False, separate=True)
    W = circuit.readout.T / board.nodes_per_cell
    B = np.concatenate([np.linalg.solve(circuit.capacitance, W), np.zeros((len(A) - m, W.shape[1]))])
    x = _after_pulse(balanced, B / scale[:, None] * peak_current(charge, times), times[0])
    states = expm(-balanced * (times - times[0])[:, None, None]) @ x  # (t, m + l, n)
    return (circuit.readout * scale[:m] @ states[:, :m]).transpose(2, 0, 1)


def check_capacitive(board: Board) -> None:
    """Raise InputError for a resistive board."""
    if board.coupling != "capacitive":
        raise InputError(
            "charges are read from capacitive boards, where capacitors hold the matrix, got a resistive one; "
            "read the mean of its readings instead, or design it with --coupling capacitive"
        )


def _charge(board: Board, program: Program) -> float:
    """Charge q [C] for which the largest reading q M⁻¹/c of the nominal board equals the largest rms reading."""
    return float(board.limits.reading_rms * board.capacitance / np.abs(np.linalg.inv(program.matrix)).max())


def _times(board: Board, program: Program) -> np.ndarray:
    """Instants (t,) [s] at which a reading may be taken, equally spaced in the logarithm.

    The last is the time constant of the fastest mode of the nominal board: the shorter of sqrt(c/Γ) and c/G.
    """
    circuit = nominal_circuit(board, program)
    stiffness, conductance = circuit.inverse_inductance[0, 0], circuit.conductance[0, 0]
    smallest = np.linalg.eigvalsh(circuit.capacitance)[0]
    window = 1 / max(np.sqrt(stiffness / smallest), conductance / smallest)
    return np.geomspace(PULSE * window, window, INSTANTS)


def _generator(board: Board, times: np.ndarray) -> str:
    """Lines of a voltage in the shape of the pulse, and of a transconductance, still zero, from it to every node.

    Currents from ground to ground, which change at one instant each, keep the simulator from stepping over the instant.
    """
    pulse = float(times[0])
    corners = [EDGE * pulse, (1 - EDGE) * pulse]
    sources = [f"Gcharge{node} 0 {node} charge 0 0" for node in board.nodes]
    instants = [f"Iinstant{k} 0 0 pwl(0 0 {t!r} 1)" for k, t in enumerate([*corners, *times.tolist()])]
    shape = f"Vcharge charge 0 pwl(0 0 {corners[0]!r} 1 {corners[1]!r} 1 {pulse!r} 0)"
    return "\n".join([shape, *sources, *instants, ""])


def _analysis(board: Board, charge: float, times: np.ndarray) -> str:
    """Lines of one transient analysis for every cell, each from rest; tolerances scale with the charge of a packet."""
    saved = " ".join(f"v({node})" for node in board.nodes)
    current = peak_current(charge, times)
    end, step = float(times[-1]), float(times[-1]) / STEPS
    tolerances = {"chgtol": charge, "abstol": current, "vntol": board.limits.reading_rms}
    options = " ".join(f"{name}={ACCURACY * 1e-3 * size!r}" for name, size in tolerances.items())
    lines = ["set appendwrite"]
    for cell, shares in zip(board.cells, _shares(board), strict=True):
        names = [f"gcharge{node}" for node in cell.nodes]
        lines += [f"alter {name} gain = {share * current!r}" for name, share in zip(names, shares, strict=True)]
        lines += [f"tran {step!r} {end * (1 + 1e-3)!r} 0 {step!r} uic", f"write charge.raw {saved}"]
        lines += [f"alter {name} gain = 0" for name in names]
    return "\n".join([f".options reltol={ACCURACY!r} {options}", f".save {saved}", *control(lines)])


def _shares(board: Board) -> list[tuple[float, ...]]:
    """Shares of a packet that the nodes of a cell get, cell by cell."""
    return [(1.0,) if len(cell.nodes) == 1 else (0.5, -0.5) for cell in board.cells]


def peak_current(charge: float, times: np.ndarray) -> float:
    """Current [A] at the top of a trapezoid pulse of this `charge` [C], which ends at the first of `times` [s]."""
    return float(charge / ((1 - EDGE) * times[0]))


def _after_pulse(A: np.ndarray, B: np.ndarray, pulse: float) -> np.ndarray:
    """States (m + l, n) at the end of the pulse, a column for each packet: x' = -A x + B i, i a trapezoid of height 1.

    For i from a to b within d: x(d) = e^{-Ad} x + d φ₁(-Ad) B a + d φ₂(-Ad) B (b - a).
    """
    N, n = B.shape
    x = np.zeros((N, n))
    for fraction, first, last in ((EDGE, 0, 1), (1 - 2 * EDGE, 1, 1), (EDGE, 1, 0)):
        block = np.zeros((N + 2 * n, N + 2 * n))
        block[:N, :N], block[:N, N : N + n] = -A * fraction * pulse, B * fraction * pulse
        block[N : N + n, N + n :] = np.eye(n)
        exponential = expm(block)[:N]
        constant, ramp = exponential[:, N : N + n], exponential[:, N + n :]
        x = exponential[:, :N] @ x + constant * first + ramp * (last - first)
    return x

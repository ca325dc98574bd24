"""Codes for one very copy: what calibration knows of its bits, loads and temperatures, put to use.

Three things are wrong with a copy, and each is set right where that is possible. Unequal temperatures no code repairs:
the amplitude of each noise generator is set by its cell's temperature (a source's power by 1/t). Wrong bits are no
error once they are known: the closest-vector search of circuits.synthesis.rounding runs on the values that this copy's codes
really have. What is left is the coarseness of the codes, which no search removes: couplings of 4 bits and 28 banks hold
an inverse to some 0.5 %. Repeated programming does: the k-th program is for the inverse that makes the mean of the
first k right,

    B_k  →  k P⁻¹ - Σ_{j<k} B_j,

so that what is left of the mean falls as 1/k, and weights w (Σ w = 1) take up more. What switches do at high
frequencies is predicted and taken from the inverse that the search aims at.
"""

from dataclasses import dataclass, replace

import numpy as np

from circuits.board import Bank, Board, Copy, Program
from circuits.calibration.discrepancy import delayed_leavings, draw_pairs, drawn_spectra
from circuits.copies import codes
from circuits.errors import InputError
from circuits.model.converters import source_power
from circuits.model.device import Device
from circuits.model.fitted_copy import pairs_of, parameters_of
from circuits.model.pairs import Half, PairModel, half_circuit, half_of, part_gains
from circuits.model.response import impedance, spread_stamps
from circuits.ou import reading_covariance
from circuits.synthesis.cells import plan
from circuits.synthesis.design import levelled
from circuits.synthesis.elements import element_values
from circuits.synthesis.rounding import round_to_grid, row_sum_scaling

NEAR = 4  # codes that are considered for a coupling
DRAWS = 32  # of mismatch
PASSES = 3  # of search and load, which the codes change
KNOWN = 3e-4  # relative error of a predicted inverse: what weights may not fit below


@dataclass(frozen=True, eq=False)
class Retrim:
    """Programs for one copy, the weights (k,) of their inverses, powers (n,) of the cells' sources, expected error.

    The inverse is Σ weight · inverse read under each program. `errors` (k,) are expected of the first 1, 2, … alone.
    """

    programs: tuple[Program, ...]
    weights: np.ndarray
    powers: np.ndarray
    errors: np.ndarray


def retrim(
    device: Device, copy: int, target: np.ndarray, congruence: np.ndarray | None = None, programmings: int = 1
) -> Retrim:
    """Choose codes for copy number `copy` (from 0) of a calibrated board with banks and a checked target (n, n).

    InputError if the board has no banks, or none of its codes come near.
    """
    board = device.board
    if not board.banks:
        raise InputError("the board has no banks to trim; design one with --bank-bits")
    T = np.eye(len(target)) if congruence is None else congruence
    model = pairs_of(board)
    theta = parameters_of(model, device.copies[copy])
    powers = source_powers(device, copy)
    inverse = np.linalg.inv(target)
    programs, read, errors = [], [], []
    left = mean_leavings(model, _search(model, theta, powers, target, T, inverse, "trim-1"))
    for k in range(1, programmings + 1):
        wanted = k * inverse - sum(read, left)
        made = _search(model, theta, powers, target, T, wanted, f"trim-{k}")
        programs.append(made)
        read.append(expected_inverse(model, theta, powers, made) + left)
        weights = _weights(read, inverse)
        mean = np.einsum("k,kij->ij", weights, read)
        errors.append(float(np.linalg.norm(mean - inverse) / np.linalg.norm(inverse)))
    return Retrim(tuple(programs), weights, powers, np.array(errors))


def source_powers(device: Device, copy: int) -> np.ndarray:
    """Powers (n,) of the cells' sources, relative to what they are, that make all temperatures equal and nominal.

    As near as the bits of the sources' amplitudes allow.
    """
    fitted = device.copies[copy]
    if device.board.coupling == "resistive":
        gains = [fitted.gains.get(f"power_{i + 1}") for i in range(len(device.board.cells))]
        wanted = np.array([1 / gain.value if gain else 1.0 for gain in gains])
    else:
        wanted = np.array([1 / estimate.value for estimate in fitted.temperatures])
    return source_power(wanted, device.interface)


def trimmed_copy(board: Board, copy: Copy, powers: np.ndarray) -> Copy:
    """The same specimen with the power of its cells' noise generators set anew, (n,)."""
    cell = {node: i for i, entry in enumerate(board.cells) for node in entry.nodes}
    changed = {s.name: float(copy.gains[s.name] * powers[cell[s.node]]) for s in board.sources}
    return Copy(copy.name, copy.gains | changed)


def expected_inverse(model: PairModel, theta: np.ndarray, powers: np.ndarray, program: Program) -> np.ndarray:
    """What a copy of these parameters gives under a program with these powers of its sources, (n, n)."""
    board, half = model.board, half_of(model, program)
    X = program.mapping
    if board.inputs:
        return board.unit * X.T @ impedance(half, theta, np.zeros(1))[0].real @ X
    half = replace(half, power=half.power * powers)
    scale = board.capacitance / (board.nodes_per_cell * program.energy)
    return scale * X.T @ reading_covariance(half_circuit(half, theta)) @ X


def mean_leavings(model: PairModel, program: Program) -> np.ndarray:
    """What mismatch within pairs adds to an inverse (n, n) on average, which a model of equal pairs leaves out."""
    board, half = model.board, half_of(model, program)
    if board.nodes_per_cell == 1:
        return np.zeros_like(program.target)
    draws, X = draw_pairs(model, 0, DRAWS), program.mapping
    if board.inputs:
        drawn, matched = (drawn_spectra(half, each, np.zeros(1))[1][:, 0].real for each in (draws, draws.matched))
        left, scale = drawn - matched, board.unit
    else:
        left = delayed_leavings(half, draws)[0]
        scale = board.capacitance / (board.nodes_per_cell * program.energy)
    return scale * X.T @ left.mean(axis=0) @ X


def nearest_program(board: Board, target: np.ndarray, congruence: np.ndarray | None = None) -> Program:
    """What is done without any of this: the exact couplings of a nominal board, each to its nearest code."""
    T = np.eye(len(target)) if congruence is None else congruence
    model = pairs_of(board)
    theta, draft = np.ones(len(model.names)), _draft(board, target, T, "nearest")
    exact = _exact(board, draft, np.diag(_held(model, theta, draft)) / board.unit)
    picked = {e: round(value / bank.unit) for e, bank, value in _banked(board, exact.values)}
    return levelled(board, replace(exact, values=_code_values(board, picked)))


def _search(
    model: PairModel,
    theta: np.ndarray,
    powers: np.ndarray,
    target: np.ndarray,
    congruence: np.ndarray,
    wanted: np.ndarray,
    name: str,
) -> Program:
    """The program whose inverse comes nearest to `wanted` on this copy, for a `target` that it stands for."""
    board = model.board
    draft = _draft(board, target, congruence, name)
    load, excess, best = _held(model, theta, draft), np.zeros_like(wanted), None
    for _ in range(PASSES):
        aim = np.linalg.inv(wanted - excess)
        exact = _exact(board, replace(draft, target=(aim + aim.T) / 2), np.diag(load) / board.unit)
        grid, choices = _grid(model, theta, exact)
        found = round_to_grid(board, exact, grid, "the copy's own codes", load)
        picked = {
            element: int(choices[row][np.argmin(np.abs(grid[row] - value))])
            for row, (element, value) in enumerate(found.values.items())
        }
        made = replace(exact, target=target, scaling=found.scaling, values=_code_values(board, picked))
        made = levelled(board, made)
        read = expected_inverse(model, theta, powers, made)
        error = np.linalg.norm(read - wanted)
        if best is None or error < best[0]:
            best = error, made
        held = _held(model, theta, made)
        own = _stamped(board, {e: _true_value(model, theta, made, e) for e in made.values})
        load = held - own
        X = made.mapping
        excess = read - X.T @ np.linalg.inv(held / board.unit) @ X
    return best[1]


def _weights(read: list[np.ndarray], inverse: np.ndarray) -> np.ndarray:
    """Weights (k,) of sum one whose mean comes nearest to the inverse, as far as predictions can be trusted."""
    k = len(read)
    if k == 1:
        return np.ones(1)
    off = np.array([(B - inverse).ravel() for B in read]) / np.linalg.norm(inverse)
    gram = off @ off.T + KNOWN**2 * np.eye(k)
    weights = np.linalg.solve(gram, np.ones(k))
    return weights / weights.sum()


def _draft(board: Board, target: np.ndarray, congruence: np.ndarray, name: str) -> Program:
    chosen = plan(target, congruence, board.kind, negative=False)
    return Program(name, target, congruence, chosen.scaling, chosen.step, "codes of this very copy", {}, 1.0, 1.0, 1.0)


def _exact(board: Board, draft: Program, sums: np.ndarray) -> Program:
    """The draft with the scaling that makes the row sums those [units], and its exact couplings."""
    A = draft.congruence @ draft.target @ draft.congruence.T
    unit = np.diag(A) ** -0.5
    U = np.abs(unit[:, None] * A * unit)
    np.fill_diagonal(U, 1.0)
    scaling = np.sign(draft.scaling) * unit * row_sum_scaling(2 * np.eye(len(U)) - U, sums)
    scaled = replace(draft, scaling=scaling)
    values = element_values(board, scaled.matrix)
    over = [e for e, bank, value in _banked(board, values) if value > bank.reach + bank.unit]
    if over:
        raw = np.array_equal(draft.congruence, np.eye(len(U)))
        remedy = "use a --precondition, or a board" if raw else "take a newer factor, or a board"
        raise InputError(f"coupling {over[0]} is beyond the reach of its bank; {remedy} with a larger --bank-range")
    return replace(scaled, values=values)


def _banked(board: Board, values: dict[str, float]) -> list[tuple[str, Bank, float]]:
    banks = {name: bank for bank in board.banks for name in bank.elements}
    return [(name, banks[name], value) for name, value in values.items()]


def _code_values(board: Board, picked: dict[str, int]) -> dict[str, float]:
    return {e: code * bank.unit for e, bank, code in _banked(board, picked) if code}


def _grid(model: PairModel, theta: np.ndarray, exact: Program) -> tuple[np.ndarray, np.ndarray]:
    """True values (elements, NEAR) [F or S] of the codes nearest to the exact ones, nearest first, and the codes."""
    values, choices = [], []
    for element, bank, value in _banked(model.board, exact.values):
        every = np.arange(2**bank.bits)
        true = (every[:, None] >> np.arange(bank.bits) & 1) @ _bits(model, theta, bank, element)
        near = np.argsort(np.abs(true - value), kind="stable")[:NEAR]
        near = np.resize(near, NEAR)
        values.append(true[near])
        choices.append(every[near])
    return np.array(values).reshape(-1, NEAR), np.array(choices).reshape(-1, NEAR)


def _bits(model: PairModel, theta: np.ndarray, bank: Bank, element: str) -> np.ndarray:
    """True values (bits,) [F or S] of a bank's bits; a resistor with its switch."""
    gain = dict(zip(model.names, theta, strict=True))
    nominal = bank.unit * 2.0 ** np.arange(bank.bits)
    own = np.array([gain.get(f"{bank.name}_bit_{b}", 1.0) for b in range(bank.bits)])
    if model.board.coupling == "capacitive":
        return nominal * own
    way = element.split("_")[0]
    switch = next(part.nominal for part in model.board.parts if part.role == "switch")
    series = np.array([gain.get(f"{bank.name}_switch_{way}_{b}", 1.0) for b in range(bank.bits)])
    return 1 / ((1 / nominal - switch) * own + switch * series)


def _true_value(model: PairModel, theta: np.ndarray, program: Program, element: str) -> float:
    bank = next(bank for bank in model.board.banks if element in bank.elements)
    code = abs(codes(model.board, program)[bank.name])
    return float((code >> np.arange(bank.bits) & 1) @ _bits(model, theta, bank, element))


def _stamped(board: Board, values: dict[str, float]) -> np.ndarray:
    M = np.zeros((len(board.cells),) * 2)
    elements = {element.name: element for element in board.elements}
    for name, value in values.items():
        i, j = elements[name].cells
        M[[i, j], [i, j]] += value
        M[i, j] = M[j, i] = M[i, j] + (value if elements[name].kind == "crossed" else -value)
    return M


def _held(model: PairModel, theta: np.ndarray, program: Program) -> np.ndarray:
    """What a copy's readings see at low frequencies, (n, n) [F or S]: closed switches are wires to a capacitor."""
    half = half_of(model, program)
    if model.board.inputs:
        return np.linalg.inv(impedance(half, theta, np.zeros(1))[0].real)
    return static_capacitance(half, theta)


def static_capacitance(half: Half, theta: np.ndarray) -> np.ndarray:
    """Nodal capacitance (n, n) [F] of the readings with closed switches as wires."""
    stamps = spread_stamps(half, theta, np.array([1e-3j]))[0].real[half.capacitive]
    value = (half.weights * part_gains(half.exponents, theta))[half.capacitive]
    return (stamps.T * value) @ stamps

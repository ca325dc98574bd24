"""Experiment design: training programs, chosen so that their data determine the parts of a board.

With banks they are random codes. Every bit of every bank is closed in some programs, either way, and open in others,
with the rest of the board different each time. Of a few random programs the one is taken next that leaves the least
uncertainty,

    Σ_p (posterior variance/prior variance),   posterior = (Σ Jᵀ σ⁻² J + prior⁻¹)⁻¹,

with J the derivatives of the data at nominal parts, until every bit and cell is known far better than its tolerance.
On a soldered board the training programs are the own program and random targets in which every coupling is populated
once, either way.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from circuits.board import Board, Program
from circuits.calibration.discrepancy import DrawnPairs, drawn_spectra
from circuits.calibration.observations import ESR, Evidence, evidence_frequencies, expected_and_slopes, flattened
from circuits.errors import InputError
from circuits.model.pairs import Half, PairModel, half_circuit, half_of
from circuits.nodal import nominal_circuit
from circuits.ou import drift
from circuits.synthesis.cells import plan_cells
from circuits.synthesis.design import levelled
from circuits.synthesis.design import program as synthesised

TRAINING_SEED = 30_000_001  # added to the design's seed
CANDIDATES = 3  # random programs that compete to be the next
UNDETERMINED = 0.5  # posterior/prior deviation above which a parameter is undetermined
KNOWN = 0.1  # posterior/prior deviation below which a bit, a ground capacitor or a temperature is known
FEWEST, MOST = 14, 24  # programs
CORRELATED = 0.9
FILLED = 0.6  # of the diagonal: the couplings of the fullest row of a random target
NEAR = 0.05
SHORT = 0.15  # by which rows of a target that needs negative elements exceed diagonal dominance
LEAST_EIGENVALUE = 0.2  # of a target that needs negative elements
TRIALS = 20
FASTEST = (1 / 32, 1 / 4, 2.0)  # of the fastest pole of a board with ESR: where the data show the inputs of amplifiers


@dataclass(frozen=True, eq=False)
class TrainingPrograms:
    """Programs, the evidence of each, and `uncertainty` (parameters,): posterior over prior deviation.

    `correlated` are pairs of parameters whose errors the data separate badly, with the correlation.
    """

    programs: tuple[Program, ...]
    evidence: tuple[Evidence, ...]
    uncertainty: np.ndarray
    correlated: tuple[tuple[str, str, float], ...]


def training_programs(model: PairModel, seed: int, draws: DrawnPairs, most: int = MOST) -> TrainingPrograms:
    """Choose programs for a board with banks."""
    rng = np.random.default_rng([TRAINING_SEED, seed])
    information = np.eye(len(model.names))  # in units of the prior
    matters = np.array([essential(name) for name in model.names])
    first = random_program(model.board, rng, "scale")
    frequencies = training_frequencies(model, first)
    typical = evidence_of(model, first, frequencies, draws).discrepancy  # nearly the same for any program
    chosen: list[tuple[Program, Evidence]] = []
    while len(chosen) < most:
        best = None
        for _ in range(CANDIDATES if chosen else 1):
            trial = random_program(model.board, rng, f"training-{len(chosen) + 1}")
            half = half_of(model, trial)
            told = information + told_by(model, Evidence(half, frequencies, bool(model.board.inputs), typical))
            left = np.diag(_inverse(told))
            if best is None or left.sum() < best[0]:
                best = left.sum(), trial, told, left
        chosen.append((best[1], evidence_of(model, best[1], frequencies, draws)))
        information = best[2]
        if len(chosen) >= FEWEST and np.sqrt(best[3][matters]).max() < KNOWN:
            break
    programs, evidence = zip(*chosen, strict=True)
    covariance = _inverse(information)
    return TrainingPrograms(programs, evidence, np.sqrt(np.diag(covariance)), correlations(model.names, covariance))


def soldered_training(model: PairModel, own: Program, seed: int, draws: DrawnPairs) -> TrainingPrograms:
    """Return the own program of a board without banks, and random targets with the elements that it leaves out.

    All negative elements are included if the own program needs any: other targets near it may need others.
    """
    board, rng = model.board, np.random.default_rng([TRAINING_SEED, seed])
    frequencies, n = training_frequencies(model, own), len(board.cells)
    signs = np.triu(rng.choice([-1.0, 1.0], (n, n)), 1)
    ways = (signs + signs.T, -signs - signs.T) if board.nodes_per_cell == 2 else (None,)
    random = (soldered_program(board, rng, f"training-{k + 2}", way) for k, way in enumerate(ways))
    active = [negative_program(board, rng, f"training-{len(ways) + 2}")] if has_negative(board, own) else []
    programs = (own, *random, *filter(None, active))
    evidence = tuple(evidence_of(model, each, frequencies, draws) for each in programs)
    covariance = _inverse(np.eye(len(model.names)) + sum(told_by(model, each) for each in evidence))
    return TrainingPrograms(programs, evidence, np.sqrt(np.diag(covariance)), correlations(model.names, covariance))


def training_frequencies(model: PairModel, program: Program) -> np.ndarray:
    """Return the frequencies (f,) [Hz] of training spectra: `evidence_frequencies`, and with ESR the fastest poles too.

    Behind ESR a share of the variance is in a band where only amplifier inputs hold a node; lower frequencies miss it.
    """
    frequencies = evidence_frequencies(model.board)
    if not any(part.cause == ESR for part in model.board.parts):
        return frequencies
    poles = np.linalg.eigvals(drift(half_circuit(half_of(model, program), np.ones(len(model.names)))))
    return np.concatenate([frequencies, np.array(FASTEST) * np.abs(poles).max() / (2 * np.pi)])


def evidence_of(model: PairModel, program: Program, frequencies: np.ndarray, draws: DrawnPairs) -> Evidence:
    """Return the evidence of a program; on a resistive board the columns of its inverse are data too."""
    half, columns = half_of(model, program), bool(model.board.inputs)
    if not len(draws.means):  # flattened: as many real numbers as entries
        return Evidence(half, frequencies, columns, np.zeros((0, (len(frequencies) + columns) * len(half.power) ** 2)))
    left = _drawn_data(half, draws, frequencies, columns) - _drawn_data(half, draws.matched, frequencies, columns)
    return Evidence(half, frequencies, columns, left)


def soldered_program(board: Board, rng: np.random.Generator, name: str, signs: np.ndarray | None = None) -> Program:
    """Make a random target of dominant rows on a board without banks, couplings of these signs (n, n) or any."""
    n = len(board.cells)
    for trial in range(TRIALS):
        W = np.triu(rng.uniform(0.2, 1, (n, n)), 1)
        W = W + W.T
        way = np.triu(rng.choice([-1.0, 1.0], (n, n)), 1)
        way = way + way.T if signs is None else signs
        off = FILLED * 0.9**trial * W / max(W.sum(axis=1).max(), 1.0) * (way if board.nodes_per_cell == 2 else -1)
        target = (np.eye(n) + off) * rng.uniform(0.9, 1.2)
        try:
            return synthesised(
                board, target, np.eye(n), plan_cells(target, np.eye(n), board.kind, negative=False), name
            )
        except InputError:
            continue
    raise InputError("no random target goes on this board; leave out --smallest-element and --largest-element")


def near_program(board: Board, own: Program, rng: np.random.Generator, name: str) -> Program | None:
    """Make a target near that of `own`, entries off by some per cent; None if the board holds none."""
    n, T = len(board.cells), own.congruence
    L = np.linalg.cholesky(own.target)
    active = has_negative(board, own)
    for trial in range(TRIALS):
        E = rng.normal(size=(n, n)) * NEAR * 0.7**trial
        target = L @ (np.eye(n) + (E + E.T) / 2) @ L.T
        target = (target + target.T) / 2
        try:
            return synthesised(board, target, T, plan_cells(target, T, "active" if active else board.kind), name)
        except (InputError, np.linalg.LinAlgError):
            continue
    return None


def negative_program(board: Board, rng: np.random.Generator, name: str) -> Program | None:
    """Make a well-conditioned target that needs the negative element of every cell; None if none was found.

    All off-diagonal entries are of one size, so that their sizes add up to a little more than 1 in every row.
    """
    n, names = len(board.cells), {element.name for element in board.elements if element.kind == "negative"}
    for trial in range(TRIALS):
        signs = np.triu(rng.choice([-1.0, 1.0], (n, n)), 1)
        target = np.eye(n) + (1 + SHORT * 0.95**trial) / max(n - 1, 1) * (signs + signs.T)
        try:
            made = synthesised(board, target, np.eye(n), plan_cells(target, np.eye(n), "active"), name)
        except (InputError, np.linalg.LinAlgError):
            continue
        if names <= set(made.values) and np.linalg.eigvalsh(target)[0] > LEAST_EIGENVALUE * 0.9**trial:
            return made
    return None


def has_negative(board: Board, program: Program) -> bool:
    """Tell whether a program populates negative elements."""
    return any(element.kind == "negative" and element.name in program.values for element in board.elements)


def told_by(model: PairModel, evidence: Evidence) -> np.ndarray:
    """Return the information (parameters, parameters) of one program at nominal parts, in units of the prior."""
    left = evidence.discrepancy.std(axis=0) if len(evidence.discrepancy) else 0.0
    J = expected_and_slopes(evidence, np.ones(len(model.names)))[1] * model.spreads
    J /= np.hypot(left, evidence.noise)[:, None]
    return J.T @ J


def random_program(board: Board, rng: np.random.Generator, name: str) -> Program:
    """Draw a program: every bit closed or open by a fair coin, straight or crossed where there is a choice."""
    most = np.array([2**bank.bits for bank in board.banks])
    ways = np.array([len(bank.elements) for bank in board.banks])
    codes = rng.integers(most) * np.where(ways == 2, rng.choice([-1, 1], len(most)), 1)
    return code_program(board, codes, name)


def code_program(board: Board, codes: np.ndarray, name: str) -> Program:
    """Return the program of signed codes (banks,); its target is the matrix that the nominal board then holds."""
    n = len(board.cells)
    values = {
        bank.elements[0 if code > 0 else 1]: float(abs(code) * bank.unit)
        for bank, code in zip(board.banks, codes.tolist(), strict=True)
        if code
    }
    draft = Program(name, np.eye(n), np.eye(n), np.ones(n), "codes", "given codes", values, 1.0, 1.0, 1.0)
    circuit = nominal_circuit(board, draft)
    held = circuit.capacitance if board.coupling == "capacitive" else circuit.conductance
    M = circuit.readout @ held @ circuit.readout.T / board.nodes_per_cell / board.unit
    return levelled(board, replace(draft, target=(M + M.T) / 2), circuit)


def essential(name: str) -> bool:
    """Tell whether a parameter sets the matrix of a program, unlike switches, pads and other parasitics."""
    return name.split("_")[0] in ("ground", "storage", "temperature", "power", "inductance") or "_bit_" in name


def correlations(names: tuple[str, ...], covariance: np.ndarray, most: int = 20) -> tuple[tuple[str, str, float], ...]:
    """Return the strongest correlations beyond CORRELATED, at most `most` of them."""
    error = np.sqrt(np.diag(covariance))
    R = np.triu(covariance / error[:, None] / error, 1)
    order = np.argsort(-np.abs(R), axis=None)[:most]
    found = [(names[a], names[b], float(R[a, b])) for a, b in zip(*np.unravel_index(order, R.shape), strict=True)]
    return tuple(row for row in found if abs(row[2]) > CORRELATED)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    return cho_solve(cho_factor(matrix), np.eye(len(matrix)))


def _drawn_data(half: Half, draws: DrawnPairs, frequencies: np.ndarray, columns: bool) -> np.ndarray:
    """Return the data (draws, data) of drawn copies."""
    data = [flattened(drawn_spectra(half, draws, frequencies)[0])]
    if columns:
        data.append(flattened(drawn_spectra(half, draws, np.zeros(1))[1]))
    return np.concatenate(data, axis=1)

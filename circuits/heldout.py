"""Held out: fresh targets on the calibrated copies, run in ngspice, predicted against measured.

Random well-conditioned targets, as a good preconditioner leaves them, are programmed as any target is; random codes
show the board far from them. A prediction comes with its covariance: that of the parameters, and the mismatch that the
model leaves out. Reported are relative errors, with and without calibration, z-scores of all entries of the inverse,
and how many of the 95 % intervals hold the measured value.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from circuits.board import Board, Program
from circuits.errors import InputError
from circuits.inversion import triangle
from circuits.ou import reading_covariance
from circuits.pairs import Half, PairModel, half_circuit, half_of
from circuits.programmings import random_program
from circuits.quadrature import covariance_and_slopes, mismatched_covariance
from circuits.response import impedance, impedance_slopes, mismatched_spectra
from circuits.solve import SolveRun
from circuits.synthesis import reprogram, takes

HELD_OUT_SEED = 40_000_003
DRAWS = 32  # of mismatch
NORMAL_95 = 1.959963984540054
FLOOR = 1e-7  # relative: what ngspice's own integration may be off by


@dataclass(frozen=True, eq=False)
class Predicted:
    """An inverse (n, n) as a fitted and as the nominal copy give it, and the covariance (q, q) of its triangle."""

    inverse: np.ndarray
    nominal: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class HeldOut:
    """Every prediction: relative errors with and without calibration, and z-scores of the entries; their summary.

    Entries are in the order copies, programs. `z_rms` is near 1 and `coverage_95` near 0.95 if errors are honest.
    """

    programs: tuple[str, ...]
    errors: tuple[float, ...]
    errors_uncalibrated: tuple[float, ...]
    improvement: float  # ratio of the root mean squares
    z_rms: float
    coverage_95: float
    intervals: int


def held_out_programs(board: Board, seed: int, targets: int = 4, codes: int = 2) -> tuple[Program, ...]:
    """Programs that no fit saw: random targets that go on the board, and random codes."""
    rng = np.random.default_rng([HELD_OUT_SEED, seed])
    made = [_fresh(board, rng, f"held-out-{k + 1}") for k in range(targets)]
    return (*made, *(random_program(board, rng, f"held-out-{targets + k + 1}") for k in range(codes)))


def predicted_inverse(
    model: PairModel,
    program: Program,
    theta: np.ndarray,
    covariance: np.ndarray,
    mismatch: tuple[np.ndarray, np.ndarray],
) -> Predicted:
    """The inverse that a copy of fitted parameters (parameters,) of this covariance will give, by covariance.

    On a resistive board by its solutions.
    """
    half = half_of(model, program)
    S, J, nominal, drawn = (_solved if model.board.inputs else _sampled)(half, model, theta, mismatch)
    left = drawn - nominal
    read = _reading(model.board, program)
    inverse, nominal = read(S + left.mean(axis=0)), read(nominal)
    slopes = triangle(np.array([read(each) for each in np.moveaxis(J, -1, 0)]))  # (parameters, q)
    own = triangle(read(left))
    spread = np.cov(own.T) if len(own) > 1 else np.zeros((own.shape[1],) * 2)
    floor = FLOOR * np.linalg.norm(inverse)
    return Predicted(inverse, nominal, slopes.T @ covariance @ slopes + spread + floor**2 * np.eye(len(spread)))


def measured_inverse(board: Board, program: Program, covariance: np.ndarray, solved: SolveRun | None) -> np.ndarray:
    """The inverse (n, n) that a run gives."""
    return _reading(board, program)(solved.columns / solved.bias if solved else covariance)


def judge(programs: Sequence[str], predicted: Sequence[Predicted], measured: Sequence[np.ndarray]) -> HeldOut:
    """Compare predictions with what came, one program and copy after the other."""
    errors, before, z = [], [], []
    for told, came in zip(predicted, measured, strict=True):
        scale = np.linalg.norm(came)
        errors.append(float(np.linalg.norm(told.inverse - came) / scale))
        before.append(float(np.linalg.norm(told.nominal - came) / scale))
        z.append(triangle(told.inverse - came) / np.sqrt(np.diag(told.covariance)))
    scores = np.concatenate(z)
    return HeldOut(
        tuple(programs),
        tuple(errors),
        tuple(before),
        float(np.linalg.norm(before) / max(np.linalg.norm(errors), 1e-300)),
        float(np.sqrt(np.mean(scores**2))),
        float(np.mean(np.abs(scores) < NORMAL_95)),
        len(scores),
    )


def _fresh(board: Board, rng: np.random.Generator, name: str) -> Program:
    """A random target of unit diagonal whose couplings the banks reach and its codes hold."""
    n, reach = len(board.cells), min(bank.reach for bank in board.banks) / board.unit
    largest = reach / (1 + 0.6 * n * reach)  # with the rows scaled to what is soldered to ground it is the reach
    for trial in range(40):
        size = rng.uniform(0.2, 1, (n, n)) * largest * 0.9 ** (trial // 2)
        off = np.triu(size * (rng.choice([-1, 1], (n, n)) if board.nodes_per_cell == 2 else -1), 1)
        target = np.eye(n) + off + off.T
        if takes(board, target, None):
            return reprogram(board, target, None, name)
    raise InputError("no random target goes on this board; design one with more --bank-bits or a larger --bank-range")


def _reading(board: Board, program: Program) -> Callable[[np.ndarray], np.ndarray]:
    """What turns covariances, or solutions for unit currents, (…, n, n) into inverses."""
    X = program.mapping
    scale = board.unit if board.inputs else board.capacitance / (board.nodes_per_cell * program.energy)
    return lambda S: scale * (X.T @ S @ X)


def _sampled(
    half: Half, model: PairModel, theta: np.ndarray, mismatch: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, ...]:
    S, J = covariance_and_slopes(half, theta)
    nominal = reading_covariance(half_circuit(half, np.ones(len(theta))))
    if model.board.nodes_per_cell == 1:
        return S, J, nominal, nominal[None]
    parts, powers = (draws[:DRAWS] for draws in mismatch)
    drawn = mismatched_covariance(
        half, np.concatenate([0 * parts[:1], parts]), np.concatenate([0 * powers[:1], powers])
    )
    return S, J, nominal, nominal + drawn[1:] - drawn[0]


def _solved(
    half: Half, model: PairModel, theta: np.ndarray, mismatch: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, ...]:
    Z, J = (found[0].real for found in impedance_slopes(half, theta, np.zeros(1)))
    nominal = impedance(half, np.ones(len(theta)), np.zeros(1))[0].real
    if model.board.nodes_per_cell == 1:
        return Z, J, nominal, nominal[None]
    return Z, J, nominal, mismatched_spectra(half, *mismatch, np.zeros(1))[1][:, 0].real

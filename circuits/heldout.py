"""Held out: fresh targets on the calibrated copies, run in ngspice, predicted against measured.

Random well-conditioned targets, as a good preconditioner leaves them, are programmed as any target is; random codes
show a board with banks far from them. On a soldered board other targets are other parts, which no bench has, but the
simulator does: every part that a copy would have is drawn with it. A prediction comes with its covariance: that of the
parameters, those at their prior among them, and the mismatch that the model leaves out. Reported are relative errors,
with and without calibration, z-scores of all entries, and how many of the 95 % intervals hold the measured value.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from circuits.board import Board, Program
from circuits.errors import InputError
from circuits.exact import ExactRun
from circuits.inversion import triangle
from circuits.pairs import PairModel, half_of
from circuits.programmings import near_program, random_program, soldered_program
from circuits.response import impedance, impedance_slopes, mismatched_spectra
from circuits.settling import delayed_and_slopes, delayed_covariance, lopsided_delayed, mismatched_delayed
from circuits.solve import SolveRun
from circuits.synthesis import reprogram, takes

HELD_OUT_SEED = 40_000_003
DRAWS = 32  # of mismatch
Read = Callable[[np.ndarray], np.ndarray]
NORMAL_95 = 1.959963984540054
FLOOR = 1e-7  # relative: what ngspice's own integration may be off by


@dataclass(frozen=True, eq=False)
class Predicted:
    """A matrix (n, n) as a fitted and as the nominal copy give it, and the covariance (q, q) of its triangle."""

    value: np.ndarray
    nominal: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class Scores:
    """Relative errors with and without calibration, and z-scores of the entries; in the order copies, programs.

    `z_rms` is near 1 and `coverage_95` near 0.95 if errors are honest.
    """

    errors: tuple[float, ...]
    errors_uncalibrated: tuple[float, ...]
    improvement: float  # ratio of the root mean squares
    z_rms: float
    coverage_95: float
    intervals: int


@dataclass(frozen=True)
class HeldOut(Scores):
    """Scores of the inverse (on a resistive board by the mean of the readings), and of what else was predicted.

    `also` has those of the settling (circuits.settling, at the slowest time constant of the nominal board), and on a
    resistive board of the covariance.
    """

    programs: tuple[str, ...]
    also: dict[str, Scores]


def held_out_programs(own: Program, board: Board, seed: int, targets: int = 4, codes: int = 2) -> tuple[Program, ...]:
    """Programs that no fit saw: random targets that go on the board, and with banks random codes.

    Of a board without banks the last target is near its `own`.
    """
    rng = np.random.default_rng([HELD_OUT_SEED, seed])
    if not board.banks:
        made = [soldered_program(board, rng, f"held-out-{k + 1}") for k in range(targets)]
        return (*made, *filter(None, [near_program(board, own, rng, f"held-out-{targets + 1}")]))
    made = [_fresh(board, rng, f"held-out-{k + 1}") for k in range(targets)]
    return (*made, *(random_program(board, rng, f"held-out-{targets + k + 1}") for k in range(codes)))


def predicted(
    model: PairModel,
    program: Program,
    theta: np.ndarray,
    covariance: np.ndarray,
    mismatch: tuple[np.ndarray, np.ndarray],
) -> dict[str, Predicted]:
    """What a copy of fitted parameters (parameters,) of this covariance will give: inverse, settling, covariance."""
    half, delays = half_of(model, program), (0.0, program.settling)
    drawn = np.zeros((2, 1, *(len(model.board.cells),) * 2))
    if model.board.nodes_per_cell == 2:
        parts, powers = (np.concatenate([0 * draws[:1], draws[:DRAWS]]) for draws in mismatch)
        drawn = mismatched_delayed(half, parts, powers, delays)
        drawn = drawn[:, 1:] - drawn[:, :1]
    found = {}
    for name, delay, left in zip(("covariance", "settling"), delays, drawn, strict=True):
        S, J = delayed_and_slopes(half, theta, delay)
        nominal = delayed_and_slopes(half, np.ones(len(theta)), delay)[0]
        left = left + lopsided_delayed(half, model.board, program, delay)
        found[name] = _predicted(_by_covariance(model.board, program), S, J, nominal, left, covariance)
    if not model.board.inputs:
        return {"inverse": found["covariance"], "settling": found["settling"]}
    Z, J = (each[0].real for each in impedance_slopes(half, theta, np.zeros(1)))
    nominal, left = impedance(half, np.ones(len(theta)), np.zeros(1))[0].real, np.zeros((1, *Z.shape))
    if model.board.nodes_per_cell == 2:
        left = mismatched_spectra(half, *mismatch, np.zeros(1))[1][:, 0].real - nominal
    return {"inverse": _predicted(_by_mean(model.board, program), Z, J, nominal, left, covariance)} | found


def uncertainty(
    model: PairModel,
    program: Program,
    theta: np.ndarray,
    covariance: np.ndarray,
    mismatch: tuple[np.ndarray, np.ndarray],
) -> float:
    """Relative standard error (root mean square, Frobenius) of the inverse predicted for a program."""
    told = predicted(model, program, theta, covariance, mismatch)["inverse"]
    return float(np.sqrt(np.trace(told.covariance)) / np.linalg.norm(told.value))


def measured(board: Board, program: Program, exact: ExactRun, solved: SolveRun | None) -> dict[str, np.ndarray]:
    """The same, (n, n), as runs gave them; spectra at all points of the grid."""
    read = _by_covariance(board, program)
    settling = read(delayed_covariance(exact, program.settling))
    if not board.inputs:
        return {"inverse": read(exact.covariance), "settling": settling}
    by_mean = measured_inverse(board, program, exact.covariance, solved)
    return {"inverse": by_mean, "covariance": read(exact.covariance), "settling": settling}


def measured_inverse(board: Board, program: Program, covariance: np.ndarray, solved: SolveRun | None) -> np.ndarray:
    """The inverse (n, n) that a run gives."""
    if board.inputs:
        return _by_mean(board, program)(solved.columns / solved.bias)
    return _by_covariance(board, program)(covariance)


def judge(
    programs: Sequence[str], told: Sequence[dict[str, Predicted]], came: Sequence[dict[str, np.ndarray]]
) -> HeldOut:
    """Compare predictions with what came, one program and copy after the other."""
    scores = {name: _scores([each[name] for each in told], [each[name] for each in came]) for name in sorted(told[0])}
    inverse = scores.pop("inverse")
    return HeldOut(**vars(inverse), programs=tuple(programs), also=scores)


def _scores(told: Sequence[Predicted], came: Sequence[np.ndarray]) -> Scores:
    errors, before, z = [], [], []
    for one, found in zip(told, came, strict=True):
        scale = np.linalg.norm(found)
        errors.append(float(np.linalg.norm(one.value - found) / scale))
        before.append(float(np.linalg.norm(one.nominal - found) / scale))
        z.append(triangle(one.value - found) / np.sqrt(np.diag(one.covariance)))
    scores = np.concatenate(z)
    return Scores(
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


def _by_covariance(board: Board, program: Program) -> Read:
    """What turns covariances (…, n, n) into inverses."""
    X, scale = program.mapping, board.capacitance / (board.nodes_per_cell * program.energy)
    return lambda S: scale * (X.T @ S @ X)


def _by_mean(board: Board, program: Program) -> Read:
    """What turns solutions for unit currents (…, n, n) into inverses."""
    X = program.mapping
    return lambda S: board.unit * (X.T @ S @ X)


def _predicted(
    read: Read, S: np.ndarray, J: np.ndarray, nominal: np.ndarray, left: np.ndarray, covariance: np.ndarray
) -> Predicted:
    """From the model's matrix (n, n), its slopes (n, n, parameters), and what mismatch adds (draws, n, n)."""
    value = read(S + left.mean(axis=0))
    slopes = triangle(np.array([read(each) for each in np.moveaxis(J, -1, 0)]))  # (parameters, q)
    own = triangle(read(left))
    spread = np.cov(own.T) if len(own) > 1 else np.zeros((own.shape[1],) * 2)
    floor = FLOOR * np.linalg.norm(value)
    spread = np.atleast_2d(spread) + floor**2 * np.eye(own.shape[1])
    return Predicted(value, read(nominal), slopes.T @ covariance @ slopes + spread)

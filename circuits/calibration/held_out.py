"""Held-out programs on calibrated copies: run exactly in ngspice, predicted, compared.

Random well-conditioned targets, as a good preconditioner makes them, are programmed as any target is; random codes test
a board with banks far from them. On a soldered board other targets are other parts. No bench has them, but the
simulator does: every part that a copy would have is drawn with it. A prediction comes with its covariance: that of the
parameters, those at their prior among them, and that of the discrepancy, given the training, both from one fit
(circuits.calibration.fitting). Every route of calibration is judged in this same way, and nothing of these runs goes
into a fit. Reported are relative errors, with and without calibration, z-scores of all entries, and the share of the
95 % intervals that hold the measured value. All entries of a copy share one fit, so their z-scores are not independent,
and z_rms of a few copies scatters far from 1 even if every interval is honest. Independent are the errors along the
principal axes of their joint covariance over all held-out programs, whitened: their z-scores and χ² are reported too.
One half of the checks gives the axes, the other half the variance along them: the longest axes of a few draws are too
long for other draws (`principal_scores`).

The settling of a board as one matrix: the covariance of readings an exponentially distributed time apart, of mean τ.

    K(τ) = (1/τ) ∫₀^∞ e^{-t/τ} (ρ(t) + ρ(t)ᵀ)/2 dt = ∫₀^∞ Re S(f) / (1 + (2π f τ)²) df

with the lagged covariances ρ and the one-sided spectrum S of the readings; K(0) is their covariance. In ln f the
integrand is as smooth as the spectrum, so a plain sum over the spectrum of an exact run converges exponentially, which
the cosine transform for one lag does not. At τ = the slowest time constant K weighs the modes that settle last.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
from scipy import special

from circuits.board import Board, Design, Program, inverse_scale
from circuits.calibration.discrepancy import DrawnPairs, delayed_discrepancies, drawn_spectra, low_pass
from circuits.calibration.experiments import near_program, random_program, soldered_program
from circuits.calibration.fitting import Fit, discrepancy_parts
from circuits.errors import InputError, SimulationError
from circuits.model.pairs import Half, PairModel, half_circuit, half_of
from circuits.model.response import impedance, impedance_slopes, nodes_and_weights, spectra_and_slopes
from circuits.nodal import Circuit
from circuits.ou import drift, stationary_covariance
from circuits.parallel import Progress, side_by_side, silent
from circuits.simulation.ac import ExactRun, integrate
from circuits.simulation.measurement import Shown, run_programs
from circuits.simulation.operating_point import SolveRun
from circuits.statistics.inversion import triangle
from circuits.synthesis.cells import plan_cells
from circuits.synthesis.design import program as synthesised

HELD_OUT_SEED = 40_000_003
Read = Callable[[np.ndarray], np.ndarray]
DELAYED = ("covariance", "settling")  # at no delay, and at the slowest time constant of the nominal board
NORMAL_95 = 1.959963984540054
MOST_AXES = 6
PRINCIPAL = 0.99  # share of the variance of all entries on the principal axes that are used
CHECKS_AN_AXIS = 8  # at least: half of them determine its variance
LEAST_SHARE = 1e-3  # of the checks in a covariance; below it the covariance counts as known
SMALLEST_P = 1e-290  # below it T² counts as χ²

PER_DECADE, DECADES = 160, 24  # of the kept frequencies: as fine and as wide as the grid of an exact run
CLOSE = 1e-6  # relative difference between the covariance by the kept spectrum and that of the run itself


@dataclass(frozen=True, eq=False)
class ProgramStatistics:
    """A program to be predicted: its circuit and, for each statistic, its nominal value and the drawn discrepancies.

    `nominal` (n, n) is the value at nominal parts, `left` (draws, n, n) the discrepancies of the pair model.
    """

    program: Program
    half: Half
    nominal: dict[str, np.ndarray]
    left: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Predicted:
    """A matrix (n, n) as a fitted and as the nominal copy give it, and the errors of its triangle (q,).

    The covariance of the errors is `slopes`ᵀ `slopes`, (k, q). All predictions of one fit share the same k rows; the
    first `checks` rows are drawn copies. `beyond` (n, n) is the part of the value due to mismatch.
    """

    value: np.ndarray
    nominal: np.ndarray
    slopes: np.ndarray
    beyond: np.ndarray
    checks: int

    @property
    def covariance(self) -> np.ndarray:
        """Covariance (q, q) of the errors of the triangle."""
        return self.slopes.T @ self.slopes


@dataclass(frozen=True)
class Scores:
    """Relative errors with and without calibration, and z-scores of the entries; in the order copies, programs.

    `z_rms` is near 1 and `coverage_95` near 0.95 if errors are honest. `joint_z_rms` is that of `components`
    independent z-scores along the principal axes of the joint covariance of a copy, `joint_p` the p-value of their χ².
    """

    errors: tuple[float, ...]
    errors_uncalibrated: tuple[float, ...]
    improvement: float  # ratio of the root mean squares
    z_rms: float
    coverage_95: float
    intervals: int
    joint_z_rms: float
    joint_p: float
    components: int


@dataclass(frozen=True)
class HeldOut(Scores):
    """Scores of the inverse (on a resistive board by the mean of the readings), and of other statistics.

    `also` has the scores of the settling K(τ), τ the slowest time constant of the nominal board, and on a resistive
    board those of the covariance.
    """

    programs: tuple[str, ...]
    also: dict[str, Scores]


def held_out_programs(own: Program, board: Board, seed: int, targets: int = 4, codes: int = 2) -> tuple[Program, ...]:
    """Make programs that no fit saw: random targets that the board holds, and with banks random codes.

    On a board without banks the last target is near that of its `own` program.
    """
    rng = np.random.default_rng([HELD_OUT_SEED, seed])
    if not board.banks:
        made = [soldered_program(board, rng, f"held-out-{k + 1}") for k in range(targets)]
        return (*made, *filter(None, [near_program(board, own, rng, f"held-out-{targets + 1}")]))
    made = [_fresh(board, rng, f"held-out-{k + 1}") for k in range(targets)]
    return (*made, *(random_program(board, rng, f"held-out-{targets + k + 1}") for k in range(codes)))


def program_statistics(model: PairModel, program: Program, draws: DrawnPairs) -> ProgramStatistics:
    """Return nominal values and discrepancies under a program; `draws` are those of the fit that predicts."""
    half, delays = half_of(model, program), (0.0, program.settling)
    ones = np.ones(len(model.names))
    nominal = dict(zip(DELAYED, circuit_delays(half_circuit(half, ones), delays), strict=True))
    left = dict(zip(DELAYED, delayed_discrepancies(half, draws, delays), strict=True))
    if model.board.inputs:
        nominal["columns"] = impedance(half, ones, np.zeros(1))[0].real
        Z, matched = (drawn_spectra(half, each, np.zeros(1))[1][:, 0].real for each in (draws, draws.matched))
        left["columns"] = Z - matched
    return ProgramStatistics(program, half, nominal, left)


def predicted(model: PairModel, asked: ProgramStatistics, found: Fit) -> dict[str, Predicted]:
    """Predict inverse, settling, and on a resistive board the covariance, of a fitted copy."""
    board, program, half = model.board, asked.program, asked.half
    read, answers, delays = _by_covariance(board, program), {}, (0.0, program.settling)
    values = circuit_delays(half_circuit(half, found.values), delays)
    for name, delay, S in zip(DELAYED, delays, values, strict=True):
        J = delayed_and_slopes(half, found.values, delay)[1]
        answers[name] = _predicted(read, S, J, asked, name, found)
    if not board.inputs:
        return {"inverse": answers["covariance"], "settling": answers["settling"]}
    Z, J = (each[0].real for each in impedance_slopes(half, found.values, np.zeros(1)))
    return {"inverse": _predicted(_by_mean(board, program), Z, J, asked, "columns", found)} | answers


def standard_error(told: Predicted) -> float:
    """Return the relative error (root mean square, Frobenius) of the circuit of equal pairs."""
    return float(np.hypot(np.linalg.norm(told.slopes), np.linalg.norm(told.beyond)) / np.linalg.norm(told.value))


def observed_statistics(
    board: Board, program: Program, exact: ExactRun, solved: SolveRun | None
) -> dict[str, np.ndarray]:
    """Return the statistics of `predicted`, (n, n), as runs gave them; `exact` holds spectra at all its points."""
    read = _by_covariance(board, program)
    settling = read(delayed_covariance(exact, program.settling))
    if not board.inputs:
        return {"inverse": read(exact.covariance), "settling": settling}
    by_mean = observed_inverse(board, program, exact.covariance, solved)
    return {"inverse": by_mean, "covariance": read(exact.covariance), "settling": settling}


def observed_inverse(board: Board, program: Program, covariance: np.ndarray, solved: SolveRun | None) -> np.ndarray:
    """Return the inverse (n, n) that a run gives."""
    if board.inputs:
        return _by_mean(board, program)(solved.columns / solved.bias)
    return _by_covariance(board, program)(covariance)


def judge(
    programs: Sequence[str],
    told: Sequence[Sequence[dict[str, Predicted]]],
    came: Sequence[Sequence[dict[str, np.ndarray]]],
    errors: Sequence[Sequence[float]],
) -> HeldOut:
    """Compare predictions `told` with results `came`, of relative errors `errors`, by copy (outer) and program."""
    scores = {
        name: _scores(*([[each[name] for each in row] for row in rows] for rows in (told, came)), errors)
        for name in sorted(told[0][0])
    }
    inverse = scores.pop("inverse")
    return HeldOut(**vars(inverse), programs=tuple(programs) * len(told), also=scores)


def _scores(
    told: Sequence[Sequence[Predicted]], came: Sequence[Sequence[np.ndarray]], run_errors: Sequence[Sequence[float]]
) -> Scores:
    errors, before, z, joint = [], [], [], []
    for row, found, run_error in zip(told, came, run_errors, strict=True):
        off = [one.value - true for one, true in zip(row, found, strict=True)]
        errors += [float(np.linalg.norm(e) / np.linalg.norm(true)) for e, true in zip(off, found, strict=True)]
        before += [float(np.linalg.norm(o.nominal - t) / np.linalg.norm(t)) for o, t in zip(row, found, strict=True)]
        every = np.concatenate([triangle(e) for e in off])
        slopes = np.concatenate([one.slopes for one in row], axis=1)
        own = np.concatenate([_of_run(true, error) for true, error in zip(found, run_error, strict=True)])
        z.append(every / np.sqrt(np.sum(slopes**2, axis=0) + own))
        joint.append(principal_scores(every, slopes, own, row[0].checks))
    scores, independent = np.concatenate(z), np.concatenate(joint)
    return Scores(
        tuple(errors),
        tuple(before),
        float(np.linalg.norm(before) / max(np.linalg.norm(errors), 1e-300)),
        float(np.sqrt(np.mean(scores**2))),
        float(np.mean(np.abs(scores) < NORMAL_95)),
        len(scores),
        float(np.sqrt(np.mean(independent**2))),
        float(special.chdtrc(len(independent), independent @ independent)),
        len(independent),
    )


def _of_run(found: np.ndarray, error: float) -> np.ndarray:
    """Return variances (q,) of the triangle of a matrix (n, n) with the relative error `error`."""
    q = len(found) * (len(found) + 1) // 2
    return np.full(q, (error * np.linalg.norm(found)) ** 2 / q)


def principal_scores(errors: np.ndarray, slopes: np.ndarray, own: np.ndarray, checks: int = 0) -> np.ndarray:
    """Return independent z-scores (components,) of errors (q,) whose covariance is slopesᵀ slopes + diag(own).

    The first `checks` rows of slopes are drawn copies. Principal axes u come from the even ones and all other rows; W,
    the covariance along them, from the odd ones and all other rows, so that the choice of axes does not bias W:

        z = L⁻¹ uᵀ errors,   W = L Lᵀ,   zᵀ z is Hotelling's T² of ν = odd checks / (share of checks in W)²

    whose law is wider than χ²; z is scaled to the χ² of the same p. Axes beyond PRINCIPAL of the variance are left out:
    along them linearisation errors dominate. At most MOST_AXES are used, and one for every CHECKS_AN_AXIS checks.
    """
    drawn, rest = slopes[:checks], slopes[checks:]
    choosing, judging = (half * np.sqrt(checks / max(len(half), 1)) for half in (drawn[::2], drawn[checks > 1 :: 2]))
    deviation = np.sqrt(np.sum(choosing**2, axis=0) + np.sum(rest**2, axis=0) + own)
    G, J, R = choosing / deviation, judging / deviation, rest / deviation
    certain = R.T @ R + np.diag(own / deviation**2)
    values, U = np.linalg.eigh(G.T @ G + certain)
    values, U = values[::-1], U[:, ::-1]
    most = min(MOST_AXES, max(checks // CHECKS_AN_AXIS, 1)) if checks else MOST_AXES
    kept = min(1 + int(np.searchsorted(np.cumsum(values), PRINCIPAL * values.sum())), most)
    U = U[:, :kept]
    L = np.linalg.cholesky((J @ U).T @ (J @ U) + U.T @ certain @ U)
    z = np.linalg.solve(L, U.T @ (errors / deviation))
    share = float(np.sum(np.linalg.solve(L, (J @ U).T) ** 2)) / kept
    return z * _fair(float(z @ z), kept, len(judging), share)


def _fair(square: float, axes: int, checks: int, share: float) -> float:
    """Return the factor that scales T², with a covariance from `checks` checks, to the χ² of the same p-value."""
    if not (square > 0 and checks and share > LEAST_SHARE):
        return 1.0
    known = max(checks / share**2 - axes + 1, 1.0)
    p = special.fdtrc(axes, known, square * known / (axes * (known + axes - 1)))
    return float(np.sqrt(special.chdtri(axes, p) / square)) if p > SMALLEST_P else 1.0


def _fresh(board: Board, rng: np.random.Generator, name: str) -> Program:
    """Make a random target of unit diagonal within the reach and the resolution of the banks."""
    n, reach = len(board.cells), min(bank.reach for bank in board.banks) / board.unit
    largest = reach / (1 + 0.6 * n * reach)  # with rows scaled to the soldered ground elements it is the reach
    for trial in range(40):
        size = rng.uniform(0.2, 1, (n, n)) * largest * 0.9 ** (trial // 2)
        off = np.triu(size * (rng.choice([-1, 1], (n, n)) if board.nodes_per_cell == 2 else -1), 1)
        target = np.eye(n) + off + off.T
        with contextlib.suppress(InputError):
            return synthesised(
                board, target, np.eye(n), plan_cells(target, np.eye(n), board.kind, negative=False), name
            )
    raise InputError("no random target goes on this board; design one with more --bank-bits or a larger --bank-range")


def _by_covariance(board: Board, program: Program) -> Read:
    """Return the function from covariances (…, n, n) to inverses."""
    X, scale = program.mapping, inverse_scale(board, program)
    return lambda S: scale * (X.T @ S @ X)


def _by_mean(board: Board, program: Program) -> Read:
    """Return the function from solutions for unit currents (…, n, n) to inverses."""
    X = program.mapping
    return lambda S: board.unit * (X.T @ S @ X)


def _predicted(read: Read, S: np.ndarray, J: np.ndarray, asked: ProgramStatistics, name: str, found: Fit) -> Predicted:
    """Make a prediction from the matrix S (n, n) of the model and its derivatives J (n, n, parameters)."""
    mean, columns, checks = discrepancy_parts(asked.left[name]) if len(found.left) else (0.0, *_alone(asked.left[name]))
    beyond = mean + np.tensordot(found.left, columns, 1)
    value = read(S + beyond)
    slopes = found.errors @ triangle(read(np.concatenate([np.moveaxis(J, -1, 0), columns])))
    slopes[: found.checks] -= found.excess * triangle(read(checks))
    return Predicted(value, read(asked.nominal[name]), slopes, read(beyond), found.checks)


def _alone(left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return no basis, and discrepancies (draws, n, n) as checks of a fit that has no discrepancy in it."""
    return left[:0], left / np.sqrt(max(len(left), 1))


def settling_frequencies(middle: float) -> np.ndarray:
    """Return frequencies (f,) [Hz] around `middle` so close that an exact run keeps every point of its grid."""
    return np.geomspace(middle * 10 ** (-DECADES / 2), middle * 10 ** (DECADES / 2), PER_DECADE * DECADES + 1)


def delayed_covariance(run: ExactRun, delay: float) -> np.ndarray:
    """Return K(delay [s]) (n, n) [V²] of a run whose spectra were kept at all points of its grid.

    SimulationError if the spectra do not add up to the covariance of the run.
    """
    whole = integrate(run.frequencies, run.spectra)
    if not np.linalg.norm(whole - run.covariance) <= CLOSE * np.linalg.norm(run.covariance):
        raise SimulationError("the spectrum kept of a run does not add up to its covariance; are its modes too sharp?")
    return integrate(run.frequencies, run.spectra * low_pass(run.frequencies, delay)[:, None, None])


def delayed_and_slopes(half: Half, theta: np.ndarray, delay: float) -> tuple[np.ndarray, np.ndarray]:
    """Return K(delay [s]) (n, n) [V²] and its derivatives by every parameter (n, n, parameters)."""
    frequency, weights = nodes_and_weights(half)
    return spectra_and_slopes(half, theta, frequency, weights * low_pass(frequency, delay))


def circuit_delays(circuit: Circuit, delays: Sequence[float]) -> np.ndarray:
    """Return K(τ) (delays, n, n) [V²] of a circuit at delays τ [s]: the symmetric part of H (1 + A τ)⁻¹ Σ Hᵀ."""
    H = np.concatenate([circuit.readout, np.zeros((len(circuit.readout), circuit.coils.shape[-1]))], axis=1)
    A, covariance = drift(circuit), stationary_covariance(circuit)
    K = np.array([H @ np.linalg.solve(np.eye(len(A)) + A * delay, covariance @ H.T) for delay in delays])
    return (K + np.swapaxes(K, 1, 2)) / 2


def validate(
    design: Design,
    model: PairModel,
    fits: dict[str, Fit],
    draws: DrawnPairs,
    wanted: np.ndarray,
    folder: Path | None = None,
    progress: Progress = silent,
    targets: int = 4,
    codes: int = 2,
) -> tuple[HeldOut, list[list[Shown]]]:
    """Run held-out programs of a design on its copies and judge fits of `model`; the scores, and runs by copy.

    `draws` are those of the fits, `wanted` (f,) [Hz] the frequencies of training, in whose middle the grids of the
    spectra are. Finished runs stay in `folder`. Raises SimulationError if a run fails twice.
    """
    fresh = held_out_programs(design.program, design.board, design.seed, targets, codes)
    dense = settling_frequencies(float(np.sqrt(wanted[0] * wanted[-1])))
    shown = run_programs(design.board, fresh, design.copies, dense, folder, progress)
    asked = side_by_side([partial(_asked, model, program, draws) for program in fresh])
    told = [[predicted(model, each, found) for each in asked] for found in fits.values()]
    return judge([program.name for program in fresh], told, *_came(design, fresh, shown)), shown


def _asked(model: PairModel, program: Program, draws: DrawnPairs, _: Event) -> ProgramStatistics:
    return program_statistics(model, program, draws)


def _came(
    design: Design, fresh: Sequence[Program], shown: Sequence[Sequence[Shown]]
) -> tuple[list[list[dict[str, np.ndarray]]], list[list[float]]]:
    """Return statistics of the runs by copy (outer) and program, and the relative errors of the runs."""
    came = [
        [observed_statistics(design.board, p, r.exact, r.solved) for p, r in zip(fresh, runs, strict=True)]
        for runs in shown
    ]
    return came, [[run.exact.integration_error for run in runs] for runs in shown]

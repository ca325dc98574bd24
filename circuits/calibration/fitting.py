"""Least squares for the parts of one copy and the discrepancy of the pair model, from several programs.

    data_p = model_p(θ) + ℓ̄_p + L_p a + e_p,    θ ~ N(1, σ_prior²),   a ~ N(0, 1),   e ~ N(0, noise² + φ² s_p²)

The columns of L_p (data, basis) are discrepancies of drawn copies about their mean ℓ̄_p, s_p their deviation: the
discrepancy of a model that does not hold the truth (Kennedy and O'Hagan 2001) with the law that its physics gives it.
All programs of a copy share one a, those that no fit saw too. φ, the share of the discrepancy that the basis does not
span, is found from the residuals as a component of variance (γ degrees of freedom used up, φ² = Σ w r²/(N - γ)), and so
is the noise where no discrepancies were drawn. The minimum is found by Gauss-Newton steps with analytic derivatives,
damped only where a step does not help; with H its curvature it moves by H⁻¹ (Jᵀ V⁻¹ e + p) with errors e of the data
and p of the prior.

The discrepancy that the basis does not span is not white, so H⁻¹ is not the covariance of the errors. Errors are found
from other drawn copies, the checks: the discrepancy of each check moves the minimum, and differs from its projection on
the basis. If the residuals of the fit are larger than those of the checks, the copy is farther from the model than
tolerances allow, and all errors by discrepancy are larger by that ratio (Birge's).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Event

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from circuits.calibration.observations import CovarianceEvidence, Evidence, LaggedEvidence, flattened
from circuits.errors import InputError
from circuits.model.pairs import PairModel
from circuits.parallel import Progress, side_by_side
from circuits.simulation.ac import ExactRun, Spectra
from circuits.simulation.operating_point import SolveRun

MOST_STEPS = 100
MOST_ROUNDS = 20  # of the components of variance
SETTLED = 1e-5  # of a prior deviation: stop when a step is smaller
ROUGH = 0.1  # of a prior deviation: end a stage of the continuation when a step is smaller
SMALLEST_CHANGE = 1e-6  # stop when χ² changes by less: rounding keeps weakly determined parameters moving
STEADY = 0.01  # stop when the components of variance change by less, relative
# Continuation: inflate the noise first, so that weakly determined parameters do not absorb nonlinearity.
CONTINUATION = (1e4, 1e2, 10.0, 1.0)
SMALLEST = 0.1  # relative value that no step goes below
CHECKS = 64  # drawn copies, the last ones, that tell the errors
SHARE, WORTH = 0.5, 20.0  # φ before any data, and the number of data which that prior is worth
ENOUGH = 3  # data for each parameter that are needed to find the noise
LEAST = 0.03  # of FLOOR: the smallest noise that is accepted
Known = Evidence | CovarianceEvidence | LaggedEvidence  # spectra without sampling, or covariances with their law


@dataclass(frozen=True, eq=False)
class Fit:
    """One copy's fit: parameters θ (parameters,), their covariance, and the weighted residuals before and after.

    `left` (basis,) is a. The errors of θ and a have the covariance of `errors`ᵀ `errors`, (k, parameters + basis); its
    first `checks` rows are those of the drawn copies after the basis, `excess` times as large as drawn. `share` is φ,
    `noise` the factor found for the noise of data whose own errors are not known (else 1).
    """

    values: np.ndarray
    covariance: np.ndarray
    residuals_nominal: np.ndarray
    residuals: np.ndarray
    left: np.ndarray
    errors: np.ndarray
    checks: int
    excess: float
    share: float
    noise: float

    @property
    def draws(self) -> int:
        """Number of copies that were drawn for the fit."""
        return len(self.left) + self.checks


def plain_fit(
    values: np.ndarray, covariance: np.ndarray, before: np.ndarray, after: np.ndarray, checks: int = 0
) -> Fit:
    """Return the record of parameters that another method found; the checks have no effect on them."""
    rows = np.concatenate([np.zeros((checks, len(values))), np.linalg.cholesky(covariance).T])
    return Fit(values, covariance, before, after, np.zeros(0), rows, checks, 1.0, 0.0, 1.0)


def observed(evidence: Evidence, exact: ExactRun | Spectra, solved: SolveRun | None) -> tuple[Evidence, np.ndarray]:
    """Return the evidence at the frequencies that the run really had, and the data (data,) of the run."""
    data = [flattened(exact.spectra[None])[0]]
    if evidence.columns:
        data.append(flattened((solved.columns + solved.columns.T)[None, None].astype(complex) / 2)[0])
        data[-1][: solved.columns.shape[0]] -= np.log(solved.bias)
    return replace(evidence, frequencies=exact.frequencies), np.concatenate(data)


def fit_all(
    model: PairModel, copies: dict[str, tuple[Sequence[Known], Sequence[np.ndarray]]], progress: Progress
) -> dict[str, Fit]:
    """Fit every copy by name to its evidence and data, in parallel."""
    words = "fitting " + (next(iter(copies)) if len(copies) == 1 else f"{len(copies)} copies")
    progress(0, len(copies), words)
    found = side_by_side([partial(fit, model, *known) for known in copies.values()], progress, words)
    return dict(zip(copies, found, strict=True))


def fit(model: PairModel, evidence: Sequence[Known], data: Sequence[np.ndarray], stop: Event | None = None) -> Fit:
    """Fit θ (parameters,) to data (data,) of every program; InputError if that does not settle.

    Where no discrepancies were drawn (plain cells) the noise of exact data is estimated, else the share φ is.
    InterruptedError as soon as the event `stop` is set.
    """
    given, known = [_Given(each, found, stop) for each, found in zip(evidence, data, strict=True)], len(model.names)
    draws = given[0].columns.shape[1]
    spreads = np.concatenate([model.spreads, np.ones(draws)])
    x, scale = np.concatenate([np.ones(known), np.zeros(draws)]), _Scale(SHARE if draws else 0.0)
    start = _evaluated(given, known, x)
    before = _linearised(given, spreads, known, start, scale)
    at, state, settled = _continued(given, spreads, known, start, scale, ROUGH)
    if not settled:  # a narrow valley: follow it with small steps at every stage
        at, state, settled = _continued(given, spreads, known, start, scale, SETTLED)
    for _ in range(MOST_ROUNDS):
        if not settled:
            raise InputError("the fit did not settle; do the runs belong to this board?")
        last, scale = scale, _found_scale(given, state, scale)
        if max(abs(scale.share - last.share) - STEADY * last.share, abs(scale.noise / last.noise - 1) - STEADY) <= 0:
            break
        at, state, settled = _descended(given, spreads, known, at, scale)
    errors, excess = _errors(given, state, known, last)
    own = errors[:, :known] * model.spreads
    return Fit(
        at.x[:known],
        own.T @ own,
        before.residuals,
        state.residuals,
        at.x[known:],
        np.concatenate([own, errors[:, known:]], axis=1),
        len(given[0].checks),
        excess,
        last.share,
        last.noise,
    )


class _Given:
    """The data of one program, less the mean discrepancy, with the basis and the checks, and the noise."""

    def __init__(self, evidence: Known, data: np.ndarray, stop: Event | None) -> None:
        mean, columns, self.checks = discrepancy_parts(evidence.discrepancy)
        self.evidence, self.noise, self.exact = evidence, evidence.noise, isinstance(evidence, Evidence)
        self.data, self.columns = data - mean, columns.T
        self.spread = np.sqrt(np.sum(columns**2, axis=0))
        self.stop = stop

    def at(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the data (data,) of the model and their derivatives (data, parameters)."""
        if self.stop and self.stop.is_set():
            raise InterruptedError("the fit is no longer wanted")
        return self.evidence.at(theta)


@dataclass(frozen=True)
class _Scale:
    """Components of variance: share φ of the discrepancy, factor of the noise, and inflation of the noise."""

    share: float
    noise: float = 1.0
    inflation: float = 0.0


@dataclass(frozen=True, eq=False)
class _Evaluated:
    """The data of the model and their derivatives at x, by program, before weights: the costly part of a fit."""

    x: np.ndarray
    found: tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclass(frozen=True, eq=False)
class _State:
    """Cost, weighted residuals and normal equations, with parameters in units of their spreads."""

    cost: float
    residuals: np.ndarray
    slopes: tuple[np.ndarray, ...]  # of the weighted residuals, one a program
    normal: np.ndarray
    gradient: np.ndarray


def discrepancy_parts(left: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split discrepancies (draws, …): mean of the basis, basis, and checks, the last two about the mean.

    Either is scaled so that the sum of its squares is a variance. The checks are the last CHECKS draws, or half of all.
    """
    basis = len(left) - min(CHECKS, len(left) // 2)
    if not basis:
        return np.zeros(left.shape[1:]), left, left
    mean = left[:basis].mean(axis=0)
    checks = left[basis:] - mean
    return mean, (left[:basis] - mean) / np.sqrt(max(basis - 1, 1)), checks / np.sqrt(max(len(checks), 1))


def _variance(given: _Given, scale: _Scale) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance (data,) of the data, and the share of it by discrepancy."""
    left = (scale.share * given.spread) ** 2
    own = (scale.noise if given.exact else 1.0) ** 2 + scale.inflation**2
    return own * given.noise**2 + left, left


def _evaluated(given: Sequence[_Given], known: int, x: np.ndarray) -> _Evaluated:
    return _Evaluated(x, tuple(each.at(x[:known]) for each in given))


def _continued(
    given: Sequence[_Given], spreads: np.ndarray, known: int, at: _Evaluated, scale: _Scale, settled: float
) -> tuple[_Evaluated, _State, bool]:
    """Find the minimum from far away: with noise inflated less and less, and steps down to `settled` at each stage."""
    for inflation in CONTINUATION:
        at, _, _ = _descended(given, spreads, known, at, replace(scale, inflation=inflation), settled)
    return _descended(given, spreads, known, at, scale)


def _descended(
    given: Sequence[_Given],
    spreads: np.ndarray,
    known: int,
    at: _Evaluated,
    scale: _Scale,
    settled: float = SETTLED,
) -> tuple[_Evaluated, _State, bool]:
    """Return the minimum that steps from `at` reach, and whether they became smaller than `settled`."""
    state, damping = _linearised(given, spreads, known, at, scale), 0.0
    for _ in range(MOST_STEPS):
        H = state.normal + damping * np.diag(np.diag(state.normal))
        step = -cho_solve(cho_factor(H), state.gradient)
        x = at.x + spreads * step
        x[:known] = np.maximum(x[:known], SMALLEST)
        trial = _evaluated(given, known, x)
        found = _linearised(given, spreads, known, trial, scale)
        small = np.abs(step).max(initial=0.0) < settled or abs(found.cost - state.cost) < SMALLEST_CHANGE
        if found.cost <= state.cost or small:
            at, state, damping = trial, found, damping / 10 if damping > 1e-6 else 0.0
        else:
            damping = max(10 * damping, 1e-3)
        if small:
            return at, state, True
    return at, state, False


def _linearised(given: Sequence[_Given], spreads: np.ndarray, known: int, at: _Evaluated, scale: _Scale) -> _State:
    residuals, slopes, x = [], [], at.x
    for each, (value, J) in zip(given, at.found, strict=True):
        sigma = np.sqrt(_variance(each, scale)[0])
        residuals.append((value + each.columns @ x[known:] - each.data) / sigma)
        slopes.append(np.concatenate([J, each.columns], axis=1) * spreads / sigma[:, None])
    r = np.concatenate(residuals)
    prior = (x - np.repeat([1.0, 0.0], [known, len(x) - known])) / spreads
    normal = sum(J.T @ J for J in slopes) + np.eye(len(x))
    gradient = sum(J.T @ own for J, own in zip(slopes, residuals, strict=True)) + prior
    return _State(float(r @ r + prior @ prior), r, tuple(slopes), normal, gradient)


def _found_scale(given: Sequence[_Given], state: _State, scale: _Scale) -> _Scale:
    """Update the components of variance by one step of expectation and maximisation."""
    covariance = _inverse(state.normal)
    used = np.concatenate([np.einsum("ij,jk,ik->i", J, covariance, J, optimize=True) for J in state.slopes])
    variance, left = (np.concatenate(both) for both in zip(*(_variance(each, scale) for each in given), strict=True))
    exact = np.concatenate([np.full(len(each.data), each.exact) for each in given])
    square, free = state.residuals**2, 1 - used
    if not scale.share:
        if exact.sum() < ENOUGH * len(covariance):
            return scale
        noise = scale.noise * np.sqrt(square[exact].sum() / free[exact].sum())
        return replace(scale, noise=float(max(noise, LEAST)))
    w = left / variance
    share = (WORTH * SHARE**2 + scale.share**2 * (w @ square)) / (WORTH + w @ free)
    return replace(scale, share=float(np.sqrt(share)))


def _errors(given: Sequence[_Given], state: _State, known: int, scale: _Scale) -> tuple[np.ndarray, float]:
    """Return errors (k, parameters + basis) by checks, noise and prior of θ, in spreads, and Birge's ratio."""
    H = _inverse(state.normal)
    sigma = [np.sqrt(_variance(each, scale)[0]) for each in given]
    noise = [np.sqrt(_variance(each, replace(scale, share=0.0))[0]) for each in given]
    every = zip(state.slopes, noise, sigma, strict=True)
    rows = [np.linalg.qr(np.concatenate([J * (e / own)[:, None] for J, e, own in every]), mode="r") @ H, H[:known]]
    checks = [each.checks / own for each, own in zip(given, sigma, strict=True)]
    if not len(checks[0]):
        return np.concatenate(rows), 1.0
    moved = sum(e @ J for e, J in zip(checks, state.slopes, strict=True)) @ H  # (checks, parameters + basis)
    expected = sum(float(np.sum((e - moved @ J.T) ** 2)) for e, J in zip(checks, state.slopes, strict=True))
    expected += sum(float(np.sum((e / own) ** 2)) for e, own in zip(noise, sigma, strict=True))
    excess = np.sqrt(max(float(state.residuals @ state.residuals) / expected, 1.0))
    return np.concatenate([excess * moved, *rows]), float(excess)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    found = cho_solve(cho_factor(matrix), np.eye(len(matrix)))
    return (found + found.T) / 2

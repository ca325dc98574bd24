"""Weighted least squares for the parts of one copy, from what it showed under several programs.

    minimise  Σ ((model(θ) + <leavings> - data)/σ)² + Σ ((θ - 1)/σ_prior)²

by Gauss-Newton steps with analytic derivatives, damped only where a step does not help. The minimum moves by
H⁻¹ (Jᵀ σ⁻¹ e + σ_prior⁻² p) with errors e of the data and p of the prior, whence its covariance; the e of different
programs come from the same mismatch and are correlated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from circuits.covariances import CovarianceEvidence
from circuits.errors import InputError
from circuits.evidence import Evidence, flattened
from circuits.exact import ExactRun
from circuits.pairs import PairModel
from circuits.solve import SolveRun

MOST_STEPS = 60
SETTLED = 1e-5  # of a prior deviation: a step below it ends the fit
DOUBTS = (1e4, 1e2, 0.0)  # what the data are doubted more at first, lest parts that hardly show take up a curvature
SMALLEST = 0.1  # relative value that no step goes below
Known = Evidence | CovarianceEvidence  # spectra without sampling, or covariances with the law of their estimate


@dataclass(frozen=True, eq=False)
class Fit:
    """One copy's fit: parameters, their covariance, and the weighted residuals of the data before and after."""

    values: np.ndarray
    covariance: np.ndarray
    residuals_nominal: np.ndarray
    residuals: np.ndarray


def observed(evidence: Evidence, exact: ExactRun, solved: SolveRun | None) -> tuple[Evidence, np.ndarray]:
    """The data (data,) of one run, and what was expected of it at the frequencies it really had."""
    data = [flattened(exact.spectra[None])[0]]
    if evidence.columns:
        data.append(flattened((solved.columns + solved.columns.T)[None, None].astype(complex) / 2)[0])
        data[-1][: solved.columns.shape[0]] -= np.log(solved.bias)
    return replace(evidence, frequencies=exact.frequencies), np.concatenate(data)


def fit(model: PairModel, evidence: Sequence[Known], data: Sequence[np.ndarray]) -> Fit:
    """Fit θ (parameters,) to data (data,) of every program; InputError if that does not settle."""
    theta = np.ones(len(model.names))
    before = _linearised(model, evidence, data, theta)
    for doubt in DOUBTS:
        theta, state, settled = _descended(model, evidence, data, theta, doubt)
    if not settled:
        raise InputError("the fit did not settle; do the runs belong to this board?")
    return Fit(theta, _sandwich(model, evidence, state), before.residuals, state.residuals)


def _descended(
    model: PairModel, evidence: Sequence[Known], data: Sequence[np.ndarray], theta: np.ndarray, doubt: float
) -> tuple[np.ndarray, "_State", bool]:
    """The minimum from θ on, the data doubted so much more than by their own noise, and whether steps have died out."""
    state, damping = _linearised(model, evidence, data, theta, doubt), 0.0
    for _ in range(MOST_STEPS):
        H = state.normal + damping * np.diag(np.diag(state.normal))
        step = -cho_solve(cho_factor(H), state.gradient)
        trial = np.maximum(theta + step, SMALLEST)
        found = _linearised(model, evidence, data, trial, doubt)
        small = np.abs(step / model.spreads).max(initial=0.0) < SETTLED
        if found.cost <= state.cost or small:
            theta, state, damping = trial, found, damping / 10 if damping > 1e-6 else 0.0
        else:
            damping = max(10 * damping, 1e-3)
        if small:
            return theta, state, True
    return theta, state, False


@dataclass(frozen=True, eq=False)
class _State:
    cost: float
    residuals: np.ndarray
    slopes: tuple[np.ndarray, ...]  # of the weighted residuals, one a program
    normal: np.ndarray
    gradient: np.ndarray


def _linearised(
    model: PairModel, evidence: Sequence[Known], data: Sequence[np.ndarray], theta: np.ndarray, doubt: float = 0.0
) -> _State:
    residuals, slopes = [], []
    for each, measured in zip(evidence, data, strict=True):
        value, J = each.at(theta)
        sigma = np.hypot(each.sigma, doubt * each.noise)
        residuals.append((value + each.leavings.mean(axis=0) - measured) / sigma)
        slopes.append(J / sigma[:, None])
    r = np.concatenate(residuals)
    prior = (theta - 1) / model.spreads
    normal = sum(J.T @ J for J in slopes) + np.diag(model.spreads**-2)
    gradient = sum(J.T @ own for J, own in zip(slopes, residuals, strict=True)) + prior / model.spreads
    return _State(float(r @ r + prior @ prior), r, tuple(slopes), normal, gradient)


def _sandwich(model: PairModel, evidence: Sequence[Known], state: _State) -> np.ndarray:
    """H⁻¹ (Jᵀ Cov(e) J + prior) H⁻¹, Cov(e) from the leavings of all programs together and the data's own errors."""
    pulls = sum(
        ((each.leavings - each.leavings.mean(axis=0)) / each.sigma) @ J
        for each, J in zip(evidence, state.slopes, strict=True)
    )
    floor = sum(
        (J * (each.noise / each.sigma)[:, None] ** 2).T @ J for each, J in zip(evidence, state.slopes, strict=True)
    )
    middle = pulls.T @ pulls / max(len(pulls) - 1, 1) + floor + np.diag(model.spreads**-2)
    half = cho_solve(cho_factor(state.normal), middle)
    covariance = cho_solve(cho_factor(state.normal), half.T)
    return (covariance + covariance.T) / 2

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

from circuits.errors import InputError
from circuits.evidence import FLOOR, Evidence, expected_and_slopes, flattened
from circuits.exact import ExactRun
from circuits.pairs import PairModel
from circuits.solve import SolveRun

MOST_STEPS = 60
SETTLED = 1e-5  # of a prior deviation: a step below it ends the fit
SMALLEST = 0.1  # relative value that no step goes below


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


def fit(model: PairModel, evidence: Sequence[Evidence], data: Sequence[np.ndarray]) -> Fit:
    """Fit θ (parameters,) to data (data,) of every program; InputError if that does not settle."""
    theta, damping = np.ones(len(model.names)), 0.0
    state = _linearised(model, evidence, data, theta)
    before = state
    for _ in range(MOST_STEPS):
        H = state.normal + damping * np.diag(np.diag(state.normal))
        step = -cho_solve(cho_factor(H), state.gradient)
        trial = np.maximum(theta + step, SMALLEST)
        found = _linearised(model, evidence, data, trial)
        small = np.abs(step / model.spreads).max(initial=0.0) < SETTLED
        if found.cost <= state.cost or small:
            theta, state, damping = trial, found, damping / 10 if damping > 1e-6 else 0.0
        else:
            damping = max(10 * damping, 1e-3)
        if small:
            break
    else:
        raise InputError("the fit did not settle; do the runs belong to this board?")
    return Fit(theta, _sandwich(model, evidence, state), before.residuals, state.residuals)


@dataclass(frozen=True, eq=False)
class _State:
    cost: float
    residuals: np.ndarray
    slopes: tuple[np.ndarray, ...]  # of the weighted residuals, one a program
    normal: np.ndarray
    gradient: np.ndarray


def _linearised(
    model: PairModel, evidence: Sequence[Evidence], data: Sequence[np.ndarray], theta: np.ndarray
) -> _State:
    residuals, slopes = [], []
    for each, measured in zip(evidence, data, strict=True):
        value, J = expected_and_slopes(each, theta)
        residuals.append((value + each.leavings.mean(axis=0) - measured) / each.sigma)
        slopes.append(J / each.sigma[:, None])
    r = np.concatenate(residuals)
    prior = (theta - 1) / model.spreads
    normal = sum(J.T @ J for J in slopes) + np.diag(model.spreads**-2)
    gradient = sum(J.T @ own for J, own in zip(slopes, residuals, strict=True)) + prior / model.spreads
    return _State(float(r @ r + prior @ prior), r, tuple(slopes), normal, gradient)


def _sandwich(model: PairModel, evidence: Sequence[Evidence], state: _State) -> np.ndarray:
    """H⁻¹ (Jᵀ Cov(e) J + prior) H⁻¹, with Cov(e) from the leavings of all programs together and the floor."""
    pulls = sum(
        ((each.leavings - each.leavings.mean(axis=0)) / each.sigma) @ J
        for each, J in zip(evidence, state.slopes, strict=True)
    )
    floor = sum((J * (FLOOR / each.sigma)[:, None] ** 2).T @ J for each, J in zip(evidence, state.slopes, strict=True))
    middle = pulls.T @ pulls / max(len(pulls) - 1, 1) + floor + np.diag(model.spreads**-2)
    half = cho_solve(cho_factor(state.normal), middle)
    covariance = cho_solve(cho_factor(state.normal), half.T)
    return (covariance + covariance.T) / 2

"""Covariances at lags: their joint law against literal sums, and what a record tells of how a copy settles."""

from dataclasses import replace

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX
from compare import FALSE_ALARM, assert_close
from scipy import stats
from scipy.linalg import expm

from circuits import Conditions, Copy, assemble
from circuits.calibration import calibrate_recorded
from circuits.calibration.discrepancy import draw_pairs
from circuits.calibration.observations import lagged_evidence, lagged_law, lags_of
from circuits.copies import nominal_copy
from circuits.model.pairs import pair_model
from circuits.nodal import lag_of
from circuits.ou import drift, lagged_covariances, stationary_covariance
from circuits.statistics import Recorded
from circuits.statistics.equilibrium import sums_of
from circuits.statistics.estimators import law_of_pairs, mean_covariance
from circuits.statistics.recorded import RecordSummary
from circuits.synthesis import make_design

COPIES, READINGS = 10, 30_000


def literal_law(rho, lags, readings) -> np.ndarray:
    """Covariance of all C_ij(τ) by the four-fold sums themselves, ρ(t) by its lag."""
    n = rho.shape[1]

    def at(t):
        return np.zeros((n, n)) if abs(t) >= len(rho) else rho[t] if t >= 0 else rho[-t].T

    rows = [(tau, i, j) for tau in lags for i in range(n) for j in range(n) if tau or i <= j]
    V = np.zeros((len(rows), len(rows)))
    for p, (tau, i, j) in enumerate(rows):
        for q, (sigma, k, m) in enumerate(rows):
            N, M = readings - tau, readings - sigma
            for t in range(N):
                for s in range(max(0, t - 8), min(M, t + 9)):
                    u = t - s
                    V[p, q] += at(u + tau - sigma)[i, k] * at(u)[j, m] + at(u + tau)[i, m] * at(u - sigma)[j, k]
            V[p, q] /= N * M
    return V


def test_law_is_that_of_the_literal_sums():
    decay = np.array([[0.3, 0.2], [-0.1, 0.25]])
    rho = np.array([np.linalg.matrix_power(decay, k) @ np.array([[1.0, 0.3], [0.3, 2.0]]) for k in range(5)])
    N, lags = 120, (0, 2)
    pairs = [np.clip(N - tau - np.arange(9), 0, None) for tau in lags]
    found, truth = lagged_law(rho, lags, pairs), literal_law(rho, lags, N)
    assert_close(found[:3, :3], law_of_pairs(rho, pairs[0]).covariance, 1e-10)
    assert_close(found[:3, :3], truth[:3, :3], 1e-10)
    assert_close(found[3:, 3:], truth[3:, 3:], 1e-10)
    assert_close(found, truth, 5 / N)  # between lags the counts at the ends are those of the later one
    assert np.linalg.eigvalsh(found).min() > 0


def simulated(circuits, period, readings, rng) -> np.ndarray:
    """Readings (copies, readings, n) by the exact transition, step by step."""
    S = np.array([stationary_covariance(c) for c in circuits])
    unit = np.sqrt(np.diagonal(S, axis1=1, axis2=2))
    F = np.array([expm(-drift(c) * period) for c in circuits]) * unit[:, None, :] / unit[:, :, None]
    S = S / unit[:, :, None] / unit[:, None, :]
    values, U = np.linalg.eigh(S - F @ S @ np.swapaxes(F, 1, 2))
    root = U * np.sqrt(values.clip(0))[:, None, :]
    n = len(circuits[0].readout)
    H = np.array([np.pad(c.readout, ((0, 0), (0, c.coils.shape[1]))) for c in circuits]) * unit[:, None, :]
    x = np.linalg.cholesky(S + 1e-13 * np.eye(S.shape[1])) @ rng.normal(size=(*S.shape[:2], 1))
    y = np.empty((len(circuits), readings, n))
    for k in range(readings):
        y[:, k] = (H @ x)[..., 0]
        x = F @ x + root @ rng.normal(size=x.shape)
    return y


def record(made, name, y) -> Recorded:
    period, N = made.program.period, len(y)
    rho = lagged_covariances(
        assemble(made.board, made.program, nominal_copy(made.board), Conditions()), period, held=False
    )
    about, lag = y - y.mean(axis=0), lag_of(made.board, made.program)
    pairs = np.clip(N - np.arange(len(rho)), 0, None)
    V, S = mean_covariance(rho, pairs), about.T @ about / N
    summary = RecordSummary(name, 27.0, period, N, 0, 0, 0, 0, {}, (), (), y.mean(axis=0), np.sqrt(np.diag(V)))
    later = np.clip(pairs - lag, 0, None)
    return Recorded(summary, S, V, S[None], np.array([N]), pairs, sums_of(about, lag), later)


def test_a_lag_tells_inductances_within_honest_errors():
    made = make_design(M_MATRIX, tolerance=0.05, seed=6)
    model, rng = pair_model(made.board), np.random.default_rng(21)
    truths, circuits = [], []
    for k in range(COPIES):  # on plain cells one part a parameter
        theta = 1 + model.spreads * rng.normal(size=len(model.names))
        gains = dict(nominal_copy(made.board).gains) | {
            made.board.parts[m[0]].name: theta[row.argmax()]
            for m, row in zip(model.pairs, abs(model.exponents), strict=True)
        }
        circuits.append(assemble(made.board, made.program, Copy(f"copy-{k}", gains), Conditions()))
        truths.append(theta)
    y = simulated(circuits, made.program.period, READINGS, rng)
    records = [record(made, f"copy-{k}", y[k]) for k in range(COPIES)]
    found = calibrate_recorded(made, records, 0.0)
    square = 0.0
    for fit, truth in zip(found.fits.values(), truths, strict=True):
        square += (fit.values - truth) @ np.linalg.solve(fit.covariance, fit.values - truth)
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], COPIES * len(model.names))
    assert low < square < high
    alone = calibrate_recorded(made, [replace(records[0], sums=None)], 0.0)
    with_lag, without = (np.sqrt(np.diag(each.fits["copy-0"].covariance)) / model.spreads for each in (found, alone))
    coils = [k for k, name in enumerate(model.names) if name.startswith("inductance")]
    assert without[coils] == pytest.approx(1, abs=0.01)
    assert (with_lag[coils] < 0.8).all()
    assert (with_lag < without + 1e-9).all()


def test_data_at_a_lag_are_those_of_the_circuit_and_slopes_its_differences():
    made = make_design(FAIR, FAIR_FACTOR)
    model = pair_model(made.board)
    circuit = assemble(made.board, made.program, nominal_copy(made.board), Conditions())
    rho, period = lagged_covariances(circuit, made.program.period, held=False), made.program.period
    assert_close(lags_of(circuit, (0.0, 5 * period)), rho[[0, 5]], 1e-9)
    pairs = [np.clip(10**5 - lag - np.arange(len(rho)), 0, None) for lag in (0, 5)]
    evidence = lagged_evidence(model, made.program, period, (0, 5), pairs, draw_pairs(model, 0, 4))
    theta = np.ones(len(model.names))
    value, J = evidence.at(theta)
    assert_close(value, evidence.data(rho[[0, 5]] - mean_covariance(rho, pairs[0])), 1e-6)
    e = 1e-3 * (np.arange(len(theta)) == 3)
    assert_close(J[:, 3], (evidence.at(theta + e)[0] - evidence.at(theta - e)[0]) / 2e-3, 1e-4)
    assert evidence.discrepancy.shape == (4, 36 + 64)

"""Gaussianity and detailed balance: laws by literal sums, false-alarm rates, and that they see what is wrong."""

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR
from compare import FALSE_ALARM, NORMAL_BOUND, assert_close
from conftest import needs_ngspice
from scipy import stats
from scipy.linalg import expm, solve_continuous_lyapunov

from circuits import Conditions, assemble
from circuits.netlist import circuit_of, decks
from circuits.nodal import lag_of
from circuits.simulation.transient import HELD, chunk_deck, chunks_lags, run_chunk
from circuits.statistics import judge_equilibrium as judged
from circuits.statistics.equilibrium import pairs_of_records, sums_of
from circuits.statistics.moments import CHUNK
from circuits.synthesis import BoardOptions, make_design

# Three readings of a process out of equilibrium: A is not normal, and A D is not symmetric.
A = 0.15 * np.array([[1.0, 2.0, 0.0], [-0.5, 1.0, 0.3], [0.2, -0.4, 0.7]])
D = 0.3 * np.diag([1.0, 0.5, 2.0])
S = solve_continuous_lyapunov(A, D)
F = expm(-A)
RHO = np.array([np.linalg.matrix_power(F, k) @ S for k in range(300)])


def equilibrium(sums, covariance, rho, records):
    return judged(sums, covariance, rho, pairs_of_records(len(rho), sums.lag, records))


def paths(readings: int, count: int, seed: int) -> np.ndarray:
    """(count, readings, 3)."""
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(S - F @ S @ F.T)
    x = np.linalg.cholesky(S) @ rng.normal(size=(3, count))
    y = np.empty((readings, count, 3))
    for k in range(readings):
        y[k] = x.T
        x = F @ x + root @ rng.normal(size=(3, count))
    return y.transpose(1, 0, 2)


def test_sums_are_those_of_the_record():
    y = np.random.default_rng(0).normal(size=(50, 2))
    found = sums_of(y[:20], 3) + sums_of(y[20:], 3)
    assert (found.pairs, found.readings, found.lag) == (17 + 27, 50, 3)
    lagged = sum(np.outer(y[t + 3], y[t]) for t in [*range(17), *range(20, 47)])
    assert_close(found.lagged, lagged, 1e-13)
    assert_close(found.fourth, np.sum(y**4, axis=0), 1e-13)


def test_expected_asymmetry_is_the_literal_double_sum():
    # Cov(C_ij, C_kl) over all pairs of times, in two records of 12 and 9 readings.
    records, lag = np.array([12, 9]), 2
    total, pairs = np.zeros((3, 3, 3, 3)), sum(records - lag)

    def rho(k):
        return RHO[k] if k >= 0 else RHO[-k].T

    for length in records - lag:
        for s in range(length):
            for t in range(length):
                same, ahead, behind = rho(t - s), rho(t - s + lag), rho(t - s - lag)
                total += np.einsum("ik,jl->ijkl", same, same) + np.einsum("il,jk->ijkl", ahead, behind)
    total /= pairs**2
    anti = (total - total.transpose(1, 0, 2, 3) - total.transpose(0, 1, 3, 2) + total.transpose(1, 0, 3, 2)) / 4
    variance = sum(anti[i, j, i, j] for i in range(3) for j in range(i + 1, 3))
    predicted = (RHO[lag] - RHO[lag].T) / 2
    expected = np.sqrt(np.sum(predicted**2) + 2 * variance) / np.linalg.norm(S)
    y = paths(21, 1, 0)[0]
    found = equilibrium(sums_of(y[:12], lag) + sums_of(y[12:], lag), S, RHO, records)
    assert found.expected_asymmetry == pytest.approx(expected, rel=1e-10)
    assert found.predicted_asymmetry == pytest.approx(np.linalg.norm(predicted) / np.linalg.norm(S), rel=1e-12)


def test_p_values_are_uniform_over_records():
    # 2,000 records of 4,000 readings: how many p are below 0.5 and below 0.05 is binomial, at the false-alarm rate.
    # The kurtosis law is good to a tenth of either.
    records, lag, count = np.array([4000]), 3, 2000
    covariances = [y.T @ y / 4000 for y in paths(4000, count, 5)]
    found = [
        equilibrium(sums_of(y, lag), own, RHO, records)
        for y, own in zip(paths(4000, count, 5), covariances, strict=True)
    ]
    for values, slack in (([e.asymmetry_p for e in found], 0.0), ([e.kurtosis_p for e in found], 0.1)):
        for level in (0.5, 0.05):
            low, high = stats.binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], count, level)
            below = sum(value < level for value in values)
            assert low - slack * level * count <= below <= high + slack * level * count
    norms = np.linalg.norm(covariances, axis=(1, 2))
    squares = np.square([e.asymmetry for e in found] * norms)
    expected = (found[0].expected_asymmetry * norms[0]) ** 2
    assert abs(squares.mean() - expected) < NORMAL_BOUND * squares.std() / np.sqrt(count)


def test_heavy_tails_and_a_wrong_direction_of_time_are_seen():
    y = paths(20_000, 1, 9)[0]
    records = np.array([20_000])
    good = equilibrium(sums_of(y, 3), y.T @ y / 20_000, RHO, records)
    assert min(good.kurtosis_p, good.asymmetry_p) > FALSE_ALARM
    heavy = y * np.sqrt(np.repeat(np.random.default_rng(1).gamma(8, 1 / 8, 200), 100))[:, None]
    found = equilibrium(sums_of(heavy, 3), heavy.T @ heavy / 20_000, RHO, records)
    assert found.kurtosis_p < FALSE_ALARM
    assert found.kurtosis > 0.2
    backwards = y[::-1]
    assert equilibrium(sums_of(backwards, 3), y.T @ y / 20_000, RHO, records).asymmetry_p < FALSE_ALARM


def test_short_records_and_single_readings_have_no_p():
    y = paths(1000, 1, 2)[0]
    short = equilibrium(sums_of(y[:400], 3), y[:400].T @ y[:400] / 400, RHO, np.array([400]))
    assert short.kurtosis_p is None
    one = equilibrium(sums_of(y[:, :1], 3), y[:, :1].T @ y[:, :1] / 1000, RHO[:, :1, :1], np.array([1000]))
    assert one.asymmetry_p is None
    assert one.asymmetry == one.predicted_asymmetry == 0.0


@needs_ngspice
@pytest.mark.parametrize("coupling", ["capacitive", "resistive"])
def test_a_copy_of_unequal_temperatures_in_ngspice_is_as_far_from_balance_as_its_values_say(coupling):
    choices = BoardOptions(coupling=coupling, source_tolerance=0.3)
    made = make_design(FAIR, FAIR_FACTOR, choices=choices, copies=1)
    board, program = made.board, made.program
    text = circuit_of(dict(decks(made))["copy-1"])
    chunk = run_chunk(board, program, chunk_deck(board, program, text, 23, CHUNK), CHUNK)
    rho = chunks_lags(HELD, assemble(board, program, made.copies[0], Conditions()), program.period)
    covariance = chunk.moments.mean(axis=0)
    found = equilibrium(chunk.sums, covariance, rho, np.array([CHUNK]))
    assert found.lag == lag_of(board, program) >= 1
    assert min(found.asymmetry_p, found.kurtosis_p or 1) > FALSE_ALARM
    assert found.predicted_asymmetry > 1e-3

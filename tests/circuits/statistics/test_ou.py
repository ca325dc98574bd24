"""Laws of the Ornstein-Uhlenbeck process of a circuit, against brute linear algebra and simulation."""

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, TARGETS
from compare import NORMAL_BOUND, assert_close, circuit_of_cells
from reference import estimate_covariance, euler_covariance, euler_maruyama, kronecker_lyapunov
from scipy import stats
from scipy.integrate import quad_vec
from scipy.linalg import expm

from circuits import Conditions, ou
from circuits.copies import draw_gains, gains_of, nominal_copy
from circuits.nodal import Circuit, assemble_gains, nominal_circuit
from circuits.simulation.ac import integrate
from circuits.statistics import estimators
from circuits.synthesis.design import board_and_program


def copies_of(target, congruence=None, count=3):
    board, program = board_and_program(target, congruence)
    return program, assemble_gains(board, program, draw_gains(board, 5, count), Conditions())


def small_circuit() -> Circuit:
    """Two dimensionless nodes, unequal temperatures, far from normal."""
    return circuit_of_cells(
        np.array([[1.0, -0.4], [-0.4, 0.8]]),
        np.diag([0.5, 0.9]),
        np.diag([1.3, 0.7]),
        np.diag([0.6, 0.2]),
        np.eye(2),
    )


@pytest.mark.parametrize("name", [name for name, (target, *_) in TARGETS.items() if len(target) <= 4])
def test_nominal_covariance_is_the_inverse_matrix(name):
    target, congruence, _ = TARGETS[name]
    board, program = board_and_program(target, congruence)
    covariance = ou.reading_covariance(nominal_circuit(board, program))
    scale = board.nodes_per_cell * program.energy / board.unit
    assert_close(covariance, scale * np.linalg.inv(program.matrix), 1e-11)


def test_stationary_covariance_solves_lyapunov():
    circuit = small_circuit()
    A, D = ou.drift(circuit), ou.diffusion(circuit)
    found = ou.stationary_covariance(circuit)
    assert_close(found, kronecker_lyapunov(A, D), 1e-13)
    assert_close(A @ found + found @ A.T, D, 1e-12)
    # Not normal and singular, or the case would prove little.
    assert np.linalg.norm(A @ A.T - A.T @ A) > 0.1
    assert np.linalg.matrix_rank(D) == 2


@pytest.mark.parametrize("congruence", [None, FAIR_FACTOR])
def test_batch_of_copies_agrees_with_one_by_one(congruence):
    _, circuits = copies_of(FAIR, congruence)
    batch = ou.reading_covariances(circuits)
    for k in range(3):
        assert_close(batch[k], ou.reading_covariance(circuits[k]), 1e-12)


def test_covariance_agrees_with_euler_maruyama():
    circuit = small_circuit()
    A, D = ou.drift(circuit), ou.diffusion(circuit)
    dt, steps = 0.02, 200_000
    scheme = euler_covariance(A, D, dt)
    assert_close(euler_covariance(A, D, 1e-5), ou.stationary_covariance(circuit), 1e-4)
    path = euler_maruyama(A, D, dt, steps, seed=8, skip=5_000)
    # The slowest of the variances forgets in about 1/decay; the bound is for one entry, four are looked at.
    effective = steps * dt / (2 * ou.decay_time(circuit))
    error = np.abs(np.diag(path) / np.diag(scheme) - 1)
    assert (error < 1.1 * NORMAL_BOUND * np.sqrt(2 / effective)).all()


def test_spectrum_integrates_to_the_covariance():
    circuit = small_circuit()
    frequency = np.geomspace(1e-6, 1e5, 1101)
    assert_close(integrate(frequency, ou.spectrum(circuit, frequency)), ou.reading_covariance(circuit), 1e-10)


def test_held_noise_law_by_quadrature():
    circuit, h = small_circuit(), 0.7
    A = ou.drift(circuit)
    B = np.vstack([np.linalg.inv(circuit.capacitance), np.zeros((2, 2))])
    W = quad_vec(lambda s: expm(-A * s) @ B, 0, h, epsabs=1e-13)[0]
    F, Q = expm(-A * h), 2 * circuit.noise / h
    covariance = np.linalg.solve(np.eye(16) - np.kron(F, F), (W @ Q @ W.T).reshape(-1)).reshape(4, 4)
    assert_close(ou.held_covariance(circuit, h), covariance[:2, :2], 1e-11)
    rho = ou.lagged_covariances(circuit, h)
    assert_close(rho[3], (np.linalg.matrix_power(F, 3) @ covariance)[:2, :2], 1e-11)


@pytest.mark.parametrize("congruence", [None, FAIR_FACTOR])
def test_hold_correction_by_modes_is_that_of_the_whole_board(congruence):
    board, program = board_and_program(FAIR, congruence)
    circuit = nominal_circuit(board, program)
    lost = ou.reading_covariance(circuit) - ou.held_covariance(circuit, program.period)
    assert_close(ou.nominal_hold_correction(circuit, program.period), lost, 1e-9)


def test_held_noise_becomes_white_with_the_first_order_bias():
    board, program = board_and_program(np.array([[1.0]]))
    circuit = nominal_circuit(board, program)
    white = ou.reading_covariance(circuit)[0, 0]
    for bias in (1e-3, 1e-5):
        held = ou.held_covariance(circuit, ou.hold_period(circuit, bias))[0, 0]
        assert held / white == pytest.approx(1 - bias, abs=20 * bias**2)


def test_law_of_the_estimate_by_the_double_sum():
    circuit = small_circuit()
    law = estimators.estimate_law(circuit, 0.5, samples=40)
    full = estimate_covariance(ou.lagged_covariances(circuit, 0.5), 40)
    i, j = np.triu_indices(2)
    assert_close(law.covariance, full[i, j][:, i, j], 1e-12)


def literal_law(rho: np.ndarray, times: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Cov of all entries of a sample covariance and V of the sample mean, pair by pair of readings at these times."""
    n, N = rho.shape[1], len(times)
    full, V = np.zeros((n, n, n, n)), np.zeros((n, n))
    for s in times:
        for t in times:
            if abs(s - t) < len(rho):
                r = rho[s - t] if s >= t else rho[t - s].T
                full += np.einsum("ik,jl->ijkl", r, r) + np.einsum("il,jk->ijkl", r, r)
                V += r
    return full / N**2, V / N**2


@pytest.mark.parametrize("lags", [None, 3000])
def test_law_of_a_record_with_gaps_by_the_double_sum(lags):
    circuit = small_circuit()
    rho = ou.lagged_covariances(circuit, 0.5, held=False)
    times = [*range(9), *range(11, 17), 18, *range(30, 41), *range(2000, 2003)]
    apart = [abs(s - t) for s in times for t in times]
    pairs = np.array([apart.count(k) // (1 + (k > 0)) for k in range(lags or len(rho))])
    full, V = literal_law(rho, times)
    i, j = np.triu_indices(2)
    law = estimators.law_of_pairs(rho, pairs)
    assert law.samples == len(times)
    assert_close(law.covariance, full[i, j][:, i, j], 1e-12)
    assert_close(estimators.mean_covariance(rho, pairs), V, 1e-12)
    assert_close(estimators.law_about_mean(rho, pairs).mean, rho[0] - V, 1e-12)


def test_law_of_independent_records_is_the_mean_of_their_laws():
    rho = ou.lagged_covariances(small_circuit(), 0.5)
    found = estimators.law_of_records(rho, np.array([25, 3, 25]))
    alone = [(k, literal_law(rho, list(range(k)))[0]) for k in (25, 3, 25)]
    i, j = np.triu_indices(2)
    assert_close(found.covariance, sum(k**2 * law[i, j][:, i, j] for k, law in alone) / 53**2, 1e-12)
    assert found.samples == 53


def test_law_of_the_estimate_of_one_resonator_in_closed_form():
    # Poles λ of x' = Φ x make ρ(τ) = Σ c_a λ_a^τ, and Σ_τ ρ² a sum of geometric series; long record.
    circuit = circuit_of_cells(np.eye(1), 0.4 * np.eye(1), 1.7 * np.eye(1), np.eye(1), np.eye(1))
    h, N = 0.3, 10**9
    law = estimators.estimate_law(circuit, h, N)
    pole = np.exp(h * np.roots([1.0, 0.4, 1.7]))
    rho = ou.lagged_covariances(circuit, h)[:, 0, 0]
    c = np.linalg.solve(np.array([[1, 1], pole]), rho[:2])
    one_sided = sum(c[a] * c[b] / (1 - pole[a] * pole[b]) for a in range(2) for b in range(2)).real
    assert law.covariance[0, 0] == pytest.approx(2 * (2 * one_sided - rho[0] ** 2) / N, rel=1e-7)


def records(circuit: Circuit, h: float, samples: int, count: int, seed: int) -> np.ndarray:
    """Sample covariances (count, n, n) of independent stationary records under held noise, simulated step by step."""
    A, n = ou.drift(circuit), len(circuit.noise)
    B = np.vstack([np.linalg.inv(circuit.capacitance), np.zeros((n, n))])
    W = quad_vec(lambda s: expm(-A * s) @ B, 0, h, epsabs=1e-13)[0]
    F, root = expm(-A * h), W @ np.sqrt(2 * circuit.noise / h)
    rng = np.random.default_rng(seed)
    x, total = np.zeros((count, 2 * n)), np.zeros((count, n, n))
    skip = int(20 * ou.decay_time(circuit) / h)
    for k in range(skip + samples):
        x = x @ F.T + rng.normal(size=(count, n)) @ root.T
        if k >= skip:
            y = x @ np.hstack([circuit.readout, np.zeros_like(circuit.readout)]).T
            total += y[:, :, None] * y[:, None, :]
    return total / samples


def test_joint_chi_square_keeps_its_false_alarm_rate_in_simulated_records():
    circuit, h, count = small_circuit(), 0.5, 4000
    samples = 500
    law = estimators.estimate_law(circuit, h, samples)
    assert 100 < estimators.effective_samples(law) < 300
    p = np.array([estimators.joint_chi_square(S, law)[2] for S in records(circuit, h, samples, count, seed=2)])
    # The number of p below a level is binomial: mean count * level.
    for level in (0.5, 0.1, 0.01, 0.001):
        low, high = stats.binom.ppf([5e-6, 1 - 5e-6], count, level)
        assert low <= (p < level).sum() <= high, level


def test_effective_samples_are_those_of_the_slowest_mode_of_independent_cells():
    # Two cells that do not know of each other, the second ten times slower: T/(R c) samples each, for fine sampling.
    circuit = circuit_of_cells(np.diag([1.0, 10.0]), np.eye(2), np.diag([1.0, 0.1]), np.eye(2), np.eye(2))
    h, samples = 0.02, 1_000_000
    law = estimators.estimate_law(circuit, h, samples)
    assert estimators.effective_samples(law) == pytest.approx(samples * h / 10.0, rel=0.01)


def test_short_records_get_no_p_value():
    law = estimators.estimate_law(small_circuit(), 0.5, samples=100)
    assert estimators.joint_chi_square(law.mean, law)[2] is None


def test_spread_of_inductors_changes_nothing():
    board, program = board_and_program(FAIR)
    gains = gains_of(board, [nominal_copy(board)])[0]
    inductors = [k for k, part in enumerate(board.parts) if part.kind == "L"]
    gains[inductors] = np.random.default_rng(0).uniform(0.9, 1.1, 16)
    spread = ou.reading_covariance(assemble_gains(board, program, gains, Conditions()))
    assert_close(spread, ou.reading_covariance(nominal_circuit(board, program)), 1e-11)

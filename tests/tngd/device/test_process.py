"""The exact engine against Van Loan's block exponential, Kronecker's Lyapunov equation, many digits and brute laws."""

import itertools
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from cases import FAIR, FAIR_FACTOR, random_target
from compare import FALSE_ALARM, NORMAL_BOUND, assert_close
from reference import euler_covariance, kronecker_lyapunov
from scipy import stats
from scipy.linalg import expm
from simulated import measured_exactly

from circuits import Conditions, InputError, assemble, ou
from circuits.calibration import calibrate
from circuits.model import predict
from circuits.nodal import assemble_many
from circuits.synthesis import make_design
from tngd.device import Process, log_likelihood, program_process, sample_paths, stationary_draws
from tngd.device import paths as device_paths
from tngd.device import process as device_process
from tngd.device.paths import prepare_steps, reading_draws
from tngd.device.process import (
    Gaussian,
    autocovariance,
    circuit_process,
    law_after,
    reading_law,
    readings,
    stationary_covariance,
    stationary_law,
    stationary_mean,
    transition,
)

OMEGA = 1e7  # 1/s, of the boards: 1 nF and 10 µH


def rlc(P: np.ndarray, quality: float, spread: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A and D of a capacitive board c0 P in SI units, noise in v only, temperatures that differ by `spread`."""
    n, c0, L = len(P), 1e-9, 1e-5
    resistance = quality * np.sqrt(L / c0)
    C = np.linalg.inv(c0 * P)
    A = np.block([[C / resistance, C / L], [-np.eye(n), np.zeros((n, n))]])
    D = np.zeros((2 * n, 2 * n))
    D[:n, :n] = 2 * C @ np.diag(2.5e-12 * (1 + spread * np.linspace(-1, 1, n)) / resistance) @ C
    return A, D


def at(rate: float, A, D) -> tuple[np.ndarray, np.ndarray, float]:
    return np.array(A, dtype=float), np.array(D, dtype=float), rate


# name: drift, diffusion, a rate [1/s] typical of them
CASES = {
    "1x1": at(3.0, [[3.0]], [[0.7]]),
    "RLC at Q 30": at(OMEGA, *rlc(np.array([[2.0, -0.5, 0.3], [-0.5, 1.5, -0.2], [0.3, -0.2, 1.0]]), 30, 0.3)),
    "RLC of `fair`": at(OMEGA, *rlc(FAIR_FACTOR @ FAIR @ FAIR_FACTOR.T, 1.5)),
    "overdamped": at(OMEGA, *rlc(np.array([[1.0, 0.2], [0.2, 1.0]]), 0.05)),
    "critically damped": at(OMEGA, *rlc(np.eye(1), 0.5)),
    "defective": at(1.0, [[1.0, 5.0, 0.0], [0.0, 1.0, 5.0], [0.0, 0.0, 1.0]], np.diag([0.0, 0.0, 1.0])),
    "condition 1e6": at(1.0, random_target(6, 1e6, 0), 2 * np.eye(6)),
    "condition 1e6, singular noise": at(1.0, random_target(6, 1e6, 1), np.outer(np.arange(6.0), np.arange(6.0))),
    "far from normal": at(1.0, [[1.0, 300.0], [0.0, 2.0]], [[1.0, 0.5], [0.5, 1.0]]),
}


# Where the block exponential, which grows as e^{At}, loses digits of its own in float64, it is taken with 150 digits.
LOSES_DIGITS = {"overdamped", "defective", "far from normal"}


def van_loan(A: np.ndarray, D: np.ndarray, b: np.ndarray, t: float, digits: bool) -> tuple[np.ndarray, ...]:
    """Φ, β and Σ from block exponentials, in units of the state in which A and D are of the order of one."""
    n = len(A)
    unit = own_units(A)
    A, D, b = A * unit / unit[:, None], D / unit / unit[:, None], b / unit
    block = np.block([[-A, D], [np.zeros((n, n)), A.T]])
    drive = np.block([[-A, b[:, None]], [np.zeros((1, n + 1))]])
    if digits:
        with mpmath.workdps(150):
            both = mpmath.expm(mpmath.matrix(block.tolist()) * t, method="taylor")
            exact = both[:n, :n], both[:n, n:] * both[:n, :n].T
            exact = *exact, mpmath.expm(mpmath.matrix(drive.tolist()) * t, method="taylor")[:n, n]
            phi, sigma, beta = (np.array(part.tolist(), dtype=float) for part in exact)
            beta = beta[:, 0]
    else:
        both = expm(block * t)
        phi, sigma, beta = both[:n, :n], both[:n, n:] @ both[:n, :n].T, expm(drive * t)[:n, n]
    return phi * unit[:, None] / unit, beta * unit, sigma * unit[:, None] * unit


def own_units(A: np.ndarray) -> np.ndarray:
    """Units of the state in which A is of one order: webers beside volts."""
    unit = np.ones(len(A))
    if np.abs(A).max() > 1e12:
        unit[len(A) // 2 :] = 1 / OMEGA
    return unit


def kronecker(A: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Kronecker's solution of the Lyapunov equation, taken in those units."""
    unit = own_units(A)
    rate = np.abs(A * unit / unit[:, None]).max()
    S = kronecker_lyapunov(A * unit / unit[:, None] / rate, D / unit / unit[:, None] / rate)
    return S * unit * unit[:, None]


def process_of(A, D, b=None, H=None, dtype=torch.float64) -> Process:
    A, D = np.asarray(A, dtype=float), np.asarray(D, dtype=float)
    b = np.zeros(A.shape[:-1]) if b is None else np.asarray(b, dtype=float)
    H = np.eye(A.shape[-1]) if H is None else np.asarray(H, dtype=float)
    return Process(*(torch.tensor(part, dtype=dtype) for part in (A, D, b, H)))


def in_own_units(covariance: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """A covariance divided by the standard deviations of the expected one, so that webers count beside volts."""
    size = np.sqrt(np.diag(expected)) + (np.diag(expected) == 0)
    return covariance / size / size[:, None]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("turns", [1e-3, 0.3, 5.0])
def test_transition_is_van_loans(name, turns):
    A, D, rate = CASES[name]
    t = turns / rate
    b = np.linspace(1, 2, len(A)) * np.sqrt(np.diag(D).max() * rate)
    start = np.linspace(-1, 1, len(A)) * np.sqrt(np.diag(kronecker(A, D)))
    over = transition(process_of(A, D, b), t)
    phi, beta, sigma = van_loan(A, D, b, t, name in LOSES_DIGITS)
    size = np.sqrt(np.diag(kronecker(A, D)))
    assert_close(over.matrix.numpy() * size / size[:, None], phi * size / size[:, None], 1e-10, "matrix")
    assert_close(over.drive.numpy() / size, beta / size, 1e-10, "drive")
    assert_close(in_own_units(over.covariance.numpy(), sigma), in_own_units(sigma, sigma), 1e-10, "covariance")
    S = np.diag(size) @ (np.eye(len(A)) + 0.3) @ np.diag(size)
    law = law_after(process_of(A, D, b), t, Gaussian(torch.tensor(start), torch.tensor(S)))
    assert_close(law.mean.numpy() / size, (phi @ start + beta) / size, 1e-10, "mean")
    expected = phi @ S @ phi.T + sigma
    assert_close(
        in_own_units(law.covariance.numpy(), expected), in_own_units(expected, expected), 1e-10, "covariance of both"
    )


@pytest.mark.parametrize("name", CASES)
def test_stationary_law_solves_lyapunov(name):
    A, D, _ = CASES[name]
    b = np.linspace(1, 2, len(A))
    law = stationary_law(process_of(A, D, b))
    expected = kronecker(A, D)
    assert_close(in_own_units(law.covariance.numpy(), expected), in_own_units(expected, expected), 1e-10)
    assert_close(A @ law.mean.numpy(), b, 1e-10 * np.linalg.cond(A) ** 0.5)


def stiff_circuit() -> tuple[np.ndarray, np.ndarray]:
    """1 nF with 1 kΩ and 10 µH to ground, and through an ESR of 1 Ω to 1 pF: time constants of 1e-12 to 1e-6 s."""
    C = np.diag([1e-9, 1e-12])
    G = np.array([[1.001, -1.0], [-1.0, 1.0]])
    A = np.zeros((3, 3))
    A[:2, :2], A[0, 2], A[2, 0] = np.linalg.solve(C, G), 1 / (1e-9 * 1e-5), -1
    D = np.zeros((3, 3))
    D[0, 0] = 2 * 2.5e-12 * 1e-3 / 1e-9**2
    return A, D


def by_modes(A: np.ndarray, D: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Φ and Σ from eigenvectors with fifty digits: Σ = V [W_ij (1 - e^{-(a_i + a_j) t})/(a_i + a_j)] Vᵀ."""
    with mpmath.workdps(50):
        values, V = mpmath.eig(mpmath.matrix(A.tolist()))
        back = V**-1
        W = back * mpmath.matrix(D.tolist()) * back.T
        n = len(A)
        for i in range(n):
            for j in range(n):
                rate = values[i] + values[j]
                W[i, j] *= (1 - mpmath.exp(-rate * t)) / rate
        phi = V * mpmath.diag([mpmath.exp(-value * t) for value in values]) * back
        found = [np.array([[complex(x).real for x in row] for row in part.tolist()]) for part in (phi, V * W * V.T)]
    return found[0], found[1]


@pytest.mark.parametrize("t", [1e-13, 1e-12, 1e-9, 1e-7, 1e-6, 1e-4])
def test_stiff_circuits_keep_their_digits(t):
    A, D = stiff_circuit()
    rates = np.abs(np.linalg.eigvals(A))
    assert rates.max() > 1e12
    over = transition(process_of(A, D), t)
    phi, sigma = by_modes(A, D, t)
    size = np.array([1.0, 1.0, 1e-7])
    # What is left of a start is right to rounding of that start.
    found = over.matrix.numpy() * size / size[:, None] + np.eye(3)
    assert_close(found, phi * size / size[:, None] + np.eye(3), 1e-10, "matrix")
    assert_close(in_own_units(over.covariance.numpy(), sigma), in_own_units(sigma, sigma), 1e-10, "covariance")
    if t == 1e-4:
        law = stationary_law(process_of(A, D))
        assert_close(in_own_units(law.covariance.numpy(), sigma), in_own_units(sigma, sigma), 1e-10, "stationary")


def test_batches_and_times_broadcast():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(2, 5, 3, 3)) + 4 * np.eye(3)
    factor = rng.normal(size=(2, 5, 3, 1))
    D = factor @ factor.swapaxes(-1, -2)
    b = rng.normal(size=(2, 5, 3))
    H = rng.normal(size=(2, 3))
    process = process_of(A, D, b, H)
    times = torch.tensor([[0.0, 0.1, 2.0, 1e3]], dtype=torch.float64)
    start = torch.tensor(rng.normal(size=(2, 5, 3)))
    law = law_after(process, times, start)
    read, long_run = reading_law(process, law), stationary_covariance(process)
    assert law.covariance.shape == (2, 5, 1, 4, 3, 3)
    assert read.mean.shape == readings(process, law.mean).shape == (2, 5, 1, 4, 2)
    lagged = autocovariance(process, times)
    for i in range(2):
        for j in range(5):
            for k, t in enumerate(times[0].tolist()):
                phi, beta, sigma = (
                    van_loan(A[i, j], D[i, j], b[i, j], t, False) if t < 10 else (0 * A[i, j], None, None)
                )
                S = kronecker_lyapunov(A[i, j], D[i, j])
                assert_close(lagged[i, j, 0, k].numpy(), H @ phi @ S @ H.T, 1e-10)
                if t < 10:
                    assert_close(read.mean[i, j, 0, k].numpy(), H @ (phi @ start[i, j].numpy() + beta), 1e-10)
                    assert_close(read.covariance[i, j, 0, k].numpy(), H @ sigma @ H.T, 1e-10)
                else:
                    assert_close(read.mean[i, j, 0, k].numpy(), stationary_mean(process)[i, j].numpy(), 1e-10)
                    assert_close(read.covariance[i, j, 0, k].numpy(), H @ S @ H.T, 1e-10)
            assert_close(stationary_mean(process)[i, j].numpy(), H @ np.linalg.solve(A[i, j], b[i, j]), 1e-12)
            assert_close(long_run[i, j].numpy(), H @ S @ H.T, 1e-11)


def test_readouts_of_their_own_for_every_board_of_a_batch():
    rng = np.random.default_rng(1)
    A, D = rng.normal(size=(4, 3, 3)) + 4 * np.eye(3), np.broadcast_to(np.eye(3), (4, 3, 3))
    H = rng.normal(size=(4, 2, 3))
    process = process_of(A, D, np.ones((4, 3)), H)
    states = torch.tensor(rng.normal(size=(4, 7, 3)))
    assert_close(readings(process, states).numpy(), np.einsum("bij,btj->bti", H, states.numpy()), 1e-14)
    for k in range(4):
        one = process_of(A[k], D[k], np.ones(3), H[k])
        assert_close(stationary_covariance(process)[k].numpy(), stationary_covariance(one).numpy(), 1e-12)
        assert_close(autocovariance(process, 0.3)[k].numpy(), autocovariance(one, 0.3).numpy(), 1e-12)


def test_integrators_and_growing_modes_have_their_limits_at_finite_times():
    """(1 - e^{-wt})/w is t at w = 0, and needs no stable drift."""
    for w in (0.0, 1e-300, 1e-12, -0.5):
        law = law_after(process_of([[w]], [[2.0]], [3.0]), 1.7, torch.tensor([0.4], dtype=torch.float64))
        growth = 1.7 if abs(w) < 1e-9 else -np.expm1(-1.7 * w) / w
        double = 1.7 if abs(w) < 1e-9 else -np.expm1(-2 * 1.7 * w) / (2 * w)
        assert_close(law.mean.numpy(), np.array([0.4 * np.exp(-1.7 * w) + 3 * growth]), 1e-11)
        assert_close(law.covariance.numpy(), np.array([[2 * double]]), 1e-11)
    # A double integrator: x'' = noise of density 1; the textbook covariance.
    law = law_after(process_of([[0, 0], [-1, 0]], [[1, 0], [0, 0]]), 1e-3, torch.zeros(2, dtype=torch.float64))
    t = 1e-3
    expected = np.array([[t, t**2 / 2], [t**2 / 2, t**3 / 3]])
    assert_close(law.covariance.numpy() / expected, np.ones((2, 2)), 1e-14)


def test_euler_maruyama_tends_to_the_exact_law():
    """Its exact covariance, stationary and after t = 1, extrapolated in dt to the power 8."""
    A, D = rlc(np.array([[1.5, 0.4], [0.4, 1.0]]), 3.0, 0.5)
    unit = own_units(A)
    A, D = A * unit / unit[:, None] / OMEGA, D / unit / unit[:, None] / OMEGA
    D /= D.max()
    rows, after = [], []
    for power in range(8):
        steps = 50 * 2**power
        rows.append(euler_covariance(A, D, 1 / steps))
        S, F = np.zeros_like(A), np.eye(len(A)) - A / steps
        for _ in range(steps):
            S = F @ S @ F.T + D / steps
        after.append(S)
    for order in range(1, 8):
        rows, after = (
            [(2**order * fine - coarse) / (2**order - 1) for coarse, fine in itertools.pairwise(table)]
            for table in (rows, after)
        )
    process = process_of(A, D)
    assert_close(stationary_covariance(process).numpy(), rows[0], 1e-9)
    assert_close(transition(process, 1.0).covariance.numpy(), after[0], 1e-9)


def formula_for_normal_drifts(A: np.ndarray, D: np.ndarray, t: float) -> np.ndarray:
    """Covariance after t as thermox 0.0.6 has it, from the symmetric part of L⁻¹ A L, D = L Lᵀ."""
    L = np.linalg.cholesky(D)
    B = np.linalg.solve(L, A) @ L
    a, V = np.linalg.eigh((B + B.T) / 2)
    return L @ (V * (1 - np.exp(-2 * a * t)) / (2 * a)) @ V.T @ L.T


def test_the_formula_for_normal_drifts_is_wrong_on_boards_where_this_is_not():
    # Right where it should be: symmetric drift, noise alike.
    A, D = random_target(4, 10, 0), 2 * np.eye(4)
    found = transition(process_of(A, D), 0.7).covariance.numpy()
    assert_close(found, formula_for_normal_drifts(A, D, 0.7), 1e-12)
    # An oscillator of Q 2.5 with noise in both states: dφ = v dt, dv = -(φ + 0.4 v) dt.
    A, D = np.array([[0.0, -1.0], [1.0, 0.4]]), np.diag([1e-3, 0.8])
    exact = van_loan(A, D, np.zeros(2), 1.0, False)[2]
    assert_close(transition(process_of(A, D), 1.0).covariance.numpy(), exact, 1e-10)
    wrong = np.linalg.norm(formula_for_normal_drifts(A, D, 1.0) - exact) / np.linalg.norm(exact)
    assert wrong > 1e5  # 3e10 times
    # Unequal temperatures on a symmetric drift: wrong by per cents, so that nobody would see it.
    A, D = np.array([[2.0, -0.5, 0.2], [-0.5, 1.5, 0.3], [0.2, 0.3, 1.0]]), np.diag([1.0, 4.0, 9.0])
    exact = van_loan(A, D, np.zeros(3), 1.0, False)[2]
    assert_close(transition(process_of(A, D), 1.0).covariance.numpy(), exact, 1e-10)
    wrong = np.linalg.norm(formula_for_normal_drifts(A, D, 1.0) - exact) / np.linalg.norm(exact)
    assert 0.005 < wrong < 0.2
    # Noise in v only: the formula takes a Cholesky factor that does not exist.
    with pytest.raises(np.linalg.LinAlgError):
        formula_for_normal_drifts(*rlc(np.eye(1), 1.0), 1e-7)


def joint_law(A, D, b, H, times, mean, S) -> tuple[np.ndarray, np.ndarray]:
    """Mean (T n,) and covariance of all readings of one path, block by block, for a start N(mean, S) at times[0]."""
    d, T = len(A), len(times)
    means, covariance = np.zeros((T, d)), np.zeros((T, d, T, d))
    for i in range(T):
        if i:  # from one time to the next: over long times Van Loan's e^{At} leaves few digits
            phi, beta, sigma = van_loan(A, D, b, times[i] - times[i - 1], False)
            mean, S = phi @ mean + beta, phi @ S @ phi.T + sigma
        means[i], covariance[i, :, i] = mean, S
        for j in range(i):
            onward = expm(-A * (times[i] - times[j]))
            covariance[i, :, j] = onward @ covariance[j, :, j]
            covariance[j, :, i] = covariance[i, :, j].T
    H = np.kron(np.eye(T), H)
    return (H @ means.ravel()), H @ covariance.reshape(T * d, T * d) @ H.T


OSCILLATORS = np.array([[0.5, 0.1, 1.2, -0.2], [0.1, 0.7, -0.2, 0.9], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0]])
OSCILLATOR_NOISE = np.diag([1.0, 1.4, 0.0, 0.0])
GRIDS = {"equal": np.arange(12) * 0.4 + 3, "unequal": np.cumsum([0.0, 0.3, 0.9, 0.3, 0.2, 2.0, 0.3, 0.9])}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", ["whole state", "mixed whole state", "two readings", "one reading"])
def test_log_likelihood_is_that_of_the_joint_gaussian(grid, kind):
    rng = np.random.default_rng(3)
    H = {"whole state": np.eye(4), "two readings": np.eye(4)[:2]}.get(kind, rng.normal(size=(4, 4)))
    H = H[:1] if kind == "one reading" else H
    times, b = GRIDS[grid], np.array([0.3, -0.2, 0.1, 0.0])
    A = np.stack([OSCILLATORS, OSCILLATORS + 0.3 * np.eye(4)])
    process = process_of(A, OSCILLATOR_NOISE, b, H)
    law = joint_law(A[0], OSCILLATOR_NOISE, b, H, times, np.zeros(4), np.eye(4))
    record = rng.multivariate_normal(*law, size=(2, 3)).reshape(2, 3, len(times), len(H))
    S0 = np.eye(4) + 0.2
    mean0 = np.array([1.0, 0.0, -1.0, 0.5])
    stationary = log_likelihood(process, times, torch.tensor(record))
    given = log_likelihood(process, times, torch.tensor(record), Gaussian(torch.tensor(mean0), torch.tensor(S0)))
    assert stationary.shape == (2, 3)
    for k in range(2):
        starts = {"stationary": (np.linalg.solve(A[k], b), kronecker_lyapunov(A[k], OSCILLATOR_NOISE))}
        starts["given"] = mean0, S0
        for name, found in (("stationary", stationary), ("given", given)):
            mean, covariance = joint_law(A[k], OSCILLATOR_NOISE, b, H, times, *starts[name])
            expected = stats.multivariate_normal(mean, covariance).logpdf(record[k].reshape(3, -1))
            assert_close(found[k].numpy(), expected, 1e-10, name)


def test_log_likelihood_of_a_long_record_whose_filter_has_settled(monkeypatch):
    times, H, factored = np.arange(180) * 0.7, np.eye(4)[:2], []
    law = joint_law(OSCILLATORS, OSCILLATOR_NOISE, np.zeros(4), H, times, np.zeros(4), np.eye(4))
    record = np.random.default_rng(8).multivariate_normal(*law).reshape(180, 2)
    process = process_of(OSCILLATORS, OSCILLATOR_NOISE, H=H)
    start = Gaussian(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
    original = device_process._factor
    monkeypatch.setattr(device_process, "_factor", lambda S: factored.append(1) or original(S))
    found = log_likelihood(process, times, torch.tensor(record), start)
    assert_close(found.numpy(), np.array(stats.multivariate_normal(*law).logpdf(record.ravel())), 1e-10)
    assert len(factored) < 150  # of 180: the gain is no longer computed


@pytest.mark.parametrize("form", ["_walk", "_in_blocks", "_leap"])
@pytest.mark.parametrize(("points", "d"), [(41, 2), (66, 1)])
def test_paths_have_the_joint_law_exactly(form, points, d, monkeypatch):
    """A path is linear in its normals: with one of them 1 and all others 0 it gives a column of a factor of its law."""
    A = np.array([[0.3, 1.0], [-1.0, 0.0]])[:d, :d]
    D = np.array([[0.6, 0.0], [0.0, 0.0]])[:d, :d]
    b, start, times = np.ones(d), np.full(d, 0.7), np.arange(points) * 0.25
    steps = prepare_steps(process_of(A, D, b), times)
    monkeypatch.setattr(device_paths, "run", None)
    columns, count = [], [0]

    def one_hot(which):
        def fill(out):
            flat = out.zero_().view(-1)
            place = which - count[0]
            if 0 <= place < len(flat):
                flat[place] = 1
            count[0] += len(flat)
            return out

        return fill

    recursion = device_paths.Recursion(steps.matrix, steps.drive, steps.factor)
    for which in range(-1, 10**6):
        count[0] = 0
        path = torch.empty(1, 1, points, d, dtype=torch.float64)
        path[:, :, 0] = torch.tensor(start)
        getattr(device_paths, form)(recursion, path, one_hot(which))
        columns.append(path.numpy().ravel())
        if which + 1 >= count[0]:
            break
    factor = np.array(columns[1:]).T - columns[0][:, None]
    mean, covariance = joint_law(A, D, b, np.eye(d), times, start, np.zeros((d, d)))
    assert_close(columns[0], mean, 1e-12, "mean")
    assert_close(factor @ factor.T, covariance, 1e-12, "covariance")


def test_normals_are_normal_independent_and_of_any_number():
    def by_generator(out):
        return device_paths.normals(out, torch.Generator().manual_seed(5))(out)

    def by_pairs(out):  # what float64 takes where numpy does not reach
        return device_paths._by_box_and_muller(out, torch.Generator().manual_seed(5))

    ways = [(by_generator, torch.float64), (by_generator, torch.float32), (by_pairs, torch.float64)]
    for way, dtype in ways:
        for count in (200_001, 1):
            z = way(torch.empty(count, dtype=dtype)).double().numpy()
            assert np.isfinite(z).all()
            if count > 1:
                assert stats.kstest(z, "norm").pvalue > FALSE_ALARM
                # The two of one pair have their radius in common: squares must not be correlated.
                half = min(count, device_paths.PIECE) // 2
                for a, b in ((z[:half], z[half : 2 * half]), (z[:half] ** 2 - 1, z[half : 2 * half] ** 2 - 1)):
                    assert abs((a * b).mean()) / (a * b).std() * np.sqrt(half) < NORMAL_BOUND


def test_pairs_are_those_of_box_and_muller():
    half, found = 501, np.empty(1001)  # an odd number: the last pair is used by half
    device_paths._pairs(np.random.SFC64(3), found[:half], found[half:])
    u, v = np.random.Generator(np.random.SFC64(3)).random(2 * half).reshape(2, half)
    expected = np.sqrt(-2 * np.log1p(-u)) * np.array([np.cos(2 * np.pi * v), np.sin(2 * np.pi * v)])
    assert np.abs(found - expected.ravel()[:1001]).max() < 1e-14
    single = np.empty(1001, dtype=np.float32)
    device_paths._single_pairs(np.random.SFC64(3), single[:half], single[half:])
    words = [int(word) for word in np.random.SFC64(3).random_raw(half)]
    u, v = np.array([part for word in words for part in (word % 2**32, word // 2**32)]).reshape(2, half) / 2**32
    expected = np.sqrt(-2 * np.log(u)) * np.array([np.cos(2 * np.pi * v), np.sin(2 * np.pi * v)])
    assert np.abs(single - expected.ravel()[:1001]).max() < 1e-5


@pytest.mark.parametrize("d", [3, device_paths.NARROW + 1])
def test_products_are_sums_also_into_a_part_of_another_array(d):
    generator = torch.Generator().manual_seed(d)
    rows, matrix = (torch.randn(2, n, d, dtype=torch.float64, generator=generator) for n in (5, d))
    expected = np.array([[[sum(x * y) for y in matrix[b].numpy().T] for x in rows[b].numpy()] for b in range(2)])
    place = torch.zeros(2, 7, d, dtype=torch.float64)
    device_paths.product(rows, matrix, place[:, 1:6])
    assert_close(device_paths.product(rows, matrix).numpy(), expected, 1e-13)
    assert_close(place[:, 1:6].numpy(), expected, 1e-13)
    assert not place[:, [0, 6]].any()


def test_streams_of_normals_follow_the_generator_and_differ_from_each_other():
    generator = torch.Generator().manual_seed(5)
    first, second = (device_paths.normals(torch.empty(0, dtype=torch.float64), generator) for _ in range(2))
    a, b = (fill(torch.empty(50_000, dtype=torch.float64)).numpy() for fill in (first, second))
    assert abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) * np.sqrt(len(a)) < NORMAL_BOUND
    again = device_paths.normals(torch.empty(0, dtype=torch.float64), torch.Generator().manual_seed(5))
    assert (again(torch.empty(50_000, dtype=torch.float64)).numpy() == a).all()
    longer = again(torch.empty(50_000, dtype=torch.float64)).numpy()
    assert abs(a @ longer) / np.linalg.norm(a) / np.linalg.norm(longer) * np.sqrt(len(a)) < NORMAL_BOUND


def test_draws_of_readings_have_their_law_and_mean():
    A, D = np.array([[0.3, 1.0], [-1.0, 0.0]]), np.diag([0.6, 0.0])
    process = process_of(A, D, np.array([0.2, -0.5]), H=np.array([[1.0, 0.0], [1.0, 2.0]]))
    draws, law = reading_draws(process, 20_000, 4).numpy(), reading_law(process, stationary_law(process))
    whitened = np.linalg.solve(np.linalg.cholesky(law.covariance.numpy()), (draws - law.mean.numpy()).T)
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], whitened.size)
    assert low < (whitened**2).sum() < high
    assert np.abs(whitened.sum(axis=1) / np.sqrt(20_000)).max() < NORMAL_BOUND
    assert abs((whitened[0] * whitened[1]).sum()) / np.sqrt(20_000) < NORMAL_BOUND


@pytest.mark.parametrize(
    ("samples", "scratch", "form"), [(3, 8 << 20, "_in_blocks"), (3, 1 << 14, "_leap"), (400, 1, "_walk")]
)
def test_whole_paths_have_their_chi_square(samples, scratch, form, monkeypatch):
    """The joint law of 60 boards' paths whitens them to independent normals: their χ² and their sum."""
    original, used = getattr(device_paths, form), []
    monkeypatch.setattr(device_paths, form, lambda *given: used.append(form) or original(*given))
    monkeypatch.setattr(device_paths, "SCRATCH", scratch)
    boards, times = 60, np.arange(60) * 0.3
    A = np.stack([OSCILLATORS + 0.02 * k * np.eye(4) for k in range(boards)])
    b = np.array([0.3, -0.2, 0.1, 0.0])
    process = process_of(A, OSCILLATOR_NOISE, b, np.eye(4))
    start = stationary_draws(process, samples, 11)
    path = sample_paths(prepare_steps(process, times), start, 12, samples)
    assert path.shape == (boards, samples, 60, 4)
    assert len(used) == {"_in_blocks": 1, "_leap": 30, "_walk": 60}[form]
    total, sums = 0.0, 0.0
    for k in range(0, boards, 6):
        S = kronecker_lyapunov(A[k], OSCILLATOR_NOISE)
        mean, covariance = joint_law(A[k], OSCILLATOR_NOISE, b, np.eye(4), times, np.linalg.solve(A[k], b), S)
        white = np.linalg.solve(np.linalg.cholesky(covariance), (path[k].numpy().reshape(samples, -1) - mean).T)
        total, sums = total + (white**2).sum(), sums + white.sum()
    count = 10 * samples * 240
    assert FALSE_ALARM / 2 < stats.chi2.cdf(total, count) < 1 - FALSE_ALARM / 2
    assert abs(sums) / np.sqrt(count) < NORMAL_BOUND


def test_stationary_draws_have_their_chi_square_on_a_board_with_singular_noise():
    A, D = CASES["RLC at Q 30"][:2]
    draws = stationary_draws(process_of(A, D), 20_000, 4).numpy()
    white = np.linalg.solve(np.linalg.cholesky(kronecker(A, D)), draws.T)
    found = white @ white.T / 20_000
    for i in range(6):
        for j in range(i + 1):
            deviation = (found[i, j] - (i == j)) * np.sqrt(20_000 / (1 + (i == j)))
            assert abs(deviation) < stats.norm.isf(FALSE_ALARM / 21 / 2)


def test_states_without_noise_stay_on_their_course():
    # Of three states the last feels neither noise nor the others.
    A = np.array([[1.0, 0.3, 0.2], [0.0, 2.0, 0.0], [0.0, 0.0, 0.5]])
    steps = prepare_steps(process_of(A, np.diag([1.0, 0.0, 0.0])), np.arange(100) * 0.1)
    path = sample_paths(steps, torch.ones(3, dtype=torch.float64), 0).numpy()
    assert_close(path[:, 2], np.exp(-0.05 * np.arange(100)), 1e-13)
    assert_close(path[:, 1], np.exp(-0.2 * np.arange(100)), 1e-13)
    assert path[:, 0].std() > 0.1


@pytest.mark.parametrize("times", [np.arange(200) * 0.1, np.cumsum(np.tile([0.1, 0.7, 0.2], 20))], ids=["equal", "not"])
def test_a_seed_gives_the_same_bytes(times):
    process = process_of(np.stack([OSCILLATORS] * 3), OSCILLATOR_NOISE)
    steps, start = prepare_steps(process, times), torch.zeros(4, dtype=torch.float64)
    first, again, other = (sample_paths(steps, start, seed).numpy() for seed in (7, 7, 8))
    assert first.shape == (3, len(times), 4)
    assert (
        first.tobytes()
        == again.tobytes()
        == sample_paths(steps, start, torch.Generator().manual_seed(7)).numpy().tobytes()
    )
    assert np.abs(first - other)[:, 1:].min() > 0
    assert np.abs(first[0] - first[1])[1:, :2].min() > 0  # boards have noise of their own
    generator = torch.Generator().manual_seed(7)
    one, two = sample_paths(steps, start, generator), sample_paths(steps, start, generator)
    assert not torch.equal(one, two)
    assert stationary_draws(process, 5, 1).numpy().tobytes() == stationary_draws(process, 5, 1).numpy().tobytes()


def test_starts_take_the_axes_and_the_precision_of_the_process():
    process = process_of(np.stack([OSCILLATORS] * 3), OSCILLATOR_NOISE)
    steps = prepare_steps(process, np.arange(5) * 0.1)
    each = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    assert torch.equal(sample_paths(steps, each, 0)[:, 0], each)
    assert torch.equal(sample_paths(steps, each, 0, samples=2)[:, :, 0], each[:, None].expand(3, 2, 4))
    several = torch.arange(24, dtype=torch.float64).reshape(3, 2, 4)
    assert torch.equal(sample_paths(steps, several, 0, samples=2)[:, :, 0], several)
    single = prepare_steps(process.to(torch.float32), np.arange(5) * 0.1)
    assert sample_paths(single, each, 0).dtype == torch.float32


def test_times_equal_to_rounding_are_one_step():
    process = process_of([[1.0]], [[1.0]])
    assert prepare_steps(process, np.arange(10_000) * 0.1).matrix.shape == (1, 1, 1)
    assert prepare_steps(process, 1e6 + np.arange(10_000) * 0.1).matrix.shape == (1, 1, 1)
    mixed = prepare_steps(process, np.cumsum(np.tile([0.1, 0.7, 0.2], 300)))
    assert mixed.matrix.shape == (3, 1, 1)
    found = np.exp(-mixed.times.diff().numpy())
    assert_close(mixed.matrix[mixed.which, 0, 0].numpy(), found, 1e-12)


def test_single_precision_is_good_to_one_in_a_hundred_thousand():
    """Laws in own units, and a path from the same normals, on every case whose condition single precision can hold."""
    for name in ("1x1", "RLC at Q 30", "RLC of `fair`", "overdamped", "critically damped", "defective"):
        A, D, rate = CASES[name]
        single = process_of(A, D).to(torch.float32)
        sigma = kronecker(A, D)
        law = stationary_law(single).covariance.numpy()
        assert law.dtype == np.float32
        assert_close(in_own_units(law, sigma), in_own_units(sigma, sigma), 1e-5, name)
        for turns in (1e-3, 0.3, 5.0):
            exact, found = transition(process_of(A, D), turns / rate), transition(single, turns / rate)
            own = in_own_units(exact.covariance.numpy(), exact.covariance.numpy())
            assert_close(in_own_units(found.covariance.numpy(), exact.covariance.numpy()), own, 1e-5, name)
            size = np.sqrt(np.diag(sigma))
            matrix = exact.matrix.numpy() * size / size[:, None] + np.eye(len(A))
            assert_close(found.matrix.numpy() * size / size[:, None] + np.eye(len(A)), matrix, 1e-5, name)


def test_unstable_drifts_are_refused_by_place_and_real_part():
    A = np.broadcast_to(OSCILLATORS, (2, 3, 4, 4)).copy()
    A[1, 2] = OSCILLATORS - 0.75 * np.eye(4)
    worst = np.linalg.eigvals(A[1, 2]).real.min()
    process = process_of(A, OSCILLATOR_NOISE)
    for law in (stationary_law, stationary_mean, stationary_covariance, lambda p: stationary_draws(p, 3, 0)):
        with pytest.raises(InputError, match=rf"batch index \(1, 2\).*real part {worst:.3g} 1/s".replace("+", r"\+")):
            law(process)
    for A in ([[0.0]], [[0.0, 1.0], [-1.0, 0.0]], [[-1e-3]]):
        with pytest.raises(InputError, match="the drift is unstable: an eigenvalue has the real part"):
            stationary_law(process_of(A, np.eye(len(A))))
        with pytest.raises(InputError, match="the drift is unstable"):
            stationary_law(process_of(A, np.eye(len(A)), dtype=torch.float32))
    with pytest.raises(
        InputError, match=r"too close to unstable for this precision: .* rate 1e-09 1/s, its fastest 1 1/s"
    ):
        stationary_law(process_of(np.diag([1.0, 1e-9]), np.eye(2), dtype=torch.float32))
    assert_close(stationary_covariance(process_of(np.diag([1.0, 1e-9]), np.eye(2))), np.diag([0.5, 5e8]), 1e-10)


def test_bad_input_is_refused_in_one_sentence():
    process = process_of(OSCILLATORS, OSCILLATOR_NOISE, H=np.eye(4)[:2])
    with pytest.raises(InputError, match="of one d, got the shapes"):
        process_of(np.eye(3), np.eye(2))
    with pytest.raises(InputError, match=r"symmetric diffusion, got entries that differ by 0\.5"):
        process_of(np.eye(2), [[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(InputError, match="finite entries in the diffusion"):
        process_of(np.eye(2), np.full((2, 2), np.nan))
    with pytest.raises(InputError, match="times of zero or more, got -1"):
        transition(process, -1.0)
    for times, message in (([0.0], "two or more"), ([0.0, 1.0, 1.0], "increasing"), ([[0.0, 1.0]], "one row")):
        with pytest.raises(InputError, match=message):
            prepare_steps(process, times)
    with pytest.raises(InputError, match="positive semidefinite diffusion"):
        prepare_steps(process_of(np.eye(2), [[1.0, 2.0], [2.0, 1.0]]), [0.0, 1.0])
    with pytest.raises(InputError, match="without negative variances, got -1"):
        process_of(np.eye(2), np.diag([1.0, -1.0]))
    with pytest.raises(InputError, match="all float64 or all float32"):
        process.to(torch.float16)
    with pytest.raises(InputError, match="batch axes that broadcast"):
        replace(process, bias=torch.zeros(3, 4).double(), readout=torch.zeros(2, 2, 4).double())
    with pytest.raises(InputError, match="at least one time"):
        transition(process, [])
    with pytest.raises(InputError, match="a record without gaps"):
        log_likelihood(process, [0.0, 1.0], torch.full((2, 2), torch.nan).double())
    with pytest.raises(InputError, match=r"expected a record of shape \('…', 2, 2\).*got \(3, 2\)"):
        log_likelihood(process, [0.0, 1.0], torch.zeros(3, 2, dtype=torch.float64))
    twice = process_of(OSCILLATORS, OSCILLATOR_NOISE, H=np.eye(4)[[0, 0]])
    with pytest.raises(InputError, match="no density"):
        log_likelihood(twice, [0.0, 1.0], torch.zeros(2, 2, dtype=torch.float64))
    # Each reading the sum of two others but for rounding, so that some Cholesky factors exist.
    for seed in range(20):
        H = np.random.default_rng(seed).normal(size=(2, 4))
        sums = process_of(OSCILLATORS, OSCILLATOR_NOISE, H=[*H, H[0] + H[1]])
        with pytest.raises(InputError, match="no density"):
            log_likelihood(sums, [0.0, 1.0], torch.zeros(2, 3, dtype=torch.float64))
    singular = process_of(OSCILLATORS, OSCILLATOR_NOISE, H=np.eye(4)[[0, 0, 1, 2]])
    with pytest.raises(InputError, match="full rank"):
        log_likelihood(singular, [0.0, 1.0], torch.zeros(2, 4, dtype=torch.float64))


def test_process_of_a_copy_has_the_covariance_of_its_reduced_circuit():
    made = make_design(FAIR)
    device, _ = calibrate(made, measured_exactly(made), "exact")
    for copy in range(3):
        process = program_process(device, copy, made.program)
        expected = ou.reading_covariance(predict(device, copy, made.program))
        assert_close(stationary_covariance(process), expected, 1e-10)
        assert torch.count_nonzero(stationary_mean(process)) == 0
    with pytest.raises(InputError, match="copies 0 to 2"):
        program_process(device, 3, made.program)


def test_process_of_many_circuits_has_the_lagged_covariances_of_each():
    made = make_design(FAIR, FAIR_FACTOR)
    circuits = assemble_many(made.board, made.program, made.copies, Conditions())
    process = circuit_process(circuits)
    lags = torch.arange(5, dtype=torch.float64) * made.program.period
    found = autocovariance(process, lags).numpy()
    for k in range(len(made.copies)):
        expected = ou.lagged_covariances(circuits[k], made.program.period, held=False)[:5]
        assert_close(found[k], expected, 1e-9)


def test_process_of_an_unstable_circuit_is_refused():
    made = make_design(FAIR)
    circuit = assemble(made.board, made.program, made.copies[0], Conditions())
    broken = replace(circuit, conductance=-circuit.conductance)
    with pytest.raises(InputError, match="unstable"):
        stationary_covariance(circuit_process(broken))

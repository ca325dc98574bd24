"""Exact device dynamics against dense matrix exponentials, and its limits."""

import platform
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from compare import FALSE_ALARM, assert_close
from reference import dense_device_state, softmax_ggn
from scipy.linalg import expm
from scipy.stats import norm

from circuits import InputError
from tngd.curvature import Factor, Rows
from tngd.curvature.factor import Outer, Positions, dense_factor
from tngd.device import device_state, dynamics, held_curvature
from tngd.device.dynamics import Held

BOUND_OF_SIX = norm.isf(FALSE_ALARM / 12)  # two-sided, six numbers in one test


def problem(rows: int = 5, size: int = 9, seed: int = 0, zero: int = 0):
    """R, g, x0 and white numbers; `zero` rows of R are combinations of others, so K has eigenvalues of 0."""
    generator = np.random.default_rng(seed)
    R = generator.standard_normal((rows, size))
    for k in range(zero):
        R[-1 - k] = R[0] - R[k + 1]
    return R, *generator.standard_normal((3, size))


def state(R, g, x0, damping, time, lanczos=None, noise=0.0, white=None, dtype=torch.float64):
    R, g = torch.tensor(R, dtype=dtype), torch.tensor(g, dtype=dtype)
    start = None if x0 is None else torch.tensor(x0, dtype=dtype)
    held = held_curvature(dense_factor(R), g, lanczos)
    white = None if white is None else torch.tensor(white, dtype=dtype)
    return device_state(held, g, start, damping, time, noise, white).numpy()


@pytest.mark.parametrize("time", [0.0, 1e-9, 1e-3, 0.3, 5.0, 1e3, float("inf")])
@pytest.mark.parametrize("damping", [1e-6, 0.01, 1.0])
@pytest.mark.parametrize("zero", [0, 2])
@pytest.mark.parametrize("shape", [(5, 9), (1, 1), (12, 7)])
def test_state_is_the_dense_matrix_exponential(time, damping, zero, shape):
    if zero and shape == (1, 1):
        zero = 0
    R, g, x0, _ = problem(*shape, zero=zero)
    A = R.T @ R + damping * np.eye(shape[1])
    # Rounding is magnified by the condition number of K + λI, up to 4e7 here at the smallest damping.
    tolerance = max(1e-10, (1 + np.linalg.norm(R, 2) ** 2 / damping) * np.finfo(float).eps)
    assert_close(state(R, g, x0, damping, time), dense_device_state(A, g, x0, time), tolerance)
    assert_close(state(R, g, None, damping, time), dense_device_state(A, g, 0 * g, time), tolerance)


def test_state_without_damping_at_finite_times():
    R, g, x0, _ = problem(3, 6)
    assert_close(state(R, g, x0, 0.0, 2.0), dense_device_state(R.T @ R + 1e-13 * np.eye(6), g, x0, 2.0), 1e-10)


def test_no_curvature_at_all():
    _, g, x0, _ = problem()
    assert_close(state(np.zeros((4, 9)), g, x0, 0.5, 3.0), dense_device_state(0.5 * np.eye(9), g, x0, 3.0), 1e-12)


def test_eigenvalues_near_zero_keep_the_precision():
    # Singular values from 1 to 1e-9: eigenvalues of K across the switch to the derivative, far below and above it.
    generator = np.random.default_rng(1)
    Q, _ = np.linalg.qr(generator.standard_normal((12, 12)))
    R = np.diag(np.logspace(0, -9, 10)) @ Q[:10]
    g, x0 = generator.standard_normal((2, 12))
    for time in (0.1, 10.0, float("inf")):
        assert_close(state(R, g, x0, 0.01, time), dense_device_state(R.T @ R + 0.01 * np.eye(12), g, x0, time), 1e-10)


@pytest.mark.parametrize("time", [0.2, 5.0, float("inf")])
def test_single_precision_is_true_to_the_condition_number(time):
    R, g, x0, _ = problem(40, 60)
    A = R.T @ R + 0.05 * np.eye(60)
    found = state(R, g, x0, 0.05, time, dtype=torch.float32)
    expected = dense_device_state(A, g, x0, time)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < np.linalg.cond(A) * np.finfo(np.float32).eps
    assert error > 0


@pytest.mark.parametrize("time", [0.2, 5.0, float("inf")])
def test_lanczos_converges_and_exhausted_is_exact(time):
    R, g, x0, _ = problem(30, 50)
    R = np.diag(np.logspace(0, -3, 30)) @ R
    exact = state(R, g, x0, 0.1, time)
    errors = [np.linalg.norm(state(R, g, x0, 0.1, time, m) - exact) / np.linalg.norm(exact) for m in (2, 5, 12, 29)]
    assert errors[-1] < 1e-9
    assert errors[0] > errors[1] > errors[2]
    assert_close(state(R, g, x0, 0.1, time, 30), exact, 1e-10)
    # A Krylov space of dimension 2 is exhausted after two steps; the others must not bring noise in.
    few = np.zeros((30, 50))
    few[:2] = R[:2]
    assert_close(state(few, g, x0, 0.1, time, 15), state(few, g, x0, 0.1, time), 1e-10)


def test_lanczos_without_a_gram_matrix_is_lanczos(monkeypatch):
    R, g, x0, _ = problem(30, 50)
    direct = state(R, g, x0, 0.1, 3.0, 8)
    monkeypatch.setattr(dynamics, "LARGEST", 10)
    assert dynamics.held_curvature(dense_factor(torch.tensor(R)), torch.tensor(g), 8).K is None
    assert_close(state(R, g, x0, 0.1, 3.0, 8), direct, 1e-12)


def wide(spectrum: np.ndarray, size: int, seed: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """R with these singular values and any singular vectors, and g."""
    generator = np.random.default_rng(seed)
    left, _ = np.linalg.qr(generator.standard_normal((len(spectrum), len(spectrum))))
    right, _ = np.linalg.qr(generator.standard_normal((size, len(spectrum))))
    return left @ (spectrum[:, None] * right.T), generator.standard_normal(size)


# Singular values of R, whether conjugate gradients do, and the damping: 240 rows allow 20 steps.
SPECTRA = {
    "few large": (np.r_[np.linspace(3, 1, 4), np.full(236, 1e-3)], True, 0.05),
    "flat": (np.ones(240), True, 1e-4),
    "nothing": (np.zeros(240), True, 0.1),
    "decaying": (np.logspace(0, -4, 240), False, 1e-5),
    "slow at the end": (np.r_[np.full(200, 1.0), np.linspace(0.9, 0.1, 40)], False, 1e-4),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SPECTRA)
def test_a_curvature_used_once_is_solved_to_rounding_without_its_gram_matrix_or_with_it(name, dtype):
    spectrum, quick, damping = SPECTRA[name]
    R, g = wide(spectrum, 300)
    R, g = torch.tensor(R, dtype=dtype), torch.tensor(g, dtype=dtype)
    held = held_curvature(dense_factor(R), g, once=True)
    assert held.K is None
    found = device_state(held, g, g, damping, float("inf"))
    assert held.formed != quick
    A = R.double().T @ R.double() + damping * torch.eye(300).double()
    expected = torch.linalg.solve(A, g.double())
    condition = (float(spectrum.max()) ** 2 + damping) / damping
    error = float((found.double() - expected).norm() / expected.norm())
    assert error < 4 * condition * torch.finfo(dtype).eps
    # A second gradient, and a finite time, which needs all eigenvectors.
    assert_close(device_state(held, g, g, damping, float("inf")).numpy(), found.numpy(), 0)
    late = device_state(held_curvature(dense_factor(R), g), g, g, damping, 7.0)
    assert_close(device_state(held, g, g, damping, 7.0).numpy(), late.numpy(), 0)
    assert held.formed


def test_few_rows_have_their_gram_matrix_at_once():
    R, g = wide(np.ones(100), 150)
    assert held_curvature(dense_factor(torch.tensor(R)), torch.tensor(g), once=True).K is not None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_a_curvature_that_is_not_finite_is_refused_without_a_gram_matrix_too(bad):
    R, g = wide(np.ones(240), 300)
    R[7, 9] = bad
    R, g = torch.tensor(R), torch.tensor(g)
    with pytest.raises(InputError, match="the curvature is not finite"):
        device_state(held_curvature(dense_factor(R), g, once=True), g, None, 0.1, float("inf"))


@pytest.mark.parametrize("largest", [4096, 10])
def test_products_with_k_in_parts_are_those_with_k(largest, monkeypatch):
    monkeypatch.setattr(dynamics, "LARGEST", largest)
    generator = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    blocks = (
        Outer(normal(6, 3), normal(6, 2, 4), 0, 12),
        Rows(normal(12, 5), ((16, 5),)),
        Rows(normal(12, 4), ((21, 4),)),
    )
    sums = Positions(normal(6, 1, 3, 7), normal(6, 2, 1, 2, 7), 25, 31)
    v = normal(12)
    for held in (Factor(blocks, 12, 25), Factor((*blocks, sums), 12, 33), Factor((), 12, 25)):
        R = held.dense(v)
        assert_close(Held(held, None).product(v).numpy(), (R @ (R.T @ v)).numpy(), 1e-12)
        assert (Held(held, None).parts is None) == (largest == 10 or held.blocks != blocks)


def test_a_start_that_is_the_gradient_itself_changes_nothing():
    R, g, _, _ = problem()
    R, g = torch.tensor(R), torch.tensor(g)
    held = held_curvature(dense_factor(R), g)
    for time in (0.0, 0.7, float("inf")):
        same, copied = (device_state(held, g, x0, 0.1, time) for x0 in (g, g.clone()))
        assert_close(same.numpy(), copied.numpy(), 1e-13)


@pytest.mark.parametrize("spectrum", [(2.0, 1.0, 0.5, 0.0), (1.0, 1e-3, 1e-4, 1e-5)])
@pytest.mark.parametrize("time", [0.4, 20.0, float("inf")])
def test_noise_has_exactly_its_covariance(time, spectrum):
    # The noise is linear in the white numbers: its matrix B must give B Bᵀ = κ₀ A⁻¹ (I - e^{-2At}).
    R, g, *_ = problem(4, 7)
    R = np.diag(spectrum) @ np.linalg.qr(R.T)[0].T
    noise, damping = 0.3, 0.05
    quiet = state(R, 0 * g, None, damping, time)
    B = np.stack([state(R, 0 * g, None, damping, time, noise=noise, white=e) - quiet for e in np.eye(7)], axis=1)
    A = R.T @ R + damping * np.eye(7)
    left = np.zeros_like(A) if np.isinf(time) else expm(-2 * A * time)
    assert_close(B @ B.T, noise * np.linalg.solve(A, np.eye(7) - left), 1e-12)


def test_exact_noise_is_that_of_the_simulated_equation():
    # Euler-Maruyama as printed in the paper, signs put right; 4000 runs. The variance of each entry over them is known
    # to a relative sqrt(2/4000); a bound for six numbers
    # together, and the step's own bias of dt·a/2.
    R, g, *_ = problem(2, 3, seed=3)
    R, damping, noise, time, dt = R / 2, 0.2, 0.1, 1.5, 0.005
    A = R.T @ R + damping * np.eye(3)
    generator = np.random.default_rng(5)
    x = np.tile(g, (4000, 1))
    for _ in range(round(time / dt)):
        x = x - dt * (x @ A - g) + np.sqrt(2 * noise * dt) * generator.standard_normal(x.shape)
    quiet = state(R, g, g, damping, time)
    B = np.stack([state(R, g, g, damping, time, noise=noise, white=e) - quiet for e in np.eye(3)], axis=1)
    bias = dt * np.linalg.eigvalsh(A)[-1]
    assert np.abs(x.var(axis=0) / np.diag(B @ B.T) - 1).max() < BOUND_OF_SIX * np.sqrt(2 / 4000) + bias
    deviation = np.abs(x.mean(axis=0) - quiet) / np.sqrt(np.diag(B @ B.T) / 4000)
    assert deviation.max() < BOUND_OF_SIX + bias * np.abs(quiet).max() / np.sqrt(np.diag(B @ B.T).min() / 4000)


def test_softmax_curvature_has_a_zero_eigenvalue_a_sample_and_the_state_is_finite():
    generator = np.random.default_rng(0)
    J, z = generator.standard_normal((4, 3, 20)), 3 * generator.standard_normal((4, 3))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    S = np.sqrt(p)[:, :, None] * (np.eye(3) - p[:, None, :])  # rank 2 of 3 a sample: K has 4 eigenvalues of 0
    R = np.concatenate(S @ J) / 2
    g = generator.standard_normal(20)
    for time in (0.5, 50.0, float("inf")):
        expected = dense_device_state(softmax_ggn(J, z) + 0.01 * np.eye(20), g, g, time)
        assert_close(state(R, g, g, 0.01, time), expected, 1e-10)


@pytest.mark.parametrize(
    ("damping", "time", "noise", "word"),
    [(-1.0, 1.0, 0.0, "damping"), (0.1, -1.0, 0.0, "time"), (0.1, float("nan"), 0.0, "time"),
     (0.1, 1.0, -1.0, "noise"), (0.0, float("inf"), 0.0, "inf without damping")],
)  # fmt: skip
def test_impossible_times_and_dampings_are_refused(damping, time, noise, word):
    R, g, x0, white = problem()
    with pytest.raises(InputError, match=word):
        state(R, g, x0, damping, time, noise=noise, white=white)


FAULTS = """
import resource, torch
from torch import nn
from tngd.optimizer import TNGD
torch.set_num_threads(1)
model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1600, 10))
x, y = torch.randn(64, 1, 12, 12), torch.randint(10, (64,))
optimizer, before = TNGD(model), 0
for k in range(24):
    if k == 16:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    optimizer.step(lambda: (model(x), y))
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 8)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how memory is kept is the C library's")
def test_a_step_finds_the_memory_of_the_last_one_still_its_own():
    # In a process of its own: what others allocate changes what the C library keeps. A step in fresh memory faults in
    # every page of K alone, and those of its rows and gradients besides.
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 576**2 * 4 / resource.getpagesize()

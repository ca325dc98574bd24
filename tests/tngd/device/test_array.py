"""The full-size array: dynamics that are not symmetric against dense exponentials, errors of elements, converters."""

import copy
from dataclasses import replace
from math import inf

import numpy as np
import pytest
import torch
from compare import FALSE_ALARM, assert_close
from reference import dense_device_state
from scipy.linalg import expm, solve_continuous_lyapunov
from scipy.stats import norm
from simulated import rough_device
from small_network import batches, network
from torch import nn

from circuits import InputError
from circuits.model import Converter, Device, Estimate, Interface, ideal_device
from circuits.model.converters import convert as numpy_convert
from circuits.synthesis import build_board
from tngd.curvature.factor import dense_factor
from tngd.device import Array, array_of, low_rank_state, program_array
from tngd.device.array import noise_level, noise_of, readings
from tngd.device.converters import convert
from tngd.device.low_rank import LowRank, is_stable
from tngd.optimizer import TNGD

JORDAN = np.array([[0.7, 1.0, 0.0], [0.0, 0.7, 1.0], [0.0, 0.0, 0.7]])


def factors(case: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lᵀ and Mᵀ, (r, N)."""
    generator = np.random.default_rng(seed)
    Q = np.linalg.qr(generator.standard_normal((9, 9)))[0]
    left, right = generator.standard_normal((2, 4, 9))
    cases = {
        "near symmetric": lambda: (left, left * (1 + 0.1 * generator.standard_normal(left.shape))),
        "not normal": lambda: (left, right @ Q + left),
        "complex pairs": lambda: (left, np.diag([1, -1, 2, 1]) @ left[[1, 0, 3, 2]]),
        "defective": lambda: (Q[:3], JORDAN @ Q[:3] + Q[4:7]),
        "nilpotent": lambda: (Q[:3], 3 * np.eye(3, k=1) @ Q[:3] + Q[4:7]),
        "orthogonal": lambda: (Q[:3], 5 * Q[3:6]),
        "no rows": lambda: (left[:0], right[:0]),
        "one row": lambda: (left[:1], left[:1] + 0.3 * right[:1]),
        "one parameter": lambda: (np.array([[2.0]]), np.array([[1.5]])),
        "more rows than parameters": lambda: (left.T[:, :3], left.T[:, :3] + 0.2 * right.T[:, :3]),
        "rows alike": lambda: (left[[0, 0, 1]], right[[0, 0, 1]] * 0.2 + left[[0, 0, 1]]),
    }
    return cases[case]()


CASES = [
    "near symmetric", "not normal", "complex pairs", "defective", "nilpotent", "orthogonal", "no rows", "one row",
    "one parameter", "more rows than parameters", "rows alike",
]  # fmt: skip


def low_rank(left, right, dtype=torch.float64) -> LowRank:
    return LowRank(torch.tensor(left, dtype=dtype), torch.tensor(right, dtype=dtype))


def settled(A, g):
    return np.linalg.solve(A, g)


@pytest.mark.parametrize("time", [0.0, 1e-4, 0.3, 7.0, inf])
@pytest.mark.parametrize("damping", [0.0, 0.05, 2.0])
@pytest.mark.parametrize("case", CASES)
def test_state_is_the_dense_matrix_exponential(case, damping, time):
    left, right = factors(case)
    g, x0 = np.random.default_rng(3).standard_normal((2, left.shape[1]))
    A = damping * np.eye(len(g)) + left.T @ right
    device, G = low_rank(left, right), torch.tensor(g)
    if time == inf:
        if not damping or np.linalg.eigvals(A).real.min() <= 0:
            return
        assert_close(low_rank_state(device, G, torch.tensor(x0), damping, time), np.linalg.solve(A, g), 1e-10)
        return
    # What rounding may do: a step of e^{-At} costs |A| t of it, and growth on the way its square.
    tolerance = max(1e-10, 1e-14 * np.linalg.norm(expm(-A * time)) * np.linalg.norm(A) * time)
    for begin in (x0, 0 * x0, g):
        expected = dense_device_state(A, g, begin, time)
        assert_close(low_rank_state(device, G, torch.tensor(begin), damping, time), expected, tolerance)
    assert_close(low_rank_state(device, G, None, damping, time), dense_device_state(A, g, 0 * g, time), tolerance)
    assert_close(low_rank_state(device, G, G, damping, time), dense_device_state(A, g, g, time), tolerance)


def test_long_times_end_in_the_solution():
    left, right = factors("near symmetric")
    g = np.random.default_rng(3).standard_normal(9)
    found = low_rank_state(low_rank(left, right), torch.tensor(g), torch.tensor(g), 0.05, 2000.0)
    assert_close(found, np.linalg.solve(0.05 * np.eye(9) + left.T @ right, g), 1e-9)


@pytest.mark.parametrize("time", [0.3, 7.0, inf])
def test_single_precision_is_true_to_the_condition_number(time):
    generator = np.random.default_rng(4)
    left = generator.standard_normal((40, 60))
    right = left * (1 + 0.02 * generator.standard_normal(left.shape))
    A = 0.5 * np.eye(60) + left.T @ right
    g = generator.standard_normal(60)
    device = low_rank(left, right, torch.float32)
    found = low_rank_state(device, torch.tensor(g).float(), torch.tensor(g).float(), 0.5, time).numpy()
    expected = np.linalg.solve(A, g) if time == inf else dense_device_state(A, g, g, time)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 0 < error < np.linalg.cond(A) * np.finfo(np.float32).eps


def noise_matrix(device: LowRank, size: int, damping: float, time: float) -> np.ndarray:
    """The noise is linear in its white numbers: the matrix of that map."""
    zero = torch.zeros(size, dtype=torch.float64)
    whites = torch.eye(size, dtype=torch.float64)
    return np.stack([low_rank_state(device, zero, None, damping, time, 0.3, e).numpy() for e in whites], axis=1)


@pytest.mark.parametrize("time", [1e-3, 0.4, 6.0, inf])
@pytest.mark.parametrize("case", CASES)
def test_noise_has_the_covariance_of_the_lyapunov_equation(case, time):
    left, right = factors(case)
    size, damping = left.shape[1], 0.4
    A = damping * np.eye(size) + left.T @ right
    stable = np.linalg.eigvals(A).real.min() > 1e-3
    if time == inf and not stable:
        with pytest.raises(InputError, match="not stable"):
            noise_matrix(low_rank(left, right), size, damping, time)
        return
    B = noise_matrix(low_rank(left, right), size, damping, time)
    if time < 0.1:  # Van Loan's block exponential
        blocks = expm(np.block([[-A, 0.6 * np.eye(size)], [np.zeros_like(A), A.T]]) * time)
        expected = blocks[:size, size:] @ expm(-A * time).T
    else:  # without a stationary state too: any solution of the equation will do
        expected = solve_continuous_lyapunov(A, 0.6 * np.eye(size))
        if time < inf:
            expected = expected - expm(-A * time) @ expected @ expm(-A * time).T
    assert_close(B @ B.T, expected, 1e-10)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("damping", [1e-3, 0.4, 2.0])
def test_stability_is_that_of_the_dense_matrix(case, damping):
    for sign in (1, -1):
        left, right = factors(case)
        lowest = np.linalg.eigvals(damping * np.eye(left.shape[1]) + sign * left.T @ right).real.min()
        assert is_stable(low_rank(left, sign * right), damping, inf) == (lowest > 0)


def test_stable_though_the_symmetric_part_is_not():
    left, _ = factors("defective")
    A = low_rank(left, (0.7 * np.eye(3) + 3 * np.eye(3, k=1)) @ left)
    assert np.linalg.eigvalsh((A.K + A.K.T).numpy() / 2).min() < -0.5
    assert is_stable(A, 0.01, inf)


def test_an_undamped_array_without_growth_is_stable_for_a_finite_time_only():
    left, _ = factors("rows alike")
    assert is_stable(low_rank(left, left), 0.0, 3.0)
    assert not is_stable(low_rank(left, -left), 0.0, 3.0)


@pytest.mark.parametrize("bits", [None, 1, 3, 8, 24])
@pytest.mark.parametrize("to_analog", [False, True])
@pytest.mark.parametrize(("noise", "offset"), [(0.0, 0.0), (0.1, -0.2)])
def test_converters_follow_the_law_of_the_interface(bits, to_analog, noise, offset):
    rng = np.random.default_rng(2)
    values = np.concatenate(
        [2 * rng.standard_normal(200), [0.0, 0.5, -0.5, 1.0, 4.0, -4.0, 40.0], np.arange(-9, 9) / 4]
    )
    white = np.random.default_rng(5).standard_normal(len(values))
    for rms in (1.0, 0.3, 0.0):
        converter = Converter(bits, 2.0, noise, offset)
        expected = numpy_convert(values, converter, rms, np.random.default_rng(5), to_analog)
        found = convert(
            torch.tensor(values), converter, torch.tensor(rms, dtype=torch.float64), torch.tensor(white), to_analog
        )
        assert_close(found.values.numpy(), expected.values, 1e-15)
        assert found.saturated == expected.saturated
        assert (found.saturated > 0) == (bits is not None)
    with pytest.raises(InputError, match="normal numbers"):
        convert(torch.tensor(values), Converter(noise=0.1), torch.tensor(1.0))


def rows(seed: int, shape=(6, 11)) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape)) * torch.logspace(0, -1, shape[0])[:, None]


def dense_array(array: Array, R: torch.Tensor) -> np.ndarray:
    held = program_array(array, dense_factor(R), R).matrix
    return (held.left.T @ held.right).numpy()


def element_gains(array: Array) -> tuple[np.ndarray, np.ndarray]:
    """γ γ″ of the forward and of the transposed pass, seen one element at a time: A~ of a matrix of ones."""
    R = torch.ones(array.shape, dtype=torch.float64)
    held = program_array(array, dense_factor(R), R).matrix
    return held.right.numpy(), held.left.numpy()


def test_an_exact_array_holds_the_curvature():
    R = rows(1)
    R[2] = 0  # a sample that has no curvature
    assert_close(dense_array(Array((6, 11)), R), (R.T @ R).numpy(), 1e-14)
    assert_close(dense_array(Array((9, 11)), R), (R.T @ R).numpy(), 1e-14)


def test_every_element_has_an_error_of_its_own_that_stays(monkeypatch):
    monkeypatch.setattr("tngd.device.array.CHUNK", 4)
    array = Array((6, 11), deviation=0.02, seed=4)
    forward, back = element_gains(array)
    for R in (rows(1), -rows(2)[:4], rows(3)):
        held = program_array(array, dense_factor(R), R).matrix
        assert_close(held.right.numpy(), R.numpy() * forward[: len(R)], 1e-12)
        assert_close(held.left.numpy(), R.numpy() * back[: len(R)], 1e-12)
    assert len(np.unique(forward)) == len(np.unique(back)) == 66
    monkeypatch.setattr("tngd.device.array.KEPT", 0)
    again = Array((6, 11), deviation=0.02, seed=4)
    assert np.array_equal(element_gains(again)[0], forward)
    assert not again.gains
    assert array.gains
    for other in (replace(again, seed=5), replace(array, seed=5)):
        assert not np.allclose(element_gains(other)[0], forward)


def test_errors_have_the_spread_they_are_given():
    # 80,000 elements: the mean is known to 1/283 of the deviation and the deviation to 1/400 of itself; sorting at
    # three deviations takes 1.3 % from it. Rows have the error of H in common, hence each less its mean.
    array = Array((80, 1000), mean=1.1, deviation=0.03, seed=1)
    bound = norm.isf(FALSE_ALARM / 8)
    clipped = np.random.default_rng(0).standard_normal(10**6).clip(-3, 3).std()
    forward, back = (np.log(part) for part in element_gains(array))
    for part in (forward - forward.mean(1, keepdims=True), back - back.mean(1, keepdims=True)):
        own = np.exp(part).std() * np.sqrt(1000 / 999)
        # Of the second order in the deviation: the logarithm.
        assert abs(own / (0.03 / 1.1 * clipped) - 1) < bound / np.sqrt(2 * 80_000) + 0.03**2 + 2e-3
    level = np.log(1.1) * 1.5  # γ √γ″
    assert abs(forward.mean() - level) < bound * 0.03 / 1.1 * np.sqrt(1 / 80_000 + 0.25 / 80) + 0.03**2
    across = (forward - forward.mean(1, keepdims=True)) * (back - back.mean(1, keepdims=True))
    assert abs(across.mean()) < bound * (0.03 / 1.1) ** 2 / np.sqrt(80_000)


def test_two_passes_are_not_symmetric_and_one_is():
    R = rows(1)
    for shared in (True, False):
        A = dense_array(Array((6, 11), deviation=0.05, shared=shared), R)
        assert (np.linalg.norm(A - A.T) < 1e-14 * np.linalg.norm(A)) == shared
        assert 0.005 < np.linalg.norm(A - (R.T @ R).numpy()) / np.linalg.norm(A) < 0.2


def test_elements_are_codes_of_rows_of_one_rms():
    R = rows(1).numpy()
    scale = np.sqrt((R**2).mean(1))
    step = 4.0 / 2**3
    J = np.clip(np.round(R / scale[:, None] / step), -8, 7) * step
    h_step = step * np.sqrt((scale**4).mean())
    h = np.clip(np.round(scale**2 / h_step), -8, 7) * h_step
    array = Array((6, 11), elements=Converter(4))
    assert_close(dense_array(array, torch.tensor(R)), J.T @ np.diag(h) @ J, 1e-13)
    narrow = replace(array, elements=Converter(4, range=1.0))
    saturated = int((np.abs(np.round(R / scale[:, None] * 8) + 0.5) > 8).sum()) + int(
        (np.round(scale**2 / h_step * 4) > 7).sum()
    )
    held = program_array(narrow, dense_factor(torch.tensor(R)), torch.tensor(R))
    assert held.saturated == saturated > 0


def test_warmth_scales_the_elements_and_the_damping():
    R = rows(1)
    held = program_array(Array((6, 11), drift=1.01), dense_factor(R), R)
    assert held.damping_gain == 1.01
    assert_close((held.matrix.left.T @ held.matrix.right).numpy(), 1.01**3 * (R.T @ R).numpy(), 1e-13)


def test_every_readout_has_a_gain_and_an_offset_that_stay():
    # 4,000 readouts know a deviation to 1/89 of itself; sorting at three takes 1.3 % from it.
    array = Array((1, 4000), readout=0.02, offset=0.005, dac=Converter(None, 3.0), seed=2)
    g = torch.tensor(np.random.default_rng(0).standard_normal(4000))
    full_scale = 3 * float((g**2).mean().sqrt())
    zero, one = (readings(array, torch.full((4000,), value).double(), g) for value in (0.0, 1.0))
    bound = norm.isf(FALSE_ALARM / 8)
    offsets, gains = zero / full_scale / 0.005, (one - zero - 1) / 0.02
    for part in (offsets, gains):
        assert abs(float(part.std()) / 0.987 - 1) < bound / np.sqrt(8000) + 2e-3
        assert abs(float(part.mean())) < bound / np.sqrt(4000)
    state = torch.tensor(np.random.default_rng(1).standard_normal(4000))
    assert_close(readings(array, state, 2 * g).numpy(), (state * (one - zero) + 2 * zero).numpy(), 1e-12)
    assert not np.allclose(readings(replace(array, seed=3), state, g), readings(array, state, g))


def calibrated(spread: float) -> Device:
    """A device whose couplings were all seen, spread evenly about 1.002."""
    device = ideal_device(build_board(8, "differential"), 2)
    values = np.random.default_rng(0).permutation(np.linspace(-1, 1, len(device.copies[0].gains)))
    gains = {
        name: Estimate(1.002 + spread * 3**0.5 * value, 0.0, True)
        for name, value in zip(device.copies[0].gains, values, strict=True)
    }
    readout = {
        "readout_gains": tuple(Estimate(1 + 0.01 * (-1) ** k, 0.0, True) for k in range(8)),
        "readout_offsets": tuple(Estimate(0.002 * (-1) ** k, 0.0, True) for k in range(8)),
    }
    copies = tuple(replace(each, gains=gains, **readout) for each in device.copies)
    return replace(device, copies=copies, interface=Interface(Converter(10), Converter(12), None, {"C": 1e-4}))


def test_array_of_a_calibrated_device():
    array = array_of(calibrated(0.02), (6, 11), seed=3, element_bits=8, full_scale=1.0, ambient=57.0)
    # 120 couplings and more know the deviation to 6 %, and it is drawn from what is known.
    assert array.deviation == pytest.approx(0.02, rel=0.35)
    assert array.mean == pytest.approx(1.002, abs=0.01)
    assert (array.dac.bits, array.adc.bits, array.elements) == (10, 12, Converter(8, 16.0))
    assert array.drift == pytest.approx(1 + 1e-4 * 30, rel=1e-12)
    assert array.level == pytest.approx(0.05**2, rel=1e-12)
    assert (array.readout, array.offset) == (pytest.approx(0.01), pytest.approx(0.002))
    plain = array_of(calibrated(0.02), (6, 11), seed=3)
    assert (plain.level, plain.readout, plain.offset) == (0.0, pytest.approx(0.01), 0.0)
    assert array_of(calibrated(0.02), (6, 11), seed=3).describe() != array.describe()
    with pytest.raises(InputError, match="couplings"):
        array_of(rough_device(0.01, 3), (6, 11))
    plain = array_of(ideal_device(build_board(4, "differential")), (6, 11), calibrated=False)
    tolerance = max(part.tolerance for part in ideal_device(build_board(4, "differential")).board.parts)
    assert plain.deviation == pytest.approx(tolerance / 3**0.5, rel=1e-12)


@pytest.mark.parametrize(("settings", "words"), [
    ({"shape": (0, 3)}, "shape"), ({"mean": 0.0}, "mean"), ({"deviation": -0.1}, "deviation"),
    ({"level": float("nan")}, "level"), ({"drift": -1.0}, "drift"), ({"elements": Converter(noise=0.1)}, "elements"),
])  # fmt: skip
def test_impossible_arrays_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        Array(**{"shape": (2, 3)} | settings)


def test_noise_of_the_board_is_kappa_in_the_units_of_the_gradient():
    # The circuit in SI units: c dV/dt = -g₀ A V + i, noise currents of power 2 kT g₀; V_F at full scale of the DAC.
    generator = np.random.default_rng(1)
    c, g0, kT, V_F, clip = 1e-9, 1e-3, 2.5e-12, 0.8, 3.0
    R = torch.tensor(generator.standard_normal((3, 5)))
    g = generator.standard_normal(5)
    A = 0.3 * np.eye(5) + (R.T @ R).numpy()
    full_scale = clip * np.sqrt((g**2).mean())
    drift = g0 / c * A  # 1/s
    volts = solve_continuous_lyapunov(drift, 2 * kT * g0 / c**2 * np.eye(5))
    mean = np.linalg.solve(g0 * A, g0 * V_F / full_scale * g)
    weight = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    array = Array((3, 5), dac=Converter(None, clip), level=noise_level(kT, c, V_F))
    held = program_array(array, dense_factor(R), R).matrix
    kappa = noise_of(array, torch.tensor(g))
    B = np.stack([
        low_rank_state(held, torch.zeros_like(weight.data), None, 0.3, inf, kappa, e).numpy()
        for e in torch.eye(5, dtype=torch.float64)
    ], 1)  # fmt: skip
    assert_close(B @ B.T, volts * (full_scale / V_F) ** 2, 1e-10)
    assert_close(low_rank_state(held, torch.tensor(g), None, 0.3, inf), mean * full_scale / V_F, 1e-10)


def flat(model) -> np.ndarray:
    return nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()


def run(model, optimizer, data) -> list[float]:
    return [float(optimizer.step(lambda x=x, y=y: (model(x), y))) for x, y in data]


@pytest.mark.parametrize("curvature", ["ggn", "mc", "empirical"])
@pytest.mark.parametrize("settings", [
    {"time": inf}, {"time": 3.0, "start": "kept", "delay": 0.7, "refresh": 2}, {"time": 0.5, "start": "zero"},
    {"time": 0.0}, {"time": 2.0, "delay": 1.0, "adapt": 2},
])  # fmt: skip
def test_an_exact_array_takes_the_steps_of_the_ideal_device(settings, curvature):
    data, ends = batches(4), []
    for array in (None, Array((12, 39))):
        model = network()
        optimizer = TNGD(model, lr=0.3, damping=0.05, curvature=curvature, array=array, **settings)
        run(model, optimizer, data)
        ends.append(flat(model))
        assert (optimizer.last.saturated, optimizer.last.unstable) == (0, False)
    assert_close(ends[1], ends[0], 1e-10)


def jacobian_rows(model, x, y) -> torch.Tensor:
    """R of the empirical Fisher matrix: gradients of the samples over the root of their number."""
    found = []
    for k in range(len(x)):
        loss = nn.functional.cross_entropy(model(x[k : k + 1]), y[k : k + 1])
        found.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(found) / len(x) ** 0.5


@pytest.mark.parametrize("refresh", [1, 3])
@pytest.mark.parametrize(("start", "time", "delay"), [("kept", 4.0, 1.5), ("gradient", 2.0, 0.0), ("zero", inf, 0.0)])
def test_steps_are_those_of_a_dense_device_with_those_elements(start, time, delay, refresh):
    converters = {"dac": Converter(6, 3.0, 0.0, 0.01), "adc": Converter(7, 2.5)}
    array = Array((8, 39), deviation=0.02, seed=2, readout=0.01, offset=0.02, **converters)
    model, twin, data = network(), network(), batches(4)
    settings = {"lr": 0.3, "damping": 0.05, "time": time, "start": start, "delay": delay, "refresh": refresh}
    optimizer = TNGD(model, curvature="empirical", array=array, **settings)
    state = old = None
    for k, (x, y) in enumerate(data):
        R = jacobian_rows(twin, x, y)
        gradient = (R.sum(0) / len(x) ** 0.5).numpy()
        sent = numpy_convert(gradient, array.dac, np.sqrt((gradient**2).mean()), to_analog=True)
        if k % refresh == 0:
            held = program_array(array, dense_factor(R), R)
            A = 0.05 * held.damping_gain * np.eye(39) + (held.matrix.left.T @ held.matrix.right).numpy()
        g = sent.values
        left = {"gradient": g, "zero": 0 * g, "kept": g if state is None else state}[start]
        if delay and old is not None:
            left = dense_device_state(old[0], old[1], state, delay)
        state = np.linalg.solve(A, g) if time == inf else dense_device_state(A, g, left, time)
        old = (A, g)
        seen = readings(array, torch.tensor(state), torch.tensor(gradient)).numpy()
        read = numpy_convert(seen, array.adc, np.sqrt((seen**2).mean()))
        run(model, optimizer, [(x, y)])
        nn.utils.vector_to_parameters(torch.tensor(flat(twin) - 0.3 * read.values), twin.parameters())
        assert_close(flat(model), flat(twin), 1e-10)
        assert optimizer.last.saturated == sent.saturated + read.saturated + (held.saturated if k % refresh == 0 else 0)


def test_saturations_are_counted():
    model, narrow = network(), Converter(8, 0.5)
    counts = []
    for which in ("dac", "adc", "elements"):
        optimizer = TNGD(model, lr=0.0001, array=Array((12, 39), **{which: narrow}))
        run(model, optimizer, batches(1))
        counts.append(optimizer.last.saturated)
    assert min(counts) > 0
    assert len(set(counts)) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [
    {"curvature": "mc", "noise": 1e-5, "start": "kept", "time": 2.0, "delay": 0.5, "refresh": 3},
    {"curvature": "ggn", "adapt": 2, "kl_clip": 1e-3, "time": inf, "refresh": 2},
])  # fmt: skip
def test_resumed_run_is_the_uninterrupted_one_to_the_bit(settings, dtype, tmp_path):
    data = batches(9, dtype=dtype)
    noisy = {"dac": Converter(8, 4.0, 0.01, 0.02), "adc": Converter(9, 4.0, 0.02), "elements": Converter(7)}

    def build():
        model, array = network(dtype=dtype), Array((12, 39), deviation=0.01, seed=1, level=1e-6, **noisy)
        return model, TNGD(model, lr=0.1, damping=0.1, array=array, **settings)

    model, optimizer = build()
    run(model, optimizer, data[:4])
    torch.save({"optimizer": optimizer.state_dict(), "model": model.state_dict()}, tmp_path / "saved.pt")
    straight, end = run(model, optimizer, data[4:]), flat(model)
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    other, resumed = build()
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(copy.deepcopy(saved["optimizer"]))
    assert run(other, resumed, data[4:]) == straight
    assert np.array_equal(flat(other), end)
    for array in (None, replace(optimizer.array, seed=2)):
        with pytest.raises(InputError, match="another optimizer or model: array"):
            TNGD(network(dtype=dtype), array=array).load_state_dict(saved["optimizer"])


def test_a_network_trains_on_an_array_of_a_calibrated_device():
    model, (x, y) = network(dtype=torch.float32), batches(1, 12, torch.float32)[0]
    array = array_of(calibrated(0.01), shape=(12 * 2, 39), seed=0, element_bits=8)
    optimizer = TNGD(model, curvature="ggn", array=array, lr=0.5, damping=0.1, time=50.0)
    losses = run(model, optimizer, [(x, y)] * 30)
    assert losses[-1] < 0.2 * losses[0]
    twin = network(dtype=torch.float32)
    ideal = run(twin, TNGD(twin, lr=0.5, damping=0.1, time=50.0), [(x, y)] * 30)
    assert 1e-5 < abs(losses[-1] / ideal[-1] - 1) < 0.2


def unstable_array() -> Array:
    """Elements so far off that the two passes have little to do with each other."""
    return Array((12, 39), deviation=0.5, seed=3)


def test_an_unstable_array_is_read_at_a_finite_time_and_falls_back_at_an_endless_one():
    model, (x, y) = network(), batches(1)[0]
    x = x[:1] + 0.05 * x  # samples alike: eigenvalues near 0, which the errors take below it
    before = flat(model)
    gradient = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    g = torch.cat([part.reshape(-1) for part in gradient]).numpy()
    optimizer = TNGD(model, lr=0.1, damping=1e-4, array=unstable_array())
    optimizer.step(lambda: (model(x), y))
    held = optimizer._memory.held
    A = 1e-4 * held.damping_gain * np.eye(39) + (held.matrix.left.T @ held.matrix.right).numpy()
    assert np.linalg.eigvals(A).real.min() < -1e-4
    assert optimizer.last.unstable
    assert_close(flat(model) - before, -0.1 * g, 1e-12)
    model = network()
    optimizer = TNGD(model, lr=0.1, damping=1e-4, time=5.0, array=unstable_array())
    optimizer.step(lambda: (model(x), y))
    assert optimizer.last.unstable
    assert_close(flat(model) - before, -0.1 * dense_device_state(A, g, g, 5.0), 1e-10)
    model = network()
    optimizer = TNGD(model, lr=0.1, damping=0.5, time=5.0, array=unstable_array())
    optimizer.step(lambda: (model(x), y))
    assert not optimizer.last.unstable


def test_arrays_of_another_size_and_what_they_cannot_do_are_refused():
    model, (x, y) = network(), batches(1, 7)[0]
    with pytest.raises(InputError, match="40 columns"):
        TNGD(model, array=Array((12, 40)))
    before = flat(model)
    optimizer = TNGD(model, array=Array((12, 39)), curvature="mc")
    optimizer.step(lambda: (model(x), y))
    assert not np.array_equal(flat(model), before)
    optimizer = TNGD(model, array=Array((12, 39)))
    with pytest.raises(InputError, match="has 12 rows, but the curvature of this batch has 14"):
        optimizer.step(lambda: (model(x), y))
    model[0].bias.requires_grad_(False)
    with pytest.raises(InputError, match="35 trained"):
        optimizer.step(lambda: (model(x[:6]), y[:6]))
    model[0].bias.requires_grad_(True)
    with pytest.raises(InputError, match="Lanczos"):
        TNGD(model, array=Array((12, 39)), lanczos=3)
    with pytest.raises(InputError, match="tiles have a board"):
        TNGD(model, curvature="tiles", array=Array((12, 39)))
    with pytest.raises(InputError, match="curvature is not finite"):
        program_array(Array((2, 3)), dense_factor(torch.tensor([[1.0, 2.0, float("inf")]])), torch.zeros(1))

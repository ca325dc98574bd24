"""Converters against a slow literal twin, their law against integrals, and all that is refused."""

from fractions import Fraction

import numpy as np
import pytest
from cases import M_MATRIX
from scipy import integrate, stats

from circuits import InputError
from circuits.model import Converter, Interface
from circuits.model.converters import IDEAL, board_interface, convert, converted_law, source_power
from circuits.synthesis import build_board
from circuits.synthesis.design import board_and_program as synthesise
from circuits.synthesis.options import TEMPCO


def slow(value: float, bits: int, full_scale: float) -> tuple[float, bool]:
    """One value by exact fractions; Python rounds halves to even."""
    step = 2 * Fraction(full_scale) / 2**bits
    code = round(Fraction(value) / step)
    held = min(max(code, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
    return float(held * step), held != code


@pytest.mark.parametrize("bits", [1, 2, 3, 8, 16, 24])
def test_rounding_is_mid_tread_and_clipping_is_counted(bits):
    rms, span = 0.5, 3.0
    step = 2 * span * rms / 2**bits
    values = np.random.default_rng(bits).normal(0, 1, 500)
    values = np.concatenate([values, step * np.arange(-5, 5) / 2, [0.0, 1e9, -1e9, span * rms, -span * rms]])
    found = convert(values.reshape(5, -1), Converter(bits, span), rms)
    twins = [slow(value, bits, span * rms) for value in values]
    assert np.array_equal(found.values.ravel(), [value for value, _ in twins])
    assert found.saturated == sum(clipped for _, clipped in twins) > 0


def test_each_channel_has_its_own_scale_and_one_of_nothing_holds_nothing():
    values = np.array([[0.3, 30.0, 0.0], [-9.0, 30.0, 2.0]])
    found = convert(values, Converter(4, 2.0), np.array([1.0, 100.0, 0.0]))
    expected = [[slow(v, 4, 2 * r)[0] if r else 0.0 for v, r in zip(row, (1, 100, 0), strict=True)] for row in values]
    assert np.array_equal(found.values, expected)
    assert found.saturated == 2  # -9 of 1 rms, and 2 where nothing was said to come


def test_an_adc_rounds_what_has_noise_and_a_dac_has_noise_on_what_is_rounded():
    values, rms = np.linspace(-2, 2, 41), 0.8
    converter = Converter(5, 3.0, noise=0.1, offset=0.2)
    analog = rms * (0.2 + 0.1 * np.random.default_rng(3).standard_normal(41))
    read = convert(values, converter, rms, np.random.default_rng(3)).values
    sent = convert(values, converter, rms, np.random.default_rng(3), to_analog=True).values
    assert np.allclose(read, [slow(v, 5, 2.4000000000000004)[0] for v in values + analog], atol=1e-14, rtol=0)
    assert np.allclose(sent, [slow(v, 5, 2.4000000000000004)[0] for v in values] + analog, atol=1e-14, rtol=0)


def test_without_bits_nothing_is_rounded_or_clipped():
    values = np.array([1e-9, -1e9])
    found = convert(values, Converter(), 1.0)
    assert np.array_equal(found.values, values)
    assert found.saturated == 0


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("correlation", [-0.6, 0.95])
def test_law_of_converted_readings_is_that_of_integrals(bits, correlation):
    mean, sigma = np.array([0.1, -0.4]), np.array([1.0, 0.3])
    S = np.array([[1.0, correlation], [correlation, 1.0]]) * np.outer(sigma, sigma)
    converter, rms = Converter(bits, 2.0, noise=0.1, offset=0.3), 0.7
    got_mean, got, clipped = converted_law(mean, S, converter, rms)
    m = mean + 0.3 * rms
    S = S + (0.1 * rms) ** 2 * np.eye(2)
    s, rho = np.sqrt(np.diag(S)), S[0, 1] / np.sqrt(S[0, 0] * S[1, 1])
    step = 2 * 2.0 * rms / 2**bits
    codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    inner = (codes[1:] - 0.5) * step
    edges = np.concatenate([[-np.inf], inner, [np.inf]])
    share = np.diff(stats.norm.cdf((edges - m[:, None]) / s[:, None]), axis=1)  # (2, codes)
    expected = share @ (codes * step)
    assert np.allclose(got_mean, expected, atol=1e-13, rtol=0)
    assert np.allclose(np.diag(got), share @ (codes * step) ** 2 - expected**2, atol=1e-12, rtol=0)

    def given(z):  # density of the first, times the mean of the converted second
        own = (edges - m[1] - rho * s[1] * z) / (s[1] * np.sqrt(1 - rho**2))
        return stats.norm.pdf(z) * (np.diff(stats.norm.cdf(own)) @ (codes * step))

    bounds = np.clip((edges - m[0]) / s[0], -12, 12)
    pieces = zip(codes * step, bounds[:-1], bounds[1:], strict=True)
    both = sum(value * integrate.quad(given, a, b, epsabs=1e-13, epsrel=1e-11)[0] for value, a, b in pieces)
    assert abs(got[0, 1] - (both - expected[0] * expected[1])) < 1e-10
    assert got[0, 1] == got[1, 0]
    beyond = np.array([codes[-1] + 0.5, codes[0] - 0.5])[:, None] * step
    tails = stats.norm.sf((beyond[0] - m) / s) + stats.norm.cdf((beyond[1] - m) / s)
    assert np.allclose(clipped, tails, atol=1e-14, rtol=1e-10)


def test_law_is_that_of_what_the_converter_does():
    # Evenly spaced quantiles of a Gaussian put through the converter: what is left are steps of one in so many.
    quantiles = stats.norm.ppf((np.arange(400_000) + 0.5) / 400_000)
    converter = Converter(6, 1.5, offset=0.1)
    found = convert(0.2 + 0.9 * quantiles, converter, 1.1)
    mean, S, clipped = converted_law(np.array([0.2]), np.array([[0.81]]), converter, 1.1)
    assert abs(found.values.mean() - mean[0]) < 1e-5
    assert abs(found.values.var() - S[0, 0]) < 2e-5
    assert abs(found.saturated / 400_000 - clipped[0]) < 1e-5


def test_law_of_readings_far_below_full_scale_is_finite():
    S = np.array([[1.0, 0.009, 0.009], [0.009, 1e-4, 0.9e-4], [0.009, 0.9e-4, 1e-4]])
    _, law, clipped = converted_law(np.zeros(3), S, Converter(8, 4.0), 1.0)
    assert np.isfinite(law).all()
    assert law[0, 0] == pytest.approx(1 + (8 / 256) ** 2 / 12, rel=1e-3)
    assert clipped[1] == clipped[2] == 0


def test_ideal_interface_leaves_a_law_as_it_is():
    S = np.array([[2.0, 0.3], [0.3, 1.0]])
    mean, law, clipped = converted_law(np.array([1.0, -2.0]), S, IDEAL.adc, 0.05)
    assert np.array_equal(law, S)
    assert np.array_equal(mean, [1.0, -2.0])
    assert not clipped.any()


def test_many_bits_leave_next_to_nothing_and_the_rest_is_that_of_rounding():
    S = np.array([[1.0, 0.4], [0.4, 0.5]])
    _, fine, _ = converted_law(np.zeros(2), S, Converter(24, 8.0), 1.0)
    assert np.abs(fine - S).max() < 1e-8
    _, coarse, _ = converted_law(np.zeros(2), S, Converter(8, 8.0), 1.0)
    assert np.allclose(np.diag(coarse - S), (16 / 256) ** 2 / 12, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"bits": 0}, "1 to 24 bits, got 0"),
        ({"bits": 25}, "1 to 24 bits"),
        ({"bits": 8.0}, "1 to 24 bits"),
        ({"bits": True}, "1 to 24 bits"),
        ({"range": 0.0}, "range above 0"),
        ({"range": -4.0}, "range above 0"),
        ({"range": np.inf}, "range above 0"),
        ({"noise": -0.1}, "noise of 0 or more"),
        ({"noise": np.nan}, "noise of 0 or more"),
        ({"offset": np.inf}, "finite converter offset"),
        ({"rate": 0.0}, "rate above 0 Hz"),
    ],
)
def test_impossible_converters_are_refused(settings, says):
    with pytest.raises(InputError, match=says):
        Converter(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"source_bits": 0},
        {"source_bits": 25},
        {"temperature_coefficients": {"X": 1e-6}},
        {"temperature_coefficients": {"R": np.nan}},
        {"temperature_coefficients": {"R": 0.5}},
    ],
)
def test_impossible_interfaces_are_refused(settings):
    with pytest.raises(InputError, match="expected"):
        Interface(**settings)


def test_input_of_a_converter_is_checked():
    for values, rms in (([np.nan], 1.0), ([1.0], np.inf), ([1.0], -1.0)):
        with pytest.raises(InputError, match="not finite, or a negative rms"):
            convert(np.array(values), Converter(4), rms)
    with pytest.raises(InputError, match="needs a random generator"):
        convert(np.ones(2), Converter(4, noise=0.1), 1.0)


def test_source_powers_are_squares_of_codes():
    assert np.array_equal(source_power(np.array([1.0, 1.3]), IDEAL), [1.0, 1.3])
    for bits in (2, 5, 10):
        amplitudes = np.arange(1, 2**bits) * 2.0 / 2**bits
        wanted = np.random.default_rng(bits).uniform(0.05, 3, 50)
        nearest = [amplitudes[np.abs(amplitudes - np.sqrt(power)).argmin()] ** 2 for power in wanted]
        found = source_power(wanted[np.sqrt(wanted) < amplitudes[-1]], Interface(source_bits=bits))
        assert np.array_equal(found, [n for n, w in zip(nearest, wanted, strict=True) if np.sqrt(w) < amplitudes[-1]])
        assert source_power(np.ones(1), Interface(source_bits=bits))[0] == 1.0
    with pytest.raises(InputError, match="end below 4"):
        source_power(np.array([4.1]), Interface(source_bits=8))
    for bad in (0.0, -1.0, np.nan):
        with pytest.raises(InputError, match="above 0"):
            source_power(np.array([bad]), IDEAL)


def test_coefficients_of_a_board_are_those_of_its_parts():
    assert board_interface(build_board(3, "differential")).temperature_coefficients == TEMPCO
    board, _ = synthesise(M_MATRIX)
    assert board_interface(board) == Interface(temperature_coefficients=TEMPCO)

"""Interface between numbers and the board: converters, resolution of noise sources, temperature coefficients.

A converter of b bits has the full scale F = ±range · rms, with rms that of the signal it carries (the digital side
scales every upload to it), and rounds mid-tread in two's complement:

    Δ = 2 F / 2ᵇ,   code = clip(round(x / Δ), -2ᵇ⁻¹, 2ᵇ⁻¹ - 1),   value = code Δ,

halves to even. Clipped values are counted. Noise and offset are on the analog side: before rounding in an ADC, after it
in a DAC. Without bits nothing is rounded and there is no full scale; noise and offset remain.

The effect of rounding and clipping q on Gaussian readings is known exactly. With z of unit variance and the normalised
Hermite polynomials h_k, a_k = <q h_k(z)> = (Δ/√k) Σ φ(τ) h_{k-1}(τ) over the thresholds τ between the codes, and
Cov(q_i, q_j) = Σ_{k≥1} a_k^i a_k^j ρ_ij^k (Mehler).
"""

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy import special

from circuits.board import Board
from circuits.errors import InputError

MOST_BITS = 24
FINE_BITS = 16  # laws are computed with at most so many: the variance differs by 1e-9 of that of the signal
TERMS = 400  # most terms of the Hermite series: the remainder is at most ρ^400 of the variance by rounding


def _check_bits(bits: int | None, what: str) -> None:
    whole = isinstance(bits, int) and not isinstance(bits, bool)
    if bits is not None and not (whole and 1 <= bits <= MOST_BITS):
        raise InputError(f"expected {what} of 1 to {MOST_BITS} bits, got {bits}; leave it out for no rounding")


@dataclass(frozen=True)
class Converter:
    """A DAC or ADC: bits, full scale ±`range`, `noise` (rms) and `offset` in multiples of the rms of the signal.

    `rate` [Hz] is the number of values converted in a second (None: no limit). InputError if out of range.
    """

    bits: int | None = None
    range: Annotated[float, Field(alias="range_rms")] = 4.0
    noise: Annotated[float, Field(alias="noise_rms")] = 0.0
    offset: Annotated[float, Field(alias="offset_rms")] = 0.0
    rate: Annotated[float | None, Field(alias="rate_Hz")] = None

    def __post_init__(self):
        _check_bits(self.bits, "a converter")
        if not 0 < self.range < np.inf:
            raise InputError(f"expected a range above 0 (in multiples of the rms), got {self.range}; 4 clips little")
        if not 0 <= self.noise < np.inf:
            raise InputError(f"expected converter noise of 0 or more, got {self.noise}; give its rms")
        if not np.isfinite(self.offset):
            raise InputError(f"expected a finite converter offset, got {self.offset}; leave it out for none")
        if self.rate is not None and not 0 < self.rate < np.inf:
            raise InputError(f"expected a conversion rate above 0 Hz, got {self.rate}; leave it out for no limit")


@dataclass(frozen=True)
class Interface:
    """Converters and noise sources through which a board is written and read.

    `source_bits`: the amplitude of a noise source is a code of so many bits, full scale twice its nominal amplitude.
    `temperature_coefficients` are in 1/K by the kind of part, "R", "L", "C", and "I" of the power of noise sources;
    a kind that is not named has the coefficient of the board's parts.
    """

    dac: Converter = field(default_factory=Converter)
    adc: Converter = field(default_factory=Converter)
    source_bits: int | None = None
    temperature_coefficients: Annotated[dict[str, float], Field(alias="temperature_coefficients_per_K")] = field(
        default_factory=dict
    )

    def __post_init__(self):
        _check_bits(self.source_bits, "a noise source")
        for kind, value in self.temperature_coefficients.items():
            if kind not in ("R", "L", "C", "I") or not abs(value) < 0.01:
                raise InputError(
                    f"expected temperature coefficients of R, L, C, I below 0.01/K, got {kind} {value}; 25e-6 is usual"
                )


@dataclass(frozen=True, eq=False)
class Converted:
    """Output of a converter, in the shape of its input, and the number of values clipped at full scale."""

    values: np.ndarray
    saturated: int


IDEAL = Interface()


def board_interface(board: Board) -> Interface:
    """Return the ideal interface with the largest temperature coefficient [1/K] of each kind of part of the board."""
    found: dict[str, float] = {}
    for kind, tempco in (*((p.kind, p.tempco) for p in board.parts), *(("I", s.tempco) for s in board.sources)):
        found[kind] = max(found.get(kind, 0.0), tempco, key=abs)
    return Interface(temperature_coefficients=dict(sorted(found.items())))


def convert(
    values: np.ndarray,
    converter: Converter,
    rms: float | np.ndarray,
    rng: np.random.Generator | None = None,
    to_analog: bool = False,
) -> Converted:
    """Pass values (any shape) through an ADC, or `to_analog` through a DAC; `rms` is that of the signal.

    `rms` has the unit of the values and broadcasts against them; where it is 0, only 0 fits. `rng` draws the noise.
    InputError if values or rms are not finite, rms is negative, or there is noise and no `rng`.
    """
    values, rms = np.asarray(values, dtype=float), np.asarray(rms, dtype=float)
    if not (np.isfinite(values).all() and np.isfinite(rms).all() and (rms >= 0).all()):
        raise InputError("a converter got values or an rms that are not finite, or a negative rms; check its input")
    if converter.noise and rng is None:
        raise InputError("a converter with noise needs a random generator; give one made from a seed")
    analog = converter.offset * rms
    if converter.noise:
        analog = analog + converter.noise * rms * rng.standard_normal(values.shape)
    if to_analog:
        rounded = _rounded(values, converter, rms)
        return Converted(rounded.values + analog, rounded.saturated)
    return _rounded(values + analog, converter, rms)


def converted_law(
    mean: np.ndarray, covariance: np.ndarray, converter: Converter, rms: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean (n,) and covariance (n, n) of Gaussian readings behind an ADC, and the clipped share (n,).

    `rms` is that of the signal for which full scale is set; noise is independent by channel and reading.
    """
    mean = mean + converter.offset * rms
    covariance = covariance + (converter.noise * rms) ** 2 * np.eye(len(mean))
    if converter.bits is None:
        return mean, covariance, np.zeros(len(mean))
    most = 2 ** (min(converter.bits, FINE_BITS) - 1)
    step = converter.range * rms / most
    sigma = np.sqrt(np.diag(covariance))
    codes = np.arange(1 - most, most)
    tau = ((codes - 0.5) * step - mean[:, None]) / sigma[:, None]  # (n, thresholds): from code - 1 to code
    weight = np.where(codes > 0, special.ndtr(-tau), -special.ndtr(tau))  # beyond a threshold, from code 0
    shown = weight.sum(axis=1)
    square = (np.abs(2 * codes - 1) * np.abs(weight)).sum(axis=1)
    law = step**2 * _mehler(tau, covariance / sigma / sigma[:, None])
    np.fill_diagonal(law, step**2 * (square - shown**2))
    edges = (np.array([most - 0.5, -most - 0.5]) * step - mean[:, None]) / sigma[:, None]
    return step * shown, law, special.ndtr(-edges[:, 0]) + special.ndtr(edges[:, 1])


def source_power(powers: np.ndarray, interface: Interface) -> np.ndarray:
    """Return the relative powers nearest to `powers` that noise sources can be set to: amplitudes in 2^(1-bits).

    InputError if a wanted power is not positive, or beyond the full scale, twice the nominal amplitude.
    """
    powers = np.asarray(powers, dtype=float)
    if not (np.isfinite(powers) & (powers > 0)).all():
        raise InputError(f"expected powers of noise sources above 0, got {powers.min()}; check the copy's temperatures")
    if interface.source_bits is None:
        return powers
    step = 2.0 ** (1 - interface.source_bits)
    codes = np.maximum(np.round(np.sqrt(powers) / step), 1)
    if (codes >= 2**interface.source_bits).any():
        raise InputError(
            f"a noise source would need {powers.max():.3g} times its nominal power, and its {interface.source_bits} "
            "bits end below 4; use more source bits, or another copy"
        )
    return (codes * step) ** 2


def _rounded(values: np.ndarray, converter: Converter, rms: np.ndarray) -> Converted:
    if converter.bits is None:
        return Converted(values, 0)
    most = 2.0 ** (converter.bits - 1)
    step = np.broadcast_to(converter.range * rms / most, values.shape)
    beyond = np.where(values == 0, 0.0, np.copysign(np.inf, values))
    codes = np.round(np.divide(values, step, out=beyond, where=step > 0))
    held = np.clip(codes, -most, most - 1)
    return Converted(held * step, int((held != codes).sum()))


def _mehler(tau: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """Return covariances (n, n) of counts of passed thresholds (n, thresholds), valid off the diagonal."""
    largest = np.abs(correlation - np.diag(np.diag(correlation))).max(initial=0.0)
    density = np.exp(-(tau**2) / 2) / np.sqrt(2 * np.pi)
    before, now = np.zeros_like(tau), density  # φ h_k: far out h_k alone would overflow where φ is 0
    law, power, k = np.zeros_like(correlation), np.ones_like(correlation), 0
    while k < TERMS and (k == 0 or largest**k > 1e-16):
        k += 1
        a = now.sum(axis=1) / np.sqrt(k)
        power = power * correlation
        law += np.outer(a, a) * power
        before, now = now, (tau * now - np.sqrt(k - 1) * before) / np.sqrt(k)
    return law

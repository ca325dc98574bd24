"""Converters between numbers and an array, as tensors: the law of `circuits.model.converters.convert`.

    Δ = 2 F / 2ᵇ,  F = range · rms,   value = clip(round(x / Δ), -2ᵇ⁻¹, 2ᵇ⁻¹ - 1) Δ,

halves to even; offset and noise, both in multiples of the rms, come before rounding in an ADC and after it in a DAC.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.model.converters import Converter


@dataclass(frozen=True, eq=False)
class Converted:
    """What came out of a converter, and how many values met its full scale."""

    values: Tensor
    saturated: int


def root_mean_square(values: Tensor) -> Tensor:
    """The rms of all values, a scalar; 0 of none."""
    return values.norm() / max(values.numel(), 1) ** 0.5


def convert(
    values: Tensor, converter: Converter, rms: Tensor, white: Tensor | None = None, to_analog: bool = False
) -> Converted:
    """Pass values (any shape) through an ADC, or `to_analog` through a DAC; `rms` broadcasts against them.

    `white` are standard normal numbers of the shape of the values, for a converter with noise. Where the rms is 0 only
    0 fits. InputError if there is noise and no `white`.
    """
    if converter.noise and white is None:
        raise InputError("a converter with noise needs normal numbers; draw them from a seeded generator")
    analog = converter.offset * rms
    if converter.noise:
        analog = analog + converter.noise * rms * white
    if to_analog:
        rounded = _rounded(values, converter, rms)
        return Converted(rounded.values + analog, rounded.saturated)
    return _rounded(values + analog, converter, rms)


def _rounded(values: Tensor, converter: Converter, rms: Tensor) -> Converted:
    if converter.bits is None:
        return Converted(values, 0)
    most = 2.0 ** (converter.bits - 1)
    step = (converter.range * rms / most).expand_as(values)
    beyond = torch.where(values == 0, values, values.sign() * torch.inf)
    codes = torch.where(step > 0, values / torch.where(step > 0, step, 1), beyond).round()
    held = codes.clamp(-most, most - 1)
    return Converted(held * step, int((held != codes).sum()))


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers in the shape of a tensor, drawn on the CPU: the same on every device."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)

"""Devices that hold the curvature of the whole parameter vector: one face, an ideal device and an array with errors.

Setting up is apart from use: `program` is costly and done once for a curvature, `evolve` once for every gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isinf
from typing import Any, Protocol

from torch import Tensor

from circuits.errors import InputError
from circuits.model.converters import Converter
from tngd.curvature.factor import Factor
from tngd.device.array import Array, HeldArray, check_size, noise_of, program_array, readings
from tngd.device.converters import convert, root_mean_square
from tngd.device.dynamics import Held, device_state, held_curvature
from tngd.device.low_rank import is_stable, low_rank_state

Draw = Callable[[], Tensor]  # standard normal numbers (N,)


class FullSizeDevice(Protocol):
    """A device of N states that holds λI + RᵀR of a factor R (r, N), up to errors of its own.

    The process between an upload and a reading, in time constants of the device, and its exact state:

        dx = -(A x - g) dt + N(0, 2 κ₀ dt),   x(t) = φ_t(A) g + e^{-At} x₀ + sqrt(κ₀) s_t(A) ξ

    with φ and s of tngd.device.dynamics, A the matrix that the device really holds and g the gradient it was given.
    Laws of every implementation, for exact converters and κ₀ = 0:

        t = 0        evolve(g, x₀, 0) = x₀
        semigroup    evolve(g, evolve(g, x₀, s), t) = evolve(g, x₀, s + t)
        t = ∞        A x = g where the device is stable, and x does not depend on x₀
        linearity    evolve(a g + b h, a x + b y, t) = a evolve(g, x, t) + b evolve(h, y, t)

    Random numbers come from `white` alone, a call for each vector that is drawn, and only where there is noise: equal
    numbers give equal states. No method changes what it is given.
    """

    def check(self, lanczos: int | None, size: int) -> None:
        """Raise InputError if the device cannot hold a network of `size` parameters N, or take Lanczos steps."""

    def upload(self, gradient: Tensor, white: Draw) -> tuple[Tensor, int]:
        """The gradient (N,) as it arrives, and how many values met the full scale of the DAC."""

    def noise(self, gradient: Tensor) -> float:
        """κ₀ of the device itself while this gradient (N,) is uploaded."""

    def program(self, factor: Factor, gradient: Tensor, lanczos: int | None, once: bool) -> tuple[Any, int]:
        """The held curvature, and how many elements met full scale; `once`: it serves one gradient only."""

    def evolve(
        self,
        held: Any,
        gradient: Tensor,
        start: Tensor | None,
        damping: float,
        time: float,
        noise: float,
        white: Draw,
    ) -> tuple[Tensor, bool]:
        """The state (N,) after `time` from `start` (N,), None for zero, and whether the device is stable."""

    def read(self, state: Tensor, gradient: Tensor, white: Draw) -> tuple[Tensor, int]:
        """The state (N,) as it is read with this gradient uploaded, and how many values met full scale of the ADC."""

    def pack(self, held: Any) -> dict[str, Any]:
        """The held curvature without its factor, as plain numbers and tensors."""

    def unpack(self, content: dict[str, Any], factor: Factor, gradient: Tensor) -> Any:
        """The held curvature that `pack` wrote, of this factor and programmed with this gradient."""


@dataclass(frozen=True)
class IdealDevice:
    """The device without errors: exact elements and converters, κ₀ of the settings alone."""

    def check(self, lanczos: int | None, size: int) -> None:
        """Accept networks of every size."""

    def upload(self, gradient: Tensor, white: Draw) -> tuple[Tensor, int]:
        """The gradient itself."""
        return gradient, 0

    def noise(self, gradient: Tensor) -> float:
        """None."""
        return 0.0

    def program(self, factor: Factor, gradient: Tensor, lanczos: int | None, once: bool) -> tuple[Held, int]:
        """K = R Rᵀ, or products with R where those do (tngd.device.dynamics)."""
        return held_curvature(factor, gradient, lanczos, once), 0

    def evolve(
        self,
        held: Held,
        gradient: Tensor,
        start: Tensor | None,
        damping: float,
        time: float,
        noise: float,
        white: Draw,
    ) -> tuple[Tensor, bool]:
        """The exact state under λI + RᵀR, which is always stable."""
        drawn = white() if noise else None
        return device_state(held, gradient, start, damping, time, noise, drawn), True

    def read(self, state: Tensor, gradient: Tensor, white: Draw) -> tuple[Tensor, int]:
        """The state itself."""
        return state, 0

    def pack(self, held: Held) -> dict[str, Any]:
        """K and the number of Lanczos steps."""
        return {"K": held.K, "lanczos": held.lanczos}

    def unpack(self, content: dict[str, Any], factor: Factor, gradient: Tensor) -> Held:
        """K beside the factor that it is of."""
        return Held(factor, content["K"], content["lanczos"])


@dataclass(frozen=True)
class ArrayDevice:
    """An array of resistors with the errors of its elements, its converters and its noise (tngd.device.array)."""

    array: Array

    def check(self, lanczos: int | None, size: int) -> None:
        """Raise InputError for Lanczos steps, which are of the ideal device, and for a network of another size."""
        if lanczos is not None:
            raise InputError("Lanczos steps are for the ideal device; an array is solved exactly, so drop lanczos")
        check_size(self.array, size)

    def upload(self, gradient: Tensor, white: Draw) -> tuple[Tensor, int]:
        """The gradient through the DAC."""
        return _through(self.array.dac, gradient, white, to_analog=True)

    def noise(self, gradient: Tensor) -> float:
        """κ₀ = kT/(c V_F²) · (range · rms(g))²."""
        return noise_of(self.array, gradient)

    def program(self, factor: Factor, gradient: Tensor, lanczos: int | None, once: bool) -> tuple[HeldArray, int]:
        """Codes of all elements, each with its own error."""
        held = program_array(self.array, factor, gradient)
        return held, held.saturated

    def evolve(
        self,
        held: HeldArray,
        gradient: Tensor,
        start: Tensor | None,
        damping: float,
        time: float,
        noise: float,
        white: Draw,
    ) -> tuple[Tensor, bool]:
        """The exact state under λ~ I + L Mᵀ.

        An unstable array has no end state at t = ∞: the state is then the uploaded gradient.
        """
        drawn = white() if noise else None
        real = damping * held.damping_gain
        stable = is_stable(held.matrix, real, time)
        if not stable and isinf(time):
            return gradient, False
        return low_rank_state(held.matrix, gradient, start, real, time, noise, drawn), stable

    def read(self, state: Tensor, gradient: Tensor, white: Draw) -> tuple[Tensor, int]:
        """The state through N readouts with gains and offsets, and the ADC."""
        return _through(self.array.adc, readings(self.array, state, gradient), white)

    def pack(self, held: HeldArray) -> dict[str, Any]:
        """Nothing: the array programs the same factor to the same elements."""
        return {}

    def unpack(self, content: dict[str, Any], factor: Factor, gradient: Tensor) -> HeldArray:
        """The factor, programmed again."""
        return program_array(self.array, factor, gradient)


def _through(converter: Converter, values: Tensor, white: Draw, to_analog: bool = False) -> tuple[Tensor, int]:
    drawn = white() if converter.noise else None
    found = convert(values, converter, root_mean_square(values), drawn, to_analog)
    return found.values, found.saturated

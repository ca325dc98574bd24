"""What the device remembers from one optimizer step to the next, and one step of it.

The device is read, the parameters move, and while the next gradient is computed (`delay`) the device goes on under the
old curvature and gradient. Then the new pair is uploaded and it evolves for `time`. With start "kept" the state is left
as it is at the upload; with "gradient" or "zero" it is reset: at the upload to the new gradient or zero if there is no
delay, else right after the reading, to the old gradient (the only one known then) or zero.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isinf
from types import MappingProxyType
from typing import Any

from torch import Tensor

from circuits.errors import InputError
from circuits.model.converters import Converter
from tngd.curvature.factor import Factor
from tngd.device.array import Array, HeldArray, check_size, noise_of, program_array, readings
from tngd.device.converters import convert, root_mean_square
from tngd.device.dynamics import Held, device_state, held_curvature
from tngd.device.low_rank import is_stable, low_rank_state
from tngd.optimizer.history import (
    History,
    from_device,
    packed_history,
    remembered,
    thinned,
    to_device,
    unpacked_history,
)
from tngd.optimizer.settings import Settings

White = Callable[[], Tensor]


@dataclass(frozen=True)
class DeviceStep:
    """What the device did in one step.

    `rank` r of the curvature it holds and its `age` in steps; the `damping` used; `scale` of the direction (of an inner
    optimizer's step) after KL clipping; `ratio` of the actual to the predicted change of the loss, in steps that adapt
    the damping, else None. Of an array: how many values were `saturated` in its converters, and whether it was
    `unstable`; at t = ∞ the step was then along the gradient.
    """

    rank: int
    age: int
    damping: float
    scale: float
    ratio: float | None = None
    saturated: int = 0
    unstable: bool = False


@dataclass(frozen=True, eq=False)
class Memory:
    """The pair last uploaded, its damping and κ₀, the state (N,), and how many steps its curvature has served.

    Gradient and state are those on the device, in the coordinates of the history's T. `held` is None once neither a
    later step nor a delay needs that curvature.
    """

    history: History
    held: Held | HeldArray | None
    gradient: Tensor
    damping: float
    state: Tensor
    age: int
    noise: float = 0.0


@dataclass(frozen=True, eq=False)
class StateReading:
    """The state as it was read (N,), values that met a converter's full scale, and whether the device was unstable."""

    state: Tensor
    saturated: int = 0
    unstable: bool = False


def advance(
    memory: Memory | None,
    settings: Settings,
    gradient: Tensor,
    factor: Factor | None,
    white: White,
    array: Array | None = None,
    shapes: Mapping[int, tuple[int, int]] = MappingProxyType({}),
) -> tuple[Memory, StateReading]:
    """The device after one step with a new gradient (N,) and factor, None to keep the curvature it has.

    `shapes` (n, m) of the parameters by their offsets are for a precondition.

    `white()` draws standard normal numbers (N,); it is called only if there is noise. Without an `array` the device is
    ideal. An unstable array has an end state at no endless time: it is reset to the gradient uploaded, and says so.
    """
    fresh, saturated, noise = factor is not None, 0, settings.noise
    history = memory.history if memory else None
    if fresh:
        history = remembered(history, factor, settings, shapes)
        if memory and history.metric is not memory.history.metric:
            memory = None  # its state is in the coordinates of another T
    gradient = to_device(history, gradient)
    if array is not None:
        check_array(array, settings, len(gradient))
        wanted = gradient
        noise += noise_of(array, wanted)
        gradient, saturated = _through(array.dac, gradient, white, to_analog=True)
    begin, left = _begin(memory, settings, gradient, white)
    if not fresh:
        held = memory.held
    elif array is None:
        once = settings.refresh == 1 and not settings.delay
        held = held_curvature(history.uploaded, gradient, settings.lanczos, once)
    else:
        held = program_array(array, history.uploaded, gradient)
        saturated += held.saturated
    state, right = _evolved(held, gradient, begin, settings.damping, settings.time, noise, white)
    kept = Memory(history, held, gradient, settings.damping, state, 1 if fresh else memory.age + 1, noise)
    if array is not None:
        state, met = _through(array.adc, readings(array, state, wanted), white)
        saturated += met
    return kept, StateReading(from_device(history, state), saturated, not (left and right))


def check_array(array: Array, settings: Settings, size: int) -> None:
    """InputError if an array cannot work with these settings, or with a network of this size N."""
    if settings.lanczos is not None:
        raise InputError("Lanczos steps are for the ideal device; an array is solved exactly, so drop lanczos")
    check_size(array, size)


def due(memory: Memory | None, settings: Settings) -> bool:
    """Whether the next step needs a new curvature."""
    return memory is None or memory.held is None or memory.age >= settings.refresh


def trimmed(memory: Memory | None, settings: Settings) -> Memory | None:
    """The memory without a curvature that no step will use again: it is by far the largest part."""
    if memory is None or settings.delay or not due(memory, settings):
        return memory
    return replace(memory, held=None, history=thinned(memory.history, settings))


def packed_memory(memory: Memory | None) -> dict[str, Any] | None:
    """Plain dictionaries and tensors, for a state_dict; what an array holds is made again."""
    if memory is None:
        return None
    held = None
    if memory.held is not None:
        held = {"K": memory.held.K, "lanczos": memory.held.lanczos} if isinstance(memory.held, Held) else {}
    rest = {name: getattr(memory, name) for name in ("gradient", "damping", "state", "age", "noise")}
    return {"history": packed_history(memory.history), "held": held, **rest}


def unpacked_memory(content: dict[str, Any] | None, array: Array | None = None) -> Memory | None:
    """The memory that `packed_memory` wrote, of the same array."""
    if content is None:
        return None
    history, held = unpacked_history(content["history"]), content["held"]
    if held is not None:
        if array is None:
            held = Held(history.uploaded, held["K"], held["lanczos"])
        else:
            held = program_array(array, history.uploaded, content["gradient"])
    return Memory(**content | {"history": history, "held": held})


def placed(content: Any, device: Any) -> Any:
    """Every tensor in nested dictionaries and lists on a device."""
    if isinstance(content, dict):
        return {key: placed(value, device) for key, value in content.items()}
    if isinstance(content, list):
        return [placed(value, device) for value in content]
    return content.to(device) if isinstance(content, Tensor) else content


def _begin(memory: Memory | None, settings: Settings, gradient: Tensor, white: White) -> tuple[Tensor | None, bool]:
    """The state x₀ at the upload, None for zero, and whether what led to it was stable.

    The first step of a kept state starts from the gradient.
    """
    if memory is None or memory.held is None or not settings.delay:
        kept = gradient if memory is None else memory.state
        return {"gradient": gradient, "zero": None, "kept": kept}[settings.start], True
    left = {"gradient": memory.gradient, "zero": None, "kept": memory.state}[settings.start]
    return _evolved(memory.held, memory.gradient, left, memory.damping, settings.delay, memory.noise, white)


def _evolved(
    held: Held | HeldArray,
    gradient: Tensor,
    start: Tensor | None,
    damping: float,
    time: float,
    noise: float,
    white: White,
) -> tuple[Tensor, bool]:
    """The state after `time`, and whether the device is stable."""
    drawn = white() if noise else None
    if isinstance(held, Held):
        return device_state(held, gradient, start, damping, time, noise, drawn), True
    real = damping * held.damping_gain
    stable = is_stable(held.matrix, real, time)
    if not stable and isinf(time):
        return gradient, False
    return low_rank_state(held.matrix, gradient, start, real, time, noise, drawn), stable


def _through(converter: Converter, values: Tensor, white: White, to_analog: bool = False) -> tuple[Tensor, int]:
    drawn = white() if converter.noise else None
    found = convert(values, converter, root_mean_square(values), drawn, to_analog)
    return found.values, found.saturated

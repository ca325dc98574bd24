"""Memory of a full-size device from one optimizer step to the next, and one step of it.

The device is read, the parameters move, and while the next gradient is computed (`delay`) the device goes on under the
old curvature and gradient. Then the new pair is uploaded and it evolves for `time`. With start "kept" the state is left
as it is at the upload; with "gradient" or "zero" it is reset: at the upload to the new gradient or zero if there is no
delay, else right after the reading, to the old gradient (the only one known then) or zero.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from tngd.device.converters import standard_normal
from tngd.device.full_size import Draw, FullSizeDevice
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
from tngd.optimizer.stepped import DeviceStep, Upload


@dataclass(frozen=True, eq=False)
class Memory:
    """The pair last uploaded, its damping and κ₀, the state (N,), and how many steps its curvature has served.

    Gradient and state are those on the device, in the coordinates of the history's T. `held` is None once neither a
    later step nor a delay needs that curvature.
    """

    history: History
    held: Any
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
    device: FullSizeDevice, memory: Memory | None, settings: Settings, upload: Upload
) -> tuple[Memory, StateReading]:
    """The memory after one step, and the reading (N,) of the state.

    Random numbers are drawn only where there is noise. An array that is unstable at t = ∞ is reset to the uploaded
    gradient. InputError for what the device refuses.
    """
    fresh, saturated = upload.factor is not None, 0
    white = partial(standard_normal, upload.gradient, upload.generator)
    history = memory.history if memory else None
    if fresh:
        history = remembered(history, upload.factor, settings, upload.shapes)
        if memory and history.metric is not memory.history.metric:
            memory = None  # its state is in the coordinates of another T
    wanted = to_device(history, upload.gradient)
    device.check(settings.lanczos, len(wanted))
    noise = settings.noise + device.noise(wanted)
    uploaded, met = device.upload(wanted, white)
    saturated += met
    begin, left = _begin(device, memory, settings, uploaded, white)
    if fresh:
        once = settings.refresh == 1 and not settings.delay
        held, met = device.program(history.uploaded, uploaded, settings.lanczos, once)
        saturated += met
    else:
        held = memory.held
    state, right = device.evolve(held, uploaded, begin, settings.damping, settings.time, noise, white)
    kept = Memory(history, held, uploaded, settings.damping, state, 1 if fresh else memory.age + 1, noise)
    read, met = device.read(state, wanted, white)
    return kept, StateReading(from_device(history, read), saturated + met, not (left and right))


def due(memory: Memory | None, settings: Settings) -> bool:
    """Whether the next step needs a new curvature."""
    return memory is None or memory.held is None or memory.age >= settings.refresh


def trimmed(memory: Memory | None, settings: Settings) -> Memory | None:
    """The memory without a curvature that no step will use again: it is by far the largest part."""
    if memory is None or settings.delay or not due(memory, settings):
        return memory
    return replace(memory, held=None, history=thinned(memory.history, settings))


@dataclass(frozen=True)
class FullSizeSteps:
    """Steps with a device that holds the curvature of the whole parameter vector; a `SteppedDevice`."""

    device: FullSizeDevice
    part: ClassVar[str] = "memory"

    def check(self, settings: Settings, size: int) -> None:
        """Raise InputError if the device cannot work with these settings, or with a network of `size` parameters N."""
        self.device.check(settings.lanczos, size)

    def curvature(self, memory: Memory | None, settings: Settings) -> str | None:
        """The curvature of the settings where a new one is due, else None."""
        return settings.curvature if due(memory, settings) else None

    def trimmed(self, memory: Memory | None, settings: Settings) -> Memory | None:
        """The memory without a curvature that no step will use again: it is by far the largest part."""
        return trimmed(memory, settings)

    def step(self, memory: Memory | None, settings: Settings, upload: Upload) -> tuple[Tensor, Memory, DeviceStep]:
        """Direction (N,), the memory after the step, and a record of the step."""
        kept, read = advance(self.device, memory, settings, upload)
        rank = kept.history.joined.rank
        last = DeviceStep(rank, kept.age, settings.damping, 1.0, None, read.saturated, read.unstable)
        return read.state, kept, last

    def history(self, memory: Memory) -> History:
        """The curvatures that the device holds together."""
        return memory.history

    def pack(self, memory: Memory) -> dict[str, Any]:
        """Plain dictionaries and tensors, for a state_dict; an array programs its elements again."""
        held = None if memory.held is None else self.device.pack(memory.held)
        rest = {name: getattr(memory, name) for name in ("gradient", "damping", "state", "age", "noise")}
        return {"history": packed_history(memory.history), "held": held, **rest}

    def unpack(self, content: dict[str, Any]) -> Memory:
        """The memory that `pack` wrote."""
        history, held = unpacked_history(content["history"]), content["held"]
        if held is not None:
            held = self.device.unpack(held, history.uploaded, content["gradient"])
        return Memory(**content | {"history": history, "held": held})


def placed(content: Any, device: Any) -> Any:
    """Every tensor in nested dictionaries and lists on a device."""
    if isinstance(content, dict):
        return {key: placed(value, device) for key, value in content.items()}
    if isinstance(content, list):
        return [placed(value, device) for value in content]
    return content.to(device) if isinstance(content, Tensor) else content


def _begin(
    device: FullSizeDevice, memory: Memory | None, settings: Settings, gradient: Tensor, white: Draw
) -> tuple[Tensor | None, bool]:
    """The state x₀ (N,) at the upload, None for zero, and whether the device was stable until then.

    The first step of a kept state starts from the gradient.
    """
    if memory is None or memory.held is None or not settings.delay:
        kept = gradient if memory is None else memory.state
        return {"gradient": gradient, "zero": None, "kept": kept}[settings.start], True
    left = {"gradient": memory.gradient, "zero": None, "kept": memory.state}[settings.start]
    noise = memory.noise
    return device.evolve(memory.held, memory.gradient, left, memory.damping, settings.delay, noise, white)

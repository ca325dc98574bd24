"""What the device remembers from one optimizer step to the next, and one step of it.

The device is read, the parameters move, and while the next gradient is computed (`delay`) the device goes on under the
old curvature and gradient. Then the new pair is uploaded and it evolves for `time`. With start "kept" the state is left
as it is at the upload; with "gradient" or "zero" it is reset: at the upload to the new gradient or zero if there is no
delay, else right after the reading, to the old gradient (the only one known then) or zero.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from tngd.dynamics import Held, device_state, held_curvature
from tngd.gram import Factor, packed, unpacked
from tngd.settings import Settings


@dataclass(frozen=True, eq=False)
class Memory:
    """The pair last uploaded, its damping, the state (N,) last read, and how many steps its curvature has served.

    `held` is None once neither a later step nor a delay needs that curvature.
    """

    held: Held | None
    gradient: Tensor
    damping: float
    state: Tensor
    age: int


def advance(
    memory: Memory | None, settings: Settings, gradient: Tensor, factor: Factor | None, white: Callable[[], Tensor]
) -> Memory:
    """The device after one step with a new gradient (N,) and factor, None to keep the curvature it has.

    `white()` draws standard normal numbers (N,); it is called only if there is noise.
    """
    begin = _begin(memory, settings, gradient, white)
    fresh = factor is not None
    held = held_curvature(factor, gradient, settings.lanczos) if fresh else memory.held
    noise = white() if settings.noise else None
    state = device_state(held, gradient, begin, settings.damping, settings.time, settings.noise, noise)
    return Memory(held, gradient, settings.damping, state, 1 if fresh else memory.age + 1)


def due(memory: Memory | None, settings: Settings) -> bool:
    """Whether the next step needs a new curvature."""
    return memory is None or memory.held is None or memory.age >= settings.refresh


def trimmed(memory: Memory | None, settings: Settings) -> Memory | None:
    """The memory without a curvature that no step will use again: it is by far the largest part."""
    if memory is None or settings.delay or not due(memory, settings):
        return memory
    return replace(memory, held=None)


def packed_memory(memory: Memory | None) -> dict[str, Any] | None:
    """Plain dictionaries and tensors, for a state_dict."""
    if memory is None:
        return None
    held = memory.held and {
        "factor": packed(memory.held.factor),
        "K": memory.held.K,
        "lanczos": memory.held.lanczos,
    }
    return {
        "held": held,
        "gradient": memory.gradient,
        "damping": memory.damping,
        "state": memory.state,
        "age": memory.age,
    }


def unpacked_memory(content: dict[str, Any] | None) -> Memory | None:
    """The memory that `packed_memory` wrote."""
    if content is None:
        return None
    held = content["held"] and Held(
        unpacked(content["held"]["factor"]), content["held"]["K"], content["held"]["lanczos"]
    )
    return Memory(held, content["gradient"], content["damping"], content["state"], content["age"])


def _begin(memory: Memory | None, settings: Settings, gradient: Tensor, white: Callable[[], Tensor]) -> Tensor | None:
    """The state x₀ at the upload, None for zero; the first step of a kept state starts from the gradient."""
    if memory is None or memory.held is None or not settings.delay:
        kept = gradient if memory is None else memory.state
        return {"gradient": gradient, "zero": None, "kept": kept}[settings.start]
    left = {"gradient": memory.gradient, "zero": None, "kept": memory.state}[settings.start]
    noise = white() if settings.noise else None
    return device_state(memory.held, memory.gradient, left, memory.damping, settings.delay, settings.noise, noise)

"""The common face of everything that TNGD makes steps with: ideal device, array, tiles.

A device that holds the whole curvature has a face of its own below this one (tngd.device.full_size); another kind of
device needs either a `FullSizeDevice`, or a `SteppedDevice` where it works on parts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from tngd.curvature.factor import Factor
from tngd.optimizer.history import History
from tngd.optimizer.settings import Settings


@dataclass(frozen=True, eq=False)
class Upload:
    """Inputs of one step: gradient (N,), factor of the batch's curvature, None for the one that the device has.

    `generator` of all noise; `shapes` (n, m) of the parameters by their offsets, where a precondition needs them.
    """

    gradient: Tensor
    factor: Factor | None
    generator: torch.Generator
    shapes: Mapping[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceStep:
    """Record of one step of a full-size device.

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


class SteppedDevice(Protocol):
    """A device, and what it remembers from one step to the next; None is the memory before the first step.

    Laws of every implementation:

        direction     without errors of the device, t = 0 from the gradient gives x = g and t = ∞ gives (λI + C)⁻¹ g,
                      C the curvature that it was given, or the blocks of C that it has tiles for
        no effects    `step` changes neither the memory nor the upload; a step that raises leaves all as it was
        randomness    of the upload's generator alone: equal generators, equal bytes
        resumption    `unpack(pack(memory))` makes the very steps that `memory` makes
    """

    part: str
    """The key of its memory in a state_dict."""

    def check(self, settings: Settings, size: int) -> None:
        """Raise InputError if it cannot work with these settings, or with a network of `size` parameters N."""

    def curvature(self, memory: Any, settings: Settings) -> str | None:
        """The kind of curvature that the next step takes, None for the one that is held."""

    def trimmed(self, memory: Any, settings: Settings) -> Any:
        """The memory without what no later step uses."""

    def step(self, memory: Any, settings: Settings, upload: Upload) -> tuple[Tensor, Any, Any]:
        """Direction (N,), the memory after the step, and a record of the step."""

    def history(self, memory: Any) -> History | None:
        """The curvatures that the memory holds together; None if it keeps none."""

    def pack(self, memory: Any) -> dict[str, Any]:
        """A memory as plain dictionaries and tensors, for a state_dict."""

    def unpack(self, content: dict[str, Any]) -> Any:
        """The memory that `pack` wrote."""

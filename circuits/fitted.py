"""A device: estimates of every copy of one board, how it is written and read, and what a copy does with any target."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from circuits.board import REFERENCE_CELSIUS, Board, Program
from circuits.errors import InputError
from circuits.estimated import Estimate, FittedCopy, by_pairs, gain_names, nominal_cell, nominal_values, pairs_of
from circuits.model.converters import IDEAL, Interface
from circuits.prediction import Prediction, process, programmed

__all__ = [
    "Device",
    "Estimate",
    "FittedCopy",
    "by_pairs",
    "gain_names",
    "nominal_cell",
    "nominal_values",
    "pairs_of",
]


@dataclass(frozen=True)
class Device:
    """Fitted copies of a board, what they were fitted on (route, number of data, χ², programs), held-out targets.

    `values` [F or S] are those of the elements under the board's own program, the one it was designed for (none: not
    known); every copy must be stable under it. `order` is the number of states of the process that is predicted, None:
    all of the pair model.
    """

    board: Board
    copies: tuple[FittedCopy, ...]
    fitted_on: dict[str, Any]
    held_out: dict[str, Any] = field(default_factory=dict)
    interface: Interface = IDEAL
    values: dict[str, float] = field(default_factory=dict)
    order: int | None = None

    def program(
        self,
        target: np.ndarray,
        copy: int = 0,
        *,
        precondition: np.ndarray | None = None,
        name: str = "target",
        ambient: float = REFERENCE_CELSIUS,
        bias: np.ndarray | None = None,
        seed: int = 0,
    ) -> Prediction:
        """Put any positive definite target (n, n) on the board and predict the Ornstein-Uhlenbeck process of a copy.

        Returned are its drift [1/s], diffusion, readout, mean [V], covariance [V²], settling [s], and the inverse that
        is read from them (circuits.prediction). With a `precondition` T (n, n) the board holds T P Tᵀ; it is set by
        codes if it has banks. The rest as in `under`. InputError if the target is not symmetric and positive definite,
        the precondition not invertible, or the board does not hold them.
        """
        made = programmed(self.board, target, precondition, name)
        return self.under(made, copy, ambient=ambient, bias=bias, seed=seed)

    def under(
        self,
        made: Program,
        copy: int = 0,
        *,
        ambient: float = REFERENCE_CELSIUS,
        bias: np.ndarray | None = None,
        seed: int = 0,
    ) -> Prediction:
        """The process of copy number `copy` (from 0) under a program that is made already, at `ambient` [°C].

        `bias` (n,) [A] are currents into the cells, none by default; `seed` draws the DAC's noise on them. InputError
        if there is no such copy, and for what `circuits.prediction.process` refuses.
        """
        if not 0 <= copy < len(self.copies):
            raise InputError(f"the device has copies 0 to {len(self.copies) - 1}, got {copy}")
        return process(self.board, self.copies[copy], self.interface, made, ambient, bias, seed, self.order)


def checked(device: Device) -> Device:
    """The same; InputError if it is none, as a preset's name or a path is."""
    if not isinstance(device, Device):
        raise InputError(f"expected a device, got {device!r:.80}; read one with circuits.model.device_file.load_device")
    return device

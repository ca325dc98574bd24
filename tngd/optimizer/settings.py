"""Settings of a device and its steps, checked in one place."""

from dataclasses import dataclass, fields
from math import inf, isinf
from numbers import Real
from typing import Any

from circuits.errors import InputError
from tngd.curvature.curvatures import CURVATURES

LONGEST = 1e100  # a finite time whose square is a number
STARTS = ("gradient", "zero", "kept")


@dataclass(frozen=True)
class Settings:
    """Settings of the device and of its steps, one record for all groups; `TNGD` says what each is.

    InputError for a value that cannot be. The defaults are those of `TNGD`.
    """

    curvature: str = "ggn"
    damping: float = 1e-2
    refresh: int = 1
    time: float = inf
    start: str = "gradient"
    delay: float = 0.0
    noise: float = 0.0
    max_norm: float | None = None
    kl_clip: float | None = None
    adapt: int = 0
    lanczos: int | None = None
    tile_curvature: str = "ggn"
    history: int = 1
    precondition: float | None = None

    def __post_init__(self):
        if self.curvature not in (*CURVATURES, "tiles"):
            raise InputError(f"curvature must be one of {', '.join(CURVATURES)} or tiles, got {self.curvature!r}")
        if self.start not in STARTS:
            raise InputError(f"start must be one of {', '.join(STARTS)}, got {self.start!r}")
        self._check_numbers()
        for name in ("time", "delay", "noise"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must be 0 or above, got {getattr(self, name)}")
        endless = isinf(self.time) or isinf(self.delay) or self.curvature == "tiles"
        if not (self.damping >= 0 and not isinf(self.damping)) or (self.damping == 0 and endless):
            raise InputError(
                f"damping must be above 0{'' if endless else ', or 0 for a finite time'}, got {self.damping}"
            )
        for name in ("time", "delay"):
            if LONGEST < getattr(self, name) < inf:
                raise InputError(f"{name} must be up to {LONGEST:g} or inf, got {getattr(self, name)}")
        if isinf(self.noise):
            raise InputError("noise must be finite, got inf")
        self._check_counts()
        for name in ("max_norm", "kl_clip", "precondition"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < inf:
                raise InputError(f"{name} must be above 0 and finite (None for none), got {getattr(self, name)}")
        if self.tile_curvature not in CURVATURES:
            raise InputError(f"tile_curvature must be one of {', '.join(CURVATURES)}, got {self.tile_curvature!r}")
        if self.curvature == "tiles":
            self._check_tiles()

    def _check_numbers(self) -> None:
        optional = ("max_norm", "kl_clip", "precondition")
        for name in ("damping", "time", "delay", "noise", *optional):
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if not isinstance(value, Real) or isinstance(value, bool):
                raise InputError(f"{name} must be a number, got {value!r}")

    def _check_counts(self) -> None:
        for name in ("refresh", "adapt", "lanczos", "history"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise InputError(f"{name} is a whole number, got {value!r}")
        if self.refresh < (0 if self.curvature == "tiles" else 1):
            least = "0 or more" if self.curvature == "tiles" else "1 or more"
            raise InputError(f"refresh is a number of steps, {least}, got {self.refresh}")
        if self.adapt < 0:
            raise InputError(f"adapt is a number of steps, 0 for a fixed damping, got {self.adapt}")
        if self.lanczos is not None and self.lanczos < 1:
            raise InputError(f"lanczos is a number of steps, 1 or more (None for none), got {self.lanczos}")
        if self.history < 1:
            raise InputError(f"history is a number of batches, 1 or more, got {self.history}")

    def _check_tiles(self) -> None:
        given: dict[str, Any] = {
            "delay": (self.delay, 0.0),
            "adapt": (self.adapt, 0),
            "kl_clip": (self.kl_clip, None),
            "lanczos": (self.lanczos, None),
            "history": (self.history, 1),
            "precondition": (self.precondition, None),  # they have factors T of their own
        }
        for name, (value, only) in given.items():
            if value != only:
                raise InputError(f"tiles know no {name}, got {name}={value!r}")


def one_of(record: Settings | None, keywords: Settings, tiles: bool) -> Settings:
    """The record if there is one, else the settings that keywords gave; InputError if both say something.

    `tiles`: there is a board, with which the defaults of the keywords are those of tiles.
    """
    if record is None:
        return keywords
    if not isinstance(record, Settings):
        raise InputError(f"settings must be a Settings record, got {record!r:.80}; make one with tngd.Settings(...)")
    untouched = Settings(curvature="tiles", refresh=10) if tiles else Settings()
    changed = [f.name for f in fields(Settings) if getattr(keywords, f.name) != getattr(untouched, f.name)]
    if changed:
        raise InputError(f"{changed[0]} is in the settings record; give it there, or give keywords and no record")
    return record

"""Studies of the effect of each property of the device on training: one table a study, small network, three seeds.

4,000 training images, three epochs. The cells of a study differ only in the property under study. Where the best step
size depends on the property (a kept state acts as a momentum), the study varies the step size too, and the table shows
every step size.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any

Settings = dict[str, Any]
SAMPLED = {"curvature": "mc", "lr": 0.03, "damping": 0.1}
UNDER_T = {"curvature": "mc", "refresh": 8, "damping": 4.0, "precondition": 0.1, "time": 5.0, "momentum": 0.9}
ARRAY = {"rows": 576, "time": "inf", "refresh": 10, "kl_clip": 1e-3, "lr": 0.03, "damping": 0.03}


@dataclass(frozen=True)
class StudyCell:
    """One row of a table: the varied settings as shown, and the optimizer (see tngd.training.methods)."""

    varied: Settings
    kind: str
    settings: Settings

    @property
    def name(self) -> str:
        """Key of the cell in the results file."""
        return ", ".join(f"{key} {value}" for key, value in self.varied.items())


@dataclass(frozen=True)
class Study:
    """One table: its subject, and its rows."""

    about: str
    cells: tuple[StudyCell, ...]


def _kept_state() -> Study:
    cells = [
        StudyCell(
            {"start": start, "delay": delay, "lr": lr},
            "TNGD",
            {"curvature": "mc", "damping": 0.01, "time": 5.0, "start": start, "delay": delay, "lr": lr},
        )
        for start in ("gradient", "kept")
        for delay in (0.0, 0.2, 1.0)
        for lr in (0.01, 0.03, 0.1)
    ]
    return Study("state kept or reset to the gradient, and delay, at t = 5", tuple(cells))


def _time() -> Study:
    cells = [
        StudyCell({"curvature": curvature, "time": time}, "TNGD", SAMPLED | {"curvature": curvature, "time": time})
        for curvature in ("mc", "ggn")
        for time in (0.0, 0.2, 1.0, 5.0, 50.0, "inf")
    ]
    return Study("time from upload to reading; 0 is gradient descent, inf natural gradient", tuple(cells))


def _noise() -> Study:
    cells = [
        StudyCell({"noise": noise, "lr": lr}, "TNGD", SAMPLED | {"time": 1.0, "noise": noise, "lr": lr})
        for lr in (0.03, 0.1)
        for noise in (0.0, 1e-3, 1e-2, 1e-1)
    ]
    return Study("noise κ₀ of the device at t = 1", tuple(cells))


def _damping() -> Study:
    cells = [
        StudyCell({"damping": damping, "lr": lr}, "TNGD", {"damping": damping, "lr": lr, "time": 50.0, "refresh": 10})
        for damping in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
        for lr in (0.03, 0.1, 0.3)
    ]
    return Study("damping λ at t = 50, curvature kept 10 steps", tuple(cells))


def _tolerance() -> Study:
    cells = [
        StudyCell(
            {"device": f"tiles, {programming}", "parts": f"±{tolerance:.1%}"},
            "tiles",
            {"tolerance": tolerance, "refresh": refresh, "lr": 0.03, "damping": 0.03},
        )
        for programming, refresh in (("preconditioned", 10), ("raw", 0))
        for tolerance in (0.001, 0.01, 0.05)
    ]
    cells += [
        StudyCell(
            {"device": "full-size array", "parts": f"±{tolerance:.1%}"},
            "arrays",
            ARRAY | {"deviation": tolerance / sqrt(3)},
        )
        for tolerance in (0.0, 0.001, 0.01, 0.05)
    ]
    cells += [
        StudyCell(
            {"device": "full-size array, preconditioned", "parts": f"±{tolerance:.1%}"},
            "arrays",
            UNDER_T | {"rows": 512, "history": 8, "lr": 0.025, "deviation": tolerance / sqrt(3)},
        )
        for tolerance in (0.0, 0.001, 0.01, 0.05)
    ]
    return Study("tolerance of the parts, uniform: tiles of 8 x 8, and the array that holds all of it", tuple(cells))


def _history() -> Study:
    plain = {"curvature": "mc", "refresh": 8, "damping": 0.03, "time": "inf", "kl_clip": 1e-3}
    cells = [
        StudyCell({"T": name, "batches held": batches, "lr": lr}, "TNGD", settings | {"history": batches, "lr": lr})
        for name, settings, rates in (("none", plain, (0.03, 0.1)), ("Kronecker", UNDER_T, (0.012, 0.025)))
        for batches in (1, 8, 32)
        for lr in rates
    ]
    return Study("batches whose curvatures are held together, without and with a factor T of older ones", tuple(cells))


def _bits() -> Study:
    cells = [
        StudyCell(
            {"converter": where, "full scale, rms": scale, "bits": bits},
            "arrays",
            ARRAY | {"deviation": 0.0, "converters": {name: {"bits": bits, "range": scale} for name in names}},
        )
        for where, names in (("DAC and ADC", ("dac", "adc")), ("elements", ("elements",)))
        for scale in (4.0, 16.0)
        for bits in (4, 6, 8, 12)
    ]
    cells.append(StudyCell({"converter": "none"}, "arrays", ARRAY | {"deviation": 0.0}))
    return Study("bits of the converters of gradient and state, and of the elements of the array", tuple(cells))


def _sign() -> Study:
    natural = {"curvature": "mc", "damping": 0.1, "time": 50.0}
    signs = {"beta1": 0.0, "beta2": 0.0}
    cells = []
    for lr in (0.0003, 0.001, 0.003):
        cells.append(StudyCell({"step": "sign of the gradient", "lr": lr}, "Adam", signs | {"lr": lr}))
        cells.append(
            StudyCell({"step": "sign of the natural gradient", "lr": lr}, "TNGD-Adam", natural | signs | {"lr": lr})
        )
        cells.append(StudyCell({"step": "Adam", "lr": lr}, "Adam", {"lr": lr}))
        cells.append(StudyCell({"step": "Adam of the natural gradient", "lr": lr}, "TNGD-Adam", natural | {"lr": lr}))
    return Study("TNGD-Adam with β₁ = β₂ = 0 is sign descent: beside signs of the plain gradient", tuple(cells))


STUDIES: dict[str, Study] = {
    "kept-state": _kept_state(),
    "time": _time(),
    "noise": _noise(),
    "damping": _damping(),
    "tolerance": _tolerance(),
    "history": _history(),
    "bits": _bits(),
    "sign": _sign(),
}

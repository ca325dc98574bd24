"""Calibration of physical boards from recorded readings: parts, temperatures, and what the readout does to them.

    data = C(0), C(L),   <C_ij(τ)> = r_i r_j ρ_ij(τ; θ) - V_ij,   offset = mean reading

with C(τ) the covariances of readings τ apart about the mean, their joint law from circuits.calibration.observations, r the relative gains
of the readout, and L the lag that circuits.statistics.recorded keeps: a quarter period, or the time constant, of a cell. Pairs of
readings count that have no gap between them; a record without any has C(0) alone, which tells the parts that settle
nothing (inductances, a common scale of time). There are fewer data than a board has parts, so some keep their prior,
and the standard errors say so. A gain that all cells have in common cannot be told from their common temperature,
r² T = const, nor from a common scale of all parts: it takes the share that its prior leaves it, and its error is
reported by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from circuits.board import REFERENCE_CELSIUS, Design
from circuits.calibration.discrepancy import FEW, Draws, draw_pairs
from circuits.calibration.experiments import UNKNOWN, correlations
from circuits.calibration.fit import Fit, Known, fit
from circuits.calibration.observations import lagged_evidence
from circuits.covariances import covariance_evidence, with_readout
from circuits.errors import InputError
from circuits.model.device import Device, copy_of
from circuits.model.fitted_copy import Estimate, FittedCopy
from circuits.model.pairs import PairModel, pair_model
from circuits.parallel import Progress, silent
from circuits.statistics.estimators import LONG_RECORD, EstimateLaw, effective_samples
from circuits.statistics.recorded import Recorded, recorded_law

READOUT = 0.01  # half width of the uniform relative spread of a cell's readout gain, unless told better
LARGEST_READOUT = 0.5


@dataclass(frozen=True, eq=False)
class Measured:
    """What came of it: the device, its model with the readout's gains as parameters, and the fits by copy."""

    device: Device
    model: PairModel
    fits: dict[str, Fit]


def calibrate_measured(
    design: Design,
    recorded: Sequence[Recorded],
    readout: float = READOUT,
    progress: Progress = silent,
) -> Measured:
    """Fit every recorded copy of a design without banks; gains of the readout are within ±`readout`, 0: exact.

    InputError if the board has banks, the readings were taken at another temperature, are clipped or too few.
    """
    board = design.board
    if board.banks:
        raise InputError("one program does not show all parts of a board with banks; leave out --measured")
    if not 0 <= readout <= LARGEST_READOUT:
        raise InputError(
            f"--readout-tolerance is a relative spread from 0 to {LARGEST_READOUT:g}, got {readout:g}; "
            "0.01 is one per cent"
        )
    for each in recorded:
        _check(each)
    parts = pair_model(board)
    model, place = with_readout(parts, readout) if readout else (parts, None)
    draws = draw_pairs(parts, design.seed, FEW)
    fits = {}
    for k, each in enumerate(recorded):
        progress(k, len(recorded), f"fitting {each.summary.name}")
        law = recorded_law(design, each)
        worth = effective_samples(law)
        if worth < LONG_RECORD:
            raise InputError(
                f"the readings of {each.summary.name} are worth {worth:.0f} independent ones, and a fit takes "
                f"{LONG_RECORD:.0f}; record for longer"
            )
        evidence, shown = _evidence(model, design, each, law, draws, place)
        fits[each.summary.name] = fit(model, [evidence], [evidence.data(shown)])
    copies = tuple(_copy(design, model, len(parts.names), fits[each.summary.name], each) for each in recorded)
    about = _readings_summary(design, model, recorded, fits, place)
    return Measured(Device(board, copies, about, values=dict(design.program.values)), model, fits)


def _evidence(
    model: PairModel, design: Design, recorded: Recorded, law: EstimateLaw, draws: Draws, place: slice | None
) -> tuple[Known, np.ndarray]:
    """What to expect of a record, and what it showed: (n, n), or with a lag (2, n, n) [V²]."""
    sums = recorded.sums
    if sums is None:
        return covariance_evidence(model, design.program, law, draws, place), recorded.covariance
    period, pairs = recorded.summary.period_s, (recorded.pairs, recorded.sums_pairs)
    found = lagged_evidence(model, design.program, period, (0, sums.lag), pairs, draws, place)
    return found, np.array([recorded.covariance, sums.lagged / sums.pairs])


def _check(recorded: Recorded) -> None:
    about = recorded.summary
    if about.ambient != REFERENCE_CELSIUS:
        raise InputError(
            f"a device is calibrated at {REFERENCE_CELSIUS:g} °C, the readings are of {about.ambient:g} °C; "
            f"record them at {REFERENCE_CELSIUS:g} °C"
        )
    if about.clipped:
        clip = about.clipped[0]
        raise InputError(
            f"{clip.cell} of {about.name} has {clip.readings:,} clipped readings at {clip.level_V:+.6g} V, which bias "
            "its covariance; record with less gain"
        )


def _copy(design: Design, model: PairModel, known: int, found: Fit, recorded: Recorded) -> FittedCopy:
    """The record of a fit whose first `known` parameters are parts, and the others gains of the readout."""
    about = recorded.summary
    error = np.sqrt(np.diag(found.covariance))
    gains = zip(found.values[known:], error[known:], model.spreads[known:], strict=True)
    offsets = zip(about.mean_V, about.mean_error_V, strict=True)
    return replace(
        copy_of(
            design.board, about.name, pair_model(design.board), found.values[:known], found.covariance[:known, :known]
        ),
        readout_gains=tuple(Estimate(float(v), float(e), bool(e < spread / 2)) for v, e, spread in gains),
        readout_offsets=tuple(Estimate(float(v), float(e), True) for v, e in offsets),
    )


def _readings_summary(
    design: Design, model: PairModel, recorded: Sequence[Recorded], fits: dict[str, Fit], place: slice | None
) -> dict[str, Any]:
    first = next(iter(fits.values()))
    left = np.sqrt(np.diag(first.covariance)) / model.spreads
    return {
        "route": "measured",
        "program": design.program.name,
        "target_step": design.program.step,
        "parameters": len(model.names),
        "undetermined": [name for name, share in zip(model.names, left, strict=True) if share > UNKNOWN],
        "data": len(first.residuals),
        "copies": {each.summary.name: _about(model, each, fits[each.summary.name], place) for each in recorded},
    }


def _about(model: PairModel, recorded: Recorded, found: Fit, place: slice | None) -> dict[str, Any]:
    about = {
        "readings": recorded.summary.readings,
        "remarks": list(recorded.summary.remarks),
        "chi_square": float(found.residuals @ found.residuals),
        "rms_residual_uncalibrated": float(np.sqrt(np.mean(found.residuals_nominal**2))),
        "rms_residual": float(np.sqrt(np.mean(found.residuals**2))),
        "residuals_uncalibrated": found.residuals_nominal.tolist(),
        "residuals": found.residuals.tolist(),
        "correlated": [list(row) for row in correlations(model.names, found.covariance)],
    }
    return about if place is None else about | {"common_gain": _common_gain(model, found, place)}


def _common_gain(model: PairModel, found: Fit, place: slice) -> dict[str, float]:
    """Mean gain of the readout, and of it and the temperatures together, with what the prior knew of either."""
    r, t = np.zeros(len(model.names)), np.zeros(len(model.names))
    r[place] = 1 / len(r[place])
    hot = [k for k, name in enumerate(model.names) if name.startswith("temperature")]
    t[hot] = 1 / max(len(hot), 1)

    def error(w: np.ndarray) -> float:
        return float(np.sqrt(w @ found.covariance @ w))

    return {
        "value": float(r @ found.values),
        "standard_error": error(r),
        "prior_standard_error": float(np.sqrt((r * model.spreads) @ (r * model.spreads))),
        "with_temperature_standard_error": error(2 * r + t),
    }

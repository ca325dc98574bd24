"""Calibration of a board with switched banks: training programs in ngspice on every copy, fit, and held-out targets.

No single program shows every part of such a board, so calibration programs it itself (circuits.programmings), fits the
parts of every copy to all programs at once, and then meets targets the fit never saw.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from circuits.bench import Shown, run_programs
from circuits.board import Program
from circuits.copies import codes
from circuits.design import Design
from circuits.device import Device, copy_of
from circuits.evidence import draw_mismatch, evidence_frequencies
from circuits.fitting import Fit, fit, observed
from circuits.heldout import HeldOut, held_out_programs, judge, measured_inverse, predicted_inverse
from circuits.pairs import PairModel, pair_model
from circuits.programmings import Training, correlations, training_programs
from circuits.store import sha256

KEPT_RESIDUALS = 400  # of every copy, evenly through the sorted ones: enough to draw their distribution
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Banked:
    """What came of it: the device, the fits by copy, the training, and the held-out comparison."""

    device: Device
    fits: dict[str, Fit]
    training: Training
    held_out: HeldOut


def calibrate_banks(
    design: Design,
    folder: Path | None = None,
    progress: Progress = lambda done, total, what: None,
    targets: int = 4,
    codes: int = 2,
) -> Banked:
    """Calibrate every copy of a design with banks; runs are kept in `folder`.

    `targets` random targets and `codes` random codes are held out. Raises SimulationError if a run fails twice.
    """
    board, model = design.board, pair_model(design.board)
    progress(0, 1, "choosing training programs")
    training = training_programs(model, design.seed)
    fresh = held_out_programs(board, design.seed, targets, codes)
    programs = (*training.programs, *fresh)
    shown = run_programs(board, programs, design.copies, evidence_frequencies(board), folder, progress)
    fits: dict[str, Fit] = {}
    for k, (copy, runs) in enumerate(zip(design.copies, shown, strict=True)):
        progress(k, len(shown), f"fitting {copy.name}")
        evidence, data = zip(
            *(observed(e, run.exact, run.solved) for e, run in zip(training.evidence, runs, strict=False)), strict=True
        )
        fits[copy.name] = fit(model, evidence, data)
    held_out = _judged(model, design, fits, fresh, [runs[len(training.programs) :] for runs in shown])
    copies = tuple(copy_of(board, name, model, f.values, f.covariance) for name, f in fits.items())
    device = Device(board, copies, _summary(design, model, training, fits, shown), asdict(held_out))
    return Banked(device, fits, training, held_out)


def _judged(
    model: PairModel, design: Design, fits: dict[str, Fit], fresh: tuple[Program, ...], shown: list[list[Shown]]
) -> HeldOut:
    mismatch = draw_mismatch(model, design.seed)
    names, told, came = [], [], []
    for found, runs in zip(fits.values(), shown, strict=True):
        for program, run in zip(fresh, runs, strict=True):
            names.append(program.name)
            told.append(predicted_inverse(model, program, found.values, found.covariance, mismatch))
            came.append(measured_inverse(design.board, program, run.exact.covariance, run.solved))
    return judge(names, told, came)


def _summary(
    design: Design, model: PairModel, training: Training, fits: dict[str, Fit], shown: list[list[Shown]]
) -> dict[str, Any]:
    first = next(iter(fits.values()))
    unknown = [n for n, u in zip(model.names, training.uncertainty, strict=True) if u > 0.5]
    return {
        "route": "exact",
        "program": "training",
        "target_step": "codes",
        "training_programs": len(training.programs),
        "training_codes": [list(codes(design.board, program).values()) for program in training.programs],
        "parameters": len(model.names),
        "undetermined": unknown,
        "data": len(first.residuals),
        "runs_sha256": sha256("".join(run.sha256 for runs in shown for run in runs)),
        "copies": {
            name: {
                "chi_square": float(found.residuals @ found.residuals),
                "rms_residual_uncalibrated": float(np.sqrt(np.mean(found.residuals_nominal**2))),
                "rms_residual": float(np.sqrt(np.mean(found.residuals**2))),
                "residuals_uncalibrated": _thinned(found.residuals_nominal),
                "residuals": _thinned(found.residuals),
                "correlated": [list(row) for row in correlations(model.names, found.covariance)],
            }
            for name, found in fits.items()
        },
    }


def _thinned(residuals: np.ndarray) -> list[float]:
    kept = np.linspace(0, len(residuals) - 1, min(KEPT_RESIDUALS, len(residuals))).round().astype(int)
    return np.sort(residuals)[kept].tolist()

"""Calibration by programs of its own: training programs in ngspice on every copy, one fit, and held-out targets.

No single program shows every part of a board, so calibration programs it itself (circuits.calibration.experiments), fits the parts
of every copy to all programs at once, and then meets targets the fit never saw. Training runs are exact (spectra) or
sampled (covariances, by the law of their estimate); held-out targets are always run exactly, so that what is judged is
the prediction.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from circuits.board import Design
from circuits.calibration.discrepancy import DRAWS, FEW, MORE, Draws, draw_pairs
from circuits.calibration.experiments import Training, soldered_training, training_programs
from circuits.calibration.fit import Fit, Known, fit_all, observed
from circuits.calibration.held_out import HeldOut
from circuits.copies import codes
from circuits.covariances import covariance_evidence
from circuits.errors import InputError
from circuits.files import sha256
from circuits.model.device import Device, copy_of
from circuits.model.fitted_copy import gain_names
from circuits.model.pairs import PairModel, half_circuit, half_of, pair_model
from circuits.pairwise import doubtful, undetermined
from circuits.parallel import Progress, silent
from circuits.simulation.measure import Sampled, Shown, run_programs, sample_programs
from circuits.simulation.transient import chunks_law
from circuits.validation import validate

KEPT_RESIDUALS = 400  # of every copy, evenly through the sorted ones: enough to draw their distribution


@dataclass(frozen=True, eq=False)
class Programmed:
    """What came of it: the device, the model and the fits by copy, the training, and the held-out comparison."""

    device: Device
    model: PairModel
    fits: dict[str, Fit]
    training: Training
    held_out: HeldOut


def calibrate_programs(
    design: Design,
    folder: Path | None = None,
    progress: Progress = silent,
    targets: int = 4,
    codes: int = 2,
    route: str = "exact",
    samples: int = 100_000,
    seed: int = 0,
) -> Programmed:
    """Calibrate every copy of a design on programs of its own; runs are kept in `folder`.

    `route` is exact, or sampled with `samples` readings of a copy under a program and noise of this `seed`. `targets`
    random targets and with banks `codes` random codes are held out. Raises SimulationError if a run fails twice.
    """
    if route not in ("exact", "sampled"):
        raise InputError(f"expected the route exact or sampled, got {route!r}")
    board, model = design.board, pair_model(design.board)
    if not set(gain_names(board)) <= set(model.names):
        raise InputError("parts of this board are exact, with no tolerance; there is nothing to calibrate")
    progress(0, 1, "choosing training programs")
    draws = draw_pairs(model, design.seed, FEW if route == "sampled" else MORE if board.banks else DRAWS)
    training = (
        training_programs(model, design.seed, draws)
        if board.banks
        else soldered_training(model, design.program, design.seed, draws)
    )
    wanted = training.evidence[0].frequencies
    if route == "exact":
        shown = run_programs(board, training.programs, design.copies, wanted, folder, progress, spectra_only=True)
    else:
        shown = sample_programs(board, training.programs, design.copies, samples, seed, folder, progress)
    known = training.evidence if route == "exact" else _sampled_evidence(model, draws, training, shown[0])
    matched = {copy.name: _matched(known, runs) for copy, runs in zip(design.copies, shown, strict=True)}
    fits = fit_all(model, matched, progress)
    held_out, judged = validate(design, model, fits, draws, wanted, folder, progress, targets, codes)
    copies = tuple(copy_of(board, name, model, f.values, f.covariance) for name, f in fits.items())
    about = _programs_summary(design, model, training, fits, [*shown, *judged])
    about |= {"route": route} | ({"samples": samples} if route == "sampled" else {})
    device = Device(board, copies, about, asdict(held_out), values=dict(design.program.values))
    return Programmed(device, model, fits, training, held_out)


def _sampled_evidence(model: PairModel, draws: Draws, training: Training, runs: Sequence[Sampled]) -> tuple[Known, ...]:
    """What to expect of sampled runs of every training program, by the law of the nominal board."""
    ones, found = np.ones(len(model.names)), []
    for program, run in zip(training.programs, runs, strict=True):
        law = chunks_law(run.recipe, half_circuit(half_of(model, program), ones), program.period, run.samples)
        found.append(covariance_evidence(model, program, law, draws))
    return tuple(found)


def _matched(known: Sequence[Known], runs: Sequence[Shown] | Sequence[Sampled]) -> tuple[list[Known], list[np.ndarray]]:
    """Evidence and data of every program of one copy."""
    pairs = [
        (each, each.data(run.covariance)) if isinstance(run, Sampled) else observed(each, run.exact, run.solved)
        for each, run in zip(known, runs, strict=True)
    ]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _programs_summary(
    design: Design,
    model: PairModel,
    training: Training,
    fits: dict[str, Fit],
    shown: Sequence[Sequence[Shown | Sampled]],
) -> dict[str, Any]:
    return {
        "program": "training",
        "target_step": "codes" if design.board.banks else "random targets",
        "training_programs": len(training.programs),
        "training_codes": [list(codes(design.board, program).values()) for program in training.programs],
        "data": len(next(iter(fits.values())).residuals),
        **undetermined(model, fits),
        "runs_sha256": sha256("".join(run.sha256 for runs in shown for run in runs)),
        "copies": {
            name: {
                "chi_square": float(found.residuals @ found.residuals),
                "rms_residual_uncalibrated": float(np.sqrt(np.mean(found.residuals_nominal**2))),
                "rms_residual": float(np.sqrt(np.mean(found.residuals**2))),
                "residuals_uncalibrated": _thinned(found.residuals_nominal),
                "residuals": _thinned(found.residuals),
                **doubtful(model, found),
            }
            for name, found in fits.items()
        },
    }


def _thinned(residuals: np.ndarray) -> list[float]:
    kept = np.linspace(0, len(residuals) - 1, min(KEPT_RESIDUALS, len(residuals))).round().astype(int)
    return np.sort(residuals)[kept].tolist()

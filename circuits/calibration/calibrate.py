"""Fit of the reduced-order model of each copy to what ngspice returned for it.

    minimise  Σ ((data - model(θ)) / σ)² + Σ ((θ - 1) / σ_prior)²

θ: relative gain of every populated element, relative temperature and inductance of every cell. From exact runs the
data are the covariance and the spectra at two frequencies; mean and σ of what the reduced model leaves out (mismatch
inside pairs) come from copies drawn from the prior. From sampled runs the data are the covariance alone, weighted by
the law of the estimate. σ_prior is the tolerance of the parts; elements that the program leaves out keep their prior.
Standard errors are those of the minimum under the full covariance of the data's errors (the sandwich formula).
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from circuits.board import Design
from circuits.calibration.discrepancy import draw_pairs
from circuits.calibration.element_fit import (
    STEP,
    drawn_discrepancy,
    exact_misfit,
    fit_misfit,
    fitted_copy,
    layout_of,
    model_circuit,
    paired,
    prior_of,
    sampled_misfit,
)
from circuits.calibration.experiments import training_frequencies
from circuits.calibration.fit import Fit
from circuits.errors import InputError
from circuits.model.device import Device, copy_of
from circuits.model.fitted_copy import by_pairs, gain_names
from circuits.model.pairs import pair_model
from circuits.ou import reading_covariance
from circuits.pairwise import check_runs, doubtful, fit_pairs, pair_errors, undetermined
from circuits.parallel import Progress, silent
from circuits.simulation.ngspice import has_ngspice
from circuits.simulation.runs import Run
from circuits.statistics.inversion import inversion, triangle
from circuits.validation import validate


def calibrate(
    design: Design,
    measured: dict[str, Run],
    route: str,
    progress: Progress = silent,
) -> tuple[Device, dict[str, Fit]]:
    """Fit every copy to its `route` ("exact" or "sampled") run; the device, and the fits by copy."""
    board, program = design.board, design.program
    if board.banks:
        raise InputError("one program does not show all parts of a board with banks; use calibrate_programs")
    if by_pairs(board):
        fits, model = fit_pairs(design, measured, route, progress), pair_model(board)
        copies = tuple(copy_of(board, name, model, found.values, found.covariance) for name, found in fits.items())
        return Device(board, copies, _runs_summary(design, route, fits), values=dict(program.values)), fits
    layout = layout_of(design)
    check_runs(design, [measured[copy.name] for copy in design.copies], route)
    prior = prior_of(board, layout)
    discrepancy = drawn_discrepancy(design, layout, measured) if route == "exact" else None
    fits = {}
    for k, copy in enumerate(design.copies):
        progress(k, len(design.copies), f"fitting {copy.name}")
        if route == "exact":
            misfit = exact_misfit(board, program, layout, measured[copy.name], discrepancy)
        else:
            misfit = sampled_misfit(board, program, layout, measured[copy.name])
        fits[copy.name] = fit_misfit(misfit, prior)
        progress(k + 1, len(design.copies), f"fitting {copy.name}")
    copies = tuple(fitted_copy(board, name, layout, fit) for name, fit in fits.items())
    return Device(board, copies, _runs_summary(design, route, fits), values=dict(design.program.values)), fits


def validated(
    design: Design, device: Device, fits: dict[str, Fit], folder: Path | None = None, progress: Progress = silent
) -> Device:
    """The device of these fits of `calibrate`, and how it did on held-out programs, which are run in ngspice now.

    Where there is no ngspice or no other program goes on the board, `fitted_on` says so as `not_held_out`. A device
    whose parts are exact stays as it is. Raises SimulationError if a run fails twice.
    """
    model, found = paired(design, device.fitted_on["route"], fits)
    if not set(gain_names(design.board)) <= set(model.names):
        return device
    draws = draw_pairs(model, design.seed, next(iter(found.values())).draws)
    wanted = training_frequencies(model, design.program)
    if not has_ngspice():
        return replace(device, fitted_on=device.fitted_on | {"not_held_out": "ngspice was not found to run any"})
    try:
        held_out, _ = validate(design, model, found, draws, wanted, folder, progress)
    except InputError as error:
        return replace(device, fitted_on=device.fitted_on | {"not_held_out": str(error)})
    return replace(device, held_out=asdict(held_out))


def uncertainties(design: Design, fits: dict[str, Fit]) -> tuple[float, ...]:
    """Relative standard error (Frobenius) of the inverse that each fit of `calibrate` predicts for the own program."""
    board, program = design.board, design.program
    if by_pairs(board):
        return pair_errors(design, fits)
    layout, rule = layout_of(design), inversion(design)

    def inverse(theta: np.ndarray) -> np.ndarray:
        return rule.read(reading_covariance(model_circuit(board, program, layout, theta)))

    found = []
    for own in fits.values():
        steps = STEP * np.eye(len(own.values))
        J = np.array([triangle(inverse(own.values + e) - inverse(own.values - e)) for e in steps]) / (2 * STEP)
        spread = np.trace(J.T @ own.covariance @ J)
        found.append(float(np.sqrt(spread) / np.linalg.norm(inverse(own.values))))
    return tuple(found)


def _runs_summary(design: Design, route: str, fits: dict[str, Fit]) -> dict[str, Any]:
    model, found = paired(design, route, fits)
    return {
        "route": route,
        "program": design.program.name,
        "target_step": design.program.step,
        "data": len(next(iter(fits.values())).residuals),
        **undetermined(model, found),
        "copies": {
            name: {
                "chi_square": float(fit.residuals @ fit.residuals),
                "rms_residual_uncalibrated": float(np.sqrt(np.mean(fit.residuals_nominal**2))),
                "rms_residual": float(np.sqrt(np.mean(fit.residuals**2))),
                "residuals_uncalibrated": fit.residuals_nominal.tolist(),
                "residuals": fit.residuals.tolist(),
                **doubtful(model, fit),
            }
            for name, fit in found.items()
        },
    }

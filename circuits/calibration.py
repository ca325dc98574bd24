"""Fit of the reduced-order model of each copy to what ngspice returned for it.

    minimise  Σ ((data - model(θ)) / σ)² + Σ ((θ - 1) / σ_prior)²

θ: relative gain of every populated element, relative temperature and inductance of every cell. From exact runs the
data are the covariance and the spectra at two frequencies; mean and σ of what the reduced model leaves out (mismatch
inside pairs) come from copies drawn from the prior. From sampled runs the data are the covariance alone, weighted by
the law of the estimate. σ_prior is the tolerance of the parts; elements that the program leaves out keep their prior.
Standard errors are those of the minimum under the full covariance of the data's errors (the sandwich formula).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import least_squares

from circuits.assembly import Circuit, assemble_gains, is_stable
from circuits.board import Board, Conditions, Program
from circuits.copies import draw_gains
from circuits.design import Design
from circuits.device import Device, Estimate, FittedCopy, copy_of, reduced_circuit
from circuits.errors import InputError
from circuits.fitted import by_pairs
from circuits.fitting import Fit, plain_fit
from circuits.inversion import inversion, triangle
from circuits.jobs import Progress, silent
from circuits.ou import reading_covariance, spectrum
from circuits.pairs import pair_model
from circuits.pairwise import check_runs, fit_pairs, pair_errors
from circuits.runs import Run
from circuits.sampled import chunks_covariance, chunks_law

DISCREPANCY_DRAWS = 256
DISCREPANCY_SEED = 20_000_003  # added to the design's seed: never the copies themselves
STEP = 1e-5  # of a parameter, for a slope
FLOOR = 1e-8  # relative error of an exact datum: far above its integration error, far below anything that matters


@dataclass(frozen=True)
class Layout:
    """Which parameters the vector θ holds, in order: populated elements, then temperatures, then inductances."""

    elements: tuple[str, ...]
    cells: int

    @property
    def names(self) -> tuple[str, ...]:
        """One name a parameter."""
        count = range(1, self.cells + 1)
        return (
            *self.elements,
            *(f"temperature_{i}" for i in count),
            *(f"inductance_{i}" for i in count),
        )


@dataclass(frozen=True, eq=False)
class Misfit:
    """Weighted residuals of the data as a function of θ, and the covariance (data, data) of their errors."""

    residuals: Callable[[np.ndarray], np.ndarray]
    covariance: np.ndarray


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
        return Device(board, copies, _summary(design, route, fits), values=dict(program.values)), fits
    layout = Layout(tuple(e.name for e in board.elements if e.name in program.values), len(board.cells))
    check_runs(design, [measured[copy.name] for copy in design.copies], route)
    prior = _prior(board, layout)
    discrepancy = _discrepancy(design, layout, measured) if route == "exact" else None
    fits = {}
    for k, copy in enumerate(design.copies):
        progress(k, len(design.copies), f"fitting {copy.name}")
        if route == "exact":
            misfit = _exact_misfit(board, program, layout, measured[copy.name], discrepancy)
        else:
            misfit = _sampled_misfit(board, program, layout, measured[copy.name])
        fits[copy.name] = _fit(misfit, prior)
        progress(k + 1, len(design.copies), f"fitting {copy.name}")
    copies = tuple(_fitted_copy(board, name, layout, fit) for name, fit in fits.items())
    return Device(board, copies, _summary(design, route, fits), values=dict(design.program.values)), fits


def element_means(board: Board, layout: Layout, gains: np.ndarray) -> np.ndarray:
    """What the reduced parameters of drawn copies are: part gains (…, parts) averaged within pairs, (…, parameters).

    A temperature is the inverse of the mean conductance, an inductance that of the mean inverse inductance.
    """
    names = {part.name: k for k, part in enumerate(board.parts)}
    columns = [
        gains[..., [k for k, part in enumerate(board.parts) if part.element == name]].mean(axis=-1)
        for name in layout.elements
    ]
    for kind in "RL":
        columns += [
            1 / (1 / gains[..., [names[f"{kind}{node}"] for node in cell.nodes]]).mean(axis=-1) for cell in board.cells
        ]
    return np.stack(columns, axis=-1)


def model_circuit(board: Board, program: Program, layout: Layout, theta: np.ndarray) -> Circuit:
    """The reduced-order circuit at parameters θ (parameters,)."""
    count, n = len(layout.elements), layout.cells
    gains = dict.fromkeys((element.name for element in board.elements), 1.0)
    gains |= dict(zip(layout.elements, theta[:count].tolist(), strict=True))
    return reduced_circuit(board, program, gains, theta[count : count + n], theta[count + n :])


def uncertainties(design: Design, fits: dict[str, Fit]) -> tuple[float, ...]:
    """Relative standard error (Frobenius) of the inverse that each fit of `calibrate` predicts for the own program."""
    board, program = design.board, design.program
    if by_pairs(board):
        return pair_errors(design, fits)
    layout = Layout(tuple(e.name for e in board.elements if e.name in program.values), len(board.cells))
    rule = inversion(design)

    def inverse(theta: np.ndarray) -> np.ndarray:
        return rule.read(reading_covariance(model_circuit(board, program, layout, theta)))

    found = []
    for own in fits.values():
        steps = STEP * np.eye(len(own.values))
        J = np.array([triangle(inverse(own.values + e) - inverse(own.values - e)) for e in steps]) / (2 * STEP)
        spread = np.trace(J.T @ own.covariance @ J)
        found.append(float(np.sqrt(spread) / np.linalg.norm(inverse(own.values))))
    return tuple(found)


def _prior(board: Board, layout: Layout) -> np.ndarray:
    """Standard deviation of every parameter before any data: uniform parts, averaged within the pair."""
    tolerance = {part.element or part.name: part.tolerance for part in board.parts}
    count = {name: sum(part.element == name for part in board.parts) for name in layout.elements}
    elements = [tolerance[name] / np.sqrt(3 * count[name]) for name in layout.elements]
    cells = [
        tolerance[f"{kind}{cell.nodes[0]}"] / np.sqrt(3 * len(cell.nodes)) for kind in "RL" for cell in board.cells
    ]
    return np.maximum(elements + cells, 1e-6)  # a part without tolerance is still a parameter


def _statistics(circuit: Circuit, frequencies: np.ndarray) -> np.ndarray:
    return _flatten(reading_covariance(circuit), spectrum(circuit, frequencies))


def _flatten(covariance: np.ndarray, spectra: np.ndarray) -> np.ndarray:
    """Hermitian matrices as real numbers of one size: logarithms of the diagonal, correlations off it."""
    a, b = np.triu_indices(len(covariance), 1)
    pieces = []
    for S in (covariance, *spectra):
        scale = np.sqrt(np.diag(S).real)
        correlation = (S / scale[:, None] / scale)[a, b]
        pieces += [2 * np.log(scale), correlation.real]
        pieces += [correlation.imag] if np.iscomplexobj(S) else []
    return np.concatenate(pieces)


def _discrepancy(design: Design, layout: Layout, measured: dict[str, Run]) -> np.ndarray:
    """Full minus reduced statistics of copies drawn from the prior, (draws, data)."""
    board, program = design.board, design.program
    frequencies = measured[design.copies[0].name].exact.frequencies
    gains = draw_gains(board, design.seed + DISCREPANCY_SEED, DISCREPANCY_DRAWS)
    full = assemble_gains(board, program, gains, Conditions())
    return np.array(
        [
            _statistics(full[k], frequencies) - _statistics(model_circuit(board, program, layout, theta), frequencies)
            for k, theta in enumerate(element_means(board, layout, gains))
            if is_stable(full[k])
        ]
    )


def _exact_misfit(board: Board, program: Program, layout: Layout, run: Run, discrepancy: np.ndarray) -> Misfit:
    data = _flatten(run.exact.covariance, run.exact.spectra) - discrepancy.mean(axis=0)
    sigma = np.sqrt(discrepancy.var(axis=0) + FLOOR**2)

    def misfit(theta: np.ndarray) -> np.ndarray:
        circuit = model_circuit(board, program, layout, theta)
        return (_statistics(circuit, run.exact.frequencies) - data) / sigma

    deviations = (discrepancy - discrepancy.mean(axis=0)) / sigma
    # What the floor adds is independent from datum to datum.
    return Misfit(misfit, deviations.T @ deviations / len(deviations) + np.diag((FLOOR / sigma) ** 2))


def _sampled_misfit(board: Board, program: Program, layout: Layout, run: Run) -> Misfit:
    nominal = model_circuit(board, program, layout, np.ones(len(layout.names)))
    law = chunks_law(run.recipe, nominal, program.period, run.moments.samples)
    whiten = np.linalg.cholesky(law.covariance)
    i, j = np.triu_indices(layout.cells)
    data = run.moments.mean[i, j]

    def misfit(theta: np.ndarray) -> np.ndarray:
        circuit = model_circuit(board, program, layout, theta)
        covariance = chunks_covariance(run.recipe, circuit, program.period)
        return solve_triangular(whiten, covariance[i, j] - data, lower=True)

    return Misfit(misfit, np.eye(len(data)))


def _fit(misfit: Misfit, prior: np.ndarray) -> Fit:
    start = np.ones(len(prior))

    def residuals(theta: np.ndarray) -> np.ndarray:
        return np.concatenate([misfit.residuals(theta), (theta - 1) / prior])

    solution = least_squares(residuals, start, jac="3-point", x_scale=prior, method="trf", xtol=1e-12, ftol=1e-12)
    data = len(solution.fun) - len(prior)
    J = solution.jac[:data]
    # The minimum moves by H⁻¹ Jᵀ e with errors e of the data and of the prior.
    H = np.linalg.inv(J.T @ J + np.diag(prior**-2))
    covariance = H @ (J.T @ misfit.covariance @ J + np.diag(prior**-2)) @ H
    return plain_fit(solution.x, covariance, misfit.residuals(start), solution.fun[:data])


def _fitted_copy(board: Board, name: str, layout: Layout, fit: Fit) -> FittedCopy:
    error = np.sqrt(np.diag(fit.covariance))
    found = {
        parameter: Estimate(float(value), float(standard_error), True)
        for parameter, value, standard_error in zip(layout.names, fit.values, error, strict=True)
    }
    spread = {element.name: _prior(board, Layout((element.name,), layout.cells))[0] for element in board.elements}
    cells = range(1, layout.cells + 1)
    return FittedCopy(
        name,
        {e.name: found.get(e.name, Estimate(1.0, float(spread[e.name]), False)) for e in board.elements},
        tuple(found[f"temperature_{i}"] for i in cells),
        tuple(found[f"inductance_{i}"] for i in cells),
    )


def _summary(design: Design, route: str, fits: dict[str, Fit]) -> dict[str, Any]:
    return {
        "route": route,
        "program": design.program.name,
        "target_step": design.program.step,
        "data": len(next(iter(fits.values())).residuals),
        "copies": {
            name: {
                "chi_square": float(fit.residuals @ fit.residuals),
                "rms_residual_uncalibrated": float(np.sqrt(np.mean(fit.residuals_nominal**2))),
                "rms_residual": float(np.sqrt(np.mean(fit.residuals**2))),
                "residuals_uncalibrated": fit.residuals_nominal.tolist(),
                "residuals": fit.residuals.tolist(),
            }
            for name, fit in fits.items()
        },
    }

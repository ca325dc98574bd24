"""Fit of a soldered capacitive board by its elements and cells, from its own program.

    θ = relative gain of every populated element, relative temperature of every cell, relative inductance of every cell

A differential pair is one parameter, the mean of its parts. Elements that the program leaves out keep their prior.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import least_squares

from circuits.board import Board, Conditions, Design, Program
from circuits.calibration.discrepancy import DISCREPANCY_SEED, DRAWS, FEW_DRAWS
from circuits.calibration.fitting import Fit, plain_fit
from circuits.copies import draw_gains
from circuits.model.device import copy_of
from circuits.model.fitted_copy import FittedCopy, by_pairs, reduced_circuit
from circuits.model.pairs import PairModel, pair_model
from circuits.nodal import Circuit, assemble_gains, is_stable
from circuits.ou import reading_covariance, spectrum
from circuits.simulation.runs import Run
from circuits.simulation.transient import chunks_covariance, chunks_law

DISCREPANCY_DRAWS = 256
STEP = 1e-5  # of a parameter, for a derivative
FLOOR = 1e-8  # relative error of an exact datum: above the error of its integration, below any other


@dataclass(frozen=True)
class ElementParameters:
    """Parameters in the order of the vector θ: populated elements, then temperatures, then inductances."""

    elements: tuple[str, ...]
    cells: int

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every parameter."""
        count = range(1, self.cells + 1)
        return (
            *self.elements,
            *(f"temperature_{i}" for i in count),
            *(f"inductance_{i}" for i in count),
        )


def element_parameters(design: Design) -> ElementParameters:
    """Return the parameters that the own program of a design determines."""
    board = design.board
    return ElementParameters(tuple(e.name for e in board.elements if e.name in design.program.values), len(board.cells))


def element_means(board: Board, parameters: ElementParameters, gains: np.ndarray) -> np.ndarray:
    """Return parameters (…, parameters) of drawn copies: part gains (…, parts) averaged within pairs.

    A temperature is the inverse of the mean conductance, an inductance that of the mean inverse inductance.
    """
    names = {part.name: k for k, part in enumerate(board.parts)}
    columns = [
        gains[..., [k for k, part in enumerate(board.parts) if part.element == name]].mean(axis=-1)
        for name in parameters.elements
    ]
    for kind in "RL":
        columns += [
            1 / (1 / gains[..., [names[f"{kind}{node}"] for node in cell.nodes]]).mean(axis=-1) for cell in board.cells
        ]
    return np.stack(columns, axis=-1)


def model_circuit(board: Board, program: Program, parameters: ElementParameters, theta: np.ndarray) -> Circuit:
    """Return the reduced-order circuit at parameters θ (parameters,)."""
    count, n = len(parameters.elements), parameters.cells
    gains = dict.fromkeys((element.name for element in board.elements), 1.0)
    gains |= dict(zip(parameters.elements, theta[:count].tolist(), strict=True))
    return reduced_circuit(board, program, gains, theta[count : count + n], theta[count + n :])


def prior_of(board: Board, parameters: ElementParameters) -> np.ndarray:
    """Return prior standard deviations (parameters,): parts are uniform within tolerance, and averaged in pairs."""
    tolerance = {part.element or part.name: part.tolerance for part in board.parts}
    count = {name: sum(part.element == name for part in board.parts) for name in parameters.elements}
    elements = [tolerance[name] / np.sqrt(3 * count[name]) for name in parameters.elements]
    cells = [
        tolerance[f"{kind}{cell.nodes[0]}"] / np.sqrt(3 * len(cell.nodes)) for kind in "RL" for cell in board.cells
    ]
    return np.maximum(elements + cells, 1e-6)  # a part without tolerance is still a parameter


def fitted_copy(board: Board, name: str, parameters: ElementParameters, fit: Fit) -> FittedCopy:
    """Return the record of a fit; elements that the program leaves out keep their prior."""
    prior = dict(zip(parameters.names, prior_of(board, parameters).tolist(), strict=True))
    outside = {
        element.name: float(prior_of(board, ElementParameters((element.name,), parameters.cells))[0])
        for element in board.elements
        if element.name not in prior
    }
    return copy_of(board, name, prior, fit.values, fit.covariance, outside)


def paired(design: Design, route: str, fits: dict[str, Fit]) -> tuple[PairModel, dict[str, Fit]]:
    """Return the pair model, and fits of `calibrate` by its parameters; parameters without data keep their prior."""
    board, model = design.board, pair_model(design.board)
    if by_pairs(board):
        return model, fits
    names = element_parameters(design).names
    known = [k for k, name in enumerate(names) if name in model.names]
    place = [model.names.index(names[k]) for k in known]
    checks = (DRAWS if route == "exact" else FEW_DRAWS) if board.nodes_per_cell == 2 else 0

    def widened(own: Fit) -> Fit:
        values, covariance = np.ones(len(model.names)), np.diag(model.spreads**2)
        values[place] = own.values[known]
        covariance[np.ix_(place, place)] = own.covariance[np.ix_(known, known)]
        wide = plain_fit(values, covariance, own.residuals_nominal, own.residuals, checks)
        return replace(wide, excess=own.excess)

    return model, {name: widened(own) for name, own in fits.items()}


@dataclass(frozen=True, eq=False)
class Misfit:
    """Weighted residuals of the data as a function of θ, and the covariance (data, data) of their errors."""

    residuals: Callable[[np.ndarray], np.ndarray]
    covariance: np.ndarray


def _statistics(circuit: Circuit, frequencies: np.ndarray) -> np.ndarray:
    return _flatten(reading_covariance(circuit), spectrum(circuit, frequencies))


def _flatten(covariance: np.ndarray, spectra: np.ndarray) -> np.ndarray:
    """Return Hermitian matrices as real numbers of one size: logarithms of the diagonal, correlations off it."""
    a, b = np.triu_indices(len(covariance), 1)
    pieces = []
    for S in (covariance, *spectra):
        scale = np.sqrt(np.diag(S).real)
        correlation = (S / scale[:, None] / scale)[a, b]
        pieces += [2 * np.log(scale), correlation.real]
        pieces += [correlation.imag] if np.iscomplexobj(S) else []
    return np.concatenate(pieces)


def drawn_discrepancy(design: Design, parameters: ElementParameters, measured: dict[str, Run]) -> np.ndarray:
    """Return full minus reduced statistics of copies drawn from the prior, (draws, data)."""
    board, program = design.board, design.program
    frequencies = measured[design.copies[0].name].exact.frequencies
    gains = draw_gains(board, design.seed + DISCREPANCY_SEED, DISCREPANCY_DRAWS)
    full = assemble_gains(board, program, gains, Conditions())
    return np.array(
        [
            _statistics(full[k], frequencies)
            - _statistics(model_circuit(board, program, parameters, theta), frequencies)
            for k, theta in enumerate(element_means(board, parameters, gains))
            if is_stable(full[k])
        ]
    )


def exact_misfit(
    board: Board, program: Program, parameters: ElementParameters, run: Run, discrepancy: np.ndarray
) -> Misfit:
    """Return the misfit of an exact run: covariance and spectra, less the mean of `discrepancy` (draws, data)."""
    data = _flatten(run.exact.covariance, run.exact.spectra) - discrepancy.mean(axis=0)
    sigma = np.sqrt(discrepancy.var(axis=0) + FLOOR**2)

    def misfit(theta: np.ndarray) -> np.ndarray:
        circuit = model_circuit(board, program, parameters, theta)
        return (_statistics(circuit, run.exact.frequencies) - data) / sigma

    deviations = (discrepancy - discrepancy.mean(axis=0)) / sigma
    # The variance that the floor adds is independent from datum to datum.
    return Misfit(misfit, deviations.T @ deviations / len(deviations) + np.diag((FLOOR / sigma) ** 2))


def sampled_misfit(board: Board, program: Program, parameters: ElementParameters, run: Run) -> Misfit:
    """Return the misfit of a sampled run: its covariance, whitened by the law of the estimate."""
    nominal = model_circuit(board, program, parameters, np.ones(len(parameters.names)))
    law = chunks_law(run.recipe, nominal, program.period, run.moments.samples)
    whiten = np.linalg.cholesky(law.covariance)
    i, j = np.triu_indices(parameters.cells)
    data = run.moments.mean[i, j]

    def misfit(theta: np.ndarray) -> np.ndarray:
        circuit = model_circuit(board, program, parameters, theta)
        covariance = chunks_covariance(run.recipe, circuit, program.period)
        return solve_triangular(whiten, covariance[i, j] - data, lower=True)

    return Misfit(misfit, np.eye(len(data)))


def fit_misfit(misfit: Misfit, prior: np.ndarray) -> Fit:
    """Fit all parameters by least squares, with their covariance, under a normal prior of deviations `prior`."""
    start = np.ones(len(prior))

    def residuals(theta: np.ndarray) -> np.ndarray:
        return np.concatenate([misfit.residuals(theta), (theta - 1) / prior])

    solution = least_squares(residuals, start, jac="3-point", x_scale=prior, method="trf", xtol=1e-12, ftol=1e-12)
    data = len(solution.fun) - len(prior)
    J = solution.jac[:data]
    # The minimum moves by H⁻¹ Jᵀ e with errors e of the data and of the prior.
    H = np.linalg.inv(J.T @ J + np.diag(prior**-2))
    covariance = H @ (J.T @ misfit.covariance @ J + np.diag(prior**-2)) @ H
    found = plain_fit(solution.x, covariance, misfit.residuals(start), solution.fun[:data])
    # Expected residuals: the errors e after the fit, and the share of θ that the prior holds back.
    P, kept = np.eye(data) - J @ H @ J.T, J @ H / prior
    expected = np.sum((P @ misfit.covariance) * P) + np.sum(kept**2)
    return replace(found, excess=float(np.sqrt(max(found.residuals @ found.residuals / expected, 1.0))))

"""Measurements and devices without ngspice: the full circuit of each copy, or nothing but a tolerance."""

import numpy as np

from circuits.board import Conditions
from circuits.copies import specimens
from circuits.model.device import Device, ideal_device
from circuits.model.fitted_copy import Estimate
from circuits.nodal import assemble
from circuits.ou import reading_covariance, spectrum
from circuits.simulation.ac import ExactRun
from circuits.simulation.measure import spectral_frequencies
from circuits.simulation.runs import Run
from circuits.statistics.estimators import estimate_law
from circuits.statistics.moments import BLOCK, CHUNK, Moments
from circuits.synthesis.topology import build_board


def measured_exactly(made) -> dict[str, Run]:
    frequencies = spectral_frequencies(made)
    runs = {}
    for copy in specimens(made):
        circuit = assemble(made.board, made.program, copy, Conditions())
        covariance = reading_covariance(circuit)
        runs[copy.name] = Run(ExactRun(covariance, 0.0, frequencies, spectrum(circuit, frequencies)), None)
    return runs


def measured_by_sampling(made, samples: int, seed: int) -> dict[str, Run]:
    """One block mean drawn from the law of the estimate, repeated so that its mean is that estimate."""
    rng = np.random.default_rng(seed)
    i, j = np.triu_indices(len(made.board.cells))
    runs = {}
    for copy in specimens(made):
        law = estimate_law(assemble(made.board, made.program, copy, Conditions()), made.program.period, samples, CHUNK)
        S = law.mean.copy()
        S[i, j] += np.linalg.cholesky(law.covariance) @ rng.normal(size=len(i))
        S[j, i] = S[i, j]
        runs[copy.name] = Run(
            None, Moments(np.full(samples // BLOCK, BLOCK), np.repeat(S[None], samples // BLOCK, axis=0))
        )
    return runs


def rough_device(tolerance: float, copies: int = 2) -> Device:
    """A device whose estimates are nothing but a prior of this tolerance."""
    board = build_board(8, "differential")
    prior = Estimate(1.0, tolerance / np.sqrt(3), False)
    device = ideal_device(board, copies)
    rough = tuple(
        type(copy)(copy.name, dict.fromkeys(copy.gains, prior), (prior,) * 8, copy.inductances)
        for copy in device.copies
    )
    return Device(board, rough, {})

"""How well three copies invert the matrix, against numpy, against their own law, and why not better.

The inverse is read as B = Xᵀ (c0 Cov(y) / (k kT)) X, k nodes a cell, with the nominal scale. Errors are relative
Frobenius distances to P⁻¹; the scale-free figure allows one factor, min_a ||a B - P⁻¹|| / ||P⁻¹||. A sampled
covariance is compared with the held-noise law of its own copy (joint χ²) and its known discretisation bias, that of
the *nominal* board, is put back before it is inverted: what a user without the true values can do.

Averaging three copies divides independent first-order errors by sqrt(3); one triple proves nothing, so the law is
shown over many triples by the Lyapunov route.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from circuits.assembly import Circuit, assemble, assemble_gains, is_definite, nominal_circuit
from circuits.board import Conditions, draw_gains
from circuits.design import Design
from circuits.measurement import Measurement
from circuits.ou import (
    EstimateLaw,
    estimate_law,
    held_covariance,
    joint_chi_square,
    reading_covariance,
    reading_covariances,
)
from circuits.sampled import BLOCK, CHUNK
from circuits.store import sha256

SCHEMA = "tngd.verification/1"
TRIPLES = 200
CURVE_POINTS = 40


@dataclass(frozen=True, eq=False)
class Inversion:
    """Reading of covariances as inverses for one design: B = mapᵀ S map with the scale taken in."""

    inverse: np.ndarray  # (n, n), P⁻¹ by numpy
    map: np.ndarray  # (n, n), X sqrt(c0 / (k kT))

    def read(self, covariance: np.ndarray) -> np.ndarray:
        """B (…, n, n) from covariances of the readings (…, n, n) [V²]."""
        return self.map.T @ covariance @ self.map

    def error(self, estimate: np.ndarray) -> np.ndarray:
        """Relative Frobenius error of estimates (…, n, n)."""
        return np.linalg.norm(estimate - self.inverse, axis=(-2, -1)) / np.linalg.norm(self.inverse)

    def scale_free_error(self, estimate: np.ndarray) -> float:
        """The error that is left when one common factor is free."""
        factor = np.sum(estimate * self.inverse) / np.sum(estimate**2)
        return float(self.error(factor * estimate))

    def spread(self, law: EstimateLaw) -> float:
        """sqrt E||B - E B||² / ||P⁻¹|| of inverses read from an estimate of this law."""
        n = len(self.inverse)
        i, j = np.triu_indices(n)
        duplicate = np.zeros((n * n, len(i)))
        duplicate[i * n + j, np.arange(len(i))] = 1
        duplicate[j * n + i, np.arange(len(i))] = 1
        linear = np.kron(self.map.T, self.map.T) @ duplicate
        variance = np.einsum("ab,bc,ac->", linear, law.covariance, linear, optimize=True)
        return float(np.sqrt(variance) / np.linalg.norm(self.inverse))


def inversion(design: Design) -> Inversion:
    """The reading rule of a design."""
    board, program = design.board, design.program
    scale = board.unit_capacitance / (board.nodes_per_cell * program.energy)
    return Inversion(np.linalg.inv(program.target), program.mapping * np.sqrt(scale))


def hold_correction(design: Design) -> np.ndarray:
    """White-noise minus held-noise covariance of the nominal board, (n, n), V²."""
    circuit = nominal_circuit(design.board, design.program)
    return reading_covariance(circuit) - held_covariance(circuit, design.program.period)


def verify(design: Design, measured: dict[str, Measurement]) -> dict[str, Any]:
    """The content of verification.json, but for its provenance."""
    rule = inversion(design)
    target = design.program.target
    report = {
        "schema": SCHEMA,
        "name": design.program.name,
        "step": design.program.step,
        "target": {
            "matrix": target.tolist(),
            "inverse": rule.inverse.tolist(),
            "condition": float(np.linalg.cond(target)),
            "programmed_condition": float(np.linalg.cond(design.program.matrix)),
            "sha256": sha256(target),
        },
        "copies": [{"name": copy.name} for copy in design.copies],
        "mean_of_copies": {},
        "averaging": averaging_law(design, rule),
    }
    if measured["nominal"].exact:
        report["nominal"] = {"exact": _exact(rule, measured["nominal"].exact.covariance)}
    circuits = [assemble(design.board, design.program, copy, Conditions()) for copy in design.copies]
    runs = [measured[copy.name] for copy in design.copies]
    if runs[0].exact:
        _add_exact(report, rule, circuits, runs)
    if runs[0].moments is not None:
        _add_sampled(report, rule, circuits, runs, design)
    return report


def averaging_law(design: Design, rule: Inversion, triples: int = TRIPLES) -> dict[str, Any]:
    """Errors of single copies and of means of three over `triples` fresh triples, by the Lyapunov route.

    `gain` is rms(single)/rms(mean of three), sqrt(3) if the errors are independent and of first order;
    `gain_standard_error` is by the jackknife over triples. Triples with a copy that is not definite are left out and
    counted.
    """
    gains = draw_gains(design.board, design.seed + 10_000_019, 3 * triples)
    circuits = assemble_gains(design.board, design.program, gains, Conditions())
    definite = is_definite(circuits.capacitance).reshape(triples, 3).all(axis=1)
    kept = np.repeat(definite, 3)
    if definite.sum() < 2:
        return {"triples": int(definite.sum()), "left_out": int((~definite).sum())}
    chosen = Circuit(
        circuits.capacitance[kept],
        circuits.conductance[kept],
        circuits.inverse_inductance[kept],
        circuits.noise[kept],
        circuits.readout,
    )
    inverses = rule.read(reading_covariances(chosen)).reshape(-1, 3, *rule.inverse.shape)
    single, mean = rule.error(inverses), rule.error(inverses.mean(axis=1))
    count = len(mean)
    total = np.array([(single**2).mean(axis=1), mean**2]).T  # (triples, 2)
    gain = np.sqrt(total[:, 0].sum() / total[:, 1].sum())
    without = np.sqrt((total[:, 0].sum() - total[:, 0]) / (total[:, 1].sum() - total[:, 1]))
    return {
        "triples": count,
        "left_out": int((~definite).sum()),
        "single_median": float(np.median(single)),
        "mean_of_three_median": float(np.median(mean)),
        "gain": float(gain),
        "gain_standard_error": float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())),
        "gain_expected": float(np.sqrt(3)),
        "single_errors": np.sort(single.ravel()).tolist(),
        "mean_of_three_errors": np.sort(mean).tolist(),
    }


def _exact(rule: Inversion, covariance: np.ndarray) -> dict[str, Any]:
    B = rule.read(covariance)
    return {
        "relative_error": float(rule.error(B)),
        "scale_free_error": rule.scale_free_error(B),
        "inverse": B.tolist(),
    }


def _add_exact(report: dict[str, Any], rule: Inversion, circuits: list[Circuit], runs: list[Measurement]) -> None:
    for entry, circuit, run in zip(report["copies"], circuits, runs, strict=True):
        found, predicted = run.exact.covariance, reading_covariance(circuit)
        entry["exact"] = _exact(rule, found) | {
            "predicted_error": float(rule.error(rule.read(predicted))),
            "difference_to_lyapunov": float(np.linalg.norm(found - predicted) / np.linalg.norm(predicted)),
            "integration_error": run.exact.integration_error,
        }
    report["mean_of_copies"]["exact"] = _exact(rule, np.mean([run.exact.covariance for run in runs], axis=0))


def _add_sampled(
    report: dict[str, Any], rule: Inversion, circuits: list[Circuit], runs: list[Measurement], design: Design
) -> None:
    correction = hold_correction(design)
    samples = len(runs[0].moments) * BLOCK
    laws = [estimate_law(c, design.program.period, samples, min(samples, CHUNK)) for c in circuits]
    spreads = np.array([rule.spread(law) for law in laws])
    for entry, law, spread, run in zip(report["copies"], laws, spreads, runs, strict=True):
        chi_square, degrees, p = joint_chi_square(run.moments.mean(axis=0), law)
        entry["sampled"] = _sampled(rule, run.moments, correction, law.mean, spread) | {
            "samples": samples,
            "chi_square": chi_square,
            "degrees_of_freedom": degrees,
            "p_value": p,
        }
    moments = np.mean([run.moments for run in runs], axis=0)
    mean = np.mean([law.mean for law in laws], axis=0)
    spread = np.sqrt((spreads**2).sum()) / len(laws)
    report["mean_of_copies"]["sampled"] = _sampled(rule, moments, correction, mean, spread) | {
        "samples": samples * len(runs)
    }


def _sampled(
    rule: Inversion, moments: np.ndarray, correction: np.ndarray, expected: np.ndarray, spread: float
) -> dict[str, Any]:
    """Report of block moments (blocks, n, n) whose mean has the law (expected, relative spread of the inverse)."""
    counts = _curve_counts(len(moments))
    partial = np.cumsum(moments, axis=0)[counts - 1] / counts[:, None, None]
    B = rule.read(partial + correction)
    floor = float(rule.error(rule.read(expected + correction)))
    return {
        "relative_error": float(rule.error(B[-1])),
        "scale_free_error": rule.scale_free_error(B[-1]),
        "expected_error": float(np.hypot(floor, spread)),
        "expected_floor": floor,
        "inverse": B[-1].tolist(),
        "curve": {
            "samples": (counts * BLOCK).tolist(),
            "relative_error": rule.error(B).tolist(),
            "expected_error": np.hypot(floor, spread * np.sqrt(len(moments) / counts)).tolist(),
        },
    }


def _curve_counts(blocks: int) -> np.ndarray:
    """About CURVE_POINTS block counts, equally spaced in the logarithm, from 1 to all."""
    return np.unique(np.geomspace(1, blocks, CURVE_POINTS).round().astype(int))

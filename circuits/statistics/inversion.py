"""Inverse read from the readings y of a board: B = Xᵀ (c Cov(y) / (k kT)) X, k nodes a cell, with the nominal scale.

Errors are relative Frobenius distances to P⁻¹; the scale-free error allows one factor, min_a ||a B - P⁻¹|| / ||P⁻¹||.
A covariance sampled under held noise is biased. The bias of the *nominal* board (`ou.nominal_hold_correction`) is
corrected before the inverse is read: a user does not know the true values of a board.
"""

from dataclasses import dataclass

import numpy as np

from circuits.board import Board, Design, Program, inverse_scale
from circuits.nodal import Circuit
from circuits.ou import predicted_columns, reading_covariances
from circuits.statistics.estimators import EstimateLaw


@dataclass(frozen=True, eq=False)
class Inversion:
    """Rule by which one design reads an inverse from a covariance S: B = mapᵀ S map, `map` with the scale in it."""

    inverse: np.ndarray  # (n, n), P⁻¹ by numpy
    map: np.ndarray  # (n, n), X sqrt(c / (k kT))

    def read(self, covariance: np.ndarray) -> np.ndarray:
        """B (…, n, n) from covariances of the readings (…, n, n) [V²]."""
        return self.map.T @ covariance @ self.map

    def error(self, estimate: np.ndarray) -> np.ndarray:
        """Relative Frobenius error of estimates (…, n, n)."""
        return np.linalg.norm(estimate - self.inverse, axis=(-2, -1)) / np.linalg.norm(self.inverse)

    def scale_free_error(self, estimate: np.ndarray) -> float:
        """Relative Frobenius error of an estimate (n, n) times the factor that fits P⁻¹ best."""
        factor = np.sum(estimate * self.inverse) / np.sum(estimate**2)
        return float(self.error(factor * estimate))

    def spread(self, law: EstimateLaw) -> float:
        """sqrt E||B - E B||² / ||P⁻¹|| of inverses read from an estimate of this law."""
        return float(np.sqrt(np.trace(self.error_covariance(law))))

    def error_covariance(self, law: EstimateLaw) -> np.ndarray:
        """Covariance (q, q) of `triangle(B) / ||P⁻¹||` for inverses B read from an estimate of this law."""
        i, j = np.triu_indices(len(self.inverse))
        X = self.map
        # B_ij = Σ_ab X_ai X_bj S_ab, and S_ab stands for S_ba too.
        both = X[i][:, i] * X[j][:, j] + np.where(i == j, 0.0, 1.0)[:, None] * X[j][:, i] * X[i][:, j]
        linear = _weights(i, j)[:, None] * both.T / np.linalg.norm(self.inverse)
        return linear @ law.covariance @ linear.T


def triangle(matrix: np.ndarray) -> np.ndarray:
    """Upper triangle (…, q) of symmetric matrices (…, n, n), weighted so that the norm is that of the matrix."""
    i, j = np.triu_indices(matrix.shape[-1])
    return matrix[..., i, j] * _weights(i, j)


def inversion_rule(design: Design) -> Inversion:
    """Rule by which a design reads an inverse."""
    board, program = design.board, design.program
    scale = inverse_scale(board, program)
    return Inversion(np.linalg.inv(program.target), program.mapping * np.sqrt(scale))


def solved_inverse(board: Board, program: Program, columns: np.ndarray, bias: float) -> np.ndarray:
    """P⁻¹ = Xᵀ M⁻¹ X with M⁻¹ = g columns / bias, (…, n, n)."""
    X = program.mapping
    return X.T @ (board.unit / bias * columns) @ X


def circuit_inverses(design: Design, rule: Inversion, circuits: Circuit) -> np.ndarray:
    """Inverses (…, n, n) by the laws of circuits: from means on a resistive board, from covariances on a capacitive."""
    if design.board.inputs:
        return solved_inverse(design.board, design.program, predicted_columns(design.board, circuits, 1.0), 1.0)
    return rule.read(reading_covariances(circuits))


def _weights(i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Weights of the entries i, j of a triangle: sqrt(2) off the diagonal, where an entry stands for two."""
    return np.where(i == j, 1.0, np.sqrt(2))

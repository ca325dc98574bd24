"""One table of targets for all tests: easy, hard, and at the edges."""

import numpy as np

from circuits.synthesis import DATA_SETS, inverse_factor, named_fisher


def random_target(size: int, condition: float, seed: int) -> np.ndarray:
    """Random eigenvectors, eigenvalues spread evenly in the logarithm."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(size, size)))[0]
    P = Q * np.geomspace(1, 1 / condition, size) @ Q.T
    return (P + P.T) / 2


def _signed(matrix: np.ndarray, signs: list[int]) -> np.ndarray:
    return np.array(signs)[:, None] * matrix * np.array(signs)


SMALL = np.array([[1.0, 0.1, -0.08], [0.1, 1.0, 0.05], [-0.08, 0.05, 1.0]])
M_MATRIX = np.array([[2.0, -0.5, -0.3], [-0.5, 1.5, -0.2], [-0.3, -0.2, 1.0]])

# name: (target, congruence or None, beginning of the step that the design must take)
TARGETS = {
    "1x1": (np.array([[3.0]]), None, "plain cells"),
    "2x2 negative": (np.array([[1.5, -0.5], [-0.5, 1.5]]), None, "plain cells"),
    "2x2 positive": (np.array([[1.5, 0.5], [0.5, 1.5]]), None, "plain cells, reading signs"),
    "2x2 diagonal, five decades": (np.diag([1.0, 1e-5]), None, "plain cells"),
    "M-matrix": (M_MATRIX, None, "plain cells"),
    "sign balanced": (_signed(M_MATRIX, [1, -1, 1]), None, "plain cells, reading signs"),
    "M-matrix without dominance": (
        np.array([[1.0, -0.7, -0.6], [-0.7, 1.0, 0.0], [-0.6, 0.0, 1.0]]),
        None,
        "plain cells, scaled to dominance",
    ),
    "row sums of zero but one": (np.array([[1.0, -1.0], [-1.0, 1.5]]), None, "plain cells"),
    "both signs, dominant": (
        np.array([[1.0, 0.3, 0.3], [0.3, 1.0, 0.3], [0.3, 0.3, 1.0]]),
        None,
        "differential cells",
    ),
    "both signs, dominant after scaling": (
        np.array([[1.0, 0.6, 0.5], [0.6, 1.0, 0.1], [0.5, 0.1, 1.0]]),
        None,
        "differential cells, scaled to dominance",
    ),
    "comparison matrix singular": (
        np.array([[1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]]),
        None,
        "differential cells with negative elements",
    ),
    "random, condition 1e4": (random_target(8, 1e4, 1), None, "differential cells with negative elements"),
    "random, condition 1e6": (random_target(8, 1e6, 2), None, "differential cells with negative elements"),
    "block diagonal": (
        np.kron(np.eye(2), np.array([[1.0, 0.5], [0.5, 1.0]])),
        None,
        "plain cells, reading signs",
    ),
}
for _name in DATA_SETS:
    _fit, _zero = named_fisher(_name, "fit")[0], named_fisher(_name, "zero")[0]
    TARGETS[f"{_name}, raw"] = (_fit, None, "differential cells with negative elements")
    TARGETS[f"{_name}, preconditioned"] = (_fit, inverse_factor(_zero), "differential cells")

FAIR = TARGETS["fair, raw"][0]
FAIR_FACTOR = TARGETS["fair, preconditioned"][1]

"""Decision for cells: the cheapest that hold a target, each step taken only if the one before does not do.

With U the target T P Tᵀ scaled to unit diagonal and <U> its comparison matrix (same diagonal, off-diagonals -|U_ij|):

1. plain cells, if signs s make the off-diagonals of S U S non-positive (reading signs). Then <U> = S U S is positive
   definite, and w = <U>⁻¹ 1 > 0 scales U to diagonal dominance where it is not dominant already.
2. differential cells, straight or crossed by the sign of the entry, if <U> is positive definite: the same scaling.
3. differential cells with a negative element wherever a row is not dominant: every positive definite target.

Step 3 is avoided by a damping λ, with which <U> of P + λI is positive definite, or by a congruence T from an older
matrix.
"""

from dataclasses import dataclass

import numpy as np

from circuits.errors import InputError
from circuits.synthesis.options import two_digits

CELLS = ("auto", "plain", "differential", "active")
SCALING_LIMIT = 10.0  # largest weight of a dominance scaling; beyond it the ground elements are too small a part
SLACK_MINIMUM = 0.01  # of the unit capacitance: a smaller ground element counts as none on differential cells
BISECTIONS = 30


@dataclass(frozen=True, eq=False)
class CellPlan:
    """Cells that a target needs: kind, signed scaling d (n,), the step in words, and why no cheaper one."""

    kind: str
    scaling: np.ndarray
    step: str
    reason: str


def plan_cells(
    target: np.ndarray,
    congruence: np.ndarray,
    cells: str = "auto",
    negative: bool = True,
    grounded: bool = False,
    damping: float = 0.0,
) -> CellPlan:
    """Choose the cheapest plan that holds T P Tᵀ; `cells` other than "auto" allows only that kind.

    "plain" and "differential" are passive, "active" is differential with negative elements where they are needed.
    Without `negative` elements (switched banks hold none) only passive plans are considered. A `grounded` plan is
    always scaled to dominance, so that every ground element is there: a static load cannot be taken from a row sum of
    zero.

    InputError with suggestions if the kind asked for does not hold the target, which contains `damping` already.
    """
    if cells not in CELLS:
        raise InputError(f"--cells is one of {', '.join(CELLS)}, got {cells!r}")
    M = congruence @ target @ congruence.T
    unit, U = unit_diagonal(M)
    if cells in ("auto", "plain"):
        found = _plain(U, unit, M, grounded)
        if found:
            return found
        if cells == "plain":
            raise InputError(f"plain cells do not hold the target: {UNBALANCED}; use --cells differential or active")
    found = _differential(U, unit, M, cells, grounded)
    if found:
        return found
    if cells == "differential" or not negative:
        words = without_negative(target, congruence, damping) + ["--cells active"] * negative
        raise InputError(
            f"passive differential cells do not hold the target: {_undominated(U)}; {' or '.join(words)} would do"
        )
    return CellPlan("differential", unit, "differential cells with negative elements", _undominated(U))


def without_negative(target: np.ndarray, congruence: np.ndarray, damping: float = 0.0) -> list[str]:
    """Suggestions in words that need no negative elements: the whole damping, `damping` included, and a T."""
    more = passive_damping(target, congruence)
    return ([f"--damping {two_digits(damping + more, up=True):.2g}"] if more else []) + [
        suggest_precondition(congruence)
    ]


def suggest_precondition(congruence: np.ndarray) -> str:
    """Suggestion of a factor in words, T (n, n) being the one that is used already."""
    given = not np.array_equal(congruence, np.eye(len(congruence)))
    return f"a --precondition from {'a matrix nearer to the target' if given else 'an older matrix'}"


def passive_damping(target: np.ndarray, congruence: np.ndarray) -> float | None:
    """The smallest λ, to two digits and rounded up, for which passive cells hold T (P + λI) Tᵀ; None if none does.

    Without a congruence there always is such a λ; with one, λ T Tᵀ itself may need negative elements.
    """
    eye = np.eye(len(target))

    def passive(damping: float) -> bool:
        return "negative" not in plan_cells(target + damping * eye, congruence).step

    high = float(np.trace(target)) / len(target)
    doublings = 0
    while not passive(high):
        high, doublings = 2 * high, doublings + 1
        if doublings > BISECTIONS:
            return None
    low = 0.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if passive(middle) else (middle, high)
    return two_digits(high, up=True)


def unit_diagonal(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scaling u (n,), and U = diag(u) M diag(u), (n, n), whose diagonal is one."""
    unit = np.diag(matrix) ** -0.5
    U = unit[:, None] * matrix * unit
    np.fill_diagonal(U, 1.0)
    return unit, U


def comparison_matrix(matrix: np.ndarray) -> np.ndarray:
    """<U>, (n, n): the diagonal of U, and -|U_ij| off it."""
    return 2 * np.diag(np.diag(matrix)) - np.abs(matrix)


def reading_signs(matrix: np.ndarray) -> np.ndarray | None:
    """Signs s (n,) with s_i M_ij s_j <= 0 for all i ≠ j, or None if the sign pattern is not balanced."""
    n = len(matrix)
    signs = np.zeros(n)
    for root in range(n):
        if signs[root]:
            continue
        signs[root] = 1
        queue = [root]
        while queue:
            i = queue.pop()
            for j in np.flatnonzero(matrix[i]):
                wanted = -np.sign(matrix[i, j]) * signs[i]
                if j != i and signs[j] == 0:
                    signs[j] = wanted
                    queue.append(j)
                elif j != i and signs[j] != wanted:
                    return None
    return signs


UNBALANCED = "no reading signs make all its off-diagonal entries negative"


def _plain(U: np.ndarray, unit: np.ndarray, M: np.ndarray, grounded: bool) -> CellPlan | None:
    signs = reading_signs(U)
    dominant = _slack(U).min() >= 0 and not grounded
    weights = np.ones(len(U)) if dominant else _dominance(U)
    if signs is None or weights is None:
        return None
    words = ["plain cells"] + ["reading signs"] * bool((signs < 0).any()) + ["scaled to dominance"] * (not dominant)
    reason = "its off-diagonal entries are negative" + (" for some reading signs" if (signs < 0).any() else "")
    if not np.any(U - np.eye(len(U))):
        reason = "it is diagonal, there is nothing to couple"
    return CellPlan("plain", _normalised(signs * unit * weights, M), ", ".join(words), reason)


def _differential(U: np.ndarray, unit: np.ndarray, M: np.ndarray, cells: str, grounded: bool) -> CellPlan | None:
    why = UNBALANCED if reading_signs(U) is None else f"the cells are to be {cells}"
    if _slack(U).min() >= SLACK_MINIMUM and not grounded:
        return CellPlan("differential", unit, "differential cells", why)
    weights = _dominance(U)
    if weights is None or weights.max() > SCALING_LIMIT:
        return None
    return CellPlan("differential", _normalised(unit * weights, M), "differential cells, scaled to dominance", why)


def _undominated(U: np.ndarray) -> str:
    smallest = np.linalg.eigvalsh(comparison_matrix(U))[0]
    return f"no scaling makes it dominant enough (its comparison matrix has the smallest eigenvalue {smallest:.2g})"


def _slack(U: np.ndarray) -> np.ndarray:
    """Row sums of <U>, (n,): what the ground elements hold."""
    return 2 * np.diag(U) - np.abs(U).sum(axis=1)


def _dominance(U: np.ndarray) -> np.ndarray | None:
    """w = <U>⁻¹ 1, (n,), which scales U to diagonal dominance; None if <U> is not positive definite."""
    comparison = comparison_matrix(U)
    if np.linalg.eigvalsh(comparison)[0] <= 0:
        return None
    return np.linalg.solve(comparison, np.ones(len(U)))


def _normalised(scaling: np.ndarray, M: np.ndarray) -> np.ndarray:
    """Scale d so that the largest diagonal entry of diag(d) M diag(d) is 1."""
    return scaling / np.sqrt((scaling**2 * np.diag(M)).max())

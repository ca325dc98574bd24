"""Symbolic derivation of the element laws: from the nodal equations of two coupled cells to formulas for parts.

Nodal equations of a capacitive network with resistors and inductors to ground,

    C dv/dt = -G v - Γ φ + i_n,   dφ/dt = v,   <i_n i_nᵀ> = 2 kT G δ,

have the stationary law  v ~ N(0, kT C⁻¹), φ ~ N(0, kT Γ⁻¹), uncorrelated (`stationary_residual` is its Lyapunov
equation, zero). C is summed from the currents of the elements, one by one. For differential cells the coordinates
u = p - n and w = (p + n)/2 separate, each with a Maxwell matrix of its own; that of u is to be c0 M. Solving this
equation for the elements gives the formulas that synthesis evaluates.

A resistive board is the same network of conductances, C dv/dt = -G v + i_b + i_n with C = c I and sources of equal
power, <i_n i_nᵀ> = 2 kT g₀ δ: G takes the place of C, the mean is G⁻¹ i_b and the covariance (kT g₀/c) G⁻¹
(`resistive_residuals`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import sympy as sp

# Entries of c0 M that the two cells are to hold, elements [F], and constants common to all cells.
M11, M22, M12 = sp.symbols("M_11 M_22 M_12", real=True)
GROUND1, GROUND2, STRAIGHT, CROSSED = sp.symbols("g_1 g_2 c_s c_x", nonnegative=True)
NEGATIVE1, NEGATIVE2 = sp.symbols("d_1 d_2", real=True)
ENERGY, CONDUCTANCE, STIFFNESS = sp.symbols("kT G Gamma", positive=True)
CAPACITANCE, UNIT = sp.symbols("c g_0", positive=True)


@dataclass(frozen=True)
class CellLaw:
    """Law of one cell kind, derived by SymPy.

    `nodal` is the Maxwell matrix of the nodes, `seen` that of the readings (to be c0 M), `common` that of the
    common mode (None for plain cells); `straight`, `crossed`, `slack`, `negative` are the solved elements.
    """

    kind: str
    nodal: sp.Matrix
    seen: sp.Matrix
    common: sp.Matrix | None
    straight: sp.Expr
    crossed: sp.Expr
    slack: sp.Expr
    negative: sp.Expr


@dataclass(frozen=True)
class ElementFormulas:
    """The solved elements as numeric functions of arrays, all in farad.

    `straight(M_ij)`, `crossed(M_ij)`, `slack(M_ii, coupling)` (the ground element when there is no negative one) and
    `negative(M_ii, coupling, ground)`, where `coupling` is the sum of all coupling elements of the cell.
    """

    straight: Callable
    crossed: Callable
    slack: Callable
    negative: Callable


def maxwell_matrix(elements: list[tuple[sp.Expr, int, int | None]], nodes: int) -> sp.Matrix:
    """Sum of element currents c d(v_a - v_b)/dt as a matrix acting on dv/dt; node None is ground."""
    rates = sp.symbols(f"r:{nodes}")
    currents = [sp.Integer(0)] * nodes
    for value, a, b in elements:
        current = value * (rates[a] - (rates[b] if b is not None else 0))
        currents[a] += current
        if b is not None:
            currents[b] -= current
    return sp.Matrix([[sp.diff(current, rate) for rate in rates] for current in currents])


@cache
def cell_law(kind: str) -> CellLaw:
    """Derive the law of two coupled cells of `kind` "plain" or "differential"."""
    return _plain() if kind == "plain" else _differential()


@cache
def element_formulas(kind: str) -> ElementFormulas:
    """The formulas of `cell_law`, lambdified for numpy."""
    law = cell_law(kind)
    coupling = sp.Symbol("S", nonnegative=True)
    total = {STRAIGHT: coupling, CROSSED: 0}  # other cells enter the law of a cell by the sum of couplings only
    return ElementFormulas(
        straight=sp.lambdify(M12, law.straight, "numpy"),
        crossed=sp.lambdify(M12, law.crossed, "numpy"),
        slack=sp.lambdify((M11, coupling), law.slack.subs(total), "numpy"),
        negative=sp.lambdify((M11, coupling, GROUND1), law.negative.subs(total), "numpy"),
    )


def stationary_residual(capacitance: sp.Matrix) -> sp.Matrix:
    """A Σ + Σ Aᵀ - D of the claimed stationary law, for equal G, Γ and kT in every node; zero if it holds."""
    n = capacitance.shape[0]
    eye, zero = sp.eye(n), sp.zeros(n)
    inverse = capacitance.inv()
    drift = sp.Matrix(sp.BlockMatrix([[CONDUCTANCE * inverse, STIFFNESS * inverse], [-eye, zero]]))
    law = sp.Matrix(sp.BlockMatrix([[ENERGY * inverse, zero], [zero, ENERGY / STIFFNESS * eye]]))
    diffusion = sp.Matrix(sp.BlockMatrix([[2 * ENERGY * CONDUCTANCE * inverse * inverse.T, zero], [zero, zero]]))
    return sp.simplify(drift * law + law * drift.T - diffusion)


def resistive_residuals(conductance: sp.Matrix) -> tuple[sp.Matrix, sp.Matrix]:
    """Residuals of the claimed laws of a resistive board, zero if they hold.

    d(e^{-Gt/c} (v₀ - G⁻¹ i) + G⁻¹ i)/dt + (G v - i)/c at t = 0, for the mean, and A Σ + Σ Aᵀ - D.
    """
    n = conductance.shape[0]
    start, bias = (sp.Matrix(sp.symbols(f"{letter}_1:{n + 1}", real=True)) for letter in "vi")
    drift, settled = conductance / CAPACITANCE, conductance.inv() * bias
    law = ENERGY * UNIT / CAPACITANCE * conductance.inv()
    diffusion = 2 * ENERGY * UNIT / CAPACITANCE**2 * sp.eye(n)
    mean = -drift * (start - settled) + (conductance * start - bias) / CAPACITANCE
    return sp.simplify(mean), sp.simplify(drift * law + law * drift.T - diffusion)


def _plain() -> CellLaw:
    nodal = maxwell_matrix([(GROUND1, 0, None), (GROUND2, 1, None), (STRAIGHT, 0, 1)], 2)
    straight = _solve(nodal[0, 1] - M12, STRAIGHT)
    slack = _solve(nodal[0, 0] - M11, GROUND1)
    return CellLaw("plain", nodal, nodal, None, straight, sp.Integer(0), slack, sp.Integer(0))


def _differential() -> CellLaw:
    p1, n1, p2, n2 = range(4)
    elements = [
        *((GROUND1, node, None) for node in (p1, n1)),
        *((GROUND2, node, None) for node in (p2, n2)),
        *((STRAIGHT, a, b) for a, b in ((p1, p2), (n1, n2))),
        *((CROSSED, a, b) for a, b in ((p1, n2), (n1, p2))),
        (NEGATIVE1, p1, n1),
        (NEGATIVE2, p2, n2),
    ]
    nodal = maxwell_matrix(elements, 4)
    # v_p = w + u/2, v_n = w - u/2; differences of the two nodal equations act on u, their mean on w.
    half = sp.Rational(1, 2)
    from_modes = sp.Matrix([[half, 0, 1, 0], [-half, 0, 1, 0], [0, half, 0, 1], [0, -half, 0, 1]])
    to_modes = sp.Matrix([[1, -1, 0, 0], [0, 0, 1, -1], [half, half, 0, 0], [0, 0, half, half]])
    modes = sp.simplify(to_modes * nodal * from_modes)
    seen, common = modes[:2, :2], modes[2:, 2:]
    if modes[:2, 2:] != sp.zeros(2) or modes[2:, :2] != sp.zeros(2):
        raise AssertionError("difference and common mode of matched differential cells must separate")
    return CellLaw(
        "differential",
        nodal,
        seen,
        common,
        straight=_solve(seen[0, 1].subs(CROSSED, 0) - M12, STRAIGHT),
        crossed=_solve(seen[0, 1].subs(STRAIGHT, 0) - M12, CROSSED),
        slack=_solve(seen[0, 0].subs(NEGATIVE1, 0) - M11, GROUND1),
        negative=_solve(seen[0, 0] - M11, NEGATIVE1),
    )


def _solve(equation: sp.Expr, unknown: sp.Symbol) -> sp.Expr:
    """The solution of a linear equation, derived without the declared signs: the caller decides where it is valid."""
    free = sp.Symbol(unknown.name, real=True)
    (solution,) = sp.solve(equation.subs(unknown, free), free)
    return sp.simplify(solution)

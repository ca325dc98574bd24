"""Derivation of a board, typeset with its numbers, as printed by `tngd design --explain`."""

import sympy as sp

from circuits.board import Board, Program
from circuits.copies import codes
from circuits.netlist.bill import engineering
from circuits.synthesis.equations import CROSSED, GROUND1, NEGATIVE1, STRAIGHT, cell_law

MOST_LINES = 40
CAPACITIVE = "G and Γ are multiples of I on the nominal board, so v has the covariance kT C⁻¹: A Σ + Σ Aᵀ = D holds."
RESISTIVE = """C is c I, so v settles as e^{-Gt/c} at G⁻¹ i for bias currents i: its mean solves a linear system.
Under noise sources of equal power, <i i> = 2 kT g0 δ, it has the covariance (kT g0/c) G⁻¹: A Σ + Σ Aᵀ = D holds."""
CODED = """The ground elements g are soldered, pads included. A digital scaling d makes the rows of M add up to them,
d_i (<U> d)_i = g_i, and takes up what rounding to codes leaves of it."""


def explanation_text(board: Board, program: Program) -> str:
    """Nodal equations, the matrix in the voltages of the readings, the solved elements, and the values of a board."""
    law = cell_law(board.kind)
    between = "v_1, v_2" if board.kind == "plain" else "p_1, n_1, p_2, n_2"
    capacitive = board.coupling == "capacitive"
    unit, matrix, currents = ("c0", "C", "C dv/dt with C") if capacitive else ("g0", "G", "G v with G")
    parts = [
        f"Two {board.kind} cells. Currents of the elements, summed node by node ({between}), are {currents} =",
        sp.pretty(law.nodal, use_unicode=True),
        CAPACITIVE if capacitive else RESISTIVE,
    ]
    if law.common is not None:
        parts += [
            "In u = p - n the readings see",
            sp.pretty(law.seen, use_unicode=True),
            "and the means of the cells' nodes, apart from them and from d, see",
            sp.pretty(law.common, use_unicode=True),
        ]
    held = engineering(board.unit, board.element_unit)
    parts += [f"Set equal to {unit} M, {unit} = {held}, and solved (c_s, c_x, g, d are elements of {matrix}):"]
    parts += [_solutions(board)] + [CODED] * bool(board.banks)
    return "\n\n".join([*parts, f"M ({program.step}; {program.reason}):", _numbers(board, program)]) + "\n"


def _solutions(board: Board) -> str:
    """Equations of the elements, solved for an entry of M."""
    law = cell_law(board.kind)
    rows = [sp.Eq(STRAIGHT, law.straight)]
    if board.kind == "differential":
        rows += [sp.Eq(CROSSED, law.crossed), sp.Eq(NEGATIVE1, law.negative)]
    rows.append(sp.Eq(GROUND1, law.slack))
    return "\n".join(sp.pretty(row, use_unicode=True) for row in rows)


def _numbers(board: Board, program: Program) -> str:
    """Lines of the elements: entry of M, element, value, and code."""
    M = program.matrix
    held, lines = codes(board, program), []
    code_of = {name: (bank.bits, held[bank.name]) for bank in board.banks for name in bank.elements}
    for element in board.elements:
        if element.name in program.values:
            i, j = (element.cells * 2)[:2]
            entry = f"M_{i + 1}{j + 1} = {M[i, j]:+.6f}" if max(i, j) < 9 else f"M_{i + 1},{j + 1} = {M[i, j]:+.6f}"
            value = engineering(program.values[element.name], board.element_unit)
            bits, code = code_of.get(element.name, (0, 0))
            words = f"   code {code:+d} of {2**bits - 1}" if bits else ""
            lines.append(f"  {entry}   {element.name:<14} {value:>10}{words}")
    hidden = len(lines) - MOST_LINES
    return "\n".join(lines[:MOST_LINES] + ([f"  … and {hidden} more in board.json"] if hidden > 0 else []))

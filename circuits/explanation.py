"""The derivation of a board, typeset with its numbers: what `tngd design --explain` prints."""

import sympy as sp

from circuits.bill import engineering
from circuits.board import Board, Program
from circuits.derivation import CROSSED, GROUND1, NEGATIVE1, STRAIGHT, cell_law

MOST_LINES = 40


def explanation(board: Board, program: Program) -> str:
    """Nodal equations, what the readings see, the solved elements, and the values of this board."""
    law = cell_law(board.kind)
    between = "v_1, v_2" if board.kind == "plain" else "p_1, n_1, p_2, n_2"
    parts = [
        f"Two {board.kind} cells. Currents of the elements, summed node by node ({between}), are C dv/dt with C =",
        sp.pretty(law.nodal, use_unicode=True),
        "G and Γ are multiples of I on the nominal board, so v has the covariance kT C⁻¹: A Σ + Σ Aᵀ = D holds.",
    ]
    if law.common is not None:
        parts += [
            "In u = p - n the readings see",
            sp.pretty(law.seen, use_unicode=True),
            "and the means of the cells' nodes, apart from them and from d, see",
            sp.pretty(law.common, use_unicode=True),
        ]
    parts += [f"Set equal to c0 M, c0 = {engineering(board.unit_capacitance, 'F')}, and solved:", _solutions(board)]
    return "\n\n".join([*parts, f"M ({program.step}; {program.reason}):", _numbers(board, program)]) + "\n"


def _solutions(board: Board) -> str:
    law = cell_law(board.kind)
    rows = [sp.Eq(STRAIGHT, law.straight)]
    if board.kind == "differential":
        rows += [sp.Eq(CROSSED, law.crossed), sp.Eq(NEGATIVE1, law.negative)]
    rows.append(sp.Eq(GROUND1, law.slack))
    return "\n".join(sp.pretty(row, use_unicode=True) for row in rows)


def _numbers(board: Board, program: Program) -> str:
    """One line an element: the entry of M it comes from, and its value."""
    M = program.matrix
    lines = []
    for element in board.elements:
        if element.name in program.values:
            i, j = (element.cells * 2)[:2]
            entry = f"M_{i + 1}{j + 1} = {M[i, j]:+.6f}" if max(i, j) < 9 else f"M_{i + 1},{j + 1} = {M[i, j]:+.6f}"
            lines.append(f"  {entry}   {element.name:<14} {engineering(program.values[element.name], 'F'):>10}")
    hidden = len(lines) - MOST_LINES
    return "\n".join(lines[:MOST_LINES] + ([f"  … and {hidden} more in board.json"] if hidden > 0 else []))

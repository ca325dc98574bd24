"""The schematic by schemdraw: one cell, its couplings, and the all-to-all arrangement, with designators and values.

Drawn for the board at hand: the first cell that has parts of every kind, the first coupling, and a triangle in which
cell i stands on the diagonal and the coupling of i and j where row and column meet.
"""

import schemdraw
from schemdraw import elements as elm

from circuits.bill import engineering
from circuits.board import Board, Program, populated_parts

LARGEST = 16  # cells whose arrangement is still legible
UNITS = {"R": "Ω", "L": "H", "C": "F"}
BOX = (2.5, 1.3)  # width and height of a field of the arrangement
FONT = "sans-serif"


def schematic_svg(board: Board, program: Program) -> str:
    """The drawing as SVG text."""
    values = {part.name: engineering(value, UNITS[part.kind]) for part, value in populated_parts(board, program)}
    schemdraw.use("svg")
    with schemdraw.Drawing(show=False, fontsize=10, font=FONT, unit=2.2) as drawing:
        _cell(drawing, board, values)
        _coupling(drawing, board, program, values)
        _arrangement(drawing, board, program, values)
    return drawing.get_imagedata("svg").decode()


def _text(drawing: schemdraw.Drawing, words: str, at: tuple[float, float], size: float = 10) -> None:
    drawing += elm.Label().at(at).label(words, fontsize=size, halign="left")


def _cell(drawing: schemdraw.Drawing, board: Board, values: dict[str, str]) -> None:
    """One cell: per node R, L and C to ground and the noise input; the negative element between the nodes."""
    number = next((k for k in range(1, len(board.cells) + 1) if f"CN{k}" in values), 1)
    cell, negative = board.cells[number - 1], f"CN{number}"
    _text(drawing, cell.name + (" (differential)" if len(cell.nodes) == 2 else ""), (0, 3.4), 13)
    for row, node in enumerate(cell.nodes):
        y = -5.2 * row
        drawing += elm.Dot(open=True).at((0, y + 2.2)).label(node, "left")
        drawing += elm.Line().at((0, y + 2.2)).to((9.6, y + 2.2))
        for column, (name, symbol) in enumerate(
            ((f"R{node}", elm.Resistor), (f"L{node}", elm.Inductor2), (f"CG{node}", elm.Capacitor))
        ):
            if name in values:
                x = 1.4 + 2.9 * column
                drawing += symbol().at((x, y + 2.2)).down().label(f"{name}\n{values[name]}", "bottom", fontsize=9)
                drawing += elm.Ground().at((x, y))
        drawing += elm.SourceI().at((9.6, y)).up().label(f"I{node}\nnoise", "bottom", fontsize=9)
        drawing += elm.Ground().at((9.6, y))
    if negative in values:
        drawing += elm.Line().at((11.4, 2.2)).to((9.6, 2.2))
        drawing += elm.Line().at((11.4, -3.0)).to((9.6, -3.0))
        drawing += elm.Capacitor().at((11.4, 2.2)).to((11.4, -3.0)).label(f"{negative}\n{values[negative]}", fontsize=9)


def _coupling(drawing: schemdraw.Drawing, board: Board, program: Program, values: dict[str, str]) -> None:
    """The first populated coupling, part by part."""
    element = next((e for e in board.elements if len(e.cells) == 2 and e.name in program.values), None)
    top = 3.4 - 5.4 * len(board.cells[0].nodes) - 0.8
    if element is None:
        _text(drawing, "No couplings: the matrix is diagonal.", (0, top), 13)
        return
    i, j = element.cells
    _text(drawing, f"Coupling of cells {i + 1} and {j + 1} ({element.kind})", (0, top), 13)
    for row, part in enumerate(part for part in board.parts if part.element == element.name):
        y = top - 1.5 - 1.6 * row
        a, b = part.nodes
        drawing += elm.Dot(open=True).at((0.6, y)).label(a, "left")
        drawing += elm.Capacitor().at((0.6, y)).to((4.6, y)).label(f"{part.name}  {values[part.name]}", fontsize=9)
        drawing += elm.Dot(open=True).at((4.6, y)).label(b, "right")


def _arrangement(drawing: schemdraw.Drawing, board: Board, program: Program, values: dict[str, str]) -> None:
    """Cells on the diagonal, couplings above it."""
    n = len(board.cells)
    left, top = 15.5, 3.4
    _text(drawing, "All to all", (left, top), 13)
    if n > LARGEST:
        _text(drawing, f"{n} cells, too many to draw; see bom.csv and board.net.", (left, top - 1))
        return
    first = {}
    for part in board.parts:
        first.setdefault(part.element, part.name)
    width, height = BOX
    for i, cell in enumerate(board.cells):
        held = [(f"CG{cell.nodes[0]}", "ground"), (f"CN{i + 1}", "inside")]
        words = [f"{cell.name}: {' '.join(cell.nodes)}", *(f"{values[k]} {w}" for k, w in held if k in values)]
        _field(drawing, left + width * i, top - 1 - height * i, words, "#dbe9f6")
    for element in board.elements:
        if len(element.cells) == 2 and element.name in program.values:
            i, j = element.cells
            words = [first[element.name], values[first[element.name]], element.kind]
            colour = "#fdebd9" if element.kind == "crossed" else "#e3f2e1"
            _field(drawing, left + width * j, top - 1 - height * i, words, colour)


def _field(drawing: schemdraw.Drawing, x: float, y: float, words: list[str], colour: str) -> None:
    width, height = BOX
    drawing += elm.Rect(corner1=(0, 0), corner2=(width - 0.15, -(height - 0.15)), fill=colour, lw=0.8).at((x, y))
    for k, word in enumerate(words):
        _text(drawing, word, (x + 0.12, y - 0.38 - 0.34 * k), 9 if k == 0 else 8)

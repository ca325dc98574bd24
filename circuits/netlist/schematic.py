"""Schematic by schemdraw: one cell, one coupling, and the all-to-all arrangement, with designators and values.

Drawn are the first cell with parts of every kind, the first coupling, and a triangle with cell i on the diagonal and
the coupling of cells i and j where row i and column j meet.
"""

import sys

from circuits.board import Bank, Board, Program
from circuits.copies import codes
from circuits.netlist.bill import UNITS, engineering, soldered_parts

# schemdraw works without its matplotlib backend if the backend cannot be imported; SVG does not need it, and the import
# takes longer than drawing. None makes the import of this one module fail.
sys.modules.setdefault("schemdraw.backends.mpl", None)

import schemdraw  # noqa: E402
from schemdraw import elements as elm  # noqa: E402

CELLS = {
    "capacitive": (("R", elm.Resistor), ("L", elm.Inductor2), ("CG", elm.Capacitor)),
    "resistive": (("C", elm.Capacitor), ("RG", elm.Resistor)),
}
LARGEST = 16  # most cells whose arrangement is legible
BOX = (2.5, 1.3)  # width and height of a field of the arrangement
FONT = "sans-serif"


def schematic_svg(board: Board, program: Program) -> str:
    """Drawing as SVG text."""
    values = {part.name: engineering(value, UNITS[part.kind]) for part, value in soldered_parts(board, program)}
    schemdraw.use("svg")
    with schemdraw.Drawing(show=False, fontsize=10, font=FONT, unit=2.2) as drawing:
        _cell(drawing, board, values)
        _coupling(drawing, board, program, values)
        _arrangement(drawing, board, program, values)
    return drawing.get_imagedata("svg").decode()


def _text(drawing: schemdraw.Drawing, words: str, at: tuple[float, float], size: float = 10) -> None:
    drawing += elm.Label().at(at).label(words, fontsize=size, halign="left")


def _cell(drawing: schemdraw.Drawing, board: Board, values: dict[str, str]) -> None:
    """Draw one cell: the parts to ground and the inputs of each node, and the negative element between the nodes."""
    negatives = [f"{board.element_kind}N{k}" for k in range(1, len(board.cells) + 1)]
    number = next((k for k, name in enumerate(negatives) if name in values), 0)
    cell, negative = board.cells[number], negatives[number]
    _text(drawing, cell.name + (" (differential)" if len(cell.nodes) == 2 else ""), (0, 3.4), 13)
    own = CELLS[board.coupling]
    for row, node in enumerate(cell.nodes):
        y = -5.2 * row
        end = 2.3 + 2.9 * (len(own) - 1) + 1.5
        drawing += elm.Dot(open=True).at((0, y + 2.2)).label(node, "left")
        drawing += elm.Line().at((0, y + 2.2)).to((end + 2.9 * len(board.inputs[:1]), y + 2.2))
        for column, (name, symbol) in enumerate((f"{letter}{node}", symbol) for letter, symbol in own):
            if name in values:
                x = 1.4 + 2.9 * column
                drawing += symbol().at((x, y + 2.2)).down().label(f"{name}\n{values[name]}", "bottom", fontsize=9)
                drawing += elm.Ground().at((x, y))
        inputs = [(f"I{node}", "noise")] + [(entry.name, "bias") for entry in board.inputs if entry.node == node]
        for k, (name, words) in enumerate(inputs):
            x = end + 2.9 * k
            drawing += elm.SourceI().at((x, y)).up().label(f"{name}\n{words}", "bottom", fontsize=9)
            drawing += elm.Ground().at((x, y))
    if negative in values:
        x = end + 2.9 * (len(inputs) - 1)
        symbol = elm.Capacitor if board.element_kind == "C" else elm.Resistor
        drawing += elm.Line().at((x + 2.8, 2.2)).to((x, 2.2))
        drawing += elm.Line().at((x + 2.8, -3.0)).to((x, -3.0))
        label = f"{negative}\n{values[negative]}"
        drawing += symbol().at((x + 2.8, 2.2)).to((x + 2.8, -3.0)).label(label, fontsize=9)


def _coupling(drawing: schemdraw.Drawing, board: Board, program: Program, values: dict[str, str]) -> None:
    """Draw the first populated coupling part by part, or the highest bit of its bank."""
    element = next((e for e in board.elements if len(e.cells) == 2 and e.name in program.values), None)
    top = 3.4 - 5.4 * len(board.cells[0].nodes) - 0.8
    if element is None:
        _text(drawing, "No couplings: the matrix is diagonal.", (0, top), 13)
        return
    i, j = element.cells
    bank = next((bank for bank in board.banks if element.name in bank.elements), None)
    words = f"{bank.name}, highest of {bank.bits} bits" if bank else element.kind
    _text(drawing, f"Coupling of cells {i + 1} and {j + 1} ({words})", (0, top), 13)
    symbol = elm.Capacitor if board.element_kind == "C" else elm.Resistor
    if bank:
        _highest_bit(drawing, board, bank, values, symbol, top)
        return
    held = [part for part, _ in soldered_parts(board, program) if part.element in (element.name, f"{element.name}b")]
    for row, part in enumerate(held):
        y = top - 1.5 - 1.6 * row
        a, b = part.nodes
        drawing += elm.Dot(open=True).at((0.6, y)).label(a, "left")
        drawing += symbol().at((0.6, y)).to((4.6, y)).label(f"{part.name}  {values[part.name]}", fontsize=9)
        drawing += elm.Dot(open=True).at((4.6, y)).label(b, "right")


def _highest_bit(
    drawing: schemdraw.Drawing, board: Board, bank: Bank, values: dict[str, str], symbol: type, top: float
) -> None:
    """Draw the highest bit of a bank: a part for each near node, and from its inner node a switch to each far node."""
    switches = [part for part in board.parts if part.bit and part.bit.bank == bank.name]
    switches = [part for part in switches if part.bit.number == bank.bits - 1]
    for row, inner in enumerate(dict.fromkeys(part.nodes[0] for part in switches)):
        y = top - 1.8 - 2.6 * row
        part = next(part for part in board.parts if part.nodes[1] == inner and part.role == "bit")
        drawing += elm.Dot(open=True).at((0.6, y)).label(part.nodes[0], "left")
        drawing += symbol().at((0.6, y)).to((4.0, y)).label(f"{part.name}  {values[part.name]}", fontsize=9)
        for k, switch in enumerate(part for part in switches if part.nodes[0] == inner):
            drawing += elm.Line().at((4.0, y)).to((4.0, y - 1.1 * k))
            drawing += elm.Switch().at((4.0, y - 1.1 * k)).to((7.0, y - 1.1 * k)).label(switch.name, fontsize=9)
            drawing += elm.Dot(open=True).at((7.0, y - 1.1 * k)).label(switch.nodes[1], "right")


def _arrangement(drawing: schemdraw.Drawing, board: Board, program: Program, values: dict[str, str]) -> None:
    """Draw cells on the diagonal and couplings above it."""
    n = len(board.cells)
    left, top = 15.5, 3.4
    _text(drawing, "All to all", (left, top), 13)
    if n > LARGEST:
        _text(drawing, f"{n} cells, too many to draw; see bom.csv and board.net.", (left, top - 1))
        return
    width, height = BOX
    letter, unit, code_of = board.element_kind, board.element_unit, codes(board, program)
    for i, cell in enumerate(board.cells):
        held = [(f"{letter}G{cell.nodes[0]}", "ground"), (f"{letter}N{i + 1}", "inside")]
        words = [f"{cell.name}: {' '.join(cell.nodes)}", *(f"{values[k]} {w}" for k, w in held if k in values)]
        _field(drawing, left + width * i, top - 1 - height * i, words, "#dbe9f6")
    parts_of: dict[str | None, list[str]] = {}
    for part, _ in soldered_parts(board, program):
        parts_of.setdefault(part.element, []).append(part.name)
    banks = {name: bank.name for bank in board.banks for name in bank.elements}
    for bank in board.banks:
        if code_of[bank.name] == 0:
            i, j = bank.cells
            _field(drawing, left + width * j, top - 1 - height * i, [bank.name, "open", "code 0"], "#f2f2f2")
    for element in board.elements:
        if len(element.cells) == 2 and element.name in program.values and not element.second:
            i, j = element.cells
            if element.name in banks:
                name = banks[element.name]
                words = [name, engineering(program.values[element.name], unit), f"code {code_of[name]:+d}"]
            else:
                both = parts_of[element.name][:1] + parts_of.get(f"{element.name}b", [])[:1]
                words = [both[0], " + ".join(values[name] for name in both), element.kind]
            colour = "#fdebd9" if element.kind == "crossed" else "#e3f2e1"
            _field(drawing, left + width * j, top - 1 - height * i, words, colour)


def _field(drawing: schemdraw.Drawing, x: float, y: float, words: list[str], colour: str) -> None:
    """Draw one field of the arrangement, with a line of text for each of `words`."""
    width, height = BOX
    drawing += elm.Rect(corner1=(0, 0), corner2=(width - 0.15, -(height - 0.15)), fill=colour, lw=0.8).at((x, y))
    for k, word in enumerate(words):
        _text(drawing, word, (x + 0.12, y - 0.38 - 0.34 * k), 9 if k == 0 else 8)

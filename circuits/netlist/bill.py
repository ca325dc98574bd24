"""The bill of materials: the columns JLCPCB reads, and those a buyer needs.

Equal parts share a line: those of one kind and tolerance whose values print the same in the Comment. It has four
digits, and more where the tolerance asks for them, so that rounding to it moves a value by no more than a tenth of its
tolerance; Value is the mean of what the line holds, to nine digits. Part numbers are nobody's to invent: those columns
stay empty until a buyer fills them.
"""

import csv
import io
import math
from dataclasses import dataclass
from functools import lru_cache

from quantiphy import Quantity

from circuits.board import Board, Part, Program
from circuits.copies import populated_parts

COLUMNS = (
    "Comment",
    "Designator",
    "Footprint",
    "LCSC Part #",
    "Quantity",
    "Value",
    "Tolerance",
    "Manufacturer Part Number",
)
FOOTPRINTS = {
    "R": "Resistor_SMD:R_0603_1608Metric",
    "L": "Inductor_SMD:L_1210_3225Metric",
    "C": "Capacitor_SMD:C_0603_1608Metric",
    "J": "Connector_PinHeader_2.54mm:PinHeader_1x02_P2.54mm_Vertical",
    "S": "",  # one of several in an analog switch of the designer's choice
    "N": "",  # an active element of several parts: its own sheet
    "M": "",
}
UNITS = {"R": "Ω", "L": "H", "C": "F", "N": "F", "M": "Ω", "S": "Ω"}


@dataclass(frozen=True)
class Line:
    """Equal parts: kind, SI value in the mean, and who they are.

    Kinds: R, L, C, N and M for negative capacitance and resistance, S for a switch, J for an input of noise or bias.
    """

    kind: str
    value: float | None
    tolerance: float
    designators: tuple[str, ...]

    @property
    def comment(self) -> str:
        """The value in words, as printed on a schematic."""
        if self.value is None:
            return "bias input" if self.designators[0].startswith("IB") else "noise input"
        text = engineering(self.value, UNITS[self.kind], digits(self.tolerance))
        words = {"N": "negative capacitance ", "M": "negative resistance ", "S": "analog switch "}
        return words.get(self.kind, "") + text

    @property
    def footprint(self) -> str:
        """KiCad footprint, empty for what is not one part."""
        return FOOTPRINTS[self.kind]


@lru_cache(maxsize=4)
def soldered_parts(board: Board, program: Program) -> tuple[tuple[Part, float], ...]:
    """`populated_parts`, once for all that is handed over."""
    return tuple(populated_parts(board, program))


def bill_lines(board: Board, program: Program) -> list[Line]:
    """All populated parts and noise inputs, equal ones together, in the order of the board."""
    groups: dict[tuple[str, str, float], list[tuple[str, float]]] = {}
    for part, value in soldered_parts(board, program):
        kind = "S" if part.bit else part.kind if value > 0 else {"C": "N", "R": "M"}[part.kind]
        printed = engineering(value, UNITS[kind], digits(part.tolerance))
        groups.setdefault((kind, printed, part.tolerance), []).append((part.name, value))
    lines = []
    for (kind, _, tolerance), held in groups.items():
        names, values = zip(*held, strict=True)
        lines.append(Line(kind, float(f"{sum(values) / len(values):.9g}"), tolerance, names))
    for entries in (board.sources, board.inputs):
        if entries:
            lines.append(Line("J", None, 0.0, tuple(entry.name for entry in entries)))
    return lines


def bill_text(board: Board, program: Program) -> str:
    """The bill as CSV with COLUMNS."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in bill_lines(board, program):
        tolerance = f"±{100 * line.tolerance:.3g}%" if line.tolerance else ""
        value = "" if line.value is None else repr(line.value)
        names = ",".join(line.designators)
        writer.writerow([line.comment, names, line.footprint, "", len(line.designators), value, tolerance, ""])
    return stream.getvalue()


def digits(tolerance: float) -> int:
    """How many digits a value of this tolerance is printed with, 4 to 9: half of the last is a tenth of it or less.

    >>> digits(0.01), digits(0.001), digits(0.0)
    (4, 5, 9)
    """
    needed = 1 - math.log10(max(tolerance, 1e-9) / 5)
    return min(max(math.ceil(needed), 4), 9)


@lru_cache(maxsize=2**16)
def engineering(value: float, unit: str, digits: int = 4) -> str:
    """A value as engineers print it.

    >>> engineering(7.3516e-10, "F"), engineering(100.0, "Ω"), engineering(-5.86e-10, "F")
    ('735.2 pF', '100 Ω', '-586 pF')
    """
    return Quantity(value, unit).render(prec=digits - 1, form="si").replace("u" + unit, "µ" + unit)

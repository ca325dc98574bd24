"""Bill of materials: the columns that JLCPCB reads, and those that a buyer needs.

Equal parts share a line: parts of one kind and tolerance whose values print alike in the Comment. The Comment has four
digits, and more where the tolerance needs them, so that rounding changes a value by no more than a tenth of its
tolerance; Value is the mean value of the parts of a line, to nine digits. Columns for part numbers stay empty until
a buyer fills them.
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
    "N": "",  # an active element of several parts, on a sheet of its own
    "M": "",
}
UNITS = {"R": "Ω", "L": "H", "C": "F", "N": "F", "M": "Ω", "S": "Ω"}


@dataclass(frozen=True)
class Line:
    """Equal parts: kind, mean value in SI units (None: an input), tolerance, and designators.

    Kinds: R, L, C, N and M for negative capacitance and resistance, S for a switch, J for an input of noise or bias.
    """

    kind: str
    value: float | None
    tolerance: float
    designators: tuple[str, ...]

    @property
    def comment(self) -> str:
        """Value in words, as printed on a schematic."""
        if self.value is None:
            return "bias input" if self.designators[0].startswith("IB") else "noise input"
        text = engineering(self.value, UNITS[self.kind], digits(self.tolerance))
        words = {"N": "negative capacitance ", "M": "negative resistance ", "S": "analog switch "}
        return words.get(self.kind, "") + text

    @property
    def footprint(self) -> str:
        """KiCad footprint, empty for an element that is not one part."""
        return FOOTPRINTS[self.kind]


@lru_cache(maxsize=4)
def soldered_parts(board: Board, program: Program) -> tuple[tuple[Part, float], ...]:
    """`populated_parts` with their values, computed once for all files of an export."""
    return tuple(populated_parts(board, program))


def bill_lines(board: Board, program: Program) -> list[Line]:
    """Lines of all populated parts and of the inputs of noise and bias, in the order of the board."""
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
    """Bill as CSV with the columns COLUMNS."""
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
    """Digits, 4 to 9, printed of a value: half a unit of the last digit is a tenth of the tolerance or less.

    >>> digits(0.01), digits(0.001), digits(0.0)
    (4, 5, 9)
    """
    needed = 1 - math.log10(max(tolerance, 1e-9) / 5)
    return min(max(math.ceil(needed), 4), 9)


@lru_cache(maxsize=2**16)
def engineering(value: float, unit: str, digits: int = 4) -> str:
    """Value with an SI prefix and a unit.

    >>> engineering(7.3516e-10, "F"), engineering(100.0, "Ω"), engineering(-5.86e-10, "F")
    ('735.2 pF', '100 Ω', '-586 pF')
    """
    return Quantity(value, unit).render(prec=digits - 1, form="si").replace("u" + unit, "µ" + unit)

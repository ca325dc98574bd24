"""The bill of materials: the columns JLCPCB reads, and those a buyer needs.

Equal parts share a line. Part numbers are nobody's to invent: those columns stay empty until a buyer fills them.
"""

import csv
import io
from dataclasses import dataclass

from quantiphy import Quantity

from circuits.board import Board, Program
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
    """Equal parts: kind, SI value, and who they are.

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
        text = engineering(self.value, UNITS[self.kind])
        words = {"N": "negative capacitance ", "M": "negative resistance ", "S": "analog switch "}
        return words.get(self.kind, "") + text

    @property
    def footprint(self) -> str:
        """KiCad footprint, empty for what is not one part."""
        return FOOTPRINTS[self.kind]


def bill_lines(board: Board, program: Program) -> list[Line]:
    """All populated parts and noise inputs, equal ones together, in the order of the board."""
    groups: dict[tuple[str, float | None, float], list[str]] = {}
    for part, value in populated_parts(board, program):
        kind = "S" if part.bit else part.kind if value > 0 else {"C": "N", "R": "M"}[part.kind]
        groups.setdefault((kind, value, part.tolerance), []).append(part.name)
    lines = [Line(*key, tuple(names)) for key, names in groups.items()]
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


def engineering(value: float, unit: str) -> str:
    """A value as engineers print it, to four digits.

    >>> engineering(7.3516e-10, "F"), engineering(100.0, "Ω"), engineering(-5.86e-10, "F")
    ('735.2 pF', '100 Ω', '-586 pF')
    """
    return Quantity(value, unit).render(prec=3, form="si").replace("u" + unit, "µ" + unit)

"""The four records of a circuit: Board, Program, Copy, Conditions.

A *Board* is the soldered hardware: cells, parts, sources, readings, limits; it holds no target. A *Program* sets the
elements for one target. A *Copy* is one physical specimen: the ratio actual/nominal of every part, independent of the
program. *Conditions* are ambient temperature, causes switched off, and noise seed of a run. The netlist writer and the
matrix assembly both start from these four records and share nothing else but circuits.copies.

A parasitic is a part like any other, with a `cause`. With its cause switched off it is absent (a stray capacitance) or
a wire (the resistance of a switch).

All values are SI: ohm, henry, farad, siemens, second, joule, volt.
"""

import re
from dataclasses import dataclass, field
from math import inf

import numpy as np

from circuits.errors import InputError
from circuits.files import ArrayField

GROUND = "0"
REFERENCE_CELSIUS = 27.0
# Causes under which spread is switched on and off: TEMPERATURES that of sources and damping resistors, which makes the
# temperatures of the cells unequal, TOLERANCE that of all other parts.
TEMPERATURES, TOLERANCE = "temperatures", "tolerance"

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

COLDEST, HOTTEST = -55.0, 125.0  # °C, range of the parts


@dataclass(frozen=True)
class Cell:
    """One unit cell: its node, or its nodes p and n when it is differential."""

    name: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Element:
    """A value that a program sets, held by one part, by a matched pair of parts, or by the bits of a bank.

    `kind` is "ground" (each node of the cell to ground), "straight" (p-p and n-n, or the one node to the other),
    "crossed" (p-n and n-p) or "negative" (a negative element between p and n). A `second` element is in parallel with
    the one of the same kind and cells.
    """

    name: str
    kind: str
    cells: tuple[int, ...]
    second: bool = False


@dataclass(frozen=True)
class Bit:
    """Condition for a closed switch: bit `number` of the bank's code is set, and the code has this sign."""

    bank: str
    number: int
    sign: int


@dataclass(frozen=True)
class Bank:
    """Binary-weighted parts behind switches: bit b is `unit` · 2ᵇ [F or S], b from 0 to `bits` - 1.

    The code's sign picks the element: positive the first (straight), negative the second (crossed).
    """

    name: str
    cells: tuple[int, int]
    elements: tuple[str, ...]
    unit: float
    bits: int

    @property
    def reach(self) -> float:
        """Largest value of the bank [F or S]."""
        return self.unit * (2**self.bits - 1)


@dataclass(frozen=True)
class Part:
    """One physical two-terminal part.

    `kind` is "R" [ohm], "L" [H] or "C" [F]; `nominal` is None where the program's `element` sets the value (a
    resistor then has its inverse); `tolerance` is the half width of a uniform relative spread; `tempco` is in 1/K;
    `role` is its function; `bit` makes it a switch. `cause` is the name under which a parasitic part can be switched
    off ("" for all other parts); it is then absent, or, if `wire`, a wire. A part `beside` an element is present if
    that element is populated.
    """

    name: str
    kind: str
    nodes: tuple[str, str]
    role: str
    nominal: float | None = None
    element: str | None = None
    tolerance: float = 0.0
    tempco: float = 0.0
    cause: str = ""
    wire: bool = False
    bit: Bit | None = None
    beside: str | None = None


@dataclass(frozen=True)
class Mutual:
    """Two inductors, by part name, that share flux: M = coefficient sqrt(L1 L2)."""

    name: str
    inductors: tuple[str, str]
    coefficient: float
    cause: str


@dataclass(frozen=True)
class Source:
    """A noise current source at `node` with the two-sided density 2 kT `conductance`.

    On a capacitive board that is the nominal conductance of the cell's resistor, so the cell's temperature is
    T R_actual/R_nominal: the source does not follow the actual resistor. `tolerance` is the half width of a uniform
    relative spread of its power, `tempco` [1/K] the temperature coefficient of its power.
    """

    name: str
    node: str
    conductance: float
    tolerance: float = 0.0
    tempco: float = 0.0


@dataclass(frozen=True)
class Input:
    """A bias current input at `node`: `share` of the bias current of the cell (1; ½ at p and -½ at n)."""

    name: str
    node: str
    cell: int
    share: float


@dataclass(frozen=True)
class Reading:
    """One output of the board: the voltage `plus` against `minus` (None: against ground)."""

    cell: str
    plus: str
    minus: str | None


@dataclass(frozen=True)
class Limits:
    """Limits of a board: elements [F or S], largest rms reading [V], and error due to held noise.

    `hold_bias` is the fraction of the fastest mode's variance that holding the noise for one period may cost.
    """

    smallest: float = 0.0
    largest: float = 1e-6
    reading_rms: float = 0.05
    hold_bias: float = 0.03


@dataclass(frozen=True)
class Board:
    """The soldered hardware. `kind` is "plain" (one node a cell) or "differential" (two).

    `coupling` is "capacitive" (the elements are capacitances, `unit` in F) or "resistive" (conductances, `unit` in S);
    `unit` stands for 1 of the programmed matrix. `capacitance` [F] is the factor between covariance and inverse: the
    unit of a capacitive board, the capacitor of every cell of a resistive one.
    """

    kind: str
    coupling: str
    cells: tuple[Cell, ...]
    elements: tuple[Element, ...]
    parts: tuple[Part, ...]
    sources: tuple[Source, ...]
    readings: tuple[Reading, ...]
    unit: float
    capacitance: float
    inputs: tuple[Input, ...] = ()
    banks: tuple[Bank, ...] = ()
    mutuals: tuple[Mutual, ...] = ()
    limits: Limits = field(default_factory=Limits)

    @property
    def element_unit(self) -> str:
        """Unit of the elements: "F" or "S"."""
        return "F" if self.coupling == "capacitive" else "S"

    @property
    def element_kind(self) -> str:
        """Kind of the parts that hold elements: "C" or "R"."""
        return "C" if self.coupling == "capacitive" else "R"

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes of the cells, cell by cell."""
        return tuple(node for cell in self.cells for node in cell.nodes)

    @property
    def nodes_per_cell(self) -> int:
        """1 or 2; also the factor k in Cov(reading) = k kT/c M⁻¹."""
        return len(self.cells[0].nodes)


@dataclass(frozen=True)
class RoundingCost:
    """Relative errors of the nominal inverse: with the nearest values of the grid and the scaling before rounding (None
    if such a board is not positive definite), and with the chosen values and scaling.
    """

    series: str
    error_nearest: float | None
    error: float


@dataclass(frozen=True, eq=False)
class Program:
    """One target on one board.

    With X = diag(scaling) congruence the board holds M = X P Xᵀ, and P⁻¹ = Xᵀ M⁻¹ X. `scaling` carries the
    reading signs; `step` names the circuit and `reason` says why no cheaper one. `values` [F or S] sets every element
    that is populated; `energy` [J] is kT of the cells; `period` [s] is the hold time of the noise samples and the
    sampling period of the readings; `settling` [s] is the time constant of the slowest mode of the nominal board.
    """

    name: str
    target: ArrayField  # (n, n), P
    congruence: ArrayField  # (n, n), T
    scaling: ArrayField  # (n,)
    step: str
    reason: str
    values: dict[str, float]
    energy: float
    period: float
    settling: float
    rounding: RoundingCost | None = None

    @property
    def mapping(self) -> np.ndarray:
        """X, (n, n): M = X P Xᵀ."""
        return self.scaling[:, None] * self.congruence

    @property
    def matrix(self) -> np.ndarray:
        """M, (n, n): matrix that the board holds, in its `unit`."""
        M = self.mapping @ self.target @ self.mapping.T
        return (M + M.T) / 2


@dataclass(frozen=True)
class Copy:
    """One physical specimen of a board: actual/nominal of every part and of every source's power, by name."""

    name: str
    gains: dict[str, float]


@dataclass(frozen=True)
class Conditions:
    """Conditions of a run: ambient [°C], the causes that are switched off, the seed of the noise."""

    ambient: float = REFERENCE_CELSIUS
    off: frozenset[str] = frozenset()
    seed: int = 0


def ideal_conditions(board: Board) -> Conditions:
    """Conditions that a program is made for: causes of static, known loads are on, all others are off.

    Such loads are pads of switches, coils and inputs of a capacitive board, and closed switches of a resistive one.
    """
    unknown = {"winding", "esr", "coupled coils", "strays"}
    dynamic = {"switches"} if board.coupling == "capacitive" else {"pads"}
    return Conditions(off=frozenset(unknown | dynamic))


def inverse_scale(board: Board, program: Program) -> float:
    """c/(k kT) [1/V²], k nodes a cell: P⁻¹ = Xᵀ (scale Cov(y)) X from the covariance (n, n) [V²] of the readings."""
    return board.capacitance / (board.nodes_per_cell * program.energy)


def impossible(board: Board) -> str | None:
    """The first contradiction in a board that was read from a file, in words; None if there is none."""
    poles = {"plain": 1, "differential": 2}
    if board.kind not in poles or board.coupling not in ("capacitive", "resistive"):
        return f"its board is {board.coupling} and {board.kind}"
    if not board.cells or any(len(cell.nodes) != poles[board.kind] for cell in board.cells):
        return f"its {board.kind} board has a cell without {poles[board.kind]} nodes"
    above = {"unit": board.unit, "capacitance": board.capacitance, "reading_rms": board.limits.reading_rms}
    above |= {f"nominal value of {part.name}": part.nominal for part in board.parts if part.nominal is not None}
    above |= {f"conductance of {source.name}": source.conductance for source in board.sources}
    above |= {f"unit of {bank.name}": bank.unit for bank in board.banks}
    least = {f"tolerance of {each.name}": each.tolerance for each in (*board.parts, *board.sources)}
    wrong = [f"{name} of {value}, expected one above 0" for name, value in above.items() if not 0 < value < inf]
    wrong += [f"{name} of {value}, expected 0 or more" for name, value in least.items() if not 0 <= value < inf]
    if wrong:
        return f"its board has a {wrong[0]}"
    held = {part.element for part in board.parts} | {name for bank in board.banks for name in bank.elements}
    bare = [element.name for element in board.elements if element.name not in held]
    return f"its element {bare[0]} has no part" if bare else None


@dataclass(frozen=True, eq=False)
class Design:
    """One target on one board, in `copies` specimens drawn with `seed`."""

    board: Board
    program: Program
    copies: tuple[Copy, ...]
    seed: int
    tolerance: float
    damping: float
    yield_fraction: float
    source: str

    @property
    def rounding(self) -> RoundingCost | None:
        """Cost of rounding, None if the values are not rounded."""
        return self.program.rounding


def check_name(name: str) -> str:
    """Return `name` if it may stand in a deck and a file name, or raise InputError."""
    if not SAFE_NAME.fullmatch(name):
        raise InputError(
            f"a name is 1 to 64 letters, digits, dots, dashes or underscores, got {name!r}; choose another --name"
        )
    return name

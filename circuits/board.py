"""The four records every path starts from: Board, Program, Copy, Conditions.

They keep apart what changes separately. A *Board* is what is soldered: cells, parts, sources, readings, limits;
it holds no target. A *Program* puts one target on it. A *Copy* is one physical specimen: the ratio actual/nominal
of every part, the same whatever is programmed. *Conditions* say when and how it is looked at. The netlist writer
and the matrix assembly both start from these four and share nothing else but `part_values`.

All values are SI: ohm, henry, farad, second, joule, volt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from circuits.store import Array, sha256

GROUND = "0"
PART_STREAM = 1  # every use of random numbers has a stream of its own, whatever the seeds are
REFERENCE_CELSIUS = 27.0
TOLERANCE = "tolerance"  # the cause under which the spread of the parts is switched on and off


@dataclass(frozen=True)
class Cell:
    """One unit cell: its node, or its nodes p and n when it is differential."""

    name: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Element:
    """A value that a program sets, held by one part or by a matched pair of parts.

    `kind` is "ground" (each node of the cell to ground), "straight" (p-p and n-n, or the one node to the other),
    "crossed" (p-n and n-p) or "negative" (a negative capacitance between p and n).
    """

    name: str
    kind: str
    cells: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """One physical two-terminal part.

    `kind` is "R" [ohm], "L" [H] or "C" [F]; `nominal` is None where the program's `element` sets the value;
    `tolerance` is the half width of a uniform relative spread; `tempco` is in 1/K; `role` says what it is for;
    `cause` is the name under which the part can be switched off ("" for a part that is meant to be there).
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


@dataclass(frozen=True)
class Source:
    """A noise current source at `node`, its power set by the nominal value of the resistor `heats`.

    Two-sided density 2 kT/R_nominal, so the cell's temperature is T R_actual/R_nominal: the source does not
    know the resistor it really meets.
    """

    name: str
    node: str
    heats: str


@dataclass(frozen=True)
class Reading:
    """One output of the board: the voltage `plus` against `minus` (None: against ground)."""

    cell: str
    plus: str
    minus: str | None


@dataclass(frozen=True)
class Limits:
    """What the board can hold: largest element [F], largest rms reading [V], and how coarsely noise may be held.

    `hold_bias` is the fraction of the fastest mode's variance that holding the noise for one period may cost.
    """

    capacitance: float = 1e-6
    reading_rms: float = 0.05
    hold_bias: float = 0.03


@dataclass(frozen=True)
class Board:
    """What is soldered. `kind` is "plain" (one node a cell) or "differential" (two).

    `unit_capacitance` [F] stands for 1 of the programmed matrix.
    """

    kind: str
    cells: tuple[Cell, ...]
    elements: tuple[Element, ...]
    parts: tuple[Part, ...]
    sources: tuple[Source, ...]
    readings: tuple[Reading, ...]
    unit_capacitance: float
    limits: Limits = field(default_factory=Limits)

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes but ground, cell by cell."""
        return tuple(node for cell in self.cells for node in cell.nodes)

    @property
    def nodes_per_cell(self) -> int:
        """1 or 2; also the factor in Cov(reading) = nodes_per_cell kT (c0 M)^-1."""
        return len(self.cells[0].nodes)


@dataclass(frozen=True, eq=False)
class Program:
    """One target on one board.

    With X = diag(scaling) congruence the board holds M = X P Xᵀ, and P⁻¹ = Xᵀ M⁻¹ X. `scaling` carries the
    reading signs; `step` names the circuit and `reason` says why no cheaper one. `values` [F] sets every element that
    is populated; `energy` [J] is kT of the cells; `period` [s] is the hold time of the noise samples and the sampling
    period of the readings; `settling` [s] is the time constant of the slowest mode of the nominal board.
    """

    name: str
    target: Array  # (n, n), P
    congruence: Array  # (n, n), T
    scaling: Array  # (n,)
    step: str
    reason: str
    values: dict[str, float]
    energy: float
    period: float
    settling: float

    @property
    def mapping(self) -> np.ndarray:
        """X, (n, n): M = X P Xᵀ."""
        return self.scaling[:, None] * self.congruence

    @property
    def matrix(self) -> np.ndarray:
        """M, (n, n): what the board holds in units of its unit capacitance."""
        M = self.mapping @ self.target @ self.mapping.T
        return (M + M.T) / 2


@dataclass(frozen=True)
class Copy:
    """One physical specimen of a board: actual/nominal of every part, by part name."""

    name: str
    gains: dict[str, float]


@dataclass(frozen=True)
class Conditions:
    """When and how a copy is looked at: ambient [°C], the causes that are on, the seed of its noise."""

    ambient: float = REFERENCE_CELSIUS
    causes: frozenset[str] = frozenset({TOLERANCE})
    seed: int = 0


def nominal_copy(board: Board) -> Copy:
    """The copy whose every part is exactly nominal."""
    return Copy("nominal", {part.name: 1.0 for part in board.parts})


def draw_gains(board: Board, seed: int, copies: int) -> np.ndarray:
    """Ratios actual/nominal of `copies` specimens, (copies, parts): 1 + tolerance · uniform(-1, 1), independent.

    A part's ratio depends on `seed`, the copy's number and the part's name alone: more copies, or more parts on the
    board, leave the ones there are as they were.
    """
    tolerance = np.array([part.tolerance for part in board.parts])
    names = np.array([int(sha256(part.name)[:16], 16) for part in board.parts], dtype=np.uint64)
    keys = np.array(
        [np.random.SeedSequence([PART_STREAM, seed, k]).generate_state(1, np.uint64) for k in range(copies)]
    )
    uniform = _mixed(_mixed(names + keys.reshape(copies, 1))) / 2.0**64  # (copies, parts), 0 to 1
    return 1 + tolerance * (2 * uniform - 1)


def draw_copies(board: Board, seed: int, copies: int) -> tuple[Copy, ...]:
    """The same specimens as `draw_gains`, named copy-1, copy-2, …"""
    names = [part.name for part in board.parts]
    return tuple(
        Copy(f"copy-{k}", dict(zip(names, row.tolist(), strict=True)))
        for k, row in enumerate(draw_gains(board, seed, copies), start=1)
    )


def gains_of(board: Board, copies: Sequence[Copy]) -> np.ndarray:
    """Ratios of given copies in the order of the board's parts, (copies, parts)."""
    return np.array([[copy.gains[part.name] for part in board.parts] for copy in copies])


def part_values(board: Board, program: Program, gains: np.ndarray, conditions: Conditions) -> np.ndarray:
    """Actual value of every part, shape of `gains` (…, parts): nominal · gain · (1 + tempco ΔT).

    A part that the program leaves out, or whose cause is off, has the value 0 and is not there.
    """
    nominal = np.array([_nominal(part, program, conditions) for part in board.parts])
    tempco = np.array([part.tempco for part in board.parts])
    spread = gains if TOLERANCE in conditions.causes else np.ones_like(gains)
    return nominal * spread * (1 + tempco * (conditions.ambient - REFERENCE_CELSIUS))


def populated_parts(board: Board, program: Program) -> list[tuple[Part, float]]:
    """The parts that a program solders in, with their nominal values, in the board's order."""
    nominal = part_values(board, program, np.ones(len(board.parts)), Conditions())
    return [(part, float(value)) for part, value in zip(board.parts, nominal, strict=True) if value != 0]


def _mixed(z: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): every bit of the input moves half of the output."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _nominal(part: Part, program: Program, conditions: Conditions) -> float:
    if part.cause and part.cause not in conditions.causes:
        return 0.0
    return program.values.get(part.element, 0.0) if part.nominal is None else part.nominal

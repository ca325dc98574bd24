"""SPICE decks of a copy, written through PySpice: one subcircuit per cell and coupling kind, plain numbers.

A deck is a header of comments, the circuit, the line ANALYSIS, and an analysis. The circuit's noise currents are
`trrandom(2 h 0 σ 0)`: Gaussian samples held for h, which obey `.option seed`, with σ = sqrt(2 kT g / h). Runs that
need another analysis keep everything above the line.

This is the only module that touches PySpice. Names are checked before they come near a deck, because SPICE
`.control` lines can run a shell.
"""

import re
from importlib.metadata import version

import numpy as np
from PySpice.Spice.Netlist import Circuit as SpiceCircuit
from PySpice.Spice.Netlist import SubCircuit

from circuits.assembly import assemble
from circuits.board import GROUND, Board, Conditions, Copy, Part, Program, gains_of, part_values
from circuits.errors import InputError
from circuits.ou import held_covariance
from circuits.store import sha256

ANALYSIS = "* === analysis: everything above this line is the board ==="
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
WIDEST = 16  # cells whose expected covariance still fits a header
FOUR = ["p1", "n1", "p2", "n2"]
CELL_PARTS = {"res": "R", "ind": "L", "cap": "CG"}  # subcircuit parameter: designator on the board
START_UP = 15.0  # slowest time constants discarded before the first reading: e^-30 of the variance is missing


def check_name(name: str) -> str:
    """Return `name` if it may stand in a deck and a file name, or raise InputError."""
    if not SAFE_NAME.fullmatch(name):
        raise InputError(
            f"a name is 1 to 64 letters, digits, dots, dashes or underscores, got {name!r}; choose another --name"
        )
    return name


def circuit_text(board: Board, program: Program, copy: Copy, conditions: Conditions) -> str:
    """The circuit of one copy: subcircuits, cells, couplings, noise sources; no analysis."""
    value = dict(
        zip(
            (part.name for part in board.parts),
            part_values(board, program, gains_of(board, [copy])[0], conditions).tolist(),
            strict=True,
        )
    )
    parts_of: dict[str | None, list[str]] = {}
    for part in board.parts:
        parts_of.setdefault(part.element, []).append(part.name)
    spice = SpiceCircuit(f"{check_name(program.name)} {copy.name}")
    used = {element.kind for element in board.elements if element.name in program.values}
    for subcircuit in _subcircuits(board, used):
        spice.subcircuit(subcircuit)
    for cell in board.cells:
        parameters = {
            f"{word}{k}": repr(value[f"{letter}{node}"])
            for k, node in enumerate(cell.nodes, start=1)
            for word, letter in CELL_PARTS.items()
        }
        spice.X(cell.name, f"spu_cell_{board.kind}", *cell.nodes, spice.gnd, **parameters)
    for element in board.elements:
        if element.kind != "ground" and element.name in program.values:
            nodes = [node for i in element.cells for node in board.cells[i].nodes]
            parts = parts_of[element.name]
            parameters = {f"c{k}": repr(value[name]) for k, name in enumerate(parts, start=1)}
            spice.X(element.name, f"spu_{element.kind}_{board.kind}", *nodes, **parameters)
    for part in _others(board):
        if value[part.name] != 0:
            place = {"R": spice.R, "L": spice.L, "C": spice.C}[part.kind]
            nodes = [spice.gnd if node == GROUND else node for node in part.nodes]
            place(part.name[1:], *nodes, repr(value[part.name]))
    for source in board.sources:
        sigma = noise_amplitude(board, program, source.name)
        noise = f"dc 0 ac 0 trrandom(2 {program.period!r} 0 {sigma!r} 0)"
        spice.I(source.name[1:], spice.gnd, source.node, raw_spice=noise)
    return _annotated(str(spice), {name: " ".join(parts) for name, parts in parts_of.items() if name})


def deck(board: Board, program: Program, copy: Copy, conditions: Conditions, samples: int) -> str:
    """A whole deck that plain `ngspice -b` runs: it records `samples` readings to <copy>.raw."""
    circuit = circuit_text(board, program, copy, conditions)
    header = _header(board, program, copy, conditions, samples)
    return header + circuit + ANALYSIS + "\n" + sampled_analysis(board, program, conditions.seed, samples, copy.name)


def library_text(board: Board) -> str:
    """The cell and coupling subcircuits of a board kind as a library for KiCad's simulator."""
    kinds = {element.kind for element in board.elements if element.kind != "ground"}
    subcircuits = _subcircuits(board, kinds)
    lines = [
        f"SPU cells: subcircuits of a board of {board.kind} cells, written by tngd " + version("tngd"),
        "In KiCad, give a symbol these fields (pin numbers left, subcircuit nodes right):",
    ]
    for subcircuit in subcircuits:
        names = [str(node) for node in subcircuit.external_nodes]
        pins = " ".join(f"{k}={node}" for k, node in enumerate(names, start=1))
        parameters = " ".join(f"{name}=..." for name in subcircuit.parameters)
        lines.append(f"  Sim.Library=spu_cells.lib  Sim.Name={subcircuit.name}  Sim.Device=SUBCKT")
        lines.append(f"    Sim.Pins={pins}")
        lines.append(f"    Sim.Params={parameters}")
    header = "".join(f"* {line}\n" for line in lines)
    return header + "\n" + "\n".join(str(subcircuit).strip() + "\n" for subcircuit in subcircuits)


def circuit_of(text: str) -> str:
    """The part of a deck above its analysis."""
    circuit, line, _ = text.partition(ANALYSIS)
    if not line:
        raise InputError(f"the deck lacks the line {ANALYSIS!r}; write it again with `tngd design --force`")
    return circuit


def sampled_analysis(board: Board, program: Program, seed: int, samples: int, output: str) -> str:
    """Transient analysis: start-up discarded, then `samples` readings at multiples of the period to <output>.raw.

    chgtol = 1 C switches the local truncation error control off, harmless for a linear circuit whose step is set by
    the noise; interp puts the points exactly on the grid, where the held-noise law holds.
    """
    h = program.period
    skip = discarded(program)
    saved = " ".join(f"v({node})" for node in board.nodes)
    return "\n".join(
        [
            f".options seed={seed} chgtol=1 interp",
            f".save {saved}",
            f".tran {h!r} {(skip + samples + 0.5) * h!r} {skip * h!r} {h!r}",
            *_control([f"run\nwrite {output}.raw {saved}"]),
        ]
    )


def exact_analysis(board: Board, low: float, high: float, points: int, output: str) -> str:
    """One AC run per noise source, unit current, `points` per decade from `low` to `high` Hz, all to <output>.raw."""
    saved = " ".join(f"v({node})" for node in board.nodes)
    steps = ["set appendwrite"]
    for source in board.sources:
        name = source.name.lower()
        steps += [
            f"alter {name} ac = 1",
            f"ac dec {points} {low!r} {high!r}",
            f"write {output}.raw {saved}",
            f"alter {name} ac = 0",
        ]
    return "\n".join([f".save {saved}", *_control(steps)])


def discarded(program: Program) -> int:
    """Samples of start-up that are thrown away: 15 time constants of the slowest mode of the nominal board."""
    return int(np.ceil(START_UP * program.settling / program.period))


def noise_amplitude(board: Board, program: Program, source: str) -> float:
    """σ = sqrt(2 kT g / h) of a held noise current [A], g the nominal conductance of the resistor it heats."""
    heats = {entry.name: entry.heats for entry in board.sources}[source]
    resistance = next(part.nominal for part in board.parts if part.name == heats)
    return float(np.sqrt(2 * program.energy / resistance / program.period))


def _control(lines: list[str]) -> list[str]:
    return [".control", *lines, "quit", ".endc", ".end", ""]


def _subcircuits(board: Board, used: set[str]) -> list[SubCircuit]:
    """The subcircuit kinds a program uses; parameters have no sensible default, so instances give all of them."""
    plain = board.kind == "plain"
    nodes = ["v"] if plain else ["p", "n"]
    names = [f"{word}{k}" for k in range(1, len(nodes) + 1) for word in CELL_PARTS]
    cell = SubCircuit(f"spu_cell_{board.kind}", *nodes, "gnd", **dict.fromkeys(names, "1"))
    for k, node in enumerate(nodes, start=1):
        cell.R(node, node, "gnd", f"{{res{k}}}")
        cell.L(node, node, "gnd", f"{{ind{k}}}")
        cell.C(f"G{node}", node, "gnd", f"{{cap{k}}}")
    made = [cell]
    if "straight" in used and plain:
        made.append(_capacitors("spu_straight_plain", ["v1", "v2"], [("v1", "v2")]))
    elif "straight" in used:
        made.append(_capacitors("spu_straight_differential", FOUR, [("p1", "p2"), ("n1", "n2")]))
    if "crossed" in used:
        made.append(_capacitors("spu_crossed_differential", FOUR, [("p1", "n2"), ("n1", "p2")]))
    if "negative" in used:
        made.append(_capacitors("spu_negative_differential", ["p", "n"], [("p", "n")]))
    return made


def _capacitors(name: str, nodes: list[str], pairs: list[tuple[str, str]]) -> SubCircuit:
    made = SubCircuit(name, *nodes, **{f"c{k}": "0" for k in range(1, len(pairs) + 1)})
    for k, (a, b) in enumerate(pairs, start=1):
        made.C(k, a, b, f"{{c{k}}}")
    return made


def _others(board: Board) -> list[Part]:
    """Parts that belong to no cell and no element: parasitics. Their names begin with the letter of their kind."""
    cells = {f"{letter}{node}" for node in board.nodes for letter in CELL_PARTS.values()}
    return [part for part in board.parts if part.name not in cells and part.element is None]


def _annotated(circuit: str, parts_of: dict[str, str]) -> str:
    """Headings above the first cell, coupling and noise source, and the names of the parts behind every element."""
    seen: set[str] = set()
    lines = []
    for line in circuit.splitlines():
        kind = "cells" if line.startswith("Xcell") else {"X": "couplings", "I": "noise sources"}.get(line[:1])
        if kind and kind not in seen:
            seen.add(kind)
            lines += ["", f"* --- {kind}"]
        names = parts_of.get(line.split()[0][1:]) if kind == "couplings" else None
        lines.append(f"{line} ; {names}" if names else line)
    return "\n".join(lines) + "\n"


def _header(board: Board, program: Program, copy: Copy, conditions: Conditions, samples: int) -> str:
    factor = board.nodes_per_cell
    readings = " ".join(
        f"v({reading.plus})" if reading.minus is None else f"v({reading.plus})-v({reading.minus})"
        for reading in board.readings
    )
    lines = [
        f"SPU board {program.name}, {copy.name}: {len(board.cells)} {board.kind} cells, all to all",
        f"target       {len(program.target)} x {len(program.target)}, sha256 {sha256(program.target)}",
        f"step         {program.step}",
        f"noise seed   {conditions.seed}",
        "written by   tngd " + version("tngd"),
        "",
        "What it does: the covariance of the readings carries the inverse of the target.",
        f"  readings y  {readings}",
        f"  M^-1 = c0 (Cov(y) + K) / ({factor} kT),  c0 = {board.unit_capacitance!r} F,  kT = {program.energy!r} J",
        "  K = `hold_correction_V2` in board.json: what white noise would add to noise held for a period",
        "  P^-1 = X' M^-1 X, with X = `mapping` in board.json",
        f"Run it: ngspice -b {copy.name}.cir records {samples} readings (or one more) to {copy.name}.raw,",
        f"  one every {program.period:.6g} s, after {discarded(program)} periods of start-up that are not recorded.",
        "",
        *_expected(board, program, copy, conditions),
    ]
    return "".join(f"* {line}".rstrip() + "\n" for line in lines)


def _expected(board: Board, program: Program, copy: Copy, conditions: Conditions) -> list[str]:
    """The covariance that this copy's own values give, as rows of numbers; too wide to read beyond WIDEST cells."""
    if len(board.cells) > WIDEST:
        return [f"Expected covariance of the readings: {board.nodes_per_cell} kT/c0 M^-1 on the nominal board."]
    covariance = held_covariance(assemble(board, program, copy, conditions), program.period)
    rows = ("  " + " ".join(f"{entry:+.6e}" for entry in row) for row in covariance)
    return ["Expected covariance of the recorded readings [V^2], for the noise as it is held here:", *rows]

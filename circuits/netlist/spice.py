"""Circuit of a copy in SPICE, written by PySpice: a subcircuit for every kind of cell, coupling and bit.

The noise currents are `trrandom(2 h 0 σ 0)`: Gaussian samples held for h, with σ = sqrt(2 kT g / h), which follow
`.option seed`.

No other module uses PySpice. Names are checked before they are written into a deck, because SPICE `.control` lines can
run a shell.
"""

from importlib.metadata import version

import numpy as np
from PySpice.Spice.Netlist import Circuit as SpiceCircuit
from PySpice.Spice.Netlist import SubCircuit

from circuits.board import GROUND, Board, Conditions, Copy, Program, check_name
from circuits.copies import gains_of, part_values, source_ratios, wiring
from circuits.nodal import noise_amplitude

FOUR = ["p1", "n1", "p2", "n2"]
OPEN = 1e12  # ohm, of an open switch


def circuit_text(board: Board, program: Program, copy: Copy, conditions: Conditions) -> str:
    """Circuit of one copy: subcircuits, cells, couplings, banks and parasitics, sources; no analysis.

    Parts that touch only nodes of their cells are written as an instance of a subcircuit, and so are the parts of a bit
    whose inner node touches no others; all other parts are written one by one. Open switches are resistors of OPEN ohm.
    """
    gains = gains_of(board, [copy])[0]
    placed = _placed(board, program, gains, conditions)
    spice = SpiceCircuit(f"{check_name(program.name)} {copy.name}")
    own = _cell_parts(board)
    bits = _whole_bits(board, placed)
    groups = {cell.name: [f"{word}{node}" for node in cell.nodes for word in own] for cell in board.cells}
    direct = {name: names for name, names in groups.items() if all(_is_direct(board, placed, part) for part in names)}
    for subcircuit in _subcircuits(board, _kinds(board, program) - (set() if bits else {"bit"})):
        if direct or not subcircuit.name.startswith("spu_cell"):
            spice.subcircuit(subcircuit)
    for cell in board.cells:
        if cell.name in direct:
            parameters = {
                f"{word}{k}": repr(placed[f"{letter}{node}"][0])
                for k, node in enumerate(cell.nodes, start=1)
                for letter, word in own.items()
            }
            spice.X(cell.name, f"spu_cell_{board.kind}", *cell.nodes, spice.gnd, **parameters)
    written = {part for names in direct.values() for part in names}
    written |= _place_couplings(spice, board, program, placed)
    written |= _place_bits(spice, board, placed, bits)
    for name, (value, ends) in placed.items():
        if name not in written:
            _place(spice, name, value, ends)
    for mutual in board.mutuals:
        if mutual.cause not in conditions.off:
            spice.K(mutual.name[1:], *mutual.inductors, repr(mutual.coefficient))
    _place_sources(spice, board, program, source_ratios(board, gains, conditions))
    return _annotated(str(spice), _parts_of(board) | bits)


def library_text(board: Board) -> str:
    """Library for the simulator of KiCad: the subcircuits of a kind of board, cells and couplings or bits of banks."""
    subcircuits = _subcircuits(board, _kinds(board))
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


def _cell_parts(board: Board) -> dict[str, str]:
    """Parameter of the subcircuit of a cell, by the beginning of the name of the part to ground."""
    own = {"C": "cap", "RG": "res"} if board.coupling == "resistive" else {"R": "res", "L": "ind", "CG": "cap"}
    return own


def _placed(
    board: Board, program: Program, gains: np.ndarray, conditions: Conditions
) -> dict[str, tuple[float, tuple[str, str]]]:
    """Value [SI] and nodes of every part in the deck, by name; an open switch has OPEN ohm."""
    values = part_values(board, program, gains, conditions)
    wired = wiring(board, program, conditions)
    names = (*wired.nodes, GROUND)
    found = {}
    for part, value, ends, there in zip(board.parts, values.tolist(), wired.ends, wired.present, strict=True):
        nodes = (names[ends[0]], names[ends[1]])
        if there and nodes[0] != nodes[1]:
            found[part.name] = (value, nodes)
        elif part.bit and not there and "switches" not in conditions.off and part.nodes[0] in names:
            found[part.name] = (OPEN, part.nodes)
    return found


def _is_direct(board: Board, placed: dict[str, tuple[float, tuple[str, str]]], name: str) -> bool:
    """Whether a part fits the subcircuit of its cell: between a node of a cell and ground, without shared flux."""
    shared = {inductor for mutual in board.mutuals for inductor in mutual.inductors}
    _, (node, other) = placed.get(name, (0.0, ("", "")))
    return node in board.nodes and other == GROUND and name not in shared


def _place(spice: SpiceCircuit, name: str, value: float, ends: tuple[str, str]) -> None:
    """Write one resistor, inductor or capacitor."""
    place = {"R": spice.R, "L": spice.L, "C": spice.C}[name[0]]
    place(name[1:], *(spice.gnd if node == GROUND else node for node in ends), repr(value))


def _place_couplings(
    spice: SpiceCircuit, board: Board, program: Program, placed: dict[str, tuple[float, tuple[str, str]]]
) -> set[str]:
    """Write instances of all elements that touch only nodes of their cells; return the names of their parts."""
    written: set[str] = set()
    parts_of = _parts_of(board)
    for element in board.elements:
        parts = parts_of.get(element.name, [])
        own = {node for i in element.cells for node in board.cells[i].nodes}
        if element.kind == "ground" or not all(name in placed and set(placed[name][1]) <= own for name in parts):
            continue
        if element.name in program.values and parts:
            nodes = [node for i in element.cells for node in board.cells[i].nodes]
            letter = board.element_kind.lower()
            parameters = {f"{letter}{k}": repr(placed[name][0]) for k, name in enumerate(parts, start=1)}
            spice.X(element.name, f"spu_{element.kind}_{board.kind}", *nodes, **parameters)
            written |= set(parts)
    return written


def _whole_bits(board: Board, placed: dict[str, tuple[float, tuple[str, str]]]) -> dict[str, list[str]]:
    """Parts (part, switches, pad), by instance name, of every bit whose inner node touches no other parts."""
    meeting: dict[str, list[str]] = {}
    for name, (_, ends) in placed.items():
        for node in ends:
            meeting.setdefault(node, []).append(name)
    roles = {part.name: part.role for part in board.parts}
    switches = 1 if board.kind == "plain" else 2
    inner = {part.name: part.nodes[1] for part in board.parts if part.role == "bit"}
    found = {f"bit_{node[1:]}": meeting.get(node, []) for node in inner.values()}
    whole = ["bit", *["switch"] * switches, "pad"]
    return {bit: names for bit, names in found.items() if [roles[name] for name in names] == whole}


def _place_bits(
    spice: SpiceCircuit,
    board: Board,
    placed: dict[str, tuple[float, tuple[str, str]]],
    bits: dict[str, list[str]],
) -> set[str]:
    """Write instances of whole bits; return the names of their parts."""
    for bit, names in bits.items():
        part, *switches, _ = names
        nodes = [placed[part][1][0], *(placed[name][1][1] for name in switches)]
        parameters = dict(zip(_bit_parameters(board), (repr(placed[name][0]) for name in names), strict=True))
        spice.X(bit, f"spu_bit_{board.kind}", *nodes, spice.gnd, **parameters)
    return {name for names in bits.values() for name in names}


def _bit_parameters(board: Board) -> list[str]:
    """Parameters of the subcircuit of a bit: value, switches (straight, crossed), pad."""
    ways = ["rs"] if board.kind == "plain" else ["rs", "rx"]
    return [board.element_kind.lower() + "b", *ways, "cp"]


def _place_sources(spice: SpiceCircuit, board: Board, program: Program, ratios: np.ndarray) -> None:
    """Write the noise sources, with power `ratios` to nominal ones (sources,), and the bias inputs."""
    for source, ratio in zip(board.sources, ratios, strict=True):
        sigma = noise_amplitude(board, program, source.name) * float(np.sqrt(ratio))
        noise = f"dc 0 ac 0 trrandom(2 {program.period!r} 0 {sigma!r} 0)"
        spice.I(source.name[1:], spice.gnd, source.node, raw_spice=noise)
    for entry in board.inputs:
        spice.I(entry.name[1:], spice.gnd, entry.node, raw_spice="dc 0")


def _parts_of(board: Board) -> dict[str, list[str]]:
    """Names of the parts of each element."""
    found: dict[str, list[str]] = {}
    for part in board.parts:
        if part.element:
            found.setdefault(part.element, []).append(part.name)
    return found


def _kinds(board: Board, program: Program | None = None) -> set[str]:
    """Kinds of elements that are subcircuits, of a program, or (None) of all programs of the board."""
    if board.banks:
        return {"bit"}
    elements = [element for element in board.elements if program is None or element.name in program.values]
    return {element.kind for element in elements}


def _subcircuits(board: Board, used: set[str]) -> list[SubCircuit]:
    """Subcircuits of the kinds in use; their defaults mean nothing, as instances give all parameters."""
    plain = board.kind == "plain"
    nodes = ["v"] if plain else ["p", "n"]
    own = _cell_parts(board)
    names = [f"{word}{k}" for k in range(1, len(nodes) + 1) for word in own.values()]
    cell = SubCircuit(f"spu_cell_{board.kind}", *nodes, "gnd", **dict.fromkeys(names, "1"))
    for k, node in enumerate(nodes, start=1):
        for name, word in own.items():
            place = {"R": cell.R, "L": cell.L, "C": cell.C}[name[0]]
            place(f"{name[1:]}{node}", node, "gnd", f"{{{word}{k}}}")
    made = [cell]
    if "straight" in used and plain:
        made.append(_coupling(board, "straight", ["v1", "v2"], [("v1", "v2")]))
    elif "straight" in used:
        made.append(_coupling(board, "straight", FOUR, [("p1", "p2"), ("n1", "n2")]))
    if "crossed" in used:
        made.append(_coupling(board, "crossed", FOUR, [("p1", "n2"), ("n1", "p2")]))
    if "negative" in used:
        made.append(_coupling(board, "negative", ["p", "n"], [("p", "n")]))
    if "bit" in used:
        made.append(_bit(board))
    return made


def _coupling(board: Board, kind: str, nodes: list[str], pairs: list[tuple[str, str]]) -> SubCircuit:
    """Subcircuit of an element with one part between each pair of nodes."""
    letter = board.element_kind.lower()
    made = SubCircuit(f"spu_{kind}_{board.kind}", *nodes, **{f"{letter}{k}": "1" for k in range(1, len(pairs) + 1)})
    for k, (a, b) in enumerate(pairs, start=1):
        {"c": made.C, "r": made.R}[letter](k, a, b, f"{{{letter}{k}}}")
    return made


def _bit(board: Board) -> SubCircuit:
    """Subcircuit of a bit: a part from the near node to an inner node, and from there a switch to each far node.

    The pads of the switches are one capacitor from the inner node to ground.
    """
    far = ["far"] if board.kind == "plain" else ["straight", "crossed"]
    value, *ways, pad = _bit_parameters(board)
    made = SubCircuit(f"spu_bit_{board.kind}", "near", *far, "gnd", **dict.fromkeys([value, *ways, pad], "1"))
    {"c": made.C, "r": made.R}[value[0]]("b", "near", "inner", f"{{{value}}}")
    for node, way in zip(far, ways, strict=True):
        made.R(way[1], "inner", node, f"{{{way}}}")
    made.C("p", "inner", "gnd", f"{{{pad}}}")
    return made


def _annotated(circuit: str, parts_of: dict[str, list[str]]) -> str:
    """Circuit with a heading above every section, and the names of its parts after every coupling."""
    section, inside = None, False
    lines = []
    for line in circuit.splitlines():
        inside = (inside or line.startswith(".subckt")) and not line.startswith(".ends")
        kind = None if inside else _section(line)
        if kind and kind != section:
            section = kind
            lines += ["", f"* --- {kind}"]
        names = parts_of.get(line.split()[0][1:]) if kind == "couplings" else None
        lines.append(f"{line} ; {' '.join(names)}" if names else line)
    return "\n".join(lines) + "\n"


def _section(line: str) -> str | None:
    """Heading of the section of a line of the circuit; None for a line without a section."""
    if line.startswith("X"):
        return "cells" if line.startswith("Xcell") else "couplings"
    if line.startswith("I"):
        return "bias current inputs" if line.startswith("IB") else "noise sources"
    return "parts" if line[:1] in ("R", "L", "C", "K") else None

"""Everything a designer takes further, written to a run folder in one step.

board.json               the records, and what a reader needs to rebuild the measurement
netlists/*.cir           decks of the nominal board and of every copy, plain numbers
lib/spu_cells.lib        the cell and coupling subcircuits, as KiCad simulation models
bom.csv, board.net       what to buy and how it is connected
codes.csv                what to set the switches of a board with banks to
schematic.svg, design.md what to look at and what to discuss
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from circuits.board import Board, Conditions, Design, Program
from circuits.copies import codes, specimens
from circuits.files import new_folder, sha256, write_json, write_text
from circuits.netlist.bill import bill_text
from circuits.netlist.deck import deck
from circuits.netlist.folder import describe
from circuits.netlist.kicad import pcb_netlist
from circuits.netlist.review import review_text
from circuits.netlist.schematic import schematic_svg
from circuits.netlist.spice import library_text
from circuits.statistics.moments import CHUNK, chunk_seed


def write_design(design: Design, folder: Path, force: bool = False) -> None:
    """Write the run folder, all or nothing."""
    board, program = design.board, design.program
    with new_folder(folder, force, "board.json") as fresh, ThreadPoolExecutor(1) as other:
        pcb = other.submit(pcb_netlist, board, program)  # a process of its own, beside the rest
        hashes = {}
        for name, text in decks(design):
            write_text(fresh / "netlists" / f"{name}.cir", text)
            hashes[name] = sha256(text)
        write_text(fresh / "lib" / "spu_cells.lib", library_text(board))
        write_text(fresh / "bom.csv", bill_text(board, program))
        if board.banks:
            write_text(fresh / "codes.csv", codes_text(board, program))
        write_text(fresh / "schematic.svg", schematic_svg(board, program))
        write_text(fresh / "design.md", review_text(design))
        write_text(fresh / "board.net", pcb.result())
        write_json(fresh / "board.json", describe(design, hashes))


def decks(design: Design) -> Iterator[tuple[str, str]]:
    """Name and text of the deck of the nominal board and of every copy."""
    for k, copy in enumerate(specimens(design)):
        conditions = Conditions(seed=chunk_seed(design.seed, k, 0))
        yield copy.name, deck(design.board, design.program, copy, conditions, CHUNK)


def codes_text(board: Board, program: Program) -> str:
    """codes.csv: every bank with its code, its bits (highest first), which way it is switched, and what it holds."""
    unit = board.element_unit
    rows = [f"Bank,Cells,Code,Bits,Switched,Value [{unit}],Full scale [{unit}]"]
    held = codes(board, program)
    for bank in board.banks:
        code = held[bank.name]
        way = "open" if code == 0 else "straight" if code > 0 else "crossed"
        cells = " ".join(str(i + 1) for i in bank.cells)
        value = abs(code) * bank.unit
        rows.append(f"{bank.name},{cells},{code},{abs(code):0{bank.bits}b},{way},{value!r},{bank.reach!r}")
    return "\n".join(rows) + "\n"

"""Export of a design: inputs read and checked, boards designed, and the run folder written whole or not at all.

A result is replaced only with `force`, and names its origin: hashes of the inputs, seeds, versions. The run folder:

board.json          the records, and the constants for rebuilding the measurement
netlists/*.cir      decks of the nominal board and of every copy, plain numbers
lib/spu_cells.lib   subcircuits of cells, couplings and bits, as KiCad simulation models
bom.csv             bill of materials
board.net           PCB netlist for KiCad
codes.csv           codes of the switches of a board with banks
schematic.svg       one cell, its couplings, and the all-to-all arrangement
design.md           summary for a design review
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from circuits.board import Board, Conditions, Design, Program
from circuits.copies import codes, specimens
from circuits.errors import InputError
from circuits.files import new_folder, refuse_existing, sha256, write_json, write_text
from circuits.netlist.bill import bill_text
from circuits.netlist.deck import deck_text
from circuits.netlist.folder import describe, load_design
from circuits.netlist.kicad import pcb_netlist
from circuits.netlist.review import review_text
from circuits.netlist.schematic import schematic_svg
from circuits.netlist.spice import library_text
from circuits.statistics.moments import CHUNK, chunk_seed
from circuits.synthesis.design import check_copies, check_size, design_requested, holds, reuse_design, takes
from circuits.synthesis.fisher import TargetOptions, congruence_of, target_of
from circuits.synthesis.options import BoardOptions, BoardRequest, check_options
from circuits.synthesis.target import check_target


def design_folder(place: TargetOptions, request: BoardRequest, out: Path, force: bool = False) -> Design:
    """Design boards for a named data set or a matrix file and write the run folder.

    InputError if an option is wrong, the target cannot be held, or `out` exists without `force`.
    """
    check_copies(request.copies, request.tolerance, request.seed)
    check_options(request.options)
    refuse_existing(out, force)
    name, matrix, source = target_of(place)
    check_size(len(matrix), bool(request.options.bank_bits))
    T = congruence_of(place.precondition, place.target, len(matrix), place.damping)
    target = check_target(matrix, place.damping, holds=lambda P: holds(P, T, request))
    made = design_requested(target, T, request, name=name, damping=place.damping, source=source)
    write_design(made, out, force)
    return made


def reuse_folder(
    place: TargetOptions, request: BoardRequest, folder: Path, coupling: str | None, out: Path, force: bool = False
) -> Design:
    """Program a target onto the board and the copies of the design in `folder` and write a run folder for it.

    `coupling` may only repeat that of the board. InputError if any other option of a board is given, the board cannot
    hold the target, or `out` exists without `force`.
    """
    old, _ = load_design(folder)
    refuse_existing(out, force)
    if out.resolve() == folder.resolve():
        raise InputError(f"the new program goes to a folder of its own, not to {folder}; choose another --out")
    if coupling not in (None, old.board.coupling):
        raise InputError(
            f"the board in {folder} is {old.board.coupling}, not {coupling}; leave out --coupling, or design another"
        )
    if replace(request, options=replace(request.options, coupling=BoardOptions().coupling)) != BoardRequest():
        raise InputError(
            f"board, parts and copies are those of {folder}; with --reuse leave out every option but "
            "--at, --precondition, --damping and --name"
        )
    name, matrix, source = target_of(place)
    check_size(len(matrix))
    T = congruence_of(place.precondition, place.target, len(matrix), place.damping)
    target = check_target(matrix, place.damping, holds=lambda P: takes(old.board, P, T))
    made = reuse_design(old, target, T, name=name, damping=place.damping, source=source)
    write_design(made, out, force)
    return made


def write_design(design: Design, folder: Path, force: bool = False) -> None:
    """Write the run folder whole or not at all; InputError if it exists without `force`."""
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
        yield copy.name, deck_text(design.board, design.program, copy, conditions, CHUNK)


def codes_text(board: Board, program: Program) -> str:
    """Text of codes.csv: code, bits (highest first), direction of the switches, and value of every bank."""
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

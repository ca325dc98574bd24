"""PCB netlist of a board for KiCad: every soldered part and every input, under its name in the decks.

Written by skidl, in a process of its own.
"""

import json
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from circuits.board import GROUND, Board, Program
from circuits.errors import SimulationError
from circuits.netlist.bill import bill_lines, soldered_parts

TIMEOUT = 300.0  # s; a board of 64 cells takes some two


def pcb_netlist(board: Board, program: Program) -> str:
    """Text of the netlist; SimulationError if skidl fails."""
    nodes = {part.name: part.nodes for part, _ in soldered_parts(board, program)}
    nodes |= {entry.name: (entry.node, GROUND) for entry in (*board.sources, *board.inputs)}
    parts: list[dict] = []
    for line in bill_lines(board, program):
        common = {"kind": line.kind, "value": line.comment, "footprint": line.footprint}
        parts += [{"ref": ref, **common, "nodes": nodes[ref]} for ref in line.designators]
    order = {name: k for k, name in enumerate(nodes)}
    parts.sort(key=lambda part: order[part["ref"]])
    return _written(json.dumps({"title": program.name, "parts": parts}))


@lru_cache(maxsize=64)
def _written(parts: str) -> str:
    """Text that kicad_writer.py prints for parts as JSON, kept: the same parts give the same netlist."""
    writer = Path(__file__).with_name("kicad_writer.py")
    with tempfile.TemporaryDirectory(prefix="tngd-") as folder:
        try:
            # -P keeps the folder of this package off the path, where its modules would hide others of the same name.
            done = subprocess.run(
                [sys.executable, "-P", str(writer)],
                input=parts,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SimulationError(f"skidl did not write the PCB netlist within {TIMEOUT:g} s") from None
    if done.returncode != 0 or not done.stdout.startswith("(export"):
        words = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise SimulationError(f"skidl did not write the PCB netlist; it said: {words}")
    return done.stdout

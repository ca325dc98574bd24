"""Run folder of a design: `board.json`, read and written, and the sealed decks beside it."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from circuits.board import Board, Copy, Design, Program
from circuits.copies import specimens
from circuits.errors import InputError
from circuits.files import provenance, read_record, seal_of, sha256
from circuits.netlist.deck import circuit_of
from circuits.nodal import noise_amplitude, nominal_circuit
from circuits.ou import nominal_hold_correction
from circuits.synthesis.options import YIELD_DRAWS

SCHEMA = "tngd.board/3"


def describe(design: Design, hashes: dict[str, str]) -> dict[str, Any]:
    """Content of board.json, sealed by its own hash: nodes, sources and constants first, then the records."""
    board, program = design.board, design.program
    content = {
        "schema": SCHEMA,
        "name": program.name,
        "step": program.step,
        "coupling": board.coupling,
        "cells": _cells(board, program),
        "scale": _scale(board, program),
        "tolerance": design.tolerance,
        "damping": design.damping,
        "yield": {"definite_fraction": design.yield_fraction, "draws": YIELD_DRAWS},
        "board": TypeAdapter(Board).dump_python(board, mode="json"),
        "program": TypeAdapter(Program).dump_python(program, mode="json"),
        "copies": TypeAdapter(tuple[Copy, ...]).dump_python(design.copies, mode="json"),
        "provenance": provenance(target_sha256=sha256(program.target), seed=design.seed, source=design.source)
        | {"netlist_sha256": hashes},
    }
    content["provenance"]["content_sha256"] = seal_of(content)
    return content


def load_design(folder: Path) -> tuple[Design, dict[str, str]]:
    """Design in `folder`, and the circuit part of each of its decks; InputError if a file is missing or changed."""
    content = read_record(folder / "board.json", SCHEMA, "design")
    try:
        design = Design(
            TypeAdapter(Board).validate_python(content["board"]),
            TypeAdapter(Program).validate_python(content["program"]),
            TypeAdapter(tuple[Copy, ...]).validate_python(content["copies"]),
            int(content["provenance"]["seed"]),
            float(content["tolerance"]),
            float(content["damping"]),
            float(content["yield"]["definite_fraction"]),
            str(content["provenance"]["source"]),
        )
        hashes = dict(content["provenance"]["netlist_sha256"])
        seal = content["provenance"]["content_sha256"]
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        word = str(error).splitlines()[0]
        raise InputError(f"{folder / 'board.json'} is damaged ({word}); make it again with `tngd design`") from None
    if seal_of(content) != seal:
        raise InputError(
            f"{folder / 'board.json'} was changed since it was designed; run `tngd design --force` to restore it"
        )
    return design, {copy.name: _read_deck(folder, copy.name, hashes) for copy in specimens(design)}


def _cells(board: Board, program: Program) -> list[dict[str, Any]]:
    """Nodes, reading, noise sources and scaling of every cell."""
    return [
        {
            "name": cell.name,
            "nodes": list(cell.nodes),
            "reading": {"plus": reading.plus, "minus": reading.minus or "0"},
            "sources": [
                {"name": s.name, "node": s.node, "amplitude_A": noise_amplitude(board, program, s.name)}
                for s in board.sources
                if s.node in cell.nodes
            ],
            "scaling": float(program.scaling[i]),
        }
        for i, (cell, reading) in enumerate(zip(board.cells, board.readings, strict=True))
    ]


def _scale(board: Board, program: Program) -> dict[str, Any]:
    """Constants and the law by which recorded readings become an inverse."""
    return {
        "capacitance_F": board.capacitance,
        "energy_kT_J": program.energy,
        "nodes_per_cell": board.nodes_per_cell,
        "sampling_period_s": program.period,
        "mapping": program.mapping.tolist(),
        "hold_correction_V2": nominal_hold_correction(nominal_circuit(board, program), program.period).tolist(),
        "law": "inverse = mapping' (capacitance / (nodes_per_cell kT) Cov) mapping, Cov = covariance of the "
        "recorded readings + hold_correction: what holding the noise for a sampling period takes from white noise",
    }


def _read_deck(folder: Path, name: str, hashes: dict[str, str]) -> str:
    """Circuit part of the deck of a copy; InputError if the deck is missing or changed."""
    path = folder / "netlists" / f"{name}.cir"
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path} is missing or not text; make it again with `tngd design --force`") from None
    if sha256(text) != hashes.get(name):
        raise InputError(f"{path} was changed since it was designed; run `tngd design --force` to restore it")
    return circuit_of(text)

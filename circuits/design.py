"""A design: board, program and copies for one target, checked, and the folder that holds it.

Folder: `board.json` (the records, and for every cell its nodes, sources and scale), `netlists/nominal.cir` and
`netlists/copy-k.cir`. A copy whose capacitance matrix is not positive definite is a board that runs away; such a
design is refused, with the yield and what would do.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from circuits.assembly import assemble_gains, is_stable, noise_amplitude, nominal_circuit
from circuits.board import Board, Conditions, Copy, Design, Program, check_name, ideal_conditions
from circuits.choices import Choices, check_choices
from circuits.copies import draw_copies, draw_gains, gains_of, nominal_copy, specimens
from circuits.deck import circuit_of
from circuits.errors import InputError, UnstableCopyError
from circuits.ladder import precondition
from circuits.ou import nominal_hold_correction
from circuits.parasitics import Parasitics, check_parasitics
from circuits.store import provenance, read_json, sha256
from circuits.synthesis import board_and_program as synthesise
from circuits.synthesis import reprogram
from circuits.target import DOUBLINGS, least_damping, two_digits

SCHEMA = "tngd.board/3"
YIELD_DRAWS = 400
GOOD_YIELD = 0.99
MOST_COPIES = 1000


def make_design(
    target: np.ndarray,
    congruence: np.ndarray | None = None,
    *,
    name: str = "board",
    copies: int = 3,
    tolerance: float = 0.01,
    seed: int = 0,
    damping: float = 0.0,
    source: str = "matrix",
    cells: str = "auto",
    choices: Choices | None = None,
    parasitics: Parasitics | None = None,
) -> Design:
    """Design board and copies for a checked target (damping already in it); InputError if a copy would run away."""
    check_name(name)
    check_options(copies, tolerance, seed)
    made, extra = check_choices(choices or Choices()), check_parasitics(parasitics or Parasitics())
    board, program = synthesise(target, congruence, name, tolerance, cells, made, extra, damping)
    _check_nominal(board, program)
    drawn = draw_copies(board, seed, copies)
    definite = _stable(board, program, gains_of(board, drawn))
    fraction = float(_stable(board, program, draw_gains(board, seed, YIELD_DRAWS)).mean())
    if not definite.all():
        failed = drawn[int(np.argmin(definite))].name
        remedies = _remedies(board, program, copies, tolerance, seed, damping, cells, made, extra)
        raise UnstableCopyError(
            f"{failed} is not positive definite: at ±{tolerance:.3g} parts {fraction:.0%} of the copies hold this "
            f"target; {remedies} would do"
        )
    return Design(board, program, drawn, seed, tolerance, damping, fraction, source)


def reuse_design(
    old: Design,
    target: np.ndarray,
    congruence: np.ndarray | None = None,
    *,
    name: str = "board",
    damping: float = 0.0,
    source: str = "matrix",
) -> Design:
    """Program another checked target onto the board and the copies of a design that has banks.

    InputError if its board has none, is of another size, or holds no such target.
    """
    program = reprogram(old.board, target, congruence, check_name(name), damping)
    definite = _stable(old.board, program, gains_of(old.board, old.copies))
    if not definite.all():
        failed = old.copies[int(np.argmin(definite))].name
        raise UnstableCopyError(f"{failed} does not hold this target: it would run away; use a --precondition")
    fraction = float(_stable(old.board, program, draw_gains(old.board, old.seed, YIELD_DRAWS)).mean())
    return replace(old, program=program, damping=damping, yield_fraction=fraction, source=source)


def check_options(copies: int, tolerance: float, seed: int) -> None:
    """Raise InputError unless copies can be drawn with these."""
    if not 1 <= copies <= MOST_COPIES:
        raise InputError(f"from 1 to {MOST_COPIES} copies can be drawn, got --copies {copies}")
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance is a fraction from 0 to below 1 (0.01 is one per cent), got {tolerance}")
    if seed < 0:
        raise InputError(f"a seed is a whole number >= 0, got {seed}")


def holds(
    target: np.ndarray,
    congruence: np.ndarray | None,
    copies: int,
    tolerance: float,
    seed: int,
    cells: str,
    choices: Choices | None = None,
    parasitics: Parasitics | None = None,
) -> bool:
    """Whether the drawn copies, and 99 % of all, hold a checked target."""
    try:
        board, program = synthesise(target, congruence, "board", tolerance, cells, choices, parasitics)
    except InputError:
        return False
    return _all_hold(board, program, draw_gains(board, seed, max(copies, YIELD_DRAWS)), copies)


def describe(design: Design, hashes: dict[str, str]) -> dict[str, Any]:
    """The content of board.json, sealed by its own hash: what a reader needs first, then the records."""
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
    content["provenance"]["content_sha256"] = _content_hash(content)
    return content


def load_design(folder: Path) -> tuple[Design, dict[str, str]]:
    """The design in `folder` and the text of each of its decks; InputError if anything is missing or changed."""
    content = read_json(folder / "board.json", "design")
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputError(f"{folder / 'board.json'} does not say schema {SCHEMA}; make it again with `tngd design`")
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
        seal = content["provenance"].pop("content_sha256")
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        word = str(error).splitlines()[0]
        raise InputError(f"{folder / 'board.json'} is damaged ({word}); make it again with `tngd design`") from None
    if _content_hash(content) != seal:
        raise InputError(
            f"{folder / 'board.json'} was changed since it was designed; run `tngd design --force` to restore it"
        )
    return design, {copy.name: _read_deck(folder, copy.name, hashes) for copy in specimens(design)}


def _content_hash(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True))


def _cells(board: Board, program: Program) -> list[dict[str, Any]]:
    """For every cell its nodes, reading, noise sources and scaling."""
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
    """What turns recorded readings into an inverse."""
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
    path = folder / "netlists" / f"{name}.cir"
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path} is missing or not text; make it again with `tngd design --force`") from None
    if sha256(text) != hashes.get(name):
        raise InputError(f"{path} was changed since it was designed; run `tngd design --force` to restore it")
    return circuit_of(text)


def _stable(board: Board, program: Program, gains: np.ndarray) -> np.ndarray:
    """Whether copies of these gains (copies, parts) are stable, (copies,).

    On a board with banks the ideal circuit says it: there is nothing negative on a capacitive one, and on a resistive
    one the inner nodes are eliminated.
    """
    conditions = ideal_conditions(board) if board.banks else Conditions()
    return is_stable(assemble_gains(board, program, gains, conditions))


def _check_nominal(board: Board, program: Program) -> None:
    """Raise InputError if not even exact parts hold the target: a negative element that ESR leaves alone."""
    if not _stable(board, program, gains_of(board, [nominal_copy(board)]))[0]:
        raise InputError(
            "behind their ESR the positive capacitors leave the negative elements alone at high frequencies, and the "
            "board runs away; use a --precondition, --cells differential with a --damping, or no --esr"
        )


def _all_hold(board: Board, program: Program, gains: np.ndarray, copies: int) -> bool:
    definite = _stable(board, program, gains)
    return bool(definite[:copies].all() and definite[:YIELD_DRAWS].mean() >= GOOD_YIELD)


def _remedies(
    board: Board,
    program: Program,
    copies: int,
    tolerance: float,
    seed: int,
    damping: float,
    cells: str,
    choices: Choices,
    parasitics: Parasitics,
) -> str:
    """What would do in words: the tolerance and the damping at which these copies and 99 % of all hold this target."""
    gains = draw_gains(board, seed, max(copies, YIELD_DRAWS))
    # Parts that come with others, and sources, keep the spread they have whatever the tolerance is.
    soldered = np.array(
        [not part.cause and part.role != "input" for part in board.parts] + [False] * len(board.sources)
    )
    halved = (two_digits(tolerance / 2**k, up=False) for k in range(1, DOUBLINGS) if tolerance)
    scaled = ((t, 1 + (gains - 1) * np.where(soldered, t / tolerance, 1.0)) for t in halved)
    smaller = next((t for t, less in scaled if _all_hold(board, program, less, copies)), None)
    n = len(program.target)
    raw = program.target - damping * np.eye(n)
    first = damping + 1e-6 * float(np.trace(program.target)) / n
    wanted = (program.congruence, copies, tolerance, seed, cells, choices, parasitics)
    larger = least_damping(raw, first, lambda P: holds(P, *wanted))
    found = (("--tolerance", smaller), ("--damping", larger))
    words = [f"{option} {value:.2g}" for option, value in found if value is not None]
    return " or ".join(filter(None, [", ".join(words), precondition(program.congruence)]))

"""What the verbs that make boards do with files: read and check inputs, compute, write outputs whole.

Every verb refuses to replace a result without `force`, and every result says what it was made from: hashes of the
inputs, seeds, versions, the ngspice that ran.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from circuits.board import Design
from circuits.errors import InputError
from circuits.files import provenance, refuse_existing, sha256, write_json, write_npy
from circuits.handover import write_design
from circuits.netlist.folder import load_design
from circuits.synthesis.design import check_options, check_size, holds, make_design, reuse_design, takes
from circuits.synthesis.fisher import Place, congruence_of, named_fisher, target_of
from circuits.synthesis.options import Choices, Parasitics, check_choices
from circuits.synthesis.target import check_target, inverse_factor


@dataclass(frozen=True)
class Request:
    """What board is wanted, in how many copies."""

    copies: int = 3
    tolerance: float = 0.01
    seed: int = 0
    cells: str = "auto"
    choices: Choices = field(default_factory=Choices)
    parasitics: Parasitics = field(default_factory=Parasitics)


def fisher(name: str, at: str, out: Path, factor: Path | None, force: bool) -> np.ndarray:
    """Write the Fisher matrix of a data set to `out` (.npy), its provenance beside it, its inverse factor if asked."""
    for path in filter(None, (out, factor)):
        if path.suffix != ".npy":
            raise InputError(f"the matrix is written as .npy, got {path}")
        refuse_existing(path, force)
    refuse_existing(out.with_suffix(".json"), force)
    if factor == out:
        raise InputError(f"the matrix and its factor cannot both be {out}; choose another --factor")
    F, data = named_fisher(name, at)
    write_npy(out, F)
    if factor:
        write_npy(factor, inverse_factor(F))
    about = {
        "schema": "tngd.fisher/1",
        "data_set": name,
        "question": data.question,
        "at": at,
        "rows": len(data.labels),
        "features": list(data.feature_names),
        "condition": float(np.linalg.cond(F)),
        "provenance": provenance(matrix_sha256=sha256(F), data_sha256=sha256(data.features)),
    }
    write_json(out.with_suffix(".json"), about)
    return F


def design(place: Place, request: Request, out: Path, force: bool = False) -> Design:
    """Design boards for a named data set or a matrix file and write the run folder."""
    check_options(request.copies, request.tolerance, request.seed)
    choices = check_choices(request.choices)
    refuse_existing(out, force)
    name, matrix, source = target_of(place)
    check_size(len(matrix), bool(choices.bank_bits))
    T = congruence_of(place.precondition, place.target, len(matrix), place.damping)
    options = (request.copies, request.tolerance, request.seed, request.cells, choices, request.parasitics)
    made = make_design(
        check_target(matrix, place.damping, holds=lambda P: holds(P, T, *options)),
        T,
        name=name,
        copies=request.copies,
        tolerance=request.tolerance,
        seed=request.seed,
        damping=place.damping,
        source=source,
        cells=request.cells,
        choices=choices,
        parasitics=request.parasitics,
    )
    write_design(made, out, force)
    return made


def reuse(place: Place, request: Request, folder: Path, coupling: str | None, out: Path, force: bool = False) -> Design:
    """Program a target onto the board and the copies of the design in `folder` and write a run folder for it.

    `coupling` may say again what the board has; everything else about boards and copies is that of `folder`.
    """
    old, _ = load_design(folder)
    refuse_existing(out, force)
    if out.resolve() == folder.resolve():
        raise InputError(f"the new program goes to a folder of its own, not to {folder}; choose another --out")
    if coupling not in (None, old.board.coupling):
        raise InputError(
            f"the board in {folder} is {old.board.coupling}, not {coupling}; leave out --coupling, or design another"
        )
    if replace(request, choices=replace(request.choices, coupling=Choices().coupling)) != Request():
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

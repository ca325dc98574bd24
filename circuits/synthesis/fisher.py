"""Targets by name or file, and the Fisher matrices of data sets as files.

Data sets are loaded through the door of this package, which imports their libraries when a data set is named: these
take longer to load than a board takes to design, and a matrix file does not need them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from circuits import synthesis
from circuits.board import check_name
from circuits.errors import InputError
from circuits.files import provenance, refuse_existing, sha256, write_json, write_npy
from circuits.synthesis.options import DATA_SETS, check_weights
from circuits.synthesis.target import check_congruence, check_square, check_target, inverse_factor, read_matrix


@dataclass(frozen=True)
class TargetOptions:
    """Target by name or file, weights of its Fisher matrix, factor and damping it is programmed with, its name."""

    target: str
    at: str = "zero"
    precondition: str | None = None
    damping: float = 0.0
    name: str | None = None


def target_of(place: TargetOptions) -> tuple[str, np.ndarray, str]:
    """Name, square matrix and origin of a target; InputError if there is no such target, or it is not square."""
    path = Path(place.target)
    named = place.target in DATA_SETS
    name = check_name(place.name if place.name is not None else place.target if named else path.stem)
    check_weights(place.at)
    if named:
        return name, synthesis.named_fisher(place.target, place.at)[0], f"{place.target} at {place.at}"
    if path.suffix in (".npy", ".csv"):
        return name, check_square(read_matrix(path, "target"), "target"), path.name
    raise InputError(f"unknown target {place.target!r}; expected one of {', '.join(DATA_SETS)}, or a .npy or .csv file")


def congruence_of(given: str | None, target: str, size: int, damping: float) -> np.ndarray | None:
    """The factor T (size, size) of --precondition; InputError if there is none of that name or size."""
    if given is None:
        return None
    if given in ("zero", "fit"):
        if target not in DATA_SETS:
            raise InputError(f"--precondition {given} goes with a named target, not with {target}; give a .npy file")
        return inverse_factor(check_target(synthesis.named_fisher(target, given)[0], damping))
    return check_congruence(read_matrix(Path(given), "preconditioner"), size)


def write_fisher(name: str, at: str, out: Path, factor: Path | None, force: bool) -> np.ndarray:
    """Write the Fisher matrix of a data set to `out` (.npy), provenance beside it, and T to `factor` unless None."""
    for path in filter(None, (out, factor)):
        if path.suffix != ".npy":
            raise InputError(f"the matrix is written as .npy, got {path}")
        refuse_existing(path, force)
    refuse_existing(out.with_suffix(".json"), force)
    if factor == out:
        raise InputError(f"the matrix and its factor cannot both be {out}; choose another --factor")
    F, data = synthesis.named_fisher(name, at)
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

"""Presets, the devices that come with the package: one perfect board, three calibrated ones, and the worst case.

All are of the shipped design: the Fisher matrix of the data set `fair` at the fitted weights, preconditioned with the
factor taken at zero, on differential cells, parts ±1 %. The three boards are its first three copies, each fitted to its
own exact ngspice run and judged by held-out programs. The worst case has every part, temperature and readout gain at
the limit t of its tolerance. With all signs alike the inverse B of the shipped program is wrong by an overall factor of
4 t alone, which one reading reveals and a step size absorbs; so the signs are those that change the shape of B most, to
first order:

    maximise ||Σ s_k t_k D_k||,   s_k = ±1,   D_k = ∂B/∂log x_k less its part along B

(the best of coordinate ascents from every parameter: a local maximum). An element that the program does not populate
gets the sign with which it would change B in the same direction.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from circuits.board import Board, Conditions, Design, Element, Program, inverse_scale
from circuits.calibration.routes import calibrate, validated
from circuits.copies import specimens
from circuits.files import provenance, refuse_existing, sha256, write_json
from circuits.model.converters import board_interface
from circuits.model.device import Device, ideal_device
from circuits.model.device_file import PRESETS, describe_device
from circuits.model.fitted_copy import Estimate, FittedCopy, reduced_circuit
from circuits.netlist.spice import circuit_text
from circuits.ou import reading_covariance
from circuits.parallel import Progress, silent
from circuits.simulation.measurement import Plan, measure
from circuits.simulation.ngspice import find_ngspice, ngspice_version
from circuits.synthesis.data_sets import named_fisher
from circuits.synthesis.design import make_design
from circuits.synthesis.target import check_target, inverse_factor

TOLERANCE = 0.01  # of parts, and the limit of a readout's gain
OFFSET = 5e-4  # V, limit of a readout's offset: 1 % of the largest rms reading
STEP = 1e-5  # relative change of a parameter, either way
SHIPPED = "fair at the fit, preconditioned at zero"


def shipped_design() -> Design:
    """Return the design that all presets are of."""
    target = check_target(named_fisher("fair", "fit")[0])
    factor = inverse_factor(check_target(named_fisher("fair", "zero")[0]))
    return make_design(target, factor, name="fair", copies=3, tolerance=TOLERANCE, seed=0, cells="active")


def make_presets(progress: Progress = silent) -> dict[str, dict[str, Any]]:
    """Return the contents of all preset files by name; run the shipped copies in ngspice and calibrate them.

    The same versions give the same numbers. Raises SimulationError if a run fails twice.
    """
    made = shipped_design()
    circuits = {c.name: circuit_text(made.board, made.program, c, Conditions()) for c in specimens(made)}
    fitted, fits = calibrate(made, measure(made, circuits, Plan(), progress=progress), "exact", progress)
    devices = [_preset(ideal_device(made.board), made, "every part nominal")]
    for k, copy in enumerate(made.copies):
        alone = validated(
            replace(made, copies=(copy,)), _alone(fitted, k), {copy.name: fits[copy.name]}, None, progress
        )
        devices.append(_preset(alone, made, f"{copy.name}, fitted to ngspice"))
    devices += [_preset(worst_case(made.board, made.program), made, "every part at its limit, signs for the worst")]
    about = {"design_seed": made.seed, "target_sha256": sha256(made.program.target)}
    versions = provenance(ngspice=ngspice_version(find_ngspice()), **about)
    contents = [describe_device(device, versions) for device in devices]
    return dict(zip(PRESETS, contents, strict=True))


def worst_case(board: Board, program: Program) -> Device:
    """Return the copy of a soldered capacitive board whose errors, each at its limit, distort the inverse most."""
    names, inverse = _model(board, program)
    slopes = _slopes(inverse, len(names))
    limits = np.array([_limit(board, name) for name in names])
    signs = _worst_signs(limits[:, None, None] * slopes)
    # To first order the opposite signs are as bad; the higher orders decide.
    nominal = inverse(np.ones(len(names)))
    signs *= max((1.0, -1.0), key=lambda s: np.linalg.norm(_distortion(inverse(1 + s * signs * limits), nominal)))
    reach = program.mapping.T @ np.linalg.inv(program.matrix)
    total = np.einsum("k,kij->ij", signs * limits, slopes)
    found = dict(zip(names, 1 + signs * limits, strict=True))
    for element in board.elements:
        if element.name not in found:
            push = -np.einsum("i,ij,j->", w := reach @ _stamp(board, element), total, w)
            found[element.name] = 1 + _limit(board, element.name) * (1 if push >= 0 else -1)
    known = {name: Estimate(float(value), 0.0, True) for name, value in found.items()}
    cells = range(1, len(board.cells) + 1)
    copy = FittedCopy(
        "worst-case",
        {element.name: known[element.name] for element in board.elements},
        tuple(known[f"temperature_{i}"] for i in cells),
        tuple(known[f"inductance_{i}"] for i in cells),
        tuple(known[f"readout_{i}"] for i in cells),
        tuple(Estimate(OFFSET, 0.0, True) for _ in cells),
    )
    return Device(board, (copy,), {"route": "limits"})


def _preset(device: Device, made: Design, what: str) -> Device:
    about = device.fitted_on | {"design": SHIPPED, "what": what}
    return replace(device, fitted_on=about, interface=board_interface(made.board), values=made.program.values)


def _alone(fitted: Device, number: int) -> Device:
    """Return a device of one of the copies, with the record of its fit."""
    copy = fitted.copies[number]
    about = fitted.fitted_on | {"copies": {copy.name: fitted.fitted_on["copies"][copy.name]}}
    return replace(fitted, copies=(copy,), fitted_on=about)


def _model(board: Board, program: Program) -> tuple[list[str], Callable[[np.ndarray], np.ndarray]]:
    """Return the parameters that act under the program, and the inverse B (n, n) as a function of relative values."""
    n = len(board.cells)
    populated = [element.name for element in board.elements if element.name in program.values]
    kinds = ("temperature", "inductance", "readout")
    X = program.mapping
    scale = inverse_scale(board, program)

    def inverse(x: np.ndarray) -> np.ndarray:
        gains = dict.fromkeys((element.name for element in board.elements), 1.0)
        gains |= dict(zip(populated, x[: len(populated)].tolist(), strict=True))
        warm, coils, g = x[len(populated) :].reshape(3, n)
        S = reading_covariance(reduced_circuit(board, program, gains, warm, coils))
        return scale * X.T @ (g[:, None] * S * g) @ X

    return populated + [f"{kind}_{i}" for kind in kinds for i in range(1, n + 1)], inverse


def _slopes(inverse: Callable[[np.ndarray], np.ndarray], parameters: int) -> np.ndarray:
    """Return D (parameters, n, n) by central differences."""
    steps, nominal = STEP * np.eye(parameters), inverse(np.ones(parameters))
    slopes = np.array([_distortion((inverse(1 + step) - inverse(1 - step)) / (2 * STEP), nominal) for step in steps])
    # Derivatives below rounding are zero: without errors elsewhere an inductor moves no reading.
    size = np.linalg.norm(slopes, axis=(1, 2))
    slopes[size < 1e-6 * size.max()] = 0
    return slopes


def _distortion(change: np.ndarray, nominal: np.ndarray) -> np.ndarray:
    """Return the part (n, n) of a change that is orthogonal to the nominal inverse."""
    return change - np.vdot(change, nominal) / np.vdot(nominal, nominal) * nominal


def _worst_signs(moves: np.ndarray) -> np.ndarray:
    """Return signs (k,) at a maximum of ||Σ s_k moves_k||, of moves (k, n, n)."""
    gram = np.einsum("kij,lij->kl", moves, moves)
    best, most = np.ones(len(gram)), -np.inf
    for start in gram:
        signs = np.where(start >= 0, 1.0, -1.0)
        while True:
            before = signs.copy()
            for k in range(len(signs)):
                signs[k] = 1.0 if gram[k] @ signs - gram[k, k] * signs[k] >= 0 else -1.0
            if (signs == before).all():
                break
        size = signs @ gram @ signs
        if size > most * (1 + 1e-12):
            best, most = signs, size
    return best * best[0]


def _stamp(board: Board, element: Element) -> np.ndarray:
    """Return the stamp (n,) of an element on the readings x: its voltage is stamp · x."""
    stamp = np.zeros(len(board.cells))
    stamp[list(element.cells)] = [1.0, 1.0 if element.kind == "crossed" else -1.0][: len(element.cells)]
    return stamp


def _limit(board: Board, name: str) -> float:
    """Return the largest relative error of a parameter: the tolerance of its parts, or of the readout."""
    kind, _, cell = name.partition("_")
    if kind == "readout":
        return TOLERANCE
    node = board.cells[int(cell) - 1].nodes[0] if kind in ("temperature", "inductance") else None
    part = {"temperature": f"R{node}", "inductance": f"L{node}"}.get(kind)
    return next(p.tolerance for p in board.parts if (p.name == part if part else p.element == name))


def write_presets(out: Path, force: bool = False, progress: Progress = silent) -> tuple[Path, ...]:
    """Make the presets anew, in ngspice, and write them to the folder `out`; return their files."""
    files = tuple(out / f"{name}.json" for name in PRESETS)
    for path in files:
        refuse_existing(path, force)
    for path, content in zip(files, make_presets(progress).values(), strict=True):
        write_json(path, content)
    return files

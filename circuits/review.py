"""The summary a design review needs, as Markdown: `design.md` of a run folder."""

from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from circuits.assembly import nominal_circuit
from circuits.bill import engineering
from circuits.board import Board, Conditions, Program, RoundingCost
from circuits.copies import populated_parts
from circuits.deck import START_UP
from circuits.design import YIELD_DRAWS, Design
from circuits.inversion import inversion
from circuits.ladder import passive_damping
from circuits.netlist import noise_amplitude
from circuits.ou import reading_covariance
from circuits.sensitivity import expected_error, part_sensitivities
from circuits.solve import predicted_columns
from circuits.store import sha256
from circuits.target import two_digits

WORST = 10
UNITS = {"R": "Ω", "L": "H", "C": "F"}
KINDS = {"R": "resistors", "L": "inductors", "C": "capacitors"}
STRAY = 0.2e-12  # F: no layout is better
MOST_STATES = 600  # of a circuit whose Lyapunov equation is solved for a review


def review_text(design: Design) -> str:
    """The review of a design."""
    environment = Environment(
        loader=PackageLoader("circuits", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # Markdown, so nothing is escaped; names were checked
    return environment.get_template("design.md.j2").render(
        **_what(design), **_frequencies(design), kinds=part_counts(design), worst=worst_parts(design)
    )


def review_lines(design: Design) -> list[str]:
    """The review in a few lines: why, what would avoid it, parts, expected error and the parts it comes from."""
    lines = [f"why: {design.program.reason}"]
    if any(value < 0 for value in design.program.values.values()):
        damping = avoiding_damping(design)
        words = [f"--damping {damping:.2g}"] if damping else []
        lines.append(f"without negative elements: {' or '.join([*words, 'a --precondition from an older matrix'])}")
    imperfect = nominal_error(design) if _unwelcome(design.board, design.program) else None
    if imperfect is not None:
        lines.append(f"exact parts, with switches and parasitics: {100 * imperfect:.2g} % error of the inverse")
    if design.rounding:
        lines.append(f"rounded to {design.rounding.series}: {_rounded(design.rounding)}")
    lines.append("parts: " + ", ".join(f"{row['count']} {row['kind']}" for row in part_counts(design)))
    worst = ", ".join(f"{entry.part} ({entry.value:.2g})" for entry in worst_parts(design)[:3])
    error = 100 * expected_error(design.board, design.program)
    lines.append(f"error of the inverse at ±{100 * design.tolerance:.3g} %: {error:.2g} % expected; most from {worst}")
    return lines


def nominal_error(design: Design) -> float | None:
    """Relative error of the inverse on the nominal board with all that is not ideal; None if it has too many nodes.

    By the Lyapunov equation, or on a resistive board by the mean.
    """
    board, program = design.board, design.program
    circuit = nominal_circuit(board, program, Conditions())
    rule = inversion(design)
    if board.inputs:
        columns = predicted_columns(board, circuit, 1.0)
        return float(rule.error(program.mapping.T @ (board.unit * columns) @ program.mapping))
    if sum(circuit.coils.shape) > MOST_STATES:
        return None
    return float(rule.error(rule.read(reading_covariance(circuit))))


def part_counts(design: Design) -> list[dict[str, Any]]:
    """Soldered parts by kind, with their number and range; switches and negative elements count apart."""
    parts = populated_parts(design.board, design.program)
    solid = [(part, value) for part, value in parts if not part.bit]
    groups = {KINDS[kind]: [value for part, value in solid if part.kind == kind and value > 0] for kind in KINDS}
    groups["switches"] = [value for part, value in parts if part.bit]
    for kind, name in (("C", "negative capacitances"), ("R", "negative resistances")):
        groups[name] = [value for part, value in parts if value < 0 and part.kind == kind]
    units = {name: UNITS[kind] for kind, name in KINDS.items()} | {"switches": "Ω", "negative resistances": "Ω"}
    return [
        {
            "kind": name,
            "count": len(values),
            "smallest": engineering(min(values, key=abs), units.get(name, "F")),
            "largest": engineering(max(values, key=abs), units.get(name, "F")),
        }
        for name, values in groups.items()
        if values
    ]


def worst_parts(design: Design) -> list:
    """The ten parts that the inverse depends on most."""
    every = part_sensitivities(design.board, design.program)
    # Parts of a matched pair are equal but for rounding; so that they come in one order everywhere, six digits count.
    return sorted(every, key=lambda entry: -float(f"{entry.value:.6g}"))[:WORST]


def avoiding_damping(design: Design) -> float | None:
    """The whole --damping that would do without negative elements; None if there are none, or if no damping would."""
    if not any(value < 0 for value in design.program.values.values()):
        return None
    more = passive_damping(design.program.target, design.program.congruence)
    return more and two_digits(design.damping + more, up=True)


def _rounded(cost: RoundingCost) -> str:
    """What rounding costs, in words."""
    nearest = "are not even stable" if cost.error_nearest is None else f"give {100 * cost.error_nearest:.2g} %"
    return f"{100 * cost.error:.2g} % error of the nominal inverse, where the nearest values {nearest}"


def _what(design: Design) -> dict[str, Any]:
    board, program = design.board, design.program
    unwelcome = _unwelcome(board, program)
    nodes = [f"{reading.plus} {reading.minus or ''}".strip() for reading in board.readings]
    return {
        "name": program.name,
        "size": len(program.target),
        "condition": np.linalg.cond(program.target),
        "programmed_condition": np.linalg.cond(program.matrix),
        "hash": sha256(program.target),
        "source": design.source,
        "damping": design.damping,
        "congruence": not np.array_equal(program.congruence, np.eye(len(program.target))),
        "step": program.step,
        "reason": program.reason,
        "passive_damping": avoiding_damping(design),
        "copies": len(design.copies),
        "tolerance": design.tolerance,
        "seed": design.seed,
        "yield_fraction": design.yield_fraction,
        "draws": YIELD_DRAWS,
        "expected_error": expected_error(board, program),
        "rounding": design.rounding and f"{design.rounding.series}: {_rounded(design.rounding)}",
        "differential": board.kind == "differential",
        "banks": board.banks,
        "full_scale": ", ".join({engineering(bank.reach, board.element_unit) for bank in board.banks}),
        "parasitics": unwelcome,
        "nominal_error": nominal_error(design) if unwelcome else None,
        "tiny": _tiny(board, program),
        "test_points": ", ".join(nodes) + " (the readings), and every noise input",
    }


def _frequencies(design: Design) -> dict[str, Any]:
    board, program = design.board, design.program
    circuit = nominal_circuit(board, program)
    capacitive = board.coupling == "capacitive"
    held = np.linalg.eigvalsh(program.matrix) * board.unit
    if capacitive:
        R, L = (next(part.nominal for part in board.parts if part.kind == kind) for kind in "RL")
        corners = 1 / (2 * np.pi * np.sqrt(L * np.array([board.unit, held[-1], held[0]])))
        independent = R * held[-1]  # a record of length T holds T/(R c) independent samples of a mode
        quality = R * np.sqrt(board.unit / L)
    else:
        corners = np.array([board.unit, held[0], held[-1]]) / board.capacitance / (2 * np.pi)
        independent, quality = board.capacitance / held[0], 0.0
    readings = (1 + len(held)) / 0.01**2 * max(independent / program.period, 1.0)
    common = _common_mode(board.nodes_per_cell, circuit.capacitance if capacitive else circuit.conductance)
    gain = np.abs(np.linalg.inv(program.matrix)).max() / board.unit  # of a bias current, in volt per ampere
    unit = board.element_unit
    return {
        "coupling": board.coupling,
        "unit": engineering(board.unit, unit) + ("" if capacitive else f" ({engineering(1 / board.unit, 'Ω')})"),
        "capacitance": engineering(board.capacitance, "F"),
        "bias": engineering(board.limits.reading_rms / gain, "A"),
        "resonance": engineering(corners[0], "Hz"),
        "lowest": engineering(corners[1], "Hz"),
        "highest": engineering(corners[2], "Hz"),
        "quality": quality,
        "settling": engineering(program.settling, "s"),
        "start_up": engineering(START_UP * program.settling, "s"),
        "period": engineering(program.period, "s"),
        "hold_bias": board.limits.hold_bias,
        "energy": program.energy,
        "amplitude": engineering(noise_amplitude(board, program, board.sources[0].name), "A"),
        "reading": engineering(board.limits.reading_rms, "V"),
        "independent": engineering(independent, "s"),
        "samples": int(float(f"{readings:.1e}")),
        "common": engineering(common, unit),
    }


def _unwelcome(board: Board, program: Program) -> list[str]:
    """Parasitics by cause: how many parts, and their value."""
    found: dict[str, list] = {}
    for part in board.parts:
        there = part.beside is None or part.beside in program.values
        if there and (part.cause or part.role == "input") and part.role != "pad":
            found.setdefault(part.cause or "inputs", []).append(part)
    lines = [
        f"{cause}: {len(parts)} × {engineering(parts[0].nominal, UNITS[parts[0].kind])}"
        for cause, parts in found.items()
    ]
    pads = sum(part.nominal for part in board.parts if part.role == "pad")
    if pads:
        lines.append(f"pads of the switches: {engineering(pads, 'F')} in all, taken from the capacitors to ground")
    if board.mutuals:
        lines.append(f"coupled coils: {len(board.mutuals)} pairs with a factor of {board.mutuals[0].coefficient:g}")
    return lines


def _tiny(board: Board, program: Program) -> str | None:
    """Elements that are smaller than what traces have anyway, in words."""
    stray = STRAY if board.coupling == "capacitive" else board.unit * 1e-4
    small = [name for name, value in program.values.items() if abs(value) < stray]
    if not small or board.banks:
        return None
    word = engineering(stray, board.element_unit)
    return f"{len(small)} of {len(program.values)} elements are below {word}: layout strays are as large"


def _common_mode(nodes_per_cell: int, capacitance: np.ndarray) -> float:
    """Smallest eigenvalue [F] of what the means of the cells' nodes see."""
    cells = len(capacitance) // nodes_per_cell
    mean = np.kron(np.eye(cells), np.ones((1, nodes_per_cell)) / nodes_per_cell)
    return float(np.linalg.eigvalsh(mean @ capacitance @ mean.T * nodes_per_cell)[0])

"""The summary a design review needs, as Markdown: `design.md` of a run folder."""

from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from circuits.assembly import nominal_circuit
from circuits.bill import engineering
from circuits.board import populated_parts
from circuits.design import YIELD_DRAWS, Design
from circuits.ladder import passive_damping
from circuits.netlist import START_UP, noise_amplitude
from circuits.rounding import RoundingCost
from circuits.sensitivity import expected_error, part_sensitivities
from circuits.store import sha256
from circuits.target import two_digits

WORST = 10
UNITS = {"R": "Ω", "L": "H", "C": "F"}
KINDS = {"R": "resistors", "L": "inductors", "C": "capacitors"}


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
    if design.rounding:
        lines.append(f"rounded to {design.rounding.series}: {_rounded(design.rounding)}")
    lines.append("parts: " + ", ".join(f"{row['count']} {row['kind']}" for row in part_counts(design)))
    worst = ", ".join(f"{entry.part} ({entry.value:.2g})" for entry in worst_parts(design)[:3])
    error = 100 * expected_error(design.board, design.program)
    lines.append(f"error of the inverse at ±{100 * design.tolerance:.3g} %: {error:.2g} % expected; most from {worst}")
    return lines


def part_counts(design: Design) -> list[dict[str, Any]]:
    """Populated parts by kind, with their number and range; negative capacitances count apart."""
    parts = populated_parts(design.board, design.program)
    groups = {KINDS[kind]: [value for part, value in parts if part.kind == kind and value > 0] for kind in KINDS}
    groups["negative capacitances"] = [value for _, value in parts if value < 0]
    units = {name: UNITS[kind] for kind, name in KINDS.items()}
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
    return sorted(every, key=lambda entry: -entry.value)[:WORST]


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
        "test_points": ", ".join(nodes) + " (the readings), and every noise input",
    }


def _frequencies(design: Design) -> dict[str, Any]:
    board, program = design.board, design.program
    circuit = nominal_circuit(board, program)
    held = np.linalg.eigvalsh(program.matrix) * board.unit_capacitance
    R = next(part.nominal for part in board.parts if part.kind == "R")
    L = next(part.nominal for part in board.parts if part.kind == "L")
    resonance = 1 / (2 * np.pi * np.sqrt(L * np.array([board.unit_capacitance, held[-1], held[0]])))
    independent = R * held[-1]  # a record of length T holds T/(R c) independent samples of a mode
    readings = (1 + len(held)) / 0.01**2 * max(independent / program.period, 1.0)
    common = _common_mode(board.nodes_per_cell, circuit.capacitance)
    return {
        "unit_capacitance": engineering(board.unit_capacitance, "F"),
        "resonance": engineering(resonance[0], "Hz"),
        "lowest": engineering(resonance[1], "Hz"),
        "highest": engineering(resonance[2], "Hz"),
        "quality": R * np.sqrt(board.unit_capacitance / L),
        "settling": engineering(program.settling, "s"),
        "start_up": engineering(START_UP * program.settling, "s"),
        "period": engineering(program.period, "s"),
        "hold_bias": board.limits.hold_bias,
        "energy": program.energy,
        "amplitude": engineering(noise_amplitude(board, program, board.sources[0].name), "A"),
        "reading": engineering(board.limits.reading_rms, "V"),
        "independent": engineering(independent, "s"),
        "samples": int(float(f"{readings:.1e}")),
        "common": engineering(common, "F"),
    }


def _common_mode(nodes_per_cell: int, capacitance: np.ndarray) -> float:
    """Smallest eigenvalue [F] of what the means of the cells' nodes see."""
    cells = len(capacitance) // nodes_per_cell
    mean = np.kron(np.eye(cells), np.ones((1, nodes_per_cell)) / nodes_per_cell)
    return float(np.linalg.eigvalsh(mean @ capacitance @ mean.T * nodes_per_cell)[0])

"""The summary a design review needs, as Markdown: `design.md` of a run folder."""

from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from circuits.board import Design, RoundingCost
from circuits.bringup import Bringup, bringup
from circuits.files import sha256
from circuits.imperfections import errors_in_words, nominal_errors, small_elements, unwelcome
from circuits.netlist.bill import UNITS, engineering, soldered_parts
from circuits.netlist.deck import START_UP, WIDEST, WIDEST_BANKED
from circuits.nodal import noise_amplitude, nominal_circuit
from circuits.synthesis.cells import without_negative
from circuits.synthesis.design import YIELD_DRAWS
from circuits.synthesis.sensitivity import PartSensitivity, differentiated, expected_error, part_sensitivities

WORST = 10
WORST_LISTED = 3  # on the screen
MOST_NODES = 16  # whose measurements are listed
KINDS = {"R": "resistors", "L": "inductors", "C": "capacitors"}


def review_text(design: Design) -> str:
    """The review of a design."""
    environment = Environment(
        loader=PackageLoader("circuits.netlist", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # Markdown, so nothing is escaped; names were checked
    plan = _frequencies(design)
    measured = np.sort(plan["corners"]) * ([0, 1, 1] if design.board.inputs else 1)  # an ohmmeter does without coils
    numbers = bringup(design, measured, plan["bias_current"])
    return environment.get_template("design.md.j2").render(
        **_what(design), **plan, **_measurements(numbers), kinds=part_counts(design), worst=worst_parts(design)
    )


def review_lines(design: Design) -> list[str]:
    """The review in a few lines: why, what would avoid it, parts, expected error and the parts it comes from."""
    lines = [f"why: {design.program.reason}"]
    if any(value < 0 for value in design.program.values.values()):
        lines.append(f"without negative elements: {avoiding_negative(design)}")
    if unwelcome(design.board, design.program):
        imperfect = errors_in_words(nominal_errors(design))
        lines += [f"exact parts, with switches and parasitics: {imperfect}"] if imperfect else []
    if design.rounding:
        lines.append(f"rounded to {design.rounding.series}: {_rounded(design.rounding)}")
    tiny = small_elements(design)
    lines += [f"small: {tiny}"] if tiny else []
    lines.append("parts: " + ", ".join(_counted(row) for row in part_counts(design)))
    error = 100 * expected_error(design.board, design.program)
    worst = worst_parts(design)[:WORST_LISTED]
    words = "most from" if error else "it depends most on"
    parts = ", ".join(f"{entry.part} ({entry.value:.2g} × ±{100 * entry.tolerance:.3g} %)" for entry in worst)
    most = f"; {words} {parts}" if parts else ""
    lines.append(f"error of the inverse at ±{100 * design.tolerance:.3g} %: {error:.2g} % expected{most}")
    return lines


def part_counts(design: Design) -> list[dict[str, Any]]:
    """Soldered parts by kind, with their number and range; switches and negative elements count apart."""
    parts = soldered_parts(design.board, design.program)
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


def worst_parts(design: Design) -> list[PartSensitivity]:
    """The ten parts that the error of the inverse comes from, or with exact parts those that it depends on most."""
    every = [entry for entry in part_sensitivities(design.board, design.program) if entry.value > 0]
    # Parts of a matched pair are equal but for rounding; so that they come in one order everywhere, six digits count.
    return sorted(every, key=lambda entry: (-float(f"{entry.contribution:.6g}"), -float(f"{entry.value:.6g}")))[:WORST]


def avoiding_negative(design: Design) -> str:
    """What would do without negative elements, in words: the whole --damping, or a factor; "" if there are none."""
    if not any(value < 0 for value in design.program.values.values()):
        return ""
    return " or ".join(without_negative(design.program.target, design.program.congruence, design.damping))


def _rounded(cost: RoundingCost) -> str:
    """What rounding costs, in words."""
    nearest = "are not even stable" if cost.error_nearest is None else f"give {100 * cost.error_nearest:.2g} %"
    return f"{100 * cost.error:.2g} % error of the nominal inverse, where the nearest values {nearest}"


def _counted(row: dict[str, Any]) -> str:
    """A row of part counts in words."""
    one = {"switches": "switch"}.get(row["kind"], row["kind"].removesuffix("s"))
    return f"{row['count']} {row['kind'] if row['count'] > 1 else one}"


def _what(design: Design) -> dict[str, Any]:
    board, program = design.board, design.program
    causes = unwelcome(board, program)
    nodes = [f"{reading.plus} {reading.minus or ''}".strip() for reading in board.readings]
    inputs = " and every bias input" if board.inputs else ""
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
        "avoiding_negative": avoiding_negative(design),
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
        "parasitics": causes,
        "nominal_error": errors_in_words(nominal_errors(design)) if causes else "",
        "tiny": small_elements(design),
        "negative": any(value < 0 for value in program.values.values()),
        "differentiated": differentiated(board, program),
        "covariance_in_deck": len(board.cells) <= (WIDEST_BANKED if board.banks else WIDEST),
        "test_points": ", ".join(nodes) + " (the readings), and every noise input" + inputs,
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
        "bias_current": board.limits.reading_rms / gain,
        "bias": engineering(board.limits.reading_rms / gain, "A"),
        "resonance": engineering(corners[0], "Hz"),
        "corners": corners,
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


def _measurements(numbers: Bringup) -> dict[str, Any]:
    """What to measure, in words: the first nodes, and all readings for a bias into the first cell."""
    columns = [] if numbers.columns is None else numbers.columns
    poles = len(numbers.nodes) // max(len(columns), 1)
    nodes = [
        {
            "node": node,
            "impedances": [engineering(value, "Ω") for value in numbers.impedances[k]],
            "alone": engineering(numbers.alone[k], "V"),
            "solved": engineering(columns[k // poles][k // poles], "V") if len(columns) else "",
        }
        for k, node in enumerate(numbers.nodes[:MOST_NODES])
    ]
    return {
        "measured": nodes,
        "every_node": len(numbers.nodes),
        "measured_at": [engineering(frequency, "Hz") for frequency in numbers.frequencies],
        "spread": numbers.spread,
        "first_column": [engineering(row[0], "V") for row in columns[:MOST_NODES]],
    }


def _common_mode(nodes_per_cell: int, capacitance: np.ndarray) -> float:
    """Smallest eigenvalue [F] of what the means of the cells' nodes see."""
    cells = len(capacitance) // nodes_per_cell
    mean = np.kron(np.eye(cells), np.ones((1, nodes_per_cell)) / nodes_per_cell)
    return float(np.linalg.eigvalsh(mean @ capacitance @ mean.T * nodes_per_cell)[0])

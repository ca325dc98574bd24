"""Summary for a design review, as Markdown: `design.md` of a run folder.

It lists the circuit, the parts and their sensitivities, and
* parasitics of the nominal board and elements below layout strays, and what they cost the inverse;
* numbers for bring-up: measurements at the nodes of a board without noise, and with one noise source at a time.

In an all-to-all network no soldered part can be measured by itself, because R, L and every coupling of its nodes are in
parallel with it. The impedance of a node to ground can be measured, all other nodes open,

    Z_ii(s) of Z(s) = (G + s C + E (s L + R)⁻¹ Eᵀ)⁻¹,

and, with noise at node i alone, the rms reading of its cell. By the modes V of the nominal board the covariance is

    V [2 kT g V_ia V_ib / (g (c_a + c_b) + Γ (c_a - c_b)²/(2 g))] Vᵀ,

on a resistive board with the denominator c (λ_a + λ_b).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from scipy.linalg import eigh

from circuits.board import Board, Conditions, Design, Program, RoundingCost, ideal_conditions
from circuits.files import sha256
from circuits.netlist.bill import UNITS, engineering, soldered_parts
from circuits.netlist.deck import START_UP, WIDEST, WIDEST_BANKED
from circuits.nodal import Circuit, assemble_many, noise_amplitude, nominal_circuit, states
from circuits.ou import MOST_STATES, mode_rates, predicted_columns, reading_covariance
from circuits.statistics.inversion import circuit_inverses, inversion_rule
from circuits.synthesis.cells import without_negative
from circuits.synthesis.elements import held_matrix
from circuits.synthesis.options import SMALLEST_PART, YIELD_DRAWS
from circuits.synthesis.sensitivity import PartSensitivity, differentiated, expected_error, part_sensitivities

WORST = 10  # parts of largest contribution that are listed
WORST_LISTED = 3  # the same on the screen
MOST_NODES = 16  # most nodes whose measurements are listed
KINDS = {"R": "resistors", "L": "inductors", "C": "capacitors"}

MOST_RESISTIVE_NODES = 1500  # nodes of a circuit without inductors, whose Lyapunov equation is an eigenvalue problem
# Elements below these are below layout strays: 0.2 pF of stray capacitance, 100 MΩ of leakage.
STRAY = {"F": 0.2e-12, "S": 1e-8}
STRAY_CAUSE = {"F": "layout strays", "S": "leakage"}
MATTERS = 1e-3  # relative change of the inverse from which a board depends on its small elements

MOST_COLUMNS = 600  # most nodes of a circuit whose impedances are computed with all parasitics
MOST_COPIES = 3  # most copies that are compared with the nominal board


def review_text(design: Design) -> str:
    """Text of design.md."""
    environment = Environment(
        loader=PackageLoader("circuits.netlist", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # Markdown, so nothing is escaped; names were checked
    plan = _frequencies(design)
    # A board without coils can be measured with an ohmmeter too, at zero frequency.
    measured = np.sort(plan["corners"]) * ([0, 1, 1] if design.board.inputs else 1)
    numbers = bringup(design, measured, plan["bias_current"])
    return environment.get_template("design.md.j2").render(
        **_facts(design), **plan, **_measurements(numbers), kinds=part_counts(design), worst=worst_parts(design)
    )


def review_lines(design: Design) -> list[str]:
    """Review in a few lines: reason for the circuit, ways without negative elements, parts, error, worst parts."""
    lines = [f"why: {design.program.reason}"]
    if any(value < 0 for value in design.program.values.values()):
        lines.append(f"without negative elements: {avoiding_negative(design)}")
    if parasitic_lines(design.board, design.program):
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
    """Number and range of the soldered parts by kind; switches and negative elements are kinds of their own."""
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
    """The WORST parts by contribution to the error of the inverse, or by sensitivity if parts are exact."""
    every = [entry for entry in part_sensitivities(design.board, design.program) if entry.value > 0]
    # Parts of a matched pair differ by rounding only; sorted by six digits, they have the same order on every machine.
    return sorted(every, key=lambda entry: (-float(f"{entry.contribution:.6g}"), -float(f"{entry.value:.6g}")))[:WORST]


def avoiding_negative(design: Design) -> str:
    """Suggestion for avoiding negative elements: a value of --damping, or a factor; "" if there are none."""
    if not any(value < 0 for value in design.program.values.values()):
        return ""
    return " or ".join(without_negative(design.program.target, design.program.congruence, design.damping))


def _rounded(cost: RoundingCost) -> str:
    """Cost of rounding, in words."""
    nearest = "are not even stable" if cost.error_nearest is None else f"give {100 * cost.error_nearest:.2g} %"
    return f"{100 * cost.error:.2g} % error of the nominal inverse, where the nearest values {nearest}"


def _counted(row: dict[str, Any]) -> str:
    """Row of `part_counts` in words."""
    one = {"switches": "switch"}.get(row["kind"], row["kind"].removesuffix("s"))
    return f"{row['count']} {row['kind'] if row['count'] > 1 else one}"


def _facts(design: Design) -> dict[str, Any]:
    """Target, circuit, copies, rounding and parasitics of a design, for the template."""
    board, program = design.board, design.program
    causes = parasitic_lines(board, program)
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
    """Unit, frequencies, times, noise and readings of a design, for the template."""
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


@dataclass(frozen=True, eq=False)
class Bringup:
    """Values that a designer measures on the nominal board.

    `impedances` (nodes, frequencies) [ohm] at `frequencies` [Hz]; `spread`: largest relative difference of the drawn
    copies to `impedances`; `alone` (nodes,) [V]: rms reading of the cell with the noise source of that node alone;
    `columns` (n, n) [V]: readings of a resistive board for `bias` [A] into each cell, a column for each cell.
    """

    nodes: tuple[str, ...]
    frequencies: np.ndarray
    impedances: np.ndarray
    spread: float
    alone: np.ndarray
    bias: float
    columns: np.ndarray | None


def _measurements(numbers: Bringup) -> dict[str, Any]:
    """Measurements in words: of the first nodes, and all readings for a bias into the first cell."""
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
    """Smallest eigenvalue [F or 1/ohm] of the matrix in the means of the nodes of each cell."""
    cells = len(capacitance) // nodes_per_cell
    mean = np.kron(np.eye(cells), np.ones((1, nodes_per_cell)) / nodes_per_cell)
    return float(np.linalg.eigvalsh(mean @ capacitance @ mean.T * nodes_per_cell)[0])


@lru_cache(maxsize=4)
def nominal_errors(design: Design) -> dict[str, float]:
    """Relative errors of the inverse on the nominal board with switches and parasitics, by the way it is read.

    The inverse is read from the "covariance", and on a resistive board from the "mean" too. An error whose computation
    would take too long is absent.
    """
    board, program = design.board, design.program
    circuit = nominal_circuit(board, program, Conditions())
    rule, size = inversion_rule(design), states(circuit)
    found = {}
    if board.inputs:
        found["mean"] = float(rule.error(circuit_inverses(design, rule, circuit)))
    if size <= (MOST_RESISTIVE_NODES if board.inputs else MOST_STATES):
        covariance = _resistive_covariance(circuit) if board.inputs else reading_covariance(circuit)
        found["covariance"] = float(rule.error(rule.read(covariance)))
    return found


def errors_in_words(errors: dict[str, float]) -> str:
    """Errors of the inverse, by the way it is read, in words."""
    if not errors:
        return ""
    first, *others = (f"{100 * error:.2g} %" for error in errors.values())
    if "mean" not in errors:
        return f"{first} error of the inverse"
    return f"{first} error of the inverse from the mean" + "".join(f", {other} from the covariance" for other in others)


def parasitic_lines(board: Board, program: Program) -> list[str]:
    """Parasitics as lines of text: the number of parts and their value, by cause."""
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


def small_elements(design: Design) -> str:
    """Elements below layout strays, and how much the inverse depends on them, in words; "" if there are none."""
    board, program = design.board, design.program
    unit = board.element_unit
    word = engineering(STRAY[unit], unit)
    if board.banks:
        bits = [part.nominal if part.kind == "C" else 1 / part.nominal for part in board.parts if part.role == "bit"]
        words = f"the lowest bits hold {engineering(min(bits), unit)}; below {word}, as small as {STRAY_CAUSE[unit]}"
        return words if min(bits) < STRAY[unit] else ""
    small = {name: value for name, value in program.values.items() if abs(value) < STRAY[unit]}
    if not small:
        return ""
    name = min(small, key=lambda name: abs(small[name]))
    nowhere = ", which no part is" if abs(small[name]) < SMALLEST_PART[unit] else ""
    return (
        f"{len(small)} of {len(program.values)} elements are below {word}, as small as {STRAY_CAUSE[unit]} "
        f"({name} is {engineering(small[name], unit)}{nowhere}); {_dependence(board, program, small)}"
    )


def _dependence(board: Board, program: Program, small: dict[str, float]) -> str:
    """Cost of leaving these elements out, in words."""
    M = program.matrix - held_matrix(board, small) / board.unit
    lost = "the board depends on them: without them no inverse is left; use a larger --damping or a --precondition"
    if np.linalg.eigvalsh(M)[0] <= 0:
        return lost
    X, inverse = program.mapping, np.linalg.inv(program.target)
    error = np.linalg.norm(X.T @ np.linalg.inv(M) @ X - inverse) / np.linalg.norm(inverse)
    if error > 1:
        return lost
    depends = "the board depends on them: " if error > MATTERS else ""
    return f"{depends}left out, they cost {100 * error:.2g} % of the inverse"


def _resistive_covariance(circuit: Circuit) -> np.ndarray:
    """Covariance (n, n) [V²] of the readings without inductors: G Σ C + C Σ G = 2 Q, by the modes of (G, C)."""
    rates, V = eigh(circuit.conductance, circuit.capacitance)
    modes = 2 * V.T @ circuit.noise @ V / (rates[:, None] + rates)
    HV = circuit.readout @ V
    return HV @ modes @ HV.T


def bringup(design: Design, frequencies: np.ndarray, bias: float) -> Bringup:
    """Bring-up values of a design at these frequencies [Hz] and for this bias current [A]."""
    board, program = design.board, design.program
    nominal = nominal_circuit(board, program)
    conditions, circuit = Conditions(), nominal_circuit(board, program, Conditions())
    if circuit.capacitance.shape[-1] > MOST_COLUMNS:
        conditions, circuit = ideal_conditions(board), nominal
    own = len(board.nodes)
    impedances = _impedances(circuit, frequencies)[:, :own].T
    copies = assemble_many(board, program, design.copies[:MOST_COPIES], conditions)
    others = [_impedances(copies[k], frequencies)[:, :own].T for k in range(len(copies.capacitance))]
    return Bringup(
        board.nodes,
        frequencies,
        impedances,
        float(np.abs(np.array(others) / impedances - 1).max()),
        _alone(nominal, board.nodes_per_cell),
        bias,
        predicted_columns(board, nominal, bias) if board.inputs else None,
    )


def _impedances(circuit: Circuit, frequencies: np.ndarray) -> np.ndarray:
    """Impedances |Z_ii| of all nodes to ground, (frequencies, m) [ohm]."""
    found = []
    for s in 2j * np.pi * frequencies:
        Y = circuit.conductance + s * circuit.capacitance
        if circuit.inverse_inductance.size:
            stiffness, E = circuit.inverse_inductance, circuit.coils
            # (s L + R)⁻¹ = Γ (s + R Γ)⁻¹: no inverse of Γ is needed.
            Y = Y + E @ stiffness @ np.linalg.inv(s * np.eye(len(stiffness)) + circuit.loss @ stiffness) @ E.T
        found.append(np.abs(np.diag(np.linalg.inv(Y))))
    return np.array(found)


def _alone(circuit: Circuit, nodes_per_cell: int) -> np.ndarray:
    """Rms readings (m,) [V] of the cell of each node with the source of this node alone, under white noise."""
    rlc = circuit.inverse_inductance.size > 0
    values, V = np.linalg.eigh(circuit.capacitance if rlc else circuit.conductance)
    power = circuit.noise[0, 0]
    if rlc:
        response = 2 * power / mode_rates(values, circuit.conductance[0, 0], circuit.inverse_inductance[0, 0])
    else:
        response = 2 * power / (circuit.capacitance[0, 0] * (values[:, None] + values[None, :]))
    read = np.repeat(circuit.readout @ V, nodes_per_cell, axis=0)  # the reading of every node's cell, (m, modes)
    weight = read * V  # of a mode, driven at the node and read at its cell
    return np.sqrt(np.einsum("ia,ab,ib->i", weight, response, weight, optimize=True))

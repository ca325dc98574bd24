"""Charge readout: ngspice, law and nodal equations agree; there is a window; and what noise says in the same time."""

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX, TARGETS
from compare import assert_close
from conftest import needs_ngspice
from pydantic import TypeAdapter
from reference import deck_impedance, estimate_covariance, read_deck
from scipy.integrate import quad

from circuits import Conditions, InputError, assemble
from circuits.copies import specimens
from circuits.netlist import circuit_text
from circuits.nodal import nominal_circuit
from circuits.ou import held_covariance, lagged_covariances, nominal_hold_correction
from circuits.simulation import charge_run
from circuits.simulation.charge import ChargeRun, charge_law
from circuits.statistics import estimate_law, inversion_rule
from circuits.synthesis import BoardOptions, Parasitics, make_design
from circuits.verification.charge_readout import ChargeReadout, judge_charges

ALL = Parasitics(0.5, 3e7, 0.05, 0.05, 3e-12)
BOTH_SIGNS = TARGETS["both signs, dominant"][0]
BOARDS = {
    "1x1": (TARGETS["1x1"][0], None, BoardOptions(), None),
    "plain": (M_MATRIX, None, BoardOptions(), None),
    "differential": (FAIR, FAIR_FACTOR, BoardOptions(), None),
    "negative elements": (FAIR, None, BoardOptions(), None),
    "quality 10": (M_MATRIX, None, BoardOptions(quality=10.0), None),
    "quality 0.2": (BOTH_SIGNS, None, BoardOptions(quality=0.2), None),
    "microvolts": (M_MATRIX, None, BoardOptions(reading_rms=1e-6, unit_capacitance=1e-12, resonance=1e9), None),
    "banks": (FAIR, FAIR_FACTOR, BoardOptions(bank_bits=4), None),
    "banks, plain": (M_MATRIX, None, BoardOptions(bank_bits=5), None),
    "banks, 100 kHz": (FAIR, FAIR_FACTOR, BoardOptions(bank_bits=4, resonance=1e5), None),
    "esr": (M_MATRIX, None, BoardOptions(), Parasitics(esr=0.05)),
    "parasitics": (FAIR, FAIR_FACTOR, BoardOptions(), ALL),
    "parasitics, banks": (M_MATRIX, None, BoardOptions(bank_bits=3), ALL),
}
SWITCHED = [name for name in BOARDS if "banks" in name]


@cache
def made(name: str):
    target, congruence, choices, parasitics = BOARDS[name]
    return make_design(target, congruence, choices=choices, parasitics=parasitics)


@cache
def by_law(name: str) -> dict[str, ChargeRun]:
    """What ngspice would return, by the law, with the charge and the instants it would use."""
    board, program, runs = made(name).board, made(name).program, {}
    charge, times = packet(name)
    for copy in specimens(made(name)):
        circuit = assemble(board, program, copy, Conditions())
        runs[copy.name] = ChargeRun(charge, times, charge_law(board, circuit, charge, times))
    return runs


@cache
def packet(name: str) -> tuple[float, np.ndarray]:
    """Charge and instants, literally: 31 in three decades up to where the fastest mode answers."""
    board, program = made(name).board, made(name).program
    largest = np.abs(np.linalg.inv(program.matrix)).max()
    cell = {part.kind: part.nominal for part in board.parts if part.role in ("damping", "resonance")}
    # The ideal board's nodes see the eigenvalues of M, and on differential cells those of its common mode.
    c = np.linalg.eigvalsh(nodal_capacitance(name))[0]
    window = min(np.sqrt(cell["L"] * c), cell["R"] * c)
    return 0.05 / largest * 1e-9 if name != "microvolts" else 1e-6 / largest * 1e-12, window * 10 ** np.linspace(
        -3, 0, 31
    )


def nodal_capacitance(name: str) -> np.ndarray:
    """C of the nominal board, literally, from its deck: switches are wires, nothing but static loads is there."""
    board, program = made(name).board, made(name).program
    off = frozenset({"winding", "esr", "coupled coils", "strays", "switches"})
    text = circuit_text(board, program, specimens(made(name))[0], Conditions(off=off))
    read = read_deck(text)
    order = [read["nodes"].index(node) for node in board.nodes]
    rest = [k for k in range(len(read["nodes"])) if k not in order]
    C = read["C"]
    if rest:  # an open bit and its pad
        C = C - C[:, rest] @ np.linalg.solve(C[np.ix_(rest, rest)], C[rest])
    return C[np.ix_(order, order)]


def literal_readings(board, text: str, charge: float, times: np.ndarray, wanted: list[int]) -> np.ndarray:
    """Readings (n, wanted, n) by an inverse Laplace transform of the deck's full nodal equations (fixed Talbot).

    The current is a trapezoid that rises and falls in a tenth of its length.
    """
    read, terms, length = read_deck(text), 20, times[0]
    edge = 0.1 * length
    found = np.zeros((len(board.cells), len(wanted), len(board.cells)))
    for row, k in enumerate(wanted):
        t = times[k]
        r = 2 * terms / (5 * t)
        for j in range(terms):
            theta = j * np.pi / terms
            cot = 1 / np.tan(theta) if j else 0.0
            s = r * theta * (cot + 1j) if j else r + 0j
            weight = (1 + 1j * (theta + (theta * cot - 1) * cot)) if j else 0.5
            Z = deck_impedance(read, s / (2j * np.pi))
            pulse = np.expm1(-s * edge) * np.expm1(-s * (length - edge)) / (s**2 * edge * (length - edge))
            factor = r / terms * weight * np.exp(s * t) * charge * pulse
            for a, cell in enumerate(board.cells):
                into = np.zeros(len(read["nodes"]))
                shares = (1.0,) if len(cell.nodes) == 1 else (0.5, -0.5)
                for node, share in zip(cell.nodes, shares, strict=True):
                    into[read["nodes"].index(node)] = share
                v = Z @ into
                for b, other in enumerate(board.cells):
                    y = v[read["nodes"].index(other.nodes[0])]
                    if len(other.nodes) == 2:
                        y = y - v[read["nodes"].index(other.nodes[1])]
                    found[a, row, b] += (factor * y).real
    return found


@needs_ngspice
@pytest.mark.parametrize("name", BOARDS)
def test_ngspice_follows_the_law_of_the_copy(name):
    # ngspice's step control leaves 1e-5 of the largest reading, and 3e-5 behind ESR and switches.
    board, program, copy = made(name).board, made(name).program, made(name).copies[0]
    run = charge_run(board, program, circuit_text(board, program, copy, Conditions()))
    charge, times = packet(name)
    assert run.charge == pytest.approx(charge, rel=1e-12)
    assert_close(run.times, times, 1e-9, "instants")
    law = by_law(name)[copy.name].readings
    assert np.abs(run.readings - law).max() < 1e-4 * np.abs(law).max()
    # Reciprocal: cell j shows of a packet on cell i what i shows of one on j, whichever came first.
    assert np.abs(run.readings - run.readings.transpose(2, 1, 0)).max() < 1e-4 * np.abs(law).max()
    nominal = by_law(name)["nominal"].readings
    assert 0.9 * board.limits.reading_rms < np.abs(nominal).max() < 1.7 * board.limits.reading_rms


@pytest.mark.parametrize("name", BOARDS)
def test_law_is_that_of_the_nodal_equations_of_the_deck(name):
    board, program, copy = made(name).board, made(name).program, made(name).copies[1]
    text = circuit_text(board, program, copy, Conditions())
    charge, times = packet(name)
    # A deck's open switches have 1 teraohm; the law leaves them out.
    wanted, text = [4, 12, 20, 30], text.replace("=1000000000000.0 ", "=1e18 ")
    expected = literal_readings(board, text, charge, times, wanted)
    # Behind ESR modes of 0.1 ps live beside others of 100 ns, and rounding counts a million times.
    tolerance = 1e-9 if "esr" in name or "parasitics" in name else 1e-11
    assert_close(by_law(name)[copy.name].readings[:, wanted], expected, tolerance)


def test_law_of_one_cell_is_the_closed_form():
    made_ = made("1x1")
    read = read_deck(circuit_text(made_.board, made_.program, made_.copies[0], Conditions()))
    C, G, K = (read[name][0, 0] for name in "CGK")
    damping, natural = G / (2 * C), K / C
    ringing = np.sqrt(natural - damping**2)
    charge, times = packet("1x1")
    length = times[0]
    current = charge / (0.9 * length)

    def answer(t: float) -> float:
        return np.exp(-damping * t) * (np.cos(ringing * t) - damping / ringing * np.sin(ringing * t)) / C

    def driven(s: float) -> float:
        return current * min(s / (0.1 * length), 1.0, (length - s) / (0.1 * length))

    corners = [0, 0.1 * length, 0.9 * length, length]
    expected = [
        sum(quad(lambda s, t=t: driven(s) * answer(t - s), a, b)[0] for a, b in pairwise(corners)) for t in times
    ]
    assert_close(by_law("1x1")["copy-1"].readings.reshape(-1), np.array(expected), 1e-11)


@pytest.mark.parametrize("name", BOARDS)
def test_errors_are_those_of_the_inverse_read_at_the_instant(name):
    # Readings a little off, each on its own, so that nothing is symmetric by itself.
    design, rng = made(name), np.random.default_rng(1)
    runs = {
        copy: replace(run, readings=run.readings * rng.uniform(0.99, 1.01, run.readings.shape))
        for copy, run in by_law(name).items()
    }
    found = judge_charges(design, runs)
    board, program, X = design.board, design.program, design.program.mapping
    inverse = np.linalg.inv(program.target)
    for result, copy in zip((found.nominal, *found.copies), specimens(design), strict=True):
        run, law = runs[copy.name], by_law(name)[copy.name].readings
        for k in range(31):
            M_inverse = np.array([board.unit * run.readings[j, k] / run.charge for j in range(len(board.cells))]).T
            B = X.T @ M_inverse @ X
            error = np.linalg.norm((B + B.T) / 2 - inverse) / np.linalg.norm(inverse)
            assert result.errors[k] == pytest.approx(error, rel=1e-9)
        assert result.name == copy.name
        assert result.difference_to_law == pytest.approx(np.abs(run.readings - law).max() / np.abs(law).max(), rel=1e-9)
        assert result.relative_error == result.errors[found.times.index(found.instant)]
    assert found.board_time == pytest.approx(len(board.cells) * (15 * program.settling + found.instant), rel=1e-12)
    assert found.current * 0.9 * found.pulse == pytest.approx(found.charge, rel=1e-12)


@pytest.mark.parametrize("name", BOARDS)
def test_the_instant_is_the_best_of_the_nominal_board(name):
    nominal = judge_charges(made(name), by_law(name)).nominal
    assert nominal.relative_error == min(nominal.errors)
    assert nominal.difference_to_law < 1e-12


@pytest.mark.parametrize("name", ["1x1", "plain", "differential", "negative elements", "quality 10", "microvolts"])
def test_without_switches_the_first_moment_is_the_best_and_there_is_no_factor(name):
    found = judge_charges(made(name), by_law(name))
    # Half a pulse, a thousandth of what the fastest mode takes, has leaked away.
    assert found.instant == found.times[0] == found.pulse
    assert found.nominal.relative_error < 6e-4
    assert found.nominal.errors[-1] > 0.3
    assert np.all(np.diff(found.nominal.errors) > 0)


def test_what_leaks_in_a_pulse_is_what_the_resistors_take():
    # To first order v = C⁻¹ (q - G ∫ v): the mean age of the charge at the end of a symmetric pulse is half of it.
    found = judge_charges(made("1x1"), by_law("1x1"))
    resistance = next(part.nominal for part in made("1x1").board.parts if part.role == "damping")
    expected = found.pulse / 2 / (resistance * nodal_capacitance("1x1")[0, 0])
    assert found.nominal.errors[0] == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("name", SWITCHED)
def test_switches_open_a_window(name):
    found = judge_charges(made(name), by_law(name))
    nominal = found.nominal
    assert found.times[0] < found.instant < found.times[-1]
    assert nominal.errors[0] > 5 * nominal.relative_error
    assert nominal.errors[-1] > 5 * nominal.relative_error


def test_a_slower_board_has_a_wider_and_better_window():
    fast, slow = (judge_charges(made(name), by_law(name)) for name in ("banks", "banks, 100 kHz"))
    rounding = made("banks").program.rounding.error
    assert 5e-10 < fast.instant < 5e-9
    assert slow.instant > 2 * fast.instant
    assert slow.nominal.relative_error - rounding < 0.3 * (fast.nominal.relative_error - rounding)
    # Of 10 ohm and some 100 pF there is nothing left but what the codes round.
    assert slow.nominal.relative_error < 1.3 * rounding


def test_the_instant_is_chosen_without_the_copies_and_without_the_simulator():
    design, runs = made("banks, plain"), by_law("banks, plain")
    rng = np.random.default_rng(0)
    scrambled = {
        name: replace(run, readings=run.readings * rng.uniform(0.5, 2, (1, 31, 1))) for name, run in runs.items()
    }
    found, other = judge_charges(design, runs), judge_charges(design, scrambled)
    assert found.instant == other.instant
    assert other.copies[0].errors != found.copies[0].errors
    assert other.nominal.difference_to_law > 0.1


@pytest.mark.parametrize("name", ["plain", "banks, plain"])
def test_noise_of_the_same_board_time_is_judged_by_the_law_of_its_estimate(name):
    design = made(name)
    rule, period = inversion_rule(design), design.program.period
    found = judge_charges(design, by_law(name))
    wait = 15 * design.program.settling
    samples = int(np.floor((found.board_time - wait) / period))
    assert found.samples == samples
    for result, copy in zip((found.nominal, *found.copies), specimens(design), strict=True):
        circuit = assemble(design.board, design.program, copy, Conditions())
        correction = nominal_hold_correction(nominal_circuit(design.board, design.program), period)
        mean = rule.read(held_covariance(circuit, period) + correction)
        floor = np.linalg.norm(mean - rule.inverse) / np.linalg.norm(rule.inverse)
        assert result.covariance_floor == pytest.approx(floor, rel=1e-6, abs=1e-12)
        # The law of the estimate by the double sum over all pairs of readings, and every entry of B = mapᵀ S map.
        full = estimate_covariance(lagged_covariances(circuit, period), samples)
        variance = np.einsum("ai,bj,ci,dj,abcd->", rule.map, rule.map, rule.map, rule.map, full)
        expected = np.sqrt(floor**2 + variance / np.linalg.norm(rule.inverse) ** 2)
        assert result.covariance_error == pytest.approx(expected, rel=1e-6)
        if result.equal_time is None:
            assert floor >= result.relative_error
        else:
            count = round((result.equal_time - wait) / period)
            spread = rule.spread(estimate_law(circuit, period, count))
            assert np.hypot(floor, spread) == pytest.approx(result.relative_error, rel=0.01)
    assert {result.equal_time is None for result in (found.nominal, *found.copies)} == (
        {True, False} if name == "plain" else {False}
    )


def test_one_cell_leaves_noise_no_time():
    found = judge_charges(made("1x1"), by_law("1x1"))
    assert found.samples == 0
    assert found.nominal.covariance_error is None
    assert found.nominal.equal_time > 1000 * found.board_time


def test_on_ill_conditioned_parts_noise_catches_up_where_its_floor_is_lower():
    found = judge_charges(made("negative elements"), by_law("negative elements"))
    for result in found.copies:
        never = result.equal_time is None
        assert never == (result.covariance_floor >= result.relative_error)
        if not never:
            assert (result.equal_time <= found.board_time) == (result.covariance_error <= result.relative_error)


def test_readout_is_made_of_plain_numbers():
    found = judge_charges(made("banks, plain"), by_law("banks, plain"))
    content = TypeAdapter(ChargeReadout).dump_python(found, mode="json")
    assert TypeAdapter(ChargeReadout).validate_python(json.loads(json.dumps(content))) == found


def test_resistive_boards_are_refused():
    design = make_design(M_MATRIX, choices=BoardOptions(coupling="resistive"))
    text = circuit_text(design.board, design.program, design.copies[0], Conditions())
    for ask in (lambda: charge_run(design.board, design.program, text), lambda: judge_charges(design, {})):
        with pytest.raises(InputError, match="capacitive boards, where capacitors hold the matrix, got a resistive"):
            ask()

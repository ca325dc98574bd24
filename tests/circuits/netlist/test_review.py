"""What a review says is so: errors and sensitivities of the board as it is, small elements, and numbers to measure."""

import re

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX, random_target
from compare import assert_close
from reference import deck_impedance, kronecker_lyapunov, read_deck

from circuits import Conditions, reading_covariance
from circuits.copies import nominal_copy
from circuits.netlist import circuit_of, deck_text, review_lines, review_text
from circuits.netlist.bill import bill_lines, digits
from circuits.netlist.review import bringup, nominal_errors, small_elements, worst_parts
from circuits.nodal import assemble_gains, nominal_circuit
from circuits.ou import diffusion, drift
from circuits.statistics import inversion_rule
from circuits.synthesis import BoardOptions, Parasitics, expected_error, inverse_factor, make_design, named_fisher
from circuits.synthesis.sensitivity import MOST_NODES, differentiated, part_sensitivities

CHAIN = 2 * np.eye(5) - np.eye(5, k=1) - np.eye(5, k=-1)
RING = CHAIN - np.eye(5, k=4) - np.eye(5, k=-4)
RESISTIVE = BoardOptions(coupling="resistive")
ALL = Parasitics(0.5, 3e7, 0.05, 0.05, 3e-12)


# --- errors of exact parts


@pytest.mark.parametrize(
    ("target", "congruence", "choices", "parasitics"),
    [
        (CHAIN, None, RESISTIVE, Parasitics(esr=0.05)),
        (M_MATRIX, None, BoardOptions(coupling="resistive", bank_bits=3), Parasitics()),
        (FAIR, FAIR_FACTOR, RESISTIVE, Parasitics(esr=0.1, stray=3e-12)),
    ],
    ids=["esr", "banks", "both signs"],
)
def test_errors_of_a_resistive_board_are_those_of_both_ways_to_read_it(target, congruence, choices, parasitics):
    made = make_design(target, congruence, choices=choices, parasitics=parasitics)
    found = nominal_errors(made)
    circuit = nominal_circuit(made.board, made.program, Conditions())
    seconds = np.trace(drift(circuit))  # in units of which the rates are of order one
    sigma = kronecker_lyapunov(drift(circuit) / seconds, diffusion(circuit) / seconds)
    rule = inversion_rule(made)
    covariance = rule.error(rule.read(circuit.readout @ sigma @ circuit.readout.T))
    assert found["covariance"] == pytest.approx(covariance, rel=1e-6)
    assert found["covariance"] > found["mean"]
    mean, other = (f"{100 * found[kind]:.2g} %" for kind in ("mean", "covariance"))
    words = f"{mean} error of the inverse from the mean, {other} from the covariance"
    assert any(words in line for line in review_lines(made))
    assert words in review_text(made)


def test_errors_of_the_reviewed_boards_in_numbers():
    chain = make_design(CHAIN, choices=RESISTIVE, parasitics=Parasitics(esr=0.05))
    assert nominal_errors(chain)["mean"] < 1e-14 * 100
    assert nominal_errors(chain)["covariance"] == pytest.approx(0.0028, rel=0.02)
    banks = nominal_errors(make_design(FAIR, FAIR_FACTOR, choices=BoardOptions(coupling="resistive", bank_bits=6)))
    assert banks["mean"] == pytest.approx(0.00063, rel=0.05)
    assert banks["covariance"] == pytest.approx(0.0124, rel=0.05)


# --- sensitivities


@pytest.mark.parametrize(
    ("target", "choices", "parasitics"),
    [
        (M_MATRIX, BoardOptions(source_tolerance=0.05), ALL),
        (M_MATRIX, BoardOptions(bank_bits=3), Parasitics(winding=0.5)),
        (M_MATRIX, BoardOptions(bank_bits=2), Parasitics()),
        (
            np.array([[1.0, 0.3, 0.3], [0.3, 1.0, 0.3], [0.3, 0.3, 1.0]]),
            BoardOptions(quality=5.0),
            Parasitics(winding=1.0),
        ),
        (np.array([[1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]]), BoardOptions(), Parasitics(coupled_coils=0.1)),
        (np.array([[3.0]]), BoardOptions(), Parasitics(winding=1.0, stray=1e-12)),
    ],
    ids=["all", "banks", "switches alone", "differential", "negative elements, coupled coils", "1x1"],
)
def test_sensitivities_with_parasitics_are_the_finite_differences_of_the_whole_circuit(target, choices, parasitics):
    made = make_design(target, choices=choices, parasitics=parasitics, tolerance=0.001)
    assert differentiated(made.board, made.program)
    names = [entry.name for entry in (*made.board.parts, *made.board.sources)]
    every = part_sensitivities(made.board, made.program)
    worst, rule, step = max(entry.value for entry in every), inversion_rule(made), 1e-3
    for entry in every:
        gains = np.ones((4, len(names)))
        gains[:, names.index(entry.part)] += np.array([1, -1, 2, -2]) * step
        circuits = assemble_gains(made.board, made.program, gains, Conditions())
        a, b, c, d = (rule.read(reading_covariance(circuits[k])) for k in range(4))
        found = np.linalg.norm(8 * (a - b) - (c - d)) / (12 * step) / np.linalg.norm(rule.inverse)
        # The Lyapunov solver is good to some 1e-9 of a covariance, where ESR makes rates differ by seven decades.
        assert found == pytest.approx(entry.value, abs=1e-5 * worst), entry
    assert any(entry.role == "resonance" and entry.value > 1e-9 for entry in every) or not parasitics.winding


def test_parts_are_ranked_by_what_their_own_tolerance_does():
    made = make_design(CHAIN, parasitics=Parasitics(esr=0.5))
    worst, every = worst_parts(made), part_sensitivities(made.board, made.program)
    spread = {entry.name: entry.tolerance for entry in (*made.board.parts, *made.board.sources)}
    products = sorted((entry.value * spread[entry.part] for entry in every), reverse=True)
    assert [entry.value * entry.tolerance for entry in worst] == pytest.approx(products[:10], rel=1e-5)
    assert worst[0].role == "input"
    assert max(every, key=lambda entry: entry.value).role != "input"
    squares = sum(product**2 for product in products) / 3
    assert expected_error(made.board, made.program) == pytest.approx(np.sqrt(squares), rel=1e-12)
    line = review_lines(made)[-1]
    assert f"most from {worst[0].part} ({worst[0].value:.2g} × ±20 %)" in line


def test_inductors_are_said_to_move_nothing_only_where_they_do_not():
    plain, lossy = make_design(M_MATRIX), make_design(M_MATRIX, parasitics=Parasitics(winding=0.5))
    assert "Inductors: zero." in review_text(plain)
    assert "Inductors: zero." not in review_text(lossy)
    assert "with all that is not ideal, inductors and parasitics counted" in review_text(lossy)
    large = make_design(random_target(12, 3, 0), parasitics=Parasitics(esr=0.05))
    assert len(large.board.nodes) + sum(part.kind == "C" for part in large.board.parts) > MOST_NODES
    assert not differentiated(large.board, large.program)
    assert "has too many nodes for this table" in review_text(large)
    assert "Inductors: zero." not in review_text(large)


# --- parts


def test_small_elements_are_said_with_what_they_are_worth():
    M = np.array([[1.0, -1e-5, -0.3], [-1e-5, 1.0, -0.2], [-0.3, -0.2, 1.0]])
    made = make_design(M)
    without = M.copy()
    without[0, 1] = without[1, 0] = 0
    without[[0, 1], [0, 1]] -= 1e-5
    error = np.linalg.norm(np.linalg.inv(without) - np.linalg.inv(M)) / np.linalg.norm(np.linalg.inv(M))
    words = small_elements(made)
    assert words.startswith("1 of 6 elements are below 200 fF")
    assert "(straight_1_2 is 10 fF, which no part is)" in words
    assert words.endswith(f"; left out, they cost {100 * error:.2g} % of the inverse")
    assert f"small: {words}" in review_lines(made)
    assert f"* {words}" in review_text(made)


def test_board_that_depends_on_parts_that_do_not_exist_says_so():
    made = make_design(RING + 1e-6 * np.eye(5))
    assert "the board depends on them: without them no inverse is left" in small_elements(made)
    assert any(line.startswith("small: 5 of 10 elements") for line in review_lines(made))
    assert small_elements(make_design(M_MATRIX)) == ""


def test_equal_parts_share_a_line():
    made = make_design(CHAIN, choices=RESISTIVE, parasitics=Parasitics(esr=0.05))
    (resistors,) = (line for line in bill_lines(made.board, made.program) if line.kind == "R")
    assert len(resistors.designators) == 6
    assert (resistors.comment, resistors.value) == ("2 kΩ", 2000.0)


@pytest.mark.parametrize("tolerance", [0.05, 0.01, 0.001, 1e-5])
def test_lines_move_no_value_by_more_than_a_tenth_of_its_tolerance(tolerance):
    made = make_design(FAIR, FAIR_FACTOR, tolerance=tolerance)
    nominal = {part.name: part.nominal or made.program.values.get(part.element) for part in made.board.parts}
    for line in bill_lines(made.board, made.program):
        for name in line.designators if line.value else ():
            assert line.value == pytest.approx(nominal[name], rel=tolerance / 5 * 1.001)
    assert digits(tolerance) >= 4


# --- bring-up


@pytest.mark.parametrize(
    ("target", "congruence", "choices", "parasitics"),
    [
        (M_MATRIX, None, BoardOptions(), Parasitics(winding=0.5, esr=0.05)),
        (FAIR, FAIR_FACTOR, RESISTIVE, Parasitics()),
        (FAIR, None, BoardOptions(), Parasitics()),
        (M_MATRIX, None, BoardOptions(coupling="resistive", bank_bits=3), Parasitics()),
    ],
    ids=["parasitics", "resistive", "negative elements", "resistive banks"],
)
def test_numbers_to_measure_are_those_of_the_deck(target, congruence, choices, parasitics):
    made = make_design(target, congruence, choices=choices, parasitics=parasitics, tolerance=0.001)
    board, program = made.board, made.program
    frequencies, bias = np.array([1e5, 1e6]), 1e-5
    numbers = bringup(made, frequencies, bias)
    read = read_deck(circuit_of(deck_text(board, program, nominal_copy(board), Conditions(), 1000)))
    rows = [read["nodes"].index(node) for node in board.nodes]
    for k, frequency in enumerate(frequencies):
        Z = deck_impedance(read, frequency)
        assert_close(numbers.impedances[:, k], np.abs(np.diag(Z)[rows]), 1e-6 if board.banks else 1e-9)
    worst = 0.0
    for copy in made.copies:
        other = read_deck(circuit_of(deck_text(board, program, copy, Conditions(), 1000)))
        for k, frequency in enumerate(frequencies):
            Z = np.abs(np.diag(deck_impedance(other, frequency))[rows])
            worst = max(worst, np.abs(Z / numbers.impedances[:, k] - 1).max())
    assert numbers.spread == pytest.approx(worst, rel=1e-4)
    if board.inputs:
        inverse = np.linalg.inv(program.matrix)
        assert_close(numbers.columns, inverse / board.unit * bias, program.rounding.error * 3 if board.banks else 1e-12)


@pytest.mark.parametrize("choices", [BoardOptions(), RESISTIVE], ids=["capacitive", "resistive"])
def test_one_source_alone_gives_the_reading_that_is_said(choices):
    made = make_design(np.array([[1.0, 0.3, 0.3], [0.3, 1.0, 0.2], [0.3, 0.2, 1.0]]), choices=choices)
    circuit = nominal_circuit(made.board, made.program)
    numbers = bringup(made, np.array([1e6]), 1e-5)
    A, full, m = drift(circuit), diffusion(circuit), len(circuit.capacitance)
    volt = np.sqrt(made.program.energy / made.board.capacitance)
    scale = np.full(len(A), volt)
    scale[m:] = np.sqrt(made.program.energy / circuit.inverse_inductance[0, 0]) if m < len(A) else 1.0
    rate = np.abs(A[:m, :m]).max()
    C = np.linalg.inv(circuit.capacitance)
    for k in range(m):
        D = np.zeros_like(full)
        D[:m, :m] = 2 * circuit.noise[k, k] * np.outer(C[:, k], C[:, k])
        S = kronecker_lyapunov(A * scale / scale[:, None] / rate, D / np.outer(scale, scale) / rate)
        reading = circuit.readout[k // 2] @ (S * np.outer(scale, scale))[:m, :m] @ circuit.readout[k // 2]
        assert numbers.alone[k] == pytest.approx(np.sqrt(reading), rel=1e-8)


def test_steps_can_be_done():
    text = review_text(make_design(FAIR, FAIR_FACTOR, choices=RESISTIVE))
    steps = [int(k) for k in re.findall(r"^(\d)\. ", text.partition("bring-up")[2], re.M)]
    assert steps == list(range(1, 8))
    assert "measure every part in place" not in text
    assert "Terminate" not in text
    assert "with every noise input open" in text
    assert "every bias input" in text
    assert re.search(r"put a bias current of [\d.]+ µA into a cell \(half of it into p", text)
    assert re.search(r"^   \| p1 \| 1.018 kΩ \| [\d.]+ Ω \| [\d.]+ Ω \| [\d.]+ mV \| 50 mV \|$", text, re.M)


@pytest.mark.parametrize(("size", "bits", "there"), [(16, 0, True), (17, 0, False), (8, 2, True), (9, 2, False)])
def test_expected_covariance_is_said_to_be_where_it_is(size, bits, there):
    target = 2.5 * np.eye(size) - np.eye(size, k=1) - np.eye(size, k=-1)
    made = make_design(target, choices=BoardOptions(bank_bits=bits), copies=1)
    text = deck_text(made.board, made.program, made.copies[0], Conditions(), 1000)
    header = text[: text.index("\nR")] if "\nR" in text else text
    rows = re.findall(r"^\*\s+(?:[+-]\d\.\d{6}e[+-]\d\d\s*)+$", header, re.M)
    assert (len(rows) == size) == there
    review = review_text(made)
    assert ("in the header of" in review) == there
    assert ("less `hold_correction_V2`" in review) != there


# --- words


def test_a_diagonal_target_has_no_couplings_and_one_part_is_no_plural():
    one, many = review_lines(make_design(np.array([[3.0]]))), review_lines(make_design(np.eye(3)))
    assert one[0] == many[0] == "why: it is diagonal, there is nothing to couple"
    assert "parts: 1 resistor, 1 inductor, 1 capacitor" in one
    assert "parts: 3 resistors, 3 inductors, 3 capacitors" in many
    assert "Lv1" not in one[-1]


def test_exact_parts_have_no_error_to_rank_and_still_a_sensitivity():
    made = make_design(M_MATRIX, tolerance=0.0)
    assert review_lines(made)[-1].startswith("error of the inverse at ±0 %: 0 % expected; it depends most on ")
    values = [entry.value for entry in worst_parts(made)]
    assert values == sorted(values, reverse=True)


def test_factor_that_was_given_is_not_advised_again():
    target = named_fisher("wine", "fit")[0]
    factor = inverse_factor(named_fisher("wine", "zero")[0])
    lines = "\n".join(review_lines(make_design(target, factor)))
    assert "a --precondition from a matrix nearer to the target" in lines
    assert "older" not in lines
    assert "a --precondition from an older matrix" in "\n".join(review_lines(make_design(FAIR)))

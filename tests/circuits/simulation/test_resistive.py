"""Resistive boards: the mean solves the system and settles as e^{-At}; the covariance carries the same inverse."""

import numpy as np
import pytest
import sympy as sp
from cases import FAIR, FAIR_FACTOR, TARGETS, random_target
from compare import FALSE_ALARM, assert_close
from conftest import needs_ngspice
from reference import read_deck
from scipy.linalg import expm

from circuits import Conditions, assemble, reading_covariance
from circuits.copies import draw_copies, nominal_copy
from circuits.netlist import circuit_of, circuit_text, deck_text, explanation_text, review_text
from circuits.nodal import assemble_gains, nominal_circuit
from circuits.ou import decay_time, predicted_columns, predicted_settling, settling_time
from circuits.simulation import exact_run, solve_run
from circuits.simulation.transient import chunk_deck, run_chunk
from circuits.statistics import estimate_law, inversion_rule
from circuits.statistics.estimators import joint_chi_square
from circuits.synthesis import BoardOptions, BoardRequest, cell_law, make_design, resistive_residuals
from circuits.synthesis.design import board_and_program
from circuits.synthesis.equations import maxwell_matrix
from circuits.synthesis.sensitivity import part_sensitivities

RESISTIVE = BoardOptions(coupling="resistive")


def solved_inverse(board, program, circuit) -> np.ndarray:
    X = program.mapping
    return X.T @ (board.unit * predicted_columns(board, circuit, 1.0)) @ X


@pytest.mark.parametrize("kind", ["plain", "differential"])
def test_mean_and_covariance_of_two_cells_hold_symbolically(kind):
    mean, covariance = resistive_residuals(cell_law(kind).nodal)
    assert mean.is_zero_matrix
    assert covariance.is_zero_matrix


def test_mean_and_covariance_of_three_cells_hold_symbolically():
    a, b, c, g = sp.symbols("a b c g", positive=True)
    nodal = maxwell_matrix([(g, 0, None), (g, 1, None), (g, 2, None), (a, 0, 1), (b, 0, 2), (c, 1, 2)], 3)
    mean, covariance = resistive_residuals(nodal)
    assert mean.is_zero_matrix
    assert covariance.is_zero_matrix


@pytest.mark.parametrize("name", TARGETS)
def test_board_holds_the_matrix_solves_with_it_and_has_its_covariance(name):
    target, congruence, step = TARGETS[name]
    board, program = board_and_program(target, congruence, request=BoardRequest(options=RESISTIVE))
    assert program.step.startswith(step)
    assert not any(part.kind == "L" for part in board.parts)
    condition = max(np.linalg.cond(target), 100)
    circuit = nominal_circuit(board, program)
    inverse = np.linalg.inv(target)
    assert_close(solved_inverse(board, program, circuit), inverse, 1e-13 * condition, "inverse from the mean")
    if condition < 1e5:
        scale = board.nodes_per_cell * program.energy / board.capacitance
        expected = scale * np.linalg.inv(program.matrix)
        assert_close(reading_covariance(circuit), expected, 1e-12 * condition, "covariance")
    assert np.sqrt(
        (program.energy * board.nodes_per_cell / board.capacitance) * np.diag(np.linalg.inv(program.matrix)).max()
    ) == pytest.approx(board.limits.reading_rms)
    assert settling_time(circuit) == pytest.approx(decay_time(circuit), rel=1e-6)


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("condition", [10, 1e4])
def test_large_boards_hold_their_targets(size, condition):
    target = random_target(size, condition, size)
    board, program = board_and_program(target, request=BoardRequest(options=RESISTIVE))
    found = solved_inverse(board, program, nominal_circuit(board, program))
    assert_close(found, np.linalg.inv(target), 1e-12 * max(1, condition))


@pytest.mark.parametrize("name", [name for name in TARGETS if "1e" not in name])
def test_deck_and_assembly_agree(name):
    target, congruence, _ = TARGETS[name]
    board, program = board_and_program(target, congruence, request=BoardRequest(options=RESISTIVE))
    copy = draw_copies(board, 4, 1)[0]
    read = read_deck(circuit_of(deck_text(board, program, copy, Conditions(), 1000)))
    circuit = assemble(board, program, copy, Conditions())
    pick = np.ix_(*[[read["nodes"].index(node) for node in board.nodes]] * 2)
    assert_close(read["C"][pick], circuit.capacitance, 1e-15, "C")
    assert_close(read["G"][pick], circuit.conductance, 1e-14, "G")
    assert not read["inductors"]
    assert read["inputs"] == {entry.name: entry.node for entry in board.inputs}
    assert set(read["sources"]) == set(board.nodes)


def test_sensitivities_are_the_finite_differences_of_the_solution():
    made = make_design(FAIR, FAIR_FACTOR, choices=RESISTIVE)
    names, step = [entry.name for entry in (*made.board.parts, *made.board.sources)], 1e-4
    inverse = np.linalg.inv(FAIR)
    every = part_sensitivities(made.board, made.program)
    worst = max(entry.value for entry in every)
    for entry in every:
        gains = np.ones((2, len(names)))
        gains[:, names.index(entry.part)] += (step, -step)
        circuits = assemble_gains(made.board, made.program, gains, Conditions())
        plus, minus = (solved_inverse(made.board, made.program, circuits[k]) for k in range(2))
        found = np.linalg.norm(plus - minus) / (2 * step) / np.linalg.norm(inverse)
        assert found == pytest.approx(entry.value, abs=1e-5 * worst)
        assert (entry.value > 0) == (entry.role != "storage")


def test_settling_prediction_is_the_matrix_exponential():
    board, program = board_and_program(FAIR, request=BoardRequest(options=RESISTIVE))
    circuit = assemble(board, program, draw_copies(board, 1, 1)[0], Conditions())
    times = np.linspace(0, 3e-6, 7)[1:]
    A = np.linalg.solve(circuit.capacitance, circuit.conductance)
    into = np.array([0.5 if node.startswith("p") else -0.5 for node in board.nodes])
    final = np.linalg.solve(circuit.conductance, into)
    expected = [circuit.readout @ (final - expm(-A * t) @ final) for t in times]
    assert_close(predicted_settling(board, circuit, 1.0, times), np.array(expected), 1e-10)


@needs_ngspice
@pytest.mark.parametrize("name", TARGETS)
def test_nominal_board_solves_its_system_in_ngspice(name):
    target, congruence, _ = TARGETS[name]
    board, program = board_and_program(target, congruence, request=BoardRequest(options=RESISTIVE))
    run = solve_run(board, program, circuit_text(board, program, nominal_copy(board), Conditions()))
    X = program.mapping
    found = X.T @ (board.unit / run.bias * run.columns) @ X
    assert_close(
        found, np.linalg.inv(target), 1e-9 if "1e6" not in name else 1e-7, "inverse, a column an operating point"
    )


@needs_ngspice
@pytest.mark.parametrize("name", ["1x1", "M-matrix", "fair, raw", "fair, preconditioned", "wine, preconditioned"])
def test_copy_solves_and_settles_as_its_own_values_say(name):
    target, congruence, _ = TARGETS[name]
    board, program = board_and_program(target, congruence, request=BoardRequest(options=RESISTIVE))
    copy = draw_copies(board, 2, 1)[0]
    text, circuit = circuit_text(board, program, copy, Conditions()), assemble(board, program, copy, Conditions())
    run = solve_run(board, program, text)
    assert_close(run.columns, predicted_columns(board, circuit, run.bias), 1e-9, "columns")
    settling = predicted_settling(board, circuit, run.bias, run.times)
    assert np.abs(run.settling - settling).max() < 1e-4 * np.abs(settling).max()
    # It is on its way, not there from the start.
    assert np.abs(run.settling[0]).max() < 0.8 * np.abs(run.settling[-1]).max()
    covariance = exact_run(board, program, text, np.array([1e5])).covariance
    assert_close(covariance, reading_covariance(circuit), 1e-6, "covariance")


@needs_ngspice
def test_sampled_run_follows_the_law_of_its_copy():
    board, program = board_and_program(FAIR, FAIR_FACTOR, request=BoardRequest(options=RESISTIVE))
    copy, samples = draw_copies(board, 3, 1)[0], 20_000
    moments = run_chunk(
        board,
        program,
        chunk_deck(board, program, circuit_text(board, program, copy, Conditions()), 17, samples),
        samples,
    ).moments
    law = estimate_law(assemble(board, program, copy, Conditions()), program.period, samples)
    assert joint_chi_square(moments.mean(axis=0), law)[2] > FALSE_ALARM


def test_review_and_explanation_speak_of_conductances():
    made = make_design(FAIR, FAIR_FACTOR, choices=RESISTIVE)
    text = review_text(made)
    assert "unit conductance | 1 mS (1 kΩ)" in text
    assert "bias currents" in text
    assert "inductors" not in text
    assert "Capacitors: zero." in text
    words = explanation_text(made.board, made.program)
    assert "G v with G" in words
    assert "g0 = 1 mS" in words
    assert "e^{-Gt/c}" in words


def test_inverse_read_from_the_covariance_has_the_scale_of_the_storage_capacitor():
    made = make_design(FAIR, FAIR_FACTOR, choices=BoardOptions(coupling="resistive", unit_capacitance=3.3e-9))
    rule = inversion_rule(made)
    assert rule.error(rule.read(reading_covariance(nominal_circuit(made.board, made.program)))) < 1e-11
    assert {part.nominal for part in made.board.parts if part.role == "storage"} == {3.3e-9}

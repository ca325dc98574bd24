"""The decision for cells takes the cheapest ones, and its suggestions work; the sensitivities predict the errors."""

import time

import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, M_MATRIX, TARGETS, random_target
from compare import NORMAL_BOUND, assert_close

from circuits import Conditions, InputError, reading_covariance
from circuits.copies import draw_gains
from circuits.netlist import decks, write_design
from circuits.nodal import assemble_gains, nominal_circuit
from circuits.ou import decay_time, reading_covariances, settling_time
from circuits.statistics import inversion_rule
from circuits.synthesis import BoardOptions, expected_error, make_design
from circuits.synthesis.cells import passive_damping, plan_cells
from circuits.synthesis.design import board_and_program
from circuits.synthesis.options import check_options
from circuits.synthesis.sensitivity import part_sensitivities

KINDS = {"plain": "plain", "differential": "differential", "active": "differential"}


@pytest.mark.parametrize("name", TARGETS)
def test_auto_takes_the_first_step_that_holds_the_target(name):
    target, congruence, _ = TARGETS[name]
    T = np.eye(len(target)) if congruence is None else congruence
    chosen = plan_cells(target, T)
    assert chosen.reason
    for cells in ("plain", "differential", "active"):
        try:
            forced = plan_cells(target, T, cells)
        except InputError:
            continue
        assert forced.kind == KINDS[cells]
        assert forced.step == chosen.step or cells != "plain"
        if cells == "plain":
            assert chosen.kind == "plain"
        elif cells == "differential":
            assert "negative" not in chosen.step
            assert "negative" not in forced.step
        return
    raise AssertionError("active cells hold every positive definite target")


@pytest.mark.parametrize("target", [FAIR, random_target(8, 1e3, 5), random_target(5, 10, 6), TARGETS["wine, raw"][0]])
def test_the_damping_that_would_do_does_and_one_per_cent_less_does_not(target):
    eye = np.eye(len(target))
    damping = passive_damping(target, eye)
    assert "negative" not in plan_cells(target + damping * eye, eye).step
    if "negative" in plan_cells(target, eye).step:
        assert "negative" in plan_cells(target + 0.89 * damping * eye, eye).step
    with pytest.raises(InputError, match=rf"--damping {damping:.2g}[^0-9].*--precondition.*--cells active"):
        plan_cells(target, eye, "differential")


def test_no_damping_is_promised_where_a_congruence_spoils_it():
    T = np.array([[1.0, 0.9], [0.9, 1.0]]) @ np.diag([1, 30.0])
    three = np.kron(np.eye(2), T)[:3, :3] + 0.95 * (np.ones((3, 3)) - np.eye(3))
    found = passive_damping(random_target(3, 1e3, 0), three)
    assert found is None or "negative" not in plan_cells(random_target(3, 1e3, 0) + found * np.eye(3), three).step


def test_signs_that_do_not_balance_are_named():
    with pytest.raises(InputError, match=r"no reading signs.*--cells differential"):
        plan_cells(TARGETS["both signs, dominant"][0], np.eye(3), "plain")
    with pytest.raises(InputError, match="--cells is one of"):
        plan_cells(M_MATRIX, np.eye(3), "cheap")


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("condition", [10, 1e4])
def test_large_boards_hold_their_targets(size, condition):
    target = random_target(size, condition, size)
    board, program = board_and_program(target)
    circuit = nominal_circuit(board, program)
    H = circuit.readout
    seen = board.nodes_per_cell * np.linalg.inv(H @ np.linalg.inv(circuit.capacitance) @ H.T)
    assert_close(seen / board.unit, program.matrix, 1e-12 * max(1, condition / 100))


def test_a_board_of_64_cells_with_its_decks_takes_seconds(tmp_path):
    target = random_target(64, 30, 1)
    start = time.monotonic()
    made = make_design(target, tolerance=1e-4)
    texts = dict(decks(made))
    # 2.5 s where this was written; the promise is 5 s, the bound leaves a busy machine room.
    assert time.monotonic() - start < 20
    assert len(made.board.cells) == 64
    assert len(texts["copy-3"]) > 100_000
    write_design(made, tmp_path / "run")
    assert (tmp_path / "run" / "board.net").stat().st_size > 1_000_000


@pytest.mark.parametrize(
    ("target", "congruence"),
    [(FAIR, None), (FAIR, FAIR_FACTOR), (M_MATRIX, None)],
    ids=["raw", "preconditioned", "plain"],
)
def test_sensitivities_are_the_finite_differences_of_the_lyapunov_solution(target, congruence):
    made = make_design(target, congruence, choices=BoardOptions(source_tolerance=0.05))
    rule, step = inversion_rule(made), 1e-4
    names = [entry.name for entry in (*made.board.parts, *made.board.sources)]
    worst = max(entry.value for entry in part_sensitivities(made.board, made.program))
    for entry in part_sensitivities(made.board, made.program):
        gains = np.ones((2, len(names)))
        gains[:, names.index(entry.part)] += (step, -step)
        circuits = assemble_gains(made.board, made.program, gains, Conditions())
        plus, minus = (rule.read(reading_covariance(circuits[k])) for k in range(2))
        found = np.linalg.norm(plus - minus) / (2 * step) / np.linalg.norm(rule.inverse)
        assert found == pytest.approx(entry.value, abs=1e-5 * worst)
        assert (entry.value > 0) == (entry.role != "resonance")
    assert {source.name for source in made.board.sources} <= {
        entry.part for entry in part_sensitivities(made.board, made.program)
    }


@pytest.mark.parametrize("congruence", [None, FAIR_FACTOR], ids=["raw", "preconditioned"])
def test_expected_error_is_that_of_many_copies(congruence):
    made = make_design(FAIR, congruence, tolerance=0.001)
    gains = draw_gains(made.board, 9, 600)
    rule = inversion_rule(made)
    circuits = assemble_gains(made.board, made.program, gains, Conditions())
    squares = rule.error(rule.read(reading_covariances(circuits))) ** 2
    expected = expected_error(made.board, made.program)
    # Second order adds a few per cent of the first at this tolerance.
    allowance = 0.05 * expected**2 + NORMAL_BOUND * squares.std() / np.sqrt(len(squares))
    assert abs(squares.mean() - expected**2) < allowance


def test_settling_time_of_nominal_boards_in_closed_form():
    for target, congruence, _ in TARGETS.values():
        board, program = board_and_program(target, congruence)
        circuit = nominal_circuit(board, program)
        assert settling_time(circuit) == pytest.approx(decay_time(circuit), rel=1e-6)
        assert program.settling == settling_time(circuit)


def test_choices_set_the_parts_and_change_nothing_of_what_the_board_says():
    choices = BoardOptions(unit_capacitance=2.2e-9, resonance=1e5, quality=0.7, reading_rms=0.2, hold_bias=0.01)
    made = make_design(FAIR, choices=choices)
    value = {part.name: part.nominal for part in made.board.parts}
    assert 1 / (2 * np.pi * np.sqrt(value["Lp1"] * 2.2e-9)) == pytest.approx(1e5)
    assert value["Rn8"] * np.sqrt(2.2e-9 / value["Lp1"]) == pytest.approx(0.7)
    covariance = reading_covariance(nominal_circuit(made.board, made.program))
    assert np.sqrt(np.diag(covariance).max()) == pytest.approx(0.2)
    rule = inversion_rule(made)
    assert rule.error(rule.read(covariance)) < 1e-11


@pytest.mark.parametrize(
    "bad", [{"quality": 0}, {"quality": 1e4}, {"resonance": -1}, {"unit_capacitance": 1}, {"hold_bias": float("nan")}]
)
def test_choices_no_board_can_be_made_of_are_refused(bad):
    option = next(iter(bad)).replace("_", "-")
    with pytest.raises(InputError, match=f"--{option} is from"):
        check_options(BoardOptions(**bad))

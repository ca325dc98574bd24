"""Law of synthesis: what the readings see of the returned board is its unit capacitance times X P Xᵀ."""

import numpy as np
import pytest
import sympy as sp
from cases import FAIR, FAIR_FACTOR, TARGETS
from compare import assert_close

from circuits.nodal import nominal_circuit
from circuits.synthesis import BoardRequest, cell_law, stationary_residual
from circuits.synthesis.cells import reading_signs
from circuits.synthesis.design import board_and_program
from circuits.synthesis.elements import element_values
from circuits.synthesis.equations import (
    CROSSED,
    GROUND1,
    GROUND2,
    M11,
    M12,
    NEGATIVE1,
    NEGATIVE2,
    STRAIGHT,
    maxwell_matrix,
)


@pytest.mark.parametrize("kind", ["plain", "differential"])
def test_stationary_law_solves_the_lyapunov_equation_symbolically(kind):
    nodal = cell_law(kind).nodal
    assert stationary_residual(nodal) == sp.zeros(2 * nodal.shape[0])


def test_stationary_law_holds_for_three_cells_symbolically():
    a, b, c, g = sp.symbols("a b c g", positive=True)
    nodal = maxwell_matrix([(g, 0, None), (g, 1, None), (g, 2, None), (a, 0, 1), (b, 0, 2), (c, 1, 2)], 3)
    assert stationary_residual(nodal) == sp.zeros(6)


def test_solved_elements_give_back_the_matrix_symbolically():
    law = cell_law("differential")
    straight = {STRAIGHT: law.straight, CROSSED: 0}
    crossed = {STRAIGHT: 0, CROSSED: law.crossed}
    for couplings in (straight, crossed):
        assert sp.simplify(law.seen[0, 1].subs(couplings) - M12) == 0
        seen = law.seen[0, 0].subs(NEGATIVE1, law.negative)
        assert sp.simplify(seen - M11) == 0
        seen = law.seen[0, 0].subs({NEGATIVE1: 0, GROUND1: law.slack})
        assert sp.simplify(seen - M11) == 0


def test_negative_elements_leave_the_common_mode_alone():
    common = cell_law("differential").common
    assert not common.has(NEGATIVE1, NEGATIVE2)
    # Weakly dominant, strictly with ground elements above zero: positive definite.
    assert sp.simplify(sum(common.row(0)) - GROUND1) == 0
    assert sp.simplify(sum(common.row(1)) - GROUND2) == 0


@pytest.mark.parametrize("name", TARGETS)
def test_readings_see_the_scaled_target(name):
    target, congruence, step = TARGETS[name]
    board, program = board_and_program(target, congruence)
    assert program.step.startswith(step)
    circuit = nominal_circuit(board, program)
    H = circuit.readout
    seen = board.nodes_per_cell * np.linalg.inv(H @ np.linalg.inv(circuit.capacitance) @ H.T)
    condition = np.linalg.cond(target)
    assert_close(seen / board.unit, program.matrix, 1e-14 * max(condition, 100), "held matrix")
    X = program.mapping
    assert_close(X.T @ np.linalg.inv(program.matrix) @ X, np.linalg.inv(target), 1e-13 * max(condition, 100), "mapping")
    assert np.linalg.eigvalsh(circuit.capacitance)[0] > 0


@pytest.mark.parametrize("name", TARGETS)
def test_only_negative_elements_are_negative_and_only_active_boards_have_them(name):
    target, congruence, _ = TARGETS[name]
    _, program = board_and_program(target, congruence)
    negative = {element for element, value in program.values.items() if value < 0}
    assert all(element.startswith("negative") for element in negative)
    assert bool(negative) == ("negative" in program.step)


def test_matrix_entries_give_their_elements_by_brute_arithmetic():
    M = np.array([[1.0, -0.2, 0.3], [-0.2, 1.0, 0.1], [0.3, 0.1, 0.35]])
    board, _ = board_and_program(np.eye(3) + 0.2, request=BoardRequest(cells="active"))
    values = element_values(board, M)
    pF = {name: value / board.unit for name, value in values.items()}
    expected = {
        "ground_1": 0.5,
        "ground_2": 0.7,
        "ground_3": 0.1,
        "straight_1_2": 0.2,
        "crossed_1_3": 0.3,
        "crossed_2_3": 0.1,
        "negative_3": (0.35 - 0.4 - 0.1) / 2,
    }
    assert pF.keys() == expected.keys()
    assert_close([pF[name] for name in expected], list(expected.values()), 1e-14)


def test_the_raw_fisher_matrix_needs_negative_elements_and_the_preconditioned_one_does_not():
    raw, preconditioned = board_and_program(FAIR)[1], board_and_program(FAIR, FAIR_FACTOR)[1]
    assert sum(name.startswith("negative") for name in raw.values) == 3
    assert not any(name.startswith("negative") for name in preconditioned.values)
    assert np.linalg.cond(preconditioned.matrix) < 1.5 < 30 < np.linalg.cond(raw.matrix)


def test_reading_signs_are_found_exactly_when_the_sign_pattern_is_balanced():
    rng = np.random.default_rng(3)
    for _ in range(50):
        n = int(rng.integers(1, 6))
        P = rng.choice([-1.0, 0.0, 1.0], size=(n, n))
        P = np.triu(P, 1) + np.triu(P, 1).T + np.eye(n)
        found = reading_signs(P)
        every = np.array(np.meshgrid(*[[1, -1]] * n)).reshape(n, -1).T
        balanced = [s for s in every if (np.triu(s[:, None] * P * s, 1) <= 0).all()]
        assert (found is None) == (not balanced)
        assert found is None or (np.triu(found[:, None] * P * found, 1) <= 0).all()

"""Rounding is never worse than nearest values, says the error that the circuit really has, and beats them by far."""

import json

import eseries
import numpy as np
import pytest
from cases import FAIR, FAIR_FACTOR, TARGETS, random_target
from conftest import needs_ngspice

from circuits import Conditions, InputError, reading_covariance
from circuits.copies import nominal_copy
from circuits.netlist import circuit_text, load_design, write_design
from circuits.nodal import nominal_circuit
from circuits.simulation import exact_run
from circuits.statistics import inversion_rule
from circuits.synthesis import BoardOptions, make_design
from circuits.synthesis.design import board_and_program
from circuits.synthesis.rounding import round_to_grid, series_near

SMALL = [name for name, (target, *_) in TARGETS.items() if np.linalg.cond(target) < 200]


def unit(P: np.ndarray) -> np.ndarray:
    d = np.diag(P) ** -0.5
    return d[:, None] * P * d


def true_error(made) -> float:
    rule = inversion_rule(made)
    return float(rule.error(rule.read(reading_covariance(nominal_circuit(made.board, made.program)))))


@pytest.mark.parametrize("series", ["E6", "E24"])
@pytest.mark.parametrize("name", SMALL)
def test_rounded_board_has_the_error_it_says_and_values_of_the_series(name, series):
    target, congruence, _ = TARGETS[name]
    made = make_design(target, congruence, tolerance=0.0, copies=1, choices=BoardOptions(series=series))
    assert made.rounding.error_nearest is None or made.rounding.error <= made.rounding.error_nearest * (1 + 1e-9)
    assert true_error(made) == pytest.approx(made.rounding.error, rel=1e-6, abs=1e-12)
    base = {float(f"{b:.6g}") for b in eseries.series(eseries.ESeries[series])}
    nominal = [part.nominal for part in made.board.parts if part.nominal]
    for value in [*made.program.values.values(), *nominal]:
        mantissa = abs(value) / 10.0 ** np.floor(np.log10(abs(value)) + 1e-9) * 10
        assert min(abs(mantissa - b) for b in base) < 1e-6 * mantissa


def test_nearest_error_is_that_of_the_nearest_values():
    board, program = board_and_program(FAIR, FAIR_FACTOR)
    grid = np.array([series_near(value, "E24") for value in program.values.values()])
    cost = round_to_grid(board, program, grid, "E24").cost
    nearest = type(program)(**{**program.__dict__, "values": dict(zip(program.values, grid[:, 0], strict=True))})
    scale = board.unit / (board.nodes_per_cell * program.energy)
    X = program.mapping
    found = X.T @ (scale * reading_covariance(nominal_circuit(board, nearest))) @ X
    inverse = np.linalg.inv(FAIR)
    assert np.linalg.norm(found - inverse) / np.linalg.norm(inverse) == pytest.approx(cost.error_nearest, rel=1e-9)


@pytest.mark.parametrize(("condition", "bar"), [(10, 3), (30, 5), (100, 8)])
def test_search_beats_nearest_values_on_four_bit_banks(condition, bar):
    gains = []
    for seed in range(5):
        board, program = board_and_program(unit(random_target(8, condition, 500 + seed)))
        exact = np.array(list(program.values.values()))
        step = np.abs(exact).max() / 15
        near = step * (np.floor(exact / step)[:, None] + np.array([-1, 0, 1, 2]))
        near = np.take_along_axis(near, np.argsort(np.abs(near - exact[:, None]), axis=1), axis=1)
        cost = round_to_grid(board, program, near, "4 bits").cost
        gains.append(np.inf if cost.error_nearest is None else cost.error_nearest / cost.error)
    assert np.median(gains) > bar


def test_small_problem_is_solved_as_well_as_by_trying_everything():
    board, program = board_and_program(np.array([[1.0, 0.23], [0.23, 0.61]]))
    grid = np.array([series_near(value, "E6")[:3] for value in program.values.values()])
    chosen = round_to_grid(board, program, grid, "E6")
    inverse = np.linalg.inv(program.target)
    best = np.inf
    for picks in np.ndindex(3, 3, 3):
        ground_1, ground_2, coupling = (grid[k, pick] / board.unit for k, pick in enumerate(picks))
        K = np.linalg.inv([[ground_1 + coupling, -coupling], [-coupling, ground_2 + coupling]])
        signs = np.sign(program.scaling)
        # Every scaling, finely: the factor of each cell around its own best.
        x, y = np.meshgrid(np.linspace(0.7, 1.4, 701), np.linspace(0.7, 1.4, 701), indexing="ij")
        a, b = np.abs(program.scaling)
        off = signs[0] * signs[1] * K[0, 1] * a * b * x * y
        misfit = (K[0, 0] * (a * x) ** 2 - inverse[0, 0]) ** 2 + (K[1, 1] * (b * y) ** 2 - inverse[1, 1]) ** 2
        best = min(best, float(np.sqrt((misfit + 2 * (off - inverse[0, 1]) ** 2).min()) / np.linalg.norm(inverse)))
    assert chosen.cost.error <= best * (1 + 1e-2) + 1e-6


@needs_ngspice
def test_rounded_board_in_ngspice_has_the_error_it_says(tmp_path):
    made = make_design(FAIR, FAIR_FACTOR, choices=BoardOptions(series="E12"), name="fair")
    write_design(made, tmp_path / "run")
    again, decks = load_design(tmp_path / "run")
    assert again.rounding == made.rounding
    assert json.loads((tmp_path / "run" / "board.json").read_text())["program"]["rounding"]["series"] == "E12"
    run = exact_run(again.board, again.program, decks["nominal"], np.array([1e6]))
    rule = inversion_rule(again)
    assert rule.error(rule.read(run.covariance)) == pytest.approx(made.rounding.error, rel=1e-6)
    assert made.rounding.error < made.rounding.error_nearest / 1.5
    text = circuit_text(again.board, again.program, nominal_copy(again.board), Conditions())
    assert decks["nominal"].endswith(text)
    assert "rounded to | E12" in (tmp_path / "run" / "design.md").read_text()


def test_unknown_series_is_refused():
    with pytest.raises(InputError, match=r"--series is one of E6"):
        make_design(FAIR, choices=BoardOptions(series="E25"))

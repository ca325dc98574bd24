"""Codes for the very copy, against nearest codes on the same copy uncalibrated: measured on the whole circuit.

Measurements are made by the assembly of the full circuit, parasitics on, with the parts the copy really has.
"""

from dataclasses import replace

import numpy as np
import pytest
from cases import M_MATRIX
from conftest import needs_ngspice
from simulated import known_device

from circuits import Conditions, InputError, assemble, reading_covariance
from circuits.calibration import choose_codes
from circuits.calibration.held_out import observed_inverse
from circuits.calibration.retrim import nearest_program, trimmed_copy
from circuits.copies import codes
from circuits.ou import predicted_columns
from circuits.simulation import run_programs
from circuits.synthesis import BoardOptions, build_board, make_design

PROGRAMMINGS = 8


def raw_target(seed: int, cells: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    off = np.triu(rng.uniform(0.05, 0.2, (cells, cells)) * rng.choice([-1, 1], (cells, cells)), 1)
    d = np.sqrt(rng.uniform(0.3, 3, cells))
    return d[:, None] * (np.eye(cells) + off + off.T) * d


def preconditioned_target(seed: int, cells: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """An ill-conditioned target, and the factor of one that is near."""
    rng = np.random.default_rng(seed)
    T = np.tril(rng.normal(size=(cells, cells)), -1) + np.diag(np.geomspace(1, 30, cells))
    near = rng.uniform(-0.1, 0.1, (cells, cells))
    back = np.linalg.inv(T)
    return back @ (np.eye(cells) + (near + near.T) / 2) @ back.T, T


def read(board, program, copy) -> np.ndarray:
    circuit = assemble(board, program, copy, Conditions())
    X = program.mapping
    if board.inputs:
        return board.unit * X.T @ predicted_columns(board, circuit, 1.0) @ X
    scale = board.capacitance / (board.nodes_per_cell * program.energy)
    return scale * X.T @ reading_covariance(circuit) @ X


@pytest.mark.parametrize("coupling", ["capacitive", "resistive"])
@pytest.mark.parametrize("kind", ["raw", "preconditioned"])
def test_retrimmed_copies_are_twenty_times_better_than_nearest_codes(kind, coupling):
    choices = BoardOptions(bank_bits=4, coupling=coupling)
    first = (raw_target(0), None) if kind == "raw" else preconditioned_target(0)
    made = make_design(*first, cells="active", choices=choices, tolerance=0.05, copies=2, name="trim")
    device, board = known_device(made), made.board
    before, after = [], []
    for seed in (1, 2):  # targets nothing was tuned on
        target, congruence = (raw_target(seed), None) if kind == "raw" else preconditioned_target(seed)
        inverse = np.linalg.inv(target)
        for k, copy in enumerate(made.copies):
            plain = read(board, nearest_program(board, target, congruence), copy)
            made_codes = choose_codes(device, k, target, congruence, PROGRAMMINGS)
            assert len(made_codes.programs) == PROGRAMMINGS
            assert made_codes.weights.sum() == pytest.approx(1)
            own = trimmed_copy(board, copy, made_codes.powers)
            mean = sum(w * read(board, p, own) for w, p in zip(made_codes.weights, made_codes.programs, strict=True))
            before.append(np.linalg.norm(plain - inverse) / np.linalg.norm(inverse))
            after.append(np.linalg.norm(mean - inverse) / np.linalg.norm(inverse))
            assert after[-1] < 0.3 * before[-1]
    assert np.linalg.norm(before) / np.linalg.norm(after) > 20


def test_expected_error_is_what_comes_where_no_pair_can_differ():
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=4), tolerance=0.05, copies=1)
    device, copy = known_device(made), made.copies[0]
    target = np.array([[1.0, -0.2, -0.1], [-0.2, 1.2, -0.15], [-0.1, -0.15, 0.9]])
    inverse = np.linalg.inv(target)
    found = choose_codes(device, 0, target, None, 3)
    own = trimmed_copy(made.board, copy, found.powers)
    for program in found.programs:
        held = codes(made.board, program)
        assert all(abs(code) < 16 for code in held.values())
    mean = sum(w * read(made.board, p, own) for w, p in zip(found.weights, found.programs, strict=True))
    error = np.linalg.norm(mean - inverse) / np.linalg.norm(inverse)
    assert error == pytest.approx(found.errors[-1], rel=1e-3)
    assert found.errors[-1] < found.errors[0]


def test_sources_make_temperatures_equal():
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=4, switch_resistance=1e-3), tolerance=0.05, copies=1)
    found = choose_codes(known_device(made), 0, M_MATRIX)
    copy = trimmed_copy(made.board, made.copies[0], found.powers)
    for k, cell in enumerate(made.board.cells, start=1):
        source = next(s for s in made.board.sources if s.node in cell.nodes)
        assert copy.gains[source.name] * copy.gains[f"Rv{k}"] == pytest.approx(1)
    circuit = assemble(made.board, found.programs[0], copy, Conditions(off=frozenset({"switches"})))
    expected = found.programs[0].energy * np.linalg.inv(circuit.capacitance)
    assert np.linalg.norm(reading_covariance(circuit) - expected) < 1e-9 * np.linalg.norm(expected)


@needs_ngspice
def test_ngspice_agrees_with_the_trimmed_copy():
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=4), tolerance=0.05, copies=1)
    found = choose_codes(known_device(made), 0, M_MATRIX, None, 2)
    own = trimmed_copy(made.board, made.copies[0], found.powers)
    shown = run_programs(made.board, found.programs, [own], np.array([1e6]))[0]
    for program, run in zip(found.programs, shown, strict=True):
        came = observed_inverse(made.board, program, run.exact.covariance, None)
        assert np.linalg.norm(came - read(made.board, program, own)) < 1e-6 * np.linalg.norm(came)


def test_boards_without_banks_and_targets_beyond_reach_are_refused():
    made = make_design(M_MATRIX, choices=BoardOptions(bank_bits=4, bank_range=0.6), copies=1)
    device = known_device(made)
    with pytest.raises(InputError, match="beyond the reach"):
        choose_codes(device, 0, np.array([[1.0, -0.8, -0.1], [-0.8, 1.0, -0.1], [-0.1, -0.1, 1.0]]))
    with pytest.raises(InputError, match="no banks"):
        choose_codes(replace(device, board=build_board(3, "plain")), 0, M_MATRIX)

"""Tiles on the copies against the numpy route through the same device."""

import numpy as np
import pytest
import torch
from cases import FAIR, FAIR_FACTOR, random_target
from compare import assert_close
from simulated import measured_exactly, rough_device

from circuits import Conditions, InputError, assemble, ou
from circuits.calibration import calibrate
from circuits.model import Device, draw_device, ideal_device, predict
from circuits.synthesis import BoardRequest, build_board, make_design
from circuits.synthesis.design import board_and_program as synthesise
from tngd.device import invert_tiles, tile_board

# Condition numbers from 1 to 1e6, both signs, dominated and not.
TARGETS = [np.eye(8), FAIR, FAIR_FACTOR @ FAIR @ FAIR_FACTOR.T] + [
    random_target(8, condition, seed) for seed, condition in enumerate((2, 10, 1e2, 1e4, 1e6))
]


def inverse_by_numpy(device: Device, copy: int, target: np.ndarray) -> np.ndarray:
    """The same tile through synthesis, the reduced circuit and the Lyapunov equation."""
    board, program = synthesise(target, request=BoardRequest(cells="active"))
    scale = board.unit / (2 * program.energy)
    X = program.mapping
    return X.T @ (scale * ou.reading_covariance(predict(device, copy, program))) @ X


def test_ideal_tiles_are_exact_inverses():
    board = tile_board(ideal_device(build_board(8, "differential")))
    targets = torch.tensor(np.array(TARGETS))
    found = invert_tiles(board, targets, torch.zeros(len(TARGETS), dtype=torch.long))
    assert found.stable.all()
    for inverse, target in zip(found.inverse, TARGETS, strict=True):
        assert_close(inverse, np.linalg.inv(target), 1e-13 * max(100, np.linalg.cond(target)))


def test_tiles_need_negative_elements_exactly_where_synthesis_says_so():
    board = tile_board(ideal_device(build_board(8, "differential")))
    targets = torch.tensor(np.array(TARGETS))
    passive = invert_tiles(board, targets, torch.zeros(len(TARGETS), dtype=torch.long)).passive
    steps = [synthesise(target, request=BoardRequest(cells="active"))[1].step for target in TARGETS]
    assert passive.tolist() == ["negative" not in step for step in steps]
    assert 0 < int(passive.sum()) < len(TARGETS)


def test_tiles_on_copies_agree_with_the_numpy_route_but_for_second_order():
    errors = []
    for tolerance in (1e-3, 1e-4):
        device = rough_device(tolerance)
        board, drawn = tile_board(device, seed=3), draw_device(device, 3)
        targets = [target for target in TARGETS if np.linalg.cond(target) < 200]
        copies = torch.arange(len(targets)) % 2
        found = invert_tiles(board, torch.tensor(np.array(targets)), copies)
        for k, target in enumerate(targets):
            expected = inverse_by_numpy(drawn, int(copies[k]), target)
            errors.append(np.linalg.norm(found.inverse[k].numpy() - expected) / np.linalg.norm(expected))
            first_order = np.linalg.norm(expected - np.linalg.inv(target)) / np.linalg.norm(np.linalg.inv(target))
            # Below the tolerance times the first-order error: second order.
            assert errors[-1] < 3 * tolerance * np.linalg.cond(target) ** 0.5
            assert errors[-1] < 0.1 * first_order or target is TARGETS[0]
    coarse, fine = np.array(errors).reshape(2, -1)
    assert np.median(coarse / np.maximum(fine, 1e-12)) == pytest.approx(100, rel=0.2)


def test_tiles_on_a_calibrated_copy_agree_with_the_circuit_of_that_copy():
    made = make_design(FAIR, FAIR_FACTOR)
    device, _ = calibrate(made, measured_exactly(made), "exact")
    board = tile_board(device)
    target = torch.tensor(FAIR_FACTOR @ FAIR @ FAIR_FACTOR.T)[None]
    for c, copy in enumerate(made.copies):
        found = invert_tiles(board, target, torch.tensor([c])).inverse[0].numpy()
        X = made.program.mapping
        scale = made.board.unit / (2 * made.program.energy)
        circuit = assemble(made.board, made.program, copy, Conditions())
        true = X.T @ (scale * ou.reading_covariance(circuit)) @ X
        assert_close(FAIR_FACTOR.T @ found @ FAIR_FACTOR, true, 3e-4)
        # Far closer than the ideal device, which knows nothing of this copy.
        assert np.linalg.norm(np.linalg.inv(FAIR) - true) > 5e-4 * np.linalg.norm(true)


def test_a_copy_that_cannot_hold_a_tile_says_so():
    board = tile_board(rough_device(0.05), seed=0)
    hopeless = torch.tensor(np.array([random_target(8, 1e6, s) for s in range(20)]))
    found = invert_tiles(board, hopeless, torch.zeros(20, dtype=torch.long))
    assert not found.stable.all()
    assert (found.inverse[~found.stable] == 0).all()
    assert torch.isfinite(found.inverse).all()


def test_plain_cells_hold_no_tiles():
    with pytest.raises(InputError, match="differential"):
        tile_board(ideal_device(build_board(8, "plain")))


def test_turning_the_board_renumbers_its_copies():
    board = tile_board(rough_device(0.01, copies=3), seed=1)
    turned = board.turned(1)
    assert torch.equal(turned.ground[0], board.ground[1])
    assert torch.equal(turned.temperature[2], board.temperature[0])
    assert torch.equal(board.turned(3).crossed, board.crossed)

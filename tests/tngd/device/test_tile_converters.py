"""What an ADC makes of the readings of tiles: the law in numpy and the device's own program; what is counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import FAIR, FAIR_FACTOR, random_target
from compare import assert_close
from simulated import rough_device
from test_tile_boards import rough

from circuits.model import Converter, Device, Estimate, Interface, draw_device, ideal_device, load_device
from circuits.model.converters import converted_law
from circuits.synthesis import BoardOptions, BoardRequest
from circuits.synthesis.design import board_and_program
from tngd.device import TileBoard, small_matrices, tile_board
from tngd.device.converters import read_law
from tngd.device.tile_solve import tile_answers
from tngd.device.tiles import hold_tiles
from tngd.optimizer.tile_step import step_tiles

GOOD = FAIR_FACTOR @ FAIR @ FAIR_FACTOR.T
CONVERTERS = [
    Converter(8, 4.0),
    Converter(8, 3.0),
    Converter(8, 2.0),
    Converter(8, 1.0),
    Converter(3, 4.0),
    Converter(6, 2.0, noise=0.1, offset=0.3),
]


def read_by(device: Device, adc: Converter) -> Device:
    return replace(device, interface=replace(device.interface, adc=adc))


def inverse_on(board: TileBoard, target: np.ndarray, copy: int):
    """The inverse as read column by column, and the answer."""
    n = len(target)
    copies = torch.full((n,), copy)
    held = hold_tiles(board, torch.tensor(target, dtype=board.dtype)[..., None].repeat(1, 1, n), copies)
    answer = tile_answers(board, held, torch.eye(n, dtype=board.dtype) * held.scaling, copies)
    return (held.scaling * answer.values).double().numpy(), answer


@pytest.mark.parametrize("small", [1.0, 0.1])
@pytest.mark.parametrize("adc", [*CONVERTERS, Converter(1, 4.0), Converter(12, 0.5, offset=0.5), Converter(16, 4.0)])
def test_law_is_that_of_the_converter(adc, small):
    rng = np.random.default_rng(3)
    sizes = np.geomspace(1, small, 8)  # a small reading has few codes
    covariances, means, rms = [], 0.1 * rng.normal(size=(8, 4)), rng.uniform(0.9, 1.2, 4)
    for condition in (1.0, 3.0, 30.0, 1e3):
        S = random_target(8, condition, int(condition))
        d = sizes / np.sqrt(np.diag(S))
        covariances.append(d[:, None] * S * d)
    stacked = torch.tensor(np.array(covariances)).movedim(0, -1)
    law, clipped = read_law(stacked, torch.tensor(means), torch.tensor(rms), adc, 1e-16)
    for k, S in enumerate(covariances):
        _, expected, share = converted_law(means[:, k], S, adc, rms[k])
        assert_close(law[..., k], expected, 1e-10)
        assert_close(clipped[:, k], share, 1e-10)


@pytest.mark.parametrize("adc", CONVERTERS)
def test_readings_far_below_full_scale_have_the_variance_of_few_codes_and_no_overflow(adc):
    S = random_target(8, 1e4, 0)
    d = np.geomspace(0.3, 1e-4, 8) / np.sqrt(np.diag(S))
    S = d[:, None] * S * d
    law, _ = read_law(torch.tensor(S)[..., None], torch.zeros(8, 1), torch.ones(1), adc, 1e-16)
    assert torch.isfinite(law).all()
    alone = [converted_law(np.zeros(1), np.array([[variance]]), adc, 1.0)[1].item() for variance in np.diag(S)]
    assert_close(law[..., 0].diagonal(), alone, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("adc", CONVERTERS)
def test_tiles_are_read_as_the_device_is(adc, dtype):
    """What is left is the spread of conductance and inductance in the damping, 5e-7 here, and the precision."""
    device = draw_device(load_device("board-1"), 2)
    offsets = 0.2 * device.board.limits.reading_rms * np.random.default_rng(0).normal(size=(len(device.copies), 8))
    copies = zip(device.copies, offsets.tolist(), strict=True)
    device = replace(
        device,
        copies=tuple(replace(c, readout_offsets=tuple(Estimate(o, 0.0, True) for o in row)) for c, row in copies),
    )
    board = tile_board(read_by(device, adc), 2, dtype)
    for k in range(len(device.copies)):
        expected = read_by(device, adc).program(GOOD, k)
        found, answer = inverse_on(board, GOOD, k)
        assert_close(found, expected.inverse, 1e-6 if dtype == torch.float64 else 2e-6)
        assert answer.clipped == pytest.approx(8 * expected.clipped.sum(), rel=1e-5)
        assert answer.saturated == 8 * (expected.clipped > 1e-3).sum()
    plain, answer = inverse_on(tile_board(device, 2, dtype), GOOD, 0)
    assert (answer.saturated, answer.clipped) == (0, 0.0)
    assert not np.allclose(plain, inverse_on(board, GOOD, 0)[0], rtol=1e-5)


def test_full_scale_of_a_board_with_banks_is_that_of_the_nominal_board_with_the_same_codes():
    board, _ = board_and_program(GOOD, request=BoardRequest(cells="differential", options=BoardOptions(bank_bits=5)))
    adc, copies, targets = Converter(8, 2.0), torch.zeros(8, dtype=torch.long), torch.tensor(GOOD)[..., None]
    rms = []
    for device in (ideal_device(board), rough(board, 0.1)):
        plain, made = tile_board(device), tile_board(read_by(device, adc))
        held = hold_tiles(made, targets.repeat(1, 1, 8), copies)
        eye = torch.eye(8, dtype=torch.float64)
        B = tile_answers(plain, held, eye, copies).values.numpy()
        rms.append(rms[0] if rms else np.sqrt(np.diag(B).max()))
        _, expected, share = converted_law(np.zeros(8), B, adc, rms[0])
        answer = tile_answers(made, held, eye, copies)
        assert_close(answer.values, expected, 1e-9)
        assert answer.clipped == pytest.approx(8 * share.sum(), rel=1e-9)
    assert abs(np.diag(B).max() / rms[0] ** 2 - 1) > 1e-3


def test_noise_without_bits_is_in_the_largest_rms_as_with_many():
    board = tile_board(rough_device(0.0), interface=Interface(adc=Converter(noise=0.1)))
    found, answer = inverse_on(board, GOOD, 0)
    B = np.linalg.inv(GOOD)
    largest = np.diag(np.linalg.inv(GOOD / np.sqrt(np.outer(np.diag(GOOD), np.diag(GOOD))))).max()
    assert_close(found, B + 0.01 * largest * np.diag(1 / np.diag(GOOD)), 1e-12)
    fine = tile_board(rough_device(0.0), interface=Interface(adc=Converter(24, 16.0, noise=0.1)))
    assert_close(inverse_on(fine, GOOD, 0)[0], found, 1e-6)
    assert (answer.saturated, answer.clipped) == (0, 0.0)


@pytest.mark.parametrize("cache", [2**20, 1])
@pytest.mark.parametrize("averaged", [False, True])
def test_a_step_counts_what_stable_tiles_clip(averaged, cache, monkeypatch):
    monkeypatch.setattr(small_matrices, "CACHE", cache)  # all tiles together, and one by one
    targets = [GOOD, random_target(8, 2, 1), random_target(8, 1e6, 3)]
    P = torch.tensor(np.array(targets)).movedim(0, -1).contiguous()
    g = torch.ones(24, dtype=torch.float64)
    board = tile_board(rough_device(0.05), interface=Interface(adc=Converter(8, 2.5)), averaged=averaged)
    _, _, step = step_tiles(board, P, g, None, refresh=0)
    many = 2 if averaged else 1
    assert step.unstable == many  # the last target
    shares = []
    for k, target in enumerate(targets[:2]):
        for copy in range(2) if averaged else (k,):
            held = hold_tiles(board, torch.tensor(target)[..., None], torch.tensor([copy]))
            answer = tile_answers(board, held, held.scaling, torch.tensor([copy]))
            shares.append((answer.saturated, answer.clipped))
    assert step.saturated == sum(count for count, _ in shares) > 0
    assert step.clipped == pytest.approx(sum(share for _, share in shares) / (16 * many), rel=1e-10)
    assert torch.isfinite(step.direction).all()

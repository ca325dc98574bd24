"""What a step on tiles says of itself, against solutions one tile at a time."""

import numpy as np
import pytest
import torch
from cases import random_target
from simulated import rough_device

from tngd.device import small_matrices, tile_board
from tngd.optimizer.tile_step import step_tiles


@pytest.mark.parametrize("refresh", [0, 3])
@pytest.mark.parametrize("cache", [2**20, 1])
def test_deviation_is_the_distance_from_exact_inverses(refresh, cache, monkeypatch):
    monkeypatch.setattr(small_matrices, "CACHE", cache)  # all tiles together, and one by one
    targets = [random_target(8, condition, k) for k, condition in enumerate((1.2, 1.5, 2, 2.5, 3))]
    P = torch.tensor(np.array(targets)).movedim(0, -1).contiguous()
    g = torch.tensor(np.random.default_rng(3).normal(size=37))  # the last tile is not full
    found, _, step = step_tiles(tile_board(rough_device(0.01)), P, g, None, refresh)
    whole = np.r_[g.numpy(), np.zeros(3)].reshape(5, 8)
    exact = np.array([np.linalg.solve(A, b) for A, b in zip(targets, whole, strict=True)])
    answers = step.direction.numpy().T
    assert np.array_equal(answers.ravel()[:37], found.numpy())
    expected = np.linalg.norm(answers - exact) / np.linalg.norm(exact)
    assert step.deviation == pytest.approx(expected, rel=1e-10)
    assert 1e-4 < expected < 0.2

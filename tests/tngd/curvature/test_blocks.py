"""Blocks straight from the layers against explicit rows, one backward pass a row."""

import pytest
import torch
from compare import assert_close
from torch import nn

from tngd.curvature import CROSS_ENTROPY, Recorder
from tngd.curvature.blocks import tile_blocks
from tngd.curvature.curvatures import curvature_cotangents
from tngd.curvature.factor import join_factors


class Twice(nn.Module):
    """One layer called twice, and a parameter outside every layer that is recorded."""

    def __init__(self):
        super().__init__()
        self.first, self.same, self.norm = nn.Linear(7, 9), nn.Linear(9, 9), nn.LayerNorm(9)
        self.last = nn.Linear(9, 3, bias=False)

    def forward(self, x):
        return self.last(self.norm(self.same(torch.tanh(self.same(torch.tanh(self.first(x)))))))


NETWORKS = {
    "aligned": (lambda: nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)), (16,)),
    "rows shorter than a tile": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)), (3,)),
    "odd rows": (lambda: nn.Sequential(nn.Linear(21, 13, bias=False), nn.Tanh(), nn.Linear(13, 3)), (21,)),
    "every phase": (lambda: nn.Sequential(nn.Linear(33, 19), nn.Tanh(), nn.Linear(19, 3)), (33,)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 4, 3, groups=2, stride=2), nn.Flatten(), nn.Linear(16, 3)
        ),
        (2, 7, 7),
    ),
    "sequences": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)), (4, 5)),
    "shared and unrecorded": (Twice, (7,)),
}


def rows_of(model: nn.Module, x: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
    """R (b q, N), literally."""
    outputs, found = model(x), []
    for k in range(len(x)):
        for c in range(S.shape[1]):
            own = torch.autograd.grad(outputs[k] @ S[k, c], list(model.parameters()), retain_graph=True)
            found.append(torch.cat([g.reshape(-1) for g in own]))
    return torch.stack(found)


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("kind", ["mc", "ggn"])
@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_are_those_of_explicit_rows(name, kind, written, monkeypatch):
    if not written:  # rows of convolutions and sequences are kept as products
        monkeypatch.setattr("tngd.curvature.layers.LIMIT", 0)
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    model = build().double()
    recorder, parts, R = Recorder(model, list(model.parameters())), [], []
    for b, scale in ((5, 0.6), (3, 0.8)):
        x, y = torch.randn(b, *shape).double(), torch.randint(3, (b,))
        outputs, _, calls = recorder.evaluate(lambda x=x, y=y: (model(x), y))
        S = curvature_cotangents(kind, outputs, y, CROSS_ENTROPY, None, torch.Generator().manual_seed(b))
        parts.append(recorder.factor(outputs, calls, S))
        R.append(scale * rows_of(model, x, S))
    R = torch.cat(R)
    found = tile_blocks(join_factors(parts, [0.6, 0.8]), 8, 0.3, R)
    n, tiles = R.shape[1], -(-R.shape[1] // 8)
    assert found.shape == (8, 8, tiles)
    full = torch.zeros(8 * tiles, 8 * tiles, dtype=torch.float64)
    full[:n, :n] = R.T @ R
    full += 0.3 * torch.eye(8 * tiles, dtype=torch.float64)
    expected = torch.stack([full[8 * k : 8 * k + 8, 8 * k : 8 * k + 8] for k in range(tiles)], dim=-1)
    assert_close(found, expected, 1e-12)
    assert torch.equal(found[0, 1], found[1, 0])

"""A small network and its batches, for tests of optimizer steps."""

import torch
from torch import nn


def network(seed: int = 0, dtype=torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to(torch.float64).to(dtype)


def batches(count: int, size: int = 6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(size, 5, generator=generator, dtype=torch.float64).to(dtype),
         torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]  # fmt: skip

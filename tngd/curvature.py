"""Generalised Gauss-Newton curvature of a batch, as a factor: G = RᵀR, R = S J / sqrt(b), never n x n itself.

Row (k, c) of R is the gradient of (S z)_kc / sqrt(b) with respect to all parameters, S the factor of the output
Hessian at sample k. The rows of all samples come from batched backward passes through one graph.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tngd.losses import Loss


def curvature_factor(outputs: Tensor, parameters: Sequence[Tensor], loss: Loss) -> Tensor:
    """R (b r, N) from outputs (b, d) still attached to their graph, which is kept."""
    b, d = outputs.shape
    S = loss.root(outputs.detach())  # (b, r, d)
    r = S.shape[1]
    rows = torch.zeros(b, r, b, d, dtype=outputs.dtype, device=outputs.device)
    sample = torch.arange(b, device=outputs.device)
    rows[sample, :, sample, :] = S / b**0.5
    gradients = torch.autograd.grad(
        outputs,
        parameters,
        grad_outputs=rows.reshape(b * r, b, d),
        is_grads_batched=True,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return torch.cat([gradient.reshape(b * r, -1) for gradient in gradients], dim=1)


def tile_blocks(factor: Tensor, size: int, damping: float) -> Tensor:
    """Diagonal blocks of RᵀR + λI, (tiles, size, size); the last tile is filled up with parameters of curvature 0."""
    rows, n = factor.shape
    tiles = -(-n // size)
    padded = torch.nn.functional.pad(factor, (0, tiles * size - n)).reshape(rows, tiles, size)
    blocks = torch.einsum("rti,rtj->tij", padded, padded)
    return blocks + damping * torch.eye(size, dtype=factor.dtype, device=factor.device)

"""Generalised Gauss-Newton curvature of a batch, as a factor: G = RᵀR, R = S J / sqrt(b), never n x n itself.

Row (k, c) of R is the gradient of (S z)_kc / sqrt(b) with respect to all parameters, S the factor of the output
Hessian at sample k. The rows of all samples come from batched backward passes through one graph.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from circuits.errors import InputError
from tngd.losses import Loss

ROWS = 64  # samples whose rows are taken at once: bounds memory, which would grow with the square of the batch


def evaluated(closure: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What a closure returned, (outputs, targets); InputError if that is not what the optimizers here take."""
    result = closure()
    if not (isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, Tensor) for part in result)):
        raise InputError(f"the closure must return (outputs, targets), two tensors, got {type(result).__name__}")
    outputs, targets = result
    if outputs.ndim != 2 or not outputs.requires_grad:
        raise InputError(
            f"outputs must be (batch, classes or 1) and depend on the parameters, got shape {tuple(outputs.shape)}"
        )
    return outputs, targets


def curvature_factor(outputs: Tensor, parameters: Sequence[Tensor], loss: Loss) -> Tensor:
    """R (b r, N) from outputs (b, d) still attached to their graph, which is kept."""
    b, d = outputs.shape
    S = loss.root(outputs.detach()) / b**0.5  # (b, r, d)
    blocks = []
    for samples in torch.arange(b, device=outputs.device).split(ROWS):
        rows = torch.zeros(len(samples), S.shape[1], b, d, dtype=outputs.dtype, device=outputs.device)
        rows[torch.arange(len(samples), device=outputs.device), :, samples, :] = S[samples]
        gradients = torch.autograd.grad(
            outputs,
            parameters,
            grad_outputs=rows.reshape(-1, b, d),
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
        )
        count = len(samples) * S.shape[1]
        flat = [
            outputs.new_zeros(count, p.numel()) if g is None else g.reshape(count, -1)
            for g, p in zip(gradients, parameters, strict=True)
        ]
        blocks.append(torch.cat(flat, dim=1))
    return torch.cat(blocks)


def tile_blocks(factor: Tensor, size: int, damping: float) -> Tensor:
    """Diagonal blocks of RᵀR + λI, (tiles, size, size); the last tile is filled up with parameters of curvature 0."""
    rows, n = factor.shape
    tiles = -(-n // size)
    padded = torch.nn.functional.pad(factor, (0, tiles * size - n)).reshape(rows, tiles, size)
    blocks = torch.einsum("rti,rtj->tij", padded, padded)
    return blocks + damping * torch.eye(size, dtype=factor.dtype, device=factor.device)

"""Losses with a known output Hessian: value, and a factor S of it, per sample H = SᵀS.

`root(z)` returns S (b, r, d) for outputs z (b, d). For cross-entropy H = diag(p) - p pᵀ = Σ_c p_c (e_c - p)(e_c - p)ᵀ;
for a binary label and one logit H = p (1 - p).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Loss:
    """A mean loss over the batch, `value(outputs, targets)`, and the factor of its output Hessian, `root(outputs)`."""

    name: str
    value: Callable[[Tensor, Tensor], Tensor]
    root: Callable[[Tensor], Tensor]


def _softmax_root(outputs: Tensor) -> Tensor:
    p = torch.softmax(outputs, dim=-1)
    eye = torch.eye(outputs.shape[-1], dtype=outputs.dtype, device=outputs.device)
    return p.sqrt()[:, :, None] * (eye - p[:, None, :])


def _logistic_root(outputs: Tensor) -> Tensor:
    p = torch.sigmoid(outputs)
    return (p * (1 - p)).sqrt()[:, :, None]


CROSS_ENTROPY = Loss("cross-entropy", functional.cross_entropy, _softmax_root)
LOGISTIC = Loss(
    "logistic",
    lambda outputs, targets: functional.binary_cross_entropy_with_logits(outputs[:, 0], targets),
    _logistic_root,
)

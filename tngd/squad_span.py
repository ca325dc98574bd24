"""Spans in a text of L tokens as a learning problem: two softmaxes over the tokens, of the start and of the end.

A model gives outputs z = (s, e), (b, 2 L). With the targets (i, j), first and last token of the answer, the loss of a
sample is ½ (-log softmax(s)_i - log softmax(e)_j). Its output Hessian is ½ diag(H(s), H(e)), H(s) = diag(p) - p pᵀ: the
two halves are apart, so the factor of each is that of a softmax over √2, and a vector of two independent draws
(p_s - e_i, p_e - e_j)/√2 has it as its second moment.
"""

import torch
from torch import Tensor
from torch.nn import functional

from circuits.errors import InputError
from tngd.curvature.losses import CROSS_ENTROPY, Loss

NEVER = -1e4  # logit of a token that cannot be chosen: its probability is 0 in float32 and float64


def _value(outputs: Tensor, targets: Tensor) -> Tensor:
    starts, ends = halves(outputs)
    if targets.shape != (len(outputs), 2):
        raise InputError(f"targets of spans are (batch, 2), first and last token, got {tuple(targets.shape)}")
    return (functional.cross_entropy(starts, targets[:, 0]) + functional.cross_entropy(ends, targets[:, 1])) / 2


def _root(outputs: Tensor) -> Tensor:
    starts, ends = (CROSS_ENTROPY.root(part) / 2**0.5 for part in halves(outputs))
    return torch.cat([functional.pad(starts, (0, ends.shape[-1])), functional.pad(ends, (starts.shape[-1], 0))], 1)


def _sampled(outputs: Tensor, u: Tensor) -> Tensor:
    """Two draws, each by the first of its half of the uniform numbers."""
    parts = zip(halves(outputs), halves(u), strict=True)
    return torch.cat([CROSS_ENTROPY.sampled(part, uniform) for part, uniform in parts], 1) / 2**0.5


def halves(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Starts and ends (b, L) of outputs (b, 2 L); InputError for an odd number."""
    if outputs.ndim != 2 or outputs.shape[1] % 2:
        raise InputError(
            f"outputs of spans are (batch, 2 x tokens), all starts before all ends, got {tuple(outputs.shape)}"
        )
    starts, ends = outputs.chunk(2, dim=1)
    return starts, ends


def span_outputs(logits: Tensor, attended: Tensor) -> Tensor:
    """Outputs (b, 2 L) of logits (b, L, 2) of start and end; tokens not `attended` (b, L) get probability 0."""
    return logits.mT.masked_fill(~attended[:, None], NEVER).flatten(1)


def best_spans(outputs: Tensor, allowed: Tensor, longest: int) -> Tensor:
    """First and last token (b, 2) of the span with the largest s_i + e_j, i <= j < i + `longest`, all of it allowed.

    `allowed` (b, L) says which tokens an answer may begin or end with; every row needs one. The first of equal spans.
    """
    if longest < 1 or not bool(allowed.any(dim=1).all()):
        raise InputError(
            f"a span needs a longest length of 1 or more, got {longest}, and in every row a token that is allowed"
        )
    starts, ends = halves(outputs)
    length = starts.shape[1]
    pairs = torch.ones(length, length, dtype=torch.bool, device=outputs.device).triu().tril(longest - 1)
    possible = pairs & allowed[:, :, None] & allowed[:, None, :]
    scores = (starts[:, :, None] + ends[:, None, :]).masked_fill(~possible, -torch.inf)
    best = scores.flatten(1).argmax(dim=1)
    return torch.stack([best // length, best % length], dim=1)


SPAN = Loss("span", _value, _root, "mean", None, _sampled)

"""One batch as the optimizer sees it: loss, gradients, and the factor of its curvature; micro-batches joined."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from circuits.errors import InputError
from tngd.curvature.curvatures import curvature_cotangents, evaluated, explicit_rows
from tngd.curvature.factor import Factor, all_finite, dense_factor, join_factors
from tngd.curvature.layers import Recorder
from tngd.curvature.losses import Loss


@dataclass(frozen=True, eq=False)
class Batch:
    """Loss, gradient (N,), gradients of a companion's parameters, factor (None if not asked for), counted samples.

    `targets`: those of its micro-batches.
    """

    value: Tensor
    gradient: Tensor
    companion: tuple[Tensor, ...]
    factor: Factor | None
    count: float
    targets: tuple[Tensor, ...]


def evaluate_batch(
    closure: Callable[[], tuple[Tensor, Tensor]],
    trained: Sequence[Tensor],
    others: Sequence[Tensor],
    loss: Loss,
    kind: str | None,
    recorder: Recorder | None,
    generator: torch.Generator,
    keep: bool = False,
) -> Batch:
    """Call the closure and differentiate; `kind` of curvature or None, `keep` the graph, which others may share.

    InputError for a loss or gradients that are not finite, or outputs and targets that the loss does not take. A batch
    of which no sample counts has the loss and gradient 0.
    """
    with torch.enable_grad():
        calls = None
        if recorder is not None and kind is not None:
            outputs, targets, calls = recorder.evaluate(closure)
        else:
            outputs, targets = evaluated(closure)
        if outputs.dtype != trained[0].dtype:
            raise InputError(
                f"outputs are {outputs.dtype} and parameters {trained[0].dtype}; compute both alike, without autocast"
            )
        weights = _weights(loss, outputs, targets)
        counts = not len(weights) or bool(weights.any())
        value = _value(loss, outputs, targets) if counts else 0 * outputs.sum()
        if not value.requires_grad:
            raise InputError(f"the loss {loss.name!r} does not depend on the outputs; take it from them, undetached")
        found = torch.autograd.grad(
            value,
            [*trained, *others],
            retain_graph=keep or kind is not None,
            allow_unused=True,
            materialize_grads=True,
        )
        if any(g.layout != torch.strided for g in found):
            raise InputError("a gradient is sparse; build the embedding with sparse=False")
        gradient, rest = torch.cat([g.reshape(-1) for g in found[: len(trained)]]), found[len(trained) :]
        if not all(map(all_finite, (gradient, *rest))):
            raise InputError("the gradient is not finite, the step was not made; check the data, or lower lr")
        factor = None
        if kind is not None:
            factor = _factor(outputs, targets, value, trained, loss, kind, recorder, calls, generator)
    return Batch(value.detach(), gradient, rest, factor, float((weights > 0).sum()), (targets,))


def join_batches(parts: list[Batch], loss: Loss) -> Batch:
    """The batch that holds the samples of all; InputError if none counts."""
    total = sum(part.count for part in parts)
    if not total:
        raise InputError("the loss counts no sample of this batch, the step was not made; leave such batches out")
    if len(parts) == 1:
        return parts[0]
    shares = [part.count / total if loss.reduction == "mean" else 1.0 for part in parts]
    factor = None
    if parts[0].factor is not None:
        factor = join_factors([part.factor for part in parts], [share**0.5 for share in shares])
    return Batch(
        sum(share * part.value for part, share in zip(parts, shares, strict=True)),
        sum(share * part.gradient for part, share in zip(parts, shares, strict=True)),
        tuple(
            sum(share * g for g, share in zip(found, shares, strict=True))
            for found in zip(*(part.companion for part in parts), strict=True)
        ),
        factor,
        total,
        tuple(targets for part in parts for targets in part.targets),
    )


def joined_value(results: Sequence[tuple[Tensor, Tensor]], loss: Loss) -> Tensor:
    """The loss of the joined batch of outputs and targets; InputError if it is not finite, or refuses them."""
    counts = [float((loss.weights(*result) > 0).sum()) for result in results]
    # A mean over no sample is not a number.
    values = [_value(loss, *result) if count else 0.0 for result, count in zip(results, counts, strict=True)]
    if loss.reduction == "sum":
        return sum(values)
    return sum(count * value for count, value in zip(counts, values, strict=True)) / max(sum(counts), 1)


def _weights(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        return loss.weights(outputs.detach(), targets)


def _value(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    try:
        value = loss.value(outputs, targets)
    except (RuntimeError, IndexError) as error:
        raise InputError(f"the loss refused outputs and targets: {str(error).splitlines()[0]}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise InputError("the loss must be one number; reduce it by its sum or mean")
    if not isfinite(float(value.detach())):
        raise InputError(
            f"the loss is {value.item()}, the step was not made; check the data, or lower lr or raise the damping"
        )
    return value


def _factor(
    outputs: Tensor,
    targets: Tensor,
    value: Tensor,
    trained: Sequence[Tensor],
    loss: Loss,
    kind: str,
    recorder: Recorder | None,
    calls: list | None,
    generator: torch.Generator,
) -> Factor:
    slope = None
    if kind == "empirical":
        (slope,) = torch.autograd.grad(value, outputs, retain_graph=True)
    with torch.no_grad():
        S = curvature_cotangents(kind, outputs, targets, loss, slope, generator)
    if recorder is None:
        return dense_factor(explicit_rows(outputs, trained, S))
    recorder.check(outputs, calls)
    with torch.no_grad():
        return recorder.factor(outputs, calls, S)

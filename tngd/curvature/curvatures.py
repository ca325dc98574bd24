"""Cotangents S of a batch's curvature G = RᵀR, R = S J with the Jacobian J; the N x N matrix G is never formed.

Row (k, c) of R is the gradient of (S z)_kc with respect to all N parameters, z the outputs. The cotangents S (b, q, d)
decide the kind of curvature, with w_k the weight of sample k in the loss and H its output Hessian:

    ggn        generalized Gauss-Newton: sqrt(w_k) times a factor of H                     q = rank of the factor
    mc         its Monte Carlo estimate: sqrt(w_k) times a random vector, second moment H  q = 1
    empirical  empirical Fisher: sqrt(w_k) times the loss gradient of the sample           q = 1
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from circuits.errors import InputError
from tngd.curvature.losses import Loss

CURVATURES = ("ggn", "mc", "empirical")
ROWS = 64  # samples whose rows are computed at once; without this bound, memory grows with the square of the batch size


def evaluated(closure: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(outputs, targets) from a closure; InputError if it returns anything else or the shapes do not match."""
    result = closure()
    if not (isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, Tensor) for part in result)):
        raise InputError(f"the closure must return (outputs, targets), two tensors, got {type(result).__name__}")
    outputs, targets = result
    if outputs.ndim != 2 or not outputs.requires_grad:
        raise InputError(
            f"outputs must be (batch, classes or 1) and depend on the parameters, got shape {tuple(outputs.shape)}"
        )
    many = len(targets) if targets.ndim else 0
    if many != len(outputs):
        raise InputError(
            f"there must be one target an output, got {many} targets for {len(outputs)} outputs; return the targets, "
            "not the loss"
        )
    return outputs, targets


def curvature_cotangents(
    kind: str, outputs: Tensor, targets: Tensor, loss: Loss, slope: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """S (b, q, d) of one kind of curvature; `slope` (b, d), the loss gradient at the outputs, is for empirical only.

    For mc, random numbers are drawn on the CPU, the same for every device; sample k takes row k of one draw.
    """
    outputs = outputs.detach()
    b, d = outputs.shape
    weights = loss.weights(outputs, targets)
    if kind == "empirical":
        inverse = torch.where(weights > 0, weights, 1).rsqrt()
        return (slope * inverse[:, None])[:, None, :]
    if kind == "mc" and loss.sampled is not None:
        uniform = torch.rand(b, d, generator=generator, dtype=outputs.dtype).to(outputs.device)
        S = _of_shape(loss, "sampled", loss.sampled(outputs, uniform), (b, d))[:, None, :]
    else:
        S = _of_shape(loss, "root", loss.root(outputs), (b, None, d))
    if kind == "mc" and loss.sampled is None:
        S = _normal(b, S.shape[1], generator, outputs)[:, None, :] @ S
    return S * weights.sqrt()[:, None, None]


def _of_shape(loss: Loss, what: str, found: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    """The value `found` that a loss returned; InputError unless it is a tensor of that shape, None for any size."""
    got = tuple(found.shape) if isinstance(found, Tensor) else ()
    if len(got) != len(shape) or any(n is not None and n != m for n, m in zip(shape, got, strict=True)):
        wanted = ", ".join("r" if n is None else str(n) for n in shape)
        raise InputError(f"{what} of the loss {loss.name!r} must return a tensor ({wanted}), got {got or type(found)}")
    return found


def _normal(b: int, q: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Standard normal numbers (b, q); unlike in torch.randn, a row does not depend on the number of rows after it."""
    uniform = torch.rand(b, q, generator=generator, dtype=torch.float64)
    return (2**0.5 * torch.erfinv((2 * uniform - 1).clamp(min=-1 + 2**-52))).to(like)


def curvature_factor(outputs: Tensor, parameters: Sequence[Tensor], loss: Loss) -> Tensor:
    """R (b r, N) of the ggn of a mean loss, from outputs (b, d) that still have their graph; the graph is kept."""
    return explicit_rows(outputs, parameters, loss.root(outputs.detach()) / len(outputs) ** 0.5)


def explicit_rows(outputs: Tensor, parameters: Sequence[Tensor], S: Tensor, names: Sequence[str] = ()) -> Tensor:
    """R (b q, N) for any graph, even one that mixes samples, by one backward pass a row: time grows with b².

    InputError, with the `names` of the parameters, if an operation has no batched (vmap) backward pass.
    """
    b, d = outputs.shape
    blocks = []
    for samples in torch.arange(b, device=outputs.device).split(ROWS):
        rows = torch.zeros(len(samples), S.shape[1], b, d, dtype=outputs.dtype, device=outputs.device)
        rows[torch.arange(len(samples), device=outputs.device), :, samples, :] = S[samples]
        try:
            gradients = torch.autograd.grad(
                outputs,
                parameters,
                grad_outputs=rows.reshape(-1, b, d),
                is_grads_batched=True,
                retain_graph=True,
                allow_unused=True,
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            which = ", ".join(names) or f"of shapes {', '.join(str(tuple(p.shape)) for p in parameters)}"
            raise InputError(
                f"no curvature for parameters {which}: an operation behind them has no batched backward pass; give "
                "them to a companion optimizer"
            ) from error
        count = len(samples) * S.shape[1]
        flat = [
            outputs.new_zeros(count, p.numel()) if g is None else g.reshape(count, -1)
            for g, p in zip(gradients, parameters, strict=True)
        ]
        blocks.append(torch.cat(flat, dim=1))
    return torch.cat(blocks)

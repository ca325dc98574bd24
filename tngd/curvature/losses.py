"""Losses with a known output Hessian H: the value, and for each sample a factor S with H = SᵀS.

`root(z)` returns S (b, r, d) for outputs z (b, d). For cross-entropy H = diag(p) - p pᵀ has rank d - 1, and with the
tail sums q_i = Σ_{j>i} p_j, q_0 = 1, its exact triangular factor is

    S_i = sqrt(p_i q_i / q_{i-1}) (e_i - Σ_{j>i} p_j/q_i e_j),   i = 1 … d - 1;

for binary labels H = diag p (1 - p), for the squared error H = 2 I, both divided by d with reduction "mean".
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from circuits.errors import InputError

SUM = 1e-3  # largest deviation of a sum of class probabilities from 1


@dataclass(frozen=True)
class Loss:
    """A loss of outputs (b, d) and targets, with the functions its curvature needs; users can define their own.

    `value(outputs, targets)`: the loss, a scalar: the sum over samples, or with reduction "mean" their mean.
    `root(outputs)`: S (b, r, d). `counted(targets)`: which samples count (b,); all if None. `sampled(outputs, u)`: a
    random vector (b, d) with second moment H from u (b, d), uniform in (0, 1); Sᵀ times normal numbers if None.
    """

    name: str
    value: Callable[[Tensor, Tensor], Tensor]
    root: Callable[[Tensor], Tensor]
    reduction: str = "mean"
    counted: Callable[[Tensor], Tensor] | None = None
    sampled: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self):
        if self.reduction not in ("mean", "sum"):
            raise InputError(f"a loss has one value, reduction 'mean' or 'sum', got {self.reduction!r}")

    def weights(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Weight (b,) of every sample in the loss: 0 where ignored, else 1 or 1 / number of counted samples."""
        b = len(outputs)
        if self.counted is None:
            return outputs.new_full((b,), 1 / b if self.reduction == "mean" else 1.0)
        mask = self.counted(targets)
        if not isinstance(mask, Tensor) or mask.shape != (b,):
            got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask)
            raise InputError(f"counted of the loss {self.name!r} must return a tensor ({b},), got {got}")
        mask = mask.to(outputs.dtype)
        return mask / mask.sum().clamp(min=1) if self.reduction == "mean" else mask


def cross_entropy(reduction: str = "mean", ignore_index: int = -100, label_smoothing: float = 0.0) -> Loss:
    """Softmax cross-entropy of class indices (b,) or class probabilities (b, d), as torch defines it.

    Label smoothing changes the gradient but not the Hessian; both are zero for ignored samples.
    """
    value = partial(
        functional.cross_entropy, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
    counted = partial(_labelled, ignore_index=ignore_index)
    return Loss("cross-entropy", value, _softmax_root, reduction, counted, _softmax_sampled)


def mean_squared_error(reduction: str = "mean") -> Loss:
    """Squared error Σ (z - y)² over the batch or, with "mean", that sum divided by b d; targets y (b, d)."""
    value, root = partial(_squared_error, reduction=reduction), partial(_flat_root, reduction=reduction)
    return Loss("mean squared error", value, root, reduction)


def logistic(reduction: str = "mean") -> Loss:
    """Binary cross-entropy of logits (b, d) and labels 0 or 1 of the same shape, or (b,) for one logit.

    As torch defines it: the sum over the batch or, with "mean", that sum divided by b d.
    """
    value, root = partial(_logistic_value, reduction=reduction), partial(_logistic_root, reduction=reduction)
    return Loss("logistic", value, root, reduction)


def as_loss(loss: Loss | torch.nn.Module) -> Loss:
    """A Loss from a torch criterion: CrossEntropyLoss, MSELoss, BCEWithLogitsLoss; InputError for any other."""
    if isinstance(loss, Loss):
        return loss
    name = type(loss).__name__
    if isinstance(loss, torch.nn.Module) and getattr(loss, "weight", None) is not None:
        raise InputError(f"{name} with class weights has no curvature here; drop `weight`, or give your own tngd Loss")
    known = _own_forward(loss)
    if known is torch.nn.CrossEntropyLoss:
        return cross_entropy(loss.reduction, loss.ignore_index, loss.label_smoothing)
    if known is torch.nn.MSELoss:
        return mean_squared_error(loss.reduction)
    if known is torch.nn.BCEWithLogitsLoss and loss.pos_weight is None:
        return logistic(loss.reduction)
    raise InputError(
        f"the curvature of {name} is not known; expected CrossEntropyLoss, MSELoss, BCEWithLogitsLoss without "
        "pos_weight, or a tngd.Loss with the root of its output Hessian"
    )


def _own_forward(loss: torch.nn.Module) -> type | None:
    """The torch criterion whose forward a loss has, itself or by inheritance; None if its forward is another."""
    known = (torch.nn.CrossEntropyLoss, torch.nn.MSELoss, torch.nn.BCEWithLogitsLoss)
    return next((each for each in known if isinstance(loss, each) and type(loss).forward is each.forward), None)


def _labelled(targets: Tensor, ignore_index: int) -> Tensor:
    if targets.ndim > 1:
        if len(targets) and float((targets.detach().sum(1) - 1).abs().max()) > SUM:
            raise InputError("class probabilities must add up to 1 for every sample; divide them by their sum")
        return torch.ones(len(targets), dtype=torch.bool, device=targets.device)
    return targets != ignore_index


def _softmax_root(outputs: Tensor) -> Tensor:
    d = outputs.shape[-1]
    if d == 1:
        return torch.zeros_like(outputs)[:, :, None]
    p = torch.softmax(outputs, dim=-1)
    tails = p.flip(-1).cumsum(-1).flip(-1)  # q_{i-1}, summed from the end: no cancellation
    before, after = tails[:, :-1], tails[:, 1:]
    tiny = torch.finfo(p.dtype).tiny
    scale = (p[:, :-1] * (after / before.clamp(min=tiny))).sqrt()
    shares = (p[:, None, :] / after.clamp(min=tiny)[:, :, None]).triu(1)
    return scale[:, :, None] * (torch.eye(d, dtype=p.dtype, device=p.device)[:-1] - shares)


def _softmax_sampled(outputs: Tensor, u: Tensor) -> Tensor:
    """The loss gradient p - e_y of a label y drawn from p, by inversion of the cumulative sums."""
    p = torch.softmax(outputs, dim=-1)
    y = (u[:, :1] * p.sum(-1, keepdim=True) > p.cumsum(-1)).sum(-1).clamp(max=p.shape[-1] - 1)
    return p - functional.one_hot(y, p.shape[-1])


def _squared_error(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    if targets.shape != outputs.shape:
        raise InputError(
            f"targets of a squared error must have the shape of the outputs, {tuple(outputs.shape)}, "
            f"got {tuple(targets.shape)}"
        )
    return functional.mse_loss(outputs, targets, reduction=reduction)


def _flat_root(outputs: Tensor, reduction: str) -> Tensor:
    b, d = outputs.shape
    eye = torch.eye(d, dtype=outputs.dtype, device=outputs.device)
    return ((2 / d if reduction == "mean" else 2) ** 0.5 * eye).expand(b, d, d)


def _logistic_value(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    if targets.numel() != outputs.numel():
        raise InputError(
            f"there must be one label a logit, (b, d) or for one logit (b,): expected {tuple(outputs.shape)}, got "
            f"{tuple(targets.shape)}"
        )
    return functional.binary_cross_entropy_with_logits(
        outputs, targets.reshape(outputs.shape).to(outputs.dtype), reduction=reduction
    )


def _logistic_root(outputs: Tensor, reduction: str) -> Tensor:
    # p (1 - p) without the cancellation of 1 - p.
    entries = (torch.sigmoid(outputs) * torch.sigmoid(-outputs)).sqrt()
    return torch.diag_embed(entries / outputs.shape[1] ** 0.5 if reduction == "mean" else entries)


CROSS_ENTROPY = cross_entropy()
LOGISTIC = logistic()

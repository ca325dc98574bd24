"""Curvatures of the last batches held together, as their mean, and the factor T under them.

One batch is a poor sample of the curvature, and its own gradient lies in it. So the device may hold the mean over the
last few batches whose curvature was taken, and T, a Kronecker product a layer, the running mean over many: what is
programmed is λI + M RᵀR Mᵀ, M = T⁻¹ (tngd.curvature.kronecker), in whose coordinates the gradient M g is uploaded and
the state y read as Mᵀ y. T is made anew with each of the first curvatures, then with every RENEWED-th; the device then
starts anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from tngd.curvature.factor import Factor, join_factors, packed, unpacked
from tngd.curvature.kronecker import Change, Metric, Product, averaged, metric_of, nearest_products
from tngd.optimizer.settings import Settings

RENEWED = 8  # curvatures from one T to the next
DECAY = 0.95  # weight of the running mean when the product of a new curvature comes in


@dataclass(frozen=True, eq=False)
class History:
    """Factors of the last batches, the oldest first; `joined`, their mean, is None once no step needs it."""

    window: tuple[Factor, ...]
    joined: Factor | None
    products: tuple[Product, ...] = ()
    metric: Metric | None = None
    taken: int = 0  # curvatures so far

    @property
    def uploaded(self) -> Factor:
        """The factor in the coordinates of the device, R Mᵀ."""
        return self.joined if self.metric is None else self.metric.factor(self.joined)


def remembered(
    history: History | None, factor: Factor, settings: Settings, shapes: Mapping[int, tuple[int, int]]
) -> History:
    """With the factor of a new batch; `shapes` (n, m) of the trained parameters by their offsets."""
    held = History((), None) if history is None else history
    window = (*held.window, factor)[-settings.history :]
    new = replace(held, window=window, joined=_mean(window), taken=held.taken + 1)
    if settings.precondition is None:
        return replace(new, products=(), metric=None)
    products = nearest_products(factor, shapes)
    products = products if not held.products else averaged(held.products, products, DECAY)
    due = held.taken < RENEWED or held.taken % RENEWED == 0
    return replace(new, products=products, metric=metric_of(products, settings.precondition) if due else held.metric)


def to_device(history: History, gradient: Tensor) -> Tensor:
    """M g, (N,)."""
    return gradient if history.metric is None else history.metric.upload(gradient)


def from_device(history: History, state: Tensor) -> Tensor:
    """Mᵀ y, (N,)."""
    return state if history.metric is None else history.metric.read(state)


def thinned(history: History, settings: Settings) -> History:
    """Without what a step that takes a new curvature will not use: the mean, and the oldest of a full window."""
    useless = max(0, len(history.window) + 1 - settings.history)
    return replace(history, window=history.window[useless:], joined=None)


def packed_history(history: History) -> dict[str, Any]:
    """Plain dictionaries and tensors, for a state_dict."""
    return {
        "window": [packed(factor) for factor in history.window],
        "joined": history.joined is not None,
        "products": [vars(product) | {"shape": list(product.shape)} for product in history.products],
        "changes": None
        if history.metric is None
        else [vars(change) | {"shape": list(change.shape)} for change in history.metric.changes],
        "taken": history.taken,
    }


def unpacked_history(content: dict[str, Any]) -> History:
    """The history that `packed_history` wrote."""
    window = tuple(unpacked(factor) for factor in content["window"])
    products = tuple(Product(**each | {"shape": tuple(each["shape"])}) for each in content["products"])
    changes = content["changes"]
    metric = changes and Metric(tuple(Change(**each | {"shape": tuple(each["shape"])}) for each in changes))
    return History(window, _mean(window) if content["joined"] else None, products, metric, content["taken"])


def _mean(window: tuple[Factor, ...]) -> Factor:
    return join_factors(list(window), [len(window) ** -0.5] * len(window))

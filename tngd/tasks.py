"""The small tasks of `tngd train`: data, model, budget and optimizers of each.

`fair` (or another data set by name): logistic regression with 8 parameters, one board. `digits`: a 64-24-10 network,
its curvature in 8 x 8 diagonal blocks on the copies. Step sizes and dampings are those of the lowest training loss in a
sweep over {1, 2, 3, 5} x 10^k on seeds that are not reported, for every method alike: benchmarks/step_sizes.py, with
its result beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from circuits.synthesis.fisher import DATA_SETS, fit_weights, load
from tngd.curvature.losses import CROSS_ENTROPY, LOGISTIC, Loss
from tngd.device.tiles import TileBoard
from tngd.optimizer.baselines import ExactNGD
from tngd.optimizer.tngd import TNGD

TEST_FRACTION = 0.2

Factory = Callable[[list[Tensor], TileBoard], torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class Task:
    """Data, model and budget of one comparison."""

    name: str
    features: Tensor  # (m, d)
    labels: Tensor  # (m,)
    model: Callable[[], torch.nn.Module]
    loss: Loss
    batch: int
    steps: int
    methods: tuple["Method", ...]


@dataclass(frozen=True)
class Method:
    """One optimizer in the comparison; `boards` is "none", "ideal" or "calibrated"."""

    name: str
    boards: str
    settings: dict[str, Any]
    make: Factory


def split_rows(task: Task, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows for testing and for training, drawn by the generator."""
    order = torch.randperm(len(task.features), generator=generator)
    held = round(TEST_FRACTION * len(order))
    return order[:held], order[held:]


def optimal_loss(task: Task, seed: int) -> float | None:
    """The smallest training loss a logistic regression can have on this seed's training rows, else None."""
    if task.loss is not LOGISTIC:
        return None
    _, rows = split_rows(task, torch.Generator().manual_seed(seed))
    weights = torch.tensor(fit_weights(task.features[rows].numpy(), task.labels[rows].numpy()))
    return float(task.loss.value(task.features[rows] @ weights[:, None], task.labels[rows]))


def _logistic(name: str) -> Task:
    data = load(name)
    features, labels = torch.tensor(data.features), torch.tensor(data.labels)
    settings = {"lr": 0.2, "damping": 0.01}  # one tile is the whole curvature: alike for exact NGD and TNGD
    return Task(
        name,
        features,
        labels,
        lambda: torch.nn.Linear(features.shape[1], 1, bias=False, dtype=torch.float64),
        LOGISTIC,
        batch=min(1024, len(labels)),
        steps=30,
        methods=_methods(LOGISTIC, sgd=1.0, adam=0.1, exact=settings, tiles=settings),
    )


def _digits() -> Task:
    features, labels = load_digits(return_X_y=True)

    def network() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(64, 24), torch.nn.Tanh(), torch.nn.Linear(24, 10)).double()

    return Task(
        "digits",
        torch.tensor(features / 16.0),
        torch.tensor(labels),
        network,
        CROSS_ENTROPY,
        batch=64,
        steps=100,
        methods=_methods(
            CROSS_ENTROPY,
            sgd=0.3,
            adam=0.05,
            exact={"lr": 0.5, "damping": 0.02},
            tiles={"lr": 0.05, "damping": 0.01},
        ),
    )


TASKS: dict[str, Callable[[], Task]] = {name: partial(_logistic, name) for name in DATA_SETS} | {"digits": _digits}


def _methods(
    loss: Loss, sgd: float, adam: float, exact: dict[str, float], tiles: dict[str, float]
) -> tuple[Method, ...]:
    def on_tiles(refresh: int) -> Factory:
        return lambda params, board: TNGD(params, board, refresh=refresh, loss=loss, **tiles)

    sgd_settings = {"lr": sgd, "momentum": 0.9 if loss is CROSS_ENTROPY else 0.0}
    fresh = tiles | {"refresh": 10}
    return (
        Method("SGD", "none", sgd_settings, lambda params, _: torch.optim.SGD(params, **sgd_settings)),
        Method("Adam", "none", {"lr": adam}, lambda params, _: torch.optim.Adam(params, lr=adam)),
        Method("exact NGD", "none", exact, lambda params, _: ExactNGD(params, loss=loss, **exact)),
        Method("TNGD, ideal device", "ideal", fresh, on_tiles(10)),
        Method("TNGD, calibrated copies", "calibrated", fresh, on_tiles(10)),
        Method("TNGD, calibrated copies, not preconditioned", "calibrated", tiles | {"refresh": 0}, on_tiles(0)),
    )

"""Training on real data: TNGD on calibrated copies beside SGD, Adam and exact NGD, same seeds and batches.

`fair` (or another data set by name): logistic regression with 8 parameters, one board. `digits`: a 64-24-10 network,
its curvature in 8 x 8 diagonal blocks on the copies. Seed s sets the initial weights, the batches, and which copy comes
first. Step sizes and dampings are those of the lowest training loss in a sweep over {1, 2, 3, 5} x 10^k on other seeds,
for every method alike: benchmarks/step_sizes.py, with its result beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from circuits.device import Device, device_hash, ideal_device
from circuits.errors import InputError
from circuits.fisher import DATA_SETS, fit_weights, load
from tngd.baselines import ExactNGD
from tngd.comparison import mean_and_error
from tngd.losses import CROSS_ENTROPY, LOGISTIC, Loss
from tngd.optimizer import TNGD
from tngd.tile_steps import TileStep
from tngd.tiles import TileBoard, tile_board
from tngd.trial import one_thread

SCHEMA = "tngd.training/1"
EVALUATIONS = 30  # points of a learning curve
TEST_FRACTION = 0.2

Progress = Callable[[int, int, str], None]
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


@dataclass(frozen=True, eq=False)
class Training:
    """One method on one seed: curve at the evaluated steps, final test figures, what the boards did."""

    train_loss: list[float]
    test_loss: float
    test_accuracy: float
    tiles: list[TileStep]


def train(
    name: str, device: Device, seeds: int = 3, steps: int | None = None, progress: Progress = lambda *_: None
) -> dict[str, Any]:
    """Run the comparison `name`; the task's entry in training.json.

    One thread, float64: the same device and seeds give the same numbers.
    """
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}")
    check_budget(seeds, steps)
    task = TASKS[name]()
    if len(device.board.cells) != 8:
        raise InputError(f"training uses 8 x 8 tiles, but the device has {len(device.board.cells)} cells")
    budget = steps or task.steps
    boards = {
        "calibrated": tile_board(device),
        "ideal": tile_board(ideal_device(device.board, len(device.copies))),
    }
    with one_thread():
        results = []
        for k, method in enumerate(task.methods):
            runs = []
            for seed in range(seeds):
                progress(k * seeds + seed, len(task.methods) * seeds, f"{name}: {method.name}, seed {seed}")
                runs.append(
                    train_once(task, method, boards.get(method.boards, boards["ideal"]).turned(seed), seed, budget)
                )
            results.append(_summary(method, runs))
        progress(len(task.methods) * seeds, len(task.methods) * seeds, f"{name}: done")
    return {
        "task": name,
        "model": str(task.model()),
        "parameters": sum(p.numel() for p in task.model().parameters()),
        "loss": task.loss.name,
        "batch": task.batch,
        "steps": budget,
        "seeds": seeds,
        "evaluated_at": _evaluated(budget),
        "optimal_train_loss": [_optimum(task, s) for s in range(seeds)] if task.loss is LOGISTIC else None,
        "device": device_hash(device),
        "methods": results,
    }


def check_budget(seeds: int, steps: int | None) -> None:
    """Raise InputError unless there is something to train: `steps` None is the task's own number."""
    if seeds < 1 or (steps is not None and steps < 1):
        given = f"--seeds {seeds}" + (f" --steps {steps}" if steps is not None else "")
        raise InputError(f"at least one seed and one step are needed, got {given}")


def train_once(task: Task, method: Method, board: TileBoard, seed: int, steps: int | None = None) -> Training:
    """Train one method on one seed, for the task's own number of steps unless another is given."""
    steps = steps or task.steps
    generator = torch.Generator().manual_seed(seed)
    test, training = _split(task, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.model()
    optimizer = method.make(list(model.parameters()), board)
    at = set(_evaluated(steps))
    curve, tiles = [], []
    for step in range(steps + 1):
        if step in at:
            curve.append(_loss(task, model, training)[0])
        if step < steps:
            batch = training[torch.randint(len(training), (task.batch,), generator=generator)]
            _step(task, model, optimizer, batch)
            if isinstance(optimizer, TNGD):
                tiles.append(optimizer.last)
    test_loss, accuracy = _loss(task, model, test)
    return Training(curve, test_loss, accuracy, tiles)


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


def _split(task: Task, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows for testing and for training."""
    order = torch.randperm(len(task.features), generator=generator)
    held = round(TEST_FRACTION * len(order))
    return order[:held], order[held:]


def _optimum(task: Task, seed: int) -> float:
    """The smallest training loss a logistic regression can have on this seed's training rows."""
    _, rows = _split(task, torch.Generator().manual_seed(seed))
    weights = torch.tensor(fit_weights(task.features[rows].numpy(), task.labels[rows].numpy()))
    return float(task.loss.value(task.features[rows] @ weights[:, None], task.labels[rows]))


def _step(task: Task, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
    features, labels = task.features[batch], task.labels[batch]
    if isinstance(optimizer, TNGD | ExactNGD):
        optimizer.step(lambda: (model(features), labels))
        return
    optimizer.zero_grad()
    task.loss.value(model(features), labels).backward()
    optimizer.step()


def _loss(task: Task, model: torch.nn.Module, rows: Tensor) -> tuple[float, float]:
    with torch.no_grad():
        outputs, labels = model(task.features[rows]), task.labels[rows]
        guess = outputs.argmax(dim=1) if outputs.shape[1] > 1 else outputs[:, 0] > 0
        accuracy = (guess == labels).double().mean()
        return float(task.loss.value(outputs, labels)), float(accuracy)


def _evaluated(steps: int) -> list[int]:
    return sorted({round(x) for x in np.linspace(0, steps, min(EVALUATIONS, steps) + 1)})


def _summary(method: Method, runs: list[Training]) -> dict[str, Any]:
    curves = np.array([run.train_loss for run in runs])
    tiles = [tile for run in runs for tile in run.tiles]
    summary = {
        "name": method.name,
        "boards": method.boards,
        "settings": method.settings,
        "train_loss": curves.tolist(),
        "final": {
            "train_loss": mean_and_error(curves[:, -1]),
            "test_loss": mean_and_error(np.array([run.test_loss for run in runs])),
            "test_accuracy": mean_and_error(np.array([run.test_accuracy for run in runs])),
        },
    }
    if tiles:
        summary["tiles"] = {
            "passive_fraction": float(np.mean([tile.passive for tile in tiles])),
            "unstable": int(sum(tile.unstable for tile in tiles)),
            "direction_deviation": float(np.mean([tile.deviation for tile in tiles])),
        }
    return summary

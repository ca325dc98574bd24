"""Small tasks of `tngd train`: TNGD on calibrated copies beside SGD, Adam and exact NGD, same seeds and batches.

`fair` (or another data set by name): logistic regression with 8 parameters, one board. `digits`: a 64-24-10 network,
its curvature in 8 x 8 diagonal blocks on the copies. Seed s sets the initial weights, the rows held out for testing,
the batches (drawn with replacement from the other rows), and which copy comes first.

Step sizes and dampings are those of the lowest training loss in a sweep over {1, 2, 3, 5} x 10^k on seeds that are not
reported, for every method alike: benchmarks/step_sizes.py, with its result beside it.

Results of all tasks gather in one training.json; an interrupted comparison goes on from its checkpoints.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import isfinite, nan
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from circuits.errors import InputError
from circuits.files import file_sha256, locked, provenance, read_record, refuse_existing, sha256, write_json
from circuits.model.device import Device, ideal_device
from circuits.model.device_file import device_hash, device_path, load_device
from circuits.parallel import Progress, silent
from circuits.synthesis.data_sets import fit_weights, load
from circuits.synthesis.options import DATA_SETS
from tngd.curvature.losses import CROSS_ENTROPY, LOGISTIC, Loss
from tngd.device.tiles import TileBoard, tile_board
from tngd.optimizer.baselines import ExactNGD
from tngd.optimizer.tngd import TNGD
from tngd.training.comparison import mean_and_error
from tngd.training.trial import Draws, Outcome, Trial, one_thread, run_trial, trial_hash
from tngd.training.workers import Pool, worker_processes

SCHEMA = "tngd.training/1"
EVALUATIONS = 30  # points of a learning curve
TILES = ("passive", "unstable", "deviation", "saturated", "clipped")  # figures of a step on tiles that are kept

TEST_FRACTION = 0.2

Factory = Callable[[list[Tensor], TileBoard], torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class TrainedTask:
    """One method on one seed: loss at the evaluated steps, final test figures, figures of the tiles.

    `tiles`, of a method on boards: means over the steps of the figures in a tngd.optimizer.tile_step.TileStep, but the
    total number of `unstable` tiles. `diverged` is the reason of a divergence, else None; figures after it are NaN.
    """

    train_loss: list[float]
    test_loss: float
    test_accuracy: float
    tiles: dict[str, float] | None
    diverged: str | None


def train(
    name: str,
    device: Device,
    seeds: int = 3,
    steps: int | None = None,
    progress: Progress = silent,
    kept: Path | None = None,
) -> dict[str, Any]:
    """Run the comparison `name`; return the task's entry in training.json.

    One thread, float64: the same device and seeds give the same numbers. `kept` is a folder for checkpoints: after an
    interrupted call the same call goes on from the checkpoints, and removes them at its end.
    """
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}")
    check_budget(seeds, steps)
    task = TASKS[name]()
    if len(device.board.cells) != 8:
        raise InputError(f"training uses 8 x 8 tiles, but the device has {len(device.board.cells)} cells")
    budget = steps or task.steps
    order = partial(ordered_trials, name, device, seeds, budget, kept)
    trials = order()
    counted, told = [0] * len(trials), Lock()

    def say(job: int, done: int, total: int, what: str) -> None:
        with told:
            counted[job] = done
            progress(sum(counted), len(trials) * total, what)

    pool, outcomes = Pool(len(trials)), {}
    steps_in_all = 0 if kept is None else budget * len(trials)
    with one_thread(), worker_processes(order, pool, steps_in_all, say) as wait:
        while (job := pool.take()) is not None:
            outcomes[job] = run_trial(*trials[job], partial(say, job))
            counted[job] = budget
        wait()
        for job in set(range(len(trials))) - set(outcomes):  # checkpoints of workers, and jobs left undone
            outcomes[job] = run_trial(*trials[job], partial(say, job))
    runs = [_trained(outcomes[job], trial) for job, (trial, _) in enumerate(trials)]
    results = [_summary(method, runs[k * seeds : (k + 1) * seeds]) for k, method in enumerate(task.methods)]
    _clear([file for _, file in trials if file])
    return {
        "task": name,
        "model": str(task.model()),
        "parameters": sum(p.numel() for p in task.model().parameters()),
        "loss": task.loss.name,
        "batch": task.batch,
        "steps": budget,
        "seeds": seeds,
        "evaluated_at": [0, *_evaluated(budget)],
        "optimal_train_loss": _optima(task, seeds),
        "device": device_hash(device),
        "methods": results,
    }


def ordered_trials(
    name: str, device: Device, seeds: int, steps: int, kept: Path | None
) -> list[tuple[Trial, Path | None]]:
    """All trials of a comparison, method by method, each with the path of its checkpoint."""
    task, own = TASKS[name](), device_hash(device)
    ideal = tile_board(ideal_device(device.board, len(device.copies)))
    boards = {"calibrated": tile_board(device)}
    trials = [
        task_trial(task, method, boards.get(method.boards, ideal).turned(seed), seed, steps, own)
        for method in task.methods
        for seed in range(seeds)
    ]
    return [(trial, kept and kept / f"{trial_hash(trial)[:16]}.npz") for trial in trials]


def check_budget(seeds: int, steps: int | None) -> None:
    """Raise InputError for no seed or no step; `steps` None is the task's own number of steps."""
    if seeds < 1 or (steps is not None and steps < 1):
        given = f"--seeds {seeds}" + (f" --steps {steps}" if steps is not None else "")
        raise InputError(f"at least one seed and one step are needed, got {given}")


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
    methods: tuple["TaskMethod", ...]


@dataclass(frozen=True)
class TaskMethod:
    """One optimizer in the comparison; `boards` is "none", "ideal" or "calibrated"."""

    name: str
    boards: str
    settings: dict[str, Any]
    make: Factory


def train_once(task: Task, method: TaskMethod, board: TileBoard, seed: int, steps: int | None = None) -> TrainedTask:
    """Train one method on one seed, for the task's own number of steps unless another is given."""
    trial = task_trial(task, method, board, seed, steps or task.steps)
    return _trained(run_trial(trial), trial)


def task_trial(
    task: Task, method: TaskMethod, board: TileBoard, seed: int, steps: int, device: str | None = None
) -> Trial:
    """The trial of one method on one seed; `device` is the hash of the board's device, for checkpoints."""
    generator = torch.Generator().manual_seed(seed)
    test, training = split_rows(task, generator)
    drawn = torch.randint(len(training), (steps, task.batch), generator=generator)
    return Trial(
        method.name,
        {
            "task": task.name,
            "settings": method.settings,
            "boards": method.boards,
            "device_sha256": device,
            "data_sha256": [sha256(part.double().numpy()) for part in (task.features, task.labels)],
        },
        seed,
        len(training),
        task.batch,
        epochs=1,
        model=task.model,
        forward=lambda model, rows: (model(task.features[training[rows]]), task.labels[training[rows]]),
        loss=task.loss,
        optimizer=lambda model: method.make(list(model.parameters()), board),
        evaluate=lambda model: _figures(task, model, {"train": training, "test": test}),
        draws=Draws(drawn, tuple(_evaluated(steps))),
    )


def _figures(task: Task, model: torch.nn.Module, sets: dict[str, Tensor]) -> dict[str, float]:
    """Loss and accuracy on sets of rows."""
    found = {}
    for name, rows in sets.items():
        outputs, labels = model(task.features[rows]), task.labels[rows]
        guess = outputs.argmax(dim=1) if outputs.shape[1] > 1 else outputs[:, 0] > 0
        found[f"{name}_loss"] = float(task.loss.value(outputs, labels))
        found[f"{name}_accuracy"] = float((guess == labels).double().mean())
    return found


def _optima(task: Task, seeds: int) -> list[float] | None:
    found = [optimal_loss(task, seed) for seed in range(seeds)]
    return None if None in found else found


def _evaluated(steps: int) -> list[int]:
    """Steps after which the losses are evaluated, besides the evaluation before the first step."""
    return sorted({round(x) for x in np.linspace(0, steps, min(EVALUATIONS, steps) + 1)} - {0})


def _trained(outcome: Outcome, trial: Trial) -> TrainedTask:
    records, steps = outcome.records, [0, *(record["steps"] for record in outcome.records)]
    curve = [record["train_loss"] for record in records] + [nan] * (1 + trial.records - len(records))
    last = {"test_loss": nan, "test_accuracy": nan} if outcome.diverged else records[-1]
    said = [record.get("device", {}) for record in records]
    means = None
    if "passive" in said[-1]:
        counts = np.diff(steps)
        sums = {key: float(sum(n * one.get(key, 0) for n, one in zip(counts, said, strict=True))) for key in TILES}
        means = {key: value / steps[-1] for key, value in sums.items()} | {"unstable": sums["unstable"]}
    return TrainedTask(curve, last["test_loss"], last["test_accuracy"], means, outcome.diverged)


def _summary(method: TaskMethod, runs: list[TrainedTask]) -> dict[str, Any]:
    """Entry of a method in training.json; means over the seeds that did not diverge."""
    finished = [run for run in runs if run.diverged is None]
    figures = {
        "train_loss": [run.train_loss[-1] for run in finished],
        "test_loss": [run.test_loss for run in finished],
        "test_accuracy": [run.test_accuracy for run in finished],
    }
    summary = {
        "name": method.name,
        "boards": method.boards,
        "settings": method.settings,
        "train_loss": [[value if isfinite(value) else None for value in run.train_loss] for run in runs],
        "final": {name: mean_and_error(values) for name, values in figures.items()} if finished else None,
    }
    if len(finished) < len(runs):
        summary["diverged"] = {str(seed): run.diverged for seed, run in enumerate(runs) if run.diverged}
    tiles = [run.tiles for run in runs if run.tiles]
    if tiles:
        summary["tiles"] = {
            "passive_fraction": float(np.mean([each["passive"] for each in tiles])),
            "unstable": round(sum(each["unstable"] for each in tiles)),
            "direction_deviation": float(np.mean([each["deviation"] for each in tiles])),
            "saturated": float(np.mean([each["saturated"] for each in tiles])),
            "clipped_fraction": float(np.mean([each["clipped"] for each in tiles])),
        }
    return summary


def _clear(files: list[Path]) -> None:
    """Remove checkpoints, and their folder unless it holds others."""
    for file in files:
        file.unlink(missing_ok=True)
    for folder in {file.parent for file in files}:
        with suppress(OSError):
            folder.rmdir()


def split_rows(task: Task, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows held out for testing and rows for training, drawn by the generator."""
    order = torch.randperm(len(task.features), generator=generator)
    held = round(TEST_FRACTION * len(order))
    return order[:held], order[held:]


def optimal_loss(task: Task, seed: int) -> float | None:
    """The smallest training loss of a logistic regression on this seed's training rows; None for other models."""
    if task.loss is not LOGISTIC:
        return None
    _, rows = split_rows(task, torch.Generator().manual_seed(seed))
    weights = torch.tensor(fit_weights(task.features[rows].numpy(), task.labels[rows].numpy()))
    return float(task.loss.value(task.features[rows] @ weights[:, None], task.labels[rows]))


def _logistic(name: str) -> Task:
    data = load(name)
    features, labels = torch.tensor(data.features), torch.tensor(data.labels)
    settings = {"lr": 0.2, "damping": 0.01}  # one tile holds the whole curvature: the same for exact NGD and TNGD
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
) -> tuple[TaskMethod, ...]:
    def on_tiles(refresh: int) -> Factory:
        return lambda params, board: TNGD(params, board, refresh=refresh, loss=loss, **tiles)

    sgd_settings = {"lr": sgd, "momentum": 0.9 if loss is CROSS_ENTROPY else 0.0}
    fresh = tiles | {"refresh": 10}
    return (
        TaskMethod("SGD", "none", sgd_settings, lambda params, _: torch.optim.SGD(params, **sgd_settings)),
        TaskMethod("Adam", "none", {"lr": adam}, lambda params, _: torch.optim.Adam(params, lr=adam)),
        TaskMethod("exact NGD", "none", exact, lambda params, _: ExactNGD(params, loss=loss, **exact)),
        TaskMethod("TNGD, ideal device", "ideal", fresh, on_tiles(10)),
        TaskMethod("TNGD, calibrated copies", "calibrated", fresh, on_tiles(10)),
        TaskMethod("TNGD, calibrated copies, not preconditioned", "calibrated", tiles | {"refresh": 0}, on_tiles(0)),
    )


def train_task_file(
    task: str,
    place: Path,
    out: Path | None = None,
    seeds: int = 3,
    steps: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train one task on a device (a file or a preset) and add the result to training.json.

    Without `out` training.json lies beside the device's file, and for a preset in the working folder. An interrupted
    call leaves checkpoints in `<name>.checkpoints` beside training.json, from which the same call goes on.
    """
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    device = load_device(place)
    path = out or place.parent / "training.json"
    refuse_existing(path, force=True)
    if task in _training_file(path)["tasks"] and not force:
        raise InputError(f"{path} holds {task} already; give --force to replace it, or another --out")
    result = train(task, device, seeds, steps, progress, path.with_suffix(".checkpoints"))
    result["provenance"] = provenance(
        device_file_sha256=file_sha256(device_path(place)), device_sha256=device_hash(device), seeds=seeds
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent, wait=True):  # another task may have come into the file meanwhile
        content = _training_file(path)
        content["tasks"][task] = result
        write_json(path, content)
    return result


def _training_file(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"schema": SCHEMA, "tasks": {}}
    return read_record(path, SCHEMA, "train", "choose another --out", ("tasks",))

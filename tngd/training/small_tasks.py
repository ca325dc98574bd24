"""The small tasks trained: TNGD on calibrated copies beside SGD, Adam and exact NGD, same seeds and batches.

Seed s sets the initial weights, the rows that are held for testing, the batches (drawn with replacement from the other
rows), and which copy comes first.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import isfinite, nan
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.files import sha256
from circuits.model.device import Device, ideal_device
from circuits.model.device_file import device_hash
from circuits.parallel import Progress, silent
from tngd.device.tiles import TileBoard, tile_board
from tngd.tasks import TASKS, Method, Task, optimal_loss, split_rows
from tngd.training.comparison import mean_and_error
from tngd.training.trial import Draws, Outcome, Trial, one_thread, run_trial, trial_hash
from tngd.training.workers import Pool, helpers

SCHEMA = "tngd.training/1"
EVALUATIONS = 30  # points of a learning curve
TILES = ("passive", "unstable", "deviation", "saturated", "clipped")  # of what a step on tiles says


@dataclass(frozen=True, eq=False)
class Training:
    """One method on one seed: loss at the evaluated steps, final test figures, what the boards did.

    `tiles`, of a method that works on boards: means over the steps of what a tngd.optimizer.tile_step.TileStep says, and the
    number of all `unstable` tiles. A seed that `diverged` says why, and has NaN where it did not come.
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
    """Run the comparison `name`; the task's entry in training.json.

    One thread, float64: the same device and seeds give the same numbers. `kept` is a folder for what an interrupted
    call has done; the same call goes on from there, and clears away what it left.
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
    with one_thread(), helpers(order, pool, 0 if kept is None else budget * len(trials), say) as wait:
        while (job := pool.take()) is not None:
            outcomes[job] = run_trial(*trials[job], partial(say, job))
            counted[job] = budget
        wait()
        for job in set(range(len(trials))) - set(outcomes):  # finished by a helper, or left undone
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
    """All trials of a comparison, method by method, and where each is kept."""
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
    """Raise InputError unless there is something to train: `steps` None is the task's own number."""
    if seeds < 1 or (steps is not None and steps < 1):
        given = f"--seeds {seeds}" + (f" --steps {steps}" if steps is not None else "")
        raise InputError(f"at least one seed and one step are needed, got {given}")


def train_once(task: Task, method: Method, board: TileBoard, seed: int, steps: int | None = None) -> Training:
    """Train one method on one seed, for the task's own number of steps unless another is given."""
    trial = task_trial(task, method, board, seed, steps or task.steps)
    return _trained(run_trial(trial), trial)


def task_trial(task: Task, method: Method, board: TileBoard, seed: int, steps: int, device: str | None = None) -> Trial:
    """One method on one seed; `device` is the hash of what the board is of, for checkpoints."""
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
    """Steps after which the losses are taken; they are before the first step, too."""
    return sorted({round(x) for x in np.linspace(0, steps, min(EVALUATIONS, steps) + 1)} - {0})


def _trained(outcome: Outcome, trial: Trial) -> Training:
    records, steps = outcome.records, [0, *(record["steps"] for record in outcome.records)]
    curve = [record["train_loss"] for record in records] + [nan] * (1 + trial.records - len(records))
    last = {"test_loss": nan, "test_accuracy": nan} if outcome.diverged else records[-1]
    said = [record.get("device", {}) for record in records]
    means = None
    if "passive" in said[-1]:
        counts = np.diff(steps)
        sums = {key: float(sum(n * one.get(key, 0) for n, one in zip(counts, said, strict=True))) for key in TILES}
        means = {key: value / steps[-1] for key, value in sums.items()} | {"unstable": sums["unstable"]}
    return Training(curve, last["test_loss"], last["test_accuracy"], means, outcome.diverged)


def _summary(method: Method, runs: list[Training]) -> dict[str, Any]:
    """A method in training.json; means are over the seeds that did not diverge."""
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
    """Remove checkpoints, and their folder unless others have theirs there."""
    for file in files:
        file.unlink(missing_ok=True)
    for folder in {file.parent for file in files}:
        with suppress(OSError):
            folder.rmdir()

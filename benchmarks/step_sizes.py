"""The sweep behind the step sizes and dampings of tngd.training.small_tasks: every method alike, on seeds that are not
reported.

Step sizes and dampings come from {1, 2, 3, 5} x 10^k; a method's choice is the pair with the lowest mean training loss
after the task's own number of steps. Run: `python benchmarks/step_sizes.py fair digits`. About ten minutes for both.
"""

import argparse
import itertools
import json

import numpy as np
import torch

from circuits.model.device import ideal_device
from circuits.synthesis.topology import build_board
from tngd.device.tiles import tile_board
from tngd.optimizer.baselines import ExactNGD
from tngd.optimizer.tngd import TNGD
from tngd.training.small_tasks import TASKS, TaskMethod, train_once

SEEDS = (100, 101, 102)
STEPS = {
    "fair": {"SGD": (0.5, 1, 2, 3), "Adam": (0.02, 0.03, 0.05, 0.1, 0.2), "exact NGD": (0.2, 0.3, 0.5, 1.0)},
    "digits": {
        "SGD": (0.05, 0.1, 0.2, 0.3, 0.5),
        "Adam": (0.005, 0.01, 0.02, 0.03, 0.05),
        "exact NGD": (0.1, 0.2, 0.3, 0.5),
        "TNGD": (0.02, 0.03, 0.05, 0.1, 0.2),
    },
}
DAMPINGS = {"fair": (1e-3, 1e-2), "digits": (0.01, 0.02, 0.03, 0.05, 0.1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", choices=list(STEPS))
    torch.set_num_threads(1)
    board = tile_board(ideal_device(build_board(8, "differential"), 3))
    for name in parser.parse_args().tasks:
        task = TASKS[name]()
        for method, steps in STEPS[name].items():
            second_order = method in ("exact NGD", "TNGD")
            results = {}
            for lr, damping in itertools.product(steps, DAMPINGS[name] if second_order else (None,)):
                make = factory(method, task.loss, lr, damping)
                losses = [train_once(task, TaskMethod(method, "ideal", {}, make), board, s) for s in SEEDS]
                results[lr, damping] = float(np.mean([run.train_loss[-1] for run in losses]))
            best = min(results, key=lambda pair: results[pair] if np.isfinite(results[pair]) else np.inf)
            rows = [{"lr": lr, "damping": damping, "loss": loss} for (lr, damping), loss in results.items()]
            print(json.dumps({"task": name, "method": method, "best": best, "sweep": rows}), flush=True)


def factory(method: str, loss, lr: float, damping: float | None):
    """How to make the optimizer of a method at one point of the sweep."""
    if method == "SGD":
        momentum = 0.9 if loss.name == "cross-entropy" else 0.0
        return lambda params, _: torch.optim.SGD(params, lr=lr, momentum=momentum)
    if method == "Adam":
        return lambda params, _: torch.optim.Adam(params, lr=lr)
    if method == "exact NGD":
        return lambda params, _: ExactNGD(params, lr=lr, damping=damping, loss=loss)
    return lambda params, board: TNGD(params, board, lr=lr, damping=damping, loss=loss)


if __name__ == "__main__":
    main()

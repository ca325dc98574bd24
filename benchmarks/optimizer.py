"""What a whole optimizer step costs, as a ratio to an Adam step, in CPU time of one thread; batch 64 of 28 x 28.

Each method is timed in turns with Adam on the same network and batch, so that a busy machine slows both: a round is
one cycle of the method (its refresh, or the 100 steps of K-FAC's inverses) and some Adam steps; the ratio is the median
over rounds of mean step over mean step. The networks: 6,218 parameters (two convolutions and two linear layers) and
LeNet-5, 61,706. The paper's own way: 500 Euler steps, each with a product of the curvature by autograd. Tiles are on
three copies with parts of ±1 %, in float32, their factors 10 steps old at most. Prints a JSON object for each result,
first the memory of a network of 1 million parameters.

Run: `OMP_NUM_THREADS=1 python benchmarks/optimizer.py [--rounds 15]`, about five minutes.
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from tiles import copies_of
from torch import nn

from circuits.synthesis.options import BoardOptions
from tngd.curvature.curvatures import curvature_cotangents
from tngd.curvature.losses import CROSS_ENTROPY
from tngd.device.tiles import tile_board
from tngd.optimizer.baselines import ConjugateNGD, ExactNGD, ggn_product
from tngd.optimizer.kfac import KFAC
from tngd.optimizer.tngd import TNGD
from tngd.training.mnist import NETWORKS

BATCH = 64
GOALS = {
    "mc": (2.5, 2.5),
    "ggn": (7.0, 11.0),
    "ggn, refresh 10": (2.0, 2.3),
    "tiles, mc": (4.0, 4.0),
    "tiles, mc, t = 5": (10.0, 10.0),
}


class EulerNGD:
    """The paper's own simulation: 500 Euler steps of the device, each with a product of the curvature."""

    def __init__(self, model: nn.Module, lr: float, damping: float = 0.01, steps: int = 500, dt: float = 0.1):
        self.parameters, self.lr, self.damping = list(model.parameters()), lr, damping
        self.steps, self.dt = steps, dt

    def step(self, closure: Callable) -> None:
        outputs, targets = closure()
        g = torch.autograd.grad(CROSS_ENTROPY.value(outputs, targets), self.parameters, retain_graph=True)
        S = curvature_cotangents("ggn", outputs, targets, CROSS_ENTROPY, None, None)
        product = ggn_product(outputs, self.parameters, S, self.damping)
        x = list(g)
        for _ in range(self.steps):
            x = [a - self.dt * (b - c) for a, b, c in zip(x, product(x), g, strict=True)]
        with torch.no_grad():
            for parameter, part in zip(self.parameters, x, strict=True):
                parameter.sub_(self.lr * part)


CAPACITIVE = tile_board(copies_of(BoardOptions()), dtype=torch.float32)
RESISTIVE = tile_board(copies_of(BoardOptions(coupling="resistive")), dtype=torch.float32)
METHODS: dict[str, tuple[Callable, int]] = {
    "mc": (lambda m: TNGD(m, lr=1e-3, curvature="mc"), 4),
    "mc, t = 50": (lambda m: TNGD(m, lr=1e-3, curvature="mc", time=50.0), 4),
    "empirical": (lambda m: TNGD(m, lr=1e-3, curvature="empirical"), 4),
    "ggn": (lambda m: TNGD(m, lr=1e-3), 2),
    "ggn, t = 50, 20 Lanczos steps": (lambda m: TNGD(m, lr=1e-3, time=50.0, lanczos=20), 2),
    "ggn, t = 50": (lambda m: TNGD(m, lr=1e-3, time=50.0), 2),
    "ggn, refresh 10": (lambda m: TNGD(m, lr=1e-3, refresh=10), 10),
    "ggn, refresh 10, t = 50": (lambda m: TNGD(m, lr=1e-3, refresh=10, time=50.0), 10),
    "tiles, mc": (lambda m: TNGD(m, CAPACITIVE, lr=1e-3, tile_curvature="mc"), 10),
    "tiles, mc, t = 5": (lambda m: TNGD(m, RESISTIVE, lr=1e-3, tile_curvature="mc", time=5.0), 10),
    "tiles, ggn": (lambda m: TNGD(m, CAPACITIVE, lr=1e-3), 10),
    "SGD": (lambda m: torch.optim.SGD(m.parameters(), lr=1e-3), 4),
    "K-FAC, factors 10, inverses 100": (lambda m: KFAC(m, lr=1e-4), 100),
    "10 conjugate-gradient steps": (lambda m: ConjugateNGD(m.parameters(), lr=1e-3), 1),
    "exact Woodbury, rows by autograd": (lambda m: ExactNGD(m.parameters(), lr=1e-3), 1),
    "500 Euler steps": (lambda m: EulerNGD(m, lr=1e-3), 1),
}
FEW = {"exact Woodbury, rows by autograd": 1, "500 Euler steps": 1}  # rounds of the slow ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = torch.randn(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))
    print(json.dumps(memory()), flush=True)
    costs: dict[tuple[str, int], float] = {}
    for k, build in enumerate(NETWORKS.values()):
        for name, (make, cycle) in METHODS.items():
            ratio, step, adam = cost(build, make, cycle, batch, FEW.get(name, rounds if cycle < 100 else 3))
            costs[name, k] = ratio
            result = {"parameters": count(build()), "method": name, "times_adam": round(ratio, 2)}
            result |= {"step_ms": round(1e3 * step, 2), "adam_ms": round(1e3 * adam, 2)}
            if name in GOALS:
                result |= {"goal": GOALS[name][k], "reached": ratio <= GOALS[name][k]}
            print(json.dumps(result), flush=True)
        slower = costs["500 Euler steps", k] / costs["ggn", k]
        print(json.dumps({"parameters": count(build()), "euler_over_ggn": round(slower, 1), "goal": 100}), flush=True)


def cost(build: Callable, make: Callable, cycle: int, batch: tuple, rounds: int) -> tuple[float, float, float]:
    """Median ratio to Adam, and median seconds a step of the method and of Adam."""
    model, other = build(), build()
    optimizer, adam = make(model), torch.optim.Adam(other.parameters(), lr=1e-3)
    x, y = batch

    def first_order(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    def second_order() -> None:
        if isinstance(optimizer, torch.optim.SGD):
            first_order(optimizer, model)
        else:
            optimizer.step(lambda: (model(x), y))

    results = []
    for k in range(rounds + (rounds > 1)):  # the first round warms up
        ours = timed(second_order, cycle)
        theirs = timed(lambda: first_order(adam, other), max(4, min(cycle, 20)))
        if k or rounds == 1:
            results.append((ours / theirs, ours, theirs))
    return tuple(np.median(results, axis=0).tolist())


def timed(call: Callable[[], None], times: int) -> float:
    """CPU seconds of this thread for one call."""
    start = time.thread_time()
    for _ in range(times):
        call()
    return (time.thread_time() - start) / times


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def memory() -> dict:
    """Peak memory of ggn steps on a network of a million parameters, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_million)


def _million() -> dict:
    torch.set_num_threads(1)
    model = nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256 * 9, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip
    x, y = torch.randn(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))
    optimizer = TNGD(model, lr=1e-3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    for _ in range(2):
        optimizer.step(lambda: (model(x), y))
    seconds = (time.thread_time() - start) / 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "parameters": count(model), "method": "ggn", "peak_GB": round(peak / 2**20, 2),
        "before_GB": round(before / 2**20, 2), "step_s": round(seconds, 2), "goal_GB": 4.0,
    }  # fmt: skip


if __name__ == "__main__":
    main()

"""How fast the exact engine is on one thread: many boards at once, and one long path of systems of 8 to 1,024 states.

Boards: 1,024 RLC boards of 8 cells, 16 states, each with a matrix of its own, 1,000 exact steps of 50 ns. Paths: 10,000
points of a drift with eigenvalues from 1 to 10 and noise alike, steps of 0.1. `prepare` makes the transition and the
noise factor, `paths` draws; beside it a plain loop over the steps, which does the same with torch's own products and
random numbers. Then stationary covariances and a likelihood. Prints a JSON object for each, with medians
of wall and processor time in ms, and the ratio of the goal, if there is one, to the latter. Run: `OMP_NUM_THREADS=1
python benchmarks/process.py`, half a minute; benchmarks/thermox.py sets the paths beside thermox.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch

from tngd.device.paths import Steps, prepare_steps, sample_paths
from tngd.device.process import Process, log_likelihood, stationary_covariance

SIZES = (8, 16, 64, 256, 1024)
BOARDS, CELLS, STEPS, STEP = 1024, 8, 1000, 5e-8
POINTS = 10_000
GOAL = 200.0  # ms, paths of the boards


def boards(dtype: torch.dtype, count: int = BOARDS) -> Process:
    """RLC boards of 1 nF, 10 µH and 1 kΩ with random matrices near the unit matrix, noise in v only."""
    W = 0.05 * torch.randn(count, CELLS, CELLS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    elastance = torch.linalg.inv(torch.eye(CELLS) + (W + W.mT) / 2) / 1e-9
    d = 2 * CELLS
    A, D = torch.zeros(count, d, d, dtype=torch.float64), torch.zeros(count, d, d, dtype=torch.float64)
    A[:, :CELLS, :CELLS], A[:, :CELLS, CELLS:] = elastance / 1e3, elastance / 1e-5
    A[:, CELLS:, :CELLS] = -torch.eye(CELLS)
    D[:, :CELLS, :CELLS] = 2 * elastance @ elastance * 2.5e-12 / 1e3
    return Process(A, D, torch.zeros(count, d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)[:CELLS]).to(
        dtype
    )


def spread(d: int, dtype: torch.dtype) -> Process:
    """Random orthogonal modes with rates from 1 to 10, D = 2 I: a drift that is normal."""
    W = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d))
    Q = torch.linalg.qr(W)[0]
    eye = torch.eye(d, dtype=torch.float64)
    A = Q * torch.linspace(1, 10, d, dtype=torch.float64) @ Q.T
    return Process(A, 2 * eye, torch.zeros(d, dtype=torch.float64), eye).to(dtype)


def timed(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Medians of wall and processor time [ms] after one run for warmth."""
    work()
    wall, cpu = [], []
    for _ in range(repeats):
        before = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - before[0])
        cpu.append(time.process_time() - before[1])
    return {"wall_ms": median(wall), "cpu_ms": median(cpu)}


def median(seconds: list[float]) -> float:
    return round(1e3 * sorted(seconds)[len(seconds) // 2], 3)


def draw(process: Process, steps: Steps) -> torch.Tensor:
    return sample_paths(steps, process.drift.new_zeros(process.drift.shape[-1]), 1)


def plainly(steps: Steps) -> torch.Tensor:
    """Paths as one writes them down: a batched product of the states and one of the noise, step by step."""
    turn, spread = steps.matrix[:, 0], steps.factor[:, 0]
    path = turn.new_empty(len(steps.times), *steps.drive[:, 0].shape, 1)
    path[0] = 0
    for k in range(1, len(path)):
        torch.baddbmm(spread @ torch.randn_like(path[0]), turn, path[k - 1], out=path[k])
    return path


def report(name: str, dtype: torch.dtype, work: Callable[[], object], repeats: int, **details: object) -> None:
    row = {"what": name, **details, "dtype": str(dtype).removeprefix("torch."), **timed(work, repeats)}
    print(json.dumps(row | against(row)), flush=True)


def against(row: dict) -> dict:
    """The goal of a row, if it has one, over its processor time."""
    if "goal_ms" not in row:
        return {}
    return {"ratio": round(row["goal_ms"] / row["cpu_ms"], 2), "reached": row["cpu_ms"] <= row["goal_ms"]}


def measure(sizes: list[int], repeats: int, dtype: torch.dtype) -> None:
    many, times = boards(dtype), STEP * torch.arange(STEPS + 1, dtype=torch.float64)
    steps = prepare_steps(many, times)
    counts = {"boards": BOARDS, "states": 2 * CELLS, "steps": STEPS}
    report("boards: prepare", dtype, lambda: prepare_steps(many, times), repeats, **counts)
    report("boards: paths", dtype, lambda: draw(many, steps), repeats, **counts, goal_ms=GOAL)
    report("boards: a plain loop", dtype, lambda: plainly(steps), max(3, repeats // 4), **counts)
    report("boards: stationary covariance", dtype, lambda: stationary_covariance(many), repeats, boards=BOARDS)
    for d in sizes:
        process, times = spread(d, dtype), 0.1 * torch.arange(POINTS, dtype=torch.float64)
        steps, few = prepare_steps(process, times), max(3, repeats // 4) if d > 256 else repeats
        report("path: prepare", dtype, lambda p=process, t=times: prepare_steps(p, t), few, states=d)
        report("path: draw", dtype, lambda p=process, s=steps: draw(p, s), few, states=d, points=POINTS)
    one, times = boards(dtype, 1), STEP * torch.arange(STEPS + 1, dtype=torch.float64)
    record = draw(one, prepare_steps(one, times))[..., :CELLS]
    report("likelihood", dtype, lambda: log_likelihood(one, times, record), repeats, states=2 * CELLS, readings=CELLS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.float64):
        measure(given.sizes, given.repeats, dtype)


if __name__ == "__main__":
    main()

"""The exact engine beside thermox (JAX) in one run: 10,000 points of one path, in float32, on one core, taking turns.

A drift on which both are right (normal, noise alike; benchmarks/process.py). thermox lives in a virtual environment of
its own, made on first use in the folder given by --env: nothing is installed in this one. Both start from the drift at
every call, so what is prepared is part of the time; thermox is compiled beforehand. A JSON object for each size with
medians of wall and processor time in ms. Then boards of 8 resonators, whose drift is not normal: how far the covariance
of the readings of a long path is from the exact one, in the Frobenius norm, with noise in the voltages only, as it is,
and with some in the fluxes too. Run: `OMP_NUM_THREADS=1 python benchmarks/thermox.py`, two minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# This file is also the worker inside the other environment, where there is no torch; here there is no jax.
WORKER = "--worker" in sys.argv
if WORKER:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import thermox
else:
    import numpy as np
    import torch
    from process import POINTS, SIZES, draw, median, spread
    from scipy.linalg import solve_continuous_lyapunov

    from tngd.device.paths import prepare_steps
    from tngd.device.process import Process

VERSION = "0.0.6"
CELLS, QUALITY, LONG = 8, 1.5, 100_000
ENVIRONMENT = Path(tempfile.gettempdir()) / "tngd-thermox"


def environment(folder: Path) -> Path:
    """The Python of an environment with thermox, made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"thermox=={VERSION}"], check=True)
    return python


def compare(python: Path, sizes: list[int], repeats: int) -> None:
    one_core()
    torch.set_num_threads(1)
    flags = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    # -P: this folder, where this file has the name of the package, is not on the worker's path.
    command = [python, "-P", __file__, "--worker"]
    with subprocess.Popen(command, env=os.environ | flags, stdin=-1, stdout=-1, text=True) as worker:
        for d in sizes:
            process, times = spread(d, torch.float32), 0.1 * torch.arange(POINTS, dtype=torch.float64)
            ask(worker, drift=process.drift.tolist(), points=POINTS)  # compiles
            ours, drawn, theirs = [], [], []
            draw(process, prepare_steps(process, times))
            for _ in range(repeats if d <= 256 else max(3, repeats // 4)):
                first = clocks()
                steps = prepare_steps(process, times)
                second = clocks()
                draw(process, steps)
                last = clocks()
                ours.append([b - a for a, b in zip(first, last, strict=True)])
                drawn.append([b - a for a, b in zip(second, last, strict=True)])
                theirs.append(ask(worker)["seconds"])
            print(json.dumps({"states": d, "points": POINTS, **row(ours, drawn, theirs)}), flush=True)
        for noise in (0.0, 0.5):
            print(json.dumps(errors(worker, noise)), flush=True)
        worker.stdin.close()


def errors(worker: subprocess.Popen, noise: float) -> dict:
    """Errors of the voltages' covariance over a path of resonators with this noise in the fluxes, ours and theirs."""
    A, D = resonators(noise)
    exact = solve_continuous_lyapunov(A, D)[:CELLS, :CELLS]
    process = Process(*(torch.tensor(part, dtype=torch.float32) for part in (A, D, np.zeros(len(A)), np.eye(len(A)))))
    path = draw(process, prepare_steps(process, torch.arange(LONG, dtype=torch.float64))).double().numpy()
    theirs = ask(worker, drift=A.tolist(), diffusion=D.tolist(), points=LONG, step=1.0)["covariance"]
    found = {"states": 2 * CELLS, "points": LONG, "noise_in_fluxes": noise}
    for name, covariance in (("tngd", np.cov(path.T)), ("thermox", np.array(theirs, dtype=float))):
        error = np.linalg.norm(covariance[:CELLS, :CELLS] - exact) / np.linalg.norm(exact)
        found[f"{name}_error"] = round(float(error), 4) if np.isfinite(error) else "not a number"
    return found


def resonators(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """A and D of coupled RLC cells in units of their own frequency."""
    W = 0.05 * np.random.default_rng(0).standard_normal((CELLS, CELLS))
    eye = np.eye(CELLS)
    E = np.linalg.inv(eye + (W + W.T) / 2)
    A = np.block([[E / QUALITY, E], [-eye, 0 * eye]])
    return A, np.block([[2 * E @ E / QUALITY, 0 * eye], [0 * eye, noise * eye]])


def clocks() -> tuple[float, float]:
    """Wall and processor time [s]; the second does not know of what else the machine does."""
    return time.perf_counter(), time.process_time()


def row(ours: list, drawn: list, theirs: list) -> dict[str, float]:
    found = {}
    for k, clock in enumerate(("wall", "cpu")):
        for name, seconds in (("tngd", ours), ("tngd_prepared", drawn), ("thermox", theirs)):
            found[f"{name}_{clock}_ms"] = median([pair[k] for pair in seconds])
        found[f"{clock}_ratio"] = round(found[f"thermox_{clock}_ms"] / found[f"tngd_{clock}_ms"], 2)
    return found


def ask(worker: subprocess.Popen, **question: object) -> dict:
    print(json.dumps(question), file=worker.stdin, flush=True)
    return json.loads(worker.stdout.readline())


def one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def answer() -> None:
    """The worker: a question with a drift compiles, one without runs and is timed; with a diffusion, a covariance."""
    path = jax.jit(lambda key, ts, x, A, b, D: thermox.sample(key, ts, x, A, b, D, associative_scan=True))
    given, key = (), jax.random.PRNGKey(0)
    for line in sys.stdin:
        question = json.loads(line)
        if question:
            A = jnp.array(np.array(question["drift"]), dtype=jnp.float32)
            D = jnp.array(np.array(question.get("diffusion", 2 * np.eye(len(A)))), dtype=jnp.float32)
            zero, step = jnp.zeros(len(A), dtype=jnp.float32), question.get("step", 0.1)
            given = step * jnp.arange(question["points"], dtype=jnp.float32), zero, A, zero, D
            path(key, *given).block_until_ready()
        before = clocks()
        found = path(key, *given).block_until_ready()
        told = {"seconds": [b - a for a, b in zip(before, clocks(), strict=True)]}
        if "diffusion" in question:
            told["covariance"] = np.cov(np.asarray(found, dtype=float).T).tolist()
        print(json.dumps(told), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", type=Path, default=ENVIRONMENT)
    parser.add_argument("--sizes", nargs="+", type=int, default=None if WORKER else SIZES)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        answer()
    else:
        compare(environment(given.env), given.sizes, given.repeats)


if __name__ == "__main__":
    main()

"""Exact paths of dx = -(A x - b) dt + N(0, D dt) on any grid of times, and draws of its stationary state.

From one time to the next x ← Φ x + β + F z with z ~ N(0, I) and F Fᵀ = Σ (tngd.device.transition): no step is too long.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Generator, Tensor

from circuits.errors import InputError
from tngd.device.paths import PIECE, Recursion, normals, product, run
from tngd.device.process import Gaussian, Process, reading_law, stationary_law, transition
from tngd.device.transition import noise_factor

ROUNDING = 16  # units in the last place of the latest time within which steps are equal


@dataclass(frozen=True, eq=False)
class Steps:
    """What paths on one grid of T times need, once for all: u distinct steps of processes with batch axes (…)."""

    times: Tensor  # (T,), s
    matrix: Tensor  # (…, u, d, d), Φ
    drive: Tensor  # (…, u, d), β
    factor: Tensor  # (…, u, d, d), F
    which: Tensor  # (T - 1,), which of the u steps


def prepare_steps(process: Process, times: Tensor | Sequence[float]) -> Steps:
    """Transitions and noise factors of a process over a grid of times (T,) [s], increasing.

    Equal steps, equal to rounding, share one; then paths are fast. Memory grows with the number of distinct steps.
    InputError if the times do not increase or the diffusion is not positive semidefinite.
    """
    times = torch.as_tensor(times, dtype=torch.float64)
    distinct, which = distinct_steps(times)
    over = transition(process, distinct)
    return Steps(times, over.matrix, over.drive, noise_factor(over.covariance), which)


def distinct_steps(times: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct steps (u,) [s] of times (T,), which comes when (T - 1,); InputError if the times do not increase."""
    if times.ndim != 1 or len(times) < 2:
        raise _not_times(times)
    steps = times.diff()
    least, most = (float(step) for step in steps.aminmax())
    if not least > 0 or not most < inf:
        if not bool(torch.isfinite(times).all()):
            raise _not_times(times)
        raise InputError(f"expected increasing times, got a step of {least:g} s at {int(steps.argmin())}")
    close = ROUNDING * torch.finfo(times.dtype).eps * max(abs(float(times[0])), abs(float(times[-1])))
    if most - least <= close:
        return (times[-1:] - times[:1]) / len(steps), torch.zeros(len(steps), dtype=torch.long)
    order = steps.argsort()
    jumps = steps[order].diff() > close
    which = torch.empty_like(order)
    which[order] = torch.cat([torch.zeros(1, dtype=torch.long), jumps.cumsum(0)])
    count = torch.bincount(which)
    return torch.zeros(len(count), dtype=times.dtype).index_add_(0, which, steps) / count, which


def paths(steps: Steps, start: Tensor, seed: int | Generator, samples: int | None = None) -> Tensor:
    """Exact paths of the state, (…, T, d), the first state `start` (…, d); with `samples` (…, samples, T, d).

    A start has the batch axes of the process, then one for samples or none; fewer axes broadcast. The same seed, or
    generator (on the device of the process) in the same state, gives the same bytes.
    """
    batch, d = steps.matrix.shape[:-3], steps.matrix.shape[-1]
    several = () if samples is None else (samples,)
    if samples is not None and start.ndim == len(batch) + 1:
        start = start[..., None, :]
    path = _room(steps.matrix, (*batch, *several, len(steps.times), d))
    path[..., 0, :] = start
    flat = path.view(-1, samples or 1, len(steps.times), d)
    fill = normals(path, generator_of(seed, path))
    parts = [part.reshape(-1, *part.shape[len(batch) :]) for part in (steps.matrix, steps.drive, steps.factor)]
    if steps.matrix.shape[-3] == 1:
        run(Recursion(*(part[:, 0] for part in parts)), flat, fill)
        return path
    for k, step in enumerate(steps.which.tolist()):
        run(Recursion(*(part[:, step] for part in parts)), flat[:, :, k : k + 2], fill)
    return path


def stationary_draws(process: Process, samples: int, seed: int | Generator) -> Tensor:
    """Independent draws of the stationary state, (…, samples, d)."""
    return draws_of(stationary_law(process), samples, seed)


def reading_draws(process: Process, samples: int, seed: int | Generator) -> Tensor:
    """Independent draws of the stationary readings, (…, samples, n); less work than those of the state."""
    return draws_of(reading_law(process, stationary_law(process)), samples, seed)


def draws_of(law: Gaussian, samples: int, seed: int | Generator) -> Tensor:
    """Independent draws of a normal law, (…, samples, k)."""
    batch, k = law.mean.shape[:-1], law.mean.shape[-1]
    factor = noise_factor(law.covariance).mT.expand(*batch, k, k).reshape(-1, k, k)
    found = _room(law.mean, (*batch, samples, k))
    flat = found.view(-1, samples, k)
    fill = normals(found, generator_of(seed, found))
    # So many at a time that their normal numbers stay in the cache until they are used.
    rows = max(PIECE // max(len(factor) * k, 1), 1)
    z = found.new_empty(len(factor), min(rows, samples), k)
    for part in flat.split(rows, dim=1):
        many = part.shape[1]
        own = z if many == z.shape[1] else z.view(-1)[: len(factor) * many * k].view(len(factor), many, k)
        product(fill(own), factor, part)
    return found if not bool(law.mean.count_nonzero()) else found.add_(law.mean[..., None, :])


def generator_of(seed: int | Generator, like: Tensor) -> Generator:
    """The generator itself, or a new one with this seed on the device of `like`."""
    return seed if isinstance(seed, Generator) else Generator(like.device).manual_seed(seed)


def _not_times(times: Tensor) -> InputError:
    return InputError(f"expected two or more finite times in one row, got shape {tuple(times.shape)}")


def _room(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An empty tensor of the precision and on the device of another."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    # Numpy asks the system for huge pages, which halves the time it takes to touch a large array first.
    return torch.from_numpy(np.empty(shape, dtype=torch.empty(0, dtype=like.dtype).numpy().dtype))

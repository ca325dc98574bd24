"""One training run of one optimizer, epoch by epoch, kept so that an interrupted run goes on bit for bit.

Epoch e of seed s visits the samples in an order that s and e alone decide, in batches of b; what is left over at the
end of an order is left out. Random numbers that the model draws (dropout) start anew from s and e in every epoch too.

    trial = Trial("Adam", {"lr": 1e-3}, seed=0, samples=len(x), batch=64, epochs=10, model=network,
                  forward=lambda model, rows: (model(x[rows]), y[rows]), loss=CROSS_ENTROPY,
                  optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=1e-3), evaluate=figures)
    outcome = run_trial(trial, Path("adam-0.npz"))
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from circuits.errors import InputError
from tngd.baselines import ConjugateNGD, ExactNGD
from tngd.checkpoint import read_checkpoint, write_checkpoint
from tngd.kfac import KFAC
from tngd.losses import Loss
from tngd.optimizer import TNGD

NATURAL = (TNGD, ExactNGD, ConjugateNGD, KFAC)  # take outputs and targets, and differentiate themselves
REPORTED = 25  # steps between two words of progress
STREAMS = {"order": 0, "model": 1}

Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, what: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, eq=False)
class Trial:
    """What is trained, on what, by what.

    `name` and `settings` (JSON) say what the trial is: a checkpoint of others is refused, so settings name everything
    that the callables below have in them (data, network, step sizes, device).
    `model()` makes the network, called under the seed. `forward(model, rows)`: outputs (b, d) and targets of the
    samples with these numbers (b,). `optimizer(model)`: torch's own, or one of TNGD, ExactNGD, ConjugateNGD, KFAC.
    `evaluate(model)`: figures by name, called before the first epoch and after every one, in evaluation mode and
    without gradients; how many samples it looks at is its own affair.
    """

    name: str
    settings: dict[str, Any]
    seed: int
    samples: int
    batch: int
    epochs: int
    model: Callable[[], nn.Module]
    forward: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
    loss: Loss
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    evaluate: Callable[[nn.Module], dict[str, float]]

    def __post_init__(self):
        if min(self.batch, self.epochs) < 1 or self.samples < self.batch:
            raise InputError(
                f"expected one epoch or more of batches of one sample or more, no larger than the training set, got "
                f"{self.epochs} epochs of batches of {self.batch} from {self.samples} samples"
            )

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        return self.samples // self.batch

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two trials the same."""
        own = {name: getattr(self, name) for name in ("name", "settings", "seed", "samples", "batch", "epochs")}
        return own | {"loss": self.loss.name}


@dataclass(frozen=True, eq=False)
class Outcome:
    """Records of epochs 0 (before training) to the last, the trained model, and why it stopped early, else None.

    A record has `epoch`, `steps` made so far, `cpu_s` and `wall_s` of this epoch's steps alone (no evaluation),
    `batch_loss`, its mean loss before a step, `device`: means over its steps of what TNGD says in `last`, and the
    figures of `evaluate`.
    """

    records: list[dict[str, Any]]
    model: nn.Module
    diverged: str | None


def run_trial(trial: Trial, checkpoint: Path | None = None, progress: Progress = silent) -> Outcome:
    """Train; `checkpoint` (.npz) is written after every epoch, and where it exists the run goes on from there.

    A loss, or a figure, that is not finite, and from the second step on a step that the optimizer refuses, end the
    trial as `diverged`. InputError for a checkpoint of another trial. `progress(done, total, what)` counts steps.
    """
    with torch.random.fork_rng():
        torch.manual_seed(trial.seed)
        model = trial.model()
        optimizer = trial.optimizer(model)
        kept = None if checkpoint is None else read_checkpoint(checkpoint, trial.identity)
        if kept is None:
            records, diverged = [{"epoch": 0, "steps": 0, "cpu_s": 0.0, "wall_s": 0.0} | _figures(trial, model)], None
        else:
            records, diverged = kept["records"], kept["diverged"]
            _restore(model, kept["model"])
            optimizer.load_state_dict(kept["optimizer"])
        while not diverged and len(records) <= trial.epochs:
            record, diverged = _epoch(trial, len(records), model, optimizer, progress)
            if record is not None:
                records = [*records, record]
            if checkpoint is not None:
                state = {"records": records, "diverged": diverged, "model": _trained(model)}
                write_checkpoint(checkpoint, trial.identity, state | {"optimizer": optimizer.state_dict()})
    return Outcome(records, model, diverged)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: the same digits everywhere, and CPU seconds that say how much work it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def batch_order(seed: int, epoch: int, samples: int, batch: int) -> Tensor:
    """Sample numbers of the batches of one epoch, (samples // batch, batch)."""
    generator = torch.Generator().manual_seed(_stream(seed, epoch, "order"))
    order = torch.randperm(samples, generator=generator)
    return order[: samples // batch * batch].reshape(-1, batch)


def _epoch(
    trial: Trial, epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> tuple[dict[str, Any] | None, str | None]:
    """The record of one epoch, or None and what went wrong."""
    torch.manual_seed(_stream(trial.seed, epoch, "model"))
    total, done = trial.epochs * trial.steps, (epoch - 1) * trial.steps
    losses, said = [], []
    cpu, wall = time.process_time(), time.perf_counter()
    for rows in batch_order(trial.seed, epoch, trial.samples, trial.batch):
        try:
            losses.append(_step(trial, model, optimizer, rows))
        except (InputError, torch.linalg.LinAlgError) as error:
            if done == 0:
                raise  # nothing can have diverged before the first step: the trial itself is wrong
            return None, f"epoch {epoch}: {error}"
        if not isfinite(losses[-1]):
            return None, f"epoch {epoch}: the loss is {losses[-1]}"
        said.append(getattr(optimizer, "last", None))
        done += 1
        if done % REPORTED == 0:
            progress(done, total, f"{trial.name}, seed {trial.seed}")
    spent = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    record = {"epoch": epoch, "steps": done, **spent, "batch_loss": float(np.mean(losses))}
    if said[0] is not None:
        record["device"] = _means(said)
    figures = _figures(trial, model)
    progress(done, total, f"{trial.name}, seed {trial.seed}")
    if not all(map(isfinite, figures.values())):
        return None, f"epoch {epoch}: {', '.join(k for k, v in figures.items() if not isfinite(v))} is not finite"
    return record | figures, None


def _step(trial: Trial, model: nn.Module, optimizer: torch.optim.Optimizer, rows: Tensor) -> float:
    if isinstance(optimizer, NATURAL):
        return float(optimizer.step(lambda: trial.forward(model, rows)))
    optimizer.zero_grad()
    value = trial.loss.value(*trial.forward(model, rows))
    value.backward()
    optimizer.step()
    return float(value.detach())


def _figures(trial: Trial, model: nn.Module) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        figures = {name: float(value) for name, value in trial.evaluate(model).items()}
    model.train()
    return figures


def _means(said: list[Any]) -> dict[str, float]:
    """Means of all numbers in what the device said at every step."""
    rows = [asdict(each) for each in said if is_dataclass(each)]
    found: dict[str, float] = {}
    for name in rows[0] if rows else ():
        numbers = [float(row[name]) for row in rows if isinstance(row[name], int | float)]
        if numbers:
            found[name] = float(np.mean(numbers))
    return found


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and buffers; frozen parameters come from the factory again."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return parameters | dict(model.named_buffers())


def _restore(model: nn.Module, content: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in _trained(model).items():
            tensor.copy_(content[name])


def _stream(seed: int, epoch: int, purpose: str) -> int:
    return int(np.random.SeedSequence((seed, epoch, STREAMS[purpose])).generate_state(1, np.uint64)[0])

"""One training run of one optimizer with records and checkpoints: an interrupted run goes on bit for bit.

Epoch e of seed s visits the samples in an order set by s and e alone, in batches of b; samples that do not fill a last
batch are left out. After every epoch there is a record, and the random numbers of the model (dropout) start anew from s
and e. A trial may instead give the batches of all its steps, and the steps that end in a record.

    trial = Trial("Adam", {"lr": 1e-3}, seed=0, samples=len(x), batch=64, epochs=10, model=network,
                  forward=lambda model, rows: (model(x[rows]), y[rows]), loss=CROSS_ENTROPY,
                  optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=1e-3), evaluate=figures)
    outcome = run_trial(trial, Path("adam-0.npz"))

A checkpoint is one .npz without pickled objects: tensors as arrays, everything else as one array of JSON. The file is
written in one step, so no reader sees the tensors of one epoch with the records of another.
"""

import contextlib
import ctypes
import io
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from circuits.errors import InputError
from circuits.files import sha256, write_npz
from circuits.parallel import Progress, silent
from tngd.curvature.losses import Loss
from tngd.optimizer.baselines import ConjugateNGD, ExactNGD
from tngd.optimizer.kfac import KFAC
from tngd.optimizer.tngd import TNGD

NATURAL = (TNGD, ExactNGD, ConjugateNGD, KFAC)  # their step takes a function of outputs and targets, and differentiates
REPORTED = 25  # steps between two calls of progress
SCHEDULES: dict[str, Callable[[float], float]] = {"constant": lambda s: 1.0, "cosine": lambda s: (1 + cos(pi * s)) / 2}
STREAMS = {"order": 0, "model": 1}

SCHEMA = "tngd.checkpoint/1"
MALLOC_OPTIONS = (-1, -3)  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
MOST_KEPT = 2**30  # bytes of a block, and at the end of the heap


@dataclass(frozen=True, eq=False)
class Draws:
    """Batches in place of whole epochs: `rows` (steps, batch) of sample numbers, and the steps that end in a record.

    InputError unless `recorded` are steps in order, the last of them the end.
    """

    rows: Tensor
    recorded: tuple[int, ...]

    def __post_init__(self):
        ordered = all(one < other for one, other in itertools.pairwise((0, *self.recorded)))
        if not ordered or self.recorded[-1:] != (len(self.rows),):
            raise InputError(
                f"expected records after steps from 1 up to the last one, {len(self.rows)}, got {self.recorded}"
            )


@dataclass(frozen=True, eq=False)
class Trial:
    """Network, data, optimizer and budget of one training run.

    `name` and `settings` (JSON) identify the trial: a checkpoint of another trial is refused, so the settings must name
    everything on which the callables below depend (data, network, step sizes, device).
    `model()` makes the network, called under the seed. `forward(model, rows)`: outputs (b, d) and targets of the
    samples with these numbers (b,). `optimizer(model)`: one of torch's own, or TNGD, ExactNGD, ConjugateNGD, KFAC.
    `evaluate(model)`: figures by name on any samples, called before the first step and for every record, in evaluation
    mode and without gradients. `draws`: the batches of a single epoch. `schedule`: "constant", or "cosine", which
    multiplies every lr by (1 + cos πs)/2 at the share s of all steps.
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
    draws: Draws | None = None
    schedule: str = "constant"

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if min(self.batch, self.epochs) < 1 or (self.draws is None and self.samples < self.batch):
            raise InputError(
                f"expected one epoch or more of batches of one sample or more, no larger than the training set, got "
                f"{self.epochs} epochs of batches of {self.batch} from {self.samples} samples"
            )
        if self.draws is not None and (self.epochs, self.batch) != (1, self.draws.rows.shape[1]):
            raise InputError(
                f"given batches are one epoch of their own size, got {self.epochs} epochs of batches of {self.batch} "
                f"with {tuple(self.draws.rows.shape)} sample numbers"
            )

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return self.samples // self.batch if self.draws is None else len(self.draws.rows)

    @property
    def records(self) -> int:
        """Number of records, without the one before the first step."""
        return self.epochs if self.draws is None else len(self.draws.recorded)

    @property
    def identity(self) -> dict[str, Any]:
        """Values that identify the trial: trials with equal values are the same."""
        own = {name: getattr(self, name) for name in ("name", "settings", "seed", "samples", "batch", "epochs")}
        own |= {"loss": self.loss.name}
        if self.draws is not None:
            own["draws"] = {"sha256": sha256(self.draws.rows.numpy()), "recorded": list(self.draws.recorded)}
        return own if self.schedule == "constant" else own | {"schedule": self.schedule}

    def batches(self, record: int) -> tuple[int, Tensor]:
        """The number of steps before a record (counted from 1), and the sample numbers (steps, b) of its own steps."""
        if self.draws is None:
            return (record - 1) * self.steps, batch_order(self.seed, record, self.samples, self.batch)
        start, end = (0, *self.draws.recorded)[record - 1 : record + 1]
        return start, self.draws.rows[start:end]

    def place(self, record: int, done: int) -> str:
        """Name of the epoch or step in messages, for a step of this record after `done` steps."""
        return f"epoch {record}" if self.draws is None else f"step {done + 1}"


@dataclass(frozen=True, eq=False)
class Outcome:
    """Records from the one before training to the last, the trained model, and the reason of a divergence, else None.

    A record has `epoch` (not with given batches), `steps` made so far, the figures of `evaluate`, and, of the steps
    since the previous record, `cpu_s` and `wall_s` (without evaluation), `batch_loss` (mean of the losses before each
    step) and `device` (means of the numbers in `last` of TNGD).
    """

    records: list[dict[str, Any]]
    model: nn.Module
    diverged: str | None


def run_trial(trial: Trial, checkpoint: Path | None = None, progress: Progress = silent) -> Outcome:
    """Train; `checkpoint` (.npz) is written after every record, and an existing checkpoint is continued.

    A loss or a figure that is not finite, and from the second step on an error of the optimizer's step, end the trial
    as `diverged`. InputError for a checkpoint of another trial. `progress(done, total, what)` counts steps.
    """
    with torch.random.fork_rng():
        torch.manual_seed(trial.seed)
        model = trial.model()
        optimizer = trial.optimizer(model)
        rates = [group["lr"] for group in _groups(optimizer)]  # before a checkpoint restores those of its last step
        kept = None if checkpoint is None else read_checkpoint(checkpoint, trial.identity)
        if kept is None:
            records = [_numbered(trial, 0) | {"steps": 0, "cpu_s": 0.0, "wall_s": 0.0} | _figures(trial, model)]
            diverged = None
        else:
            records, diverged = kept["records"], kept["diverged"]
            _restore(model, kept["model"])
            optimizer.load_state_dict(kept["optimizer"])
        while not diverged and len(records) <= trial.records:
            record, diverged = _stretch(trial, len(records), model, optimizer, rates, progress)
            if record is not None:
                records = [*records, record]
            if checkpoint is not None:
                state = {"records": records, "diverged": diverged, "model": _trained(model)}
                write_checkpoint(checkpoint, trial.identity, state | {"optimizer": optimizer.state_dict()})
    return Outcome(records, model, diverged)


def trial_hash(trial: Trial) -> str:
    """SHA-256 of the identity of a trial."""
    return sha256(json.dumps(trial.identity, sort_keys=True))


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch in one thread: the same digits on every machine, and CPU seconds that measure the work."""
    _keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors instead of handing it back to the system: a third of the time.

    Other C libraries know no `mallopt`; there this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        for option in MALLOC_OPTIONS:
            libc.mallopt(option, MOST_KEPT)


def batch_order(seed: int, epoch: int, samples: int, batch: int) -> Tensor:
    """Sample numbers of all batches of one epoch, (samples // batch, batch)."""
    generator = torch.Generator().manual_seed(_stream(seed, epoch, "order"))
    order = torch.randperm(samples, generator=generator)
    return order[: samples // batch * batch].reshape(-1, batch)


def _stretch(
    trial: Trial,
    number: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rates: list[float],
    progress: Progress,
) -> tuple[dict[str, Any] | None, str | None]:
    """Make the steps up to a record: the record, or None, and the reason of a divergence, else None."""
    torch.manual_seed(_stream(trial.seed, number, "model"))
    total, losses, said, spent = trial.epochs * trial.steps, [], [], np.zeros(2)
    done, batches = trial.batches(number)
    for rows in batches:
        for group, lr in zip(_groups(optimizer), rates, strict=True):
            group["lr"] = lr * SCHEDULES[trial.schedule](done / total)
        start = _clocks()
        try:
            losses.append(_step(trial, model, optimizer, rows))
        except (InputError, torch.linalg.LinAlgError) as error:
            if done == 0:
                raise  # before the first step nothing has diverged: the trial itself is wrong
            return None, f"{trial.place(number, done)}: {error}"
        spent += _clocks() - start
        if not isfinite(losses[-1]):
            return None, f"{trial.place(number, done)}: the loss is {losses[-1]}"
        said.append(_numbers(getattr(optimizer, "last", None)))
        done += 1
        if done % REPORTED == 0:
            progress(done, total, f"{trial.name}, seed {trial.seed}")
    times = {"cpu_s": float(spent[0]), "wall_s": float(spent[1])}
    record = _numbered(trial, number) | {"steps": done, **times, "batch_loss": float(np.mean(losses))}
    if any(said):
        names = dict.fromkeys(name for each in said for name in each)
        record["device"] = {name: float(np.mean([each[name] for each in said if name in each])) for name in names}
    figures = _figures(trial, model)
    progress(done, total, f"{trial.name}, seed {trial.seed}")
    lost = ", ".join(name for name, value in figures.items() if not isfinite(value))
    if lost:
        return None, f"{trial.place(number, done - 1)}: {lost} is not finite"
    return record | figures, None


def _groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The parameter groups with the step sizes: those of the inner optimizer, if there is one."""
    return (getattr(optimizer, "inner", None) or optimizer).param_groups


def _numbered(trial: Trial, number: int) -> dict[str, Any]:
    return {"epoch": number} if trial.draws is None else {}


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


def _numbers(last: Any) -> dict[str, float]:
    """All numbers in the device's record of a step, and the deviation of tiles, a property computed on access."""
    if not is_dataclass(last):
        return {}
    found = {name: getattr(last, name, None) for name in (*(field.name for field in fields(last)), "deviation")}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _clocks() -> np.ndarray:
    """CPU and wall seconds."""
    return np.array([time.process_time(), time.perf_counter()])


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and buffers; `Trial.model` makes frozen parameters anew."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return parameters | dict(model.named_buffers())


def _restore(model: nn.Module, content: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in _trained(model).items():
            tensor.copy_(content[name])


def _stream(seed: int, epoch: int, purpose: str) -> int:
    return int(np.random.SeedSequence((seed, epoch, STREAMS[purpose])).generate_state(1, np.uint64)[0])


def write_checkpoint(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a state of nested dictionaries, lists, tuples, numbers, texts and tensors, with its `identity` (JSON)."""
    tensors: list[Tensor] = []
    tree = {"schema": SCHEMA, "identity": identity, "state": _encoded(state, tensors)}
    text = np.frombuffer(json.dumps(tree, allow_nan=False).encode(), dtype=np.uint8)
    arrays = {f"tensor_{k}": tensor.detach().cpu().numpy() for k, tensor in enumerate(tensors)}
    write_npz(path, json=text, **arrays)


def read_checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Read a state, tensors on the CPU, or None if there is no file; InputError for a file of another `identity`."""
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            tree = json.loads(arrays["json"].tobytes())
            held = tree["identity"] if tree["schema"] == SCHEMA else None
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "json"}
        state = _decoded(tree["state"], tensors)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is no whole checkpoint ({error}); delete it to start anew") from None
    wanted = json.loads(json.dumps(identity))
    if held != wanted:
        names = sorted(key for key in {*(held or {}), *wanted} if (held or {}).get(key) != wanted.get(key))
        raise InputError(
            f"{path} is a checkpoint of another trial: {', '.join(names)} differ; delete it, or choose another place"
        )
    return state


def _encoded(value: Any, tensors: list[Tensor]) -> Any:
    """JSON with every container tagged, so that tuples and numbers as keys are restored unchanged."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, dict):
        return {"dict": [[key, _encoded(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encoded(item, tensors) for item in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds tensors, numbers, words and containers of them, got {type(value).__name__}")


def _decoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[f"tensor_{content}"]
    if kind == "dict":
        return {key: _decoded(item, tensors) for key, item in content}
    if kind == "float":
        return float(content)
    items = [_decoded(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)

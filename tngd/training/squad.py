"""Question answering by fine-tuning: LoRA adapters and a span head of a DistilBERT, trained with TNGD and without.

The paper's second experiment (arXiv 2405.13817, figure 5) with more controls. The paper's "TNGD-Adam" has
beta1 = beta2 = 0, which is sign descent on the direction of the device. Its controls are sign descent without a device,
with the same step size and with a tuned one, and TNGD-Adam with Adam's own betas. With the paper's damping 1 and a
start at the gradient, the device leaves flat directions unchanged, so the control of TNGD itself is plain gradient
descent.

A method is a name, or a name with settings: `adam:lr=0.003`, `tngd:lr=0.1:damping=0.1`. Seed s sets the adapters, the
head, the order of the questions, dropout and sampled targets; the questions are the same for all seeds. Methods without
"paper" in their names were tuned: of two to four settings each, the one with the lowest mean loss over the batches of
one epoch, for a seed that the comparison does not use (benchmarks/squad_sweep.json and squad_sweep_sgd.json).
"""

import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from circuits.errors import InputError
from circuits.files import file_sha256, provenance, refuse_existing, write_json
from circuits.parallel import Progress, one_of, silent
from tngd.curvature.curvatures import CURVATURES
from tngd.optimizer.tngd import TNGD
from tngd.training.comparison import mean_and_error
from tngd.training.squad_data import (
    SPAN,
    TEST,
    TRAIN,
    Tokens,
    best_spans,
    find_folder,
    read_hub,
    read_squad,
    score,
    tokenise,
)
from tngd.training.squad_model import MINILM, Pretrained, load_pretrained, span_model
from tngd.training.trial import Outcome, Trial, one_thread, run_trial

SCHEMA = "tngd.squad/1"
HUB, HUB_DATA = "hub", "rajpurkar/squad"
LONGEST = 30  # tokens of an answer, as in the usual evaluation
QUESTIONS_SEED = 0
EVALUATED = 64  # questions at once
ADAM, SIGN = {"beta1": 0.9, "beta2": 0.999}, {"beta1": 0.0, "beta2": 0.0}
PAPER_DEVICE = {"damping": 1.0, "time": 0.4}
PRECONDITIONED = {"damping": 4.0, "time": 5.0, "precondition": 0.1, "refresh": 8, "history": 8}  # as on images
METHODS: dict[str, dict[str, float]] = {
    "sgd": {"lr": 0.1},
    "adam": {"lr": 0.003} | ADAM,
    "sign": {"lr": 0.003} | SIGN,
    "tngd-paper": {"lr": 0.01} | PAPER_DEVICE,
    "tngd": {"lr": 0.1} | PAPER_DEVICE,
    "tngd-adam-paper": {"lr": 0.001} | SIGN | PAPER_DEVICE,
    "tngd-adam": {"lr": 0.003} | ADAM | PAPER_DEVICE,
    "tngd-preconditioned": {"lr": 0.01, "momentum": 0.9} | PRECONDITIONED,
}
# The paper's "TNGD-Adam" without its device: sign descent with the same step size.
COMPARED = ("sgd", "adam", "sign", "sign:lr=0.001", "tngd-paper", "tngd", "tngd-adam-paper", "tngd-adam")


@dataclass(frozen=True)
class SquadSettings:
    """Model, data, budget and methods of a comparison. InputError for impossible values."""

    model: str = MINILM
    layers: int = 2
    length: int = 64
    rank: int = 2
    alpha: float = 32.0
    dropout: float = 0.1
    train_size: int = 768
    test_size: int = 256
    batch: int = 16
    epochs: int = 2
    seeds: int = 3
    first_seed: int = 0
    curvature: str = "mc"
    methods: tuple[str, ...] = COMPARED

    def __post_init__(self):
        small = [name for name in ("train_size", "test_size", "batch", "epochs", "seeds") if getattr(self, name) < 1]
        if small or self.length < 8 or self.first_seed < 0:
            raise InputError(
                f"expected sizes, epochs and seeds of 1 or more, rows of 8 tokens or more and a first seed of 0 or "
                f"more, got {', '.join(f'{name}={getattr(self, name)}' for name in small) or self}"
            )
        if self.curvature not in CURVATURES:
            raise InputError(f"curvature must be one of {', '.join(CURVATURES)}, got {self.curvature!r}")
        if not self.methods or len({*self.methods}) < len(self.methods):
            raise InputError(f"expected methods, each once, got {', '.join(self.methods) or 'none'}")
        for spec in self.methods:
            method_settings(spec)


@dataclass(frozen=True, eq=False)
class SquadTask:
    """The settings with the pretrained model, the tokens, and the hashes of the files of both."""

    recipe: SquadSettings
    pretrained: Pretrained
    train: Tokens
    test: Tokens
    hashes: dict[str, str | None]


def train_squad(
    recipe: SquadSettings, data: str | None, out: Path, force: bool = False, progress: Progress = silent
) -> dict:
    """Run the comparison and write the result to `out`; after an interruption the same call goes on from checkpoints.

    `data` is a folder with the two JSON files, "hub", or None for the folders in FOLDERS. One thread, float32.
    """
    refuse_existing(out, force)
    kept = out.with_name(out.name + ".trials")
    if out.exists():
        shutil.rmtree(kept, ignore_errors=True)
    with one_thread():
        result = compare(load_task(recipe, data), kept, progress)
    write_json(out, result)
    shutil.rmtree(kept, ignore_errors=True)
    return result


def load_task(recipe: SquadSettings, data: str | None) -> SquadTask:
    """Read and tokenise the questions and load the pretrained weights; InputError for missing files or packages."""
    pretrained = load_pretrained(recipe.model)
    if data == HUB:
        questions = [read_hub(HUB_DATA, split) for split in ("train", "validation")]
        hashes: dict[str, str | None] = {"data": HUB_DATA}
    else:
        folder = find_folder(None if data is None else Path(data))
        questions = [read_squad(folder / name) for name in (TRAIN, TEST)]
        hashes = {f"{name}_sha256": file_sha256(folder / name) for name in (TRAIN, TEST)}
    train, test = (tokenise(part, pretrained.encoder, recipe.length) for part in questions)
    return SquadTask(
        recipe,
        pretrained,
        train.subset(recipe.train_size, QUESTIONS_SEED),
        test.subset(recipe.test_size, QUESTIONS_SEED),
        hashes | {"weights_sha256": pretrained.sha256},
    )


def compare(task: SquadTask, kept: Path | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Train all methods and seeds of a task; the content of squad.json. `kept` is a folder for checkpoints."""
    recipe = task.recipe
    seeds = range(recipe.first_seed, recipe.first_seed + recipe.seeds)
    total, entries, parameters = len(recipe.methods) * recipe.seeds, [], None
    for k, spec in enumerate(recipe.methods):
        runs: dict[int, Outcome] = {}
        for seed in seeds:
            checkpoint = None if kept is None else kept / f"{spec}-{seed}.npz"
            number = k * recipe.seeds + seed - recipe.first_seed
            runs[seed] = run_trial(trial(task, spec, seed), checkpoint, one_of(progress, number, total))
        parameters = sum(p.numel() for p in runs[seeds[0]].model.parameters() if p.requires_grad)
        entries.append(_entry(spec, runs))
    return {
        "schema": SCHEMA,
        "recipe": asdict(recipe) | {"methods": list(recipe.methods)},
        "trained_parameters": parameters,
        "steps_per_epoch": len(task.train) // recipe.batch,
        "train_questions": len(task.train),
        "test_questions": len(task.test),
        "too_long": {"train": task.train.dropped, "test": task.test.dropped},
        "methods": entries,
        "cpu_s": sum(r["cpu_s"] for entry in entries for run in entry["runs"] for r in run["records"]),
        "provenance": provenance(**task.hashes, transformers=version("transformers"), peft=version("peft")),
    }


def trial(task: SquadTask, spec: str, seed: int) -> Trial:
    """The trial of one method on one seed. Figures: loss, exact match and F1 on the test questions."""
    recipe, train = task.recipe, task.train
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("methods", "seeds", "first_seed")}
    return Trial(
        spec,
        settings | _written(spec) | task.hashes | {"test_questions": len(task.test)},
        seed,
        len(train),
        recipe.batch,
        recipe.epochs,
        model=lambda: span_model(task.pretrained, recipe.layers, recipe.rank, recipe.alpha, recipe.dropout),
        forward=lambda model, rows: (model(train.ids[rows], train.attended[rows]), train.targets[rows]),
        loss=SPAN,
        optimizer=lambda model: build(method_settings(spec), model, recipe.curvature, seed),
        evaluate=lambda model: figures(model, task.test),
    )


def method_settings(spec: str) -> dict[str, float]:
    """Settings of a method `name` or `name:setting=number:…`; InputError for an unknown name or setting."""
    name, *given = spec.split(":")
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}; expected {', '.join(METHODS)}, or one as adam:lr=0.003")
    settings = dict(METHODS[name])
    for part in given:
        key, _, number = part.partition("=")
        try:
            settings[key] = float(number) if key in settings else settings[key]
        except (KeyError, ValueError):
            raise InputError(
                f"{part!r} of {spec!r} sets nothing; expected setting=number with one of {', '.join(settings)}"
            ) from None
    return settings


def build(settings: dict[str, float], model: nn.Module, curvature: str, seed: int) -> torch.optim.Optimizer:
    """Adam if betas are set, else gradient descent; on the direction of the device if damping and time are set."""
    own, lr, inner = [p for p in model.parameters() if p.requires_grad], settings["lr"], None
    if "beta1" in settings:
        inner = torch.optim.Adam(own, lr=lr, betas=(settings["beta1"], settings["beta2"]), eps=1e-8)
    if "momentum" in settings:
        inner = torch.optim.SGD(own, lr=lr, momentum=settings["momentum"])
    if "time" not in settings:
        return inner or torch.optim.SGD(own, lr=lr)
    device = {name: settings[name] for name in PRECONDITIONED if name in settings}
    device |= {name: int(device[name]) for name in ("refresh", "history") if name in device}
    rate = {} if inner else {"lr": lr}
    return TNGD(model, curvature=curvature, loss=SPAN, seed=seed, inner=inner, **rate, **device)


def figures(model: nn.Module, tokens: Tokens) -> dict[str, float]:
    """Mean loss over all questions, and exact match and F1 of the best spans in per cent."""
    parts: list[Tensor] = [
        model(ids, attended)
        for ids, attended in zip(tokens.ids.split(EVALUATED), tokens.attended.split(EVALUATED), strict=True)
    ]
    outputs = torch.cat(parts)
    answers = tokens.texts(best_spans(outputs, tokens.context, LONGEST))
    found = score(answers, [[text for text, _ in question.answers] for question in tokens.questions])
    loss = float(SPAN.value(outputs, tokens.targets))
    return {"test_loss": loss, "exact_match": found.exact_match, "f1": found.f1}


def _entry(spec: str, runs: dict[int, Outcome]) -> dict[str, Any]:
    """Entry of a method in squad.json: its runs, and the final figures over runs that did not diverge."""
    whole = [run.records for run in runs.values() if not run.diverged]
    steps = sum(records[-1]["steps"] for records in whole)
    names = ("batch_loss", "test_loss", "exact_match", "f1")
    return {
        "name": spec,
        "settings": _written(spec),
        "runs": [{"seed": s, "records": run.records, "diverged": run.diverged} for s, run in runs.items()],
        "final": {name: mean_and_error([records[-1][name] for records in whole]) for name in names} if whole else None,
        "cpu_s_per_step": sum(r["cpu_s"] for records in whole for r in records) / steps if whole else None,
    }


def _written(spec: str) -> dict[str, float | str]:
    """Settings of a method in JSON, with infinity as a text: JSON has no infinite numbers."""
    return {name: value if np.isfinite(value) else str(value) for name, value in method_settings(spec).items()}

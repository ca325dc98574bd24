"""What `tngd train mnist` does: comparison, tuning and studies of optimizers, run by run into one file.

mnist.json: one file for comparisons, tunings and studies, filled run by run.

A run that is there is not made again; one that stopped half way goes on from its checkpoint in `<name>.checkpoints`
beside the file. Several processes may fill one file at a time: each reads it anew, adds its run and writes it whole.

The choice of settings, with the same budget for every method: eight settings, five epochs, one seed of its own.

Chosen is the setting with the smallest loss on held-back training images, see tngd.training.mnist; a setting that
diverges is never chosen.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from circuits.errors import InputError
from circuits.files import locked, provenance, read_json, refuse_existing, write_json
from circuits.model.device import Device
from circuits.model.device_file import device_hash, load_device
from circuits.parallel import Progress, one_of, silent
from tngd.training.comparison import summary
from tngd.training.methods import METHODS, TUNED, Settings
from tngd.training.mnist import NETWORKS, SETTINGS, Data, Setting, load_data, mnist_trial, tuning_trial
from tngd.training.studies import STUDIES
from tngd.training.trial import Trial, one_thread, run_trial, trial_hash

SCHEMA = "tngd.mnist/1"
PARTS = ("comparisons", "studies")

Content = dict[str, Any]

EPOCHS = 5
SEED = 1000


def tune(
    path: Path, name: str, method: str, setting: Setting, data: Data, device: Device | None, progress: Progress
) -> None:
    """Try every choice of a method and write all of them and the best into the results file, in place of any before."""
    known = METHODS[method]
    if not known.grid:
        return  # nothing to choose, or chosen for the method it is a variant of
    tried, trial = [], None
    for settings in known.choices:
        trial = tuning_trial(
            f"tuning {method}",
            known.kind,
            known.settings | settings,
            replace(setting, epochs=EPOCHS),
            data,
            device,
            SEED,
        )
        outcome = run_trial(trial, None, progress)
        loss = None if outcome.diverged else outcome.records[-1]["held_loss"]
        tried.append({"settings": settings, "held_loss": loss, "diverged": outcome.diverged})
    useful = [each for each in tried if each["held_loss"] is not None]
    if not useful:
        raise InputError(f"every setting of {method} diverged; raise the dampings or lower the step sizes of its grid")
    result = {
        "trained_on": trial.samples,
        "held_back": trial.settings["evaluated"]["held"],
        "epochs": EPOCHS,
        "seed": SEED,
        "device": trial.settings["device"],
        "choices": tried,
        "best": min(useful, key=lambda each: each["held_loss"])["settings"],
    }

    def add(content: dict[str, Any]) -> None:
        content["comparisons"].setdefault(name, {}).setdefault("tuning", {})[method] = result

    change_results(path, add)


@dataclass(frozen=True)
class ComparisonOptions:
    """What is asked for; None: what the setting says, or all there is."""

    setting: str = "paper"
    methods: tuple[str, ...] | None = None
    seeds: int | None = None
    epochs: int | None = None
    train: int | None = None
    test: int | None = None
    study: str | None = None
    tune: bool = False

    def __post_init__(self):
        names = ("paper", "lenet")
        for given, known, option in (
            ((self.setting,), names, "--setting"),
            (self.methods or (), METHODS, "--methods"),
            (() if self.study is None else (self.study,), STUDIES, "--study"),
        ):
            for name in given:
                if name not in known:
                    raise InputError(f"{option} knows {', '.join(known)}, got {name!r}")
        if self.study is not None and (self.methods is not None or self.tune):
            raise InputError("a study has its own methods and settings; drop --methods and --tune, or --study")
        if self.seeds is not None and self.seeds < 1:
            raise InputError(f"--seeds must be 1 or more, got {self.seeds}")

    @property
    def resolved(self) -> Setting:
        """The setting with what is asked for instead."""
        base = SETTINGS["study" if self.study else self.setting]
        given = {name: getattr(self, name) for name in ("seeds", "epochs", "train", "test")}
        return replace(base, **{name: value for name, value in given.items() if value is not None})


def train_mnist(
    request: ComparisonOptions,
    root: Path,
    device: str | None,
    out: Path,
    force: bool = False,
    progress: Progress = silent,
) -> Content:
    """Make what is missing of the request in the results file; the comparison's or study's part of it.

    Methods that work on a device are left out, unless named, if `device` (a file or a preset) is None. InputError for
    what cannot be run, before anything is.
    """
    read_results(out)
    data = load_data(root)
    given = None if device is None else load_device(device)
    with one_thread():
        if request.study:
            return _study(request, data, given, out, force, progress)
        return _comparison(request, data, given, out, force, progress)


def _comparison(
    request: ComparisonOptions, data: Data, device: Device | None, out: Path, force: bool, progress: Progress
) -> Content:
    setting, name = request.resolved, request.setting
    methods = request.methods or tuple(
        key for key in setting.methods or METHODS if device is not None or METHODS[key].device is None
    )
    devices = {key: _device_of(key, device) for key in methods}
    mnist_trial("check", "SGD", {"lr": 1.0}, setting, data, None, 0)
    claim(out, ("comparisons", name), _described(setting, data), force)
    jobs, done = len(methods) * (setting.seeds + request.tune), 0
    for key in methods if request.tune else ():
        tune(out, name, key, setting, data, devices[key], one_of(progress, done, jobs))
        done += 1
    settings = {key: tuned_settings(read_results(out), name, key) for key in methods}
    for key in methods:
        known, place = METHODS[key], ("comparisons", name, "methods", key)
        on = devices[key] and device_hash(devices[key])
        claim(out, place, {"title": known.title, "kind": known.kind, "settings": settings[key], "device": on}, force)
        for seed in range(setting.seeds):
            trial = mnist_trial(known.title, known.kind, settings[key], setting, data, devices[key], seed)
            kept_run(out, place, trial, force, one_of(progress, done, jobs))
            done += 1
    return _summed(out, ("comparisons", name), "methods")


def _study(
    request: ComparisonOptions, data: Data, device: Device | None, out: Path, force: bool, progress: Progress
) -> Content:
    setting, name = request.resolved, request.study
    study = STUDIES[name]
    trials = [
        (
            cell,
            [mnist_trial(cell.name, cell.kind, cell.settings, setting, data, device, s) for s in range(setting.seeds)],
        )
        for cell in study.cells
    ]
    claim(out, ("studies", name), _described(setting, data) | {"about": study.about}, force)
    jobs, done = len(study.cells) * setting.seeds, 0
    for cell, runs in trials:
        place = ("studies", name, "cells", cell.name)
        claim(out, place, asdict(cell), force)
        for trial in runs:
            kept_run(out, place, trial, force, one_of(progress, done, jobs))
            done += 1
    return _summed(out, ("studies", name), "cells")


def _device_of(key: str, given: Device | None) -> Device | None:
    """The device that a method works on, None if on none."""
    name = METHODS[key].device
    if name == "given" and given is None:
        raise InputError(f"{key} works on a calibrated device; give --device, or leave it out of --methods")
    return given if name == "given" else None if name is None else load_device(name)


def _described(setting: Setting, data: Data) -> dict[str, Any]:
    """What all runs of a comparison or study have in common."""
    network = NETWORKS[setting.network]()
    same = {"seeds", "methods"} | ({"schedule"} if setting.schedule == "constant" else set())
    return {key: value for key, value in asdict(setting).items() if key not in same} | {
        "layers": [str(layer) for layer in network],
        "parameters": sum(p.numel() for p in network.parameters()),
        "data_sha256": data.sha256,
        "genuine": data.genuine,
    }


def _summed(out: Path, place: tuple[str, str], part: str) -> Content:
    """Write the summary of all runs that are there; that part of the file."""

    def add(content: Content) -> None:
        entry = content[place[0]][place[1]]
        ideal = {key: method.ideal for key, method in METHODS.items() if method.ideal}
        entry["summary"] = summary({key: held["seeds"] for key, held in entry[part].items() if held["seeds"]}, ideal)

    return change_results(out, add)[place[0]][place[1]]


def read_results(path: Path) -> Content:
    """The file, or an empty one; InputError if it is another file."""
    if not path.exists():
        return {"schema": SCHEMA} | {part: {} for part in PARTS}
    content = read_json(path, "train mnist")
    known = isinstance(content, dict) and content.get("schema") == SCHEMA
    if not known or not all(isinstance(content.get(part), dict) for part in PARTS):
        raise InputError(f"{path} does not say schema {SCHEMA}; choose another --out")
    return content


def change_results(path: Path, change: Callable[[Content], None]) -> Content:
    """Read, change and write the file while no other process does."""
    refuse_existing(path, force=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent, wait=True):
        content = read_results(path)
        change(content)
        write_json(path, content)
    return content


def claim(path: Path, place: tuple[str, ...], what: Content, force: bool) -> None:
    """Say at `place` of the file what its runs are; InputError if it holds others, which `force` drops."""
    held = _at(read_results(path), place).get("what")
    wanted = json.loads(json.dumps(what))
    if held == wanted:
        return
    if held is not None and not force:
        names = sorted(key for key in {*held, *wanted} if held.get(key) != wanted.get(key))
        raise InputError(
            f"{path} holds {' '.join(place[1:])} with another {' and '.join(names)}; give --force to replace it, or "
            "another --out"
        )

    def begin(content: Content) -> None:
        if _at(content, place).get("what") != wanted:  # unless another process has begun it meanwhile
            _at(content, place[:-1])[place[-1]] = {"what": wanted}

    change_results(path, begin)


def kept_run(path: Path, place: tuple[str, ...], trial: Trial, force: bool, progress: Progress) -> Content:
    """The run of this seed at a claimed `place` of the file, made if it is not there.

    InputError if a run of another trial is there and `force` is off.
    """
    identity, seed = trial_hash(trial), str(trial.seed)
    held = _at(read_results(path), place).get("seeds", {}).get(seed)
    if held is not None and held["trial_sha256"] == identity:
        return held
    if held is not None and not force:
        raise InputError(
            f"{path} holds {' '.join(place[1:])}, seed {seed}, of other settings, data, device or length; "
            "give --force to replace it, or another --out"
        )
    checkpoint = path.with_suffix(".checkpoints") / f"{identity[:16]}.npz"
    outcome = run_trial(trial, checkpoint, progress)
    run = {
        "records": outcome.records,
        "diverged": outcome.diverged,
        "trial_sha256": identity,
        "provenance": provenance(
            data_sha256=trial.settings["data_sha256"], device_sha256=trial.settings["device"], seed=trial.seed
        ),
    }

    def add(content: Content) -> None:
        _at(content, place).setdefault("seeds", {})[seed] = run

    change_results(path, add)
    checkpoint.unlink(missing_ok=True)
    with suppress(OSError):  # others may still have theirs there
        checkpoint.parent.rmdir()
    return run


def _at(content: Content, place: tuple[str, ...]) -> Content:
    for key in place:
        content = content.setdefault(key, {})
    return content


def tuned_settings(content: dict[str, Any], setting: str, method: str) -> Settings:
    """All settings of a method: its own and the tuned ones of the results file, or else of the package."""
    known, chosen = METHODS[method], METHODS[method].tuned_as or method
    if not METHODS[chosen].grid:
        return known.settings
    of_file = content["comparisons"].get(setting, {}).get("tuning", {}).get(chosen)
    best = of_file["best"] if of_file else TUNED.get(setting, {}).get(chosen)
    if best is None:
        raise InputError(f"{chosen} is not tuned for {setting!r}; give --tune to choose its settings")
    return known.settings | best

"""Comparisons, tunings and studies of optimizers on MNIST (`tngd train mnist`), run by run into one mnist.json.

A run in the file is not made again, and an interrupted run goes on from its checkpoint in `<name>.checkpoints` beside
the file. Several processes may fill one file at a time: each reads the file anew, adds its run and writes the file
whole.

Tuning has the same budget for every method: eight settings, five epochs, one seed that no comparison uses. The setting
with the smallest loss on held-out training images wins, see tngd.training.mnist; a setting that diverges never wins.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from circuits.errors import InputError
from circuits.files import locked, provenance, read_record, refuse_existing, write_json
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
    """Try every setting in the grid of a method; all losses and the best setting replace those in the results file."""
    known = METHODS[method]
    if not known.grid:
        return  # nothing to tune, or tuned as the method of which this one is a variant
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
    """Options of `tngd train mnist`; None stands for the value in the setting, or for all methods."""

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
        """The setting with the values given here in place of its own."""
        base = SETTINGS["study" if self.study else self.setting]
        given = {name: getattr(self, name) for name in ("seeds", "epochs", "train", "test")}
        return replace(base, **{name: value for name, value in given.items() if value is not None})


def train_mnist(
    options: ComparisonOptions,
    root: Path,
    device: str | None,
    out: Path,
    force: bool = False,
    progress: Progress = silent,
) -> Content:
    """Make the missing runs in the results file; return the part of the file for this comparison or study.

    Methods that need a device are left out, unless named, if `device` (a file or a preset) is None. InputError for runs
    that cannot be made, before the first run.
    """
    read_results(out)
    data = load_data(root)
    given = None if device is None else load_device(device)
    with one_thread():
        if options.study:
            return _study(options, data, given, out, force, progress)
        return _comparison(options, data, given, out, force, progress)


def _comparison(
    options: ComparisonOptions, data: Data, device: Device | None, out: Path, force: bool, progress: Progress
) -> Content:
    setting, name = options.resolved, options.setting
    methods = options.methods or tuple(
        key for key in setting.methods or METHODS if device is not None or METHODS[key].device is None
    )
    devices = {key: _device_of(key, device) for key in methods}
    mnist_trial("check", "SGD", {"lr": 1.0}, setting, data, None, 0)
    claim(out, ("comparisons", name), _described(setting, data), force)
    jobs, done = len(methods) * (setting.seeds + options.tune), 0
    for key in methods if options.tune else ():
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
    options: ComparisonOptions, data: Data, device: Device | None, out: Path, force: bool, progress: Progress
) -> Content:
    setting, name = options.resolved, options.study
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
    """The device of a method, None for a method without a device."""
    name = METHODS[key].device
    if name == "given" and given is None:
        raise InputError(f"{key} works on a calibrated device; give --device, or leave it out of --methods")
    return given if name == "given" else None if name is None else load_device(name)


def _described(setting: Setting, data: Data) -> dict[str, Any]:
    """Description that all runs of a comparison or study have in common."""
    network = NETWORKS[setting.network]()
    same = {"seeds", "methods"} | ({"schedule"} if setting.schedule == "constant" else set())
    return {key: value for key, value in asdict(setting).items() if key not in same} | {
        "layers": [str(layer) for layer in network],
        "parameters": sum(p.numel() for p in network.parameters()),
        "data_sha256": data.sha256,
        "genuine": data.genuine,
    }


def _summed(out: Path, place: tuple[str, str], part: str) -> Content:
    """Write the summary of all runs of a comparison or study; return that part of the file."""

    def add(content: Content) -> None:
        entry = content[place[0]][place[1]]
        ideal = {key: method.ideal for key, method in METHODS.items() if method.ideal}
        entry["summary"] = summary({key: held["seeds"] for key, held in entry[part].items() if held["seeds"]}, ideal)

    return change_results(out, add)[place[0]][place[1]]


def read_results(path: Path) -> Content:
    """The content of the results file, empty if there is no file; InputError for a file of another schema."""
    if not path.exists():
        return {"schema": SCHEMA} | {part: {} for part in PARTS}
    return read_record(path, SCHEMA, "train mnist", "choose another --out", PARTS)


def change_results(path: Path, change: Callable[[Content], None]) -> Content:
    """Read, change and write the file while it is locked against other processes."""
    refuse_existing(path, force=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent, wait=True):
        content = read_results(path)
        change(content)
        write_json(path, content)
    return content


def claim(path: Path, place: tuple[str, ...], what: Content, force: bool) -> None:
    """Write the description of the runs at `place` of the file; InputError if others are there, which `force` drops."""
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
    """The run of this seed at a claimed `place` of the file, made if missing.

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
    with suppress(OSError):  # the folder may hold checkpoints of other runs
        checkpoint.parent.rmdir()
    return run


def _at(content: Content, place: tuple[str, ...]) -> Content:
    for key in place:
        content = content.setdefault(key, {})
    return content


def tuned_settings(content: dict[str, Any], setting: str, method: str) -> Settings:
    """All settings of a method: the fixed ones, and the tuned ones of the results file or else of the package."""
    known, chosen = METHODS[method], METHODS[method].tuned_as or method
    if not METHODS[chosen].grid:
        return known.settings
    of_file = content["comparisons"].get(setting, {}).get("tuning", {}).get(chosen)
    best = of_file["best"] if of_file else TUNED.get(setting, {}).get(chosen)
    if best is None:
        raise InputError(f"{chosen} is not tuned for {setting!r}; give --tune to choose its settings")
    return known.settings | best

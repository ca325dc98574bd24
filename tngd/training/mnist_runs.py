"""What `tngd train mnist` does: comparison, tuning and studies of optimizers, run by run into one file."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from circuits.errors import InputError
from circuits.model.device import Device
from circuits.model.device_file import device_hash, load_device
from circuits.parallel import Progress, one_of, silent
from tngd.mnist_results import Content, change_results, claim, kept_run, read_results
from tngd.networks import NETWORKS
from tngd.training.comparison import summary
from tngd.training.methods import METHODS
from tngd.training.mnist import SETTINGS, Data, Setting, load_data, mnist_trial
from tngd.training.studies import STUDIES
from tngd.training.trial import one_thread
from tngd.tuning import tune, tuned_settings


@dataclass(frozen=True)
class Request:
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
    request: Request,
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
    request: Request, data: Data, device: Device | None, out: Path, force: bool, progress: Progress
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


def _study(request: Request, data: Data, device: Device | None, out: Path, force: bool, progress: Progress) -> Content:
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

"""Results of training and devices in a folder, found by their schema, and their tables in the report.

A result names the device on which it was made by the hash of that device. The device is looked for in the folder first,
then among the devices of the package.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuits.errors import InputError
from circuits.files import read_json
from circuits.model.device import Device, part_error
from circuits.model.device_file import PRESETS, device_hash, device_path, load_device
from tngd.report.sheets import Sheet, sheet, with_diverged, with_error

Content = dict[str, Any]
TRAINING = "training.json"
BEGIN = re.compile(rb'\{\s*"schema": "tngd\.(\w+)/')


@dataclass(frozen=True)
class Named:
    """A device, the content of its file, whether a board's section shows the device, and the results made on it."""

    name: str
    device: Device
    content: Content
    of_board: bool = False
    used_by: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Trained:
    """Contents of training.json by task, of mnist.json and squad.json by file, devices, hashes of missing devices."""

    tasks: tuple[Content, ...]
    mnist: dict[str, Content]
    squad: dict[str, Content]
    devices: tuple[Named, ...]
    unknown: dict[str, list[str]]

    def __bool__(self) -> bool:
        return bool(self.tasks or self.mnist or self.squad or self.devices)

    def device_of(self, sha256: str | None) -> str:
        """Name of the device with this hash, the first 12 digits of the hash of a missing device, "" for None."""
        if sha256 is None:
            return ""
        return next((each.name for each in self.devices if device_hash(each.device) == sha256), sha256[:12])


def read_trained(folder: Path) -> Trained:
    """Read all results of training in a folder and its subfolders; InputError for damaged files of this tool."""
    tasks: list[Content] = []
    kinds: dict[str, dict[str, Content]] = {"mnist": {}, "squad": {}}
    found: dict[str, Named] = {}
    for file, kind in _files(folder):
        name = str(file.relative_to(folder).with_suffix(""))
        content = read_json(file, "train")
        if kind == "training":
            tasks += content["tasks"].values()
        elif kind in kinds:
            kinds[kind][name] = content
        else:
            device = load_device(file)
            found.setdefault(device_hash(device), Named(name, device, content))
    unknown = _assigned(_uses(tasks, kinds["mnist"]), found, folder)
    return Trained(tuple(tasks), kinds["mnist"], kinds["squad"], tuple(found.values()), unknown)


def devices_sheet(devices: tuple[Named, ...]) -> Sheet:
    """Table of devices: board, data of the fit, uses, copies, errors of parts, residuals, held-out error."""
    rows = []
    for each in devices:
        device, fits = each.device, each.device.fitted_on.get("copies", {}).values()
        route = device.fitted_on.get("route")
        known = device.fitted_on.get("what") or (f"fitted to {route} runs" if route else "")
        left = ", ".join(f"{fit['rms_residual_uncalibrated']:.3g} → {fit['rms_residual']:.3g}" for fit in fits)
        board = f"{len(device.board.cells)} {device.board.kind} cells, {device.board.coupling}"
        held = f"{max(device.held_out['errors']):.2%}" if device.held_out else ""
        used = ", ".join(each.used_by)
        rows.append((each.name, board, known, used, str(len(device.copies)), f"{part_error(device):.2%}", left, held))
    columns = ("device", "board", "what it is", "used by", "copies", "part error, rms", "residuals, rms", "held out")
    return sheet("Devices", columns, rows, words=4)


def task_sheet(result: Content) -> Sheet:
    """A task of training.json with settings and standard errors."""
    rows = []
    for method in result["methods"]:
        final, tiles = method["final"], method.get("tiles")
        name = with_diverged(method["name"], len(method.get("diverged", ())), result["seeds"])
        figures = ("", "", "")
        if final:
            losses = (with_error(final[key], 4) for key in ("train_loss", "test_loss"))
            figures = (*losses, with_error(final["test_accuracy"], 2, 100, " %"))
        boards = ()
        if tiles:
            deviation = tiles["direction_deviation"]
            boards = (
                f"{deviation:.2%}" if deviation > 1e-5 else f"{deviation:.0e}",
                f"{tiles['passive_fraction']:.0%}",
                f"{tiles['unstable']}",
            )
        rows.append((name, settings_text(method["settings"]), *figures, *boards))
    columns = ("optimizer", "settings", "train loss", "test loss", "test accuracy")
    return sheet("", (*columns, "direction off by", "passive tiles", "unstable tiles"), rows, words=2)


def settings_sheet(trained: Trained, comparison: Content) -> Sheet:
    """Settings and device of every method of a comparison in mnist.json, and the number of settings tried in tuning."""
    tuning = comparison.get("tuning", {})
    rows = [
        (
            method["what"]["title"],
            settings_text(method["what"]["settings"]),
            trained.device_of(method["what"]["device"]),
            f"{len(tuning[key]['choices'])}" if key in tuning else "",
        )
        for key, method in comparison["methods"].items()
    ]
    return sheet("Settings", ("optimizer", "settings", "device", "tried"), rows, words=3)


def settings_text(settings: Content) -> str:
    """Settings in one line."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def training_provenance(trained: Trained) -> Iterator[tuple[str, Content]]:
    """Provenance of each result; of many runs, every value once."""
    for result in trained.tasks:
        yield f"training {result['task']}", result["provenance"]
    for file, content in trained.mnist.items():
        for part, key in (("comparisons", "methods"), ("studies", "cells")):
            for name, held in content[part].items():
                runs = [run["provenance"] for each in held[key].values() for run in each.get("seeds", {}).values()]
                yield f"{file} {name}", _merged(runs)
    for file, content in trained.squad.items():
        yield file, content["provenance"]


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files of training with their kind, recognised by their first bytes: other files may be large."""
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        for file in sorted(place.glob("*.json")):
            found = BEGIN.match(_beginning(file)) if file.is_file() else None
            kind = "training" if file.name == TRAINING else found and found[1].decode()
            of_board = file.name == "device.json" and (place / "board.json").is_file()
            if file.is_file() and kind in ("training", "mnist", "squad", "device") and not of_board:
                yield file, kind


def _uses(tasks: list[Content], mnist: dict[str, Content]) -> Iterator[tuple[str, str]]:
    """Hashes of devices, each with a result that used the device."""
    for result in tasks:
        yield result["device"], f"training {result['task']}"
    for content in mnist.values():
        for part, key in (("comparisons", "methods"), ("studies", "cells")):
            for name, held in content[part].items():
                runs = [run["provenance"] for each in held[key].values() for run in each.get("seeds", {}).values()]
                for sha256 in {run["device_sha256"] for run in runs} - {None}:
                    yield sha256, f"MNIST, {name}"


def _assigned(uses: Iterator[tuple[str, str]], found: dict[str, Named], folder: Path) -> dict[str, list[str]]:
    """Note the uses of every device, adding used devices of boards and of the package; uses of unknown hashes."""
    unknown: dict[str, list[str]] = {}
    others: dict[str, Named] | None = None
    for sha256, what in uses:
        if sha256 not in found and others is None:
            others = dict(_others(folder))
        if sha256 not in found and sha256 in others:
            found[sha256] = others[sha256]
        held = found[sha256].used_by if sha256 in found else unknown.setdefault(sha256, [])
        held += [] if what in held else [what]
    return unknown


def _others(folder: Path) -> Iterator[tuple[str, Named]]:
    """Devices of the package, then of the boards in the folder: of two equal devices, that of the board remains."""
    places = [(name, device_path(name)) for name in PRESETS]
    places += [(str(file.relative_to(folder).parent), file) for file in sorted(folder.glob("*/device.json"))]
    places += [(folder.name, folder / "device.json")] * (folder / "device.json").is_file()
    for name, file in places:
        with suppress(InputError):  # device of a board from an earlier version: shown in the section of the board
            device = load_device(file)
            yield device_hash(device), Named(name, device, read_json(file, "calibrate"), name not in PRESETS)


def _merged(runs: list[Content]) -> Content:
    """One provenance record of many runs: every value once."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for run in runs for key in run if key != "seed"):
        values = [run[key] for run in runs if run.get(key) is not None]
        if values and isinstance(values[0], dict):
            found[key] = _merged(values)
        elif values:
            found[key] = ", ".join(dict.fromkeys(map(str, values)))
    return found


def _beginning(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(100)

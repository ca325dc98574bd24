"""File of a device, `device.json`, sealed by its hash, and the presets of the package."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from circuits.board import Board, impossible
from circuits.errors import InputError
from circuits.files import read_record, seal_of, sha256
from circuits.model.converters import Interface
from circuits.model.device import Device, unstable_copies
from circuits.model.fitted_copy import FittedCopy, gain_names, nominal_values

SCHEMA = "tngd.device/4"
PRESETS = ("ideal", "board-1", "board-2", "board-3", "worst-case")  # devices that come with the package


def describe_device(device: Device, about: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of device.json with provenance `about`, sealed by its own hash; add nothing to it."""
    content = {
        "schema": SCHEMA,
        "fitted_on": device.fitted_on,
        "held_out": device.held_out,
        "order": device.order,
        "nominal": nominal_values(device.board),
        f"program_{device.board.element_unit}": device.values,
        "interface": TypeAdapter(Interface).dump_python(device.interface, mode="json", by_alias=True),
        "copies": TypeAdapter(tuple[FittedCopy, ...]).dump_python(device.copies, mode="json", by_alias=True),
        "board": TypeAdapter(Board).dump_python(device.board, mode="json"),
        "device_sha256": device_hash(device),
        "provenance": dict(about or {}),
    }
    content["provenance"]["content_sha256"] = seal_of(content)
    return content


def device_path(place: Path | str) -> Path:
    """Return the path of a device: the file of that name, or, if there is none, the preset of that name."""
    if str(place) in PRESETS and not Path(place).is_file():
        return Path(str(resources.files("circuits.model"))) / "presets" / f"{place}.json"
    return Path(place)


def load_device(path: Path | str) -> Device:
    """Read a device from its file, or a preset by its name.

    InputError if it is missing, of another schema, changed, damaged, or physically impossible.
    """
    place = device_path(path)
    if not place.exists():
        raise InputError(f"{place} does not exist; make it with `tngd calibrate`, or take one of {', '.join(PRESETS)}")
    content = read_record(place, SCHEMA, "calibrate")
    _check_seal(place, content)
    try:
        device, seal = _device(content), content["device_sha256"]
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise InputError(f"{place} is damaged ({_word(error)}); make it again with `tngd calibrate`") from None
    if device_hash(device) != seal:
        raise InputError(f"{place} was changed since it was made; make it again with `tngd calibrate`")
    try:
        problem = next(_problems(device), None)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        problem = f"its board makes no circuit ({type(error).__name__}: {_word(error)})"
    if problem:
        raise InputError(f"{place} is not usable: {problem}; make it again with `tngd calibrate`")
    return device


def device_hash(device: Device) -> str:
    """Return SHA-256 of everything a device predicts from: board, copies, order, interface, own values.

    The order of a device of all states is not hashed, so that results from before orders existed still match.
    """
    content = TypeAdapter(Device).dump_json(
        replace(device, fitted_on={}, held_out={}), exclude={"order"} if device.order is None else None
    )
    return sha256(content)


def _check_seal(path: Path, content: dict[str, Any]) -> None:
    """InputError if anything was changed in a file since it was made, or it has no seal.

    Called before anything else reads the content, because edited content may fail anywhere.
    """
    about = content.get("provenance")
    seal = about.get("content_sha256") if isinstance(about, dict) else None
    if seal is None:
        raise InputError(f"{path} is damaged (it has no content_sha256); make it again with `tngd calibrate`")
    if seal != seal_of(content):
        raise InputError(f"{path} was changed since it was made; make it again with `tngd calibrate`")


def _device(content: dict[str, Any]) -> Device:
    """Return the device of a file; KeyError, TypeError, ValueError or ValidationError if the content is no device."""
    board = TypeAdapter(Board).validate_python(content["board"])
    return Device(
        board,
        TypeAdapter(tuple[FittedCopy, ...]).validate_python(content["copies"]),
        dict(content["fitted_on"]),
        dict(content["held_out"]),
        TypeAdapter(Interface).validate_python(content["interface"]),
        TypeAdapter(dict[str, float]).validate_python(content[f"program_{board.element_unit}"]),
        TypeAdapter(int | None).validate_python(content["order"], strict=True),
    )


def _word(error: Exception) -> str:
    """Return the message of an error, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".replace("Value error, ", "")
    return str(error).splitlines()[0]


def _problems(device: Device) -> Iterator[str]:
    wrong = impossible(device.board)
    if wrong:
        yield wrong
    names = set(gain_names(device.board))
    cells = len(device.board.cells) if device.board.coupling == "capacitive" else 0
    if not device.copies:
        yield "it holds no copies"
    nowhere = [e.name for e in device.board.elements if not set(e.cells) <= set(range(len(device.board.cells)))]
    if nowhere:
        yield f"its element {nowhere[0]} is of cells that the board does not have"
    if device.order is not None and device.order < len(device.board.cells):
        yield f"it has an order of {device.order}, fewer states than the board's {len(device.board.cells)} readings"
    unknown = sorted(device.values.keys() - {element.name for element in device.board.elements})
    if unknown or not np.isfinite(list(device.values.values())).all():
        yield f"its program has a value of {unknown[0] if unknown else 'an element'} that the board cannot hold"
    for copy in device.copies:
        if set(copy.gains) != names:
            yield f"{copy.name} does not have one gain for each of the board's {len(names)} parts"
        if not len(copy.temperatures) == len(copy.inductances) == cells:
            yield f"{copy.name} does not have one temperature and inductance for each cell"
        for row in (copy.readout_gains, copy.readout_offsets):
            if len(row) not in (0, len(device.board.cells)):
                yield f"{copy.name} does not have one readout gain and offset for each cell"
        for estimate in (*copy.gains.values(), *copy.temperatures, *copy.inductances, *copy.readout_gains):
            if not (0 < estimate.value < np.inf and 0 <= estimate.standard_error < np.inf):
                yield f"{copy.name} has a gain of {estimate.value} ± {estimate.standard_error}, expected a gain above 0"
        for estimate in copy.readout_offsets:
            if not (np.isfinite(estimate.value) and 0 <= estimate.standard_error < np.inf):
                yield f"{copy.name} has a readout offset of {estimate.value} ± {estimate.standard_error} V"
    for name in unstable_copies(device):
        yield f"{name} would run away under the board's own program: its drift is unstable"

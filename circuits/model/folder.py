"""Files of devices: `device.json` with other converters, presets copied out, fresh copies drawn."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from circuits.errors import InputError
from circuits.files import provenance, read_json, refuse_existing, write_json
from circuits.model.converters import Interface
from circuits.model.device import Device, unstable_copies
from circuits.model.device_file import PRESETS, describe_device, device_hash, device_path, load_device
from circuits.model.ensemble import draw_boards, ensemble_of


def shipped_devices() -> Iterator[tuple[str, Device]]:
    """The devices of the package with their names."""
    yield from ((name, load_device(name)) for name in PRESETS)


def set_interface(
    place: str,
    out: Path,
    dac: dict[str, float | None],
    adc: dict[str, float | None],
    source_bits: int | None = None,
    force: bool = False,
) -> Interface:
    """Write a device, from a file or of the package, with other converters; what is None stays as it is."""
    refuse_existing(out, force)
    device = load_device(place)
    old = device.interface
    interface = replace(
        old,
        dac=replace(old.dac, **{name: value for name, value in dac.items() if value is not None}),
        adc=replace(old.adc, **{name: value for name, value in adc.items() if value is not None}),
        source_bits=old.source_bits if source_bits is None else source_bits,
    )
    about = provenance(**_made_from(place) | {"device": Path(place).name, "device_sha256": device_hash(device)})
    write_json(out, describe_device(replace(device, interface=interface), about))
    return interface


def draw_fitted_copies(place: str, out: Path, copies: int, seed: int, force: bool = False) -> Device:
    """Write fresh copies of a device's board, their parts spread as those of its copies were found to be."""
    refuse_existing(out, force)
    device = load_device(place)
    drawn = draw_boards(ensemble_of(device), device.board, copies, seed)
    made = replace(drawn, interface=device.interface, values=device.values, order=device.order)
    away = unstable_copies(made)
    if away:
        raise InputError(
            f"{len(away)} of {copies} copies drawn would run away under the board's own program, first {away[0]}; "
            "parts of this spread do not hold it: design it with a --precondition or a smaller --tolerance"
        )
    about = {"device": Path(place).name, "device_sha256": device_hash(device), "draw_seed": seed}
    write_json(out, describe_device(made, provenance(**_made_from(place) | about)))
    return made


def _made_from(place: str) -> dict[str, Any]:
    """Return the inputs of a device (hashes, seeds, ngspice), and as `fitted_versions` the software."""
    about = read_json(device_path(place), "calibrate").get("provenance", {})
    inputs = {name: value for name, value in about.items() if name not in ("versions", "content_sha256")}
    return ({"fitted_versions": about["versions"]} if "versions" in about else {}) | inputs

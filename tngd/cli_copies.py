"""The verbs of calibrated copies: `devices` of the package, their `interface`, and `retrim`, codes for very copies."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from circuits.model.converters import Converter
from tngd.options import At, Damping, Folder, Force, Precondition
from tngd.report.board_tables import devices_table, retrim_table, spread_table
from tngd.report.sheets import show
from tngd.stages import Stages

app = typer.Typer()


@app.command()
def devices(
    make: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Make their files anew in a folder: ngspice runs and calibration."),
    ] = None,
    force: Force = False,
) -> None:
    """The devices that come with the package: their names go wherever a device.json goes."""
    if make is None:
        show(devices_table(_calibrated().devices()))
        return
    with Stages(announce=False) as stage:
        files = _calibrated().make_devices(make, force, stage("devices"))
    print("\n".join(map(str, files)))


@app.command()
def interface(
    device: Annotated[str, typer.Argument(help="device.json, or a device of the package by name.")],
    out: Annotated[Path, typer.Option(help="The file to write, a device with these converters.")],
    dac_bits: Annotated[int | None, typer.Option(help="Bits of what is uploaded. [no rounding]")] = None,
    dac_range: Annotated[float | None, typer.Option(help="Full scale ±, in rms of what it carries. [4]")] = None,
    dac_noise: Annotated[float | None, typer.Option(help="Rms, in the same unit.")] = None,
    dac_offset: Annotated[float | None, typer.Option(help="In the same unit.")] = None,
    dac_rate: Annotated[float | None, typer.Option(help="Values in a second. [no limit]")] = None,
    adc_bits: Annotated[int | None, typer.Option(help="Bits of what is read. [no rounding]")] = None,
    adc_range: Annotated[float | None, typer.Option(help="Full scale ±, in rms of what it carries. [4]")] = None,
    adc_noise: Annotated[float | None, typer.Option(help="Rms, in the same unit.")] = None,
    adc_offset: Annotated[float | None, typer.Option(help="In the same unit.")] = None,
    adc_rate: Annotated[float | None, typer.Option(help="Values in a second. [no limit]")] = None,
    source_bits: Annotated[int | None, typer.Option(help="Bits of the amplitude of a noise source. [any]")] = None,
    force: Force = False,
) -> None:
    """Give a device other converters; what is not named stays as it is."""
    names = ("bits", "range", "noise", "offset", "rate")
    dac = dict(zip(names, (dac_bits, dac_range, dac_noise, dac_offset, dac_rate), strict=True))
    adc = dict(zip(names, (adc_bits, adc_range, adc_noise, adc_offset, adc_rate), strict=True))
    made = _calibrated().set_interface(device, out, dac, adc, source_bits, force)
    print(f"{out}: DAC {_words(made.dac)}; ADC {_words(made.adc)}")


@app.command()
def draw(
    device: Annotated[str, typer.Argument(help="device.json, or a device of the package by name.")],
    out: Annotated[Path, typer.Option(help="The file to write, a device of fresh copies.")],
    copies: Annotated[int, typer.Option(help="How many.")] = 3,
    seed: Annotated[int, typer.Option(help="The same seed gives the same copies.")] = 0,
    force: Force = False,
) -> None:
    """Fresh copies of a calibrated board, their parts spread as calibration found those of its copies."""
    show(spread_table(_calibrated().draw_copies(device, out, copies, seed, force)))


@app.command()
def retrim(
    folder: Folder,
    copy: Annotated[str | None, typer.Option(help="One copy by name, such as copy-1. [all]")] = None,
    target: Annotated[
        str | None, typer.Option(help="A data set by name, or a square .npy or .csv matrix. [the folder's own]")
    ] = None,
    at: At = "zero",
    precondition: Precondition = None,
    damping: Damping = 0.0,
    programmings: Annotated[int, typer.Option(help="Programs whose weighted mean is the inverse.")] = 8,
    out: Annotated[Path | None, typer.Option(help="The folder to make. [DIR/retrim]")] = None,
    check: Annotated[bool, typer.Option("--check", help="Run the programs in ngspice.")] = False,
    force: Force = False,
) -> None:
    """Codes for the very copies of a calibrated board with banks, in place of the nearest ones."""
    calibrated = _calibrated()
    trim = calibrated.Trim(copy, target, at, precondition, damping, programmings, check)
    with Stages(announce=False) as stage:
        content = calibrated.retrim_copies(folder, trim, out, force, stage("retrim"))
    show(retrim_table(content))


def _words(converter: Converter) -> str:
    full = f"{converter.bits} bits, full scale ±{converter.range:g} rms"
    rate = "" if converter.rate is None else f", {converter.rate:g} values a second"
    rounds = "no rounding" if converter.bits is None else full
    return f"{rounds}, noise {converter.noise:g}, offset {converter.offset:g} rms{rate}"


def _calibrated() -> ModuleType:
    """Loaded when its verb is called: scipy's solvers take a while, which no other verb needs."""
    return importlib.import_module("circuits.calibration.retrim")

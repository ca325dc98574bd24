"""The command `tngd`: one verb a step, `run` for all of them.

What goes wrong because of the input or the simulator is one sentence on standard error and exit code 2.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from threadpoolctl import threadpool_limits

from circuits.board import REFERENCE_CELSIUS
from circuits.errors import InputError, SimulationError
from circuits.files import read_json
from circuits.netlist import export
from circuits.netlist.explanation import explanation_text
from circuits.netlist.review import review_lines
from circuits.synthesis import fisher as synthesis_fisher
from circuits.synthesis.options import BoardOptions, Parasitics
from circuits.verification.population import COPIES
from tngd import cli_copies, cli_train
from tngd.__main__ import INTERRUPTED, end_interrupted
from tngd.options import (
    At,
    Copies,
    Damping,
    Folder,
    Force,
    Precondition,
    Samples,
    Seed,
    Seeds,
    Steps,
    Tolerance,
)
from tngd.report.board_tables import calibration_lines, more_tables, verification_table
from tngd.report.sheets import show
from tngd.report.training_tables import training_table
from tngd.stages import Stages

CHOICES = BoardOptions()

app = typer.Typer(
    help="From a Fisher matrix to a stochastic processing unit, and to networks trained on its calibrated model.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_copies.app)
app.add_typer(cli_train.app, name="train")


@app.command()
def fisher(
    name: Annotated[str, typer.Argument(help="Data set: fair, wine, diabetes or breast-cancer.")],
    out: Annotated[Path, typer.Option(help="Where the matrix goes (.npy; a .json with its origin beside it).")],
    at: At = "zero",
    factor: Annotated[Path | None, typer.Option(help="Also write T with T F Tᵀ = I, for --precondition.")] = None,
    force: Force = False,
) -> None:
    """Fisher matrix of a logistic regression on a real data set."""
    F = synthesis_fisher.write_fisher(name, at, out, factor, force)
    print(f"{out}: {len(F)} x {len(F)}")


@app.command()
def design(
    target: Annotated[str, typer.Argument(help="A data set by name, or a square .npy or .csv matrix.")],
    out: Annotated[Path, typer.Option(help="The run folder to make.")],
    at: At = "zero",
    precondition: Precondition = None,
    copies: Copies = 3,
    tolerance: Tolerance = 0.01,
    seed: Seed = 0,
    damping: Damping = 0.0,
    name: Annotated[str | None, typer.Option(help="Name in decks and reports.")] = None,
    cells: Annotated[
        str,
        typer.Option(help="auto, plain, differential, or active: differential with negative elements where needed."),
    ] = "auto",
    coupling: Annotated[
        str | None,
        typer.Option(help="capacitive: the covariance is the inverse; resistive: the mean solves. [capacitive]"),
    ] = None,
    unit_capacitance: Annotated[
        float, typer.Option(help="Farad that stand for 1 of the matrix; resistive: of every cell.")
    ] = CHOICES.unit_capacitance,
    unit_conductance: Annotated[
        float, typer.Option(help="Siemens that stand for 1 of the matrix.")
    ] = CHOICES.unit_conductance,
    resonance: Annotated[float, typer.Option(help="Hz, of a cell with that capacitance.")] = CHOICES.resonance,
    quality: Annotated[float, typer.Option(help="Q of that cell; low is robust.")] = CHOICES.quality,
    reading_rms: Annotated[float, typer.Option(help="Volt, the largest rms reading.")] = CHOICES.reading_rms,
    hold_bias: Annotated[float, typer.Option(help="Variance lost to the noise's hold time.")] = CHOICES.hold_bias,
    smallest_element: Annotated[float, typer.Option(help="Farad or siemens, the least to be soldered.")] = 0.0,
    largest_element: Annotated[float | None, typer.Option(help="The most to be soldered. [1e-6 F or 1 S]")] = None,
    series: Annotated[
        str | None, typer.Option(help="Round all parts to E6, E12, E24, E48 or E96, best for the inverse.")
    ] = None,
    parallel: Annotated[int, typer.Option(help="Parts that hold an element, 1 or 2.")] = CHOICES.parallel,
    bank_bits: Annotated[int, typer.Option(help="Couplings as switched banks of so many bits; 0: soldered.")] = 0,
    bank_range: Annotated[
        float | None, typer.Option(help="What a bank reaches, in units. [twice what the target needs]")
    ] = None,
    switch_resistance: Annotated[float, typer.Option(help="Ohm, of a closed switch.")] = CHOICES.switch_resistance,
    pad_capacitance: Annotated[
        float, typer.Option(help="Farad, at either side of a switch.")
    ] = CHOICES.pad_capacitance,
    source_tolerance: Annotated[
        float, typer.Option(help="The power of every noise source is off by up to this fraction.")
    ] = CHOICES.source_tolerance,
    winding: Annotated[float, typer.Option(help="Ohm in series with every inductor.")] = 0.0,
    self_resonance: Annotated[float, typer.Option(help="Hz, of every inductor by itself.")] = 0.0,
    esr: Annotated[float, typer.Option(help="Ohm in series with every capacitor.")] = 0.0,
    coupled_coils: Annotated[float, typer.Option(help="Coupling factor of neighbouring inductors.")] = 0.0,
    stray: Annotated[float, typer.Option(help="Farad between neighbouring cells.")] = 0.0,
    reuse: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Program the target onto the board with banks, and the copies, in DIR."),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print the derivation with its numbers.")] = False,
    force: Force = False,
) -> None:
    """Board, copies, netlists and what a designer takes further."""
    choices = BoardOptions(
        coupling=coupling or CHOICES.coupling,
        unit_capacitance=unit_capacitance,
        unit_conductance=unit_conductance,
        resonance=resonance,
        quality=quality,
        reading_rms=reading_rms,
        hold_bias=hold_bias,
        smallest_element=smallest_element,
        largest_element=largest_element,
        series=series,
        parallel=parallel,
        bank_bits=bank_bits,
        bank_range=bank_range,
        switch_resistance=switch_resistance,
        pad_capacitance=pad_capacitance,
        source_tolerance=source_tolerance,
    )
    request = export.DesignOptions(
        copies=copies,
        tolerance=tolerance,
        seed=seed,
        cells=cells,
        choices=choices,
        parasitics=Parasitics(winding, self_resonance, esr, coupled_coils, stray),
    )
    place = synthesis_fisher.TargetOptions(target, at, precondition, damping, name)
    made = (
        export.design_folder(place, request, out, force)
        if reuse is None
        else export.reuse_folder(place, request, reuse, coupling, out, force)
    )
    print(f"{out}: {made.program.step}; {len(made.copies)} copies, yield {made.yield_fraction:.0%}")
    print("\n".join(f"  {line}" for line in review_lines(made)))
    if explain:
        print("\n" + explanation_text(made.board, made.program), end="")


@app.command()
def verify(
    folder: Folder,
    method: Annotated[str, typer.Option(help="exact (AC), sampled (time domain) or both.")] = "both",
    samples: Samples = 100_000,
    target_error: Annotated[
        float | None, typer.Option(help="Sample until the statistical error of every copy's inverse is this small.")
    ] = None,
    seed: Seed = 0,
    charge: Annotated[bool, typer.Option("--charge", help="Also read the inverse by packets of charge.")] = False,
    ambient: Annotated[float, typer.Option(help="Temperature of the boards in °C.")] = REFERENCE_CELSIUS,
    copies: Annotated[int, typer.Option(help="Fresh copies drawn for the population.")] = COPIES,
    bound: Annotated[float | None, typer.Option(help="Error by which the population is judged.")] = None,
    measured: Annotated[
        Path | None, typer.Option(help="Readings of a physical board (copy,time_s,cell1_V,…) in place of ngspice.")
    ] = None,
    force: Force = False,
) -> None:
    """Run every copy in ngspice, or take recorded readings, and compare the inverse with the target's."""
    laboratory = _loaded("laboratory")
    inquiry = laboratory.Inquiry(method, samples, target_error, seed, charge, ambient, copies, bound, measured)
    with Stages(announce=False) as stage:
        result = laboratory.verify(folder, inquiry, force, stage("verify"))
    show(verification_table({folder.name: result}))
    for table in more_tables(result):
        show(table)


@app.command()
def calibrate(
    folder: Folder,
    route: Annotated[
        str,
        typer.Option(
            help="Fit to exact or sampled runs of verify, or to training programs run now; auto: exact if there."
        ),
    ] = "auto",
    samples: Annotated[
        int | None, typer.Option(help="Readings per copy and training program, sampled; default: exact runs.")
    ] = None,
    seed: Seed = 0,
    measured: Annotated[
        Path | None, typer.Option(help="Fit to readings of physical boards (copy,time_s,cell1_V,…) instead.")
    ] = None,
    readout_tolerance: Annotated[
        float, typer.Option(help="Half width of the relative spread of readout gains in such readings.")
    ] = 0.01,
    order: Annotated[
        int | None,
        typer.Option(help="States of the process it predicts. [the fewest that are good enough]"),
    ] = None,
    force: Force = False,
) -> None:
    """Fit every copy to its runs; one with banks to programmings of its own, which it runs."""
    how = {"measured": measured, "readout": readout_tolerance, "order": order, "samples": samples, "seed": seed}
    with Stages(announce=False) as stage:
        content = _loaded("laboratory").calibrate(folder, route, force, stage("calibrate"), **how)
    for line in calibration_lines(content):
        print(line)
    if warning := content["fitted_on"]["reduced_order"]["warning"]:
        print(f"warning: {warning}", file=sys.stderr)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run, of runs, or of results of training.")],
    force: Force = False,
) -> None:
    """One self-contained HTML page of everything in a folder."""
    print(_loaded("learning").report(folder, force))


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="Data set: fair, wine, diabetes or breast-cancer.")],
    out: Annotated[Path, typer.Option(help="The folder for everything.")],
    copies: Copies = 3,
    tolerance: Tolerance = 0.01,
    seed: Seed = 0,
    samples: Samples = 100_000,
    seeds: Seeds = 3,
    steps: Steps = None,
    force: Force = False,
) -> None:
    """All of it: raw and preconditioned boards, verified, calibrated, trained on, reported."""
    pipeline = _loaded("pipeline")
    options = pipeline.Options(name, copies, tolerance, seed, samples, seeds, steps)
    with Stages() as stage:
        page = pipeline.run(options, out, force, stage)
    results = {
        kind: read_json(out / kind / "verification.json", "verify")
        for kind in ("raw", "preconditioned")
        if (out / kind / "verification.json").exists()
    }
    show(verification_table(results))
    for result in read_json(out / "training.json", "train")["tasks"].values():
        show(training_table(result))
    print(page.resolve())


def main() -> None:
    """Entry point of the command."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name or a sign that the terminal has no letter for
    try:
        # The matrices are small: more BLAS threads cost time and change the last digits.
        with threadpool_limits(limits=1, user_api="blas"):
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except (InputError, SimulationError) as error:
        code = _refuse(str(error))
    except typer.TyperException as error:
        code = _refuse(f"{error.format_message().rstrip('.')}; see tngd --help")
    except OSError as error:
        code = _refuse(f"the system says {error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
    if code == INTERRUPTED:  # typer turns Ctrl-C into this code
        end_interrupted()
    sys.exit(code if isinstance(code, int) else 0)


def _loaded(name: str) -> ModuleType:
    """A module of ours, loaded when its verb is called: torch and matplotlib take seconds, which no board needs."""
    return importlib.import_module(f"tngd.{name}")


def _refuse(sentence: str) -> int:
    """Print one line, whatever a file name or a program put into the sentence; the exit code."""
    print("tngd: " + "".join(c if c.isprintable() else " " for c in sentence), file=sys.stderr)
    return 2

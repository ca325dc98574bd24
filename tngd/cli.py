"""The command `tngd`: one verb a step, `run` for all of them.

Signatures and nothing else: what a verb does stands in the package of its stage, and is loaded through that package's
door when the verb is called. What goes wrong because of the input or the simulator is one sentence on standard error
and exit code 2.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from circuits import calibration, model, netlist, synthesis, verification
from circuits.errors import InputError, SimulationError
from circuits.synthesis.options import DATA_SETS, BoardOptions, Parasitics
from tngd import report as reports
from tngd import training

INTERRUPTED = 130
WIDE = 120  # columns that a help page may take
BOARD = BoardOptions()
# Defaults of modules that take long to load; a test compares them.
AMBIENT = 27.0  # °C, circuits.board.REFERENCE_CELSIUS
POPULATION = 600  # copies, circuits.verification.population.COPIES
READOUT = 0.01  # circuits.calibration.routes.READOUT

Force = Annotated[bool, typer.Option("--force", help="Replace results that exist.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder made by `tngd design`.")]
Seed = Annotated[int, typer.Option(help="Seed; the same seed gives the same bytes.")]
Copies = Annotated[int, typer.Option(help="How many copies of the board.")]
Tolerance = Annotated[float, typer.Option(help="Half width of the uniform relative spread of every part.")]
Samples = Annotated[int, typer.Option(help="Readings per copy, rounded up to a multiple of 500.")]
Seeds = Annotated[int, typer.Option(help="How many seeds a method is trained with.")]
Steps = Annotated[int | None, typer.Option(help="Training steps instead of the task's own number.")]
At = Annotated[str, typer.Option(help="Weights at which the Fisher matrix is taken: zero or fit.")]
Precondition = Annotated[
    str | None, typer.Option(help="T as .npy; for a named target also zero or fit: the factor taken there.")
]
Damping = Annotated[float, typer.Option(help="λ: the target becomes P + λI.")]


class Tasks(typer.core.TyperGroup):
    """The tasks by name; another name is refused in the words of the other verbs."""

    def get_command(self, context, name):
        """The task's command; InputError if there is none."""
        found = super().get_command(context, name)
        if found is None:
            raise InputError(f"unknown task {name!r}; expected one of {', '.join(self.list_commands(context))}")
        return found


class Stages:
    """Stages of a command: a bar each where somebody watches, otherwise a line each if they are to be announced."""

    def __init__(self, announce: bool = True) -> None:
        self._announce = announce

    def __enter__(self) -> "Stages":
        console, progress = import_module("rich.console"), import_module("rich.progress")
        self._bar = progress.Progress(
            progress.TextColumn("{task.description:<44}"),
            progress.BarColumn(),
            progress.TextColumn("{task.completed}/{task.total}"),
            progress.TimeRemainingColumn(),
            console=console.Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def __call__(self, text: str) -> Callable[[int, int, str], None]:
        """Begin a stage; what it returns is called with done, total and words for what was done."""
        if self._bar.disable and self._announce:
            sys.stderr.write(text + "\n")  # in one piece: stages may begin in several threads
            sys.stderr.flush()
        task = self._bar.add_task(text, total=1)

        def told(done: int, total: int, what: str) -> None:
            self._bar.update(task, completed=done, total=total, description=f"{text} · {what}" if what else text)

        return told


app = typer.Typer(
    help="From a Fisher matrix to a stochastic processing unit, and to networks trained on its calibrated model.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help pages: rich takes longer to load than everything else that they need
)
train = typer.Typer(cls=Tasks, rich_markup_mode=None, help="Train with TNGD beside other optimizers.")


@app.command()
def fisher(
    name: Annotated[str, typer.Argument(help="Data set: fair, wine, diabetes or breast-cancer.")],
    out: Annotated[Path, typer.Option(help="Where the matrix goes (.npy; a .json with its origin beside it).")],
    at: At = "zero",
    factor: Annotated[Path | None, typer.Option(help="Also write T with T F Tᵀ = I, for --precondition.")] = None,
    force: Force = False,
) -> None:
    """Fisher matrix of a logistic regression on a real data set."""
    F = synthesis.write_fisher(name, at, out, factor, force)
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
    ] = BOARD.unit_capacitance,
    unit_conductance: Annotated[
        float, typer.Option(help="Siemens that stand for 1 of the matrix.")
    ] = BOARD.unit_conductance,
    resonance: Annotated[float, typer.Option(help="Hz, of a cell with that capacitance.")] = BOARD.resonance,
    quality: Annotated[float, typer.Option(help="Q of that cell; low is robust.")] = BOARD.quality,
    reading_rms: Annotated[float, typer.Option(help="Volt, the largest rms reading.")] = BOARD.reading_rms,
    hold_bias: Annotated[float, typer.Option(help="Variance lost to the noise's hold time.")] = BOARD.hold_bias,
    smallest_element: Annotated[float, typer.Option(help="Farad or siemens, the least to be soldered.")] = 0.0,
    largest_element: Annotated[float | None, typer.Option(help="The most to be soldered. [1e-6 F or 1 S]")] = None,
    series: Annotated[
        str | None, typer.Option(help="Round all parts to E6, E12, E24, E48 or E96, best for the inverse.")
    ] = None,
    parallel: Annotated[int, typer.Option(help="Parts that hold an element, 1 or 2.")] = BOARD.parallel,
    bank_bits: Annotated[int, typer.Option(help="Couplings as switched banks of so many bits; 0: soldered.")] = 0,
    bank_range: Annotated[
        float | None, typer.Option(help="What a bank reaches, in units. [twice what the target needs]")
    ] = None,
    switch_resistance: Annotated[float, typer.Option(help="Ohm, of a closed switch.")] = BOARD.switch_resistance,
    pad_capacitance: Annotated[float, typer.Option(help="Farad, at either side of a switch.")] = BOARD.pad_capacitance,
    source_tolerance: Annotated[
        float, typer.Option(help="The power of every noise source is off by up to this fraction.")
    ] = BOARD.source_tolerance,
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
    options = BoardOptions(
        coupling=coupling or BOARD.coupling,
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
    request = synthesis.BoardRequest(
        copies=copies,
        tolerance=tolerance,
        seed=seed,
        cells=cells,
        options=options,
        parasitics=Parasitics(winding, self_resonance, esr, coupled_coils, stray),
    )
    place = synthesis.TargetOptions(target, at, precondition, damping, name)
    made = (
        netlist.design_folder(place, request, out, force)
        if reuse is None
        else netlist.reuse_folder(place, request, reuse, coupling, out, force)
    )
    print(f"{out}: {made.program.step}; {len(made.copies)} copies, yield {made.yield_fraction:.0%}")
    print("\n".join(f"  {line}" for line in netlist.review_lines(made)))
    if explain:
        print("\n" + netlist.explanation_text(made.board, made.program), end="")


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
    ambient: Annotated[float, typer.Option(help="Temperature of the boards in °C.")] = AMBIENT,
    copies: Annotated[int, typer.Option(help="Fresh copies drawn for the population.")] = POPULATION,
    bound: Annotated[float | None, typer.Option(help="Error by which the population is judged.")] = None,
    measured: Annotated[
        Path | None, typer.Option(help="Readings of a physical board (copy,time_s,cell1_V,…) in place of ngspice.")
    ] = None,
    force: Force = False,
) -> None:
    """Run every copy in ngspice, or take recorded readings, and compare the inverse with the target's."""
    options = verification.VerifyOptions(method, samples, target_error, seed, charge, ambient, copies, bound, measured)
    with Stages(announce=False) as stage:
        result = verification.verify_folder(folder, options, force, stage("verify"))
    reports.show(reports.verification_table({folder.name: result}))
    for table in reports.more_tables(result):
        reports.show(table)


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
    ] = READOUT,
    order: Annotated[
        int | None,
        typer.Option(help="States of the process it predicts. [the fewest that are good enough]"),
    ] = None,
    force: Force = False,
) -> None:
    """Fit every copy to its runs; one with banks to programmings of its own, which it runs."""
    how = {"measured": measured, "readout": readout_tolerance, "order": order, "samples": samples, "seed": seed}
    with Stages(announce=False) as stage:
        content = calibration.calibrate_folder(folder, route, force, stage("calibrate"), **how)
    for line in reports.calibration_lines(content):
        print(line)
    if warning := content["fitted_on"]["reduced_order"]["warning"]:
        print(f"warning: {warning}", file=sys.stderr)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run, of runs, or of results of training.")],
    force: Force = False,
) -> None:
    """One self-contained HTML page of everything in a folder."""
    print(reports.report(folder, force))


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
    pipeline, read_json = import_module("tngd.pipeline"), import_module("circuits.files").read_json
    options = pipeline.RunOptions(name, copies, tolerance, seed, samples, seeds, steps)
    with Stages() as stage:
        page = pipeline.run(options, out, force, stage)
    results = {
        kind: read_json(out / kind / "verification.json", "verify")
        for kind in ("raw", "preconditioned")
        if (out / kind / "verification.json").exists()
    }
    reports.show(reports.verification_table(results))
    for result in read_json(out / "training.json", "train")["tasks"].values():
        reports.show(reports.training_table(result))
    print(page.resolve())


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
        reports.show(reports.devices_table(model.shipped_devices()))
        return
    with Stages(announce=False) as stage:
        files = calibration.write_presets(make, force, stage("devices"))
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
    made = model.set_interface(device, out, dac, adc, source_bits, force)
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
    reports.show(reports.spread_table(model.draw_fitted_copies(device, out, copies, seed, force)))


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
    trim = calibration.RetrimOptions(copy, target, at, precondition, damping, programmings, check)
    with Stages(announce=False) as stage:
        content = calibration.retrim_folder(folder, trim, out, force, stage("retrim"))
    reports.show(reports.retrim_table(content))


def _small(name: str, about: str) -> None:
    """Add the command of a task that trains on the copies of a device in seconds."""

    @train.command(name, help=f"{about}: TNGD on calibrated copies beside SGD, Adam and exact NGD.")
    def command(
        device: Annotated[str, typer.Option(help="device.json of calibrated copies, or a preset by name.")],
        out: Annotated[Path | None, typer.Option(help="Results file. [training.json beside the device]")] = None,
        seeds: Seeds = 3,
        steps: Steps = None,
        force: Force = False,
    ) -> None:
        with Stages(announce=False) as stage:
            result = training.train_task_file(name, Path(device), out, seeds, steps, force, stage(f"train {name}"))
        reports.show(reports.training_table(result))


for _name in DATA_SETS:
    _small(_name, "Logistic regression of 8 parameters on real data")
_small("digits", "A network of 1,810 parameters on 8 x 8 digits")


@train.command()
def mnist(
    setting: Annotated[
        str, typer.Option(help="paper: 10,000 images, 6,218 parameters; lenet: 60,000 images, 61,706 parameters.")
    ] = "paper",
    data: Annotated[Path, typer.Option(help="Folder of the MNIST files; `make data` fetches them.")] = Path("data"),
    methods: Annotated[str | None, typer.Option(help="Some of the methods, by commas. [all]")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds. [the setting's own]")] = None,
    epochs: Annotated[int | None, typer.Option(help="How many epochs. [the setting's own]")] = None,
    study: Annotated[str | None, typer.Option(help="A study of the device instead of the comparison.")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="First choose settings on held-back training images.")] = False,
    train_size: Annotated[int | None, typer.Option(help="Training images. [the setting's own]")] = None,
    test_size: Annotated[int | None, typer.Option(help="Test images. [the setting's own]")] = None,
    device: Annotated[
        str | None, typer.Option(help="Calibrated copies: device.json or a preset; without it no tiles and arrays.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The results file, filled run by run.")] = Path("mnist.json"),
    curves: Annotated[Path | None, typer.Option(help="Also draw the learning curves, as SVG.")] = None,
    force: Force = False,
) -> None:
    """TNGD beside SGD, Adam, exact NGD, conjugate gradients and K-FAC on MNIST; goes on where it stopped."""
    names = None if methods is None else tuple(name.strip() for name in methods.split(","))
    if curves is not None and study is not None:
        raise InputError("--curves draws the comparison, not a study; drop one of them")
    request = training.ComparisonOptions(setting, names, seeds, epochs, train_size, test_size, study, tune)
    with Stages(announce=False) as stage:
        found = training.train_mnist(request, data, device, out, force, stage(f"train mnist, {study or setting}"))
    if curves is not None:
        import_module("circuits.files").write_text(curves, reports.learning_curves(found))
    for table in [reports.study_table(study, found)] if study else reports.comparison_tables(setting, found):
        reports.show(table)


@train.command()
def squad(
    data: Annotated[
        str | None, typer.Option(help="Folder of the questions, or hub. [data, ../shared/data]", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option(help="minilm, or a DistilBERT of the hub by name.")] = "minilm",
    layers: Annotated[int, typer.Option(help="How many of its layers.")] = 2,
    length: Annotated[int, typer.Option(help="Tokens of question and context; what does not fit is dropped.")] = 64,
    dropout: Annotated[float, typer.Option(help="Dropout of the adapters and the frozen layers.")] = 0.1,
    train_size: Annotated[int, typer.Option(help="Questions trained on.")] = 768,
    test_size: Annotated[int, typer.Option(help="Questions tested on.")] = 256,
    batch: Annotated[int, typer.Option(help="Questions a step.")] = 16,
    epochs: Annotated[int, typer.Option(help="How many epochs.")] = 2,
    seeds: Seeds = 3,
    first_seed: Annotated[int, typer.Option(help="The first of the seeds.")] = 0,
    curvature: Annotated[str, typer.Option(help="Of TNGD: mc, empirical, or ggn as in the paper (slow).")] = "mc",
    methods: Annotated[str | None, typer.Option(help="By commas, with settings as tngd:lr=0.1. [all]")] = None,
    out: Annotated[Path, typer.Option(help="Results file.")] = Path("squad.json"),
    force: Force = False,
) -> None:
    """Question answering with LoRA: TNGD beside gradient descent, Adam and sign descent; goes on where it stopped."""
    names = training.COMPARED if methods is None else tuple(name.strip() for name in methods.split(","))
    recipe = training.SquadSettings(
        model=model,
        layers=layers,
        length=length,
        dropout=dropout,
        train_size=train_size,
        test_size=test_size,
        batch=batch,
        epochs=epochs,
        seeds=seeds,
        first_seed=first_seed,
        curvature=curvature,
        methods=names,
    )
    with Stages(announce=False) as stage:
        result = training.train_squad(recipe, data, out, force, stage("train squad"))
    reports.show(reports.squad_table(result))


app.add_typer(train, name="train")


def main() -> int:
    """Run the command; the exit code, `INTERRUPTED` after Ctrl-C."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name or a sign that the terminal has no letter for
    # The matrices are small: more BLAS threads cost time and change the last digits. Read when numpy is loaded.
    os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")
    try:
        words = sys.argv[1:] or ["--help"]
        code = _help(words) if "--help" in words else app(words, standalone_mode=False)
    except (InputError, SimulationError) as error:
        code = _refuse(str(error))
    except typer.TyperException as error:
        code = _refuse(f"{error.format_message().rstrip('.')}; see tngd --help")
    except OSError as error:
        code = _refuse(f"the system says {error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
    return code if isinstance(code, int) else 0  # typer turns Ctrl-C into INTERRUPTED


def _help(words: list[str]) -> int:
    """Print the help page of the verb that the words name; the exit code.

    Without parsing: typer's parser loads pydantic, which takes as long as the rest of the page.
    """
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="tngd", max_content_width=WIDE)
    for word in words[: words.index("--help")]:
        if isinstance(command, typer.core.TyperGroup):
            command = command.get_command(context, word)
            if command is None:
                raise InputError(f"No such command {word!r}; see tngd --help")
            context = typer.Context(command, info_name=word, parent=context, max_content_width=WIDE)
    print(command.get_help(context))
    return 0


def _refuse(sentence: str) -> int:
    """Print one line, whatever a file name or a program put into the sentence; the exit code."""
    print("tngd: " + "".join(c if c.isprintable() else " " for c in sentence), file=sys.stderr)
    return 2


def _words(converter: Any) -> str:
    full = f"{converter.bits} bits, full scale ±{converter.range:g} rms"
    rate = "" if converter.rate is None else f", {converter.rate:g} values a second"
    rounds = "no rounding" if converter.bits is None else full
    return f"{rounds}, noise {converter.noise:g}, offset {converter.offset:g} rms{rate}"

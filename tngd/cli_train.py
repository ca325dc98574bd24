"""The command `tngd train`: a verb of its own for every task."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from circuits.errors import InputError
from circuits.files import write_text
from circuits.synthesis.options import DATA_SETS
from tngd.options import Force, Seeds, Steps
from tngd.report.sheets import show
from tngd.report.training_tables import training_table
from tngd.stages import Stages


class Tasks(typer.core.TyperGroup):
    """The tasks by name; another name is refused in the words of the other verbs."""

    def get_command(self, context, name):
        """The task's command; InputError if there is none."""
        found = super().get_command(context, name)
        if found is None:
            raise InputError(f"unknown task {name!r}; expected one of {', '.join(self.list_commands(context))}")
        return found


app = typer.Typer(cls=Tasks, help="Train with TNGD beside other optimizers.")


def _small(name: str, about: str) -> None:
    """Add the command of a task that trains on the copies of a device in seconds."""

    @app.command(name, help=f"{about}: TNGD on calibrated copies beside SGD, Adam and exact NGD.")
    def command(
        device: Annotated[str, typer.Option(help="device.json of calibrated copies, or a preset by name.")],
        out: Annotated[Path | None, typer.Option(help="Results file. [training.json beside the device]")] = None,
        seeds: Seeds = 3,
        steps: Steps = None,
        force: Force = False,
    ) -> None:
        with Stages(announce=False) as stage:
            result = _loaded("learning").train(name, Path(device), out, seeds, steps, force, stage(f"train {name}"))
        show(training_table(result))


for _name in DATA_SETS:
    _small(_name, "Logistic regression of 8 parameters on real data")
_small("digits", "A network of 1,810 parameters on 8 x 8 digits")


@app.command()
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
    evidence = _loaded("evidence")
    names = None if methods is None else tuple(name.strip() for name in methods.split(","))
    if curves is not None and study is not None:
        raise InputError("--curves draws the comparison, not a study; drop one of them")
    request = evidence.Request(setting, names, seeds, epochs, train_size, test_size, study, tune)
    with Stages(announce=False) as stage:
        found = evidence.train_mnist(request, data, device, out, force, stage(f"train mnist, {study or setting}"))
    if curves is not None:
        write_text(curves, _loaded("plots_training").learning_curves(found))
    tables = _loaded("mnist_tables")
    for table in [tables.study_table(study, found)] if study else tables.comparison_tables(setting, found):
        show(table)


@app.command()
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
    module = _loaded("squad")
    names = module.COMPARED if methods is None else tuple(name.strip() for name in methods.split(","))
    recipe = module.Recipe(
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
        result = module.squad(recipe, data, out, force, stage("train squad"))
    show(_loaded("squad_table").squad_table(result))


def _loaded(name: str) -> ModuleType:
    """A module of ours, loaded when its verb is called: torch takes seconds, which no board needs."""
    return importlib.import_module(f"tngd.{name}")

"""Tables of training for the terminal and the report, from mnist.json, squad.json and training.json."""

from typing import Any

from tngd.report.sheets import Sheet, seconds, seeds_of, sheet, with_diverged, with_error, with_interval

FINAL = ("train loss", "test loss", "test accuracy")

COLUMNS = {
    "batch_loss": ("loss, last epoch", 3),
    "test_loss": ("test loss", 3),
    "exact_match": ("exact match", 1),
    "f1": ("F1", 1),
}


def comparison_tables(setting: str, found: dict[str, Any]) -> list[Sheet]:
    """Final figures of every method, epochs to the losses of Adam and SGD, differences to Adam and the ideal device."""
    what, methods = found["what"], found["methods"]
    data = "MNIST" if what["genuine"] else "Images that are not MNIST's"
    size = f"{what['train']:,} images, {what['parameters']:,} parameters"
    title = f"{data}, {setting}: {size}, epochs: {what['epochs']}"
    final, against, ideal = [], [], []
    for key, each in found["summary"].items():
        name = methods[key]["what"]["title"]
        if not each["finished"]:
            final.append((name, seeds_of(each)))
            continue
        final.append((name, seeds_of(each), *_figures(each), seconds(each["cpu_s"])))
        adam, sgd, minus = each.get("to_adam"), each.get("to_sgd"), each.get("minus_adam", {})
        against.append(
            (
                name,
                _time(adam),
                _time(sgd),
                with_interval(minus.get("test_loss"), 4),
                with_interval(minus.get("test_accuracy"), 2, 100),
            )
        )
        if "minus_ideal" in each:
            own = each["minus_ideal"]
            ideal.append((name, with_interval(own["test_loss"], 4), with_interval(own["test_accuracy"], 2, 100)))
    tables = [
        sheet(f"{title}; mean ± standard error over seeds", ("optimizer", "seeds", *FINAL, "CPU s"), final),
        sheet(
            "Until the training loss is where another ends; differences to Adam (95 % intervals, accuracy in points)",
            ("optimizer", "epochs to Adam's", "epochs to SGD's", "test loss − Adam's", "accuracy − Adam's"),
            against,
        ),
    ]
    words = ("optimizer", "test loss − ideal's", "accuracy − ideal's")
    errors = [sheet("What errors of the device do (95 % intervals, accuracy in points)", words, ideal)]
    return tables + errors if ideal else tables


def study_table(name: str, found: dict[str, Any]) -> Sheet:
    """One row for each cell of a study: its varied settings and final figures."""
    what, cells = found["what"], found["cells"]
    varied = list(next(iter(cells.values()))["what"]["varied"])
    rows = [
        (
            *(str(cells[key]["what"]["varied"].get(column, "")) for column in varied),
            seeds_of(each),
            *(_figures(each) if each["finished"] else ()),
        )
        for key, each in found["summary"].items()
    ]
    title = f"{name}: {what['about']}; {what['train']:,} images, epochs: {what['epochs']}; mean ± standard error"
    return sheet(title, (*varied, "seeds", *FINAL), rows)


def _figures(summary: dict[str, Any]) -> tuple[str, str, str]:
    losses = (with_error(summary[name], 4) for name in ("train_loss", "test_loss"))
    return (*losses, with_error(summary["test_accuracy"], 2, 100, " %"))


def _time(value: dict[str, Any] | None) -> str:
    """Mean epochs and CPU seconds to a target, or the number of seeds that reached the target."""
    if value is None:
        return ""
    if "epochs" in value:
        return f"{value['epochs']['mean']:.2f} ({value['cpu_s']['mean']:.3g} s)"
    return "never" if not value["reached"] else f"{value['reached']} of {value['of']} seeds"


def squad_table(result: dict[str, Any]) -> Sheet:
    """Final figures of every method in squad.json, mean ± standard error over seeds, and CPU seconds of a step."""
    recipe, steps = result["recipe"], result["steps_per_epoch"] * result["recipe"]["epochs"]
    rows = []
    for method in result["methods"]:
        settings = ", ".join(f"{name} {value}" for name, value in method["settings"].items())
        lost = sum(run["diverged"] is not None for run in method["runs"])
        if method["final"] is None:
            rows.append((method["name"], settings, "diverged"))
            continue
        cells = [with_error(method["final"][name], digits) for name, (_, digits) in COLUMNS.items()]
        name = with_diverged(method["name"], lost, len(method["runs"]))
        rows.append((name, settings, *cells, f"{method['cpu_s_per_step']:.2f}"))
    return sheet(
        f"{recipe['model']}, {recipe['layers']} layers, {result['trained_parameters']:,} trained parameters: "
        f"{steps} steps of {recipe['batch']}, {recipe['seeds']} seeds, {result['test_questions']} test questions",
        ("method", "settings", *(name for name, _ in COLUMNS.values()), "CPU s/step"),
        rows,
        words=2,
    )


def training_table(result: dict[str, Any]) -> Sheet:
    """Final losses of every optimizer, from one task of training.json.

    The mean number of saturated readings in a step has a column if any is not zero.
    """
    rows, full = [], any(method.get("tiles", {}).get("saturated") for method in result["methods"])
    for method in result["methods"]:
        final, tiles = method["final"], method.get("tiles")
        name = with_diverged(method["name"], len(method.get("diverged", ())), result["seeds"])
        figures = (
            (
                f"{final['train_loss']['mean']:.4f}",
                f"{final['test_loss']['mean']:.4f}",
                f"{final['test_accuracy']['mean']:.2%}",
            )
            if final
            else ("",) * 3
        )
        boards = (f"{tiles['direction_deviation']:.2%}", f"{tiles['passive_fraction']:.0%}") if tiles else ()
        boards += (f"{tiles['saturated']:.3g}",) if tiles and full else ()
        rows.append((name, *figures, *boards))
    columns = ("optimizer", "train loss", "test loss", "test accuracy")
    return sheet(
        f"Training {result['task']}: {result['steps']} steps, mean of {result['seeds']} seeds",
        (*columns, "direction off by", "passive tiles", *["saturated a step"] * full),
        rows,
    )

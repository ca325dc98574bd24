"""The summaries of mnist.json as tables, for `tngd train mnist` and the report."""

from typing import Any

from tngd.report.sheets import Sheet, seconds, seeds_of, sheet, with_error, with_interval

FINAL = ("train loss", "test loss", "test accuracy")


def comparison_tables(setting: str, found: dict[str, Any]) -> list[Sheet]:
    """Final figures of every method; then how soon it is where another ends, and its differences to Adam."""
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
    """A row a cell of a study, with what is varied."""
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
    """The mean epochs and CPU seconds, or how many seeds came there at all."""
    if value is None:
        return ""
    if "epochs" in value:
        return f"{value['epochs']['mean']:.2f} ({value['cpu_s']['mean']:.3g} s)"
    return "never" if not value["reached"] else f"{value['reached']} of {value['of']} seeds"

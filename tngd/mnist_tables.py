"""What `tngd train mnist` prints: tables of the summaries in mnist.json."""

from typing import Any

from rich.table import Table

SECONDS = 100  # from here on without decimals


def comparison_tables(setting: str, found: dict[str, Any]) -> list[Table]:
    """Final figures of every method; then how soon it is where Adam ends, and its differences to Adam."""
    what, methods = found["what"], found["methods"]
    data = "MNIST" if what["genuine"] else "Images that are not MNIST's"
    size = f"{what['train']:,} images, {what['parameters']:,} parameters"
    title = f"{data}, {setting}: {size}, epochs: {what['epochs']}"
    final = _table(
        f"{title}; mean ± standard error over seeds",
        ("optimizer", "seeds", "train loss", "test loss", "test accuracy", "CPU s"),
    )
    against = _table(
        "Until the training loss is where another method ends, and what is different from Adam (95 % intervals)",
        ("optimizer", "epochs to Adam's", "CPU s", "epochs to SGD's", "test loss − Adam's", "accuracy − Adam's"),
    )
    for key, each in found["summary"].items():
        name = methods[key]["what"]["title"]
        seeds = f"{each['finished']}" + (f", {each['diverged']} diverged" if each["diverged"] else "")
        if not each["finished"]:
            final.add_row(name, seeds, *[""] * 4)
            continue
        final.add_row(
            name,
            seeds,
            _with_error(each["train_loss"], 4),
            _with_error(each["test_loss"], 4),
            _with_error(each["test_accuracy"], 2, 100, " %"),
            _with_error(each["cpu_s"], 1),
        )
        adam, sgd, minus = each.get("to_adam"), each.get("to_sgd"), each.get("minus_adam", {})
        against.add_row(
            name,
            _time(adam, "epochs"),
            _time(adam, "cpu_s"),
            _time(sgd, "epochs"),
            _interval(minus.get("test_loss"), 4),
            _interval(minus.get("test_accuracy"), 2, 100, " points"),
        )
    return [final, against]


def study_table(name: str, found: dict[str, Any]) -> Table:
    """A row a cell of a study, with what is varied."""
    what, cells = found["what"], found["cells"]
    varied = list(next(iter(cells.values()))["what"]["varied"])
    title = f"{name}: {what['about']}; {what['train']:,} images, epochs: {what['epochs']}; mean ± standard error"
    table = _table(title, (*varied, "seeds", "train loss", "test loss", "test accuracy"))
    for key, each in found["summary"].items():
        values = [str(cells[key]["what"]["varied"].get(column, "")) for column in varied]
        seeds = f"{each['finished']}" + (f", {each['diverged']} diverged" if each["diverged"] else "")
        figures = (
            [
                _with_error(each["train_loss"], 4),
                _with_error(each["test_loss"], 4),
                _with_error(each["test_accuracy"], 2, 100, " %"),
            ]
            if each["finished"]
            else [""] * 3
        )
        table.add_row(*values, seeds, *figures)
    return table


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for k, column in enumerate(columns):
        table.add_column(column, justify="right" if k else "left")
    return table


def _with_error(value: dict[str, float | None], digits: int, times: float = 1, unit: str = "") -> str:
    mean, error = value["mean"] * times, value["standard_error"]
    digits = 0 if abs(mean) >= SECONDS and not unit else digits
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error * times:.{digits}f}") + unit


def _interval(value: dict[str, float | None] | None, digits: int, times: float = 1, unit: str = "") -> str:
    if value is None:
        return ""
    half = value["half_width_95"]
    return f"{value['mean'] * times:+.{digits}f}" + ("" if half is None else f" ± {half * times:.{digits}f}") + unit


def _time(value: dict[str, Any] | None, name: str) -> str:
    """The mean time, or how many seeds came there at all."""
    if value is None:
        return ""
    if name in value:
        return f"{value[name]['mean']:.2f}" if value[name]["mean"] < SECONDS else f"{value[name]['mean']:.0f}"
    return "never" if not value["reached"] else f"{value['reached']} of {value['of']} seeds"

"""What `tngd train squad` prints: a line a method, from squad.json."""

from typing import Any

from rich.table import Table

COLUMNS = {
    "batch_loss": ("loss, last epoch", "{:.3f}"),
    "test_loss": ("test loss", "{:.3f}"),
    "exact_match": ("exact match", "{:.1f}"),
    "f1": ("F1", "{:.1f}"),
}


def squad_table(result: dict[str, Any]) -> Table:
    """Final figures, mean ± standard error over seeds, and CPU seconds of a step."""
    recipe, steps = result["recipe"], result["steps_per_epoch"] * result["recipe"]["epochs"]
    table = Table(
        title=f"{recipe['model']}, {recipe['layers']} layers, {result['trained_parameters']:,} trained parameters: "
        f"{steps} steps of {recipe['batch']}, {recipe['seeds']} seeds, {result['test_questions']} test questions",
        title_justify="left",
    )
    table.add_column("method")
    table.add_column("settings")
    for name, _ in COLUMNS.values():
        table.add_column(name, justify="right")
    table.add_column("CPU s/step", justify="right")
    for method in result["methods"]:
        settings = ", ".join(f"{name} {value}" for name, value in method["settings"].items())
        lost = sum(run["diverged"] is not None for run in method["runs"])
        if method["final"] is None:
            table.add_row(method["name"], settings, "diverged", *[""] * len(COLUMNS))
            continue
        cells = [_cell(method["final"][name], form) for name, (_, form) in COLUMNS.items()]
        name = method["name"] + (f" ({lost} of {len(method['runs'])} diverged)" if lost else "")
        table.add_row(name, settings, *cells, f"{method['cpu_s_per_step']:.2f}")
    return table


def _cell(figure: dict[str, float | None], form: str) -> str:
    error = figure["standard_error"]
    return form.format(figure["mean"]) + (f" ± {form.format(error)}" if error is not None else "")

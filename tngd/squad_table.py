"""The methods of squad.json as a table, for `tngd train squad` and the report."""

from typing import Any

from tngd.report.sheets import Sheet, sheet, with_error

COLUMNS = {
    "batch_loss": ("loss, last epoch", 3),
    "test_loss": ("test loss", 3),
    "exact_match": ("exact match", 1),
    "f1": ("F1", 1),
}


def squad_table(result: dict[str, Any]) -> Sheet:
    """Final figures, mean ± standard error over seeds, and CPU seconds of a step."""
    recipe, steps = result["recipe"], result["steps_per_epoch"] * result["recipe"]["epochs"]
    rows = []
    for method in result["methods"]:
        settings = ", ".join(f"{name} {value}" for name, value in method["settings"].items())
        lost = sum(run["diverged"] is not None for run in method["runs"])
        if method["final"] is None:
            rows.append((method["name"], settings, "diverged"))
            continue
        cells = [with_error(method["final"][name], digits) for name, (_, digits) in COLUMNS.items()]
        name = method["name"] + (f" ({lost} of {len(method['runs'])} diverged)" if lost else "")
        rows.append((name, settings, *cells, f"{method['cpu_s_per_step']:.2f}"))
    return sheet(
        f"{recipe['model']}, {recipe['layers']} layers, {result['trained_parameters']:,} trained parameters: "
        f"{steps} steps of {recipe['batch']}, {recipe['seeds']} seeds, {result['test_questions']} test questions",
        ("method", "settings", *(name for name, _ in COLUMNS.values()), "CPU s/step"),
        rows,
        words=2,
    )

"""What `tngd verify`, `train` and `run` print: tables of what they wrote to files."""

import sys
from typing import Any

from rich.console import Console
from rich.table import Table


def show(table: Table) -> None:
    """Print a table, 110 letters wide where nobody sets the width."""
    Console(width=None if sys.stdout.isatty() else 110, markup=False, emoji=False).print(table)


def verification_table(results: dict[str, dict[str, Any]]) -> Table:
    """Errors of the inverse of every copy, from the contents of verification.json by board."""
    table = Table(title="Relative error of the inverse", title_justify="left")
    solves = any("solve" in result["nominal"] for result in results.values())
    columns = (
        "board",
        "copy",
        "exact",
        *(["solve"] if solves else []),
        "sampled",
        "expected",
        "samples",
        "χ² p",
        "own law",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("board", "copy") else "right")
    for board, result in results.items():
        nominal = [result["nominal"]] if "exact" in result["nominal"] else []
        for entry in [*nominal, *result["copies"], result["mean_of_copies"]]:
            exact, sampled = entry.get("exact"), entry.get("sampled")
            table.add_row(
                board,
                entry["name"],
                f"{exact['relative_error']:.2e}" if exact else "",
                *([f"{entry['solve']['relative_error']:.2e}" if "solve" in entry else ""] if solves else []),
                f"{sampled['relative_error']:.2%}" if sampled else "",
                f"{sampled['expected_error']:.2%}" if sampled else "",
                f"{sampled['samples']:,}" if sampled else "",
                f"{sampled['p_value']:.2g}" if sampled and "p_value" in sampled else "",
                {True: "agrees", False: "DISAGREES"}.get(entry.get("agrees"), ""),
            )
        table.add_section()
    return table


def training_table(result: dict[str, Any]) -> Table:
    """Final losses of every optimizer, from one task of training.json."""
    title = f"Training {result['task']}: {result['steps']} steps, mean of {result['seeds']} seeds"
    table = Table(title=title, title_justify="left")
    for column in ("optimizer", "train loss", "test loss", "test accuracy", "direction off by", "passive tiles"):
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for method in result["methods"]:
        final, tiles = method["final"], method.get("tiles")
        table.add_row(
            method["name"],
            f"{final['train_loss']['mean']:.4f}",
            f"{final['test_loss']['mean']:.4f}",
            f"{final['test_accuracy']['mean']:.2%}",
            f"{tiles['direction_deviation']:.2%}" if tiles else "",
            f"{tiles['passive_fraction']:.0%}" if tiles else "",
        )
    return table

"""Tables as plain text by rows, the same for the terminal and the report, and the texts of their figures."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

SECONDS = 100  # from here on without decimals


@dataclass(frozen=True)
class Sheet:
    """Text by rows; the first `words` columns hold words, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


def sheet(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> Sheet:
    """A sheet; a short row is filled up with empty cells."""
    width = len(columns)
    return Sheet(title, tuple(columns), tuple((*row, *[""] * (width - len(row))) for row in rows), words)


def with_error(value: dict[str, float | None], digits: int, times: float = 1, unit: str = "") -> str:
    """Mean ± standard error."""
    return _plus_minus(value["mean"], value["standard_error"], digits, times, unit, "")


def with_interval(value: dict[str, float | None] | None, digits: int, times: float = 1, unit: str = "") -> str:
    """A difference ± half the width of its 95 % interval; an empty text without a difference."""
    return "" if value is None else _plus_minus(value["mean"], value["half_width_95"], digits, times, unit, "+")


def seconds(value: dict[str, float | None]) -> str:
    """Mean ± standard error of times in seconds."""
    return with_error(value, 0 if value["mean"] >= SECONDS else 1)


def seeds_of(summary: dict[str, Any]) -> str:
    """Number of seeds that finished, and of those that diverged, if any."""
    return f"{summary['finished']}" + (f", {summary['diverged']} diverged" if summary["diverged"] else "")


def with_diverged(name: str, diverged: int, seeds: int) -> str:
    """Name of a method, with the number of its seeds that diverged, if any."""
    return name + (f" ({diverged} of {seeds} diverged)" if diverged else "")


def _plus_minus(mean: float, spread: float | None, digits: int, times: float, unit: str, sign: str) -> str:
    return f"{mean * times:{sign}.{digits}f}" + ("" if spread is None else f" ± {spread * times:.{digits}f}") + unit


def show(table: Table | Sheet) -> None:
    """Print a table, as wide as the terminal, else 110 characters wide."""
    drawn = rich_table(table) if isinstance(table, Sheet) else table
    Console(width=None if sys.stdout.isatty() else 110, markup=False, emoji=False).print(drawn)


def rich_table(sheet: Sheet) -> Table:
    """A sheet for the terminal."""
    table = Table(title=sheet.title, title_justify="left")
    for k, column in enumerate(sheet.columns):
        table.add_column(column, justify="left" if k < sheet.words else "right")
    for row in sheet.rows:
        table.add_row(*row)
    return table

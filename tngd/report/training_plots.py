"""Figures of training as SVG text, from training.json, mnist.json and squad.json."""

import textwrap
from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from tngd.report.board_plots import COLOURS, LINES, MARKERS, STYLE, svg, words

TOGETHER = 5  # curves in one row of panels, few enough to tell apart
PANELS = (("train_loss", "epoch"), ("train_loss", "cpu_s"), ("test_loss", "epoch"), ("test_loss", "cpu_s"))
LABELS = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "epoch": "epoch",
    "cpu_s": "CPU seconds of steps",
}
ROW = 0.21  # inches, a row of dots
NAME = 34  # letters of a method in a line of a legend


def task_curves(result: dict[str, Any]) -> str:
    """Training loss against steps, mean over seeds with the range; less the optimum where the optimum is known.

    `result` is a task of training.json. The curve of a method ends where one of its seeds diverged.
    """
    optimum = np.array(result["optimal_train_loss"] or [0.0] * result["seeds"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.8), layout="constrained")
        axes = figure.subplots()
        for k, method in enumerate(result["methods"]):
            curves = np.array(method["train_loss"], dtype=float) - optimum[:, None]
            axes.semilogy(
                result["evaluated_at"],
                curves.mean(axis=0),
                linestyle=LINES[k],
                color=COLOURS[k],
                label=_legend(method["name"]),
            )
            ends = curves.min(axis=0), curves.max(axis=0)
            axes.fill_between(result["evaluated_at"], *ends, color=COLOURS[k], alpha=0.12, linewidth=0)
        axes.set_xlabel("step")
        axes.set_ylabel("training loss above the optimum" if result["optimal_train_loss"] else "training loss")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
        return svg(figure)


def learning_curves(comparison: dict[str, Any]) -> str:
    """Training and test loss of every method over epochs and over CPU seconds of steps, from the first epoch on.

    A few methods a row, with all others in grey behind them. Means over the seeds that finished, with a band of one
    standard error; `comparison` as in mnist.json.
    """
    curves = {}
    for method in comparison["methods"].values():
        runs = [run["records"] for run in method.get("seeds", {}).values() if run["diverged"] is None]
        if runs:
            curves[method["what"]["title"]] = runs
    names = list(curves)
    groups = [names[k : k + TOGETHER] for k in range(0, len(names), TOGETHER)] or [[]]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.6, 0.5 + 2.1 * len(groups)), layout="constrained")
        rows = figure.subplots(len(groups), len(PANELS), sharex="col", sharey=True, squeeze=False)
        for axes, (value, along) in zip(rows[0], PANELS, strict=True):
            axes.set_yscale("log")
            axes.set_xscale("log" if along == "cpu_s" else "linear")
            axes.set_title(LABELS[value], fontsize=9)
            _mark(axes.yaxis, (1, 2, 5))
            if along == "cpu_s":
                _mark(axes.xaxis, (1, 3))
            if along == "epoch":
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        for row, group in zip(rows, groups, strict=True):
            for axes, (value, along) in zip(row, PANELS, strict=True):
                for name in (name for name in names if name not in group):
                    x, mean, _ = _curve(curves[name], value, along)
                    axes.plot(x, mean, color="0.85", linewidth=0.8, zorder=1)
                _draw(axes, {name: _curve(curves[name], value, along) for name in group})
            if group:
                row[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
        for axes, (_, along) in zip(rows[-1], PANELS, strict=True):
            axes.set_xlabel(LABELS[along])
        return svg(figure)


def study_dots(study: dict[str, Any]) -> str:
    """Test accuracy of every cell of a study: each seed, the mean with one standard error, seeds that diverged.

    Cells with the same first of the varied settings share colour and marker; `study` as in mnist.json.
    """
    cells = list(study["cells"].values())
    firsts = list(dict.fromkeys(str(next(iter(cell["what"]["varied"].values()))) for cell in cells))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 0.7 + ROW * len(cells)), layout="constrained")
        axes = figure.subplots()
        for row, cell in enumerate(cells):
            k = firsts.index(str(next(iter(cell["what"]["varied"].values())))) % 6
            runs = list(cell.get("seeds", {}).values())
            found = [100 * run["records"][-1]["test_accuracy"] for run in runs if run["diverged"] is None]
            _dots(axes, row, found, k)
            lost = len(runs) - len(found)
            if lost:
                place = {"transform": axes.get_yaxis_transform(), "va": "center"}
                axes.text(1.01, row, f"{lost} of {len(runs)} diverged", fontsize=8, color="0.35", **place)
        labels = [", ".join(f"{key} {value}" for key, value in cell["what"]["varied"].items()) for cell in cells]
        axes.set_yticks(range(len(cells)), [words(label) for label in labels], fontsize=8)
        axes.set_ylim(len(cells) - 0.4, -0.6)
        axes.set_xlabel("test accuracy [%]")
        axes.margins(x=0.06)
        return svg(figure)


def settling(times: list[float], errors: dict[str, list[float]]) -> str:
    """Relative distance of a device's state to its steady state against the time of the reading, by device."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 3.2), layout="constrained")
        axes = figure.subplots()
        for k, (name, values) in enumerate(errors.items()):
            axes.loglog(
                times, values, MARKERS[k], color=COLOURS[k], linestyle=LINES[k], markersize=4, label=words(name)
            )
        axes.set_xlabel("time from upload to reading [time constants]")
        axes.set_ylabel("relative distance to the solution")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
        return svg(figure)


def squad_dots(result: dict[str, Any]) -> str:
    """Test loss and F1 of every method of squad.json after the last epoch: each seed, the mean, its standard error."""
    methods = result["methods"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 0.7 + 1.3 * ROW * len(methods)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (key, label) in zip(panels, (("test_loss", "test loss"), ("f1", "F1 [%]")), strict=True):
            for row, method in enumerate(methods):
                k = int(method["name"].startswith("tngd"))  # 1: on the device
                found = [run["records"][-1][key] for run in method["runs"] if run["diverged"] is None]
                _dots(axes, row, found, k)
            axes.set_xlabel(label)
        panels[0].set_yticks(range(len(methods)), [words(method["name"]) for method in methods], fontsize=8)
        panels[0].set_ylim(len(methods) - 0.4, -0.6)
        return svg(figure)


def _mark(axis: Axis, numbers: tuple[int, ...]) -> None:
    """Label these multiples of powers of ten on a logarithmic axis, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=numbers))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _dots(axes: Axes, row: int, found: list[float], k: int) -> None:
    """Values of seeds as ticks, their mean with one standard error."""
    axes.plot(found, [row] * len(found), "|", color=COLOURS[k], markersize=6, alpha=0.7)
    if found:
        error = np.std(found, ddof=1) / len(found) ** 0.5 if len(found) > 1 else 0.0
        axes.errorbar(np.mean(found), row, xerr=error, fmt=MARKERS[k], color=COLOURS[k], markersize=4)


def _curve(runs: list[list[dict[str, Any]]], value: str, along: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Abscissa, mean and standard error of the mean after every epoch, over runs by their records."""
    x = np.array([np.cumsum([record["cpu_s"] for record in records]) for records in runs]).mean(axis=0)
    if along == "epoch":
        x = np.array([record["epoch"] for record in runs[0]])
    values = np.array([[record[value] for record in records] for records in runs])
    error = values.std(axis=0, ddof=1) / len(runs) ** 0.5 if len(runs) > 1 else np.zeros(len(x))
    return x[1:], values.mean(axis=0)[1:], error[1:]


def _draw(axes: Axes, curves: dict[str, Iterable[np.ndarray]]) -> None:
    for k, (name, (x, mean, error)) in enumerate(curves.items()):
        style = {"color": COLOURS[k], "linestyle": LINES[k], "marker": MARKERS[k], "markersize": 3}
        axes.plot(x, mean, label=_legend(name), linewidth=1.3, zorder=3, **style)
        axes.fill_between(x, mean - error, mean + error, color=COLOURS[k], alpha=0.15, linewidth=0, zorder=2)


def _legend(name: str) -> str:
    return textwrap.fill(words(name), NAME)

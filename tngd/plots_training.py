"""Learning curves of mnist.json, as SVG text, in the style of tngd.plots."""

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from tngd.plots import COLOURS, LINES, STYLE


def learning_curves(comparison: dict[str, Any]) -> str:
    """Training and test loss of every method over epochs and over CPU seconds of steps.

    Means over the seeds that finished, with a band of one standard error; `comparison` as in mnist.json.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 6.4), layout="constrained")
        panels = figure.subplots(2, 2, sharex="col", sharey="row")
        for k, method in enumerate(comparison["methods"].values()):
            runs = [run["records"] for run in method.get("seeds", {}).values() if run["diverged"] is None]
            if not runs:
                continue
            spent = np.mean([np.cumsum([record["cpu_s"] for record in records]) for records in runs], axis=0)
            epochs = [record["epoch"] for record in runs[0]]
            style = {"color": COLOURS[k % 7], "linestyle": LINES[(k // 7 + k) % 7], "linewidth": 1.3}
            for row, figure_name in zip(panels, ("train_loss", "test_loss"), strict=True):
                values = np.array([[record[figure_name] for record in records] for records in runs])
                mean = values.mean(axis=0)
                error = values.std(axis=0, ddof=1) / len(runs) ** 0.5 if len(runs) > 1 else np.zeros_like(mean)
                for axes, x, first in ((row[0], epochs, 0), (row[1], spent, 1)):  # no logarithm of 0 s
                    axes.plot(x[first:], mean[first:], label=method["what"]["title"], **style)
                    axes.fill_between(
                        x[first:], (mean - error)[first:], (mean + error)[first:], color=style["color"], alpha=0.15
                    )
        for row, words in zip(panels, ("training loss", "test loss"), strict=True):
            row[0].set_ylabel(words)
            row[0].set_yscale("log")
        panels[1, 0].set_xlabel("epoch")
        panels[1, 1].set_xlabel("CPU seconds of steps")
        panels[1, 1].set_xscale("log")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]

"""All figures, as SVG text for the report. The only module that touches matplotlib.

Colours are Okabe and Ito's, which colour-blind readers tell apart; copies also differ in marker and line, so figures
survive printing without colour.
"""

import io
import warnings
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1)), (0, (5, 1)), "-")
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "tngd",
}


def heat_maps(verification: dict[str, Any]) -> str:
    """Target, its inverse, the inverse as the mean of the copies read it, and the difference."""
    target = np.array(verification["target"]["matrix"])
    inverse = np.array(verification["target"]["inverse"])
    mean = verification["mean_of_copies"]
    route = "exact" if "exact" in mean else "sampled"
    read = np.array(mean[route]["inverse"])
    panels = [
        ("target P", target, None),
        ("P⁻¹, numpy", inverse, np.abs(inverse).max()),
        (f"P⁻¹, mean of copies ({route})", read, np.abs(inverse).max()),
        ("difference", read - inverse, None),
    ]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 2.9), layout="constrained")
        for axes, (title, matrix, limit) in zip(figure.subplots(1, 4), panels, strict=True):
            limit = limit or np.abs(matrix).max() or 1.0
            image = axes.imshow(matrix, cmap="PuOr", vmin=-limit, vmax=limit)
            axes.set_title(title, fontsize=9)
            axes.grid(False)
            ticks = np.arange(len(matrix))
            axes.set_xticks(ticks, ticks + 1)
            axes.set_yticks(ticks, ticks + 1)
            figure.colorbar(image, ax=axes, shrink=0.8)
        return _svg(figure)


def error_curves(verification: dict[str, Any]) -> str:
    """Error against samples for each copy and the mean, with the predicted line of each."""
    rows = [*verification["copies"], verification["mean_of_copies"]]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        for k, row in enumerate(rows):
            curve = row["sampled"]["curve"]
            colour = COLOURS[-1] if k == len(rows) - 1 else COLOURS[k % 6]
            axes.loglog(
                curve["samples"],
                curve["relative_error"],
                MARKERS[k % 7],
                color=colour,
                markersize=3.5,
                label=row["name"],
            )
            axes.loglog(
                curve["samples"],
                curve["expected_error"],
                color=colour,
                linewidth=1.2,
                linestyle=LINES[k % 7],
                marker="_" if len(curve["samples"]) == 1 else None,
            )
        axes.plot([], [], color="0.4", label="predicted, from each copy's own values")
        axes.set_xlabel("samples per copy")
        axes.set_ylabel("relative error of the inverse")
        axes.legend(fontsize=8)
        return _svg(figure)


def averaging(results: dict[str, dict[str, Any]]) -> str:
    """Distribution of the error of single copies and of means of three, for each board."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        for k, (name, result) in enumerate(results.items()):
            law = result["averaging"]
            for key, style, word in (
                ("single_errors", "-", "one copy"),
                ("mean_of_three_errors", "--", "mean of three"),
            ):
                if key in law:
                    errors = np.array(law[key])
                    share = np.arange(1, len(errors) + 1) / len(errors)
                    # To matplotlib a dollar sign starts a formula, and a first underscore hides the entry.
                    label = f"{name}, {word}".replace("$", r"\$").lstrip("_")
                    axes.semilogx(errors, share, style, color=COLOURS[k % 7], label=label)
        axes.set_xlabel("relative error of the inverse (exact, no sampling)")
        axes.set_ylabel("share of boards below")
        axes.legend(fontsize=8)
        return _svg(figure)


def parts(values: dict[str, float], coupling: str) -> str:
    """Values of the populated elements, by kind."""
    kinds = ("ground", "straight", "crossed", "negative")
    scale, label = (1e12, "capacitance [pF]") if coupling == "capacitive" else (1e6, "conductance [µS]")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 2.4), layout="constrained")
        axes = figure.subplots()
        for row, kind in enumerate(kinds):
            sizes = scale * np.array([abs(value) for name, value in values.items() if name.startswith(kind)])
            # Rounded, because an axis cannot be spread between values that differ by rounding alone.
            axes.plot(
                sizes.round(6), np.full(len(sizes), row), MARKERS[row], color=COLOURS[row], markersize=4, alpha=0.7
            )
        axes.set_yticks(range(len(kinds)), [*kinds[:3], "negative (|value|)"])
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.set_xlabel(label)
        return _svg(figure)


def residuals(device: dict[str, Any]) -> str:
    """Weighted residuals of every copy before and after the fit, sorted by size."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        for k, (name, fit) in enumerate(device["fitted_on"]["copies"].items()):
            for key, style, word in (("residuals_uncalibrated", ":", "nominal model"), ("residuals", "-", "fitted")):
                sizes = np.sort(np.abs(fit[key]))
                share = np.arange(1, len(sizes) + 1) / len(sizes)
                axes.semilogx(np.maximum(sizes, 1e-6), share, style, color=COLOURS[k % 6], label=f"{name}, {word}")
        axes.set_xlabel("|residual| in standard deviations of the data")
        axes.set_ylabel("share of data below")
        axes.legend(fontsize=8)
        return _svg(figure)


def gains(device: dict[str, Any]) -> str:
    """Fitted gain of every observed element of every copy, in per cent off nominal, with two standard errors."""
    names = [name for name, gain in device["copies"][0]["gains"].items() if gain["observed"]]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 2.8), layout="constrained")
        axes = figure.subplots()
        for k, copy in enumerate(device["copies"]):
            value = np.array([copy["gains"][name]["value"] - 1 for name in names])
            error = np.array([copy["gains"][name]["standard_error"] for name in names])
            x = np.arange(len(names)) + 0.2 * (k - (len(device["copies"]) - 1) / 2)
            axes.errorbar(
                x, 100 * value, 200 * error, fmt=MARKERS[k % 7], color=COLOURS[k % 6], markersize=3, label=copy["name"]
            )
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_ylabel("gain off nominal [%]")
        axes.legend(fontsize=8, ncols=3)
        return _svg(figure)


def learning(result: dict[str, Any]) -> str:
    """Training loss against steps, mean over seeds with the range; above the optimum where that is known."""
    optimum = np.array(result["optimal_train_loss"] or [0.0] * result["seeds"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        for k, method in enumerate(result["methods"]):
            curves = np.array(method["train_loss"]) - optimum[:, None]
            mean = curves.mean(axis=0)
            axes.semilogy(result["evaluated_at"], mean, linestyle=LINES[k], color=COLOURS[k], label=method["name"])
            axes.fill_between(
                result["evaluated_at"],
                curves.min(axis=0),
                curves.max(axis=0),
                color=COLOURS[k],
                alpha=0.12,
                linewidth=0,
            )
        axes.set_xlabel("step")
        axes.set_ylabel("training loss above the optimum" if result["optimal_train_loss"] else "training loss")
        axes.legend(fontsize=8)
        return _svg(figure)


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    with warnings.catch_warnings():
        # The browser has the letters of a name that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]

"""Figures of boards as SVG text for the report, with the colours and line styles of all figures.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart. Copies also differ in marker and
line, so the figures stay readable in print without colour.
"""

import io
import warnings
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_NAMES = 80  # below an axis
HATCHES = ("", "///", "\\\\\\", "...", "xxx", "---", "+++", "ooo")
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
    """Heat maps of the target, its inverse, the mean of the inverses read from the copies, and the difference."""
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
        return svg(figure)


def error_curves(verification: dict[str, Any]) -> str:
    """Error against samples for each copy and for the mean of copies, each with its predicted line."""
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
        axes.plot([], [], color="0.4", label="predicted")
        axes.set_xlabel("samples per copy")
        axes.set_ylabel("relative error of the inverse")
        axes.legend(fontsize=8)
        return svg(figure)


def populations(results: dict[str, dict[str, Any]]) -> str:
    """Yield at every bound: the share of freshly drawn copies, and of means of three, with a smaller error."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        for k, (name, result) in enumerate(results.items()):
            found = result["population"]
            curves = [("-", "one copy", found["errors"], found["copies"])]
            if "averaging" in found:
                means = found["averaging"]["mean_of_three_errors"]
                curves.append(("--", "mean of three", means, len(means)))
            for style, word, errors, count in curves:
                share = np.arange(1, len(errors) + 1) / count
                axes.semilogx(errors, share, style, color=COLOURS[k % 7], label=words(f"{name}, {word}"))
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("relative error of the inverse (exact, no sampling)")
        axes.set_ylabel("share of copies below: the yield")
        axes.legend(fontsize=8)
        return svg(figure)


def budget(verification: dict[str, Any], route: str) -> str:
    """Signed shares of the causes as bars, copy by copy; the shares add up to the error, a black mark."""
    rows = [*verification["copies"], verification["mean_of_copies"]]
    budgets = [found for row in rows for found in row["budget"] if found["route"] == route]
    causes = list(dict.fromkeys(cause["name"] for found in budgets for cause in found["causes"]))
    with mpl.rc_context(STYLE | {"hatch.linewidth": 0.6}):
        figure = Figure(figsize=(7.4, 0.9 + 0.42 * len(budgets)), layout="constrained")
        axes = figure.subplots()
        for row, found in enumerate(budgets):
            ends = {1: 0.0, -1: 0.0}  # bars to the right and to the left of zero
            for cause in found["causes"]:
                share, k = 100 * cause["share"], causes.index(cause["name"])
                side = 1 if share >= 0 else -1
                axes.barh(row, share, left=ends[side], height=0.62, linewidth=0.4, **_bar(k))
                ends[side] += share
            axes.plot([100 * found["total"]] * 2, [row - 0.38, row + 0.38], color="black", linewidth=2)
            if "interval" in found:
                low, high = found["interval"]
                axes.plot([100 * low, 100 * high], [row, row], color="black", linewidth=0.9, marker="|", markersize=7)
        for k, name in enumerate(causes):
            axes.barh(0, 0, label=name, **_bar(k))
        axes.plot([], [], color="black", linewidth=2, label="error")
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_yticks(range(len(budgets)), [found["name"] for found in budgets])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlabel("share of the relative error of the inverse [%]")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return svg(figure)


def residual_maps(verification: dict[str, Any]) -> str:
    """Residuals of each copy's sampled covariance, entry less mean by the copy's own law, in standard deviations."""
    copies = [copy for copy in verification["copies"] if "sampled" in copy][:6]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * len(copies) + 0.8, 2.5), layout="constrained")
        every = figure.subplots(1, len(copies), squeeze=False)[0]
        for axes, copy in zip(every, copies, strict=True):
            matrix = np.array(copy["sampled"]["residuals"])
            image = axes.imshow(matrix, cmap="PuOr", vmin=-4, vmax=4)
            axes.set_title(copy["name"], fontsize=9)
            axes.grid(False)
            ticks = np.arange(0, len(matrix), 1 + len(matrix) // 12)
            axes.set_xticks(ticks, ticks + 1)
            axes.set_yticks(ticks, ticks + 1)
        figure.colorbar(image, ax=list(every), shrink=0.8, label="standard deviations")
        return svg(figure)


def temperatures(sweep: dict[str, Any]) -> str:
    """Error against ambient temperature: each copy, rms of the copies, and the error left when the copies are known."""
    ambient = sweep["ambient"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        for errors in sweep["errors"][:20]:
            axes.plot(ambient, 100 * np.array(errors), color="0.7", linewidth=0.8)
        axes.plot([], [], color="0.7", linewidth=0.8, label="each copy")
        low, high = sweep["known_at_both"]
        words = ("as it is, rms", f"known at {sweep['known_at']:g} °C", f"known at {low:g} and {high:g} °C")
        for k, (key, word) in enumerate(zip(("as_it_is", "known_once", "known_twice"), words, strict=True)):
            errors = 100 * np.array(sweep[key])
            axes.plot(ambient, errors, MARKERS[k] + "-", color=COLOURS[k], markersize=3.5, label=word)
        axes.set_xlabel("ambient temperature [°C]")
        axes.set_ylabel("relative error of the inverse [%]")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
        return svg(figure)


def charges(charge: dict[str, Any]) -> str:
    """Error of the charge readout against the time after the charge packet, and the chosen instant of the reading."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        for k, row in enumerate((charge["nominal"], *charge["copies"])):
            axes.loglog(
                charge["times"],
                row["errors"],
                color=COLOURS[k % 7],
                linestyle=LINES[k % 7],
                marker=MARKERS[k % 7],
                markersize=3,
                label="nominal board" if k == 0 else row["name"],
            )
        axes.axvline(charge["instant"], color="0.4", linewidth=0.9, label="reading")
        axes.set_xlabel("time after the packet [s]")
        axes.set_ylabel("relative error of the inverse")
        axes.legend(fontsize=8)
        return svg(figure)


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
        return svg(figure)


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
        return svg(figure)


def gains(device: dict[str, Any]) -> str:
    """Fitted gain of every observed element of every copy, in per cent off nominal, ± two standard errors."""
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
        few = len(names) <= MOST_NAMES
        axes.set_xticks(range(len(names)) if few else [], names if few else [], rotation=90, fontsize=7)
        axes.set_ylabel("gain off nominal [%]")
        axes.legend(fontsize=8, ncols=6, loc="lower right", bbox_to_anchor=(1.0, 1.0))
        return svg(figure)


def svg(figure: Figure) -> str:
    """The figure as SVG text to be placed in a page."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        # The browser has the letters of a name that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def words(text: str) -> str:
    """Text for a label: to matplotlib a dollar sign starts a formula, and a first underscore hides the entry."""
    return text.replace("$", r"\$").lstrip("_")


def _bar(k: int) -> dict[str, str]:
    """Colour and hatching of the bars of cause number k."""
    return {"color": COLOURS[k % 6], "edgecolor": "white", "hatch": HATCHES[k % len(HATCHES)]}

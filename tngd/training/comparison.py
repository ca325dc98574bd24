"""Summary of a comparison of training runs: means over seeds, and differences to a baseline paired by seed.

With d_s the difference of a figure between a method and the baseline on seed s, same initial weights and same batches,
the 95 % interval of the mean difference is d̄ ± t₀.₉₇₅(n - 1) · sd(d)/√n over n seeds. The time to a baseline is the
epoch, or the CPU seconds of steps, at which the training loss of a method, linear between epochs, first falls to the
last training loss of the baseline on the same seed.
"""

import itertools
from collections.abc import Mapping, Sequence
from math import sqrt
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.stats import t as student

Records = list[dict[str, Any]]
FIGURES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
TARGETS = ("adam", "sgd")


def mean_and_error(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and its standard error, None for a single value."""
    values = np.array(values, dtype=float)
    scale = 2.0 ** (np.frexp(values)[1].max() - 1)  # exact, and squares of diverging losses do not overflow
    error = float(scale * (np.std(values / scale, ddof=1) / sqrt(len(values)))) if len(values) > 1 else None
    return {"mean": float(scale * np.mean(values / scale)), "standard_error": error}


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> dict[str, float | None]:
    """Mean difference of values paired by position and half the width of its 95 % t-interval, None for one pair."""
    found = mean_and_error([value - other for value, other in zip(values, baseline, strict=True)])
    n, error = len(values), found["standard_error"]
    return {"mean": found["mean"], "half_width_95": None if error is None else float(student.ppf(0.975, n - 1)) * error}


def reached(records: Records, target: float) -> dict[str, float] | None:
    """Epochs and CPU seconds of steps until the training loss is first at `target` or below, None if never."""
    spent = np.cumsum([record["cpu_s"] for record in records])
    for k, (before, after) in enumerate(itertools.pairwise(records)):
        if before["train_loss"] <= target:
            return {"epochs": float(before["epoch"]), "cpu_s": float(spent[k])}
        if after["train_loss"] <= target:
            share = (before["train_loss"] - target) / (before["train_loss"] - after["train_loss"])
            return {"epochs": before["epoch"] + share, "cpu_s": float(spent[k] + share * (spent[k + 1] - spent[k]))}
    return None


def summary(
    runs: dict[str, dict[str, dict[str, Any]]], ideal: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Figures by method, see the module, from runs[method][seed], each run with `records` and `diverged`.

    `ideal` maps a method on a device with errors to the same method on an ideal device. Diverged seeds are counted and
    left out of the means. Differences and times to a baseline use the seeds that both methods finished.
    """
    finished = {
        method: {seed: run["records"] for seed, run in seeds.items() if run["diverged"] is None}
        for method, seeds in runs.items()
    }
    return {
        method: {"finished": len(seeds), "diverged": len(runs[method]) - len(seeds)}
        | ({} if not seeds else _figures(seeds) | _against(seeds, finished, ideal.get(method)))
        for method, seeds in finished.items()
    }


def _figures(seeds: dict[str, Records]) -> dict[str, Any]:
    last = [records[-1] for records in seeds.values()]
    found: dict[str, Any] = {name: mean_and_error([each[name] for each in last]) for name in FIGURES}
    found["cpu_s"] = mean_and_error([sum(record["cpu_s"] for record in records) for records in seeds.values()])
    return found


def _against(seeds: dict[str, Records], finished: dict[str, dict[str, Records]], ideal: str | None) -> dict[str, Any]:
    """Differences to Adam and to the ideal device, and times to each baseline."""
    found: dict[str, Any] = {}
    for word, other in ((f"minus_{TARGETS[0]}", TARGETS[0]), ("minus_ideal", ideal)):
        baseline = finished.get(other, {})
        common = [seed for seed in seeds if seed in baseline]
        if common and baseline is not seeds:
            found[word] = {
                name: paired_difference(
                    [seeds[seed][-1][name] for seed in common], [baseline[seed][-1][name] for seed in common]
                )
                for name in FIGURES
            }
    for target in TARGETS:
        common = [seed for seed in seeds if seed in finished.get(target, {})]
        if common:
            found[f"to_{target}"] = _times([reached(seeds[s], finished[target][s][-1]["train_loss"]) for s in common])
    return found


def _times(found: list[dict[str, float] | None]) -> dict[str, Any]:
    """Number of seeds that reached the target, and of all seeds; mean times only if all seeds reached the target."""
    times = [each for each in found if each is not None]
    said: dict[str, Any] = {"reached": len(times), "of": len(found)}
    if len(times) == len(found):
        said |= {name: mean_and_error([each[name] for each in times]) for name in ("epochs", "cpu_s")}
    return said

"""The choice of settings, with the same budget for every method: eight settings, five epochs, one seed of its own.

Chosen is the setting with the smallest loss on held-back training images, see tngd.training.mnist; a setting that
diverges is never chosen.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from circuits.errors import InputError
from circuits.model.device import Device
from circuits.parallel import Progress
from tngd.mnist_results import change_results
from tngd.training.methods import METHODS, TUNED, Settings
from tngd.training.mnist import Data, Setting, tuning_trial
from tngd.training.trial import run_trial

EPOCHS = 5
SEED = 1000


def tuned_settings(content: dict[str, Any], setting: str, method: str) -> Settings:
    """All settings of a method: its own and the tuned ones of the results file, or else of the package."""
    known, chosen = METHODS[method], METHODS[method].tuned_as or method
    if not METHODS[chosen].grid:
        return known.settings
    of_file = content["comparisons"].get(setting, {}).get("tuning", {}).get(chosen)
    best = of_file["best"] if of_file else TUNED.get(setting, {}).get(chosen)
    if best is None:
        raise InputError(f"{chosen} is not tuned for {setting!r}; give --tune to choose its settings")
    return known.settings | best


def tune(
    path: Path, name: str, method: str, setting: Setting, data: Data, device: Device | None, progress: Progress
) -> None:
    """Try every choice of a method and write all of them and the best into the results file, in place of any before."""
    known = METHODS[method]
    if not known.grid:
        return  # nothing to choose, or chosen for the method it is a variant of
    tried, trial = [], None
    for settings in known.choices:
        trial = tuning_trial(
            f"tuning {method}",
            known.kind,
            known.settings | settings,
            replace(setting, epochs=EPOCHS),
            data,
            device,
            SEED,
        )
        outcome = run_trial(trial, None, progress)
        loss = None if outcome.diverged else outcome.records[-1]["held_loss"]
        tried.append({"settings": settings, "held_loss": loss, "diverged": outcome.diverged})
    useful = [each for each in tried if each["held_loss"] is not None]
    if not useful:
        raise InputError(f"every setting of {method} diverged; raise the dampings or lower the step sizes of its grid")
    result = {
        "trained_on": trial.samples,
        "held_back": trial.settings["evaluated"]["held"],
        "epochs": EPOCHS,
        "seed": SEED,
        "device": trial.settings["device"],
        "choices": tried,
        "best": min(useful, key=lambda each: each["held_loss"])["settings"],
    }

    def add(content: dict[str, Any]) -> None:
        content["comparisons"].setdefault(name, {}).setdefault("tuning", {})[method] = result

    change_results(path, add)

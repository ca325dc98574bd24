"""The main job: one data set from its Fisher matrix to trained networks, raw and preconditioned side by side.

    fisher-zero.npy, factor-zero.npy, fisher-fit.npy -> raw/ and preconditioned/ (design, verify, calibrate)
    -> training.json (on the preconditioned copies) -> report.html

A step whose result is there is not done again, so an interrupted run goes on where it stopped; `run.json` holds the
options it belongs to.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from circuits.design import check_options
from circuits.errors import InputError, UnstableCopyError
from circuits.fisher import DATA_SETS
from circuits.jobs import Progress
from circuits.ngspice import find_ngspice
from circuits.store import is_ours, read_json, refuse_existing, write_json
from tngd import laboratory, learning, verbs
from tngd.training import check_budget

SCHEMA = "tngd.run/1"
Stage = Callable[[str], Progress]


@dataclass(frozen=True)
class Options:
    """What a run depends on."""

    name: str
    copies: int = 3
    tolerance: float = 0.01
    seed: int = 0
    samples: int = 100_000
    seeds: int = 3
    steps: int | None = None


def run(options: Options, out: Path, force: bool, stage: Stage) -> Path:
    """Do everything that is not done yet; the path of the report. `stage(text)` announces and gives a progress."""
    if options.name not in DATA_SETS:
        raise InputError(f"unknown data set {options.name!r}; expected one of {', '.join(DATA_SETS)}")
    check_options(options.copies, options.tolerance, options.seed)
    laboratory.check_samples(options.samples)
    check_budget(options.seeds, options.steps)
    find_ngspice()
    _open_folder(options, out, force)
    for text, done, work in _steps(options, out):
        if not done:
            work(stage(text))
    stage("report")
    report = learning.report(out)
    write_json(out / "run.json", _content(options, finished=True))
    return report


def _steps(options: Options, out: Path) -> Iterator[tuple[str, bool, Callable[[Progress], object]]]:
    """Every step but the report: what it is called, whether it is done, and the work."""
    name = options.name
    zero, fit, factor = out / "fisher-zero.npy", out / "fisher-fit.npy", out / "factor-zero.npy"
    yield (
        "Fisher matrix at w = 0",
        zero.with_suffix(".json").exists(),
        lambda _: verbs.fisher(name, "zero", zero, factor, True),
    )
    yield (
        "Fisher matrix at the fit",
        fit.with_suffix(".json").exists(),
        lambda _: verbs.fisher(name, "fit", fit, None, True),
    )
    for kind, precondition in (("raw", None), ("preconditioned", str(factor))):
        folder, refused = out / kind, out / f"{kind}-refused.json"
        designed = folder.exists() or refused.exists()
        yield f"{kind}: design", designed, _designing(options, fit, folder, precondition, refused)
        if not refused.exists():
            yield f"{kind}: verify", (folder / "verification.json").exists(), _verifying(options, folder)
            yield f"{kind}: calibrate", (folder / "device.json").exists(), _calibrating(folder)
    training, device = out / "training.json", out / "preconditioned" / "device.json"
    for task in (name, "digits"):
        yield f"train {task}", _trained(training, task), _training(options, task, device, training)


def _designing(
    options: Options, matrix: Path, folder: Path, precondition: str | None, refused: Path
) -> Callable[[Progress], object]:
    def work(_: Progress) -> None:
        try:
            place = verbs.Place(str(matrix), precondition=precondition, name=options.name)
            request = verbs.Request(options.copies, options.tolerance, options.seed, cells="active")
            verbs.design(place, request, folder)
        except UnstableCopyError as error:
            if precondition is not None:
                raise
            # A raw matrix that no copy holds is a finding, not the end of the run.
            write_json(refused, {"schema": "tngd.refused/1", "refused": str(error)})

    return work


def _verifying(options: Options, folder: Path) -> Callable[[Progress], object]:
    inquiry = laboratory.Inquiry(samples=options.samples, seed=options.seed)
    return lambda progress: laboratory.verify(folder, inquiry, force=True, progress=progress)


def _calibrating(folder: Path) -> Callable[[Progress], object]:
    return lambda progress: laboratory.calibrate(folder, progress=progress)


def _training(options: Options, task: str, device: Path, out: Path) -> Callable[[Progress], object]:
    return lambda progress: learning.train(task, device, out, options.seeds, options.steps, progress=progress)


def _trained(path: Path, task: str) -> bool:
    return path.exists() and task in read_json(path, "train")["tasks"]


def _open_folder(options: Options, out: Path, force: bool) -> None:
    """Start a folder, go on with one of the same options, or refuse."""
    mark = out / "run.json"
    refuse_existing(out, force=True)
    if out.exists() and not is_ours(mark) and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not a run of this tool; choose another --out")
    if mark.is_file() and force:
        shutil.rmtree(out)
    elif mark.is_file():
        found = read_json(mark, "run")
        if found.get("finished") or found.get("options") != asdict(options):
            state = "is finished" if found.get("finished") else "was started with other options"
            raise InputError(f"{out} {state}; choose another --out or give --force to start it again")
    write_json(mark, _content(options, finished=False))


def _content(options: Options, finished: bool) -> dict:
    return {"schema": SCHEMA, "options": asdict(options), "finished": finished}

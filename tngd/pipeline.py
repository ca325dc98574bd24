"""The main job: one data set from its Fisher matrix to trained networks, raw and preconditioned side by side.

    fisher-zero.npy, factor-zero.npy, fisher-fit.npy -> raw/ and preconditioned/ (design, verify, calibrate)
    -> training.json (on the preconditioned copies) -> report.html

A step whose result is there is not done again, so an interrupted run goes on where it stopped; `run.json` holds the
options it belongs to.
"""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event

from circuits import calibration, netlist, simulation, synthesis, verification
from circuits.errors import InputError, UnstableCopyError
from circuits.files import is_ours, read_json, refuse_existing, write_json
from circuits.parallel import Progress
from tngd import report as reports
from tngd import training

SCHEMA = "tngd.run/1"
Stage = Callable[[str], Progress]
Step = tuple[str, bool, Callable[[Progress], object]]


@dataclass(frozen=True)
class RunOptions:
    """Options that the results of a run depend on."""

    name: str
    copies: int = 3
    tolerance: float = 0.01
    seed: int = 0
    samples: int = 100_000
    seeds: int = 3
    steps: int | None = None


def run(options: RunOptions, out: Path, force: bool, stage: Stage) -> Path:
    """Do everything that is not done yet; the path of the report. `stage(text)` announces and gives a progress."""
    if options.name not in synthesis.DATA_SETS:
        raise InputError(f"unknown data set {options.name!r}; expected one of {', '.join(synthesis.DATA_SETS)}")
    synthesis.check_copies(options.copies, options.tolerance, options.seed)
    simulation.check_samples(options.samples)
    training.check_budget(options.seeds, options.steps)
    simulation.find_ngspice()
    _open_folder(options, out, force)
    _do(_matrices(options, out), stage)
    _do(_designs(options, out), stage)  # drawings of circuits are made one at a time
    _side_by_side([_board(options, out, kind) for kind in ("raw", "preconditioned")], stage)
    _do(_trainings(options, out), stage)
    stage("report")
    report = reports.report(out)
    write_json(out / "run.json", _content(options, finished=True))
    return report


def _do(steps: Iterator[Step], stage: Stage) -> None:
    for text, done, work in steps:
        if not done:
            work(stage(text))


def _side_by_side(chains: list[Iterator[Step]], stage: Stage) -> None:
    """Do chains of steps at once, each in order; an error in one, or Ctrl-C, ends the others at their next progress.

    Much of a step is work of one core, and ngspice runs in processes of its own.
    """
    stop = Event()

    def stoppable(text: str) -> Progress:
        if stop.is_set():
            raise _StoppedError
        told = stage(text)

        def progress(done: int, total: int, what: str) -> None:
            if stop.is_set():
                raise _StoppedError
            told(done, total, what)

        return progress

    with ThreadPoolExecutor(len(chains)) as executor:
        try:
            running = [executor.submit(_do, chain, stoppable) for chain in chains]
            for chain in as_completed(running):
                chain.result()
        finally:
            stop.set()


class _StoppedError(Exception):
    """Ends a chain whose results nobody waits for any more."""


def _matrices(options: RunOptions, out: Path) -> Iterator[Step]:
    """Steps that make the matrices: name, whether it is done, and the work."""
    name = options.name
    zero, fit, factor = out / "fisher-zero.npy", out / "fisher-fit.npy", out / "factor-zero.npy"
    yield (
        "Fisher matrix at w = 0",
        zero.with_suffix(".json").exists(),
        lambda _: synthesis.write_fisher(name, "zero", zero, factor, True),
    )
    yield (
        "Fisher matrix at the fit",
        fit.with_suffix(".json").exists(),
        lambda _: synthesis.write_fisher(name, "fit", fit, None, True),
    )


def _designs(options: RunOptions, out: Path) -> Iterator[Step]:
    fit, factor = out / "fisher-fit.npy", out / "factor-zero.npy"
    for kind, precondition in (("raw", None), ("preconditioned", str(factor))):
        folder, refused = out / kind, out / f"{kind}-refused.json"
        designed = folder.exists() or refused.exists()
        yield f"{kind}: design", designed, _designing(options, fit, folder, precondition, refused)


def _board(options: RunOptions, out: Path, kind: str) -> Iterator[Step]:
    folder = out / kind
    if not (out / f"{kind}-refused.json").exists():
        yield f"{kind}: verify", (folder / "verification.json").exists(), _verifying(options, folder)
        yield f"{kind}: calibrate", (folder / "device.json").exists(), _calibrating(folder)


def _trainings(options: RunOptions, out: Path) -> Iterator[Step]:
    training, device = out / "training.json", out / "preconditioned" / "device.json"
    for task in (options.name, "digits"):
        yield f"train {task}", _trained(training, task), _training(options, task, device, training)


def _designing(
    options: RunOptions, matrix: Path, folder: Path, precondition: str | None, refused: Path
) -> Callable[[Progress], object]:
    def work(_: Progress) -> None:
        try:
            place = synthesis.TargetOptions(str(matrix), precondition=precondition, name=options.name)
            request = synthesis.BoardRequest(options.copies, options.tolerance, options.seed, cells="active")
            netlist.design_folder(place, request, folder)
        except UnstableCopyError as error:
            if precondition is not None:
                raise
            # A raw matrix that no copy holds is a finding, not the end of the run.
            write_json(refused, {"schema": "tngd.refused/1", "refused": str(error)})

    return work


def _verifying(options: RunOptions, folder: Path) -> Callable[[Progress], object]:
    inquiry = verification.VerifyOptions(samples=options.samples, seed=options.seed)
    return lambda progress: verification.verify_folder(folder, inquiry, force=True, progress=progress)


def _calibrating(folder: Path) -> Callable[[Progress], object]:
    return lambda progress: calibration.calibrate_folder(folder, progress=progress)


def _training(options: RunOptions, task: str, device: Path, out: Path) -> Callable[[Progress], object]:
    return lambda progress: training.train_task_file(task, device, out, options.seeds, options.steps, progress=progress)


def _trained(path: Path, task: str) -> bool:
    return path.exists() and task in read_json(path, "train")["tasks"]


def _open_folder(options: RunOptions, out: Path, force: bool) -> None:
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


def _content(options: RunOptions, finished: bool) -> dict:
    return {"schema": SCHEMA, "options": asdict(options), "finished": finished}

"""One self-contained HTML page from what a folder holds: no script, no file beside it, readable in print.

A folder is one board (with `board.json`), or holds folders of boards, or holds results of training. For each result
that is missing the page names the command that makes the result.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError, select_autoescape
from markupsafe import Markup

from circuits.errors import InputError
from circuits.files import read_json, refuse_existing, sha256, write_text
from circuits.netlist.bill import engineering
from tngd.report import board_plots, results, training_plots
from tngd.report.results import Trained, read_trained, training_provenance
from tngd.report.training_tables import comparison_tables, squad_table, study_table

ROUNDING = 1e-9  # of the relative error: smaller errors come from rounding, not from the spread of parts


@dataclass(frozen=True)
class Section:
    """One board in the report: its name and the contents of the files in its folder (None for a missing file)."""

    name: str
    board: dict[str, Any]
    verification: dict[str, Any] | None
    measured: dict[str, Any] | None
    device: dict[str, Any] | None
    stale: bool  # the device was fitted to other runs than those of the verification


def render(folder: Path, path: Path) -> None:
    """Write the page of `folder` to `path`; InputError if there are no results, or damaged ones."""
    try:
        page = _page(folder)
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, UndefinedError, ValueError) as error:
        raise InputError(
            f"the results in {folder} are damaged ({type(error).__name__}: {error}); make them again with --force"
        ) from error
    write_text(path, page)


def _page(folder: Path) -> str:
    sections = [_section(place) for place in (folder, *sorted(folder.iterdir())) if (place / "board.json").is_file()]
    sections.sort(key=lambda section: section.name != "raw")
    refused = [
        (file.name.removesuffix("-refused.json"), read_json(file, "run")["refused"])
        for file in sorted(folder.glob("*-refused.json"))
    ]
    trained = read_trained(folder)
    if not sections and not trained:
        raise InputError(
            f"{folder} holds no board, no device and no results of training, nor does a folder in it; make a board "
            "with `tngd design`"
        )
    environment = Environment(
        loader=PackageLoader("tngd.report", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "si": engineering}
    environment.globals |= {
        "plots": _Plots(),
        "tables": results,
        "comparison_tables": comparison_tables,
        "study_table": study_table,
        "squad_table": squad_table,
    }
    verified = {section.name: section.verification for section in sections if section.verification}
    return environment.get_template("report.html.j2").render(
        title=sections[0].board["name"] if sections else folder.resolve().name,
        sections=sections,
        refused=refused,
        verified=verified,
        spread={name: v for name, v in verified.items() if v["population"].get("single_median", 0) > ROUNDING},
        trained=trained,
        provenance=_provenance(sections, trained),
    )


class _Plots:
    """The plots by name, as safe markup."""

    def __getattr__(self, name: str):
        owner = board_plots if hasattr(board_plots, name) else training_plots
        return lambda *data: Markup(getattr(owner, name)(*data))


def _section(folder: Path) -> Section:
    def optional(name: str, verb: str) -> dict[str, Any] | None:
        return _record(folder / name, verb) if (folder / name).is_file() else None

    board = _record(folder / "board.json", "design")
    verification, device = optional("verification.json", "verify"), optional("device.json", "calibrate")
    stale = device is not None and not _fitted_to(device, folder / "statistics.npz")
    return Section(folder.name, board, verification, optional("measured.json", "verify --measured"), device, stale)


def _fitted_to(device: dict[str, Any], statistics: Path) -> bool:
    """Whether the device was calibrated on these runs."""
    known = device["provenance"].get("statistics_sha256")  # None: a board with banks is fitted to runs of its own
    return known is None or (statistics.is_file() and sha256(statistics.read_bytes()) == known)


def _record(path: Path, verb: str) -> dict[str, Any]:
    content = read_json(path, verb)
    if not isinstance(content, dict) or not str(content.get("schema")).startswith("tngd."):
        raise InputError(f"{path} does not say a schema of this tool; make it again with `tngd {verb}`")
    return content


def _provenance(sections: list[Section], trained: Trained) -> list[tuple[str, str, str]]:
    """Rows (result, key, value) of the provenance of all results."""
    rows = []
    for section in sections:
        for kind in ("board", "verification", "measured", "device"):
            content = getattr(section, kind)
            if content:
                rows += _flat(f"{section.name} {kind}", content["provenance"])
    for owner, made_from in training_provenance(trained):
        rows += _flat(owner, made_from)
    for each in trained.devices:
        rows += _flat(f"device {each.name}", each.content["provenance"])
    return rows


def _flat(owner: str, values: dict[str, Any], prefix: str = "") -> list[tuple[str, str, str]]:
    rows = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(owner, value, f"{prefix}{key} ")
        else:
            rows.append((owner, f"{prefix}{key}".replace("_", " "), str(value)))
    return rows


def _percent(value: float) -> str:
    """A relative error as per cent with two significant digits, or in powers of ten when it is tiny."""
    return f"{value:.1e}" if abs(value) < 1e-5 else f"{100 * value:.2g} %"


def report(folder: Path, force: bool = False) -> Path:
    """Write report.html of a run folder, a folder of run folders, or a folder with results of training."""
    path = folder / "report.html"
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; make one with `tngd design` or `tngd run`")
    refuse_existing(path, force)
    render(folder, path)
    return path

"""Tables of calibrated devices: fits, spreads, and codes of re-trimmed copies."""

from collections.abc import Iterable, Iterator
from typing import Any

from rich.table import Table

from circuits.calibration.observations import FLOOR
from circuits.model.device import Device, part_error
from tngd.report.board_tables import FAR_BELOW, MOST_NAMES


def devices_table(devices: Iterable[tuple[str, Device]]) -> Table:
    """The devices of the package: board, copies, description, rms of the known errors of parts and temperatures."""
    devices = list(devices)
    designs = ", ".join(dict.fromkeys(device.fitted_on["design"] for _, device in devices))
    table = Table(title=f"Devices of the package, for --device; their board is of {designs}", title_justify="left")
    for column in ("name", "board", "copies", "what it is", "part error, rms"):
        table.add_column(column, justify="right" if column in ("copies", "part error, rms") else "left")
    for name, device in devices:
        board = device.board
        cells = f"{len(board.cells)} {board.kind} cells, {board.coupling}"
        table.add_row(name, cells, str(len(device.copies)), device.fitted_on["what"], f"{part_error(device):.2%}")
    return table


def spread_table(device: Device) -> Table:
    """Spread of every kind of part in the calibrated copies, from which fresh copies were drawn, and sample size."""
    known = device.fitted_on["copies_known"]
    title = f"Spread of parts in calibrated copies ({known}), relative; 95 % intervals"
    table = Table(title=title, title_justify="left")
    for title in ("kind", "seen", "mean", "standard deviation", "interval"):
        table.add_column(title, justify="left" if title == "kind" else "right")
    for kind, found in device.fitted_on["spreads"].items():
        low, high = found["interval"]
        between = f"{low:.3%} to {high:.3%}" if found["count"] else "by tolerance"
        table.add_row(kind, str(found["count"]), f"{found['mean'] - 1:+.3%}", f"{found['deviation']:.3%}", between)
    return table


def retrim_table(content: dict[str, Any]) -> Table:
    """Errors of the inverse with nearest codes and with codes chosen for each copy, from one retrim.json."""
    spent = content["programmings"]
    table = Table(title=f"Relative error of the inverse of {content['target']}, expected", title_justify="left")
    titles = ["copy", "nearest codes, uncalibrated", "own codes, one programming"]
    titles += [f"own codes, {spent} programmings"] if spent > 1 else []
    checked = any("checked" in row for row in content["copies"])
    titles += ["nearest in ngspice", "own in ngspice"] if checked else []
    for title in titles:
        table.add_column(title, justify="left" if title == "copy" else "right")
    for row in content["copies"]:
        errors = [row["error_nearest"], row["expected"][0], *([row["expected"][-1]] if spent > 1 else [])]
        found = row.get("checked")
        errors += [found["error_nearest"], found["error"]] if found else []
        table.add_row(row["name"], *(f"{error:.3%}" for error in errors))
    return table


def calibration_lines(content: dict[str, Any]) -> Iterator[str]:
    """Sentences on a calibration: residuals, undetermined parameters, held-out errors, from one device.json."""
    fitted, held = content["fitted_on"], content["held_out"]
    for name, fit in fitted["copies"].items():
        before, after = fit["rms_residual_uncalibrated"], fit["rms_residual"]
        yield f"{name}: rms residual {before:.3g} -> {after:.3g} standard deviations"
    yield _known_line(fitted)
    if held:
        yield (
            f"held out: {len(held['errors'])} programmings, worst error {max(held['errors']):.2g}, "
            f"{held['improvement']:.3g} times below uncalibrated; z-scores spread {held['z_rms']:.2f}, "
            f"{held['coverage_95']:.1%} of {held['intervals']} intervals of 95 % hold; "
            f"{held['components']} independent ones spread {held['joint_z_rms']:.2f} (p {held['joint_p']:.2g})"
        )
        if held["z_rms"] < FAR_BELOW:
            yield f"errors are far below the {FLOOR:.0e} that exact runs are trusted to, so the intervals are wide"
    if "not_held_out" in fitted:
        yield f"no held-out programmings: {fitted['not_held_out']}"


def _known_line(fitted: dict[str, Any]) -> str:
    """The sentence on undetermined parameters and strongly correlated pairs."""
    unknown, most = fitted["undetermined"], max(len(fit["correlated"]) for fit in fitted["copies"].values())
    names = ", ".join(unknown[:MOST_NAMES]) + (", …" if len(unknown) > MOST_NAMES else "")
    line = f"the data do not determine {len(unknown)} of {fitted['parameters']} parameters ({names})"
    line = line if unknown else f"the data determine all of {fitted['parameters']} parameters"
    return line + (f"; in a copy up to {most} pairs of them are strongly correlated" if most else "")

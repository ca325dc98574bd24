"""Tables of boards for the terminal, from the JSON that the verbs wrote: errors, budgets, populations, calibrations."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from circuits.board import REFERENCE_CELSIUS

FAR_BELOW = 0.2  # of their standard errors
MOST_COPIES = 4  # shown; the report has all
MOST_NAMES = 4
ROUTES = {"exact": "without sampling", "sampled": "sampled", "solve": "solved", "recorded": "as recorded"}


def verification_table(results: dict[str, dict[str, Any]]) -> Table:
    """Errors of the inverse of every copy, from the contents of verification.json by board."""
    recipes = sorted({result["recipe"] for result in results.values() if "recipe" in result})
    title = "Relative error of the inverse" + (f"; sampled with {', '.join(recipes)}" if recipes else "")
    warm = sorted({result["ambient"] for result in results.values()} - {REFERENCE_CELSIUS})
    title += f"; at {', '.join(f'{ambient:g}' for ambient in warm)} °C" if warm else ""
    table = Table(title=title, title_justify="left")
    solves = any("solve" in result["nominal"] for result in results.values())
    columns = (
        "board",
        "copy",
        "exact",
        *(["solve"] if solves else []),
        "sampled",
        "expected",
        "samples",
        "χ² p",
        "own law",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("board", "copy") else "right")
    for board, result in results.items():
        nominal = [result["nominal"]] if "exact" in result["nominal"] else []
        for entry in [*nominal, *result["copies"], result["mean_of_copies"]]:
            exact, sampled = entry.get("exact"), entry.get("sampled")
            table.add_row(
                board,
                entry["name"],
                f"{exact['relative_error']:.2e}" if exact else "",
                *([f"{entry['solve']['relative_error']:.2e}" if "solve" in entry else ""] if solves else []),
                f"{sampled['relative_error']:.2%}" if sampled else "",
                f"{sampled['expected_error']:.2%}" if sampled else "",
                f"{sampled['samples']:,}" if sampled else "",
                f"{sampled['p_value']:.2g}" if sampled and "p_value" in sampled else "",
                {True: "agrees", False: "DISAGREES"}.get(entry.get("agrees"), ""),
            )
        table.add_section()
    return table


def more_tables(result: dict[str, Any]) -> Iterator[Table]:
    """Error budgets, charge readout, population, temperature and readings, from one verification.json."""
    yield from budget_tables(result)
    yield from filter(None, [charge_table(result)])
    yield population_table(result)
    if "temperature" in result:
        yield temperature_table(result["temperature"])
    if "left_out" in result:
        table = Table(show_header=False)
        table.add_row("left out", result["left_out"])
        yield table
    for record in result.get("recorded", ()):
        table = Table(title=f"Readings of {record['name']}", title_justify="left", show_header=False)
        table.add_row("readings", f"{record['readings']:,}, one every {record['period_s']:.4g} s")
        for remark in record["remarks"]:
            table.add_row("note", remark)
        yield table


def budget_tables(result: dict[str, Any]) -> Iterator[Table]:
    """Signed share of every cause in the errors of the first copies and of the mean of copies, by route."""
    rows = [*result["copies"][:MOST_COPIES], result["mean_of_copies"]]
    budgets = [budget for row in rows for budget in row.get("budget", ())]
    for route in dict.fromkeys(budget["route"] for budget in budgets):
        found = [budget for budget in budgets if budget["route"] == route]
        table = Table(title=f"Where the error comes from, {ROUTES[route]}", title_justify="left")
        table.add_column("cause")
        for budget in found:
            table.add_column(budget["name"], justify="right")
        for k, cause in enumerate(found[0]["causes"]):
            table.add_row(cause["name"], *(f"{budget['causes'][k]['share']:+.3%}" for budget in found))
        table.add_section()
        table.add_row("error", *(f"{budget['total']:.3%}" for budget in found))
        if "interval" in found[0]:
            ends = (f"{budget['interval'][0]:.2%} to {budget['interval'][1]:.2%}" for budget in found)
            table.add_row("95 of 100 within", *ends)
        yield table


def population_table(result: dict[str, Any]) -> Table:
    """Freshly drawn copies: errors, yield, contributions of parts by role, gain of averaging three copies."""
    found = result["population"]
    table = Table(title=f"{found['copies']} fresh copies", title_justify="left", show_header=False)
    if found["unstable"]:
        table.add_row("run away", f"{found['unstable']}")
    if "single_median" in found:
        table.add_row("error, median", f"{found['single_median']:.2%}")
        table.add_row("error, rms", f"{found['rms']:.2%} (first order in the tolerances: {found['expected']:.2%})")
    if found["yields"]:
        first = found["yields"][0]
        low, high = first["interval"]
        table.add_row(f"yield at {first['bound']:.2%}", f"{first['share']:.1%} ({low:.1%} to {high:.1%})")
    if found["parasitics"] != "on":
        table.add_row("parasitics", found["parasitics"])
    if found["contributions"]:
        parts = ", ".join(f"{row['role']} {row['share']:.0%}" for row in found["contributions"][:5])
        table.add_row("what matters", parts)
    if "averaging" in found:
        law = found["averaging"]
        gain = f"{law['gain']:.2f} ± {law['gain_standard_error']:.2f} times better (√3 = 1.73)"
        table.add_row("mean of three", f"{law['mean_of_three_median']:.2%} in the median, {gain}")
    return table


def temperature_table(found: dict[str, Any]) -> Table:
    """Error against ambient temperature, and the error left when the copies are known at one temperature or at two."""
    low, high = found["known_at_both"]
    table = Table(title="Error against temperature (rms of the copies)", title_justify="left")
    titles = ("°C", "as it is", f"known at {found['known_at']:g} °C", f"known at {low:g} and {high:g} °C")
    for title in titles:
        table.add_column(title, justify="right")
    for k in (0, len(found["ambient"]) // 2, -1):  # the coldest, the middle, the hottest; the report has all
        values = (found[key][k] for key in ("as_it_is", "known_once", "known_twice"))
        table.add_row(
            f"{found['ambient'][k]:g}", *(f"{value:.2%}" if value > 1e-5 else f"{value:.0e}" for value in values)
        )
    return table


def charge_table(result: dict[str, Any]) -> Table | None:
    """The charge readout beside the covariance readout of the same board time; None without a charge readout."""
    found = result.get("charge")
    if not found:
        return None
    title = f"Charges, {found['instant']:.2g} s after each; {found['board_time']:.2g} s in all"
    table = Table(title=title, title_justify="left")
    for column in ("copy", "charge", "covariance, same time", "as good after"):
        table.add_column(column, justify="left" if column == "copy" else "right")
    for row in (found["nominal"], *found["copies"]):
        noise = f"{row['covariance_error']:.2%}" if "covariance_error" in row else "no record fits"
        time = f"{row['equal_time']:.3g} s" if "equal_time" in row else "never"
        table.add_row(row["name"], f"{row['relative_error']:.2%}", noise, time)
    return table

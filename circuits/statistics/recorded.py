"""Recorded voltages of a physical board, read from a CSV file in place of ngspice.

The noise of a physical board is white, its readings y have an offset, and the values of its parts are not known. The
covariance of N readings of a copy is taken about their mean ȳ; in a record with gaps, c(τ) pairs of readings are τ
sampling periods apart:

    S = (1/N) Σ (y - ȳ)(y - ȳ)ᵀ,   <S> = Σ - V,   V = Cov(ȳ) = (1/N²) Σ_τ c(|τ|) ρ(τ),

with Σ, V and the law of S from the lagged covariances ρ of the nominal board. V, lost by removing the mean, is added
before an inverse is read; white noise needs no hold correction. A χ² of S against this law tests whether the board
differs from the nominal board by more than sampling does: with real parts it should, and this is no fault.
"""

import csv
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.errors import EmptyDataError, ParserError, ParserWarning

from circuits.board import REFERENCE_CELSIUS, Board, Conditions, Copy, Design
from circuits.copies import specimens
from circuits.errors import InputError
from circuits.files import ArrayField
from circuits.nodal import Circuit, assemble, lag_of
from circuits.ou import decay_time, lagged_covariances
from circuits.statistics.equilibrium import Sums
from circuits.statistics.estimators import EstimateLaw, law_about_mean, mean_covariance
from circuits.statistics.streaming import LEAST, Clipping, Outliers, Stream

ROWS = 50_000  # rows read at a time
BOM = b"\xef\xbb\xbf"  # byte order mark, with which some programs begin a UTF-8 file
HEAD = 1 << 16  # bytes searched for the header
SECONDS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}  # units in a second
VOLTS = {"V": 1.0, "mV": 1e3, "uV": 1e6}  # units in a volt


@dataclass(frozen=True, eq=False)
class RecordSummary:
    """Summary of the record of one copy.

    `gaps` counts steps longer than a period, `missing` the readings that would fill them; `longest_gap` is in periods.
    `dropped` counts readings that lacked a voltage up to 1 kV, `dropped_by_cell` by the cell that lacked the voltage.
    `mean_error_V` (n,) is the standard error of `mean_V` (n,) on the nominal board at `ambient` [°C].
    """

    name: str
    ambient: float
    period_s: float
    readings: int
    gaps: int
    missing: int
    longest_gap: int
    dropped: int
    dropped_by_cell: dict[str, int]
    clipped: tuple[Clipping, ...]
    outliers: tuple[Outliers, ...]
    mean_V: ArrayField
    mean_error_V: ArrayField

    @property
    def remarks(self) -> tuple[str, ...]:
        """Gaps, dropped and clipped readings and outliers in words; empty for a record without faults."""
        found = []
        if self.gaps:
            gaps, missing = _counted(self.gaps, "gap"), _counted(self.missing, "reading")
            found.append(f"{gaps}, {missing} missing, the longest step {self.longest_gap:,} periods")
        if self.dropped:
            cells = ", ".join(f"{cell} {count:,}" for cell, count in self.dropped_by_cell.items())
            why = "lack a voltage or have" if self.dropped > 1 else "lacks a voltage or has"
            found.append(f"{_counted(self.dropped, 'reading')} dropped that {why} one beyond 1 kV ({cells})")
        for clip in self.clipped:
            where = f"{clip.cell}: {clip.readings:,} readings at or beyond {clip.level_V:+.6g} V"
            found.append(f"{where}, {100 * clip.fraction:.2g} %, are clipped and bias the covariance")
        for far in self.outliers:
            where = f"{far.cell}: {'at least ' * far.at_least}{_counted(far.readings, 'reading')} farther than"
            where += f" {far.deviations:.2g} standard deviations from the mean"
            found.append(f"{where}, the largest {far.largest_V:.6g} V")
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Recorded:
    """Statistics of one copy: `covariance` S (n, n) [V²] about the mean, and the bias `mean_covariance` V (n, n) [V²].

    `moments` (blocks, n, n) [V²] are second moments about the same mean of consecutive blocks of `block_readings`
    (blocks,) readings, BLOCK or BLOCK · 2ᵏ each but the last; their average, weighted by `block_readings`, is
    `covariance`. `pairs` (lags,) counts pairs of readings 0, 1, 2, … periods apart. `sums` are those of
    circuits.statistics.equilibrium about the mean, over lagged pairs in stretches without gaps (None: no such pairs);
    `sums_pairs` (lags,) counts pairs of these lagged pairs that are 0, 1, 2, … periods apart.
    """

    summary: RecordSummary
    covariance: np.ndarray
    mean_covariance: np.ndarray
    moments: np.ndarray
    block_readings: np.ndarray
    pairs: np.ndarray
    sums: Sums | None
    sums_pairs: np.ndarray


def read_recorded(
    path: Path, design: Design, rows: int = ROWS, ambient: float = REFERENCE_CELSIUS
) -> tuple[Recorded, ...]:
    """Read the copies of a design recorded at `ambient` [°C], in the order of the design, `rows` rows at a time.

    InputError says what is wrong with the file.

    * Header `copy,time_s,cell1_V,cell2_V,…`: time_s, _ms, _us or _ns, and one voltage a cell in _V, _mV or _uV, in any
      order; v1_V is cell1_V. Rows are in time order within a copy. Lines that start with # are comments.
    * The median of the first 999 time steps of a copy is one period; every step must be a whole number of them, to 1 %
      of the step. Longer ones are gaps; `period_s` is the mean of the others.
    * A reading without a number up to 1 kV for every cell is dropped, as if lost whatever its voltage was.
    * In the tail of a Gaussian the outer of two neighbouring values is the rarer one. A column is clipped at one of its
      16 outermost values if this value has at least three times as many readings as the next value inwards, and a fair
      coin would give such a split less than once in 1e5/16. For this test g = Σ_τ ρ²(τ)/ρ²(0) readings of the cell
      count as one.
    * Readings farther from the mean than 8 standard deviations of the nominal board, and than the bound that one
      Gaussian record in 1e5 passes, are outliers. Outliers and clipped readings are counted and kept in the statistics.
    """
    board = design.board
    cells = [cell.name for cell in board.cells]
    names, units, skipped = _read_header(path, board)
    circuit = _circuit(design, ambient)
    numbers = {copy.name: k for k, copy in enumerate(design.copies)}
    times = decay_time(circuit), lag_of(board, design.program) * design.program.period
    place = partial(_place, path)
    streams = [Stream(copy.name, len(cells), times, place) for copy in design.copies]
    start = 0
    for frame in _frames(path, names, skipped, rows):
        row = start + np.arange(len(frame))
        copy = _copy_numbers(path, frame["copy"], numbers, start)
        time = _numeric(frame["time"]) / units["time"]
        if not np.isfinite(time).all():
            raise InputError(f"{place(start + int(np.isfinite(time).argmin()))} has no time; give every row a number")
        volts = np.column_stack([_numeric(frame[cell]) / units[cell] for cell in cells])
        for k in np.unique(copy):
            mine = copy == k
            streams[k].add(row[mine], time[mine], volts[mine])
        start += len(frame)
    if not start:
        raise InputError(f"{path} has a header but no readings; {LEAST:,} of a copy are needed")
    return tuple(_recorded(path, stream, circuit, ambient, cells) for stream in streams if stream.rows)


def recorded_law(
    design: Design, recorded: Recorded, copy: Copy | None = None, ambient: float | None = None
) -> EstimateLaw:
    """Law of `recorded.covariance` on the nominal board or a copy, under white noise; `ambient`: that of the record."""
    ambient = recorded.summary.ambient if ambient is None else ambient
    rho = lagged_covariances(_circuit(design, ambient, copy), recorded.summary.period_s, held=False)
    return law_about_mean(rho, recorded.pairs)


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}" + "s" * (number > 1)


def _circuit(design: Design, ambient: float, copy: Copy | None = None) -> Circuit:
    """Circuit of a copy, by default the nominal board, with all parasitics of the design."""
    return assemble(design.board, design.program, copy or specimens(design)[0], Conditions(ambient))


def _read_header(path: Path, board: Board) -> tuple[list[str], dict[str, float], int]:
    """Column names in the order of the file, units of each in a second or volt, and the number of lines read."""
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD)
    except OSError as error:
        raise InputError(f"readings {path} cannot be read: {error.strerror}") from None
    lines = head.removeprefix(BOM).split(b"\n")
    number = next((k for k, line in enumerate(lines) if _is_row(line)), None)
    cells = [cell.name for cell in board.cells]
    example = f"copy,time_s,{cells[0]}_V" + (f",…,{cells[-1]}_V" if len(cells) > 1 else "")
    if number is None:
        raise InputError(f"readings {path} hold no header; they must begin with {example}")
    try:
        fields = next(csv.reader([lines[number].decode()]))
        text = b"\0" not in head
    except (UnicodeDecodeError, csv.Error):
        text = False
    if not text:
        raise InputError(f"readings {path} are not a CSV file in UTF-8; write them as text that begins with {example}")
    columns = [_column(field.strip(), cells) for field in fields]
    names = [name for name, _ in columns]
    wrong = [field for field, name in zip(fields, names, strict=True) if name is None or names.count(name) > 1]
    if wrong:
        field = wrong[0][:40]
        example += ", with commas between columns and points in numbers" * (";" in field or "\t" in field)
        raise InputError(f"column {field!r} of {path} is unknown or there twice; the header must be like {example}")
    lacking = [name for name in ("copy", "time", *cells) if name not in names]
    if lacking:
        raise InputError(f"{path} has no column for {lacking[0]}; the header must be like {example}")
    return names, dict(columns), number + 1


def _column(field: str, cells: list[str]) -> tuple[str | None, float]:
    """Name of the column of a field of the header (None: unknown), and how many of its units a second or volt has."""
    if field == "copy":
        return "copy", 1.0
    name, _, unit = field.rpartition("_")
    if name == "time" and unit in SECONDS:
        return "time", SECONDS[unit]
    short = {f"v{k}": cell for k, cell in enumerate(cells, start=1)}
    name = short.get(name, name)
    return (name, VOLTS[unit]) if name in cells and unit in VOLTS else (None, 1.0)


def _frames(path: Path, names: list[str], skipped: int, rows: int) -> Iterator[pd.DataFrame]:
    """Table below the header, `rows` rows at a time; InputError if it is no table."""
    options = {"comment": "#", "index_col": False, "skipinitialspace": True, "low_memory": False}
    options["dtype"] = {"copy": "category"}
    with path.open("rb") as stream:
        for _ in range(skipped):
            stream.readline()
        reader = None
        while True:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", ParserWarning)
                    reader = reader or pd.read_csv(stream, header=None, names=names, chunksize=rows, **options)
                    frame = next(reader)
            except (StopIteration, EmptyDataError):
                return
            except ParserWarning:
                raise InputError(f"the first row of {path} has more fields than its header has columns") from None
            except (ParserError, UnicodeDecodeError) as error:
                where = re.sub(r"(?<=line )\d+", lambda found: str(int(found[0]) + skipped), str(error).strip())
                raise InputError(f"{path} is no table as its header says ({where.rpartition(': ')[2]})") from None
            yield frame


def _copy_numbers(path: Path, copies: pd.Series, numbers: dict[str, int], start: int) -> np.ndarray:
    """Number of the copy of every row, from a column of categories; InputError if a row is of an unknown copy."""
    known = [numbers.get(str(name).strip(), -1) for name in copies.cat.categories]
    found = np.array([*known, -1])[copies.cat.codes]  # the code of no name is -1
    if (found < 0).any():
        k = int((found < 0).argmax())
        raise InputError(
            f"{_place(path, start + k)} is of copy {str(copies.iloc[k])[:40]!r}; this design has {', '.join(numbers)}"
        )
    return found


def _numeric(column: pd.Series) -> np.ndarray:
    """Column as floats, NaN where a field is no number."""
    if column.dtype.kind == "b":
        return np.full(len(column), np.nan)
    return pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)


def _place(path: Path, row: int) -> str:
    """File and line number of a row below the header; lines count from 1, comments and empty lines included."""
    with path.open("rb") as stream:
        rows = (number for number, line in enumerate(stream, start=1) if _is_row(line))
        return f"{path}, line {next(islice(rows, row + 1, None))}"


def _is_row(line: bytes) -> bool:
    line = line.removeprefix(BOM)
    return bool(line.strip()) and not line.startswith(b"#")


def _recorded(path: Path, stream: Stream, circuit: Circuit, ambient: float, cells: list[str]) -> Recorded:
    """Statistics of a copy whose rows have all been read; InputError if there are too few, or a cell is constant."""
    readings = stream.moments.total if stream.period else stream.rows
    if readings < LEAST:
        raise InputError(
            f"{stream.name} has {readings:,} readings with a voltage of every cell in {path}; at least "
            f"{LEAST:,} are needed"
        )
    constant = stream.outermost.counts[0, 1] == 0
    if constant.any():
        cell, level = cells[int(constant.argmax())], stream.outermost.levels[0, 0, int(constant.argmax())]
        raise InputError(f"{cell} of {stream.name} reads {level:.6g} V throughout {path}; is it connected?")
    period = stream.single_time / stream.singles
    rho = lagged_covariances(circuit, period, held=False)
    pairs = stream.pairs.close()
    mean, moments, count = stream.moments.close()
    sums = stream.lagged.close(mean - stream.moments.origin)
    V = mean_covariance(rho, pairs)
    square = np.diagonal(rho, axis1=1, axis2=2) ** 2
    worth, sigma = 2 * square.sum(axis=0) / square[0] - 1, square[0] ** 0.25  # g and standard deviations, (n,)
    summary = RecordSummary(
        name=stream.name,
        ambient=ambient,
        period_s=period,
        readings=readings,
        gaps=stream.gaps,
        missing=stream.position + 1 - stream.rows,
        longest_gap=stream.longest if stream.gaps else 0,
        dropped=stream.dropped,
        dropped_by_cell={cell: int(k) for cell, k in zip(cells, stream.lacking, strict=True) if k},
        clipped=stream.outermost.clipped(cells, worth, sigma),
        outliers=stream.outermost.outliers(cells, mean, sigma),
        mean_V=mean,
        mean_error_V=np.sqrt(np.diag(V).clip(0)),
    )
    return Recorded(summary, np.average(moments, axis=0, weights=count), V, moments, count, pairs, *sums)

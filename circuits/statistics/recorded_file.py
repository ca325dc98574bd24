"""Files of recorded voltages (CSV), read in pieces of any length into records of copies.

Columns are `copy`, `time_s` and one a cell, such as `cell1_V`; a unit is part of a column's name.
"""

import csv
import re
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.errors import EmptyDataError, ParserError, ParserWarning

from circuits.board import REFERENCE_CELSIUS, Board, Design
from circuits.errors import InputError
from circuits.nodal import Circuit, lag_of
from circuits.ou import decay_time, lagged_covariances
from circuits.statistics.estimators import mean_covariance
from circuits.statistics.recorded import Recorded, RecordSummary, recording_circuit
from circuits.statistics.streaming import LEAST, Stream

ROWS = 50_000  # rows read at a time
BOM = b"\xef\xbb\xbf"  # byte order mark, with which some programs begin a UTF-8 file
HEAD = 1 << 16  # bytes searched for the header
SECONDS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}  # units in a second
VOLTS = {"V": 1.0, "mV": 1e3, "uV": 1e6}  # units in a volt


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
    circuit = recording_circuit(design, ambient)
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

"""Decks: a header of comments, the circuit, the line ANALYSIS, and an analysis that plain `ngspice -b` runs.

A run with another analysis keeps everything above the line ANALYSIS.
"""

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from circuits.board import Board, Conditions, Copy, Program
from circuits.errors import InputError
from circuits.files import sha256
from circuits.netlist.spice import circuit_text
from circuits.nodal import assemble
from circuits.ou import held_covariance

ANALYSIS = "* === analysis: everything above this line is the board ==="
WIDEST = 16  # most cells whose expected covariance is written into the header
WIDEST_BANKED = 8  # the same for a board with banks, where every closed switch is a node
START_UP = 15.0  # slowest time constants discarded before the first reading; relative error of the variance e^-30
CHANNELS = 31  # most channels of one noise file: ngspice reads lines of at most 511 characters


def deck_text(board: Board, program: Program, copy: Copy, conditions: Conditions, samples: int) -> str:
    """Whole deck of a copy for plain `ngspice -b`, which records `samples` readings to <copy>.raw."""
    circuit = circuit_text(board, program, copy, conditions)
    header = _header(board, program, copy, conditions, samples)
    return header + circuit + ANALYSIS + "\n" + sampled_analysis(board, program, conditions.seed, samples, copy.name)


def circuit_of(text: str) -> str:
    """Part of a deck above the line ANALYSIS; InputError if the deck lacks the line."""
    circuit, line, _ = text.partition(ANALYSIS)
    if not line:
        raise InputError(f"the deck lacks the line {ANALYSIS!r}; write it again with `tngd design --force`")
    return circuit


def sampled_analysis(board: Board, program: Program, seed: int, samples: int, output: str) -> str:
    """Transient analysis: start-up discarded, then `samples` readings at multiples of the period to <output>.raw.

    chgtol = 1 C switches off the control of the local truncation error, harmless for a linear circuit whose step is set
    by the noise; interp puts the points exactly on the grid, where the law of held noise applies.
    """
    h = program.period
    skip = discarded(program)
    saved = " ".join(f"v({node})" for node in board.nodes)
    return "\n".join(
        [
            f".options seed={seed} chgtol=1 interp",
            f".save {saved}",
            f".tran {h!r} {(skip + samples + 0.5) * h!r} {skip * h!r} {h!r}",
            *control([f"run\nwrite {output}.raw {saved}"]),
        ]
    )


def file_widths(channels: int) -> list[int]:
    """Number of channels of each noise file, always odd.

    With some even numbers ngspice 39 writes one number beyond the memory in which it keeps a long file.
    """
    left, widths = channels, []
    while left:
        widths.append(min(left, CHANNELS) - (min(left, CHANNELS) + 1) % 2)
        left -= widths[-1]
    return widths


def file_sources(channels: Sequence[tuple[str, float]], period: float) -> str:
    """XSPICE sources of a current into each node; a channel is a node and the current [A] of one unit in noise<k>.txt.

    Line k of a file is valid from half a period before to half a period after k periods, so at the grid points in the
    middle rounding of time does not matter. Unlike a source of SPICE, an XSPICE source makes no break points.
    """
    lines, start = [], 0
    for number, width in enumerate(file_widths(len(channels)), start=1):
        own = channels[start : start + width]
        start += width
        lines += [
            f"Anoise{number} %id([{' '.join(f'0 {node}' for node, _ in own)}]) noise{number}",
            f'.model noise{number} filesource(file="noise{number}.txt" amplstep=true',
            f"+ timescale={period!r} timeoffset={-period / 2!r}",
            f"+ amplscale=[{' '.join(f'{scale!r}' for _, scale in own)}]",
            f"+ amploffset=[{' '.join('0' * width)}])",
        ]
    return "\n".join(lines) + "\n"


def stepped_analysis(
    nodes: Sequence[str], period: float, skip: int, samples: int, output: str, options: str = ""
) -> str:
    """Transient analysis with one step a period: `samples` readings (and one more) after `skip` periods.

    With chgtol = 1 C the step is its upper limit, the period. The first step is a hundredth of the first number of
    `.tran` (if the run is longer than a hundred periods); steps double, so the seventh doubling gives the period.
    """
    saved = " ".join(f"v({node})" for node in nodes)
    first = 100 / 128 * period
    return "\n".join(
        [
            f".options chgtol=1{options}",
            f".save {saved}",
            f".tran {first!r} {(skip + samples - 0.5) * period!r} {(skip - 0.5) * period!r} {period!r}",
            *control([f"run\nwrite {output}.raw {saved}"]),
        ]
    )


def exact_analysis(board: Board, low: float, high: float, points: int, output: str) -> str:
    """AC analyses, one per noise source at unit current, `points` per decade from `low` to `high` Hz: <output>.raw."""
    saved = " ".join(f"v({node})" for node in board.nodes)
    steps = ["set appendwrite"]
    for source in board.sources:
        name = source.name.lower()
        steps += [
            f"alter {name} ac = 1",
            f"ac dec {points} {low!r} {high!r}",
            f"write {output}.raw {saved}",
            f"alter {name} ac = 0",
        ]
    return "\n".join([f".save {saved}", *control(steps)])


def discarded(program: Program) -> int:
    """Samples discarded at the start: START_UP time constants of the slowest mode of the nominal board."""
    return int(np.ceil(START_UP * program.settling / program.period))


def control(lines: list[str]) -> list[str]:
    """Lines at the end of a deck that run these commands."""
    return [".control", *lines, "quit", ".endc", ".end", ""]


def _header(board: Board, program: Program, copy: Copy, conditions: Conditions, samples: int) -> str:
    """Comments at the head of a deck: board, target, law of the readings, how to run it, expected covariance."""
    factor = board.nodes_per_cell
    readings = " ".join(
        f"v({reading.plus})" if reading.minus is None else f"v({reading.plus})-v({reading.minus})"
        for reading in board.readings
    )
    lines = [
        f"SPU board {program.name}, {copy.name}: {len(board.cells)} {board.kind} cells, {board.coupling}, all to all",
        f"target       {len(program.target)} x {len(program.target)}, sha256 {sha256(program.target)}",
        f"step         {program.step}",
        f"noise seed   {conditions.seed}",
        "written by   tngd " + version("tngd"),
        "",
        "What it does: the covariance of the readings carries the inverse of the target.",
        f"  readings y  {readings}",
        f"  M^-1 = c (Cov(y) + K) / ({factor} kT),  c = {board.capacitance!r} F,  kT = {program.energy!r} J",
        "  K = `hold_correction_V2` in board.json: what white noise would add to noise held for a period",
        "  P^-1 = X' M^-1 X, with X = `mapping` in board.json",
        *_solving(board),
        f"Run it: ngspice -b {copy.name}.cir records {samples} readings (or one more) to {copy.name}.raw,",
        f"  one every {program.period:.6g} s, after {discarded(program)} periods of start-up that are not recorded.",
        "",
        *_expected(board, program, copy, conditions),
    ]
    return "".join(f"* {line}".rstrip() + "\n" for line in lines)


def _solving(board: Board) -> list[str]:
    """Law of the mean of the readings of a resistive board, as lines of the header; none for a capacitive board."""
    if not board.inputs:
        return []
    into = ", ".join(f"{entry.share:g} b{entry.cell + 1} into {entry.name}" for entry in board.inputs[:2])
    return [
        "Its mean solves a linear system: with currents b at the inputs,",
        f"  <y> = M^-1 b / g,  g = {board.unit!r} S;  {into}, and so on",
    ]


def _expected(board: Board, program: Program, copy: Copy, conditions: Conditions) -> list[str]:
    """Covariance by the law of the copy, as lines of the header; the formula alone for boards above WIDEST cells."""
    if len(board.cells) > (WIDEST_BANKED if board.banks else WIDEST):
        return [
            f"Expected covariance of the recorded readings: {board.nodes_per_cell} kT/c M^-1 - K on the nominal board."
        ]
    covariance = held_covariance(assemble(board, program, copy, conditions), program.period)
    rows = ("  " + " ".join(f"{entry:+.6e}" for entry in row) for row in covariance)
    return ["Expected covariance of the recorded readings [V^2], for the noise as it is held here:", *rows]

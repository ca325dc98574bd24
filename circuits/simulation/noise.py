"""Variance of single readings by the noise analysis of ngspice, independent of the AC runs; noise white, not held.

    y = v(p) - v(n),   Var(y) = ∫₀^∞ S_y df,   S_y = Σ_k 4 kT_k g_k |z_k(f)|²

`.noise` includes only the thermal noise of resistors and devices, and finds all transfers z_k of an output at once, by
the adjoint circuit. Every noise source k, of σ held for h in the deck, is therefore replaced by a resistor 1/g_k that
`dtemp` heats to T_k = σ² h/(2 k g_k), the temperature of the cell, 10⁸ to 10¹¹ K; a transconductance g_k drives a
current in proportion to the noise voltage of the resistor into the node. The rest of the circuit is at absolute zero,
where resistors have no noise. The integral that ngspice computes overflows on steep spectra; here the spectrum is
integrated as in circuits.simulation.ac.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from circuits.board import Board, Program, Reading, Source
from circuits.errors import InputError, SimulationError
from circuits.netlist.deck import control
from circuits.simulation.ac import converged
from circuits.simulation.ngspice import run_deck

BOLTZMANN = 1.38064852e-23  # J/K, the value in ngspice, which has to cancel
DENSITY = "density"  # name of the spectrum of an output in the raw file


@dataclass(frozen=True, eq=False)
class NoiseRun:
    """Variances (outputs,) [V²] of the readings `outputs` (numbers from 0), and the relative error of integration."""

    outputs: tuple[int, ...]
    variances: np.ndarray
    integration_error: float


def noise_run(board: Board, program: Program, circuit: str, outputs: Sequence[int]) -> NoiseRun:
    """Run the circuit part of a deck in ngspice, one noise analysis for each of the readings `outputs` (from 0).

    InputError if the board lacks such a reading, or the circuit lacks a source; SimulationError if ngspice fails or the
    integral does not converge.
    """
    last = len(board.readings) - 1
    if not len(outputs) or not all(0 <= output <= last for output in outputs):
        raise InputError(f"outputs are numbers of the board's readings, from 0 to {last}, got {list(outputs)}")
    heated = circuit + _heaters(board, circuit)
    chosen = [board.readings[output] for output in outputs]
    found = converged(board, program, lambda *grid: _measure(board, heated, chosen, *grid))
    return NoiseRun(tuple(outputs), np.diag(found.value).copy(), found.error)


def _heaters(board: Board, circuit: str) -> str:
    """Lines of a deck: the circuit at absolute zero, and a hot resistor for every noise source."""
    lines = [".options temp=-273.15"]
    for k, source in enumerate(board.sources):
        g = source.conductance
        lines += [
            f"Rhot{k} hot{k} 0 {1 / g!r} dtemp={_temperature(source, circuit)!r}",
            f"Ghot{k} 0 {source.node} hot{k} 0 {g!r}",
        ]
    return "\n".join(lines) + "\n"


def _temperature(source: Source, circuit: str) -> float:
    """Temperature T [K] of a source, from its two-sided density σ² h = 2 kT g; InputError if the circuit lacks it."""
    found = re.search(rf"^{source.name} .*trrandom\(2 (\S+) 0 (\S+) 0\)", circuit, re.M)
    if not found:
        raise InputError(f"the circuit lacks the noise source {source.name}; it is not one of this board")
    hold, sigma = float(found.group(1)), float(found.group(2))
    return sigma**2 * hold / (2 * BOLTZMANN * source.conductance)


def _measure(
    board: Board, heated: str, chosen: list[Reading], low: float, high: float, points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (f,) [Hz] and one-sided densities [V²/Hz] of the readings, on the diagonal of (f, k, k)."""
    plots = run_deck(heated + _analysis(board, chosen, low, high, points), [DENSITY], "noise", len(chosen))
    frequency = plots[0].scale
    if any(len(plot.scale) != len(frequency) for plot in plots) or not np.isclose(frequency[-1], high, rtol=1e-3):
        raise SimulationError("ngspice stopped inside a noise analysis; run it again")
    densities = np.concatenate([plot.voltages for plot in plots], axis=1)
    return frequency, densities[:, :, None] * np.eye(len(chosen))


def _analysis(board: Board, chosen: list[Reading], low: float, high: float, points: int) -> str:
    """Lines of one noise analysis for each reading; an analysis writes two plots, of spectra and of totals.

    ngspice needs a source as the reference of input noise. The density is typed as a voltage, because run_deck reads
    voltages.
    """
    reference = board.sources[0].name.lower()
    lines = ["set sqrnoise", "set appendwrite", f"alter {reference} ac = 1"]
    for k, reading in enumerate(chosen):
        output = f"v({reading.plus})" if reading.minus is None else f"v({reading.plus},{reading.minus})"
        lines += [
            f"noise {output} {reference} dec {points} {low!r} {high!r}",
            f"setplot noise{2 * k + 1}",
            f"let {DENSITY} = onoise_spectrum",
            f"settype voltage {DENSITY}",
            f"write noise.raw {DENSITY}",
        ]
    return "\n".join(control(lines))

"""Recorded voltages of a physical board in place of ngspice: the record of a copy, and its law.

The noise of a physical board is white, its readings y have an offset, and the values of its parts are not known. The
covariance of N readings of a copy is taken about their mean ȳ; in a record with gaps, c(τ) pairs of readings are τ
sampling periods apart:

    S = (1/N) Σ (y - ȳ)(y - ȳ)ᵀ,   <S> = Σ - V,   V = Cov(ȳ) = (1/N²) Σ_τ c(|τ|) ρ(τ),

with Σ, V and the law of S from the lagged covariances ρ of the nominal board. V, lost by removing the mean, is added
before an inverse is read; white noise needs no hold correction. A χ² of S against this law tests whether the board
differs from the nominal board by more than sampling does: with real parts it should, and this is no fault.
"""

from dataclasses import dataclass

import numpy as np

from circuits.board import Conditions, Copy, Design
from circuits.copies import specimens
from circuits.files import ArrayField
from circuits.nodal import Circuit, assemble
from circuits.ou import lagged_covariances
from circuits.statistics.equilibrium import Sums
from circuits.statistics.estimators import EstimateLaw, law_about_mean
from circuits.statistics.streaming import Clipping, Outliers


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


def recorded_law(
    design: Design, recorded: Recorded, copy: Copy | None = None, ambient: float | None = None
) -> EstimateLaw:
    """Law of `recorded.covariance` on the nominal board or a copy, under white noise; `ambient`: that of the record."""
    ambient = recorded.summary.ambient if ambient is None else ambient
    rho = lagged_covariances(recording_circuit(design, ambient, copy), recorded.summary.period_s, held=False)
    return law_about_mean(rho, recorded.pairs)


def recording_circuit(design: Design, ambient: float, copy: Copy | None = None) -> Circuit:
    """Circuit of a copy, by default the nominal board, with all parasitics of the design."""
    return assemble(design.board, design.program, copy or specimens(design)[0], Conditions(ambient))


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}" + "s" * (number > 1)

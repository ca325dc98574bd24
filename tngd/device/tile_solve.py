"""Products of tile inverses with vectors, at any time, without the eigenvectors of every tile.

On capacitive boards the answer is B v, with the covariance B of tngd.device.tiles. With the mean t̄ of the temperatures
and δ = t - t̄,

    B v = t̄ M~⁻¹ v + X v,      X = Σ_ab f(m_a, m_b) 2 δ~_ab,      f(a, b) = 1/(a + b + Q² (a - b)²/2),

the first term by Cholesky, the second by a Chebyshev series of f whose dropped part is below ERROR of the answer.
Behind an ADC with bits the covariance of the converted readings replaces B (tngd.device.converters); it is computed
from the eigenvectors of every tile.

Resistive boards follow, with their own capacitors c and time in units of the nominal time constant,

    c dx/dt = b - M~ x:  x(t) = c^-½ [e^(-St) c^½ x₀ + φ_t(S) c^-½ b],  S = c^-½ M~ c^-½,  φ_t(a) = (1 - e^(-at))/a.

Noise of powers p adds a normal vector, in the coordinates c^½ x of covariance ∫ e^(-Ss) 2 κ₀ diag(p/c) e^(-Ss) ds over
[0, t]. Tiles whose spectrum is too wide for a short series are solved by their eigenvectors. Vectors are (n, tiles).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import inf, isinf

import numpy as np
import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.model.converters import IDEAL, Converter
from tngd.device.converters import convert, read_law
from tngd.device.small_matrices import (
    apply,
    centred,
    cholesky,
    cholesky_solve,
    function_sum,
    pair_function,
    pair_series,
    series,
    spectrum_bounds,
    widened,
)
from tngd.device.tiles import HeldTiles, TileBoard, covariances, has_full_scale, mode_rate, spread_over

LOW, HIGH = 0.2, 2.5  # eigenvalues between which a series is short
ENTIRE = 24.0  # largest t HIGH for which one series covers eigenvalues from 0 on
CLIPPED = 1e-3  # share of a cell's readings above which the cell counts as saturated; a range of 4 rms clips 6e-5
ERROR = {torch.float64: 5e-11, torch.float32: 1e-6}  # relative error of the answer due to the series

White = Callable[[Tensor], Tensor]  # standard normal numbers in the shape and precision of a tensor


@dataclass(frozen=True)
class ReadAt:
    """Reading of a resistive board: `time` after the upload, in time constants, and noise κ₀."""

    time: float = inf
    noise: float = 0.0


LAST = ReadAt()


@dataclass(frozen=True, eq=False)
class TileAnswer:
    """Answers (n, tiles) as read, the mask of stable tiles (tiles,), and counts of saturated values.

    `saturated`: on a resistive board the number of uploaded values and readings at full scale; on a capacitive board
    the number of cells of stable tiles of which the ADC clips a share above CLIPPED of the readings (so many readings
    are taken of a cell that some are always clipped). `clipped` is, on a capacitive board, the sum over cells of the
    clipped shares; on a resistive board the number of clipped readings. `state` (n, tiles): the voltages of a resistive
    board before the readout.
    """

    values: Tensor
    stable: Tensor
    saturated: int
    clipped: float
    state: Tensor


def check_reading(board: TileBoard, reading: ReadAt, start: str = "gradient") -> None:
    """InputError for a finite time, noise, or a start other than "gradient" on a capacitive board."""
    given = {"time": (reading.time, inf), "noise": (reading.noise, 0.0), "start": (start, "gradient")}
    for name, (value, only) in given.items():
        if board.coupling == "capacitive" and value != only:
            raise InputError(
                f"tiles of a capacitive board know no {name}, got {name}={value!r}: they are read as the covariance of "
                "their noise, to which a time is an error of sampling and κ₀ a scale; a board designed with --coupling "
                "resistive settles in time"
            )


def tile_answers(
    board: TileBoard,
    held: HeldTiles,
    vectors: Tensor,
    copies: Tensor,
    reading: ReadAt = LAST,
    start: Tensor | None = None,
    white: White | None = None,
) -> TileAnswer:
    """Answers to inputs `vectors` (n, tiles) on held tiles: M~⁻¹ v up to the errors modelled here.

    `start` (n, tiles): voltages at the upload, zero if None; if `start` is `vectors`, the vector as uploaded. A tile
    that is not stable has no useful answer. The converters of a resistive board act on the vectors and the voltages,
    each tile scaled by its own rms; the ADC of a capacitive board acts on the readings whose covariance is the answer,
    with a full scale set by the largest rms reading of the nominal board. InputError for a finite time or noise on a
    capacitive board.
    """
    if board.coupling == "capacitive":
        check_reading(board, reading)
    if has_full_scale(board):
        return _through_adc(board, held, vectors, copies)
    L, definite = cholesky(held.matrix)
    stable = definite & held.possible
    readout = spread_over(board.readout, copies)
    if board.coupling == "capacitive":
        B = readout * _covariance_times(board, held.matrix, L, stable, readout * vectors, copies)
        noise = board.interface.adc.noise
        # As with bits, noise is in multiples of the largest rms reading, which only positive definite tiles have.
        white_too = torch.where(stable, B + noise**2 * held.variance * vectors, 0) if noise else B
        return TileAnswer(white_too, stable, 0, 0.0, B)
    uploaded, lost = _converted(board.interface.dac, vectors, stable, white, to_analog=True)
    if isinf(reading.time) and not reading.noise:
        state = cholesky_solve(L, uploaded)
    else:
        begin = uploaded if start is vectors else start
        state = _settled(board, held.matrix, stable, uploaded, copies, reading, begin, white)
    state = torch.where(stable, state, 0)
    read, clipped = _converted(board.interface.adc, readout * state, stable, white)
    return TileAnswer(read, stable, lost + clipped, float(clipped), state)


def _converted(
    converter: Converter, values: Tensor, stable: Tensor, white: White | None, to_analog: bool = False
) -> tuple[Tensor, int]:
    if converter == IDEAL.dac:
        return values, 0
    drawn = white(values) if converter.noise else None
    rms = torch.where(stable, values, 0).square().mean(0).sqrt()
    found = convert(torch.where(stable, values, 0), converter, rms, drawn, to_analog)
    return found.values, found.saturated


def _through_adc(board: TileBoard, held: HeldTiles, vectors: Tensor, copies: Tensor) -> TileAnswer:
    """Answers of a capacitive board whose ADC rounds and clips.

    These need the whole covariance of every tile, not only its product with a vector.
    """
    B, stable = covariances(board, held, copies)
    stable = stable & held.variance.isfinite()  # else the target is not positive definite in this precision
    readout, offset = spread_over(board.readout, copies), spread_over(board.offset, copies)
    # Tiles that are not stable are replaced by the identity, so that every number is finite.
    B = torch.where(stable, readout[:, None] * B.movedim(0, -1) * readout, torch.eye(board.size).to(B)[..., None])
    rms = torch.where(stable, held.variance, 1).sqrt()
    law, share = read_law(B, offset * rms, rms, board.interface.adc, ERROR[B.dtype])
    share = torch.where(stable, share, 0)
    values = torch.where(stable, apply(law, vectors), 0)
    return TileAnswer(values, stable, int((share > CLIPPED).sum()), float(share.sum()), values)


def _covariance_times(
    board: TileBoard, M: Tensor, L: Tensor, stable: Tensor, vectors: Tensor, copies: Tensor
) -> Tensor:
    t = spread_over(board.temperature, copies)
    mean = t.mean(0)
    weights = 2 * (t - mean)
    x = mean * cholesky_solve(L, vectors)
    largest = float(weights.abs().amax())
    if largest == 0:
        return x
    near, bounds = _narrow(M, stable)
    if bounds is not None:
        c = _temperature_series(board.quality**2 / 2, *bounds, ERROR[M.dtype] / (largest * bounds[1]))
        near &= c is not None
        if c is not None:
            x += _only(near, pair_function(_only(near, centred(M, *bounds)), c, weights, vectors))
    far = (stable & ~near).nonzero()[:, 0]
    if len(far):
        m, V = torch.linalg.eigh(M[:, :, far].movedim(-1, 0))
        tilted = V.mT @ (weights[:, far].T[:, :, None] * V) / mode_rate(m, board.quality)
        x[:, far] += (V @ (tilted @ (V.mT @ vectors[:, far].T[:, :, None])))[:, :, 0].T
    return x


def _settled(
    board: TileBoard,
    M: Tensor,
    stable: Tensor,
    vectors: Tensor,
    copies: Tensor,
    reading: ReadAt,
    start: Tensor | None,
    white: White | None,
) -> Tensor:
    c = spread_over(board.storage, copies)
    root = c.sqrt()
    S = M / (root[:, None] * root)
    drive = vectors / root
    begin = None if start is None or isinf(reading.time) else root * start
    if reading.noise:
        power = 2 * reading.noise * spread_over(board.power, copies) / c
        return _by_modes(S, stable, drive, begin, reading.time, power, white(vectors)) / root
    near, bounds = _narrow(S, stable, reading.time)
    y = torch.zeros_like(drive)
    terms = None if bounds is None else _time_series(reading.time, *bounds, ERROR[M.dtype])
    near &= terms is not None
    if terms is not None:
        sums = [(terms[0], drive)] + ([] if begin is None else [(terms[1], begin)])
        y = _only(near, function_sum(_only(near, centred(S, *bounds)), sums))
    far = (stable & ~near).nonzero()[:, 0]
    if len(far):
        from_start = None if begin is None else begin[:, far]
        y[:, far] = _by_modes(S[:, :, far], stable[far], drive[:, far], from_start, reading.time, None, None)
    return y / root


def _by_modes(
    S: Tensor,
    stable: Tensor,
    drive: Tensor,
    begin: Tensor | None,
    time: float,
    power: Tensor | None,
    white: Tensor | None,
) -> Tensor:
    """y = c^½ x (n, tiles) by the eigenvectors of every tile; zero for tiles that are not stable."""
    m, V = torch.linalg.eigh(S.movedim(-1, 0))
    m = torch.where(stable[:, None], m, 1)
    decay = torch.exp(-m * time)
    y = -torch.expm1(-m * time) / m * _rotated(V, drive)
    if begin is not None:
        y = y + decay * _rotated(V, begin)
    if power is not None:
        rates = m[:, :, None] + m[:, None, :]
        law = V.mT @ (power.T[:, :, None] * V) * (-torch.expm1(-rates * time) / rates)
        y = y + (torch.linalg.cholesky(law) @ white.T[:, :, None])[:, :, 0]
    return torch.where(stable, (V @ y[:, :, None])[:, :, 0].T, 0)


def _rotated(V: Tensor, vectors: Tensor) -> Tensor:
    """Vᵀ v, (tiles, n)."""
    return (V.mT @ vectors.T[:, :, None])[:, :, 0]


def _only(near: Tensor, values: Tensor) -> Tensor:
    """Values with zeros for tiles that are not narrow, where the series is meaningless and would grow."""
    return values if bool(near.all()) else torch.where(near, values, 0)


def _narrow(M: Tensor, stable: Tensor, time: float = inf) -> tuple[Tensor, tuple[float, float] | None]:
    """Mask of tiles with a narrow spectrum, and common bounds of these spectra (None without such tiles)."""
    low, high = spectrum_bounds(M)
    entire = time * HIGH <= ENTIRE
    near = stable & (high <= HIGH) & ((low >= LOW) | entire)
    least, most = float(torch.where(near, low, inf).amin()), float(torch.where(near, high, -inf).amax())
    if isinf(least):
        return near, None
    return near, widened(least, most) if least >= LOW else (0.0, HIGH)


@lru_cache(maxsize=64)
def _temperature_series(curve: float, low: float, high: float, bound: float) -> np.ndarray | None:
    return pair_series(lambda a, b: 1 / (a + b + curve * (a - b) ** 2), low, high, bound)


@lru_cache(maxsize=64)
def _time_series(time: float, low: float, high: float, error: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Chebyshev coefficients of φ_t and e^(-at), to `error` of the smallest φ_t on the interval; None if too many."""
    bound = error * float(-np.expm1(-high * time) / high)
    if isinf(time):
        found = series(lambda a: 1 / a, low, high, bound), np.zeros(1)
    else:
        found = tuple(
            series(f, low, high, bound) for f in (lambda a: -np.expm1(-a * time) / a, lambda a: np.exp(-a * time))
        )
    return None if any(c is None for c in found) else found

"""The full-size factored array of the TNGD paper, with the errors of its elements.

The device has N capacitors, coupled by three arrays of adjustable resistors: J takes the voltages of the capacitors to
r rows, H (one element a row) weights the rows, and a second J, transposed, returns the rows as currents. A row R_k of
the batch's factor is uploaded with rms 1, and its scale goes into H, h_k = rms(R_k)². Every element is a code of a few
bits and has its own relative error, drawn once from the seed and the same for both signs, so the device is

    A~ = λ~ I + L Mᵀ,   Mᵀ = √h~ (J ∘ γ),   Lᵀ = √h~ (J ∘ γ′),   h~ = h ∘ γ″,

not symmetric, unless both passes use one array (`shared`, γ′ = γ). λ~ has one error: the N damping resistors are
trimmed to each other. Converters upload the gradient and read the state, through N readouts each with a gain and an
offset. The state is in units of the gradient: a kept state changes with the scale of the DAC.

Noise. With conductances g₀ A, capacitors c, bias currents i and noise of power 2 kT g₀ in each cell, the voltages in
units of time c/g₀ obey dV = -(A V - i/g₀) ds + N(0, 2 (kT/c) ds). The DAC maps its full scale F = range · rms(g) to
the voltage V_F = i/g₀, so for x = V F/V_F

    κ₀ = kT/(c V_F²) · (range · rms(g))².
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.board import REFERENCE_CELSIUS
from circuits.errors import InputError
from circuits.model.converters import Converter
from circuits.model.device import Device, checked, temperature_coefficients
from circuits.model.ensemble import WIDEST, element_spread
from circuits.model.fitted_copy import readout_of
from tngd.curvature.factor import Factor
from tngd.device.converters import convert, root_mean_square
from tngd.device.low_rank import LowRank

ARRAY_STREAM = 11  # of random numbers
CHUNK = 1024  # columns whose errors are drawn together, from a separate seed
KEPT = 2**28  # gains kept in memory, 4 bytes each; the gains of larger arrays are drawn again at every upload
PLAIN = Converter()
SMALLEST = 0.01  # gain: as in circuits.model.ensemble


@dataclass(frozen=True)
class Array:
    """One physical array: `shape` (rows, N), and the statistics of its elements, converters and readouts.

    `mean` and `deviation` of the relative gains, `shared` for one J array in both passes, `seed` of the errors;
    `elements` (bits and range of J and H), `dac` and `adc`; `level` kT/(c V_F²) of the noise; `drift` is the factor of
    temperature on every element; `readout` and `offset` (in units of V_F) are the deviations of the gains and offsets
    of the N readouts. Memory: 4 bytes a gain for each of one or two J arrays up to KEPT, and twice rows x N numbers of
    the model's precision for the programmed matrices.
    """

    shape: tuple[int, int]
    mean: float = 1.0
    deviation: float = 0.0
    shared: bool = False
    seed: int = 0
    elements: Converter = PLAIN
    dac: Converter = PLAIN
    adc: Converter = PLAIN
    level: float = 0.0
    drift: float = 1.0
    readout: float = 0.0
    offset: float = 0.0
    gains: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        if not (len(self.shape) == 2 and all(isinstance(n, int) and n >= 1 for n in self.shape)):
            raise InputError(f"an array has a shape (rows, parameters), whole numbers from 1 on, got {self.shape}")
        for name in ("mean", "drift"):
            if not 0 < getattr(self, name) < np.inf:
                raise InputError(f"{name} of an array is a factor above 0, got {getattr(self, name)}")
        for name in ("deviation", "level", "readout", "offset"):
            if not 0 <= getattr(self, name) < np.inf:
                raise InputError(f"{name} of an array must be 0 or above, got {getattr(self, name)}")
        if self.elements.noise or self.elements.offset:
            raise InputError("elements of an array have bits and a range; their errors are `mean` and `deviation`")

    def describe(self) -> dict[str, Any]:
        """All fields but the drawn gains, as plain numbers: arrays of equal descriptions are equal."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "gains"}
        converters = {name: asdict(plain[name]) for name in ("elements", "dac", "adc")}
        return plain | converters | {"shape": list(self.shape)}


@dataclass(frozen=True, eq=False)
class HeldArray:
    """A factor as programmed on an array: matrix, gain of the damping, and number of elements at full scale."""

    factor: Factor
    matrix: LowRank
    damping_gain: float
    saturated: int


def array_of(
    device: Device,
    shape: tuple[int, int],
    seed: int = 0,
    *,
    calibrated: bool = True,
    shared: bool = False,
    element_bits: int | None = None,
    element_range: float = 16.0,
    full_scale: float | None = None,
    ambient: float = REFERENCE_CELSIUS,
) -> Array:
    """The array of `shape` (rows, N) that would be built from the parts of a device, rows = b q of the largest batch.

    `calibrated`: the spread of the elements is the estimate from the device's copies; if not, the tolerance of the
    parts. `element_range` is the full scale of an element in multiples of its row's rms: gradients have long tails, and
    with 8 bits a narrower range loses more by clipping than it gains in resolution. `full_scale` V_F [V] is the voltage
    at full scale of the DAC: with V_F the array has the noise that the board was designed for (kT/c is the square of
    the board's rms reading where a cell holds the value 1) and the offsets of the readout; without V_F it has neither.
    At `ambient` [°C] elements drift by the temperature coefficient of their kind; the feedback parts of a stage do not
    drift. InputError if the spread of the elements is unknown.
    """
    board, interface = checked(device).board, device.interface
    if calibrated:
        spread = element_spread(device, seed)
        mean, deviation = spread.mean, spread.deviation
    else:
        tolerances = [part.tolerance for part in board.parts if part.element is not None]
        if not tolerances:
            raise InputError("the device's board has no elements with a tolerance; give one of a designed board")
        mean, deviation = 1.0, max(tolerances) / 3**0.5
    kind = "R" if board.coupling == "resistive" else "C"
    readouts = np.array([readout_of(copy, len(board.cells)) for copy in device.copies])  # (copies, 2, n)
    scale, offset = np.sqrt(((readouts - [[1.0], [0.0]]) ** 2).mean((0, 2))).tolist()
    change = temperature_coefficients(board, interface).get(kind, 0.0) * (ambient - REFERENCE_CELSIUS)
    return Array(
        tuple(shape),
        mean,
        deviation,
        shared,
        seed,
        Converter(element_bits, element_range),
        interface.dac,
        interface.adc,
        0.0 if full_scale is None else noise_level(board.limits.reading_rms**2, 1.0, full_scale),
        1 / (1 + change) if kind == "R" else 1 + change,
        scale,
        0.0 if full_scale is None else offset / full_scale,
    )


def noise_level(energy: float, capacitance: float, full_scale: float) -> float:
    """kT/(c V_F²) from the energy kT [J] of the noise, the capacitor c [F] of a cell and the voltage V_F [V]."""
    if not (energy >= 0 and capacitance > 0 and full_scale > 0):
        raise InputError(
            f"expected an energy of 0 or more, a capacitance and a full scale above 0, got {energy} J, "
            f"{capacitance} F and {full_scale} V"
        )
    return energy / (capacitance * full_scale**2)


def check_size(array: Array, size: int, rank: int | None = None) -> None:
    """InputError if the array does not have N = `size` columns, or has fewer rows than `rank`."""
    rows, columns = array.shape
    if size != columns:
        raise InputError(
            f"the array has {columns} columns, but the network has {size} trained parameters; build an array of its "
            f"own with shape ({rows}, {size})"
        )
    if rank is not None and rank > rows:
        raise InputError(
            f"the array has {rows} rows, but the curvature of this batch has {rank}; build an array with as many rows "
            "as samples times outputs of the largest batch, or take smaller batches"
        )


def program_array(array: Array, factor: Factor, like: Tensor) -> HeldArray:
    """Upload a factor, in the precision and place of `like`; InputError if the factor does not fit or is not finite."""
    check_size(array, factor.size, factor.rank)
    J = factor.dense(like)  # (r, N), becomes Mᵀ
    scale = J.norm(dim=1) / factor.size**0.5
    if not torch.isfinite(scale.sum()):
        raise InputError("the curvature is not finite, the step was not made; check the outputs, or lower lr")
    weights = convert(scale**2, array.elements, root_mean_square(scale**2))
    saturated = weights.saturated
    h = weights.values * _drawn(array, 2, 0, (array.shape[0], 1)).expand(array.shape[0], 1)[: factor.rank, 0].to(J)
    outer = (array.drift**3 * h).sqrt()[:, None]  # two J elements and one of H in every path
    inner = torch.where(scale > 0, 1 / scale, 0)[:, None]
    left = J if array.shared else torch.empty_like(J)
    for start in range(0, factor.size, CHUNK):  # by columns, so that each chunk stays in the cache
        columns = slice(start, start + CHUNK)
        codes = convert(J[:, columns] * inner, array.elements, (scale > 0).to(J)[:, None])
        saturated += codes.saturated
        loaded = codes.values * outer
        for matrix, passed in ((left, 1), (J, 0)):
            if passed == 0 or not array.shared:
                gains = _gains(array, passed, start // CHUNK)[: factor.rank].to(J)
                torch.mul(loaded, gains, out=matrix[:, columns])
    damping_gain = float(_drawn(array, 3, 0, (1, 1))) * array.drift
    return HeldArray(factor, LowRank(left, J), damping_gain, saturated)


def noise_of(array: Array, gradient: Tensor) -> float:
    """Noise κ₀ while this gradient (N,) is uploaded, in units of the gradient."""
    return array.level * (array.dac.range * float(root_mean_square(gradient))) ** 2 if array.level else 0.0


def readings(array: Array, state: Tensor, gradient: Tensor) -> Tensor:
    """A state (N,) as read by the N readouts, each with its gain and offset, while this gradient is uploaded."""
    if array.readout:
        state = state * (1 + array.readout * _white(array, 4, 0, state.shape).to(state))
    if array.offset:
        full_scale = array.dac.range * root_mean_square(gradient)
        state = state + array.offset * full_scale * _white(array, 5, 0, state.shape).to(state)
    return state


def _gains(array: Array, passed: int, chunk: int) -> Tensor:
    """Gains (rows, <= CHUNK) of the elements of one J array, kept in memory up to KEPT."""
    if (passed, chunk) in array.gains:
        return array.gains[passed, chunk]
    rows, columns = array.shape
    found = _drawn(array, passed, chunk, (rows, min(CHUNK, columns - chunk * CHUNK)))
    if rows * columns * (1 if array.shared else 2) <= KEPT:
        array.gains[passed, chunk] = found
    return found


def _drawn(array: Array, passed: int, chunk: int, shape: tuple[int, int]) -> Tensor:
    """Gains in single precision, drawn on the CPU: the same on every device."""
    if not array.deviation:
        return torch.full((1, 1), array.mean)
    return _white(array, passed, chunk, shape).mul_(array.deviation).add_(array.mean).clamp_(min=SMALLEST)


def _white(array: Array, passed: int, chunk: int, shape: tuple[int, ...]) -> Tensor:
    words = np.random.SeedSequence([ARRAY_STREAM, array.seed, passed, chunk]).generate_state(2)
    generator = torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))
    return torch.randn(shape, generator=generator).clamp_(-WIDEST, WIDEST)

"""The full-size factored array of the TNGD paper, with the errors of its elements.

The device has N capacitors, and between them three arrays of adjustable resistors: J takes their voltages to r rows, H
(one element a row) weighs the rows, and a second J, transposed, takes them back as currents. A row R_k of the batch's
factor is uploaded with rms 1, and its scale goes into H, h_k = rms(R_k)². Every element is a code of a few bits, and
has a relative error of its own, drawn once from the seed (it keeps it whichever sign is switched), so the device is

    A~ = λ~ I + L Mᵀ,   Mᵀ = √h~ (J ∘ γ),   Lᵀ = √h~ (J ∘ γ′),   h~ = h ∘ γ″,

not symmetric, unless both passes go through one array (`shared`, γ′ = γ). λ~ has one error: the N damping resistors are
trimmed to each other. Converters carry the gradient in and the state out, through N readouts each with a gain and an
offset. The state is in units of the gradient: when the scale of the DAC changes, a kept state changes with it.

Noise. With conductances g₀ A, capacitors c, bias currents i and noise of power 2 kT g₀ in each cell, the voltages in
units of time c/g₀ obey dV = -(A V - i/g₀) ds + N(0, 2 (kT/c) ds). The DAC takes its full scale F = range · rms(g) to
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
CHUNK = 1024  # columns whose errors are drawn at once, from a seed of their own
KEPT = 2**28  # gains kept in memory, 4 bytes each; of larger arrays they are drawn again at every upload
PLAIN = Converter()
SMALLEST = 0.01  # gain: as in circuits.model.ensemble


@dataclass(frozen=True)
class Array:
    """One physical array: `shape` (rows, N), and what every element of it has.

    `mean` and `deviation` of the relative gains, `shared` for one J array in both passes, `seed` of the errors;
    `elements` (bits and range of J and H), `dac` and `adc`; `level` kT/(c V_F²) of the noise; `drift` is what
    temperature multiplies every element by; deviations of the gains of the N readouts, `readout`, and of their offsets,
    `offset`, in units of V_F. Memory: 4 bytes a gain for each of one or two J arrays up to KEPT, and
    twice rows x N numbers of the model's precision for what they hold.
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
        """Everything but the drawn gains, as plain numbers: two arrays that agree in it are the same."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "gains"}
        converters = {name: asdict(plain[name]) for name in ("elements", "dac", "adc")}
        return plain | converters | {"shape": list(self.shape)}


@dataclass(frozen=True, eq=False)
class HeldArray:
    """What an array holds of a factor: the matrix, the gain of its damping, and how many elements met full scale."""

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
    """The array of `shape` (rows, N) that would be built of the parts of a device, rows = b q of the largest batch.

    `calibrated`: elements are spread as those of the device's copies were found to be; if not, as their parts'
    tolerances allow. `element_range` is the full scale of an element in multiples of its row's rms: gradients have long
    tails, and with 8 bits a narrower one costs more by clipping than it gains. `full_scale` V_F [V] is the voltage at
    full scale of the DAC: with it the array has the noise that the board was designed for (kT/c is the square of its
    reading's rms where a cell holds 1) and the readout's offsets; without it neither. At `ambient` [°C] elements drift
    by the temperature coefficient of their kind, and the parts that close a stage's loop do not.
    InputError if nothing is known of the elements.
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
    """InputError if the array is not of this number N of trained parameters, or has fewer rows than `rank`."""
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
    """Upload a factor, in the precision and place of `like`; InputError if it does not fit or is not finite."""
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
    for start in range(0, factor.size, CHUNK):  # by columns: what is worked on stays in the cache
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
    """κ₀ while this gradient (N,) is uploaded, in its units."""
    return array.level * (array.dac.range * float(root_mean_square(gradient))) ** 2 if array.level else 0.0


def readings(array: Array, state: Tensor, gradient: Tensor) -> Tensor:
    """What the N readouts, each with its own gain and offset, make of a state (N,), with this gradient uploaded."""
    if array.readout:
        state = state * (1 + array.readout * _white(array, 4, 0, state.shape).to(state))
    if array.offset:
        full_scale = array.dac.range * root_mean_square(gradient)
        state = state + array.offset * full_scale * _white(array, 5, 0, state.shape).to(state)
    return state


def _gains(array: Array, passed: int, chunk: int) -> Tensor:
    """Gains (rows, <= CHUNK) of the elements of one J array, kept where memory allows it."""
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

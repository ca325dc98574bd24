"""Options of a board, with defaults that can be built, and checks of the values that a user gives.

A target determines the ratios of the elements. Everything else about a board is an option: see BoardOptions, Parasitics
and BoardRequest.
"""

from dataclasses import dataclass
from math import floor, log10, pi, sqrt

from circuits.errors import InputError

# Relative change per kelvin of ordinary parts, thin film, ferrite core, C0G, and of the power of a noise source whose
# amplitude goes with a reference and a few resistors.
TEMPCO = {"R": 25e-6, "L": 100e-6, "C": 30e-6, "I": 100e-6}
MOST_RANGE = 1e6  # units that a bank may reach: targets of a larger condition are beyond parts of any tolerance
DATA_SETS = ("fair", "wine", "diabetes", "breast-cancer")
COUPLINGS = ("capacitive", "resistive")
SERIES = ("E6", "E12", "E24", "E48", "E96")
LARGEST = {"capacitive": 1e-6, "resistive": 1.0}  # element, F or S
INDUCTORS, RESISTORS = (1e-9, 1.0), (0.1, 1e8)  # ranges that can be bought, H and ohm
SMALLEST_PART = {"F": 1e-13, "S": 1e-8}  # a capacitor of 0.1 pF and a resistor of 100 megaohm can be bought
# Options of some boards only. On another board such an option would have no effect, so it is refused.
ONLY_WITH_BANKS = ("bank_range", "switch_resistance", "pad_capacitance")
ONLY_WITH = {"capacitive": ("resonance", "quality"), "resistive": ("unit_conductance",)}

YIELD_DRAWS = 400


class BoardError(InputError):
    """No board can be made with these options.

    `changes`, {field: value} each, are suggestions to be tried; `otherwise` is a suggestion in words.
    """

    def __init__(self, words: str, *changes: dict[str, float], otherwise: str = ""):
        super().__init__(words)
        self.changes = changes
        self.otherwise = otherwise


@dataclass(frozen=True)
class BoardOptions:
    """Options of a board. Defaults: 1 nF, 10 uH and 100 ohm, a resonance of 1.6 MHz at Q = 1; or 1 nF and 1 kohm.

    `coupling` is "capacitive" or "resistive". `unit_capacitance` [F] stands for 1 of the matrix (resistive: it is the
    capacitor of every cell): large against strays and pads, small enough to be a C0G part. `unit_conductance` [S]
    stands for 1 on a resistive board: a kilohm loads no amplifier and dwarfs switches. `resonance` [Hz] is that of a
    cell with the unit capacitance: slow enough for amplifiers, fast enough for small inductors. `quality` is
    R sqrt(c0/L); a low one keeps the readings insensitive to switches, wires and losses and makes samples independent
    soon. `reading_rms` [V] is the largest reading, `hold_bias` what the noise generator's sample period may cost of
    the fastest mode's variance. `smallest_element` and `largest_element` [F or S] bound what may be soldered.

    All parts are from an E `series` (None: any value); `parallel` of them hold an element. With `bank_bits` bits every
    element is a switched bank: switches have `switch_resistance` [ohm] and `pad_capacitance` [F] at either side;
    `bank_range` is the largest coupling as a fraction of the unit (None: twice what the target needs). The power of a
    noise source is off by up to `source_tolerance`.
    """

    coupling: str = "capacitive"
    unit_capacitance: float = 1e-9
    unit_conductance: float = 1e-3
    resonance: float = 1 / (2 * pi * 1e-7)
    quality: float = 1.0
    reading_rms: float = 0.05
    hold_bias: float = 0.03
    smallest_element: float = 0.0
    largest_element: float | None = None
    series: str | None = None
    parallel: int = 1
    bank_bits: int = 0
    bank_range: float | None = None
    switch_resistance: float = 10.0
    pad_capacitance: float = 2e-12
    source_tolerance: float = 0.0

    @property
    def unit(self) -> float:
        """Value that stands for 1 of the matrix, F or S."""
        return self.unit_capacitance if self.coupling == "capacitive" else self.unit_conductance

    @property
    def largest(self) -> float:
        """Largest element, F or S."""
        return LARGEST[self.coupling] if self.largest_element is None else self.largest_element

    @property
    def inductance(self) -> float:
        """L [H] of every cell."""
        return float(f"{1 / ((2 * pi * self.resonance) ** 2 * self.unit_capacitance):.12g}")

    @property
    def resistance(self) -> float:
        """R [ohm] of every cell."""
        return float(f"{self.quality * sqrt(self.inductance / self.unit_capacitance):.12g}")


def check_ranges(record: object, ranges: dict[str, tuple[float, float, str]]) -> None:
    """Raise InputError unless every field of the record, None apart, is from low to high; the option is its name."""
    for name, (low, high, unit) in ranges.items():
        value = getattr(record, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"{option(name)} is from {low:g} to {high:g} {unit}".rstrip() + f", got {value:g}")


def option(name: str) -> str:
    """The option of a field.

    >>> option("bank_bits")
    '--bank-bits'
    """
    return "--" + name.replace("_", "-")


def check_options(options: BoardOptions) -> BoardOptions:
    """Return the options if each is in range, or raise InputError with a suggestion."""
    if options.coupling not in COUPLINGS:
        raise InputError(f"--coupling is {' or '.join(COUPLINGS)}, got {options.coupling!r}")
    if options.series not in (None, *SERIES):
        raise InputError(f"--series is one of {', '.join(SERIES)}, got {options.series!r}")
    ranges = {
        "largest_element": (1e-15, 1e3, "F or S"),  # first, for it bounds the smallest
        "unit_capacitance": (1e-12, 1e-6, "F"),
        "unit_conductance": (1e-9, 1.0, "S"),
        "resonance": (1e2, 1e9, "Hz"),
        "quality": (0.05, 100.0, ""),
        "reading_rms": (1e-6, 100.0, "V"),
        "hold_bias": (1e-6, 0.2, ""),
        "smallest_element": (0.0, options.largest, "F or S"),
        "parallel": (1, 2, ""),
        "bank_bits": (0, 12, ""),
        "bank_range": (2.0**-10, MOST_RANGE, ""),
        "switch_resistance": (1e-3, 1e4, "ohm"),
        "pad_capacitance": (0.0, 1e-9, "F"),
        "source_tolerance": (0.0, 0.9, ""),
    }
    check_ranges(options, ranges)
    _check_used(options)
    if options.bank_bits and (options.parallel > 1 or options.series):
        raise InputError("banks hold every element by themselves; leave out --parallel and --series, or --bank-bits")
    if options.coupling == "capacitive":
        _check_resonator(options)
    return options


def _check_used(options: BoardOptions) -> None:
    """Raise InputError for an option that has no effect on this board."""
    needs = {} if options.bank_bits else dict.fromkeys(ONLY_WITH_BANKS, "--bank-bits")
    for coupling, names in ONLY_WITH.items():
        if coupling != options.coupling:
            needs |= dict.fromkeys(names, f"--coupling {coupling}")
    for name, other in needs.items():
        if getattr(options, name) != getattr(BoardOptions(), name):
            raise InputError(f"{option(name)} has no effect on a board without {other}; leave it out, or give {other}")


def _check_resonator(options: BoardOptions) -> None:
    """Raise InputError, with a suggestion, if L, as 1/resonance², or R, as quality, is out of the range on sale."""
    low, high = INDUCTORS
    L = options.inductance
    if not low <= L <= high:
        limit = low if low > L else high
        suggested = two_digits(float(options.resonance * sqrt(L / limit)), up=limit < L)
        raise InputError(
            f"the inductor of every cell would be {L:.3g} H, beyond the limit of {limit:g} H; "
            f"--resonance {suggested:.2g} would do"
        )
    low, high = RESISTORS
    R = options.resistance
    if not low <= R <= high:
        limit = low if low > R else high
        raise InputError(
            f"the resistor of every cell would be {R:.3g} ohm, beyond the limit of {limit:g} ohm; "
            f"--quality {two_digits(options.quality * limit / R, up=limit > R):.2g} would do"
        )


def two_digits(value: float, up: bool) -> float:
    """A positive number with two digits, which printing two does not change: not below `value`, or not above."""
    unit = 10.0 ** (floor(log10(value)) - 1)
    near = float(f"{value:.1e}")
    step = unit * ((near < value) if up else -(near > value))
    return float(f"{near + step:.1e}")


@dataclass(frozen=True)
class Parasitics:
    """Parasitics of a board, 0 for none.

    Winding resistance and ESR [ohm], self-resonance [Hz], coupling factor of neighbouring coils, stray capacitance [F].
    """

    winding: float = 0.0
    self_resonance: float = 0.0
    esr: float = 0.0
    coupled_coils: float = 0.0
    stray: float = 0.0


@dataclass(frozen=True)
class BoardRequest:
    """Request for a board: kind of its `cells` ("auto": decided by the target), options, parasitics, copies.

    Every part is off by at most ±`tolerance` (a fraction), `copies` of the board are drawn with `seed`.
    """

    copies: int = 3
    tolerance: float = 0.01
    seed: int = 0
    cells: str = "auto"
    options: BoardOptions = BoardOptions()
    parasitics: Parasitics = Parasitics()


def check_parasitics(parasitics: Parasitics) -> Parasitics:
    """Return the parasitics if they make sense, or raise InputError."""
    ranges = {
        "winding": (0.0, 1e4, "ohm"),
        "self_resonance": (0.0, 1e12, "Hz"),
        "esr": (0.0, 1e3, "ohm"),
        "coupled_coils": (-0.4, 0.4, "(a coupling factor)"),
        "stray": (0.0, 1e-9, "F"),
    }
    check_ranges(parasitics, ranges)
    return parasitics


def check_weights(at: str) -> None:
    """Raise InputError unless `at` names the weights at which a Fisher matrix is taken."""
    if at not in ("zero", "fit"):
        raise InputError(f"the Fisher matrix is taken --at zero or fit, got {at!r}")

"""Binary-weighted switched banks: a coupling as bits, each a part in series with its switches.

Bit b holds unit · 2ᵇ. From the near cell's node a part leads to an inner node; a switch leads on to the far node
(straight), another one to the other far node (crossed), and the sign of the code says which of them closes. A closed
switch has a resistance; both its pads have a capacitance to ground, which loads the inner node and the far one. That
load is known and is taken from the ground capacitors, which are soldered for good: behind a switch they would lose
most (its resistance damps what no noise source heats), and no program needs them changed (circuits.coding).

No bank is negative: behind switches the positive capacitors of a node leave a negative one alone above 1/(Ron C), and
the node runs away (`tests/test_banks.py` shows it).
"""

from collections.abc import Iterator
from dataclasses import replace

from circuits.board import GROUND, Bank, Bit, Element, Part
from circuits.synthesis.options import TEMPCO, BoardError, Choices, two_digits

PARASITIC_TOLERANCE = 0.2  # of what nobody specifies
MOST_SWITCH = 0.5  # of the resistance of a bit may be its switch's, whose spread would else be all of the bit's
GOOD_SWITCH = 0.1  # of it: what is advised


def parasitic(
    name: str, kind: str, nodes: tuple[str, str], role: str, value: float, cause: str, tolerance: float
) -> Part:
    """A part that comes with others: its spread is PARASITIC_TOLERANCE on a board whose parts have any."""
    return Part(name, kind, nodes, role, value, None, PARASITIC_TOLERANCE if tolerance else 0.0, TEMPCO[kind], cause)


def bank_of(straight: Element, crossed: Element | None, choices: Choices, largest: float) -> Bank:
    """The bank of the couplings of two cells; `largest` is what it reaches, in units.

    BoardError if the switches leave no room in the resistors of its highest bit.
    """
    bits = choices.bank_bits
    names = tuple(element.name for element in (straight, crossed) if element)
    name = "bank_" + "_".join(str(i + 1) for i in straight.cells)
    bank = Bank(name, straight.cells, names, choices.unit * largest / (2**bits - 1), bits)
    highest = bank.unit * 2 ** (bits - 1)
    share = highest * choices.switch_resistance
    if choices.coupling == "resistive" and share > MOST_SWITCH:
        raise BoardError(
            f"switches of {choices.switch_resistance:g} ohm leave no room in {name}, which reaches {bank.reach:.3g} S "
            f"and whose highest bit is to be {1 / highest:.3g} ohm with its switch",
            {"unit_conductance": two_digits(choices.unit * GOOD_SWITCH / share, up=False)},
            {"switch_resistance": two_digits(GOOD_SWITCH / highest, up=False)},
        )
    return bank


def bank_parts(
    bank: Bank, near: tuple[str, ...], far: tuple[str, ...], kind: str, tolerance: float, choices: Choices
) -> Iterator[Part]:
    """Parts, switches and pads of a bank between the nodes of two cells."""
    for pole, node in enumerate(near):
        ends = [(far[pole], 1)] + ([(far[1 - pole], -1)] if len(far) == 2 else [])
        for number in range(bank.bits):
            yield from _bit(bank, number, node, ends, kind, tolerance, choices)
    pads = choices.pad_capacitance * bank.bits * len(near)  # a switch of every bit of either near node ends here
    for node in far:
        yield parasitic(f"CP{bank.name[5:]}{node}", "C", (node, GROUND), "pad", pads, "pads", tolerance)


def unloaded_capacitances(cells: int, poles: int, choices: Choices) -> list[float]:
    """What is soldered from the nodes of every cell to ground, so that it is one unit with the pads at half codes [F].

    BoardError if the pads alone are more.
    """
    inner = choices.pad_capacitance * choices.bank_bits * poles  # of a bank, per near node; open: there, closed: far
    pads = [(cells - 1) * inner / 2 + i * choices.pad_capacitance * choices.bank_bits * poles for i in range(cells)]
    spare = choices.unit_capacitance / 4
    if pads[-1] > 0.9 * choices.unit_capacitance:
        raise BoardError(
            f"the pads of the switches load {cells} cells with up to {pads[-1]:.3g} F, which leaves too little of the "
            f"unit capacitance of {choices.unit_capacitance:.3g} F",
            {"unit_capacitance": two_digits(4 * pads[-1], up=True)},
            {"pad_capacitance": two_digits(choices.pad_capacitance * spare / pads[-1], up=False)},
        )
    return [choices.unit_capacitance - load for load in pads]


def _bit(
    bank: Bank, number: int, node: str, ends: list[tuple[str, int]], kind: str, tolerance: float, choices: Choices
) -> Iterator[Part]:
    short = f"{bank.name[5:]}{node}b{number}"
    inner = f"x{short}"
    held = bank.unit * 2**number
    # A resistor leaves room for its switch, a capacitor needs none.
    value = held if kind == "C" else 1 / held - choices.switch_resistance
    yield Part(f"{kind}B{short}", kind, (node, inner), "bit", value, None, tolerance, TEMPCO[kind])
    for end, sign in ends:
        switch = parasitic(
            f"RS{short}{'s' if sign > 0 else 'x'}",
            "R",
            (inner, end),
            "switch",
            choices.switch_resistance,
            "switches",
            tolerance,
        )
        yield replace(switch, wire=True, bit=Bit(bank.name, number, sign))
    pads = choices.pad_capacitance * len(ends)
    yield parasitic(f"CP{short}", "C", (inner, GROUND), "pad", pads, "pads", tolerance)

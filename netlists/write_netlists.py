"""Write the three reference decks of netlists/: one plain board, and `fair` raw and preconditioned."""

from pathlib import Path

import numpy as np

from circuits.board import Design
from circuits.files import write_text
from circuits.netlist.export import decks
from circuits.synthesis.data_sets import named_fisher
from circuits.synthesis.design import make_design
from circuits.synthesis.target import inverse_factor

NETLISTS = Path(__file__).parent


def reference_designs() -> dict[str, Design]:
    """The designs by the name of their deck."""
    fit, zero = named_fisher("fair", "fit")[0], named_fisher("fair", "zero")[0]
    plain = np.array([[2.0, -0.5, -0.3], [-0.5, 1.5, -0.2], [-0.3, -0.2, 1.0]])
    matrices = {
        "plain-3": (plain, None),
        "fair-raw": (fit, None),
        "fair-preconditioned": (fit, inverse_factor(zero)),
    }
    return {name: make_design(*pair, name=name) for name, pair in matrices.items()}


def main() -> None:
    for name, design in reference_designs().items():
        write_text(NETLISTS / f"{name}.cir", dict(decks(design))["copy-1"])


if __name__ == "__main__":
    main()

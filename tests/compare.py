"""The one comparison helper: says where two arrays differ most, by how much, and what was allowed."""

import numpy as np

from circuits.nodal import Circuit

FALSE_ALARM = 1e-5  # of every random test, fixed beforehand; none is repeated until it passes
NORMAL_BOUND = 4.417  # two-sided quantile of the normal law at FALSE_ALARM


def assert_close(found, expected, tolerance: float, what: str = "array") -> None:
    """Relative Frobenius distance of `found` to `expected` at most `tolerance`."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, expected {expected.shape}"
    scale = np.linalg.norm(expected) or 1.0
    distance = np.linalg.norm(found - expected) / scale
    if not distance <= tolerance:
        index = np.unravel_index(np.abs(found - expected).argmax(), found.shape) if found.ndim else ()
        raise AssertionError(
            f"{what}: relative distance {distance:.3e} exceeds {tolerance:.1e}; worst at {tuple(map(int, index))}: "
            f"found {found[index]!r}, expected {expected[index]!r}"
        )


def circuit_of_cells(capacitance, conductance, inverse_inductance, noise, readout) -> Circuit:
    """A circuit with an inductor from every node to ground, and no losses in it."""
    eye = np.eye(len(capacitance))
    return Circuit(capacitance, conductance, eye, inverse_inductance, 0 * eye, noise, readout)

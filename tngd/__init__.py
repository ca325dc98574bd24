"""Thermodynamic natural gradient descent on a calibrated model of a stochastic processing unit.

    from tngd import TNGD

Packages are the stages of the path: curvature -> device -> optimizer -> training -> report.
"""

import lazy_loader as lazy

import circuits

_of_this_package, _, _names = lazy.attach_stub(__name__, __file__)
__all__ = [*_names, "load_device"]


def __getattr__(name: str) -> object:
    """Load a name of this door where it is asked for; devices come from circuits."""
    return circuits.load_device if name == "load_device" else _of_this_package(name)


def __dir__() -> list[str]:
    """The names of this door."""
    return __all__

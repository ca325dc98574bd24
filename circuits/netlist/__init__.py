"""Netlist: a design written down for ngspice, KiCad, a buyer and a reviewer, and read back."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

"""Circuit-level model of a stochastic processing unit, from a Fisher matrix to a calibrated device.

Packages are the stages of the data path, each with a door of its own:

    synthesis -> netlist -> simulation -> statistics -> verification -> calibration -> model
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

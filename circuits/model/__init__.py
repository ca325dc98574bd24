"""Model: calibrated copies as a device, of reduced order, with converters, for any target."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

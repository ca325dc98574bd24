"""Device: the analog device in torch, exact at any time: process, array, tiles."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

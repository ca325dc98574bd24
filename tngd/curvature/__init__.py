"""Curvature of a batch in factored form, without the matrix of parameters by parameters."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

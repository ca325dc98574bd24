"""Verification: every copy against the target's inverse and against the law of its own values."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

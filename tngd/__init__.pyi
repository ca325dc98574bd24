import circuits

from .curvature.losses import Loss as Loss
from .curvature.losses import cross_entropy as cross_entropy
from .curvature.losses import logistic as logistic
from .curvature.losses import mean_squared_error as mean_squared_error
from .device.array import array_of as array_of
from .device.process import Process as Process
from .device.tiles import tile_board as tile_board
from .optimizer.settings import Settings as Settings
from .optimizer.tngd import TNGD as TNGD

load_device = circuits.load_device

__all__ = [
    # the optimizer
    "TNGD",
    "Settings",
    # devices it works on
    "tile_board",
    "array_of",
    "load_device",
    # losses it knows
    "Loss",
    "cross_entropy",
    "logistic",
    "mean_squared_error",
    # the process itself
    "Process",
]

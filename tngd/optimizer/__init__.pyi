from .baselines import ConjugateNGD as ConjugateNGD
from .baselines import ExactNGD as ExactNGD
from .kfac import KFAC as KFAC
from .memory import DeviceStep as DeviceStep
from .settings import Settings as Settings
from .tile_step import TileStep as TileStep
from .tngd import TNGD as TNGD

__all__ = [
    # thermodynamic
    "TNGD",
    "Settings",
    "DeviceStep",
    "TileStep",
    # baselines
    "ConjugateNGD",
    "ExactNGD",
    "KFAC",
]

from .baselines import ConjugateNGD as ConjugateNGD
from .baselines import ExactNGD as ExactNGD
from .kfac import KFAC as KFAC
from .settings import Settings as Settings
from .stepped import DeviceStep as DeviceStep
from .stepped import SteppedDevice as SteppedDevice
from .tile_step import TileStep as TileStep
from .tngd import TNGD as TNGD

__all__ = [
    # thermodynamic
    "TNGD",
    "Settings",
    "DeviceStep",
    "SteppedDevice",
    "TileStep",
    # baselines
    "ConjugateNGD",
    "ExactNGD",
    "KFAC",
]

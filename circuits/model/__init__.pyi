from .converters import Converter as Converter
from .converters import Interface as Interface
from .device import Device as Device
from .device import Prediction as Prediction
from .device import draw_device as draw_device
from .device import ideal_device as ideal_device
from .device import predict as predict
from .device_file import PRESETS as PRESETS
from .device_file import describe_device as describe_device
from .device_file import load_device as load_device
from .fitted_copy import Estimate as Estimate
from .fitted_copy import FittedCopy as FittedCopy
from .folder import draw_fitted_copies as draw_fitted_copies
from .folder import set_interface as set_interface
from .folder import shipped_devices as shipped_devices
from .reduction import reduce_order as reduce_order

__all__ = [
    # devices
    "Device",
    "Prediction",
    "draw_device",
    "ideal_device",
    "predict",
    "PRESETS",
    "describe_device",
    "load_device",
    "Estimate",
    "FittedCopy",
    # what a device does
    "reduce_order",
    "Converter",
    "Interface",
    # files of devices
    "draw_fitted_copies",
    "set_interface",
    "shipped_devices",
]

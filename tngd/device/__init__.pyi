from .array import Array as Array
from .array import HeldArray as HeldArray
from .array import array_of as array_of
from .array import program_array as program_array
from .dynamics import device_state as device_state
from .dynamics import held_curvature as held_curvature
from .full_size import ArrayDevice as ArrayDevice
from .full_size import FullSizeDevice as FullSizeDevice
from .full_size import IdealDevice as IdealDevice
from .low_rank import low_rank_state as low_rank_state
from .paths import sample_paths as sample_paths
from .paths import stationary_draws as stationary_draws
from .process import Process as Process
from .process import log_likelihood as log_likelihood
from .process import program_process as program_process
from .tiles import TileBoard as TileBoard
from .tiles import invert_tiles as invert_tiles
from .tiles import tile_board as tile_board

__all__ = [
    # the process
    "Process",
    "log_likelihood",
    "program_process",
    "sample_paths",
    "stationary_draws",
    # tiles
    "TileBoard",
    "invert_tiles",
    "tile_board",
    # an array
    "Array",
    "HeldArray",
    "array_of",
    "program_array",
    # a face for devices of full size
    "ArrayDevice",
    "FullSizeDevice",
    "IdealDevice",
    # states at any time
    "device_state",
    "held_curvature",
    "low_rank_state",
]

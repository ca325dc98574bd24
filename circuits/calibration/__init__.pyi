from .fitting import Fit as Fit
from .fitting import fit as fit
from .folder import calibrate_folder as calibrate_folder
from .held_out import HeldOut as HeldOut
from .held_out import held_out_programs as held_out_programs
from .held_out import validate as validate
from .presets import make_presets as make_presets
from .presets import write_presets as write_presets
from .retrim import RetrimOptions as RetrimOptions
from .retrim import choose_codes as choose_codes
from .retrim import retrim_folder as retrim_folder
from .routes import calibrate as calibrate
from .routes import calibrate_programs as calibrate_programs
from .routes import calibrate_recorded as calibrate_recorded

__all__ = [
    # three routes
    "calibrate",
    "calibrate_programs",
    "calibrate_recorded",
    # the fit and its judgement
    "Fit",
    "fit",
    "HeldOut",
    "held_out_programs",
    "validate",
    # codes for the very copy
    "RetrimOptions",
    "choose_codes",
    "retrim_folder",
    # run folder and presets
    "calibrate_folder",
    "make_presets",
    "write_presets",
]

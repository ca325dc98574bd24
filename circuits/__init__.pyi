from .board import Board as Board
from .board import Conditions as Conditions
from .board import Copy as Copy
from .board import Design as Design
from .board import Program as Program
from .calibration.routes import calibrate as calibrate
from .errors import InputError as InputError
from .errors import SimulationError as SimulationError
from .model.device_file import load_device as load_device
from .netlist.folder import load_design as load_design
from .nodal import assemble as assemble
from .ou import reading_covariance as reading_covariance
from .ou import spectrum as spectrum
from .simulation.measurement import measure as measure
from .synthesis.design import make_design as make_design
from .verification.compare import verify as verify

__all__ = [
    # records of a board
    "Board",
    "Conditions",
    "Copy",
    "Design",
    "Program",
    # stages
    "make_design",
    "load_design",
    "measure",
    "verify",
    "calibrate",
    "load_device",
    # the law of a circuit
    "assemble",
    "reading_covariance",
    "spectrum",
    # errors
    "InputError",
    "SimulationError",
]

from .ac import exact_run as exact_run
from .charge import charge_run as charge_run
from .measurement import Plan as Plan
from .measurement import check_samples as check_samples
from .measurement import measure as measure
from .measurement import run_programs as run_programs
from .measurement import sample_programs as sample_programs
from .ngspice import find_ngspice as find_ngspice
from .ngspice import has_ngspice as has_ngspice
from .ngspice import ngspice_version as ngspice_version
from .noise import noise_run as noise_run
from .operating_point import solve_run as solve_run
from .runs import Run as Run
from .runs import load_measurements as load_measurements
from .runs import save_measurements as save_measurements

__all__ = [
    # a whole measurement
    "Plan",
    "check_samples",
    "measure",
    "run_programs",
    "sample_programs",
    "Run",
    "load_measurements",
    "save_measurements",
    # one analysis
    "exact_run",
    "noise_run",
    "solve_run",
    "charge_run",
    # the simulator
    "find_ngspice",
    "has_ngspice",
    "ngspice_version",
]

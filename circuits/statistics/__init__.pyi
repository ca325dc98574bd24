from .equilibrium import Equilibrium as Equilibrium
from .equilibrium import judge_equilibrium as judge_equilibrium
from .estimators import EstimateLaw as EstimateLaw
from .estimators import estimate_law as estimate_law
from .estimators import law_of_records as law_of_records
from .inversion import Inversion as Inversion
from .inversion import circuit_inverses as circuit_inverses
from .inversion import inversion_rule as inversion_rule
from .moments import Moments as Moments
from .recorded import Recorded as Recorded
from .recorded_file import read_recorded as read_recorded

__all__ = [
    # laws of estimates
    "EstimateLaw",
    "estimate_law",
    "law_of_records",
    "Equilibrium",
    "judge_equilibrium",
    # readings
    "Moments",
    "Recorded",
    "read_recorded",
    # the inverse read from them
    "Inversion",
    "circuit_inverses",
    "inversion_rule",
]

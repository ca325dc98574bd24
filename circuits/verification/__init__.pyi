from .compare import Verification as Verification
from .compare import describe_verification as describe_verification
from .compare import verify as verify
from .compare import verify_recorded as verify_recorded
from .folder import VerifyOptions as VerifyOptions
from .folder import verify_folder as verify_folder
from .population import Population as Population
from .population import draw_population as draw_population
from .temperature import sweep as sweep

__all__ = [
    # every copy against its law
    "Verification",
    "describe_verification",
    "verify",
    "verify_recorded",
    # fresh copies and temperatures
    "Population",
    "draw_population",
    "sweep",
    # run folder
    "VerifyOptions",
    "verify_folder",
]

from .data_sets import named_fisher as named_fisher
from .design import check_copies as check_copies
from .design import make_design as make_design
from .design import program as program
from .design import reuse_design as reuse_design
from .equations import cell_law as cell_law
from .equations import resistive_residuals as resistive_residuals
from .equations import stationary_residual as stationary_residual
from .fisher import TargetOptions as TargetOptions
from .fisher import target_of as target_of
from .fisher import write_fisher as write_fisher
from .options import DATA_SETS as DATA_SETS
from .options import BoardOptions as BoardOptions
from .options import BoardRequest as BoardRequest
from .options import Parasitics as Parasitics
from .sensitivity import expected_error as expected_error
from .target import check_target as check_target
from .target import inverse_factor as inverse_factor
from .target import read_matrix as read_matrix
from .topology import build_board as build_board

__all__ = [
    # targets
    "TargetOptions",
    "target_of",
    "write_fisher",
    "named_fisher",
    "DATA_SETS",
    "BoardOptions",
    "BoardRequest",
    "Parasitics",
    "check_target",
    "inverse_factor",
    "read_matrix",
    # boards and programs
    "check_copies",
    "make_design",
    "program",
    "reuse_design",
    "build_board",
    # what a design costs, and why it holds
    "expected_error",
    "cell_law",
    "resistive_residuals",
    "stationary_residual",
]

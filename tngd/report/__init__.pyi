from .board_plots import budget as budget
from .board_plots import error_curves as error_curves
from .board_plots import heat_maps as heat_maps
from .board_plots import populations as populations
from .board_plots import temperatures as temperatures
from .board_tables import more_tables as more_tables
from .board_tables import verification_table as verification_table
from .device_tables import calibration_lines as calibration_lines
from .device_tables import devices_table as devices_table
from .device_tables import retrim_table as retrim_table
from .device_tables import spread_table as spread_table
from .page import render as render
from .page import report as report
from .sheets import Sheet as Sheet
from .sheets import show as show
from .training_plots import learning_curves as learning_curves
from .training_plots import settling as settling
from .training_plots import task_curves as task_curves
from .training_tables import comparison_tables as comparison_tables
from .training_tables import squad_table as squad_table
from .training_tables import study_table as study_table
from .training_tables import training_table as training_table

__all__ = [
    # the page
    "render",
    "report",
    # tables
    "Sheet",
    "show",
    "more_tables",
    "verification_table",
    "calibration_lines",
    "devices_table",
    "retrim_table",
    "spread_table",
    "comparison_tables",
    "squad_table",
    "study_table",
    "training_table",
    # figures of boards
    "budget",
    "error_curves",
    "heat_maps",
    "populations",
    "temperatures",
    # figures of training
    "learning_curves",
    "settling",
    "task_curves",
]

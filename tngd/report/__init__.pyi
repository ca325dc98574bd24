from .page import render as render
from .page import report as report
from .sheets import Sheet as Sheet
from .sheets import show as show

__all__ = [
    # the page
    "render",
    "report",
    # tables
    "Sheet",
    "show",
]

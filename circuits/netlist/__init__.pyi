from .bill import bill_text as bill_text
from .bill import engineering as engineering
from .deck import circuit_of as circuit_of
from .deck import deck_text as deck_text
from .explanation import explanation_text as explanation_text
from .export import decks as decks
from .export import design_folder as design_folder
from .export import reuse_folder as reuse_folder
from .export import write_design as write_design
from .folder import load_design as load_design
from .review import review_lines as review_lines
from .review import review_text as review_text
from .schematic import schematic_svg as schematic_svg
from .spice import circuit_text as circuit_text
from .spice import library_text as library_text

__all__ = [
    # decks
    "circuit_text",
    "library_text",
    "circuit_of",
    "deck_text",
    # run folder of a design
    "load_design",
    "decks",
    "design_folder",
    "reuse_folder",
    "write_design",
    # for people
    "bill_text",
    "engineering",
    "schematic_svg",
    "review_lines",
    "review_text",
    "explanation_text",
]

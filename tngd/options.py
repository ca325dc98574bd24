"""Options that several verbs of the command have."""

from pathlib import Path
from typing import Annotated

import typer

Force = Annotated[bool, typer.Option("--force", help="Replace results that exist.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder made by `tngd design`.")]
Seed = Annotated[int, typer.Option(help="Seed; the same seed gives the same bytes.")]
Copies = Annotated[int, typer.Option(help="How many copies of the board.")]
Tolerance = Annotated[float, typer.Option(help="Half width of the uniform relative spread of every part.")]
Samples = Annotated[int, typer.Option(help="Readings per copy, rounded up to a multiple of 500.")]
Seeds = Annotated[int, typer.Option(help="How many seeds a method is trained with.")]
Steps = Annotated[int | None, typer.Option(help="Training steps instead of the task's own number.")]
At = Annotated[str, typer.Option(help="Weights at which the Fisher matrix is taken: zero or fit.")]
Precondition = Annotated[
    str | None, typer.Option(help="T as .npy; for a named target also zero or fit: the factor taken there.")
]
Damping = Annotated[float, typer.Option(help="λ: the target becomes P + λI.")]

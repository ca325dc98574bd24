"""Progress of a command on standard error, where somebody watches."""

import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from circuits.files import is_terminal


class Stages:
    """Stages of a command: a bar each where somebody watches, otherwise a line each if they are to be announced."""

    def __init__(self, announce: bool = True) -> None:
        self._announce = announce

    def __enter__(self) -> "Stages":
        self._bar = Progress(
            TextColumn("{task.description:<44}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not is_terminal(),
        )
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def __call__(self, text: str) -> Callable[[int, int, str], None]:
        """Begin a stage; what it returns is called with done, total and words for what was done."""
        if self._bar.disable and self._announce:
            print(text, file=sys.stderr, flush=True)
        task = self._bar.add_task(text, total=1)

        def progress(done: int, total: int, what: str) -> None:
            self._bar.update(task, completed=done, total=total, description=f"{text} · {what}" if what else text)

        return progress

"""What would do where a board cannot be made: changes of its choices, tried before they are advised.

Where a part fails it is known which choice it depends on, and about how; whether the board is then made is another
matter, for what brings one part inside its limits may push another out. So every change is tried, and where it leads
to another failure, what that one proposes is tried on top of it.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import fields, replace

from circuits.errors import InputError
from circuits.synthesis.options import BoardError, Choices, Parasitics, check_choices, check_parasitics, option

MOST_TRIALS = 24
MOST_CHANGES = 3  # at a time: more are another board

Make = Callable[[Choices, Parasitics], object]


def refused(
    error: BoardError, choices: Choices, parasitics: Parasitics, make: Make, damping: Callable[[], float | None]
) -> InputError:
    """The error with the first change in its sentence that makes a board, and with what it proposes otherwise.

    Where no change does, `damping` finds one that does.
    """
    found = _change(error, choices, parasitics, make)
    larger = None if found else damping()
    words = [" with ".join(f"{option(name)} {value:.6g}" for name, value in found.items())] if found else []
    words += [f"--damping {larger:.2g}"] if larger else []
    words += [error.otherwise] if error.otherwise else []
    return InputError(f"{error}; {' or '.join(words) or 'a --precondition'} would do")


def _change(error: BoardError, choices: Choices, parasitics: Parasitics, make: Make) -> dict[str, float] | None:
    """The first change, the fewest at a time, with which `make` makes a board; None if none does."""
    queue = deque(error.changes)
    tried: list[dict[str, float]] = []
    while queue and len(tried) < MOST_TRIALS:
        change = queue.popleft()
        if change in tried:
            continue
        tried.append(change)
        try:
            make(*_changed(choices, parasitics, change))
        except BoardError as another:
            further = ({**change, **more} for more in another.changes)
            queue.extend(more for more in further if len(more) <= MOST_CHANGES)
        except InputError:
            continue
        else:
            return change
    return None


def _changed(choices: Choices, parasitics: Parasitics, change: dict[str, float]) -> tuple[Choices, Parasitics]:
    own = {field.name for field in fields(Choices)}
    of_choices = {name: value for name, value in change.items() if name in own}
    others = {name: value for name, value in change.items() if name not in own}
    return check_choices(replace(choices, **of_choices)), check_parasitics(replace(parasitics, **others))

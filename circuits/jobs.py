"""Many runs of a simulator on all cores: each a process of its own, so that one that fails costs itself alone.

The others go on, and it is tried once more when they are done.
"""

import os
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from circuits.errors import SimulationError

TRIALS = 2  # of a job
WAITING = 64  # jobs that wait for a process; more would only take memory
Progress = Callable[[int, int, str], None]  # called with done, total and words for what was done


def silent(done: int, total: int, what: str) -> None:
    """Progress that nobody watches."""


def one_of(progress: Progress, number: int, jobs: int) -> Progress:
    """The progress of job `number` (from 0) among `jobs` of the same size."""
    return lambda done, total, what: progress(number * total + done, jobs * total, what)


def run_all(
    jobs: dict[Hashable, Callable[[], object]],
    collect: Callable[[Hashable, object], None],
    progress: Progress,
    words: Callable[[Hashable], str],
) -> None:
    """Run all jobs and collect results as they come; `words` says what was done.

    Raises the SimulationError of the first job in order that failed TRIALS times. At Ctrl-C the waiting ones are
    dropped.
    """
    todo, done = list(jobs), 0
    for _ in range(TRIALS):
        failed: dict[Hashable, SimulationError] = {}
        for key, result, error in _finished(jobs, todo):
            if error:
                failed[key] = error
                continue
            collect(key, result)
            done += 1
            progress(done, len(jobs), words(key))
        todo = [key for key in todo if key in failed]
        if not todo:
            return
    raise failed[todo[0]]


def _finished(
    jobs: dict[Hashable, Callable[[], object]], todo: list[Hashable]
) -> Iterator[tuple[Hashable, object, SimulationError | None]]:
    """Key, result and error of every job of `todo`, as they finish."""
    executor = ThreadPoolExecutor(os.cpu_count() or 1)
    running: dict[Future, Hashable] = {}
    waiting = iter(list(todo))
    try:
        while True:
            running |= {executor.submit(jobs[key]): key for key in islice(waiting, WAITING - len(running))}
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                key = running.pop(future)
                error = future.exception()
                if error and not isinstance(error, SimulationError):
                    raise error
                yield key, None if error else future.result(), error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)

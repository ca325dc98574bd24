"""Many runs of a simulator on all cores: each a process of its own, so that one that fails costs itself alone.

The others go on, and it is tried once more when they are done. Work of this process (fits, what to expect of programs)
is spread over threads: nearly all of it is in NumPy, SciPy and LAPACK, which let other threads run meanwhile. A worker
process would have to load them and be sent everything first, and start a script without a main guard once more.
"""

import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import closing
from itertools import islice
from threading import Event
from typing import TypeVar

from threadpoolctl import threadpool_limits

from circuits.errors import SimulationError

TRIALS = 2  # of a job
WAITING = 64  # jobs that wait for a process; more would only take memory
Result = TypeVar("Result")
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
        with closing(_finished(jobs, todo)) as finished:  # nothing more is begun after an error in here
            for key, result, error in finished:
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


def side_by_side(
    jobs: Sequence[Callable[[Event], Result]], progress: Progress = silent, what: str = ""
) -> list[Result]:
    """Results of jobs in threads of this process, in order, the same as one after the other.

    The event is set when a job is no longer wanted, at Ctrl-C or because another failed: one that takes long should
    then raise something. Matrices are small, so that BLAS has one thread for each.
    """
    stop, progressed = Event(), 0
    with threadpool_limits(limits=1, user_api="blas"):
        if len(jobs) == 1:
            return [jobs[0](stop)]
        # More threads than cores, lest the last of a few long jobs is alone on one of them.
        executor = ThreadPoolExecutor(2 * (os.cpu_count() or 1))
        try:
            running = [executor.submit(job, stop) for job in jobs]
            for future in as_completed(running):
                future.result()
                progressed += 1
                progress(progressed, len(jobs), what)
            return [future.result() for future in running]
        finally:
            stop.set()
            executor.shutdown(wait=True, cancel_futures=True)


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

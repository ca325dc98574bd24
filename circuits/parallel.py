"""Parallel work on all cores: runs of a simulator in processes, computations in threads.

Each run of a simulator is a process of its own, so that a run that fails does not stop the others; it is tried once
more when they are done. Computations of this process (fits, predictions for programs) are spread over threads: nearly
all their time is spent in NumPy, SciPy and LAPACK, which let other threads run meanwhile. Worker processes would first
have to load these libraries and receive all data, and would run a script without a main guard again.
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
WAITING = 64  # jobs that wait for a process; more would only use memory
Result = TypeVar("Result")
Progress = Callable[[int, int, str], None]  # called with done, total and the work done in words


def silent(done: int, total: int, what: str) -> None:
    """Progress that is not shown."""


def one_of(progress: Progress, number: int, jobs: int) -> Progress:
    """The progress of job `number` (from 0) among `jobs` of the same size."""
    return lambda done, total, what: progress(number * total + done, jobs * total, what)


def run_all(
    jobs: dict[Hashable, Callable[[], object]],
    collect: Callable[[Hashable, object], None],
    progress: Progress,
    words: Callable[[Hashable], str],
) -> None:
    """Run all jobs and collect results as they finish; `words` describes a finished job.

    Raises the SimulationError of the first job, in the order of `jobs`, that failed TRIALS times. At Ctrl-C the waiting
    jobs are dropped.
    """
    todo, done = list(jobs), 0
    for _ in range(TRIALS):
        failed: dict[Hashable, SimulationError] = {}
        with closing(_finished(jobs, todo)) as finished:  # no job is begun after an error in this block
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
    """Results of jobs run in threads of this process, in order, the same as run one after the other.

    The event is set when results are no longer wanted, at Ctrl-C or after another job failed: a long job should then
    raise an exception. Matrices are small, so each job has one BLAS thread.
    """
    stop, progressed = Event(), 0
    with threadpool_limits(limits=1, user_api="blas"):
        if len(jobs) == 1:
            return [jobs[0](stop)]
        # More threads than cores, so that the last of a few long jobs does not start when all others are done.
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

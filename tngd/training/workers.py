"""Worker processes for the trials of a comparison, one a core: a worker writes checkpoints, the parent reads them.

A worker is a Python process of this module, so scripts need no main guard. The parent repeats a trial that failed in a
worker, and so raises the error itself. A worker ends when its parent ends, even if the parent is killed.
"""

import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from threadpoolctl import threadpool_limits

from tngd.training.trial import Trial, one_thread, run_trial

Order = Callable[[], list[tuple[Trial, Path | None]]]
WORTH = 500  # steps for which starting a process takes as long as it saves


class Pool:
    """Numbers of the jobs not yet begun: the parent takes the first one, a worker the last one."""

    def __init__(self, jobs: int) -> None:
        self._left, self._lock = list(range(jobs)), Lock()

    def take(self, last: bool = False) -> int | None:
        """Take a job to begin, None if no job is left."""
        with self._lock:
            return self._left.pop(-1 if last else 0) if self._left else None


@contextmanager
def worker_processes(
    order: Order, pool: Pool, steps: int, said: Callable[[int, int, int, str], None]
) -> Iterator[Callable[[], None]]:
    """Start workers on a pool; the yielded function waits for them. `said(job, done, total, what)` is progress.

    `order()` makes all trials and the paths of their checkpoints; workers get it pickled. Workers end with the context.
    """
    many = min((os.cpu_count() or 1) - 1, steps // WORTH)
    call, pipe = [sys.executable, "-m", "tngd.training.workers"], subprocess.PIPE
    # In groups of their own: Ctrl-C in a terminal reaches the parent alone, which then ends its workers.
    running = [subprocess.Popen(call, stdin=pipe, stdout=pipe, process_group=0) for _ in range(many)]
    threads = [Thread(target=_hand_out, args=(each, order, pool, said), daemon=True) for each in running]
    try:
        for thread in threads:
            thread.start()
        yield lambda: _join(threads)
    finally:
        for process in running:
            process.kill()
            process.wait()
        _join(threads)
        for process in running:
            process.stdout.close()


def _hand_out(process: subprocess.Popen, order: Order, pool: Pool, said: Callable[..., None]) -> None:
    """Give a worker one job after the other, until no job is left or the worker has ended."""
    try:
        with process.stdin as stdin:
            pickle.dump(order, stdin)
            stdin.flush()
            pickle.load(process.stdout)  # the worker has started: only now take a job
            while (job := pool.take(last=True)) is not None:
                pickle.dump(job, stdin)
                stdin.flush()
                while (word := pickle.load(process.stdout)) is not None:
                    said(job, *word)
    except (OSError, EOFError, pickle.UnpicklingError):
        pass  # the parent does the unfinished jobs


def main() -> None:
    """Do the jobs from stdin; write progress to stdout, and None at the end of a job."""
    incoming: queue.SimpleQueue = queue.SimpleQueue()
    Thread(target=_read, args=(incoming,), daemon=True).start()
    trials = incoming.get()()
    with threadpool_limits(limits=1, user_api="blas"), one_thread():
        _say("started")
        while True:
            trial, file = trials[incoming.get()]
            try:
                run_trial(trial, file, lambda *word: _say(word))
            except Exception:
                os._exit(1)  # the parent repeats the trial, and raises the error
            _say(None)


def _join(threads: list[Thread]) -> None:
    for thread in threads:
        thread.join()


def _read(incoming: queue.SimpleQueue) -> None:
    try:
        while True:
            incoming.put(pickle.load(sys.stdin.buffer))
    except (EOFError, OSError, pickle.UnpicklingError):
        os._exit(0)  # the parent has ended


def _say(word: Any) -> None:
    pickle.dump(word, sys.stdout.buffer)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

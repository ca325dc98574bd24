"""Trials of a comparison in further processes, one a core: each leaves its checkpoint, and this process reads it.

A helper is a Python process of this module, so that a script needs no main guard. What it cannot do, this process does
itself, and says what is wrong. It ends with the process that started it, whatever ended that.
"""

import os
import pickle
import queue
import signal
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
WORTH = 500  # steps below which starting a process takes longer than it saves


class Pool:
    """Numbers of jobs that are not begun yet: this process takes the first ones, helpers the last ones."""

    def __init__(self, jobs: int) -> None:
        self._left, self._lock = list(range(jobs)), Lock()

    def take(self, last: bool = False) -> int | None:
        """A job to begin, None if there is none."""
        with self._lock:
            return self._left.pop(-1 if last else 0) if self._left else None


@contextmanager
def helpers(
    order: Order, pool: Pool, steps: int, said: Callable[[int, int, int, str], None]
) -> Iterator[Callable[[], None]]:
    """Helpers at work on a pool; what is returned waits for them. `said(job, done, total, what)` is progress.

    `order()` makes all trials and says where each is kept; a helper gets it pickled. They end with the context.
    """
    many = min((os.cpu_count() or 1) - 1, steps // WORTH)
    running = [
        subprocess.Popen([sys.executable, "-m", "tngd.training.workers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(many)
    ]
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
    """Give a helper one job after the other, until none is left or the helper has ended."""
    try:
        with process.stdin as stdin:
            pickle.dump(order, stdin)
            stdin.flush()
            pickle.load(process.stdout)  # it has started: only now take a job
            while (job := pool.take(last=True)) is not None:
                pickle.dump(job, stdin)
                stdin.flush()
                while (word := pickle.load(process.stdout)) is not None:
                    said(job, *word)
    except (OSError, EOFError, pickle.UnpicklingError):
        pass  # what it left undone is done by this process


def main() -> None:
    """Do the jobs that come in, and write words of progress, None at the end of a job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
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
                os._exit(1)  # the process that waits does the same trial, and says what is wrong
            _say(None)


def _join(threads: list[Thread]) -> None:
    for thread in threads:
        thread.join()


def _read(incoming: queue.SimpleQueue) -> None:
    try:
        while True:
            incoming.put(pickle.load(sys.stdin.buffer))
    except (EOFError, OSError, pickle.UnpicklingError):
        os._exit(0)  # nobody waits any more


def _say(word: Any) -> None:
    pickle.dump(word, sys.stdout.buffer)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

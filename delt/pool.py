"""Worker processes of one machine, which share the units of a stage."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import multiprocessing
import os
import pickle
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import reduction
from typing import Any, TypeVar

from delt import processes
from delt.config import RuntimeConfig
from delt.errors import RunError, Stopped
from delt.runtime import Emit, apply, peak_memory, reset_peak, silent
from delt.signals import deafen

T = TypeVar("T")
Ready = Callable[[Any], Any]
AHEAD = 4  # tasks per worker that are done or waiting while an earlier one is not done
PATIENCE = 120.0  # seconds that a worker waits for the others at the start
FEW = 8  # workers that are started however few the tasks are: the next stage may have more of them


def same(task: T) -> T:
    """A task that is whole as it is."""
    return task


@dataclass
class Pool:
    """Worker processes that live as long as the `with` block; tasks and results travel as plain pickles.

    They come from `delt.processes`, so that this also works from a notebook kernel with threads. Beyond a few there are never
    more than a stage had tasks: a machine may have hundreds of cores.
    """

    runtime: RuntimeConfig
    lock: int | None = None  # an open file that workers hold open, too: what it locks is free when the last of them is gone
    startup: float = field(default=0.0, repr=False)  # seconds that starting the workers took, which are no stage's own
    peak: int = 0  # largest memory in bytes that a worker had in a task since `reset_peak`
    _executor: ProcessPoolExecutor | None = field(default=None, repr=False)
    _up: int = field(default=0, repr=False)  # workers in it
    _events: Any = field(default=None, repr=False)
    _stop: Any = field(default=None, repr=False)  # an int that all workers see: 1 where work is to end

    @property
    def workers(self) -> int:
        return self.runtime.workers or 1

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def reset_peak(self) -> None:
        """Let `peak_memory` count from here on."""
        reset_peak(self.runtime)
        self.peak = 0

    def peak_memory(self) -> int:
        """Largest memory in bytes since `reset_peak`, of this process or of any one worker."""
        return max(peak_memory(self.runtime), self.peak)

    def each(self, fn: Callable[[Any, Emit], T], tasks: Sequence[Any], emit: Emit = silent, ready: Ready = same) -> Iterator[T]:
        """Yield the results of `fn(task, emit)` in the order of the tasks; `fn` must be a module-level function.

        Where `emit` raises `Stopped`, workers find it raised between their steps, too.

        Args:
            ready: makes a task whole in this process shortly before its turn, so that not all need to be in memory.

        Raises:
            RunError: a worker process died.
        """
        if self.workers == 1 or len(tasks) < 2:
            yield from (fn(ready(task), emit) for task in tasks)
            return
        executor, left = self._start(fn.__module__, min(self.workers, max(FEW, len(tasks)))), iter(tasks)
        self._stop.value = 0
        futures: deque[Any] = deque()
        with _forward(self._events, emit, self._stop):
            try:
                while True:
                    ahead = itertools.islice(left, AHEAD * self._up - len(futures))
                    futures += [executor.submit(_call, fn, _Plain(ready(task))) for task in ahead]
                    if not futures:
                        return
                    result, peak = futures.popleft().result()
                    self.peak = max(self.peak, peak)
                    yield result
            except BrokenProcessPool as error:
                self._stop.value = 1  # those that are left need not finish what nobody will ask for
                executor.shutdown(wait=False)
                self._executor = None  # the next call starts fresh processes
                raise RunError(
                    "a worker process died, most often for lack of memory: use fewer --workers; a script that calls delt needs "
                    "its calls under `if __name__ == '__main__':`"
                ) from error
            except BaseException:
                for future in futures:
                    future.cancel()
                raise

    def _start(self, module: str, count: int) -> ProcessPoolExecutor:
        """At least so many workers, all of them up, with the module imported that they are wanted for."""
        begun = time.monotonic()
        if self._up < count:
            self._end()
        if self._executor is None:
            context = processes.context()
            self._events, self._stop, self._up = context.Queue(), context.Value("b", 0, lock=False), count
            given = (self.runtime, self._events, context.Barrier(count), self._stop, _Open(self.lock), dict(os.environ))
            self._executor = ProcessPoolExecutor(count, context, _enter_worker, given)
            wait([self._executor.submit(_arrive, module) for _ in range(count)])
            self.startup += time.monotonic() - begun
        return self._executor

    def _end(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None


_worker_events: Any = None  # set once in a worker process, never in the parent
_worker_barrier: Any = None
_worker_stop: Any = None
_worker_lock: Any = None
_worker_runtime = RuntimeConfig()


def _enter_worker(runtime: RuntimeConfig, events: Any, barrier: Any, stop: Any, lock: Any, environment: dict[str, str]) -> None:
    global _worker_events, _worker_barrier, _worker_stop, _worker_lock, _worker_runtime
    _worker_events, _worker_barrier, _worker_stop, _worker_lock, _worker_runtime = events, barrier, stop, lock, runtime
    os.environ.clear()
    os.environ.update(environment)  # as it is now, not as it was when the server of processes began
    deafen()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    apply(dataclasses.replace(runtime, threads=runtime.threads or 1))


def _end_with_parent() -> None:
    """A worker whose parent was killed would otherwise wait for tasks for ever, or go on writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _tell(event: dict[str, Any]) -> None:
    """The listener of a worker."""
    _worker_events.put(event)
    if _worker_stop.value:
        raise Stopped


@dataclass
class _Open:
    """An open file that a new process opens, too, by keeping this one's."""

    number: int | None

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return _opened, (None if self.number is None else reduction.DupFd(self.number),)


def _opened(handle: Any) -> int | None:
    return None if handle is None else int(handle.detach())


def _arrive(module: str) -> None:
    """Import what the work needs, and wait until every worker has: the first one up would otherwise take all the work."""
    importlib.import_module(module)
    _worker_barrier.wait(PATIENCE)


@dataclass
class _Plain:
    """Travels as plain bytes, made when its turn comes: torch's own way would share memory between processes."""

    content: Any

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return pickle.loads, (pickle.dumps(self.content),)  # and arrives as the content itself


def _call(fn: Callable[[Any, Emit], Any], task: Any) -> Any:
    """In a worker: the result and the largest memory in bytes that it took, as a pair in plain bytes."""
    reset_peak(_worker_runtime)
    result = fn(task, _tell)
    return _Plain((result, peak_memory(_worker_runtime)))


@contextlib.contextmanager
def _forward(events: Any, emit: Emit, stop: Any) -> Iterator[None]:
    """Pass events of the workers on to `emit` while the block runs, and drain what is left at its end; it may say `Stopped`.

    What else it raises stops the workers, and is raised after the block.
    """
    done, failed = threading.Event(), list[Exception]()

    def listen() -> None:
        while True:
            try:
                emit(events.get(timeout=0.1))
            except Stopped:
                stop.value = 1
            except queue.Empty:
                if done.is_set():
                    return
            except Exception as error:
                failed.append(error)
                stop.value = 1
                return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if failed:
            raise failed[0]

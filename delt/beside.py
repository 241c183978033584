"""Tasks side by side in threads of this process, for a GPU that one of them leaves half idle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from delt.errors import Stopped
from delt.runtime import Emit, beside, kept_random_state, synchronise

T = TypeVar("T")


def side_by_side(fn: Callable[[Any, Emit], T], tasks: Sequence[Any], count: int, device: torch.device, emit: Emit) -> Iterator[T]:
    """Yield the results of `fn(task, emit)` in the order of the tasks, `count` of which are in work at a time.

    `emit` is called by one thread at a time. Where it raises `Stopped`, or a task fails, all tasks find `Stopped` raised between
    their steps. Tasks must share nothing that they change, and draw from no global random state.
    """
    speaking, stopped, owner = threading.Lock(), threading.Event(), threading.get_ident()

    def tell(event: dict[str, Any]) -> None:
        with speaking:
            if not stopped.is_set():
                try:
                    emit(event)
                except Stopped:
                    stopped.set()
        if stopped.is_set():
            raise Stopped

    def work(task: Any) -> T:
        if stopped.is_set():
            raise Stopped
        with beside(device, owner):
            return fn(task, tell)

    synchronise(device)
    with kept_random_state(device), ThreadPoolExecutor(count) as threads:
        futures = [threads.submit(work, task) for task in tasks]
        try:
            for future in futures:
                yield future.result()
        except BaseException:
            stopped.set()
            for future in futures:
                future.cancel()
            raise

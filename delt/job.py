"""What a stage needs besides its inputs, and who does its units: this process, its workers, or all ranks of a run."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from delt import storage
from delt.beside import side_by_side
from delt.config import RuntimeConfig
from delt.errors import IntegrityError
from delt.pool import Pool, Ready, same
from delt.runtime import NOTHING, Emit, device_of, silent
from delt.world import World

T = TypeVar("T")


@dataclass
class Job:
    """What a stage needs besides its inputs: the seed, the machine, a place for checkpoints, an ear for progress.

    The ear holds the reins, too: it is called between two steps, so work in this process waits as long as it does not
    return; work here and in worker processes ends where it raises `Stopped`.
    """

    seed: int = 0
    runtime: RuntimeConfig = RuntimeConfig()
    work: Path | None = None  # folder for checkpoints and finished units; None keeps all in memory
    emit: Emit = silent
    pool: Pool | None = None
    watch: bool = False  # events of recover carry the images as they are: see delt.artifacts.snapshots.Frame
    world: World | None = None  # the ranks that share the work, all of which call the same stage

    @property
    def device(self) -> torch.device:
        return device_of(self.runtime)

    @property
    def leads(self) -> bool:
        """Whether results are wanted of this process: always, but in ranks that follow another."""
        return self.world is None or self.world.leads

    def check(self) -> None:
        """Between two units: go on, or not.

        Raises:
            Stopped: the listener said so.
        """
        self.emit(NOTHING)

    def unit(self, name: str, make: Callable[[], dict[str, Tensor]], found: Callable[[], None]) -> dict[str, Tensor]:
        """The tensors of a unit of work: those that were `found` finished, else made, and kept where there is a place for them."""
        path = self.work / f"{name}.safetensors" if self.work else None
        if path and path.exists():
            try:
                tensors = storage.read_tensors(path)[0]
                found()
                return tensors
            except IntegrityError as error:
                warnings.warn(f"{name} is done again: {error}", stacklevel=2)
        tensors = make()
        if path:
            storage.write_tensors(path, tensors)
        return tensors

    def each(
        self,
        fn: Callable[[Any, Emit], T],
        tasks: Sequence[Any],
        ready: Ready = same,
        cost: Callable[[Any], float] = lambda task: 0.0,
        beside: int = 1,
    ) -> Iterator[T]:
        """Yield the results of `fn(task, emit)` in the order of the tasks, in ranks that follow none.

        Of several ranks each does some of the tasks, the dearest first. `fn` must then leave its result in `work` and find it
        there when it is called again: this is how the leader comes by the results of others.

        Args:
            ready: makes a task whole shortly before its turn, so that not all need to be in memory.
            cost: of a task, in any unit.
            beside: tasks that this process does side by side, instead of its workers; see `side_by_side`.
        """
        if self.world is None:
            yield from self._here(fn, tasks, self.emit, ready, beside)
            return
        emit = self.world.ear(self.emit) if self.world.leads else self.emit
        order = sorted(range(len(tasks)), key=lambda number: -cost(tasks[number]))
        turns = self.world.deal(len(tasks), lambda: emit(NOTHING))
        together = max(beside, self.pool.workers if self.pool else 1)
        while numbers := [order[turn] for turn in itertools.islice(turns, together)]:
            for _ in self._here(fn, [tasks[number] for number in numbers], emit, ready, beside):
                pass
        self.world.meet(emit)
        if self.world.leads:
            yield from (fn(ready(task), self._unsaid) for task in tasks)

    def _here(self, fn: Callable[[Any, Emit], T], tasks: Sequence[Any], emit: Emit, ready: Ready, beside: int) -> Iterator[T]:
        """Side by side, or in the pool where there is one."""
        if beside > 1:
            return side_by_side(lambda task, tell: fn(ready(task), tell), tasks, beside, self.device, emit)
        return (fn(ready(task), emit) for task in tasks) if self.pool is None else self.pool.each(fn, tasks, emit, ready)

    def _unsaid(self, event: dict[str, Any]) -> None:
        """Listen to what was reported before: only whether to stop is new."""
        self.check()

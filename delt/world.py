"""Ranks: processes that torchrun started, on one machine or several, which share the work of one run.

The first rank leads. It alone holds the run folder, decides what is to be done and writes tables; it calls the others to
each stage, and they follow. Units of work are dealt by a counter: who is free takes the next one, finished units lie in the
run folder, which all ranks see, and nobody waits for anybody before the last is done. What ranks say to each other goes
through torchrun's own key-value store; collective operations are used in training alone.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from delt.config import RuntimeConfig
from delt.errors import ConfigError, RunError, Stopped
from delt.ranks import local, ranks
from delt.runtime import NOTHING, Emit

PATIENCE = timedelta(minutes=10)  # for a rank that is late: hosts open a large data set at different speeds
POLL = 0.02  # seconds between two looks at what others did
BEAT = 5.0  # seconds between two signs of life of a rank
SILENCE = 120.0  # seconds without one after which a rank is taken for lost
FAREWELL = 3.0  # seconds that the first rank waits, where it failed, for others to write their checkpoints


class Line:
    """torchrun's store, as ranks speak through it; where it is gone, so is torchrun or the first host, and work stops with a checkpoint.

    Raises:
        Stopped: in place of an error of the network.
    """

    def __init__(self, store: Any) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self.store, name)

        def tried(*given: Any) -> Any:
            try:
                return call(*given)
            except dist.DistError as error:
                raise Stopped(
                    "torchrun, or the host of the first rank, was lost; the same command goes on where it was", exit_code=2
                ) from error

        return tried


class World:
    """All ranks of a run, as one of them sees them. Every method but those of the leader is called by all, in the same order."""

    every: ClassVar[float] = 0.5  # seconds between two reports of a rank's progress

    def __init__(self, rank: int, size: int, store: Any) -> None:
        self.rank, self.size, self.store = rank, size, Line(store)
        self.stopping = False
        self._counts: dict[str, int] = {}
        self._heard, self._told, self._last = 0, dict[str, int](), time.monotonic()
        self._looked = 0.0
        self._beats: dict[int, tuple[int, int]] = {}  # of a rank that is waited for: how many, and looks that saw no more

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def _next(self, kind: str) -> str:
        """The name of the next thing of a kind, the same in every rank."""
        number = self._counts.get(kind, 0)
        self._counts[kind] = number + 1
        return f"{kind}/{number}"

    # ------------------------------------------------------------------------------------------ leading and following

    def call(self, **words: Any) -> None:
        """The leader: call the others to a stage, with everything that they have to know (JSON values)."""
        self.store.set(self._next("call"), json.dumps(words))

    def calls(self, check: Callable[[], None]) -> Iterator[dict[str, Any]]:
        """A follower: yield the leader's calls until it says that there are no more.

        Args:
            check: called several times a second while there is none; may raise.

        Raises:
            Stopped: the leader ended with an error, or was stopped.
        """
        while True:
            words = self._await(self._next("call"), check)
            if "end" in words:
                if words["end"]:
                    return
                raise Stopped(f"rank {self.rank} ended with the first one", exit_code=0)
            yield words

    def agree(self, make: Callable[[], Any], check: Callable[[], None]) -> Any:
        """What the leader makes of it (a JSON value), in every rank."""
        name = self._next("agreed")
        if self.leads:
            value = make()
            self.store.set(name, json.dumps(value))
            return value
        return self._await(name, check)

    def _await(self, name: str, check: Callable[[], None]) -> Any:
        while not self.store.check([name]):
            check()
            self._require([0])
            time.sleep(POLL)
        return json.loads(self.store.get(name))

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """The leader: at the end of the block there are no more calls; where it failed, others get a moment for their checkpoints."""
        well = False
        try:
            yield
            well = True
        finally:
            with contextlib.suppress(Stopped):  # nobody is there any more
                self.store.set(self._next("call"), json.dumps({"end": well}))
                if not well:
                    self.store.set("stop", "1")
                until = time.monotonic() + FAREWELL
                while self.store.add("left", 0) < self.size - 1 and time.monotonic() < until:
                    time.sleep(POLL)

    def leave(self) -> None:
        """A follower: say that it writes nothing any more."""
        with contextlib.suppress(Stopped):
            self.store.add("left", 1)

    # ------------------------------------------------------------------------------------------ who is still there

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Give a sign of life every few seconds while the block runs: torchrun tells hosts nothing of another that is lost."""
        ended, line = threading.Event(), self.store.store.clone()  # of its own: another call may wait for long

        def beat() -> None:
            with contextlib.suppress(dist.DistError):
                while not ended.is_set():
                    line.add(f"beat/{self.rank}", 1)
                    ended.wait(BEAT)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(BEAT)

    def _require(self, others: Iterable[int]) -> None:
        """Who waits for other ranks looks now and then whether they live.

        Raises:
            Stopped: one has given no sign for long.
        """
        now = time.monotonic()
        if now - self._looked < BEAT:
            return
        self._looked = now
        for other in others:
            count = self.store.add(f"beat/{other}", 0)
            known, looks = self._beats.get(other, (-1, 0))
            looks = looks + 1 if count == known else 0  # no time: all may have been suspended together
            self._beats[other] = count, looks
            if count and looks * BEAT > SILENCE:
                raise Stopped(
                    f"rank {other} was lost: no sign of it for {SILENCE:.0f} s; the same command goes on where it was", exit_code=2
                )

    # ------------------------------------------------------------------------------------------ sharing work

    def deal(self, count: int, check: Callable[[], None]) -> Iterator[int]:
        """Yield numbers below `count`, each to one rank alone: the next to whoever asks next."""
        name = self._next("deal")
        while True:
            check()
            number = self.store.add(name, 1) - 1
            if number >= count:
                return
            yield number

    def meet(self, emit: Emit) -> None:
        """A follower says that it has done its part; the leader waits until all have, and passes on what they report."""
        self.flush()
        name = self._next("met")
        self.store.add(name, 1)
        while self.leads and self.store.add(name, 0) < self.size:
            self._hear(emit)
            emit(NOTHING)
            self._require(range(1, self.size))
            time.sleep(POLL)
        if self.leads:
            self._hear(emit)

    # ------------------------------------------------------------------------------------------ progress

    def ear(self, emit: Emit) -> Emit:
        """The leader's listener, which hears the others, too: their progress is added to its own."""

        def heard(event: dict[str, Any]) -> None:
            try:
                emit(event)
                if time.monotonic() - self._last > self.every:
                    self._last = time.monotonic()
                    self._hear(emit)
            except Stopped:
                self.stopping = True
                self.store.set("stop", "1")
                raise

        return heard

    def _hear(self, emit: Emit) -> None:
        """Pass on what followers told since the last look."""
        while self._heard < self.store.add("told", 0) and self.store.check([f"told/{self._heard}"]):
            event = json.loads(self.store.get(f"told/{self._heard}"))
            self.store.delete_key(f"told/{self._heard}")
            self._heard += 1
            emit(event)

    def tell(self, event: dict[str, Any]) -> None:
        """A follower's listener: sums up its progress, and passes it on from time to time, all else at once.

        Raises:
            Stopped: the leader was stopped.
        """
        if "done" in event and event["stage"]:
            self._told[event["stage"]] = self._told.get(event["stage"], 0) + event["done"]
        elif "record" in event or "message" in event:
            self._tell(event)
        if time.monotonic() - self._last > self.every:
            self._last = time.monotonic()
            self.flush()
            self.stopping = self.stopping or self.store.check(["stop"])
        if self.stopping:
            raise Stopped(f"rank {self.rank} stopped with the first one", exit_code=0)

    def flush(self) -> None:
        """Pass on the progress that was not passed on yet."""
        for stage, done in self._told.items():
            if done:
                self._tell({"stage": stage, "done": done})
        self._told = {}

    def _tell(self, event: dict[str, Any]) -> None:
        self.store.set(f"told/{self.store.add('told', 1) - 1}", json.dumps(event))

    # ------------------------------------------------------------------------------------------ training together

    def gather(self) -> None:
        """Make the process group of collective operations, where there is none yet."""
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            store = dist.PrefixStore("group", self.store.store)
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE)


def greeted(store: Any, rank: int, size: int) -> str:
    """A name that this start of all ranks shares and no earlier one had: torchrun, which may start them again, keeps its store.

    The first rank offers a name, the others answer with one of their own, and only an answer to a living rank is confirmed.

    Raises:
        RunError: not all ranks came.
    """
    own, until = uuid.uuid4().hex, time.monotonic() + PATIENCE.total_seconds()
    if rank == 0:
        store.set("first", own)
    while time.monotonic() < until:
        if rank == 0:
            names = [f"answer/{other}" for other in range(1, size)]
            answers = [store.get(name).decode() for name in names if store.check([name])]
            if len(answers) == size - 1 and all(answer.startswith(own) for answer in answers):
                store.set(f"confirmed/{own}", json.dumps(answers))
                return own
        elif store.check(["first"]):
            first = store.get("first").decode()
            answer = f"{first} {own}"
            store.set(f"answer/{rank}", answer)
            if store.check([f"confirmed/{first}"]) and answer in json.loads(store.get(f"confirmed/{first}")):
                return str(first)
        time.sleep(POLL)
    raise RunError(f"rank {rank} waited {PATIENCE} for the {size} ranks of this run: see what the others said, and start all again")


@contextlib.contextmanager
def joined(runtime: RuntimeConfig) -> Iterator[World | None]:
    """The ranks that torchrun started, or None where it did not start this process.

    Raises:
        ConfigError: a machine has more ranks than GPUs, or all are to use one and the same.
    """
    if ranks() < 2:
        yield None
        return
    _take_gpu(runtime)
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    store = dist.PrefixStore("delt", store)
    world = World(rank, size, dist.PrefixStore(greeted(store, rank, size), store))
    try:
        with world.alive():
            yield world
    finally:
        if not world.leads:
            world.leave()
        if dist.is_initialized():
            dist.destroy_process_group()


def _take_gpu(runtime: RuntimeConfig) -> None:
    """Make `cuda` mean a GPU of this rank's own."""
    if runtime.device == "cpu" or not torch.cuda.is_available():
        return
    (number, count), gpus = local(), torch.cuda.device_count()
    if runtime.device not in ("auto", "cuda"):
        raise ConfigError(f"device is {runtime.device!r} for {count} ranks of this machine; with torchrun allowed are auto, cpu and cuda")
    if count > gpus:
        raise ConfigError(f"{count} ranks and {gpus} GPUs are on this machine: torchrun --nproc-per-node {gpus}, or --device cpu")
    torch.cuda.set_device(number)

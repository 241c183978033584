"""Ranks as threads over one store: who leads, who follows, how work is dealt and progress is summed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from delt import world
from delt.config import RuntimeConfig
from delt.errors import ConfigError, RunError, Stopped
from delt.runtime import silent
from delt.world import World, greeted, joined


def nothing() -> None:
    """Nobody stops."""


def together(size: int, act: Callable[[World], Any]) -> list[Any]:
    """What `act` returns, or raises, in every rank."""
    store, results = dist.HashStore(), [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = act(World(rank, size, store))
        except Exception as error:
            results[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_unit_is_dealt_once_and_the_next_to_whoever_is_free(size: int):
    def act(world: World) -> list[list[int]]:
        own = []
        for count in (17, 0, 3):
            own.append([])
            for number in world.deal(count, nothing):
                own[-1].append(number)
                time.sleep(0.02 if world.rank == 0 else 0.001)  # the first one is slow
            world.meet(silent)
        return own

    found = together(size, act)
    for deal, count in enumerate((17, 0, 3)):
        assert sorted(number for own in found for number in own[deal]) == list(range(count))
        assert all(own[deal] == sorted(own[deal]) for own in found)
    if size > 1:
        assert len(found[0][0]) < max(len(own[0]) for own in found[1:])


def test_followers_do_what_the_leader_calls_for_in_its_order():
    def act(world: World) -> Any:
        if not world.leads:
            heard = [call["stage"] for call in world.calls(nothing)]
            world.leave()
            return heard
        with world.leading():
            world.call(stage="rank", work="a")
            time.sleep(0.05)
            world.call(stage="recover", work="b")
        return "ended"

    assert together(3, act) == ["ended", ["rank", "recover"], ["rank", "recover"]]


def test_where_the_leader_fails_the_others_end_without_an_error_of_their_own():
    def act(world: World) -> Any:
        if not world.leads:
            try:
                return list(world.calls(nothing))
            finally:
                world.leave()
        with world.leading():
            raise ConfigError("ipc is 0")

    leader, *others = together(3, act)
    assert isinstance(leader, ConfigError)
    assert all(isinstance(error, Stopped) and error.exit_code == 0 for error in others)


def test_the_leader_lets_others_write_their_checkpoints_before_it_ends():
    written: list[float] = []

    def act(world: World) -> float:
        if world.leads:
            with pytest.raises(Stopped), world.leading():
                raise Stopped
            return time.monotonic()
        with pytest.raises(Stopped):
            list(world.calls(nothing))
        time.sleep(0.3)
        written.append(time.monotonic())
        world.leave()
        return 0.0

    assert together(2, act)[0] >= written[0]


def test_a_follower_that_waits_can_be_stopped():
    def check() -> None:
        raise Stopped("stopped by SIGTERM", exit_code=143)

    store = dist.HashStore()
    with pytest.raises(Stopped, match="SIGTERM"):
        next(World(1, 2, store).calls(check))
    with pytest.raises(Stopped, match="SIGTERM"):
        next(World(1, 2, store).deal(5, check))
    with pytest.raises(Stopped, match="SIGTERM"):
        World(1, 2, store).agree(lambda: 1, check)


def test_all_hear_what_the_leader_has_found():
    def act(world: World) -> Any:
        return [world.agree(lambda k=k: [world.rank, k], nothing) for k in range(3)]

    assert together(3, act) == [[[0, 0], [0, 1], [0, 2]]] * 3


def test_progress_is_summed_and_messages_are_passed_on_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(World, "every", 0.01)
    heard: list[dict[str, Any]] = []

    def act(world: World) -> int:
        emit = world.ear(heard.append) if world.leads else world.tell
        emit({"stage": "recover", "total": 300, "unit": "img-it"})
        for _ in world.deal(60, lambda: emit({"stage": "", "done": 0})):
            for _ in range(5):
                emit({"stage": "recover", "done": 1})
            time.sleep(0.002)
        if world.rank == 2:
            emit({"message": "rank 2 has no memory left"})
        world.meet(emit)
        return world.rank

    together(3, act)
    assert sum(event.get("done", 0) for event in heard) == 300
    assert [event["total"] for event in heard if "total" in event] == [300]
    assert {"message": "rank 2 has no memory left"} in heard
    assert all(event["stage"] == "recover" for event in heard if event.get("done"))


def test_a_listener_that_stops_the_leader_stops_the_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(World, "every", 0.01)
    count = [0]

    def listener(event: dict[str, Any]) -> None:
        count[0] += 1
        if count[0] == 20:
            raise Stopped

    def act(world: World) -> Any:
        emit = world.ear(listener) if world.leads else world.tell
        try:
            while True:
                emit({"stage": "recover", "done": 1})
                time.sleep(0.002)
        except Stopped as stop:
            return stop.exit_code

    assert together(3, act) == [130, 0, 0]


def test_without_torchrun_there_is_no_world():
    with joined(RuntimeConfig()) as world:
        assert world is None


def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("cuda:1", 4, "device is 'cuda:1' for 4 ranks of this machine; with torchrun allowed are auto, cpu and cuda"),
        ("auto", 2, "4 ranks and 2 GPUs are on this machine: torchrun --nproc-per-node 2, or --device cpu"),
    ],
)
def test_every_rank_needs_a_gpu_of_its_own(device: str, gpus: int, message: str, monkeypatch: pytest.MonkeyPatch):
    environment(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError, match=message), joined(RuntimeConfig(device=device)):
        pass


def test_cuda_means_the_gpu_of_the_rank(monkeypatch: pytest.MonkeyPatch):
    environment(monkeypatch)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(world, "rendezvous", lambda *given, **more: iter([(dist.HashStore(), 0, 4)]))
    monkeypatch.setattr(world, "greeted", lambda store, rank, size: "now")  # the other ranks are not there
    with joined(RuntimeConfig()) as found:
        assert found is not None and found.leads and found.size == 4
    assert chosen == [1]


def test_ranks_that_start_again_in_the_same_store_find_each_other():
    store = dist.HashStore()
    names = []
    for _ in range(3):
        with ThreadPoolExecutor(3) as threads:
            found = set(threads.map(lambda rank: greeted(store, rank, 3), (1, 2, 0)))
        assert len(found) == 1
        names.append(found.pop())
    assert len(set(names)) == 3, "each start has a name of its own"


def test_a_rank_that_nobody_meets_gives_up(monkeypatch: pytest.MonkeyPatch):
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda rank: greeted(store, rank, 2), (0, 1)))
    monkeypatch.setattr(world, "PATIENCE", timedelta(seconds=0.1))
    for rank in (0, 1):
        with pytest.raises(RunError, match=f"rank {rank} waited 0:00:00.100000 for the 2 ranks of this run"):
            greeted(store, rank, 2)


def test_a_rank_without_a_sign_of_life_is_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(world, "BEAT", 0.01)
    monkeypatch.setattr(world, "SILENCE", 0.1)
    store = dist.HashStore()
    leader, other = World(0, 2, store), World(1, 2, store)
    with other.alive():
        time.sleep(0.05)
    with pytest.raises(Stopped, match="rank 1 was lost") as caught:
        leader.meet(silent)
    assert caught.value.exit_code == 2


def test_ranks_that_were_suspended_together_are_not_lost(monkeypatch: pytest.MonkeyPatch):
    """The first that wakes looks before the others have said anything, however late it is."""
    now = [0.0]
    monkeypatch.setattr(world.time, "monotonic", lambda: now[0])
    store = dist.HashStore()
    leader = World(0, 2, store)
    store.add("beat/1", 1)
    for minutes in (1, 2, 60, 120):
        now[0] = 60.0 * minutes
        leader._require([1])
    for _ in range(int(world.SILENCE / world.BEAT) - 3):
        now[0] += world.BEAT
        leader._require([1])
    now[0] += world.BEAT
    with pytest.raises(Stopped, match="rank 1 was lost: no sign of it for 120 s"):
        leader._require([1])


def test_where_the_store_is_gone_work_stops():
    class Gone:
        def add(self, *given: object) -> int:
            raise dist.DistNetworkError("Broken pipe")

        set = get = check = add

    lost = World(1, 2, Gone())
    with pytest.raises(Stopped, match="torchrun, or the host of the first rank, was lost"):
        next(lost.deal(5, nothing))
    lost.leave()

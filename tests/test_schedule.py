"""The schedule against a brute-force simulation, and against the published numbers (DELT, arXiv 2411.19946)."""

from __future__ import annotations

import math

import pytest

from delt.errors import ConfigError
from delt.schedule import Schedule, cosine, learning_rate, plan, smallest_crop, split

PUBLISHED = [  # lr at base 0.25 and smallest crop at the start of rounds 0 .. 7 and at the end
    *zip(
        [0.25, 0.2405, 0.2134, 0.1728, 0.125, 0.0772, 0.0366, 0.0095, 0.0],
        [1.0, 0.965, 0.865, 0.716, 0.54, 0.364, 0.215, 0.115, 0.08],
        strict=True,
    )
]


def dealt(ipc: int, sub_batches: int) -> list[int]:
    """Images per sub-batch, one image at a time to each in turn."""
    sizes = [0] * sub_batches
    for image in range(ipc):
        sizes[image % sub_batches] += 1
    return sizes


def simulate(iterations: int, round_iterations: int, sizes: list[int]) -> tuple[list[list[int]], list[int]]:
    """Iteration by iteration: the active sub-batches, and how many updates each image has had at the end."""
    depth = [k for k, size in enumerate(sizes) for _ in range(size)]
    updates, active = [0] * len(depth), []
    for t in range(iterations):
        active.append([k for k in range(len(sizes)) if t >= k * round_iterations])
        for image, k in enumerate(depth):
            updates[image] += k in active[-1]
    return active, updates


@pytest.mark.parametrize(("iterations", "round_iterations"), [(40, None), (43, None), (40, 3)])
def test_every_schedule_by_brute_force(iterations: int, round_iterations: int | None) -> None:
    for ipc in range(1, 61):
        for sub_batches in range(1, min(10, ipc) + 1):
            schedule = plan(iterations, ipc, round_iterations, sub_batches)
            sizes, gap = dealt(ipc, sub_batches), round_iterations or iterations // sub_batches
            active, updates = simulate(iterations, gap, sizes)
            assert (schedule.sizes, schedule.sub_batches, schedule.ipc) == (tuple(sizes), sub_batches, ipc)
            assert [schedule.active(t) for t in range(iterations)] == [len(now) for now in active]
            assert [schedule.updates[k] for k in schedule.sub_batch_of] == updates
            assert schedule.joins == tuple(next(t for t, now in enumerate(active) if k in now) for k in range(sub_batches))
            assert schedule.image_iterations == sum(updates)
            assert schedule.saved == pytest.approx(1 - sum(updates) / (ipc * iterations), abs=1e-12)
            assert schedule.active(-1) == schedule.active(iterations) == 0


def test_rounds_cover_every_iteration_once() -> None:
    for ipc, sub_batches, gap in [(50, 8, 500), (10, 8, 500), (7, 3, 1000), (5, 1, 7)]:
        schedule = plan(4000, ipc, gap, sub_batches)
        assert [t for part in schedule.rounds for t in range(part.start, part.stop)] == list(range(4000))
        for part in schedule.rounds:
            assert {schedule.active(t) for t in (part.start, part.stop - 1)} == {part.sub_batches}
            assert part.images == sum(schedule.sizes[: part.sub_batches])
        assert sum((part.stop - part.start) * part.images for part in schedule.rounds) == schedule.image_iterations


def test_published_splits_and_savings() -> None:
    fifty = plan(4000, 50)
    assert fifty == plan(4000, 50, 500) == plan(4000, 50, sub_batches=8) == plan(4000, 50, 500, 8)
    assert fifty.sizes == (7, 7, 6, 6, 6, 6, 6, 6) and fifty.round_iterations == 500
    assert [part.images for part in fifty.rounds] == [7, 14, 20, 26, 32, 38, 44, 50]
    assert fifty.updates == (4000, 3500, 3000, 2500, 2000, 1500, 1000, 500)
    assert fifty.saved == pytest.approx(0.4225) and fifty.image_iterations * 1000 == 115_500_000
    assert plan(4000, 10).saved == pytest.approx(0.3625)
    assert plan(4000, 100).saved == pytest.approx(0.4275)
    assert plan(4000, 50, 1000).sizes == (13, 13, 12, 12)
    assert plan(4000, 8).saved == pytest.approx(1 - 9 / 16)  # equal sizes: mean depth MI (M + 1) / 2M


def test_published_rate_and_crop_at_the_start_of_each_round() -> None:
    for k, (rate, crop) in enumerate(PUBLISHED):
        assert learning_rate(500 * k, 4000, 0.25) == pytest.approx(rate, abs=5e-5)
        assert smallest_crop(500 * k, 4000, 0.08, "cosine", 1.0) == pytest.approx(crop, abs=5e-4)


def test_crop_curricula_by_their_formulas() -> None:
    total, least = 80, 0.08
    for milestone in (0.25, 0.5, 1.0):
        end = milestone * total
        for t in range(total + 1):
            share = {
                "cosine": least + (1 - least) * (1 + math.cos(math.pi * t / end)) / 2 if t < end else least,
                "linear": least + (1 - least) * (1 - t / end) if t < end else least,
                "step": 1.0 if t < end else least,
                "none": least,
            }
            for curriculum, expected in share.items():
                assert smallest_crop(t, total, least, curriculum, milestone) == pytest.approx(expected, abs=1e-12), (curriculum, t)
    assert all(smallest_crop(t, total, least, kind, 0.0) == least for t in (0, 40) for kind in ("cosine", "linear", "step"))  # SRe2L


def test_cosine_goes_from_one_to_zero_and_never_climbs() -> None:
    values = [cosine(t, 100) for t in range(101)]
    assert values[0] == 1 and values[50] == pytest.approx(0.5) and values[-1] == pytest.approx(0, abs=1e-15)
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("given", "sub_batches", "round_iterations"),
    [
        ({"iterations": 4000, "ipc": 50}, 8, 500),  # neither: min(8, ipc) and MI // M
        ({"iterations": 4000, "ipc": 3}, 3, 1333),
        ({"iterations": 1000, "ipc": 50}, 8, 125),
        ({"iterations": 4000, "ipc": 50, "sub_batches": 5}, 5, 800),  # M alone: MI // M
        ({"iterations": 4000, "ipc": 50, "round_iterations": 1000}, 4, 1000),  # RI alone: min(MI // RI, ipc)
        ({"iterations": 4000, "ipc": 3, "round_iterations": 100}, 3, 100),
        ({"iterations": 4000, "ipc": 50, "round_iterations": 300}, 13, 300),
        ({"iterations": 100, "ipc": 50, "round_iterations": 300}, 1, 300),
        ({"iterations": 4000, "ipc": 50, "round_iterations": 100, "sub_batches": 2}, 2, 100),  # both: as given
        ({"iterations": 5, "ipc": 50}, 5, 1),  # never more sub-batches than iterations
        ({"iterations": 1, "ipc": 4}, 1, 1),
    ],
)
def test_what_is_not_given_is_filled_in(given: dict[str, int], sub_batches: int, round_iterations: int) -> None:
    schedule = plan(**given)
    assert (schedule.sub_batches, schedule.round_iterations, schedule.iterations) == (sub_batches, round_iterations, given["iterations"])
    assert min(schedule.updates) >= 1 and min(schedule.sizes) >= 1


def test_defaults_always_fit_together() -> None:
    for iterations in range(1, 70):
        for ipc in (1, 2, 7, 8, 9, 50):
            for gap in (None, 1, 2, 5, 13, 100):
                schedule = plan(iterations, ipc, gap)
                assert min(schedule.updates) >= 1 and min(schedule.sizes) >= 1 and schedule.ipc == ipc


def test_no_iterations_keep_the_starting_images() -> None:
    for given in ({}, {"sub_batches": 4}, {"round_iterations": 10}):
        schedule = plan(0, 10, **given)
        assert (schedule.iterations, schedule.round_iterations, schedule.sizes, schedule.rounds) == (0, 0, (10,), ())
        assert (schedule.updates, schedule.image_iterations, schedule.saved) == ((0,), 0, 0.0)
        assert schedule.active(0) == 0


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"iterations": 100, "ipc": 0}, ["ipc is 0", "at least one"]),
        ({"iterations": -1, "ipc": 1}, ["iterations is -1", "0"]),
        ({"iterations": 100, "ipc": 5, "round_iterations": 0}, ["round_iterations is 0", "at least 1"]),
        ({"iterations": 100, "ipc": 5, "sub_batches": 6}, ["sub_batches is 6", "ipc 5", "1 to 5"]),
        ({"iterations": 0, "ipc": 5, "sub_batches": 6}, ["sub_batches is 6", "ipc 5", "1 to 5"]),
        ({"iterations": 0, "ipc": 5, "round_iterations": 0}, ["round_iterations is 0", "at least 1"]),
        ({"iterations": 100, "ipc": 5, "sub_batches": 0}, ["sub_batches is 0", "1 to 5"]),
        ({"iterations": 100, "ipc": 5, "sub_batches": 5, "round_iterations": 25}, ["iteration 100", "ends at 100", "at most 24"]),
        ({"iterations": 4000, "ipc": 50, "sub_batches": 8, "round_iterations": 600}, ["iteration 4200", "ends at 4000", "at most 571"]),
        ({"iterations": 3, "ipc": 50, "sub_batches": 8}, ["iteration 7", "ends at 3", "lower sub_batches to at most 3"]),
    ],
)
def test_refusals_say_what_was_given_and_what_is_allowed(given: dict[str, int], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(**given)
    for part in parts:
        assert part in str(caught.value)


def test_the_advice_of_a_refusal_works() -> None:
    with pytest.raises(ConfigError):
        plan(4000, 50, 572, 8)
    assert min(plan(4000, 50, 571, 8).updates) == 3
    assert plan(3, 50, sub_batches=3).updates == (3, 2, 1)


def test_a_schedule_may_hold_empty_sub_batches_and_serves_as_a_key() -> None:
    schedule = Schedule(12, 3, (0, 2, 0, 1))
    assert schedule.sub_batch_of == (1, 1, 3) and schedule.image_iterations == 2 * 9 + 3
    assert schedule.rounds[0].images == 0 and {schedule: 1}[Schedule(12, 3, (0, 2, 0, 1))] == 1
    assert split(0, 3) == (0, 0, 0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"iterations": "400", "ipc": 5}, "iterations is '400'"),
        ({"iterations": 400.5, "ipc": 5}, "iterations is 400.5"),
        ({"iterations": None, "ipc": 5}, "iterations is None"),
        ({"iterations": 400, "ipc": 5.0}, "ipc is 5.0"),
        ({"iterations": 400, "ipc": True}, "ipc is True"),
        ({"iterations": 400, "ipc": 5, "sub_batches": "2"}, "sub_batches is '2'"),
        ({"iterations": 400, "ipc": 5, "round_iterations": 1.5}, "round_iterations is 1.5"),
    ],
)
def test_numbers_are_whole(given, words):
    with pytest.raises(ConfigError, match=f"{words}; allowed is a whole number"):
        plan(**given)

"""The draws: a function of seed, group and iteration, whoever asks for how many of them; crops as one map per axis."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from delt.config import RecoverConfig
from delt.data.augment import axis_operator
from delt.engine.draws import BLOCK, Draws
from delt.grouping import make_groups
from delt.schedule import plan, smallest_crop

SIZE = 16


def draws_of(groups: int = 3, seed: int = 0, iterations: int = 600, **config: Any) -> Draws:
    schedule = plan(iterations, 2, None, 2)
    made = make_groups(3, schedule, group_size=2)[:groups]
    settings = RecoverConfig(iterations=iterations, **{"flip": True, "jitter": 3, **config})
    return Draws(seed, made, made[0].schedule, settings, lambda t: SIZE)


@pytest.mark.parametrize("config", [{}, {"clock": "own"}, {"pad": 2}, {"flip": False, "jitter": 0}])
@pytest.mark.parametrize("span", [(0, 7), (BLOCK - 3, BLOCK + 4), (310, 600)])
def test_many_iterations_at_once_are_those_one_by_one(config: dict[str, Any], span: tuple[int, int]) -> None:
    draws, alone = draws_of(**config), draws_of(**config)
    if config.get("clock") == "own" and span[0] < 300 < span[1]:
        span = (span[0], 300)
    crops = draws.crops(*span)
    rows, cols = crops.operators(torch.device("cpu"))
    clocks = 2 if config.get("clock") == "own" and span[0] >= 300 else 1
    assert crops.boxes.shape == (span[1] - span[0], clocks, 3, 4) and rows.shape == (*crops.boxes.shape[:3], SIZE, SIZE)
    for t in range(*span)[:: max(1, (span[1] - span[0]) // 5)]:
        for k in range(clocks):
            for g, group in enumerate(alone.groups):
                box, flip, shift = alone.one(group, t, k)
                place = (t - span[0], k, g)
                assert torch.equal(crops.boxes[place], box) and crops.flips[place] == flip and torch.equal(crops.shifts[place], shift)
                top, left, height, width = box[:, None]
                assert torch.equal(rows[place], axis_operator(top, height, SIZE, shift=shift[:1])[0])
                assert torch.equal(cols[place], axis_operator(left, width, SIZE, flip[None], shift[1:])[0])


def test_groups_seeds_clocks_and_iterations_have_draws_of_their_own() -> None:
    own, other = draws_of(clock="own"), draws_of(seed=1, clock="own")
    group = own.groups[0]
    seen = [
        own.numbers(group, 0, 0, 600),
        own.numbers(group, 1, 0, 600),
        own.numbers(own.groups[1], 0, 0, 600),
        other.numbers(group, 0, 0, 600),
    ]
    rows = torch.cat(seen)
    assert len(rows.unique(dim=0)) == len(rows) == 2400
    assert torch.equal(draws_of(groups=1).numbers(group, 0, 100, 400), seen[0][100:400])  # other groups beside it have no say
    assert rows.min() >= 0 and rows.max() < 1 and (rows.mean(0) - 0.5).abs().max() < 0.05


def test_the_smallest_crop_follows_the_clock() -> None:
    draws = draws_of(min_crop=0.1)
    crops = draws.crops(0, 600)
    share = crops.boxes[..., 2:].prod(-1).double() / SIZE**2
    for t in range(0, 600, 50):
        least = smallest_crop(t, 600, 0.1, "cosine", 1.0)
        assert share[t].min() > least - 0.12  # but for the rounding of both sides
    assert share[:20].min() > 0.9 and share[550:].min() < 0.3
    own = draws_of(clock="own")
    assert own.clocks(299) == [(299, 600)] and own.clocks(300) == [(300, 600), (0, 300)]
    assert own.crops(300, 301).boxes[0, 1].tolist() == [[0, 0, SIZE, SIZE]] * 3  # newcomers see the whole image first


def test_shifts_over_a_border_reach_both_sides() -> None:
    crops = draws_of(pad=2).crops(0, 600)
    assert set(crops.boxes[..., 0].flatten().tolist()) == set(crops.boxes[..., 1].flatten().tolist()) == {-2, -1, 0, 1, 2}
    assert crops.boxes[..., 2:].eq(SIZE).all() and set(crops.shifts.flatten().tolist()) == {0, 1, 2, 3}

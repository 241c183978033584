"""Groups: every image in exactly one, cut as announced, and the published loader's dropped rounds by brute force."""

from __future__ import annotations

import itertools

import pytest

from delt.grouping import Group, make_groups, packs
from delt.schedule import Schedule, plan

WAYS = [
    ("class", "whole", False),
    ("class", "contiguous", False),
    ("class", "contiguous", True),
    ("mixed", "whole", False),
    ("mixed", "whole", True),
]


def schedules() -> list[Schedule]:
    return [plan(24, ipc, sub_batches=m) for ipc in (1, 2, 5, 10) for m in (1, 2, 4, 8) if m <= ipc]


@pytest.mark.parametrize(("grouping", "cut", "drop"), WAYS)
def test_every_image_is_in_exactly_one_group_and_keys_are_unique(grouping: str, cut: str, drop: bool) -> None:
    for schedule, classes, size in itertools.product(schedules(), (1, 3, 7), (1, 3, 7, 100)):
        groups = make_groups(classes, schedule, grouping, size, cut, drop)
        members = [member for group in groups for member in group.members]
        assert sorted(members) == [(c, i) for c in range(classes) for i in range(schedule.ipc)]
        assert len({group.key for group in groups}) == len(groups)
        assert max(len(group.members) for group in groups) <= size
        for group in groups:
            assert len(group.members) == group.schedule.ipc
            depth = [schedule.sub_batch_of[i] for _, i in group.members]
            assert depth == sorted(depth)  # early sub-batches first
            if not drop:
                assert group.schedule.sub_batch_of == tuple(depth)
                assert (group.schedule.iterations, group.schedule.round_iterations) == (schedule.iterations, schedule.round_iterations)


def test_whole_classes_stay_together_where_they_fit() -> None:
    groups = make_groups(7, plan(24, 10), "class", 30, "whole")
    assert [sorted({c for c, _ in group.members}) for group in groups] == [[0, 1, 2], [3, 4, 5], [6]]
    assert groups[0].schedule.sizes == (6, 6, 3, 3, 3, 3, 3, 3) and groups[2].schedule.sizes == (2, 2, 1, 1, 1, 1, 1, 1)
    assert len(make_groups(7, plan(24, 10), "class", 39, "whole")) == 3  # no part of a fourth class fills up the rest
    assert len(make_groups(7, plan(24, 10), "class", 10, "whole")) == 7


def test_a_class_too_large_for_a_group_is_dealt_out_over_all_depths() -> None:
    groups = make_groups(2, plan(24, 50), "class", 20, "whole")
    assert [{c for c, _ in group.members} for group in groups] == [{0}] * 3 + [{1}] * 3
    assert [len(group.members) for group in groups] == [17, 17, 16] * 2
    for group in groups:
        assert min(group.schedule.sizes) == 2 and max(group.schedule.sizes) <= 3
    assert sorted(i for group in groups[:3] for _, i in group.members) == list(range(50))


def test_contiguous_chunks_cut_classes_as_the_class_sorted_list_falls() -> None:
    groups = make_groups(3, plan(24, 4), "class", 5, "contiguous")
    chunks = [sorted(group.members) for group in groups]
    assert chunks == [
        [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)],
        [(1, 1), (1, 2), (1, 3), (2, 0), (2, 1)],
        [(2, 2), (2, 3)],
    ]
    assert groups[2].schedule.sizes == (0, 0, 1, 1)


@pytest.mark.parametrize(("ipc", "size", "rounds"), [(6, 100, 2), (5, 100, 2), (4, 6, 3), (3, 1, 2), (2, 100, 5)])
def test_mixed_groups_may_hold_several_images_of_each_class(ipc: int, size: int, rounds: int) -> None:
    groups = make_groups(5, plan(24, ipc), "mixed", size, rounds=rounds)
    assert sorted(member for group in groups for member in group.members) == [(c, i) for c in range(5) for i in range(ipc)]
    assert len({group.key for group in groups}) == len(groups)
    for group in groups:
        classes, indices = {c for c, _ in group.members}, {i for _, i in group.members}
        assert len(group.members) == len(classes) * len(indices) <= max(size, rounds), "as many of each class"
        assert len(indices) <= rounds and len(classes) <= max(1, size // rounds)


def test_mixed_groups_hold_one_image_of_each_class() -> None:
    groups = make_groups(5, plan(24, 3, sub_batches=1), "mixed", 2)
    assert [group.members for group in groups] == [tuple((c, i) for c in chunk) for i in range(3) for chunk in ([0, 1], [2, 3], [4])]
    late = make_groups(5, plan(24, 3, sub_batches=3), "mixed", 100)[2]
    assert late.schedule.sizes == (0, 0, 5) and late.schedule.updates[2] == 8
    shorter = make_groups(5, plan(24, 3, sub_batches=3), "mixed", 100, drop_empty=True)
    assert [group.schedule for group in shorter] == [Schedule(24, 8, (5, 0, 0)), Schedule(16, 8, (5, 0)), Schedule(8, 8, (5,))]


def published(classes: int, ipc: int, rounds: int, length: int, batch: int) -> dict[tuple[int, int], tuple[int, int]]:
    """The published loader, one image at a time: (updates, iterations of its batch) of each image.

    A counter per class runs over all batches and says which round an image joins: it is in the list of that round and of all
    that follow; rounds whose list is empty are deleted.
    """
    ends, filled = [], 0
    for r in range(rounds):
        filled += ipc // rounds + (1 if r < ipc % rounds else 0)
        ends.append(filled)
    loader = [c for c in range(classes) for _ in range(ipc)]
    counter = dict.fromkeys(range(classes), 0)
    result = {}
    for start in range(0, len(loader), batch):
        lists: list[list[tuple[int, int]]] = [[] for _ in range(rounds)]
        for label in loader[start : start + batch]:
            number = counter[label]
            counter[label] += 1
            for r in range(next(r for r in range(rounds) if number < ends[r]), rounds):
                lists[r].append((label, number))
        lists = [images for images in lists if images]
        updates: dict[tuple[int, int], int] = {}
        for images in lists:
            for _ in range(length):
                for image in images:
                    updates[image] = updates.get(image, 0) + 1
        result.update({image: (count, len(lists) * length) for image, count in updates.items()})
    return result


def test_contiguous_groups_with_dropped_rounds_are_the_published_loader() -> None:
    shortened = 0
    for classes, ipc, rounds, batch in itertools.product((1, 3, 4), (1, 4, 10, 13), (1, 2, 4, 8), (1, 3, 6, 10, 25)):
        if rounds > ipc:
            continue
        groups = make_groups(classes, plan(rounds * 5, ipc, 5, rounds), "class", batch, "contiguous", drop_empty=True)
        ours = {
            member: (group.schedule.updates[k], group.schedule.iterations)
            for group in groups
            for member, k in zip(group.members, group.schedule.sub_batch_of, strict=True)
        }
        assert ours == published(classes, ipc, rounds, 5, batch)
        shortened += any(group.schedule.iterations < rounds * 5 for group in groups)
        assert all(group.schedule.sizes[0] > 0 for group in groups)
        assert sum(group.schedule.image_iterations for group in groups) == classes * plan(rounds * 5, ipc, 5, rounds).image_iterations
    assert shortened > 10  # the quirk was seen


def test_packs_put_only_equal_schedules_together() -> None:
    for (grouping, cut, drop), size, packing in itertools.product(WAYS, (3, 7, 100), (1, 2, 3, 50)):
        groups = make_groups(7, plan(24, 5, sub_batches=4), grouping, size, cut, drop)
        packed = packs(groups, packing)
        assert sorted(group.key for pack in packed for group in pack) == sorted(group.key for group in groups)
        for pack in packed:
            assert 1 <= len(pack) <= packing and len({group.schedule for group in pack}) == 1
        fewest = sum(-(-sum(g.schedule == kind for g in groups) // packing) for kind in {g.schedule for g in groups})
        assert len(packed) == fewest


def test_keys_name_the_content() -> None:
    schedule = plan(8, 2)
    assert Group(((3, 0), (3, 1)), schedule).key == "3.0-3.1" == Group(((3, 1), (3, 0)), schedule).key
    assert Group(((3, 1),), plan(8, 1)).key == "3.1"
    alone = {group.key: group for group in make_groups(1, plan(24, 5), "class", 5)}
    among = {group.key: group for group in make_groups(9, plan(24, 5), "class", 5)}
    assert alone == {key: among[key] for key in alone}  # the same group in any run that holds it

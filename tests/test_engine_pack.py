"""A pack as a value: where each image of its groups lies, and when it is recorded."""

from __future__ import annotations

from delt.bench import Load, pack_of
from delt.config import RuntimeConfig
from delt.engine.pack import interleaved
from delt.grouping import make_groups
from delt.runtime import resolve
from delt.schedule import plan


def test_image_i_of_group_g_lies_at_i_times_groups_plus_g() -> None:
    groups = make_groups(6, plan(10, 4, None, 2), group_size=8)
    rows = interleaved(groups)
    assert len(rows) == 24 and all(tuple(rows[g :: len(groups)]) == group.members for g, group in enumerate(groups))


def test_a_task_knows_its_rows_marks_and_name() -> None:
    load = Load(8, "resnet18", 4, ipc=4, sub_batches=2, iterations=20, group=8)
    task, _ = pack_of(load, resolve(RuntimeConfig(device="cpu")), groups=2)
    task.classes, task.record_at, task.iterations = frozenset({1, 2}), (0, 20, 39), 40
    assert [task.members[row][0] for row in task.watched] == [c for c, _ in task.members if c in (1, 2)]
    assert task.marks == [0, 10, 19]
    assert sorted(task.places(4).tolist()) == list(range(16)) and task.name == f"{task.groups[0].key}_2"

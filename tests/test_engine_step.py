"""The step in its parts: packs in slices and groups in chunks are exact, memory that runs out costs nothing but time.

That the whole of it is the papers' algorithm is held against slow references in test_stages_recover.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from delt.artifacts.teacher import Teacher
from delt.bench import Load
from delt.config import RecoverConfig, RuntimeConfig
from delt.engine import step as module
from delt.engine.memory import Split
from delt.engine.pack import PackTask
from delt.engine.step import Finite, Inputs, NotFinite, Step
from delt.errors import DeltError
from delt.grouping import make_groups
from delt.job import Job
from delt.models.statistics import FrozenNorm, freeze_norms, remember_convolutions
from delt.runtime import Replay, resolve, silent
from delt.schedule import learning_rate, plan
from delt.stages.recover import recover_pack

ITERATIONS, IPC = 12, 6
CASES: dict[str, dict[str, Any]] = {
    "delt": {},
    "own clock": {"clock": "own"},
    "shared Adam": {"adam_steps": "shared"},
    "gvbsm": {"match": "bn+conv", "average": 0.8, "drop": 0.3, "densify": 1.0, "pad": 2},
    "fadrm": {"stages": 3, "small_side": 0.75},
}


def teacher_of(arch: str = "resnet18") -> Teacher:
    teacher = Load(8, arch, 4).teacher
    teacher.model.double()
    for layer in teacher.model.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            layer.running_mean += 0.2
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return Teacher(teacher.model, teacher.card, remember_convolutions(teacher.model, [images], 4))


def task_of(groups: int = 3, runtime: dict[str, Any] | None = None, **changes: Any) -> PackTask:
    config = RecoverConfig(iterations=ITERATIONS, flip=True, jitter=1, bn_weight=0.3, **changes)
    made = make_groups(2 * groups, plan(ITERATIONS, IPC, None, 3), group_size=2 * IPC)
    job = Job(0, resolve(RuntimeConfig(device="cpu", **(runtime or {}))))
    return PackTask((teacher_of(),), made, None, config, frozenset(), (), ITERATIONS, job)


def run(task: PackTask, split: Split | None = None, say: Any = silent, steps: int = ITERATIONS) -> tuple[Tensor, Step]:
    """Images after so many iterations, in float64."""
    step = Step(task, torch.device("cpu"), say)
    step.start = step.start.double()
    step.split = split or step.split
    state = step.begin()
    with step:
        for state.t in range(steps):
            step.enter_stage(state)
            step(state)
    return state.images, step


@pytest.mark.parametrize("split", [Split(2), Split(1), Split(1, 5), Split(1, 1)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_in_parts_is_the_whole_one(name: str, split: Split) -> None:
    task = task_of(**CASES[name])
    found = []
    for own in (None, split):
        step = Step(task, torch.device("cpu"))
        step.start = step.start.double()
        step.split = own or step.split
        state, gradients = step.begin(), []
        with step:
            for t in (0, 4, 8):
                state.t = t
                step.enter_stage(state)
                gradient, entropy, distance = step.gradient(state, step.inputs(t), t, step.active(t))
                gradients.append((gradient.clone(), entropy, distance))
        found.append(gradients)
    for whole, parts in zip(*found, strict=True):
        for one, two in zip(whole, parts, strict=True):
            assert one.shape == two.shape and (one - two).abs().max() < 1e-12 * max(1.0, one.abs().max().item())


@pytest.mark.parametrize("split", [Split(3), Split(1, 5)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_layers_that_measure_themselves_change_nothing(name: str, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where they do so in kernels of their own."""
    expected, _ = run(task_of(**CASES[name]), split, steps=5)
    monkeypatch.setattr(Step, "network", lambda step, teacher: freeze_norms(copy.deepcopy(teacher.model)))
    found, step = run(task_of(**CASES[name]), split, steps=5)
    assert any(isinstance(layer, FrozenNorm) for layer in step.networks[0].modules())
    assert (found - expected).abs().max() < 1e-9


def test_packed_groups_are_those_alone() -> None:
    task = task_of()
    together, _ = run(task)
    for g, group in enumerate(task.groups):
        alone, _ = run(replace(task, groups=[group]))
        assert (together[g::3] - alone).abs().max() < 1e-9


class Short:
    """Lets a step run out of memory wherever more than `most` images pass at once."""

    def __init__(self, patch: pytest.MonkeyPatch, most: int) -> None:
        self.passed: list[int] = []
        real = Step.augment

        def augment(step: Step, images: Tensor, *rest: Tensor) -> Tensor:
            if len(images) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            self.passed.append(len(images))
            return real(step, images, *rest)

        patch.setattr(Step, "augment", augment)


@pytest.mark.parametrize(
    ("most", "last"), [(16, "1 group side by side"), (5, "4 images of a group at a time"), (1, "1 image of a group at a time")]
)
def test_where_memory_runs_out_the_run_goes_on_and_ends_the_same(most: int, last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = run(task_of())
    short, said = Short(monkeypatch, most), []
    found, step = run(task_of(), say=said.append)
    assert (found - expected).abs().max() < 1e-9
    assert max(short.passed) <= most and str(step.split) == last
    assert said[0]["message"] == "out of memory with 3 groups side by side: going on with 2 groups side by side"
    assert said[-1]["message"].endswith(last)


def test_a_unit_of_work_says_that_memory_ran_out_and_keeps_its_checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    task, events = task_of(), []
    task.teacher.model.float()
    expected = recover_pack(task, silent).images
    Short(monkeypatch, 16)
    unit = recover_pack(replace(task, job=replace(task.job, work=tmp_path)), events.append)
    assert [event["message"] for event in events if "message" in event][-1].endswith("1 group side by side")
    assert (unit.images.int() - expected.int()).abs().max() <= 1


def test_without_memory_for_one_image_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    Short(monkeypatch, 0)
    with pytest.raises(DeltError, match="no memory for a single image"):
        run(task_of(), steps=1)


def test_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Step, "augment", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(task_of(), steps=1)


@pytest.mark.parametrize("changes", [{}, {"clock": "own"}, {"adam_steps": "shared"}, {"stages": 3}])
def test_adams_factors_are_those_of_each_iteration(changes: dict[str, Any]) -> None:
    task = task_of(**changes)
    step, config, schedule = Step(task, torch.device("cpu")), task.config, task.schedule
    for t in range(ITERATIONS):
        inputs = step.inputs(t)
        begun = max(start for start in step.stages if start <= t)
        for row in range(step.active(t)):
            k = schedule.sub_batch_of[row // 3]
            joined = schedule.joins[k]
            count = t + 1 - max(begun, joined if config.adam_steps == "sub_batch" else 0)
            clock = (t - joined, ITERATIONS - joined) if config.clock == "own" else (t, ITERATIONS)
            rate = learning_rate(*clock, config.lr) / (1 - config.beta1**count)
            for value, wanted in ((inputs.rate, rate), (inputs.widen, (1 - config.beta2**count) ** -0.5)):
                assert value.expand(step.active(t), 1, 1, 1)[row].item() == pytest.approx(wanted, rel=1e-6)


def test_inputs_are_prepared_once_for_iterations_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[tuple[int, int]] = []
    real = Step._prepared

    def watched(step: Step, t: int) -> module.Span:
        span = real(step, t)
        prepared.append((span.start, span.stop))
        return span

    monkeypatch.setattr(Step, "_prepared", watched)
    run(task_of())
    assert prepared == [(0, 4), (4, 8), (8, 12)]  # the rounds
    prepared.clear()
    monkeypatch.setattr(module, "SPAN_BYTES", 3 * 3 * 8 * 64)  # three iterations of three groups of 8 px
    run(task_of())
    assert prepared == [(0, 3), (3, 4), (4, 7), (7, 8), (8, 11), (11, 12)]


class Recording(Replay):
    """Stands for a CUDA graph: what a body reads and writes must lie where it lay when it was recorded."""

    def __init__(self, step: Step) -> None:
        super().__init__(False)
        self.on, self.step, self.places, self.keys = True, step, {}, []

    def __call__(self, key: Any, body: Any) -> Any:
        assert self.step.still is not None
        tensors = [*self.step.still.tensors(), self.step.labels, *(getattr(self.state, name) for name in ("images", "first", "second"))]
        places = [tensor.data_ptr() for tensor in tensors]
        if key != self.key:
            self.key = key
            self.keys.append(key)
            self.places = places
        assert places == self.places
        return body()


@pytest.mark.parametrize("name", ["delt", "own clock", "fadrm"])
def test_a_recording_reads_and_writes_the_same_tensors_throughout_a_round(name: str) -> None:
    task = task_of(**CASES[name])
    expected, _ = run(task)
    step = Step(task, torch.device("cpu"))
    step.start = step.start.double()
    state = step.begin()
    step.replay = replay = Recording(step)
    replay.state = state
    with step:
        for state.t in range(ITERATIONS):
            step.enter_stage(state)
            step(state)
    assert torch.equal(state.images, expected)
    assert len(replay.keys) == 3  # one per round


@pytest.mark.parametrize(("precision", "arch"), [("fp32", "resnet18"), ("bf16", "convnet3")])
def test_a_compiled_step_is_the_plain_one(precision: str, arch: str) -> None:
    """With one program for all rounds."""
    found = []
    for compile_ in ("off", "on"):
        task = replace(task_of(runtime={"precision": precision, "compile": compile_}), teachers=(teacher_of(arch),))
        task.teacher.model.float()
        step = Step(task, torch.device("cpu"))
        state, gradients = step.begin(), []
        with step:
            for t in (0, 4, 8):
                gradients.append(step.gradient(state, step.inputs(t), t, step.active(t))[0].clone())
        found.append(torch.cat(gradients))
    torch.compiler.reset()
    off = (found[0] - found[1]).norm() / found[0].norm()
    assert off < (5e-3 if precision == "fp32" else 0.3)


@pytest.mark.parametrize(("precision", "error", "cosine"), [("fp32", 5e-3, 0.99999), ("bf16", 0.5, 0.9)])
def test_gradients_are_near_those_of_double_precision(precision: str, error: float, cosine: float) -> None:
    def gradient(double: bool, **runtime: Any) -> Tensor:
        task = task_of(runtime=runtime)
        step = Step(task, torch.device("cpu"))
        if double:
            step.start = step.start.double()
        else:
            task.teacher.model.float()
            step = Step(task, torch.device("cpu"))
        with step:
            return step.gradient(step.begin(), step.inputs(8), 8, step.active(8))[0].double()

    exact, found = gradient(True), gradient(False, precision=precision)
    assert (found - exact).norm() / exact.norm() < error
    assert torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), 0) > cosine


# ------------------------------------------------------------------------------------------ values that are not finite


def spoil(monkeypatch: pytest.MonkeyPatch, at: int, term: str, group: int, value: float) -> None:
    """Let one value of an iteration be no number, in one group of the pack."""
    real = Step.gradient

    def gradient(step: Step, state: Any, inputs: Any, t: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        parts = dict(zip(("the gradient", "the cross-entropy", "the statistics term"), real(step, state, inputs, t, count), strict=True))
        if t == at:
            parts[term].view(len(parts[term]), -1)[group, 0] = value
        return parts["the gradient"], parts["the cross-entropy"], parts["the statistics term"]

    monkeypatch.setattr(Step, "gradient", gradient)


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("term", Finite.TERMS)
def test_a_value_that_is_not_finite_moves_nothing_and_is_named(
    term: str, value: float, deferred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU at once; where the device is not waited for, nothing moves from there on, and the next look tells which it was."""
    at, group = 9, 1
    before, _ = run(task_of(), steps=at)
    spoil(monkeypatch, at, term, group, value)
    step = Step(task_of(), torch.device("cpu"))
    step.start, step.watch = step.start.double(), Finite(3, torch.device("cpu"), deferred)
    state, said = step.begin(), f"{term} of group {step.task.groups[group].key} is not finite at iteration {at}; nothing was stepped"
    with step, pytest.raises(DeltError, match=said):
        for state.t in range(ITERATIONS):
            step(state)
            if state.t == 4:
                step.settle(state)  # all is well so far
        step.settle(state)
    assert state.t == (ITERATIONS - 1 if deferred else at) and torch.equal(state.images.detach(), before.detach())


def test_a_good_run_is_the_same_bits_whether_it_is_waited_for_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = run(task_of())
    monkeypatch.setattr(module, "Finite", lambda groups, device: Finite(groups, device, deferred=True))
    found, step = run(task_of())
    assert step.watch.deferred and torch.equal(found.detach(), expected.detach())
    step.settle(step.begin())
    assert not step.watch.iterations


def test_a_sum_that_grows_too_large_is_refused_too() -> None:
    large, inputs = torch.full((2, 1, 1, 1), 3e38), Inputs(*[torch.ones(1, 1, 1, 1)] * 5)
    with pytest.raises(NotFinite, match="the gradient of group 0 at iteration 0"):
        Finite(1, torch.device("cpu"))(large, torch.zeros(2), torch.zeros(1), inputs)

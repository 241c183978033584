"""How fast is synthesis on this machine? Measured beside a plain loop in the published style, in one process, in turns.

`delt bench` times real steps of recover at every stage of the published schedule (IPC 50, eight sub-batches) for images of
32, 64 and 224 pixels, with a ResNet-18 of random weights: the time does not depend on what it knows. What a whole
synthesis takes is arithmetic over these rounds, and called a prediction.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from delt.artifacts.soft_labels import SoftLabels
from delt.artifacts.teacher import Teacher, TeacherCard
from delt.config import RecoverConfig, RuntimeConfig
from delt.engine.memory import fitted
from delt.engine.pack import PackTask
from delt.engine.step import Step
from delt.errors import ConfigError
from delt.grouping import make_groups
from delt.job import Job
from delt.models import zoo
from delt.models.statistics import FrozenNorm
from delt.recipes import recipe_of
from delt.runtime import (
    HALVES,
    Replay,
    device_of,
    for_training,
    in_training,
    machine,
    peak_memory,
    reset_peak,
    resolve,
    settings,
    synchronise,
    trainable,
)
from delt.schedule import plan
from delt.stages.evaluate import asked, soft_loss
from delt.training import Step as TrainingStep
from delt.training import adamw

CLASSES = {32: 10, 64: 200, 224: 1000}  # of the data sets that have these sizes: CIFAR-10, Tiny-ImageNet, ImageNet-1K
IPC, SUB_BATCHES, ITERATIONS, GROUP = 50, 8, 4000, 100
VARIANTS = {"cpu": ("fp32", "fp32+compile", "bf16", "bf16+compile"), "cuda": ("fp16", "fp16+compile", "tf32")}
SAME_GROUP = 50  # images of the comparison on a CPU, where a hundred take long
ALLOCATIONS = ("empty", "_local_scalar_dense")  # operators that start no work on the device


class Launches(TorchDispatchMode):
    """Counts the operators that start work on the device: all but views, allocations and reads of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and not any(name in func.name() for name in ALLOCATIONS)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Load:
    """What is measured."""

    size: int  # pixels per side
    arch: str = "resnet18"
    width: int | None = None
    ipc: int = IPC
    sub_batches: int = SUB_BATCHES
    iterations: int = ITERATIONS
    group: int = GROUP
    seconds: float = 2.0  # of every measurement, at least

    @property
    def classes(self) -> int:
        return CLASSES.get(self.size, 10)

    @functools.cached_property
    def teacher(self) -> Teacher:
        """A network of random weights with the statistics that random images give it, as a trained one has those of real images."""
        model = zoo.build(self.arch, self.classes, 3, self.size, self.width, generator_seed=0)
        draws = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for _ in range(2):
                model(torch.randn(8, 3, self.size, self.size, generator=draws))
        names, grey = tuple(map(str, range(self.classes))), (0.5,) * 3
        return Teacher(model.eval(), TeacherCard(self.arch, self.width, names, 3, self.size, grey, (0.25,) * 3, True, "", 0.0, "", "", {}))

    @functools.cached_property
    def flop(self) -> int:
        """Floating-point operations of one image: forward, and as many back to its pixels."""
        teacher = self.teacher  # made before the counter listens
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            teacher.logits(torch.zeros(1, 3, self.size, self.size, device=self.device))
        return 2 * int(counter.get_total_flops())

    @functools.cached_property
    def elements(self) -> int:
        """Numbers that go into the BatchNorm layers for one image."""
        found: list[int] = []
        norms = [layer for layer in self.teacher.model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
        handles = [layer.register_forward_pre_hook(lambda _, given: found.append(given[0].numel())) for layer in norms]
        self.teacher.logits(torch.zeros(1, 3, self.size, self.size, device=self.device))
        for handle in handles:
            handle.remove()
        return sum(found)

    def traffic(self, runtime: RuntimeConfig) -> int:
        """Bytes that an iteration has to move per image if everything between two convolutions were one pass: five per number."""
        return 5 * self.elements * (2 if runtime.precision in HALVES else 4)

    @property
    def device(self) -> torch.device:
        return next(self.teacher.model.parameters()).device


def reference() -> ModuleType:
    """The plain loop: benchmarks/reference_loop.py of a checkout, or its copy inside an installed package."""
    here = Path(__file__).parent
    for path in (here.parent / "benchmarks" / "reference_loop.py", here / "benchmarks" / "reference_loop.py"):
        if path.is_file():
            spec = importlib.util.spec_from_file_location("reference_loop", path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise ConfigError("benchmarks/reference_loop.py is not there: install delt whole, or run it in a checkout")


def timed(work: Callable[[], object], device: torch.device, seconds: float, least: int = 3) -> float:
    """Median seconds of one call, over at least `seconds` and `least` measurements of a few calls each."""
    work()
    synchronise(device)
    begun = time.perf_counter()
    work()
    synchronise(device)
    calls = max(1, int(0.05 / (time.perf_counter() - begun)))  # what is measured at once takes 50 ms or more
    found: list[float] = []
    while len(found) < least or sum(found) * calls < seconds:
        begun = time.perf_counter()
        for _ in range(calls):
            work()
        synchronise(device)
        found.append((time.perf_counter() - begun) / calls)
    return statistics.median(found)


def ceilings(runtime: RuntimeConfig, seconds: float = 1.0, smoke: bool = False) -> dict[str, float]:
    """What this device can do: a large matrix product in the arithmetic of `runtime`, and a large copy (bytes read plus written).

    Args:
        smoke: small ones, which say little of the device.
    """
    device = device_of(runtime)
    dtype = HALVES.get(runtime.precision, torch.float32)
    side, numbers = (128, 2**20) if smoke else (8192, 2**30) if device.type == "cuda" else (1024, 2**26)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    with settings(runtime):
        product = timed(lambda: left @ right, device, seconds)
        copy = timed(lambda: target.copy_(source), device, seconds)
    return {"matmul_tflops": 2 * side**3 / product / 1e12, "copy_tb_per_s": 2 * source.nbytes / copy / 1e12}


def pack_of(load: Load, runtime: RuntimeConfig, groups: int | None = None) -> tuple[PackTask, int]:
    """A pack as a run would have it, and how many of them a run has."""
    schedule = plan(load.iterations, load.ipc, None, load.sub_batches)
    whole = make_groups(load.classes, schedule, "class", load.group)
    packing = groups or fitted(runtime, load.teacher, whole).packing or 1
    job = Job(0, replace(runtime, packing=packing))
    config = RecoverConfig(iterations=load.iterations, record_classes=("none",), flip=True)
    task = PackTask((load.teacher,), whole[:packing], None, config, frozenset(), (), load.iterations, job)
    return task, -(-len(whole) // packing)


def rounds(load: Load, runtime: RuntimeConfig) -> dict[str, Any]:
    """Seconds per iteration at every stage of the schedule, and what follows from them."""
    device = device_of(runtime)
    task, packs = pack_of(load, runtime)
    step = Step(task, device)
    reset_peak(runtime)
    rows = []
    with settings(runtime), step:
        state = step.begin()
        begun = time.perf_counter()
        step(state)
        synchronise(device)
        first = time.perf_counter() - begun
        for part in task.schedule.rounds:

            def once(part: Any = part) -> None:
                state.t = part.start + (state.t + 1 - part.start) % (part.stop - part.start)
                step(state)

            for _ in range(4):  # until the recording is there
                once()
            seconds = timed(once, device, load.seconds)
            images = step.active(part.start)
            rows.append({"iterations": part.stop - part.start, "images": images, "seconds": seconds, "per_s": images / seconds})
    whole = sum(row["iterations"] * row["seconds"] for row in rows)
    work = sum(row["iterations"] * row["images"] for row in rows)
    return {
        "packing": len(task.groups),
        "first_step_s": first,
        "rounds": rows,
        "per_s": work / whole,
        "full_per_s": rows[-1]["per_s"],
        "tflops": work / whole * load.flop / 1e12,
        "tb_per_s": work / whole * load.traffic(runtime) / 1e12,
        "saved": 1 - whole / (load.iterations * rows[-1]["seconds"]),
        "saved_ideal": task.schedule.saved,
        "peak_memory": peak_memory(runtime),
        "predicted_hours": whole * packs / 3600,
        "predicted_for": f"{load.classes} classes, IPC {load.ipc}, MI {load.iterations}",
    }


def count_launches(load: Load, runtime: RuntimeConfig) -> int:
    """Operator launches of one iteration, a share of what is prepared for many at once included."""
    plain = replace(runtime, compile="off", graphs="off")
    task, _ = pack_of(load, plain, groups=1)
    step = Step(task, device_of(plain))
    with settings(plain), step:
        state = step.begin()
        step(state)
        state.t = 1
        with Launches() as iteration:
            step(state)
        step.span = None
        with Launches() as prepared:
            span = step.inputs(1)
        assert step.span is not None and span is not None
        norms = sum(isinstance(layer, FrozenNorm) for layer in step.networks[0].modules())
        kernels = 2 * norms + 2 * step.quick + 2 if norms else 0  # Triton's, no operators of torch: layers, crops, statistics, Adam
        return iteration.count + kernels + -(-prepared.count // (step.span.stop - step.span.start))


class Rival:
    """The plain loop on one group with all its images active."""

    def __init__(self, load: Load, runtime: RuntimeConfig, images: int) -> None:
        device = device_of(runtime)
        # what the published programs run with: torch's defaults, and TF32 in convolutions and products on a GPU
        self.runtime = replace(runtime, precision="tf32" if device.type == "cuda" else "fp32", compile="off", graphs="off")
        model = zoo.build(load.arch, load.classes, 3, load.size, load.width, generator_seed=0).eval().requires_grad_(False).to(device)
        start = torch.randn(images, 3, load.size, load.size, generator=torch.Generator().manual_seed(1)).to(device)
        labels = (torch.arange(images) * 2 // images).to(device)
        card = load.teacher.card
        self.loop = reference().ReferenceLoop(model, start, labels, torch.zeros(images), load.iterations, card.mean, card.std)
        self.images, self.t, self.device = images, 0, device

    def __call__(self) -> None:
        cudnn = torch.backends.cudnn
        before, cudnn.deterministic = cudnn.deterministic, False  # as the published programs leave it
        self.loop.step(self.t)
        cudnn.deterministic = before
        self.t = (self.t + 1) % self.loop.iterations

    def launches(self) -> int:
        """Operator launches of one iteration."""
        with settings(self.runtime), Launches() as counted:
            self()
        return counted.count


def against_reference(load: Load, runtimes: dict[str, RuntimeConfig], turns: int = 5) -> dict[str, Any]:
    """Images per second of each variant over those of the plain loop: measured in turns, all images active."""
    runtime = next(iter(runtimes.values()))
    device = device_of(runtime)
    whole = replace(load, sub_batches=1)
    images = load.group if device.type == "cuda" else min(load.group, SAME_GROUP)
    rival = Rival(load, runtime, images)
    racers: dict[str, tuple[RuntimeConfig, Callable[[], object], int]] = {"reference": (rival.runtime, rival, images)}
    steps = []
    for name, own in runtimes.items():
        task, _ = pack_of(replace(whole, group=images), own, groups=1 if device.type == "cpu" else None)
        step = Step(task, device)
        state = step.begin()
        steps.append(step)

        def once(step: Step = step, state: Any = state) -> None:
            state.t = (state.t + 1) % load.iterations
            step(state)

        racers[name] = own, once, len(task.members)
    found: dict[str, list[float]] = {name: [] for name in racers}
    for step in steps:
        step.__enter__()
    for turn in range(turns + 1):
        for name, (own, work, count) in racers.items():
            with settings(own):
                for _ in range(4 if turn == 0 else 0):
                    work()
                found[name].append(count / timed(work, device, load.seconds / turns, 1))
    for step in steps:
        step.__exit__()
    speed = {name: statistics.median(values[1:]) for name, values in found.items()}  # the first turn warms up
    base = speed.pop("reference")
    return {
        "images": images,
        "reference_per_s": base,
        "reference_launches": rival.launches(),
        "ratio": {name: value / base for name, value in speed.items()},
        "per_s": speed,
    }


def training(load: Load, runtime: RuntimeConfig) -> dict[str, Any]:
    """Images per second of a teacher's training, and of a student's with labels that the teacher gives online."""
    device = device_of(runtime)
    cpu = device.type == "cpu"
    recipe = recipe_of("common")
    soft = asked(SoftLabels(load.teacher, recipe.name), recipe, runtime, device)
    found = {}
    for name, batch in (("teacher", 32 if cpu else 512), ("student", 32 if cpu else 100)):
        model = trainable(zoo.build(load.arch, load.classes, 3, load.size, load.width, generator_seed=1), device, load.size).train()
        images = torch.randn(batch, 3, load.size, load.size, device=device)
        labels = torch.randint(load.classes, (batch,), device=device)

        def loss(images: Tensor, labels: Tensor, model: Any = model, student: bool = name == "student") -> Tensor:
            with in_training(runtime):
                logits = model(images).float()
            if not student:
                return F.cross_entropy(logits, labels)
            return soft_loss(logits, soft.online(images, recipe).float(), recipe.temperature)

        step = TrainingStep(model, adamw(model.parameters(), 1e-3, device), loss, Replay(runtime.graphs == "on"))
        with settings(for_training(runtime)):
            for _ in range(4):
                step((images, labels))
            found[name] = batch / timed(lambda step=step, given=(images, labels): step(given), device, load.seconds)  # type: ignore[misc]
    return {"precision": runtime.train_precision, **{f"{name}_per_s": value for name, value in found.items()}}


def bench(
    device: str = "auto", sizes: Sequence[int] = (32, 64, 224), variants: Sequence[str] = (), smoke: bool = False, seconds: float = 1.0
) -> dict[str, Any]:
    """Measure this machine; prints as it goes and returns everything as one JSON-ready record.

    Args:
        sizes: of the images in pixels.
        variants: arithmetic of the teacher, with or without +compile; see VARIANTS for the default.
        smoke: a tiny network and tiny images, to see that everything runs.
        seconds: of each measurement, at least.

    Raises:
        ConfigError: `seconds` is no finite number above 0, or a precision is not of this device.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"seconds is {seconds}; allowed is a finite number above 0")
    cpu = device_of(RuntimeConfig(device=device)).type == "cpu"
    plain = RuntimeConfig(device=device, threads=1 if cpu else None)
    chosen = {name: _variant(name, plain) for name in variants or VARIANTS["cpu" if cpu else "cuda"]}
    record: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(resolve(plain)), "loads": []}
    for size in (8, 16) if smoke else sizes:
        load = Load(size, "resnet18", 4, 4, 2, 20, 8, 0.01) if smoke else Load(size, seconds=seconds)
        entry: dict[str, Any] = {"load": asdict(load), "gflop": load.flop / 1e9, "variants": {}}
        entry["launches"] = count_launches(load, next(iter(chosen.values())))
        for name, runtime in chosen.items():
            entry["variants"][name] = measured = rounds(load, runtime)
            measured["ceilings"] = ceilings(runtime, load.seconds, smoke)
            print(line(size, name, measured), flush=True)
            release()
        entry["against_reference"] = against_reference(load, chosen)
        print(against(size, entry["against_reference"], entry["launches"]), flush=True)
        entry["training"] = trained = training(load, resolve(plain))
        speeds = ", ".join(f"{name} {trained[name + '_per_s']:,.0f}" for name in ("teacher", "student"))
        print(f"{size:>4} px  training       {speeds} images/s in {trained['precision']}", flush=True)
        record["loads"].append(entry)
        release()
    return record


def _variant(name: str, plain: RuntimeConfig) -> RuntimeConfig:
    precision, _, more = name.partition("+")
    if more not in ("", "compile"):
        raise ConfigError(f"variant is {name!r}; allowed are fp32, tf32, fp16 and bf16, alone or with +compile")
    return resolve(replace(plain, precision=precision, compile="on" if more else "off"))


def release() -> None:
    """Give back what the last measurement held."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def line(size: int, name: str, found: dict[str, Any]) -> str:
    """One variant in a line."""
    share, moved = 100 * found["tflops"] / found["ceilings"]["matmul_tflops"], 100 * found["tb_per_s"] / found["ceilings"]["copy_tb_per_s"]
    return (
        f"{size:>4} px  {name:<14} {found['per_s']:>9,.0f} image-iterations/s over the schedule  {found['full_per_s']:>9,.0f} at its end  "
        f"{found['tflops']:>7.2f} TFLOP/s ({share:.0f} % of a matrix product, {moved:.0f} % of a copy)  "
        f"saved {100 * found['saved']:.1f} % of {100 * found['saved_ideal']:.2f}  {found['peak_memory'] / 2**30:.1f} GiB  "
        f"packing {found['packing']}  first step {found['first_step_s']:.0f} s  "
        f"predicted {found['predicted_hours']:.2f} h for {found['predicted_for']}"
    )


def against(size: int, found: dict[str, Any], launches: int) -> str:
    """The comparison with the plain loop in a line."""
    ratios = "  ".join(f"{name} {ratio:.2f}x" for name, ratio in found["ratio"].items())
    return (
        f"{size:>4} px  plain loop     {found['reference_per_s']:>9,.0f} image-iterations/s, {found['reference_launches']} launches; "
        f"delt {launches} launches, {ratios}"
    )

"""The machine: device, precision, random streams, memory, CUDA graphs.

Randomness is a function of what it is for, never of order or worker: `stream(seed, "recover", group, iteration)` is
the same generator in any process, so a run can be stopped, resumed, sharded or reordered without changing a bit.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import os
import resource
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from delt.config import RuntimeConfig
from delt.errors import ConfigError
from delt.ranks import local
from delt.signals import NOTHING as NOTHING
from delt.signals import Emit as Emit

T = TypeVar("T")
PROCESS = Path("/proc/self")  # where Linux says what this process takes


def silent(event: dict[str, Any]) -> None:
    """Drop a progress event."""


def seed_of(*key: object) -> int:
    """A 63-bit seed that depends on every part of the key and on nothing else."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def stream(*key: object) -> torch.Generator:
    """A CPU random generator for this key, e.g. `stream(seed, "recover", group, iteration, "crop")`."""
    return torch.Generator().manual_seed(seed_of(*key))


Streams = torch.Generator | Sequence[torch.Generator]  # several: each draws for as many rows of a batch, which lie end to end


def drawn(draw: Callable[[int, torch.Generator], Tensor], rows: int, streams: Streams) -> Tensor:
    """What `draw(rows, stream)` gives, rows first; from several streams end to end, each for its equal share of the rows."""
    if isinstance(streams, torch.Generator):
        return draw(rows, streams)
    return torch.cat([draw(rows // len(streams), one) for one in streams])


def device_of(runtime: RuntimeConfig) -> torch.device:
    """The torch device that a configuration names.

    Raises:
        ConfigError: the name is not a device, or no such device is here.
    """
    name = runtime.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device is {name!r}; allowed are auto, cpu, cuda and cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; allowed are auto, cpu, cuda and cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device is {name!r} but {torch.cuda.device_count()} CUDA devices are here; use --device cpu")
    return device


def resolve(runtime: RuntimeConfig) -> RuntimeConfig:
    """Replace every automatic choice by the value used on this machine, so that it can be stored and repeated.

    What depends on the work, too, is left to `delt.engine.memory.fitted`: packing on a GPU.
    """
    device = device_of(runtime)
    cpu = device.type == "cpu"
    precision = ("fp32" if cpu else "fp16") if runtime.precision == "auto" else runtime.precision
    training = ("fp32" if cpu else "bf16") if runtime.train_precision == "auto" else runtime.train_precision
    if cpu and training == "tf32":
        raise ConfigError("train_precision is tf32 on a CPU; allowed are fp32 and bf16")
    compiled = cpu and precision == "fp32" and runtime.compile == "on"  # which is faster with the other layout
    layout = "contiguous" if compiled else "channels_last"
    if cpu and precision in ("fp16", "tf32"):
        raise ConfigError(f"precision is {precision} on a CPU; allowed are fp32 and bf16")
    return dataclasses.replace(
        runtime,
        device=str(device),
        workers=runtime.workers or (cores() if cpu else 1),
        threads=runtime.threads or (1 if cpu else min(8, cores())),
        precision=precision,
        train_precision=training,
        memory_format=layout if runtime.memory_format == "auto" else runtime.memory_format,
        packing=runtime.packing or (1 if cpu else None),
        compile="off" if runtime.compile == "auto" else runtime.compile,
        graphs="off" if cpu else "on" if runtime.graphs == "auto" else runtime.graphs,
    )


def cores() -> int:
    """CPU cores that this process may use, as it is pinned and as its container's quota says: its share, where torchrun started several."""
    from joblib import cpu_count  # here, since it takes a quarter of a second

    return max(1, cpu_count() // local()[1])


def gpus() -> list[str]:
    """The GPUs that this process may use, each as a word for another process's CUDA_VISIBLE_DEVICES."""
    count = torch.cuda.device_count()
    allowed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return allowed[:count] if allowed else [str(number) for number in range(count)]


@contextlib.contextmanager
def settings(runtime: RuntimeConfig) -> Iterator[None]:
    """Apply threads, precision and determinism, and put the old values back afterwards.

    They belong to the process: threads of one process that want the same share them, and the last one puts the old values
    back; a thread that wants others waits until it is alone, or alone with the one that it works for.
    """
    wanted, me = (runtime.threads, _rounds(runtime)), _own.works_for or threading.get_ident()
    with _turn:
        _turn.wait_for(lambda: all(who == me or want == wanted for who, want, _ in _held))
        _held.append((me, wanted, _values()))
        apply(runtime)
    device = device_of(runtime)
    current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()  # recordings and kernels go there
    try:
        with current:
            yield
    finally:
        with _turn:
            place = max(k for k, (who, _, _) in enumerate(_held) if who == me)
            _, _, before = _held.pop(place)
            if place < len(_held):  # others came later and hold on: they will put back what this one found
                who, want, _ = _held[place]
                _held[place] = (who, want, before)
            else:
                _restore(before)
            _turn.notify_all()


@contextlib.contextmanager
def beside(device: torch.device, thread: int) -> Iterator[None]:
    """In the block this thread works for another one, which waits for it, and gives a GPU its work in a queue of its own.

    What was given to the GPU before has to be done, and at the end all of this is.
    """
    _own.works_for = thread
    try:
        if device.type == "cuda":
            stream = _own_stream(device)
            with torch.cuda.stream(stream):
                yield
            stream.synchronize()
        else:
            yield
    finally:
        _own.works_for = None


class _Own(threading.local):
    """What each thread has for itself."""

    def __init__(self) -> None:
        self.works_for: int | None = None  # another thread, which waits for it
        self.streams: dict[int, torch.cuda.Stream] = {}  # by the number of the GPU


def _own_stream(device: torch.device) -> torch.cuda.Stream:
    """This thread's stream: always the same, since libraries keep memory for each that they have seen."""
    number = torch.cuda.current_device() if device.index is None else device.index
    if number not in _own.streams:
        _own.streams[number] = torch.cuda.Stream(device)
    return _own.streams[number]


_Values = tuple[int, str, bool, bool]
_own = _Own()
_turn = threading.Condition()
_held: list[tuple[int, tuple[int | None, bool], _Values]] = []  # thread, what it wants, what it found; in the order of coming


def _values() -> _Values:
    cudnn = torch.backends.cudnn
    return torch.get_num_threads(), torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic


def _restore(values: _Values) -> None:
    threads, precision, allowed, deterministic = values
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = allowed, deterministic


def _rounds(runtime: RuntimeConfig) -> bool:
    """Whether 32-bit products may be rounded to TF32: where that was asked for, and where networks on a GPU are as coarse anyway."""
    return runtime.precision == "tf32" or (runtime.precision in HALVES and device_of(runtime).type == "cuda")


def for_training(runtime: RuntimeConfig) -> RuntimeConfig:
    """The same machine, in the arithmetic of training."""
    return dataclasses.replace(runtime, precision=runtime.train_precision)


def apply(runtime: RuntimeConfig) -> None:
    """Set threads, precision and determinism of this process for good; see `settings`."""
    tf32 = _rounds(runtime)
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32  # torch's default lets convolutions round to TF32 whatever the line above says
    torch.backends.cudnn.deterministic = True  # some of cuDNN's gradients otherwise add up in a random order


drawing = threading.RLock()  # held by a thread that seeds the global random state, and while it draws what nobody else may change


@contextlib.contextmanager
def seeded(device: torch.device, *key: object) -> Iterator[Callable[..., None]]:
    """Draw from this key, in the block, what takes no generator (dropout); the global random state is left as it was.

    What it yields seeds again, from the key and more: `again(step)`.
    """
    cuda = device.type == "cuda"

    def again(*more: object) -> None:
        seed = seed_of(*key, *more)
        with drawing:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset every GPU
            if cuda:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)

    with kept_random_state(device):
        again()
        yield again


@contextlib.contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """The global random state of the CPU and of this device is after the block what it was before."""
    cuda = device.type == "cuda"
    with drawing:
        before, there = torch.get_rng_state(), torch.cuda.get_rng_state(device) if cuda else None
    try:
        yield
    finally:
        with drawing:
            torch.set_rng_state(before)
            if there is not None:
                torch.cuda.set_rng_state(there, device)


NO_MEMORY = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")  # torch, the driver, Triton, cuBLAS
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def lowered(model: nn.Module, runtime: RuntimeConfig) -> nn.Module:
    """A frozen network in the configured arithmetic and layout: the same one, or a copy with 16-bit weights.

    BatchNorm layers stay in 32 bits. A cast once is a launch per layer and step less than autocast, which repeats it for
    weights that take no gradient.
    """
    last = runtime.memory_format == "channels_last"
    if runtime.precision not in HALVES and not last:
        return model
    model = copy.deepcopy(model)
    if runtime.precision in HALVES:
        for module in model.modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(HALVES[runtime.precision])
    return model.to(memory_format=torch.channels_last) if last else model


def in_training(runtime: RuntimeConfig) -> contextlib.AbstractContextManager[Any]:
    """Context in which networks that are trained compute in 16 bits, where the configuration says so."""
    if runtime.train_precision not in HALVES:
        return contextlib.nullcontext()
    return torch.autocast(device_of(runtime).type, dtype=HALVES[runtime.train_precision])


def training_layout(model: nn.Module, device: torch.device, size: int) -> torch.memory_format:
    """The layout in which a network for images of `size` pixels per side is trained fastest.

    On a CPU the other one is for large images, since torch's BatchNorm adds up channels-last numbers one by one there, so that
    variances are 0.02 % too small for 50 images of 32 pixels, and 0.3 % for 64 of 112; and for very narrow ResNets, since the gradient
    of a 1 x 1 convolution with a stride and fewer channels than an AVX2 register takes is written past its end (torch 2.15).
    """
    small = size <= 64 and not any(isinstance(part, nn.Conv2d) and _overruns(part) for part in model.modules())
    return torch.channels_last if device.type == "cuda" or small else torch.contiguous_format


def _overruns(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.stride != (1, 1) and conv.in_channels < 8 * conv.groups


def trainable(model: nn.Module, device: torch.device, size: int) -> nn.Module:
    """A network for images of `size` pixels per side on its device, in the `training_layout`."""
    return model.to(device).to(memory_format=training_layout(model, device, size))


def given_to(images: Tensor, runtime: RuntimeConfig) -> Tensor:
    """Images [N,C,H,W] in the arithmetic and layout of a `lowered` network."""
    wanted = HALVES.get(runtime.precision, images.dtype)
    return laid_out(images, runtime) if images.dtype == wanted else images.to(wanted, memory_format=_layout(runtime))  # one pass


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy from the CPU to a device without waiting for what the device is doing."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, a library on it, or the CPU's allocator had no memory left, or what failed was the answer to that: the end
    of a recording, for one, fails with words of its own.
    """
    named = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    before = error.__context__
    return isinstance(error, torch.OutOfMemoryError) or named or (before is not None and is_out_of_memory(before))


def free_memory(device: torch.device) -> int:
    """Bytes that a GPU has left for this process, what torch keeps in reserve included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


_recording = threading.Lock()  # a process records one thing at a time


class Replay:
    """Repeats work on tensors that stay where they are: as a CUDA graph, whose launches cost nothing, or plainly.

    `replay(key, body)` runs `body()` once. The first WARM calls of a key run it as it is (libraries set themselves up), the
    next records it, and from then on the recording is played: `body` must read and write the same tensors each time, take
    no decisions, and return tensors, which later calls overwrite. One recording is kept at a time.
    """

    WARM = 2

    def __init__(self, on: bool) -> None:
        self.on = on
        self.key: Hashable = None
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.out: Any = None

    def __call__(self, key: Hashable, body: Callable[[], T]) -> T:
        if not self.on:
            return body()
        if key != self.key:
            self.forget()
            self.key = key
        self.calls += 1
        if self.calls <= self.WARM:
            return self._aside(body)
        if self.graph is None:
            with _recording:
                torch.cuda.empty_cache()  # what the plain calls used, which a recording cannot
                graph = torch.cuda.CUDAGraph()
                own = _own_stream(torch.device("cuda"))  # as the plain calls: torch's own is one for all threads and devices
                with torch.cuda.graph(graph, stream=own, capture_error_mode="thread_local"):  # other threads may go on
                    self.out = body()
                self.graph = graph
        self.graph.replay()
        return self.out

    def forget(self) -> None:
        """Drop the recording and its memory."""
        self.key, self.calls, self.graph, self.out = None, 0, None, None

    def _aside(self, body: Callable[[], T]) -> T:
        """Run on another stream than the main one, as a recording will."""
        main, side = torch.cuda.current_stream(), _own_stream(torch.device("cuda"))
        if main == side:
            return body()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            out = body()
        main.wait_stream(side)
        return out


def laid_out(images: Tensor, runtime: RuntimeConfig) -> Tensor:
    """Put an [N,C,H,W] tensor into the configured memory layout."""
    return images.contiguous(memory_format=_layout(runtime))


def _layout(runtime: RuntimeConfig) -> torch.memory_format:
    return torch.channels_last if runtime.memory_format == "channels_last" else torch.contiguous_format


def reset_peak(runtime: RuntimeConfig) -> None:
    """Let `peak_memory` count from here on, where the system can: on a GPU, and on Linux."""
    device = device_of(runtime)
    if device.type == "cuda":
        torch.cuda.init()  # a reset before the first use of the GPU would fail
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            (PROCESS / "clear_refs").write_text("5")  # proc(5): the peak becomes what is resident now


def peak_memory(runtime: RuntimeConfig) -> int:
    """Largest memory of this process in bytes since `reset_peak`.

    On a GPU, what the process had allocated there; on a CPU, its resident memory. Where the system cannot reset that
    (macOS, a container that forbids it), the largest of its whole life.
    """
    device = device_of(runtime)
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_resident()


def _peak_resident() -> int:
    """Of this process, in bytes; without /proc, of it or any one child that has ended, in their whole lives."""
    with contextlib.suppress(OSError, StopIteration):
        lines = (PROCESS / "status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def machine(runtime: RuntimeConfig) -> dict[str, Any]:
    """Facts that a result depends on: versions, device name, CPU capability."""
    import platform

    import numpy
    import torchvision

    device = device_of(runtime)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
    }


def _cpu_name() -> str:
    """The model of the CPU, on which the choice of kernels depends."""
    import platform

    with contextlib.suppress(OSError):
        for line in (PROCESS.parent / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()

"""The machine: random streams, device and precision choices, settings that are put back, worker processes."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from delt.config import RuntimeConfig
from delt.errors import ConfigError
from delt.models.zoo import build
from delt.runtime import (
    Emit,
    Replay,
    cores,
    device_of,
    given_to,
    gpus,
    is_out_of_memory,
    laid_out,
    lowered,
    machine,
    peak_memory,
    reset_peak,
    resolve,
    seed_of,
    seeded,
    send,
    settings,
    silent,
    stream,
    trainable,
    training_layout,
)

# ---------------------------------------------------------------- randomness


def test_seed_depends_on_every_part_of_the_key_and_its_order():
    parts: list[list[Any]] = [[0, 1, "0"], ["recover", "rank"], [0, 1, 12], [2, 21]]
    keys = [*itertools.product(*parts), (0,), (), (0, "recover"), ("recover", 0), (0, "recover", 1, 22), (0, ("recover", 1), 2)]
    assert len({seed_of(*key) for key in keys}) == len(set(keys)) == len(keys)


def test_seed_is_stable_between_processes_and_versions():
    assert seed_of(0, "recover", 3, 7) == 1485088752528497480
    assert torch.rand(2, generator=stream(0, "x")).tolist() == pytest.approx([0.76925468, 0.86562669], abs=1e-7)
    assert all(0 <= seed_of(number) < 2**63 for number in range(1000))


def test_streams_do_not_touch_the_global_state_or_each_other():
    before = torch.get_rng_state()
    first, second = stream(1, "a"), stream(1, "a")
    torch.rand(5, generator=stream(1, "b"))
    assert torch.equal(torch.rand(5, generator=first), torch.rand(5, generator=second))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_draws_from_its_key_and_puts_the_state_back():
    before, cpu = torch.get_rng_state(), torch.device("cpu")

    def draw(*key: object) -> torch.Tensor:
        with seeded(cpu, *key):
            return torch.rand(4)

    first = draw(3, "epoch", 1)
    torch.rand(7)
    torch.set_rng_state(before)
    assert torch.equal(draw(3, "epoch", 1), first)
    assert not torch.equal(draw(3, "epoch", 2), first)
    with pytest.raises(ValueError, match="inside"), seeded(cpu, 1):
        torch.rand(1)
        raise ValueError("inside")
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- choices


def test_resolve_on_the_cpu_leaves_nothing_automatic():
    found = resolve(RuntimeConfig(device="cpu"))
    assert (found.device, found.threads, found.precision, found.memory_format, found.packing) == ("cpu", 1, "fp32", "channels_last", 1)
    assert resolve(RuntimeConfig(device="cpu", compile="on")).memory_format == "contiguous"
    assert found.workers == cores() >= 1
    assert resolve(found) == found


def test_a_containers_quota_bounds_the_cores(monkeypatch: pytest.MonkeyPatch):
    """Sixty-four workers on the two cores that a container may use would take their memory and gain nothing."""
    monkeypatch.setattr("joblib.externals.loky.backend.context.os.cpu_count", lambda: 64)
    monkeypatch.setattr("joblib.externals.loky.backend.context._cpu_count_affinity", lambda count: count)
    monkeypatch.setattr("joblib.externals.loky.backend.context._cpu_count_cgroup", lambda count: 2)
    assert cores() == 2


def test_resolve_keeps_what_was_said():
    said = RuntimeConfig(
        device="cpu",
        workers=3,
        threads=2,
        precision="bf16",
        train_precision="bf16",
        memory_format="channels_last",
        packing=5,
        compile="on",
        graphs="off",
        checkpoint_seconds=1.0,
    )
    assert resolve(said) == said


@pytest.mark.parametrize("name", ["gpu", "cpux", "mps", "meta", "cuda:one", ""])
def test_a_name_that_is_no_device_is_refused(name: str):
    with pytest.raises(ConfigError, match=f"device is '{name}'; allowed are auto, cpu, cuda and cuda:N"):
        resolve(RuntimeConfig(device=name))


@pytest.mark.parametrize(("name", "here"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_device_that_is_not_here_is_refused(name: str, here: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    with pytest.raises(ConfigError, match=f"device is '{name}' but {here} CUDA devices are here; use --device cpu"):
        device_of(RuntimeConfig(device=name))


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_precisions_of_a_gpu_are_refused_on_a_cpu(precision: str):
    with pytest.raises(ConfigError, match=f"precision is {precision} on a CPU; allowed are fp32 and bf16"):
        resolve(RuntimeConfig(device="cpu", precision=precision))


# ---------------------------------------------------------------- settings


def in_force() -> tuple[int, str, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.get_num_threads(), torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic


def test_settings_hold_in_the_block_and_are_put_back():
    before = in_force()
    with settings(RuntimeConfig(threads=2, precision="tf32")):
        assert in_force() == (2, "high", True, True)
        with settings(RuntimeConfig(threads=1, precision="fp32")):
            assert in_force() == (1, "highest", False, True)
        assert in_force() == (2, "high", True, True)
    assert in_force() == before
    with pytest.raises(ValueError, match="inside"), settings(RuntimeConfig(threads=3)):
        raise ValueError("inside")
    assert in_force() == before


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_lowered_network_is_a_copy_with_batchnorm_in_single_precision(precision: str, dtype: torch.dtype, layout: str):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
    runtime, images = RuntimeConfig(device="cpu", precision=precision, memory_format=layout), torch.rand(2, 3, 4, 4)
    low = lowered(network, runtime)
    assert (low is network) == (precision == "fp32" and layout == "contiguous")
    assert low[0].weight.dtype == low[3].weight.dtype == dtype and low[1].weight.dtype == low[1].running_var.dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in network.parameters())
    given = given_to(images, runtime)
    assert given.dtype == dtype
    assert given.is_contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
    assert torch.allclose(low(given).float(), network(images), atol=0.02)


@pytest.mark.parametrize(
    ("arch", "width", "size", "last"),
    [("resnet18", 8, 32, True), ("resnet18", 4, 32, False), ("convnet3", 4, 32, True), ("resnet18", 8, 96, False)],
)
def test_networks_are_trained_in_the_layout_that_is_fast_and_right(arch: str, width: int, size: int, last: bool):
    """Narrow ResNets end the process in the other one, on a CPU with AVX2: their steps are in many tests."""
    network = trainable(build(arch, 3, 3, size, width), torch.device("cpu"), size)
    layout = torch.channels_last if last else torch.contiguous_format
    assert training_layout(network, torch.device("cpu"), size) == layout
    assert all(part.is_contiguous(memory_format=layout) for part in network.parameters() if part.dim() == 4)
    assert training_layout(network, torch.device("cuda"), size) == torch.channels_last


def test_what_is_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    for words in (
        "CUDA error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED when calling",
    ):
        assert is_out_of_memory(RuntimeError(words))
    with pytest.raises(RuntimeError, match="capture") as caught:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("the capture was not ended well")  # as leaving a recording does
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) and not is_out_of_memory(MemoryError())


def test_without_a_gpu_work_is_not_recorded_and_tensors_stay_where_they_are():
    replay, calls = Replay(False), []
    assert [replay("key", lambda: calls.append(1) or len(calls)) for _ in range(4)] == [1, 2, 3, 4]
    tensor = torch.ones(2)
    assert send(tensor, torch.device("cpu")) is tensor


@pytest.mark.parametrize(("name", "layout"), [("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)])
def test_laid_out_changes_the_order_in_memory_only(name: str, layout: torch.memory_format):
    images = torch.rand(2, 3, 4, 5)
    out = laid_out(images, RuntimeConfig(memory_format=name))
    assert out.is_contiguous(memory_format=layout) and torch.equal(out, images)


def test_facts_of_the_machine():
    facts = machine(RuntimeConfig(device="cpu"))
    assert facts["torch"] == torch.__version__ and facts["device"] == "cpu" and facts["cores"] == cores()
    assert 50e6 < peak_memory(RuntimeConfig(device="cpu")) < 1e12  # torch alone takes more than 50 MB


def test_the_peak_of_a_gpu_is_reset(monkeypatch: pytest.MonkeyPatch):
    calls: list[object] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    reset_peak(RuntimeConfig(device="cpu"))
    assert calls == [], "a CPU's peak is none of its business"
    reset_peak(RuntimeConfig(device="cuda:1"))
    assert calls == ["init", torch.device("cuda:1")]


def fill(megabytes: int, emit: Emit) -> int:
    return int(torch.ones(megabytes * 10**6, dtype=torch.uint8).sum())


def resettable() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


only_linux = pytest.mark.skipif(not resettable(), reason="the system cannot reset the peak")


@only_linux
def test_a_small_stage_after_a_large_one_has_its_own_peak():
    runtime, peaks = RuntimeConfig(device="cpu"), []
    for megabytes in (400, 200):
        reset_peak(runtime)
        before = peak_memory(runtime)
        fill(megabytes, silent)
        peaks.append(peak_memory(runtime))
        assert peaks[-1] > before + 0.8e6 * megabytes
    assert peaks[1] < peaks[0] - 100e6


def test_where_the_peak_cannot_be_reset_it_is_that_of_the_whole_life(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("delt.runtime.PROCESS", tmp_path / "nowhere")
    runtime = RuntimeConfig(device="cpu")
    before = peak_memory(runtime)
    reset_peak(runtime)
    assert peak_memory(runtime) == before > 50e6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_peak_of_a_stage_is_not_that_of_an_earlier_one():
    runtime = RuntimeConfig(device="cuda")
    reset_peak(runtime)
    large = torch.zeros(64 * 2**20, dtype=torch.uint8, device="cuda")
    assert peak_memory(runtime) >= 64 * 2**20
    del large
    reset_peak(runtime)
    assert peak_memory(runtime) < 64 * 2**20


def test_gpus_are_named_as_another_process_would_be_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-ab")
    assert gpus() == ["5", "GPU-ab"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpus() == []


def test_threads_of_one_process_share_settings_and_the_last_puts_them_back():
    """Measuring in one thread and computing in another overlap in any order."""
    before = torch.backends.cudnn.deterministic, torch.get_num_threads()
    torch.backends.cudnn.deterministic = False
    entered, leave = threading.Event(), threading.Event()

    def other():
        with settings(RuntimeConfig(threads=1)):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    try:
        with settings(RuntimeConfig(threads=1)):
            thread.start()
            assert entered.wait(10)
        assert torch.backends.cudnn.deterministic, "the other one still needs it"
        leave.set()
        thread.join(10)
        assert not torch.backends.cudnn.deterministic
    finally:
        torch.backends.cudnn.deterministic = before[0]
    assert torch.get_num_threads() == before[1]


def test_a_thread_that_wants_other_settings_waits_for_its_turn():
    seen, begun = [], threading.Event()

    def other():
        begun.set()
        with settings(RuntimeConfig(threads=2)):
            seen.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    with settings(RuntimeConfig(threads=1)):
        with settings(RuntimeConfig(threads=3)):  # the same thread may nest
            assert torch.get_num_threads() == 3
        thread.start()
        assert begun.wait(10)
        thread.join(0.1)
        assert seen == [] and torch.get_num_threads() == 1
    thread.join(10)
    assert seen == [2]

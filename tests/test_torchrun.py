"""Real ranks: torchrun on one machine and on two hosts, ranks that are killed, and runs that go on with another number of them.

Two hosts are two network namespaces with a cable between them, which only root can lay.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import delt
from delt.results import Run
from delt.storage import Slots

ROOT = Path(__file__).resolve().parents[1]
KILLS = int(os.environ.get("DELT_RANK_KILLS", 1))  # `make soak` has 20
SETTINGS = {
    "preset": "smoke",
    "ipc": 10,
    "iterations": 60,
    "recover_group_size": 5,
    "relabel_mode": "stored",
    "relabel_epochs": 3,
    "evaluate_epochs": 4,
}
FILES = ("synthetic.parquet", "ranking.parquet", "snapshots.safetensors", "soft_labels.safetensors")


def flags(**settings: Any) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def torchrun(ranks: int, *more: str, before: tuple[str, ...] = ()) -> list[str]:
    where = more if "--nnodes" in more else ("--standalone", *more)
    return [*before, sys.executable, "-m", "torch.distributed.run", *where, "--nproc-per-node", str(ranks), "-m", "delt"]


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def done(process: subprocess.Popen[str], code: int | None = 0) -> str:
    out, _ = process.communicate(timeout=150)
    assert code is None or process.returncode == code, out[-3000:]
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What one process makes of it."""
    config = delt.configure("digits", **SETTINGS, workers=1)  # type: ignore[arg-type]
    return delt.run(config, tmp_path_factory.mktemp("whole") / "run", listener=lambda event: None)


@pytest.fixture(scope="module")
def given(whole: Run) -> list[str]:
    """The same settings with the same teacher, as flags."""
    return ["digits", *flags(**SETTINGS, teacher_weights=whole.path / "teachers" / "teacher.safetensors")]


def content(out: Path) -> dict[str, bytes]:
    pictures = {str(path.relative_to(out)): path.read_bytes() for path in sorted((out / "synthetic").rglob("*.png"))}
    return pictures | {name: (out / name).read_bytes() for name in FILES}


def test_the_set_is_that_of_one_process(whole: Run, given: list[str], tmp_path: Path):
    """Three ranks and eight students: two each, and two that all train together."""
    said = done(start([*torchrun(3), "run", *given, "--out", str(tmp_path / "run")]))
    assert said.count("run: done") == 1, "one rank speaks"
    found = delt.load(tmp_path / "run")
    assert content(found.path) == content(whole.path)
    assert [row.key for row in found.scores] == [row.key for row in whole.scores]
    for row, other in zip(found.scores, whole.scores, strict=True):
        assert abs(row.last - other.last) < 12, "students of four epochs, some of them trained by all ranks"
    lines = [json.loads(line) for line in (found.path / "metrics.jsonl").read_text().splitlines()]
    work = {line["stage"]: line["work"] for line in lines if "work" in line}
    assert work["recover"] == found.synthetic.iterations.sum()
    assert work["relabel"] == 3 * len(found.synthetic)


def test_a_teacher_is_trained_by_all_ranks(whole: Run, tmp_path: Path):
    cache = tmp_path / "cache"
    command = [*torchrun(2), "squeeze", "digits", *flags(**SETTINGS, teacher_epochs=6), "--out", str(tmp_path / "two")]
    done(start(command, DELT_CACHE=str(cache)))
    config = delt.configure("digits", **{**SETTINGS, "teacher_epochs": 6}, workers=1)  # type: ignore[arg-type]
    alone = delt.run(config, tmp_path / "one", until="squeeze", listener=lambda event: None)
    two, one = (run.teacher for run in (delt.load(tmp_path / "two"), alone))
    assert one.card.accuracy > 85 and abs(two.card.accuracy - one.card.accuracy) < 3
    assert list(two.model.state_dict()) == list(one.model.state_dict())


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """The units of recover that stand: inode and time of each one's file."""
    work, found = out / ".work" / "recover", {}
    for path in sorted(work.glob("*.ckpt")):
        name = path.name[: -len(".a.ckpt")]
        with contextlib.suppress(Exception):  # it is being written
            saved = Slots(work / name).load()
            if saved and saved[1].get("finished"):
                status = path.stat()
                found[name] = (status.st_ino, status.st_mtime_ns)
    return found


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun started."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text().split()] if path.exists() else []


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


LONG = {"iterations": 200, "checkpoint_seconds": 0.2, "relabel_mode": "online", "evaluate_seeds": 1}


@pytest.fixture(scope="module")
def longer(whole: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, bytes]]:
    """A synthesis that takes a few seconds: its words, and the set that one process makes."""
    teacher, out = whole.path / "teachers" / "teacher.safetensors", tmp_path_factory.mktemp("longer") / "run"
    config = delt.configure("digits", **{**SETTINGS, **LONG}, teacher_weights=str(teacher), workers=1)  # type: ignore[arg-type]
    delt.run(config, out, until="recover", listener=lambda event: None)
    return ["recover", "digits", *flags(**{**SETTINGS, **LONG}, teacher_weights=teacher)], content_of_set(out)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_torchrun_starts_the_ranks_again_and_they_go_on(longer: tuple[list[str], dict[str, bytes]], tmp_path: Path):
    (command, expected), out = longer, tmp_path / "run"
    process = start([*torchrun(2, "--max-restarts", "1"), *command, "--out", str(out)])
    assert wait_for(lambda: finished(out), process)
    ranked = (out / "ranking.parquet").stat()
    os.kill(ranks_of(process)[0], signal.SIGKILL)
    said = done(process)
    assert "exitcode: -9" in said and content_of_set(out) == expected
    now = (out / "ranking.parquet").stat()
    assert (now.st_ino, now.st_mtime_ns) == (ranked.st_ino, ranked.st_mtime_ns), "what was finished stands"


@pytest.mark.timeout(1800 if KILLS > 2 else 240)
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_killed_ranks_lose_no_finished_unit(
    longer: tuple[list[str], dict[str, bytes]], tmp_path: Path, record_property: Callable[[str, Any], None]
):
    """SIGKILL of one rank at a random moment, again and again; each next launch has another number of ranks."""
    command, expected = longer
    draws, kills, runs, kept = random.Random(0), 0, 0, 0
    while kills < KILLS:
        out, stood = tmp_path / f"{runs}", dict[str, tuple[int, int]]()
        for _ in range(50):
            process = start([*torchrun(draws.choice((2, 3))), *command, "--out", str(out)])
            before = len(stood)
            if wait_for(lambda out=out, before=before: len(finished(out)) > before, process):  # type: ignore[misc]
                time.sleep(draws.uniform(0, 0.7))
                victims = ranks_of(process)
                if victims and process.poll() is None and (out / ".work").exists():
                    os.kill(draws.choice(victims), signal.SIGKILL)
            said = done(process, None)
            kills += process.returncode != 0
            if process.returncode == 0:
                break
            assert "SIGKILL" in said or "Signal 9" in said or "exitcode" in said
            now = finished(out)
            if not (out / "synthetic.parquet").exists():  # where it does, the units are in it, and their files gone
                assert all(now.get(name) == entry for name, entry in stood.items()), "a finished unit was done again"
            kept, stood = max(kept, len(now)), now
            if kills >= KILLS:
                done(start([sys.executable, "-m", "delt", *command, "--workers", "1", "--out", str(out)]))
                break
        assert content_of_set(out) == expected
        runs += 1
        shutil.rmtree(out)
    assert kept > 0
    record_property("kills", kills)


def content_of_set(out: Path) -> dict[str, bytes]:
    pictures = {str(path.relative_to(out)): path.read_bytes() for path in sorted((out / "synthetic").rglob("*.png"))}
    return pictures | {"synthetic.parquet": (out / "synthetic.parquet").read_bytes()}


def test_ranks_that_are_told_to_stop_write_checkpoints_and_one_process_goes_on(whole: Run, tmp_path: Path):
    teacher, out = whole.path / "teachers" / "teacher.safetensors", tmp_path / "run"
    settings = {**SETTINGS, **LONG, "recover_group_size": 50, "iterations": 900, "checkpoint_seconds": 1e6}
    command = ["recover", "digits", *flags(**settings, teacher_weights=teacher), "--out", str(out)]
    process = start([*torchrun(2), *command])
    assert wait_for(lambda: (out / "ranking.parquet").exists(), process)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    said = done(process, None)
    assert process.returncode != 0 and "stopped by SIGTERM; the same command goes on where it was" in said, said
    begun = sorted(path.name for path in (out / ".work" / "recover").glob("*.ckpt"))
    assert len(begun) == 2, "each rank was in one of the two groups"
    done(start([sys.executable, "-m", "delt", *command, "--workers", "1"]))
    config = delt.configure("digits", **settings, teacher_weights=str(teacher), workers=1)  # type: ignore[arg-type]
    expected = delt.run(config, tmp_path / "expected", until="recover", listener=lambda event: None)
    assert content_of_set(out) == content_of_set(expected.path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep", "a.yaml"], "torchrun started 2 processes of `delt sweep`; it is for run, squeeze, rank, recover"),
        (["run", "digits", "--ipc", "500"], "of digits have fewer than 500 training images"),
        (["run", "digitz"], "did you mean 'digits'"),
    ],
)
def test_mistakes_are_said_and_end_all_ranks(words: list[str], message: str, tmp_path: Path):
    out = ["--out", str(tmp_path / "run")] if words[0] == "run" else []
    said = done(start([*torchrun(2), *words, *out]), 1)
    assert message in said and said.count("Traceback") == 1, "torchrun's own"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def two_hosts() -> Iterator[list[tuple[str, str]]]:
    """Two network namespaces with a cable between them: the name and the network interface of each."""
    mark = f"{os.getpid() % 100000}"
    hosts = [(f"delt-a{mark}", f"va{mark}"), (f"delt-b{mark}", f"vb{mark}")]
    cable = ["ip", "link", "add", hosts[0][1], "type", "veth", "peer", "name", hosts[1][1]]
    try:
        for name, _ in hosts:
            subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        subprocess.run(cable, check=True, capture_output=True)
        for number, (name, interface) in enumerate(hosts, 1):
            subprocess.run(["ip", "link", "set", interface, "netns", name], check=True, capture_output=True)
            for words in (f"addr add 10.213.7.{number}/24 dev {interface}", f"link set {interface} up", "link set lo up"):
                subprocess.run(["ip", "-n", name, *words.split()], check=True, capture_output=True)
        yield hosts
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    finally:
        for name, _ in hosts:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and ip")
def test_two_hosts_make_the_set_that_one_process_does(whole: Run, given: list[str], tmp_path: Path):
    port = free_port()
    with two_hosts() as hosts:
        processes = []
        for number, (name, interface) in enumerate(hosts):
            where = ("--nnodes", "2", "--node-rank", str(number), "--master-addr", "10.213.7.1", "--master-port", str(port))
            command = torchrun(1, *where, before=("ip", "netns", "exec", name))
            processes.append(start([*command, "run", *given, "--out", str(tmp_path / "run")], GLOO_SOCKET_IFNAME=interface))
        said = [done(process) for process in processes]
    assert "run: done" in said[0] and "run: done" not in said[1]
    found = delt.load(tmp_path / "run")
    assert content(found.path) == content(whole.path) and [row.key for row in found.scores] == [row.key for row in whole.scores]

"""The long proofs, with their figures in benchmarks/results/soak.json (`make soak`, about 40 minutes).

faults     tests/test_faults.py at every I/O call of a run: kill, loss of power, full disk, failing disk, no permission
fuzz       tests/test_fuzz.py with a thousand damaged files for each reader
kills      a run on digits in a process of its own is killed (SIGKILL) at random moments and started again until it is done,
           again and again; each time it has to end with the bytes of a run that nothing disturbed
mutants    one fsync, rename or hash check is taken out of the code: tests/test_faults.py or test_storage.py has to fail
units      a synthesis of a thousand groups: memory and open files may not grow with them
sweeps     12 smoke points through each engine (local, slurm as processes of this machine, ray), one worker killed in the middle,
           then the same command again: all points have to be done, with the same results in the same places
ranks      tests/test_torchrun.py with 20 ranks killed (SIGKILL) at random moments, each next launch with another number of them
scaling    a synthesis of 20 equal groups by one process, and by two ranks of torchrun: seconds of the stage, in turns
plan       what `delt plan` says of runs on digits, and the seconds that they take
cost       seconds of a checkpoint of 60 MB, and the share of a run's time that goes into writing
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ["run", "digits", "--preset", "smoke", "--ipc", "10", "--iterations", "60", "--checkpoint-seconds", "0"]
COMMAND += ["--evaluate-controls", "random", "--evaluate-seeds", "1", "--relabel-mode", "stored", "--relabel-epochs", "2"]
FILES = ("scores.json", "synthetic.parquet", "ranking.parquet", "snapshots.safetensors", "soft_labels.safetensors", "diversity.json")
MUTANTS = {  # what is taken out of which file: the text as it is, and as it becomes
    "sync of a file": ("delt/storage.py", "        os.fsync(handle)\n    finally:\n        os.close(handle)\n\n\n@contextlib", "        pass\n    finally:\n        os.close(handle)\n\n\n@contextlib"),
    "sync of a made folder": ("delt/storage.py", "    for folder in made:\n        sync_folder(folder.parent)\n", "    del made\n"),
    "sync of the folders in a folder": ("delt/storage.py", "            _beside(sync_folder, ((folder,) for folder in folders))\n", ""),
    "sync after an exchange": ("delt/storage.py", "        raise\n    sync_folder(path.parent)\n", "        raise\n"),
    "sync after a removal": ("delt/storage.py", "            try:\n                sync_folder(path.parent)\n            finally:\n", "            if True:\n"),
    "rename before an exchange": ("delt/storage.py", "        os.replace(path, old)\n    try:\n", "        shutil.rmtree(path)\n    try:\n"),
    "rename before a removal": ("delt/storage.py", "            os.replace(path, away)\n", "            away = path\n"),
    "sync of a folder": ("delt/storage.py", "    try:\n        os.fsync(handle)\n", "    try:\n        pass\n"),
    "sync after a rename": ("delt/storage.py", "            os.replace(temporary, path)\n            sync_folder(path.parent)\n", "            os.replace(temporary, path)\n"),
    "temporary file": ("delt/storage.py", "            _write_synced(temporary, data)\n            os.replace(temporary, path)\n", "            path.unlink(missing_ok=True)\n            _write_synced(path, data)\n"),
    "hash of a checkpoint": ("delt/storage.py", "    if found != expected:\n        raise IntegrityError(f\"{path} is damaged: expected sha256 {expected}, found {found}\")\n    tensors, text", "    tensors, text"),
    "seal of a file": ("delt/storage.py", "    place = SEAL_PLACE.search(data)\n", "    return\n    place = SEAL_PLACE.search(data)\n"),
    "seal of JSON": ("delt/storage.py", "    if sealed[\"seal\"] != found:\n", "    if False:\n"),
    "text of JSON": ("delt/storage.py", "    if json_bytes(sealed) != data:\n", "    if False:\n"),
    "seal of tensors": ("delt/storage.py", "    check_seal(data, path)\n    tensors, meta = bytes", "    tensors, meta = bytes"),
    "seal of a table": ("delt/artifacts/tables.py", "    storage.check_seal(data, path)\n", ""),
    "hash of published weights": ("delt/artifacts/teacher.py", "    if expected and place.is_file() and not", "    if False and not"),
    "hash of labelled images": ("delt/artifacts/soft_labels.py", "(self.images_sha256 or \"not recorded\", set_digest(images, labels))", "(\"\", \"\")"),
    "sum of a decoded image": ("delt/data/kept.py", "if len(data) < self.bytes or _sum(data) != expected:", "if len(data) < self.bytes:"),
    "hash of an image": ("delt/artifacts/synthetic.py", "    if (found := storage.sha256_bytes(data)) != expected:\n", "    if False:\n"),
    "hash of a teacher": ("delt/artifacts/teacher.py", "        if found != expected:\n", "        if False:\n"),
    "hash of a recorded file": ("delt/artifacts/folder.py", "        if found != entry[\"sha256\"]:\n", "        if False:\n"),
}  # fmt: skip
GUARDS = [
    "tests/test_storage.py",
    "tests/test_data_kept.py",
    "tests/test_artifacts_tables.py",
    "tests/test_artifacts_soft_labels.py",
    "tests/test_artifacts_synthetic.py",
    "tests/test_artifacts_teacher.py",
    "tests/test_artifacts_folder.py",
]
GUARDS += ["tests/test_faults.py"]  # the slow ones last


def main() -> None:
    from delt.config import RuntimeConfig
    from delt.runtime import machine
    from delt.storage import write_json

    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "soak.json")
    parts = {"cost": cost, "units": units, "faults": faults, "fuzz": fuzz, "sweeps": sweeps}
    parts |= {"ranks": ranks, "scaling": scaling, "plan": plan, "kills": lambda: kills(given.kills), "mutants": mutants}
    parser.add_argument("--only", choices=tuple(parts), help="measure this part again, and keep the figures of the others")
    given = parser.parse_args()
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.only and given.out.exists() else {}
    for name, measure in parts.items():
        if given.only in (None, name):
            begun = time.monotonic()
            found[name] = {
                **measure(),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "minutes": round((time.monotonic() - begun) / 60, 1),
                "machine": machine(RuntimeConfig(device="cpu")),
            }
            print(name, found[name], flush=True)
            write_json(given.out, found)


def faults() -> dict[str, Any]:
    """The number of I/O calls of the run that passed in the end, by what happened to each before; "failed" where it did not."""
    return tests("test_faults.py", DELT_FAULTS="1")


def fuzz() -> dict[str, Any]:
    """Cases that each reader held against."""
    return tests("test_fuzz.py", DELT_FUZZ_CASES="1000")


def tests(file: str, **environment: str) -> dict[str, Any]:
    """What the tests of a file recorded about themselves, by their names."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:xdist",
            "-o",
            "junit_family=xunit1",
            f"--junitxml={report}",
            f"tests/{file}",
        ]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, stdout=subprocess.DEVNULL)
        found = {}
        for case in ElementTree.parse(report).iter("testcase"):
            recorded = [int(item.attrib["value"]) for item in case.iter("property")]
            failed = case.find("failure") is not None or case.find("error") is not None
            if failed or recorded:
                found[case.attrib["name"]] = "failed" if failed else recorded[0]
        return found


def ranks() -> dict[str, Any]:
    """Ranks that were killed without the loss of a finished unit or a bit of the set."""
    return tests("test_torchrun.py", DELT_RANK_KILLS="20")


def scaling() -> dict[str, Any]:
    """Seconds of recover for 20 equal groups: one process of one thread, and two; medians of three turns."""
    from delt.artifacts.folder import RunFolder

    flags = ["recover", "digits", "--preset", "demo", "--ipc", "10", "--recover-group-size", "5", "--iterations", "1000"]
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "DELT_CACHE": str(Path(folder) / "cache")}
        for turn in range(3):
            sets = []
            for name, count in (("one", 1), ("two", 2)):
                out = Path(folder) / f"{name}{turn}"
                launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
                command = [sys.executable, *launch, "-m", "delt", *flags, "--workers", "1", "--out", str(out)]
                subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                seconds[name].append(RunFolder(out).records()["recover"]["seconds"])
                sets.append((out / "synthetic.parquet").read_bytes())
            assert sets[0] == sets[1], "two ranks make another set"
    one, two = (statistics.median(values) for values in seconds.values())
    return {"groups": 20, "one_process_s": one, "two_processes_s": two, "times": round(one / two, 3), "all_s": seconds}


def plan() -> dict[str, Any]:
    """Predicted and taken seconds of runs on digits, by stage, and their ratio."""
    import delt
    from delt.analysis.plan import plan_of

    found: dict[str, Any] = {}
    runs: list[dict[str, Any]] = [
        {"workers": 1},
        {"workers": 2},
        {"workers": 2, "ipc": 10, "iterations": 200, "evaluate_epochs": 40},
        {"workers": 1, "method": "sre2l", "evaluate_epochs": 40},
        {"workers": 1, "teacher_arch": "resnet18", "teacher_width": 16, "teacher_epochs": 5, "iterations": 100, "evaluate_epochs": 10},
    ]
    for given in runs:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["DELT_CACHE"] = str(Path(folder) / "cache")
            config = delt.configure("digits", preset="demo", **given)
            expected = plan_of(config)
            delt.run(config, Path(folder) / "run", listener=lambda event: None)
            taken: dict[str, float] = dict.fromkeys([row.stage for row in expected.rows], 0.0)
            for manifest in sorted(Path(folder, "run").rglob("manifest.json")):
                stages = json.loads(manifest.read_text())["stages"]
                for name in taken:
                    own = stages.get(name, {"seconds": 0.0})["seconds"]
                    taken[name] = max(taken[name], own) if name == "evaluate" else taken[name] + own  # one evaluation for all sets
            predicted = {row.stage: round(row.seconds(1, expected.workers), 2) for row in expected.rows}
            name = ", ".join(f"{key} {value}" for key, value in given.items())
            found[name] = {"predicted_s": predicted, "taken_s": {key: round(value, 2) for key, value in taken.items()}}
            found[name]["ratio"] = round(sum(predicted.values()) / sum(taken.values()), 3)
            print(name, found[name], flush=True)
    return found


def kills(least: int) -> dict[str, int]:
    """Runs until at least so many kills came; `writing` are those that left a file half written.

    Every attempt is a fork of this process, which has torch loaded: the time goes into runs and not into imports. Every
    second kill waits for a file that is being written.
    """
    import delt.cli  # noqa: F401  # before the forks

    draws, counts = random.Random(0), {"runs": 0, "kills": 0, "writing": 0, "mismatches": 0}
    with tempfile.TemporaryDirectory() as folder:
        expected, longest = {}, {}
        for workers in (1, 2):
            begun = time.monotonic()
            attempt(Path(folder) / f"whole-{workers}", workers, None, False)
            longest[workers] = time.monotonic() - begun
            expected[workers] = content(Path(folder) / f"whole-{workers}")
        assert expected[1] == expected[2], "the number of workers changes a run"
        while counts["kills"] < least:
            workers = 2 if counts["runs"] % 10 == 9 else 1
            out = Path(folder) / f"{counts['runs']}"
            while not attempt(out, workers, draws.uniform(0, 0.8) * longest[workers], bool(counts["kills"] % 2)):
                counts["kills"] += 1
                counts["writing"] += bool(list(out.rglob("*.tmp")))
            counts["runs"] += 1
            counts["mismatches"] += content(out) != expected[workers]
            shutil.rmtree(out)
            print(counts, flush=True)
    return counts


def attempt(out: Path, workers: int, seconds: float | None, writing: bool) -> bool:
    """Go on with a run, and kill it after some seconds (`writing`: and once it writes a file); whether it came to its end.

    Raises:
        SystemExit: it ended with an error.
    """
    process = multiprocessing.get_context("fork").Process(target=run, args=(out, workers))
    process.start()
    process.join(seconds)
    while writing and process.is_alive() and not any(name.endswith(".tmp") for name in names(out)):
        pass
    if process.is_alive():
        process.kill()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"the run in {out} ended with {process.exitcode}")
    return process.exitcode == 0


def run(out: Path, workers: int) -> None:
    """What a forked process does."""
    from delt.cli import main

    os.environ["DELT_CACHE"] = str(out.with_name(f"cache-{out.name}"))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    main([*COMMAND, "--workers", str(workers), "--out", str(out)])


def names(out: Path) -> Iterator[str]:
    """What lies in a run folder and the folders of its begun work."""
    for place in (out, out / ".work", *(out / ".work").glob("*/")):
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            yield from (entry.name for entry in entries)


def content(out: Path) -> str:
    files = [out / name for name in FILES] + sorted((out / "synthetic").rglob("*.png"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def sweeps() -> dict[str, Any]:
    """Per engine the commands that it took, the points that were done after each, and the kills; then whether all agree."""
    found: dict[str, Any] = {"points": 12}
    with tempfile.TemporaryDirectory() as folder:
        file, results = Path(folder) / "twelve.yaml", {}
        parameters = {"dataset": "digits", "preset": "smoke", "workers": 1}
        grid = {"round_iterations": [2, 4], "sub_batches": [2, 4], "seed": [0, 1, 2]}
        file.write_text(json.dumps({"parameters": parameters, "grid": grid, "jobs": 2, "slurm": {"cluster": "local"}}))
        for engine in ("local", "slurm", "ray"):
            begun, out = time.monotonic(), Path(folder) / engine
            env = {**os.environ, "DELT_CACHE": str(Path(folder) / f"cache-{engine}")}
            command = [sys.executable, "-m", "delt", "sweep", str(file), "--engine", engine, "--out", str(out)]
            process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
            killed = kill_one(process, out, engine)
            codes, done = [process.wait()], [points_done(out)]
            while codes[-1] and len(codes) < 4:
                codes.append(subprocess.run(command, env=env, stdout=subprocess.DEVNULL).returncode)
                done.append(points_done(out))
            results[engine] = sweep_results(out)
            found[engine] = {"kills": killed, "exit_codes": codes, "done": done, "seconds": round(time.monotonic() - begun, 1)}
    found["files"] = len(results["local"])
    found["files_hashed"] = sum(map(bool, results["local"].values()))
    found["identical"] = all(each == results["local"] for each in results.values())
    return found


def kill_one(process: subprocess.Popen[bytes], out: Path, engine: str) -> int:
    """Kill a worker once half of the points are done: the kernel, or the process of Slurm's job or Ray's task above it."""
    while process.poll() is None:
        time.sleep(0.05)
        if points_done(out) < 6:
            continue
        for lock in out.glob("*/run/.work/lock"):
            with contextlib.suppress(OSError, ValueError, ProcessLookupError):
                _, pid, *_ = lock.read_text().split()
                if not (lock.parent / "stages").is_dir():  # it just begins
                    continue
                parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
                os.kill(int(pid if engine == "local" else parent), signal.SIGKILL)
                return 1
    return 0


def points_done(out: Path) -> int:
    return len(list(out.glob("*/experiment.html")))


def sweep_results(out: Path) -> dict[str, str]:
    """What each point left: hashes of its images, scores and rankings, and the places of all other files."""
    files = [path for path in sorted(out.glob("*/**/*")) if path.is_file() and path.relative_to(out).parts[0] != "logs"]
    hashed = {path for path in files if path.name in FILES or path.suffix == ".png"}
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() if path in hashed else "" for path in files}


def mutants() -> dict[str, str]:
    """Each mutant, and the test that noticed it; "nobody" where none did, as it has to be where nothing is taken out."""
    found = {}
    for name, (file, text, other) in {"docstring": ("delt/storage.py", '"""Bytes on the disk', '"""Bytes'), **MUTANTS}.items():
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "delt"
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", "dist"))
            source = (copy / file).read_text()
            assert source.count(text) == 1, f"{name}: its text stands {source.count(text)} times in {file}"
            (copy / file).write_text(source.replace(text, other))
            guards = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", *GUARDS]
            env = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "DELT_FAULTS": "3"}
            done = subprocess.run(guards, cwd=copy, env=env, capture_output=True, text=True)
            failed = [line.split()[1].split("::")[-1] for line in done.stdout.splitlines() if line.startswith("FAILED")]
            found[name] = failed[0] if failed else "nobody"
            print(f"without the {name}: {found[name]}", flush=True)
    return found


def units() -> dict[str, Any]:
    """Memory and open files after a tenth of a thousand groups, and at their end."""
    import delt
    from delt.analysis.speed import groups_of

    seen: list[tuple[float, int]] = []

    def listener(event: dict[str, Any]) -> None:
        if event.get("stage") == "recover" and event.get("done"):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen.append((pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))))

    with tempfile.TemporaryDirectory() as folder:
        os.environ["DELT_CACHE"] = str(Path(folder) / "cache")
        given = {
            "ipc": 100,
            "sub_batches": 1,
            "iterations": 5,
            "recover_group_size": 1,
            "packing": 1,
            "workers": 1,
            "checkpoint_seconds": 0,
        }
        config = delt.configure("digits", preset="smoke", **given)
        groups = len(groups_of(config, 10))
        delt.run(config, Path(folder) / "run", until="recover", listener=listener)
        left = len(list(Path(folder).rglob("*.tmp")))
    (early, files), (late, more) = seen[len(seen) // 10], seen[-1]
    growth = round(100 * (late / early - 1), 2)
    return {"groups": groups, "memory_growth_percent": growth, "open_files_before": files, "open_files_after": more, "litter": left}


def cost() -> dict[str, float]:
    """Seconds of a checkpoint of 60 MB, and what writing takes of a run on digits (preset demo, as it is by default)."""
    import torch

    import delt
    from delt import storage

    with tempfile.TemporaryDirectory() as folder:
        os.environ["DELT_CACHE"] = str(Path(folder) / "cache")
        slots, tensors = storage.Slots(Path(folder) / "slots"), {"x": torch.randn(15_000_000)}
        slots.save(tensors, {})
        begun = time.monotonic()
        slots.save(tensors, {})
        checkpoint = time.monotonic() - begun
        spent = [0.0]

        def timed(real: Any) -> Any:
            def call(*given: Any, **more: Any) -> Any:
                begun = time.monotonic()
                try:
                    return real(*given, **more)
                finally:
                    spent[0] += time.monotonic() - begun

            return call

        for name in ("write_bytes", "write_folder", "sha256_file", "check_seal", "append_line"):
            setattr(storage, name, timed(getattr(storage, name)))
        begun = time.monotonic()
        delt.run(delt.configure("digits", preset="demo", workers=1), Path(folder) / "run", listener=lambda event: None)
        whole = time.monotonic() - begun
    return {"checkpoint_60_mb_s": round(checkpoint, 3), "run_s": round(whole, 1), "writing_share_percent": round(100 * spent[0] / whole, 2)}


if __name__ == "__main__":
    main()

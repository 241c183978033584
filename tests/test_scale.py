"""A thousand classes on small means: nothing is held for all of them, the order is right, and a stopped run goes on.

A generated folder of 1,000 classes x 20 images at 64 px; limits beyond which images stay on the disk are lowered to a MiB, so
that this set is to them what ImageNet is to a machine. A learning rate of zero makes every synthetic image the real one that
started it, so each can be compared with its file.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import delt
from delt.data.decode import decode
from delt.stages.rank import medium_order

CLASSES, IMAGES, SIZE, IPC = 1000, 20, 64, 5
GROWTH = 40e6  # bytes by which memory may grow from the first fifth of the work to the last; the images take 307 MB decoded
SCRIPT = """
import ctypes, gc, json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import delt
import delt.artifacts.cache, delt.data.load
from delt.errors import Stopped
from delt.models.zoo import build
delt.artifacts.cache.IN_MEMORY = delt.data.load.HELD_BYTES = 2**20
folder, classes, size, ipc = Path(sys.argv[1]), *map(int, sys.argv[2:])
torch.save(build("convnet3", classes, 3, size, 4, 0).state_dict(), folder / "teacher.pth")
settings = {"teacher_weights": str(folder / "teacher.pth"), "teacher_arch": "convnet3", "teacher_width": 4, "teacher_min_accuracy": 0.0}
settings |= {"data_size": size, "ipc": ipc, "iterations": 2, "recover_lr": 0.0, "workers": 1}
config = delt.configure(f"folder:{folder / 'images'}", preset="smoke", **settings)
work, seen, units = {"rank": 0, "recover": 0}, {"rank": [], "recover": []}, {}

def anonymous():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later is not what is held
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])

def listener(stop):
    def heard(event):
        stage = event.get("stage")
        if stage in work and "done" in event:
            work[stage] += event["done"]
            units[stage] = units.get(stage, 0) + 1
            if units[stage] % {"rank": 100, "recover": 6}[stage] == 0:
                seen[stage].append(anonymous())
            if stop and stage == stop[0] and work[stage] > stop[1]:
                raise Stopped
    return heard

for stop in (("rank", classes * 12), ("recover", 4000), None):
    work = dict.fromkeys(work, 0)
    try:
        delt.run(config, folder / "run", until="recover", listener=listener(stop))
    except Stopped:
        files = (folder / "run" / ".work").rglob("*[0-9]*.*")
        standing = {str(path): path.stat().st_ino for path in files}
        print(json.dumps({"stopped": stop[0], "units": len(standing)}))
print(json.dumps({"seen": seen}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draws = tmp_path_factory.mktemp("scale"), np.random.default_rng(0)
    for label in range(CLASSES):
        coarse = draws.integers(0, 256, (IMAGES + 1, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        for part, pictures in (("train", coarse[:IMAGES]), ("val", coarse[IMAGES:])):
            place = folder / "images" / part / f"class{label:04d}"
            place.mkdir(parents=True)
            for number, pixels in enumerate(pictures):
                Image.fromarray(pixels).save(place / f"{number:02d}.png", compress_level=1)
    return folder


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is read in /proc, and trimmed by glibc")
def test_a_thousand_classes_take_the_memory_of_a_few(folder: Path):
    root = Path(__file__).resolve().parents[1]
    env = {**os.environ, "PYTHONPATH": str(root), "DELT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", SCRIPT, str(folder), *map(str, (CLASSES, SIZE, IPC))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=220)
    assert done.returncode == 0, done.stderr[-2000:]
    *stops, last = map(json.loads, done.stdout.splitlines())
    assert [stop["stopped"] for stop in stops] == ["rank", "recover"] and all(stop["units"] > 10 for stop in stops)
    for stage, seen in last["seen"].items():
        early, late = (statistics.median(part) for part in (seen[: len(seen) // 5], seen[-len(seen) // 5 :]))
        assert late < early + GROWTH, f"{stage}: {early / 1e6:.0f} MB in the first fifth, {late / 1e6:.0f} MB in the last"


def test_the_set_is_in_the_order_of_the_classes_and_of_the_ranking(folder: Path):
    run = delt.load(folder / "run")
    synthetic, ranking, names = run.synthetic, run.ranking, [f"class{label:04d}" for label in range(CLASSES)]
    assert synthetic.classes == tuple(names) and torch.equal(synthetic.labels, torch.arange(CLASSES).repeat_interleave(IPC))
    files = sorted((folder / "images" / "train").rglob("*.png"))
    assert [file.parent.name for file in files[::IMAGES]] == names
    for row, (source, pixels) in enumerate(zip(synthetic.source, synthetic.images, strict=True)):
        found = re.fullmatch(r"train/(\d+)\[0,0,64,64\]", source)
        assert found is not None and int(found[1]) // IMAGES == row // IPC
        if row % 7 == 0:
            assert torch.equal(pixels, decode(files[int(found[1])], 3, SIZE)), source
    for label in range(0, CLASSES, 50):
        rows = torch.nonzero(ranking.class_index == label).squeeze(1)
        by_score = rows[ranking.score[rows].argsort(stable=True)]
        expected = ranking.image[by_score[medium_order(IMAGES)[:IPC]]].tolist()
        assert [int(source[6:].split("[")[0]) for source in synthetic.source[label * IPC : (label + 1) * IPC]] == expected

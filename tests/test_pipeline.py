"""A whole run: what it leaves, what it skips, what it refuses, and that stopping it changes nothing."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import delt
from delt import pipeline
from delt.artifacts.folder import RunFolder
from delt.artifacts.teacher import Teacher
from delt.errors import DataError, DeltError, IntegrityError, RunError, Stopped, TeacherError
from delt.pipeline import STAGES, Stopwatch
from delt.results import compare, load_all
from delt.storage import sha256_file


def quiet(event):
    """Hear nothing."""


def tiny(**given):
    """A run of about a second."""
    settings = {"ipc": 2, "iterations": 8, "workers": 1, "evaluate_seeds": 1, "evaluate_labels": "soft", **given}
    return delt.configure("digits", preset="smoke", **settings)


def content(folder):
    """sha256 of everything that equal runs must have equal."""
    names = ["scores.json", "synthetic.parquet", "ranking.parquet", "snapshots.safetensors", "diversity.json"]
    files = [folder / name for name in names] + sorted((folder / "synthetic").rglob("*.png"))
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


# ---------------------------------------------------------------- what a run leaves


def test_the_folder_holds_what_it_should(smoke_run):
    present = {path.relative_to(smoke_run.path).parts[0] for path in smoke_run.path.rglob("*")}
    assert present == {
        "config.json",
        "teachers",
        "ranking.parquet",
        "synthetic",
        "synthetic.parquet",
        "snapshots.safetensors",
        "scores.json",
        "diversity.json",
        "metrics.jsonl",
        "manifest.json",
        "controls",
    }
    assert {path.name for path in (smoke_run.path / "teachers").iterdir()} == {"teacher.safetensors", "teacher.json"}
    assert set(smoke_run.controls) == {"random", "start", "one_sub_batch"}
    assert delt.verify(smoke_run.path) == []


def test_manifest(smoke_run):
    manifest = smoke_run.manifest
    assert manifest["complete"] and manifest["seed"] == 0
    assert set(STAGES) <= set(manifest["stages"])
    assert all(stage["seconds"] >= 0 and stage["peak_memory"] >= 0 for stage in manifest["stages"].values())
    assert {"torch", "torchvision", "python", "device", "device_name"} <= set(manifest["machine"])
    on_disk = {str(path.relative_to(smoke_run.path)) for path in smoke_run.path.rglob("*") if path.is_file()}
    own = {name for name in on_disk if not name.startswith("controls/")} - {"manifest.json"}
    assert set(manifest["files"]) == own


def test_scores_have_no_timings(smoke_run):
    keys = {"set", "recipe", "labels", "arch", "seed", "epochs", "last", "best"}
    assert all(set(row) == keys for row in json.loads((smoke_run.path / "scores.json").read_text())["rows"])


def test_controls_are_runs_with_the_same_teacher(smoke_run):
    for name, control in smoke_run.controls.items():
        assert control.teacher.digest() == smoke_run.teacher.digest()
        assert {row.set for row in control.scores} == {name}
        assert [row for row in smoke_run.scores if row.set == name] == control.scores.rows
    start = smoke_run.controls["start"].synthetic
    assert torch.equal(start.images[0], first_patch(smoke_run)) and start.iterations.eq(0).all()
    assert smoke_run.controls["one_sub_batch"].synthetic.iterations.eq(20).all()


def first_patch(run):
    """The real image that the first synthetic one started from."""
    real = delt.open_set("digits", run.config.data, torch.device("cpu"))
    return real.train.fetch(run.ranking.image[run.ranking.kept(0)[:1]])[0]


def test_metrics(smoke_run):
    lines = [json.loads(line) for line in (smoke_run.path / "metrics.jsonl").read_text().splitlines()]
    assert {"recover", "evaluate"} <= {line["stage"] for line in lines}  # the teacher may come from the cache
    assert any("cross_entropy" in line for line in lines) and any(line.get("per_second") for line in lines)


# ---------------------------------------------------------------- what is skipped and what is refused


@pytest.fixture
def finished(smoke_run, tmp_path):
    """A copy of the finished run that may be changed."""
    shutil.copytree(smoke_run.path, tmp_path / "run")
    return tmp_path / "run"


def stages_of(events):
    """Stages that had work to do."""
    return {event["stage"] for event in events if event.get("done")}


def test_a_finished_run_is_not_done_again(finished, smoke_run):
    before, events = content(finished), []
    delt.run(smoke_run.config, finished, listener=events.append)
    assert stages_of(events) == set() and content(finished) == before and delt.verify(finished) == []


def test_more_students_are_added(finished, smoke_run):
    config = replace(smoke_run.config, evaluate=replace(smoke_run.config.evaluate, recipe="paper:delt", labels=("soft",), seeds=1))
    events = []
    done = delt.run(config, finished, listener=events.append)
    assert stages_of(events) == {"evaluate"}
    assert {row.recipe for row in done.scores} == {"common", "paper:delt"}
    assert set(smoke_run.scores.rows) < set(done.scores.rows) and delt.verify(finished) == []


def test_a_change_that_would_make_artefacts_wrong_is_refused(finished, smoke_run):
    before = (finished / "config.json").read_bytes()
    config = replace(smoke_run.config, recover=replace(smoke_run.config.recover, lr=0.5), seed=3)
    with pytest.raises(RunError, match="holds rank of another configuration .seed: was 0, now 3.: choose another --out"):
        delt.run(config, finished, listener=quiet)
    with pytest.raises(RunError, match=r"holds recover .*recover_lr: was 0.1, now 0.5"):
        delt.run(replace(config, seed=0), finished, listener=quiet)
    assert (finished / "config.json").read_bytes() == before and delt.verify(finished) == []


def test_a_damaged_image_is_noticed_and_made_again(finished, smoke_run):
    before = content(finished)
    victim = next((finished / "synthetic").rglob("*.png"))
    data = bytearray(victim.read_bytes())
    data[-20] ^= 4
    victim.write_bytes(bytes(data))
    assert any(victim.name in line for line in delt.verify(finished))
    with pytest.raises(IntegrityError, match=victim.name):
        _ = delt.load(finished).synthetic
    with pytest.warns(UserWarning, match="done again"):
        delt.run(smoke_run.config, finished, listener=quiet)
    assert content(finished) == before and delt.verify(finished) == []


def test_begun_work_of_other_settings_is_no_obstacle(tmp_path):
    """What an error message advises must work on the same folder."""
    with pytest.raises(TeacherError, match="lower teacher_min_accuracy"):
        delt.run(tiny(teacher_min_accuracy=99.9), tmp_path / "run", listener=quiet)
    events = []
    delt.run(tiny(teacher_min_accuracy=0.0), tmp_path / "run", until="squeeze", listener=events.append)
    assert "squeeze" not in stages_of(events)  # the teacher was kept, however weak
    with pytest.raises(DataError, match="fewer than 200"):
        delt.run(tiny(ipc=200), tmp_path / "run", listener=quiet)
    delt.run(tiny(), tmp_path / "run", listener=quiet)
    assert delt.verify(tmp_path / "run") == []


def test_a_stop_while_students_are_added_spoils_nothing(finished, smoke_run):
    config = replace(smoke_run.config, evaluate=replace(smoke_run.config.evaluate, recipe="paper:delt", labels=("soft",), seeds=1))

    def listener(event):
        if event.get("done"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        delt.run(config, finished, listener=listener)
    assert [line for line in delt.verify(finished) if "config" in line or "scores" in line] == []


def test_a_stop_between_the_scores_and_their_record_forgets_none(finished, smoke_run, monkeypatch):
    from delt.artifacts.folder import RunFolder

    config = replace(smoke_run.config, evaluate=replace(smoke_run.config.evaluate, recipe="paper:delt", labels=("soft",), seeds=1))
    commit = RunFolder.commit

    def stopped(self, stage, *rest, **more):
        if stage == "evaluate":
            raise KeyboardInterrupt
        commit(self, stage, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "commit", stopped)
        with pytest.raises(KeyboardInterrupt):
            delt.run(config, finished, listener=quiet)
    with pytest.warns(UserWarning, match="done again"):
        done = delt.run(config, finished, listener=quiet)
    assert set(smoke_run.scores.rows) < set(done.scores.rows) and delt.verify(finished) == []


def test_another_control_keeps_the_diversity_of_the_earlier_ones(tmp_path):
    delt.run(tiny(evaluate_controls="random"), tmp_path / "run", listener=quiet)
    done = delt.run(tiny(evaluate_controls="start"), tmp_path / "run", listener=quiet)
    assert set(done.diversity) == {"delt", "random", "start", "real"}


def test_an_unwritable_cache_loses_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DELT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="cache"):
        done = delt.run(tiny(), tmp_path / "run", listener=quiet)
    assert delt.verify(done.path) == []


def test_the_five_stages_by_hand():
    """The sentence of the package, without a folder."""
    config = tiny()
    real = delt.open_set("digits", config.data, torch.device("cpu"))
    teacher = delt.squeeze(real, config.teacher)
    patches = delt.rank(teacher, real, config.rank, config.ipc)
    synthetic = delt.recover(teacher, patches, config.recover)
    labels = delt.relabel(teacher, synthetic, config.relabel)
    scores = delt.evaluate(synthetic, labels, real.test, config.evaluate)
    assert [row.set for row in scores] == ["delt"] and len(synthetic) == 20


def test_stage_by_stage(tmp_path):
    for stage in STAGES[:-1]:
        done = delt.run(tiny(), tmp_path / "run", until=stage, listener=quiet)
        assert not done.manifest
    delt.run(tiny(), tmp_path / "run", listener=quiet)
    assert delt.verify(tmp_path / "run") == []
    with pytest.raises(DeltError, match="unknown stage 'recovr'"):
        delt.run(tiny(), tmp_path / "run", until="recovr", listener=quiet)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"ipc": 200}, DataError, "classes of digits have fewer than 200"),
        ({"teacher_arch": "resnet9"}, DeltError, "unknown architecture 'resnet9'"),
        ({"evaluate_students": "convnet3,resnt18"}, DeltError, "unknown architecture 'resnt18': did you mean 'resnet18'"),
        ({"teacher_arch": "vgg11", "data_size": 32, "teacher_width": None}, DeltError, "vgg11"),
        ({"teacher_min_accuracy": 99.9}, TeacherError, "the floor is 99.9 %"),
        ({"teacher_weights": "nowhere.safetensors"}, TeacherError, "no weights at nowhere.safetensors"),
        ({"device": "cuda:9"}, DeltError, "device is 'cuda:9'"),
        ({"precision": "fp16"}, DeltError, "precision is fp16 on a CPU"),
    ],
)
def test_bad_input_is_refused_before_the_synthesis(tmp_path, given, error, message):
    with pytest.raises(error, match=message):
        delt.run(tiny(**given), tmp_path / "run", listener=quiet)
    assert not (tmp_path / "run" / "ranking.parquet").exists()


def test_a_teacher_for_other_classes_is_refused(smoke_run, tmp_path):
    teacher = smoke_run.teacher
    card = replace(teacher.card, classes=(*"012435", *teacher.card.classes[6:]))
    own = Teacher(teacher.model, card).save(tmp_path)
    with pytest.raises(TeacherError, match="class 3 is '3' in the data set and '4' in the teacher, class 4"):
        delt.run(tiny(teacher_weights=str(own)), tmp_path / "run", listener=quiet)


@pytest.mark.parametrize("place", ["teachers/teacher.safetensors", "teachers", ""])
def test_a_saved_teacher_is_used(smoke_run, tmp_path, place):
    done = delt.run(tiny(teacher_weights=str(smoke_run.path / place)), tmp_path / "run", until="squeeze", listener=quiet)
    assert done.teacher.digest() == smoke_run.teacher.digest()


@pytest.mark.parametrize("place", ["teacher.safetensors", ""])
def test_a_saved_teacher_that_was_replaced_is_noticed(smoke_run, tmp_path, place):
    """By its content: it has the same path."""
    teacher, config = smoke_run.teacher, tiny(teacher_weights=str(tmp_path / "w" / place))
    teacher.save(tmp_path / "w")
    made = [delt.run(config, tmp_path / "run", until="squeeze", listener=quiet).teacher.digest() for _ in range(2)]
    other = copy.deepcopy(teacher.model)
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    Teacher(other, teacher.card).save(tmp_path / "w")
    with pytest.raises(RunError, match="teacher_file: was "):
        delt.run(config, tmp_path / "run", until="squeeze", listener=quiet)
    shutil.rmtree(tmp_path / "w")
    made.append(delt.run(config, tmp_path / "run", until="squeeze", listener=quiet).teacher.digest())  # it has its own copy
    assert made == [teacher.digest()] * 3


def test_a_run_from_before_folders_of_weights_were_hashed_goes_on(smoke_run, tmp_path, monkeypatch):
    smoke_run.teacher.save(tmp_path / "w")
    config = tiny(teacher_weights=str(tmp_path / "w"))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Pipeline, "teacher_file", "")
        delt.run(config, tmp_path / "run", until="squeeze", listener=quiet)
    assert delt.run(config, tmp_path / "run", until="squeeze", listener=quiet).teacher.digest() == smoke_run.teacher.digest()


# ---------------------------------------------------------------- the same bits, whatever happens


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run of two groups that nothing disturbed: ipc 20 of ten classes, five classes to a group."""
    out = tmp_path_factory.mktemp("reference") / "run"
    return delt.run(grouped(), out, listener=quiet)


def grouped(**given):
    return tiny(ipc=20, checkpoint_seconds=0, teacher_seed=7, **given)


def test_two_workers_give_the_same_bits(reference, tmp_path):
    done = delt.run(grouped(workers=2), tmp_path / "run", listener=quiet)
    assert content(done.path) == content(reference.path)


def test_another_seed_gives_other_images(reference, tmp_path):
    done = delt.run(grouped(seed=1), tmp_path / "run", until="recover", listener=quiet)
    assert not torch.equal(done.synthetic.images, reference.synthetic.images)


def test_stopped_at_many_points_it_ends_with_the_same_bits(reference, tmp_path, monkeypatch):
    """Stop in every stage, at its first report of work or a later one, always going on from what stands."""
    monkeypatch.setenv("DELT_CACHE", str(tmp_path / "cache"))
    for stage, count in (("squeeze", 1), ("squeeze", 30), ("rank", 3), ("recover", 1), ("recover", 2), ("evaluate", 1), ("evaluate", 20)):
        left = [count]

        def listener(event, stage=stage, left=left):
            left[0] -= bool(event.get("done") and event["stage"] == stage)
            if left[0] == 0:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            delt.run(grouped(), tmp_path / "run", listener=listener)
    delt.run(grouped(), tmp_path / "run", listener=quiet)
    assert content(tmp_path / "run") == content(reference.path) and delt.verify(tmp_path / "run") == []


@pytest.mark.usefixtures("beat_each_step")
def test_stopped_by_its_listener_the_part_is_handed_over_and_the_run_goes_on(reference, tmp_path):
    def listener(event):
        if event.get("frame") is not None and event["frame"].iteration > 3:
            raise Stopped

    with pytest.raises(Stopped, match="the same command goes on") as caught:
        delt.run(grouped(), tmp_path / "run", listener=listener, watch=True)
    part = caught.value.partial
    assert not part.complete and part.iterations.max() == 4 and part.iterations[-1] == 0
    assert "recover" not in RunFolder(tmp_path / "run").records()
    kept = delt.load(tmp_path / "run")
    assert not kept.synthetic.complete and torch.equal(kept.synthetic.images, part.images)
    assert kept.synthetic.iterations.tolist() == part.iterations.tolist()
    assert len(kept.snapshots.images) == len(part.snapshots.images)
    assert '"stage": "recover", "work"' in (tmp_path / "run" / "metrics.jsonl").read_text()
    delt.run(grouped(), tmp_path / "run", listener=quiet)
    assert delt.load(tmp_path / "run").synthetic.complete and not (tmp_path / "run" / "partial").exists()
    assert content(tmp_path / "run") == content(reference.path) and delt.verify(tmp_path / "run") == []


def test_seconds_of_students_are_those_of_all_that_stand(tmp_path):
    def seconds(**given):
        delt.run(tiny(evaluate_controls=[], **given), tmp_path / "run", listener=quiet)
        return RunFolder(tmp_path / "run").records()["evaluate"]["seconds"]

    first = seconds(evaluate_epochs=60)
    second = seconds(evaluate_epochs=1)
    assert second > first > 0 and seconds(evaluate_epochs=1) == second, "nothing was done"
    assert seconds(evaluate_epochs=2) > second


@pytest.mark.usefixtures("beat_each_step")
def test_seconds_of_all_attempts_are_recorded_without_the_listeners_own(tmp_path, monkeypatch):
    def slow(event):
        """Stops in the middle of recover, and takes its time to listen."""
        if event.get("done") and event["stage"] == "recover":
            time.sleep(0.3)
            raise Stopped

    monkeypatch.setattr(Stopwatch, "every", 0.0)
    begun = time.monotonic()
    with pytest.raises(Stopped):
        delt.run(grouped(), tmp_path / "run", listener=slow)
    first = json.loads((tmp_path / "run" / ".work" / "recover" / "seconds.json").read_text())["seconds"]
    assert 0 < first < time.monotonic() - begun - 0.3
    note = tmp_path / "run" / ".work" / "recover" / "seconds.json"
    note.write_text('{"seconds": 1000.0}')
    delt.run(grouped(), tmp_path / "run", listener=quiet, until="recover")
    assert 1000 < RunFolder(tmp_path / "run").records()["recover"]["seconds"] < 1100


@pytest.mark.parametrize("damage", ["", "{}", '{"seconds": "many"}', "[1]"])
def test_a_damaged_note_of_seconds_counts_as_none(damage, tmp_path):
    (tmp_path / "seconds.json").write_text(damage)
    assert 0 <= Stopwatch(tmp_path / "seconds.json", quiet).seconds < 1


def test_killed_it_ends_with_the_same_bits(reference, tmp_path):
    """SIGKILL of a real process at three moments."""
    code = (
        "import sys, delt\n"
        "from test_pipeline import grouped, quiet\n"
        "def listener(event):\n"
        "    if event.get('done'): print(event['stage'], flush=True)\n"
        f"delt.run(grouped(), {str(tmp_path / 'run')!r}, listener=listener)\n"
    )
    environment = {**os.environ, "DELT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parent)}
    for stage in ("squeeze", "recover", "evaluate"):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            assert any(line.strip() == stage for line in process.stdout), f"{stage} was never reached"
            time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
    delt.run(grouped(), tmp_path / "run", listener=quiet)
    assert content(tmp_path / "run") == content(reference.path) and delt.verify(tmp_path / "run") == []


# ---------------------------------------------------------------- methods, fidelity, labels, data


@pytest.mark.parametrize(
    "given",
    [
        {"method": "cda"},
        {"method": "random", "iterations": None},
        {"fidelity": "strict"},
        {"relabel_mode": "stored", "relabel_epochs": 2},
        {"rank_keep": "easy", "rank_crops": 2, "rank_factor": 2},
        {"recover_clock": "own", "recover_jitter": 1, "packing": 2, "precision": "bf16", "memory_format": "channels_last"},
        {"evaluate_recipe": "paper:delt", "evaluate_students": "teacher,convnet4"},
        {"ipc": 1},
    ],
    ids=lambda given: ",".join(map(str, given.values())),
)
def test_variants_run_to_the_end(given, tmp_path):
    done = delt.run(tiny(**given), tmp_path / "run", listener=quiet)
    assert delt.verify(done.path) == [] and done.scores.rows and done.table()
    assert (done.path / "soft_labels.safetensors").exists() == (given.get("relabel_mode") == "stored")


def test_full_data_is_trained_once_per_recipe(tmp_path, monkeypatch):
    import dataclasses

    from delt import recipes

    quick = dataclasses.replace(recipes.RECIPES["common"], full_epochs=1)
    monkeypatch.setitem(recipes.RECIPES, "common", quick)
    config = tiny(evaluate_full=True)
    done = delt.run(config, tmp_path / "a", listener=quiet)
    (full,) = [row for row in done.scores if row.set == "full"]
    assert full.labels == "hard" and full.epochs == 1
    events = []
    again = delt.run(tiny(evaluate_full=True, ipc=1), tmp_path / "b", listener=events.append)
    assert [row for row in again.scores if row.set == "full"] == [full]
    totals = [event["total"] for event in events if event.get("stage") == "evaluate" and "total" in event]
    assert totals == [2 * 2 * 10]  # two sets, two epochs, ten images: the whole set is not trained on again


def test_a_script_whose_workers_would_run_it_again_is_told_so(tmp_path):
    """Worker processes read the script that they were started from; a call that is not under a guard says so, in a line each."""
    script = tmp_path / "script.py"
    script.write_text(f"import delt\ndelt.run(delt.configure('digits', preset='smoke', workers=2), {str(tmp_path / 'run')!r})\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "a worker process died" in done.stderr and "__name__ == '__main__'" in done.stderr
    assert done.stderr.count("Traceback") == 2 and "Busy" not in done.stderr  # of the pool, and of the run


def test_own_folder_end_to_end(tmp_path):
    """Colour images of three classes of unequal size, no test part, a name with spaces."""
    generator = torch.Generator().manual_seed(0)
    for label, name in enumerate(["a cat", "b", "c"]):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8 + label):
            pixels = torch.randint(256, (12, 12, 3), generator=generator, dtype=torch.uint8)
            pixels[..., label] //= 4
            Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / name / f"{i}.png")
    config = delt.configure(f"folder:{tmp_path / 'photos'}", preset="smoke", ipc=2, iterations=4, workers=1, evaluate_seeds=1)
    done = delt.run(config, tmp_path / "run", listener=quiet)
    assert done.synthetic.classes == ("a cat", "b", "c") and done.synthetic.images.shape[1:] == (3, 8, 8)
    assert done.config.recover.flip is True and delt.verify(done.path) == []


def photos(root):
    """Two classes of five images."""
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(5):
            pixels = torch.randint(256, (8, 8, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(root / name / f"{i}.png")
    return root


def test_bad_images_are_reported_and_left_out(tmp_path):
    root, seen = photos(tmp_path / "photos"), []
    settings = {"preset": "smoke", "ipc": 2, "iterations": 4, "workers": 1, "evaluate_seeds": 1, "evaluate_controls": "random"}
    config = delt.configure(f"folder:{root}", data_on_bad_image="skip", **settings)
    good = delt.run(config, tmp_path / "good", listener=quiet)
    assert good.manifest["data"] == {"skipped": 0, "over_white": 0} and not (good.path / "skipped.json").exists()
    assert "data_on_bad_image" not in str(RunFolder(good.path).records())  # what was made before there was a choice still stands

    (root / "dog" / "a.jpg").write_bytes(b"")
    (root / "cat" / "b.png").write_text("<html>")
    with pytest.raises(DataError, match=r"cat/b\.png|dog/a\.jpg"):
        delt.run(replace(config, data=replace(config.data, on_bad_image="fail")), tmp_path / "refused", listener=quiet)
    mixed = delt.run(config, tmp_path / "mixed", listener=seen.append)
    causes = {"cat/b.png": "it is none of JPEG, PNG, BMP, GIF, WEBP, TIFF, PPM", "dog/a.jpg": "the file is empty"}
    assert json.loads((mixed.path / "skipped.json").read_text()) == causes and "skipped.json" in mixed.manifest["files"]
    message = f"warning: 2 of 12 images were skipped (list in skipped.json), first cat/b.png: {causes['cat/b.png']}"
    assert [event["message"] for event in seen if "skipped" in event.get("message", "")] == [message]
    assert mixed.manifest["data"] == {"skipped": 2, "over_white": 0} and delt.verify(mixed.path) == []
    assert content(mixed.path) == content(good.path)

    for name in causes:
        (root / name).unlink()
    again = delt.run(config, mixed.path, listener=quiet)
    assert again.manifest["data"]["skipped"] == 0 and not (again.path / "skipped.json").exists() and delt.verify(again.path) == []


def test_images_with_transparency_are_reported(tmp_path):
    root, seen = photos(tmp_path / "photos"), []
    Image.new("RGBA", (8, 8), (9, 9, 9, 9)).save(root / "cat" / "clear.png")
    config = delt.configure(f"folder:{root}", preset="smoke", ipc=2, iterations=4, workers=1, evaluate_seeds=1, evaluate_controls=[])
    done = delt.run(config, tmp_path / "run", listener=seen.append)
    assert done.manifest["data"] == {"skipped": 0, "over_white": 1}
    assert {"message": "1 of 11 images have transparency, which was laid over white"} in seen


def test_real_cifar10(shared_data, tmp_path):
    """From the published files to scores."""
    root = tmp_path / "data"
    subprocess.run([sys.executable, shared_data / "restore_cifar10.py", root], check=True, capture_output=True)
    config = delt.configure(
        "cifar10", preset="smoke", data_root=str(root), workers=1, teacher_epochs=1, evaluate_seeds=1, ipc=2, iterations=6
    )
    done = delt.run(config, tmp_path / "run", listener=quiet)
    assert done.synthetic.classes[:3] == ("airplane", "automobile", "bird")
    assert done.synthetic.images.shape == (20, 3, 32, 32) and done.config.recover.flip is True
    assert {row.set for row in done.scores} == {"delt", "random"} and delt.verify(done.path) == []


# ---------------------------------------------------------------- images from elsewhere, and some of the classes


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A run of starting images: what is evaluated is what lies in its folder."""
    return delt.run(tiny(iterations=0, teacher_epochs=8, ipc=4), tmp_path_factory.mktemp("started") / "run", listener=quiet)


def written(run, root, names):
    """The images of a run as another program would leave them, the folder of class k named `names[k]`."""
    for label, name in enumerate(names):
        shutil.copytree(sorted((run.path / "synthetic").iterdir())[label], root / name)
    return root


def given(folder, **settings):
    return tiny(method="given", rank_folder=str(folder), iterations=0, teacher_epochs=8, **{"ipc": 4, **settings})


@pytest.mark.parametrize("names", [list("0123456789"), [f"{n:05d}" for n in range(10)], [f"new{n:03d}" for n in range(10)]])
def test_images_from_elsewhere_score_as_those_of_the_run_that_made_them(started, tmp_path, names):
    events = []
    done = delt.run(given(written(started, tmp_path / "images", names)), tmp_path / "run", listener=events.append)
    scores = [replace(row, set="delt") if row.set == "given" else row for row in done.scores]
    assert sorted(scores) == sorted(started.scores)
    assert torch.equal(done.synthetic.images, started.synthetic.images) and done.synthetic.source[4] == f"{names[1]}/00000.png"
    assert done.diversity["given"] == started.diversity["delt"] and set(done.controls) == {"random"}
    assert done.controls["random"].config.rank.folder is None and delt.verify(done.path) == []
    assert any("are what their folder says" in event.get("message", "") for event in events)


def test_a_permuted_folder_is_refused_before_a_student_is_trained(started, tmp_path):
    names = [f"{(n + 3) % 10:05d}" for n in range(10)]  # the folder 00003 holds the zeros
    with pytest.raises(DataError, match="class order: .*rename the folders to the classes") as caught:
        delt.run(given(written(started, tmp_path / "images", names)), tmp_path / "run", listener=quiet)
    folder, looks, called = re.search(r"folder (\d{5}) looks like class '(\d)' and not '(\d)'", str(caught.value)).groups()
    assert int(folder) == int(called) == (int(looks) + 3) % 10
    assert not (tmp_path / "run" / "synthetic").exists() and not (tmp_path / "run" / "scores.json").exists()


def test_the_content_of_the_folder_decides_and_not_its_place(started, tmp_path):
    first = written(started, tmp_path / "images", list("0123456789"))
    done = delt.run(given(first), tmp_path / "run", listener=quiet)
    before = content_of_given(done.path)
    shutil.move(first, tmp_path / "moved")
    events = []
    delt.run(given(tmp_path / "moved"), tmp_path / "run", listener=events.append)
    assert stages_of(events) == set() and content_of_given(done.path) == before
    delt.run(given(first), tmp_path / "run", listener=events.append)  # the set holds the images of a folder that is gone
    assert stages_of(events) == set() and content_of_given(done.path) == before
    shutil.copy(tmp_path / "moved" / "3" / "00000.png", tmp_path / "moved" / "3" / "00001.png")
    with pytest.raises(RunError, match="holds recover of another configuration .given_images: was"):
        delt.run(given(tmp_path / "moved"), tmp_path / "run", listener=quiet)
    assert content_of_given(done.path) == before


def content_of_given(folder):
    names = ["scores.json", "synthetic.parquet", "diversity.json", *sorted((folder / "synthetic").rglob("*.png"))]
    return [sha256_file(folder / name) for name in names]


def test_bad_images_are_met_before_the_teacher_is_trained(started, tmp_path):
    folder = written(started, tmp_path / "images", list("0123456789"))
    (folder / "7" / "00002.png").write_bytes((folder / "7" / "00002.png").read_bytes()[:60])
    for config, error in ((given(folder), "cannot read the image .*7/00002.png"), (given(folder, ipc=3), "give --ipc 4")):
        with pytest.raises(DataError, match=error):
            delt.run(config, tmp_path / "run", listener=quiet)
    assert not (tmp_path / "run" / "teachers").exists()


def test_a_run_on_some_of_the_classes(started, tmp_path):
    config = tiny(data_classes="7,1,3", teacher_epochs=8)
    done = delt.run(config, tmp_path / "run", listener=quiet)
    assert done.classes == done.synthetic.classes == ("7", "1", "3") and len(done.synthetic) == 6
    assert "delt on digits, 3 classes, 2 images per class" in done.describe()
    records = [RunFolder(run.path).records()["squeeze"]["keys"] for run in (done, started)]
    assert records[0]["data_classes"] == ["7", "1", "3"] and "data_classes" not in records[1]  # older runs go on
    assert records[0]["data_fingerprint"] != records[1]["data_fingerprint"]
    with pytest.raises(RunError, match=r"data_classes: was \['7', '1', '3'\], now \['1', '7', '3'\]"):
        delt.run(tiny(data_classes="1,7,3", teacher_epochs=8), tmp_path / "run", listener=quiet)
    with pytest.raises(RunError, match="squeeze of another configuration .*data_classes: was not set"):
        delt.run(tiny(data_classes="7,1,3", iterations=0, teacher_epochs=8, ipc=4), started.path, listener=quiet)
    with pytest.raises(RunError, match="squeeze of another configuration"):
        delt.run(tiny(teacher_epochs=8), tmp_path / "run", listener=quiet)
    assert delt.verify(done.path) == []


def test_a_run_that_is_tested_on_images_held_out_of_the_training_set(started, tmp_path):
    said = []
    config = tiny(data_hold_out=0.2, teacher_epochs=8, teacher_min_accuracy=0)
    done = delt.run(config, tmp_path / "run", listener=said.append)
    assert any("% on held-out training images (20 %) of digits" in event.get("message", "") for event in said)
    assert "delt on digits, 20 % held out, 2 images" in done.describe() and "top-1 in % on held-out training images (20 %)" in done.table()
    records = [RunFolder(run.path).records()["squeeze"]["keys"] for run in (done, started)]
    assert records[0]["data_hold_out"] == 0.2 and "data_hold_out" not in records[1]  # older runs go on
    with pytest.raises(RunError, match=r"data_hold_out: was 0\.2, now 0\.3"):
        delt.run(replace(config, data=replace(config.data, hold_out=0.3)), tmp_path / "run", listener=quiet)
    with pytest.raises(DataError, match="only runs of one data set can be compared"):
        compare(load_all([done.path, started.path]))
    weights = str(done.path / "teachers" / "teacher.safetensors")
    delt.run(tiny(data_hold_out=0.2, teacher_weights=weights), tmp_path / "loaded", until="squeeze", listener=said.append)
    assert any("may have been trained on the images that are held out" in event.get("message", "") for event in said)


def test_some_classes_of_a_folder_of_ones_own_from_images_to_scores(tmp_path):
    real = delt.open_set("digits", delt.configure("digits").data, torch.device("cpu"))
    for name, digit in (("ape", 0), ("bat", 1), ("cow", 2)):
        for index, image in enumerate(real.train.pixels[real.train.labels == digit][:30]):
            path = tmp_path / "own" / name / f"{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(path)
    small = {"preset": "smoke", "ipc": 2, "iterations": 4, "workers": 1, "evaluate_seeds": 1, "evaluate_labels": "soft"}
    config = delt.configure(f"folder:{tmp_path / 'own'}", data_classes=["cow", "ape"], **small)
    done = delt.run(config, tmp_path / "run", listener=quiet)
    assert done.classes == ("cow", "ape") and sorted(path.name for path in (done.path / "synthetic").iterdir()) == ["0000_cow", "0001_ape"]
    assert done.config.data.classes == ("cow", "ape")  # config.json says it, too


def test_given_images_may_be_optimised_further_with_earlylate(started, tmp_path):
    folder = written(started, tmp_path / "images", list("0123456789"))
    config = tiny(rank_keep="given", rank_folder=str(folder), teacher_epochs=8, ipc=4, evaluate_controls=["start", "random"])
    done = delt.run(config, tmp_path / "run", listener=quiet)
    assert torch.equal(done.controls["start"].synthetic.images, started.synthetic.images)
    assert (
        not torch.equal(done.synthetic.images, started.synthetic.images)
        and done.synthetic.source == done.controls["start"].synthetic.source
    )


# ---------------------------------------------------------------- several teachers


def several(**given):
    return tiny(**{"method": "gvbsm", "sub_batches": None, "evaluate_controls": ["random", "start"], "rank_keep": "medium", **given})


def test_several_teachers_have_files_of_their_own_in_the_run_and_its_controls(tmp_path):
    messages = []
    done = delt.run(several(), tmp_path / "a", listener=lambda event: messages.append(event.get("message")))
    for folder in (done.path, *(control.path for control in done.controls.values())):
        assert sorted(path.name for path in (folder / "teachers").glob("*.safetensors")) == [
            "convnet4-w8.safetensors",
            "teacher.safetensors",
        ]
    assert sorted(done.controls) == ["random", "start"] and done.manifest["complete"]
    assert [message.split("(")[0].strip() for message in messages if message] == [
        "teacher: convnet3 of width 8",
        "teacher: convnet4 of width 8",
    ]
    assert done.teacher.card.arch == "convnet3"
    messages.clear()
    other = delt.run(several(method="delt+gvbsm"), tmp_path / "b", listener=lambda event: messages.append(event.get("message")))
    assert [message for message in messages if message and "cache" not in message] == [], "both are cached, each on its own"
    assert not torch.equal(other.synthetic.images, done.synthetic.images)


def test_a_run_with_several_teachers_ends_with_the_same_bits_after_a_stop(tmp_path):
    whole = delt.run(several(checkpoint_seconds=0.0), tmp_path / "whole", listener=quiet)
    for number in (3, 8, 20):
        count = [0]

        def stop(event, count=count, number=number):
            count[0] += 1
            if count[0] == number:
                raise Stopped

        with pytest.raises(Stopped):
            delt.run(several(checkpoint_seconds=0.0), tmp_path / f"stopped{number}", listener=stop)
        again = delt.run(several(checkpoint_seconds=0.0), tmp_path / f"stopped{number}", listener=quiet)
        assert content(again.path) == content(whole.path)


def test_all_label_where_the_recipe_asks_all(tmp_path):
    config = several(evaluate_recipe="paper", relabel_mode="stored", relabel_epochs=1)
    stored = delt.run(config, tmp_path / "a", listener=quiet)
    assert stored.config.evaluate.recipe == "paper:gvbsm"
    alone = replace(config, evaluate=replace(config.evaluate, recipe="paper:delt"))
    with pytest.raises(RunError, match="relabel of another configuration .evaluate_recipe: was paper:gvbsm, now paper:delt"):
        delt.run(alone, tmp_path / "a", listener=quiet)
    from safetensors.torch import load_file

    teachers = [Teacher.load(tmp_path / "a" / "teachers" / f"{name}.safetensors") for name in ("teacher", "convnet4-w8")]
    labels = delt.relabel(teachers[0], stored.synthetic, config.relabel, delt.Job(config.seed), "paper:gvbsm", (teachers[1],))
    found = load_file(tmp_path / "a" / "soft_labels.safetensors")["logits"]
    assert torch.equal(found, labels.logits)
    assert not torch.equal(found, delt.relabel(teachers[0], stored.synthetic, config.relabel, delt.Job(config.seed), "paper:gvbsm").logits)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"teacher_others": "vit_b_16"}, TeacherError, "vit_b_16 of teacher_others has no BatchNorm layers"),
        ({"teacher_others": "convnt4"}, DeltError, "unknown architecture 'convnt4'"),
        ({"teacher_others": "convnet3-w8"}, DeltError, "which is teacher_arch already"),
        (
            {"teacher_others": "convnet4-w8", "teacher_weights": "IMAGENET1K_V1", "teacher_arch": "resnet18"},
            DeltError,
            "no published weights",
        ),
        ({"recover_stages": 2, "recover_small_side": 0.9}, DeltError, "convnet3 cannot take images of 7 x 7 pixels"),
    ],
)
def test_teachers_that_cannot_be_are_refused_before_any_is_trained(tmp_path, given, error, message):
    with pytest.raises(error, match=message):
        delt.run(tiny(**given), tmp_path / "a", listener=quiet)
    assert not (tmp_path / "a").exists()


def test_fadrm_at_two_sizes_runs_to_the_end(tmp_path):
    given = {"method": "delt+fadrm", "teacher_arch": "resnet18", "teacher_width": 4, "teacher_epochs": 1, "recover_small_side": 0.8}
    done = delt.run(tiny(**given), tmp_path / "a", listener=quiet)
    assert done.synthetic.images.shape == (20, 1, 8, 8) and done.synthetic.iterations.view(10, 2).tolist() == [[8, 4]] * 10


# ---------------------------------------------------------------- what the machine chooses


def test_packing_is_chosen_once_stored_and_kept(tmp_path, monkeypatch):
    """As on a GPU, where it depends on the memory at hand: a run that goes on later keeps what it began with."""
    real, chosen = pipeline.resolve, iter((3, 1))
    monkeypatch.setattr(pipeline, "resolve", lambda runtime: replace(real(runtime), packing=runtime.packing))
    monkeypatch.setattr(pipeline, "fitted", lambda runtime, teacher, groups: replace(runtime, packing=runtime.packing or next(chosen)))
    for until in ("rank", "evaluate"):
        delt.run(tiny(), tmp_path / "a", until=until, listener=quiet)
        runtime = delt.results.read_config(tmp_path / "a" / "config.json").runtime
        assert runtime.packing == 3
    delt.run(tiny(packing=2), tmp_path / "b", until="rank", listener=quiet)
    assert delt.results.read_config(tmp_path / "b" / "config.json").runtime.packing == 2

"""The command line: the same fields as Python under the same names, one line for bad input, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from delt.cli import COMMANDS, ImageSettings, Settings, main
from delt.config import flat_fields
from delt.results import load


def delt(capsys, *arguments):
    """Run a command in this process; returns (exit code, output, errors)."""
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_every_field_is_a_flag():
    names = {item for item in Settings.__dataclass_fields__}
    assert names == {entry.name for entry in flat_fields()} | {"out", "config"}
    assert set(ImageSettings.__dataclass_fields__) == names | {"images", "images_of"}


def test_help_explains_every_field_with_its_default(capsys):
    code, out, _ = delt(capsys, "run", "--help")
    words = " ".join(out.replace("│", " ").split())
    assert code == 0
    for entry in flat_fields():
        if entry.name == "dataset":
            continue
        assert f"--{entry.name.replace('_', '-')} " in words
        assert " ".join(entry.help.split())[1:30] in words
        if entry.default is not None and not isinstance(entry.default, tuple):
            assert f"(default: {entry.default})" in words


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command, capsys):
    code, out, _ = delt(capsys, command, "--help")
    assert code == 0 and "usage: delt" in out


def test_a_run_from_end_to_end(tmp_path, capsys):
    out = tmp_path / "a"
    flags = [
        "--preset",
        "smoke",
        "--ipc",
        2,
        "--iterations",
        8,
        "--workers",
        1,
        "--evaluate-seeds",
        1,
        "--evaluate-labels",
        "soft",
        "--out",
        out,
    ]
    code, printed, _ = delt(capsys, "run", "digits", *flags)
    assert code == 0 and "soft labels" in printed and "random" in printed and str(out) in printed
    config = json.loads((out / "config.json").read_text())
    assert (config["ipc"], config["iterations"], config["evaluate_labels"]) == (2, 8, ["soft"])

    code, printed, _ = delt(capsys, "show", out)
    assert code == 0 and "delt on digits, 2 images per class" in printed and "scores.json" in printed
    code, printed, _ = delt(capsys, "verify", out)
    assert code == 0 and "every file is as recorded" in printed

    code, printed, _ = delt(capsys, "evaluate", "--out", out, "--evaluate-students", "convnet4")  # goes on from its config
    assert code == 0 and "convnet4" in printed and "convnet3" in printed

    code, _, _ = delt(capsys, "recover", "--config", out / "config.json", "--out", tmp_path / "b")  # a replay
    assert code == 0
    names = [path.relative_to(out) for path in sorted((out / "synthetic").rglob("*.png"))]
    assert len(names) == 20 and all((out / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)

    (out / "diversity.json").write_text("{}")
    code, printed, _ = delt(capsys, "verify", out)
    assert code == 2 and "diversity.json: expected sha256" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "digts"], "delt: unknown data set 'digts': did you mean 'digits'?"),
        (["run", "digits", "--method", "detl"], "delt: unknown method 'detl': did you mean 'delt'?"),
        (["run", "digits", "--ipc", "5", "--sub-batches", "6"], "delt: sub_batches is 6 with ipc 5"),
        (["run", "digits", "--iterations", "10", "--ipc", "5", "--round-iterations", "9", "--sub-batches", "3"], "lower round_iterations"),
        (["run"], "delt: no data set: name one"),
        (["run", "--config", "nowhere.json"], "delt: no configuration at nowhere.json"),
        (["show", "nowhere"], "delt: no run at nowhere"),
        (["show", "runs/*"], "delt: no run matches runs/*"),
        (["show"], "delt: no run folder: name one"),
        (["verify", "nowhere"], "delt: no run at nowhere"),
        (["evaluate", "--images", "nowhere", "--dataset", "digits"], "delt: nowhere is not a folder: give one of distilled images"),
        (["evaluate", "--images", ".", "--dataset", "digits"], "holds no class folders"),
        (["evaluate", "--images", "."], "delt: --images FOLDER needs --dataset NAME"),
        (["evaluate", "cifar10", "--images", ".", "--dataset", "digits"], "delt: --images FOLDER needs --dataset NAME, the one data set"),
        (["evaluate", "--dataset", "digits"], "delt: --dataset digits goes with --images FOLDER"),
        (
            ["evaluate", "--images", ".", "--dataset", "digits", "--method", "delt", "--iterations", "9", "--rank-crops", "2"],
            "delt: --images are evaluated as they are: leave out --method, --rank-crops, --iterations",
        ),
        (["run", "digits", "--method", "given"], "delt: method given needs its images: --rank-folder FOLDER"),
        (["run", "digits", "--method", "given", "--rank-folder", "nowhere"], "nowhere is not a folder"),
        (["run", "digits", "--data-classes", "1,x"], "delt: unknown class of digits 'x': known are 0, 1"),
        (["compare", "digits", "--methods", "given", "--rank-folder", "nowhere"], "delt: method given: "),
        (["runn", "digits"], "delt: unknown command 'runn': did you mean 'run'?"),
        (["run", "folder:nowhere"], "nowhere is not a folder"),
        (["run", "cifar10", "--data-root", "nowhere", "--data-download", "False", "--preset", "smoke"], "cifar-10-batches-py"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = delt(capsys, *arguments)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1 and "Traceback" not in out + err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "digits", "--teacher-epoch", "3"], "--teacher-epochs"),
        (["run", "digits", "--preset", "dmo"], "demo"),
        (["run", "digits", "--ipc", "five"], "--ipc"),
    ],
)
def test_mistyped_flags_get_a_suggestion(arguments, message, capsys):
    code, out, err = delt(capsys, *arguments)
    assert code == 2 and message in out + err


def test_a_folder_in_use_is_refused_with_exit_code_3(tmp_path, capsys):
    from delt.artifacts.folder import RunFolder

    with RunFolder(tmp_path / "run").hold():
        code, _, err = delt(capsys, "run", "digits", "--preset", "smoke", "--out", tmp_path / "run")
    assert code == 3 and "is in use by pid" in err


def test_ctrl_c_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(*rest, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("delt.pipeline.run", interrupted)
    code, _, err = delt(capsys, "run", "digits", "--preset", "smoke")
    assert code == 130 and "the same command goes on where it was" in err


def test_lists(capsys):
    code, out, _ = delt(capsys, "datasets")
    assert code == 0 and all(name in out for name in ("digits", "cifar100", "tiny-imagenet", "folder:PATH"))
    code, out, _ = delt(capsys, "models")
    lines = out.splitlines()
    assert (
        code == 0
        and "+ convnet3" in lines
        and "+ resnet18" in lines
        and "  vit_b_16" in lines
        and "+ vgg11_bn" in lines
        and "  vgg11" in lines
    )


def test_images_from_elsewhere_are_evaluated_and_shown_beside_a_run(smoke_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(smoke_run.path / "synthetic", tmp_path / "download")
    flags = ["--preset", "smoke", "--workers", 1, "--evaluate-labels", "soft"]
    code, out, err = delt(capsys, "evaluate", "--images", "download", "--dataset", "digits", "--seed", 3, *flags)
    assert code == 0, err
    assert code == 0 and "given" in out and "evaluate: done, runs/digits-given-download-seed3" in out
    made = json.loads((tmp_path / "runs" / "digits-given-download-seed3" / "config.json").read_text())
    assert (made["method"], made["ipc"], made["rank_folder"]) == ("given", 5, str(tmp_path / "download"))

    code, out, _ = delt(capsys, "evaluate", "--out", "runs/digits-given-download-seed3", "--evaluate-students", "convnet4")
    assert code == 0 and "convnet4" in out and "convnet3-w8" in out  # goes on as any other run

    code, out, _ = delt(capsys, "show", smoke_run.path, "runs/*")
    assert code == 0 and "cosine" in out and "digits-given-download-seed3" in out and "! students were not trained alike" in out
    assert delt(capsys, "show", "runs/*")[1].startswith("runs/digits-given-download-seed3\ngiven on digits")  # one run is described


def test_methods_are_listed(capsys):
    code, out, _ = delt(capsys, "methods")
    names = [line.split()[0] for line in out.splitlines()]
    assert code == 0 and {"delt", "sre2l", "cda", "rded", "random", "herding", "kmeans", "given", "delt+cda"} <= set(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits"], "delt: give a data set and --methods NAME,NAME"),
        (["digits", "--methods", "delt,cdda"], "delt: method cdda: unknown method 'cdda': did you mean 'cda'?"),
        (["digits", "--methods", "delt+kmeans"], "kmeans optimises nothing"),
        (["digits", "--methods", "delt", "--ipc", "3,x"], "delt: ipc is '3,x'; allowed are whole numbers with commas, such as 3,10"),
        (["digits", "--methods", "delt", "--ipc", "0"], "delt: method random: ipc is 0"),
    ],
)
def test_a_bad_comparison_is_one_line_and_no_folder(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = delt(capsys, "compare", *arguments, "--preset", "smoke")
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1 and not out and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["run", "evaluate", "squeeze", "experiment", "compare"])
def test_the_flags_most_used_have_short_names(command, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr("delt.cli._configured", lambda settings: seen.append(vars(settings)) or sys.exit(7))
    monkeypatch.setattr("delt.study.study", lambda *rest, **given: seen.append(given) or sys.exit(7))
    methods = ["--methods", "delt"] if command == "compare" else []
    short = ["--students", "resnet18,convnet4", "--recipe", "paper:delt", "--on-bad-image", "skip"]
    for flags in (short, ["--evaluate-students", "resnet18,convnet4", "--data-on-bad-image", "skip"]):
        code, _, err = delt(capsys, command, "digits", *methods, *flags)
        assert code == 7, err
    assert [given["evaluate_students"] for given in seen] == ["resnet18,convnet4"] * 2
    assert [given["data_on_bad_image"] for given in seen] == ["skip"] * 2
    assert seen[0]["evaluate_recipe"] == "paper:delt" and seen[1].get("evaluate_recipe") is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--recipe", "comon"], "delt: unknown recipe 'comon': did you mean 'common'?"),
        (["--students", "resnet19"], "delt: unknown architecture 'resnet19': did you mean 'resnet18'?"),
    ],
)
def test_unknown_names_under_short_flags_are_one_line(flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = delt(capsys, "run", "digits", "--preset", "smoke", "--out", "out", *flags)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1 and not out


def test_help_of_a_comparison_says_how_many_students_it_trains(capsys):
    from delt.config import PRESETS
    from delt.study import SEEDS

    _, out, _ = delt(capsys, "compare", "--help")
    words = " ".join(out.replace("│", " ").split())
    assert f"(default: {SEEDS}; of preset smoke: {PRESETS['smoke']['evaluate_seeds']})" in words
    assert f"at least {SEEDS} students unless" in words


def test_a_comparison_prints_its_table(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--preset", "smoke", "--workers", "1", "--evaluate-labels", "soft"]
    code, out, _ = delt(capsys, "compare", "digits", "--methods", "herding", "--ipc", "1,2", *small, "--out", "c")
    assert code == 0 and "herding-ipc2" in out and "top-1 above random, paired over seeds" in out and "c/comparison.png" in out


def test_as_a_module_and_as_a_command():
    done = subprocess.run([sys.executable, "-m", "delt", "datasets"], capture_output=True, text=True, check=True)
    assert "digits" in done.stdout
    if command := shutil.which("delt", path=str(__import__("pathlib").Path(sys.executable).parent)):
        assert subprocess.run([command, "datasets"], capture_output=True, text=True, check=True).stdout == done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "delt: no sweep at a.yaml"),
        ("grid: {sub_batchs: [2, 4]}", "a.yaml, point sub_batchs=2: unknown setting 'sub_batchs': did you mean 'sub_batches'?"),
        ("grid: {ipc: [2", "delt: a.yaml is not YAML"),
        ("grid: {ipc: [5], sub_batches: [6]}", "a.yaml, point ipc=5,sub_batches=6: sub_batches is 6 with ipc 5"),
    ],
)
def test_a_bad_sweep_is_one_line_and_exit_code_2_and_no_folder(text, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "a.yaml").write_text(f"parameters: {{dataset: digits, preset: smoke}}\n{text}")
    code, out, err = delt(capsys, "sweep", "a.yaml", "--out", "out")
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1 and not out
    assert not (tmp_path / "out").exists() and not (tmp_path / "papermill_runs").exists()


def test_a_sweep_says_what_was_done_and_failed(tmp_path, capsys, monkeypatch):
    from delt.batch.sweep import Result

    calls = []
    for failed, code in (({}, 0), ({"ipc=3": "too few"}, 1)):
        monkeypatch.setattr(
            "delt.batch.run_sweep", lambda *given, failed=failed: calls.append(given) or Result(tmp_path, ("ipc=2",), failed)
        )
        found, out, _ = delt(capsys, "sweep", "a.yaml", "--jobs", "2", "--out", tmp_path, "--engine", "ray")
        assert found == code and f"1 points done, {len(failed)} failed" in out and str(tmp_path / "summary.html") in out
        assert not failed or f"ipc=3: too few\n    {tmp_path / 'ipc=3' / 'error.txt'}" in out
    assert [(str(file), *rest) for file, *rest in calls] == [("a.yaml", tmp_path, 2, "ray")] * 2


def test_an_unknown_engine_names_those_there_are(tmp_path, capsys):
    assert delt(capsys, "sweep", tmp_path / "a.yaml", "--engine", "cloud") == (
        2,
        "",
        "delt: unknown engine 'cloud': known are local, slurm, ray\n",
    )


LONG = ["run", "digits", "--preset", "smoke", "--ipc", "20", "--iterations", "400", "--checkpoint-seconds", "0.2"]
LONG += ["--evaluate-controls", "random", "--evaluate-seeds", "1", "--evaluate-labels", "soft"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache):
    """The run of `LONG` that nothing stopped."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    main([*LONG, "--workers", "1", "--out", str(out)])
    return out


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_a_run_with_a_checkpoint_and_a_part_that_can_be_shown(name, code, workers, undisturbed, tmp_path):
    """To a real process; the same command then ends with the bytes of a run that nothing disturbed."""
    out, flags = tmp_path / "run", [*LONG, "--workers", str(workers), "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "delt", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((out / ".work" / "recover").glob("*.ckpt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "stopping after this step" in errors and "the same command goes on where it was" in errors
    part = load(out).synthetic
    assert not part.complete and 0 < part.iterations.max() <= 400 and list((out / ".work" / "recover").glob("*.ckpt"))
    part.save(tmp_path / "saved")
    main(flags)
    for file in ("scores.json", "synthetic.parquet"):
        assert (out / file).read_bytes() == (undisturbed / file).read_bytes()


def test_commands_keep_out_of_each_others_folders(tmp_path, capsys, smoke_run):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("parameters: {dataset: digits, preset: smoke}\ngrid: {seed: [0, 1]}\n")
    for words in (
        ("sweep", sweep, "--out", smoke_run.path),
        ("experiment", "digits", "--preset", "smoke", "--out", smoke_run.path),
        ("compare", "digits", "--methods", "rded", "--preset", "smoke", "--out", smoke_run.path),
    ):
        code, _, errors = delt(capsys, *words)
        assert code == 2 and f"{smoke_run.path} holds a run, and a" in errors and "choose another --out" in errors
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "experiment.ipynb").write_text("{}")
    code, _, errors = delt(capsys, "experiment", "digits", "--preset", "smoke", "--out", tmp_path / "notebooks")
    assert code == 2 and "experiment.ipynb is no experiment that was executed here" in errors
    (tmp_path / "own" / "synthetic").mkdir(parents=True)
    code, _, errors = delt(capsys, "run", "digits", "--preset", "smoke", "--out", tmp_path / "own")
    assert code == 2 and "is no run, and holds synthetic" in errors


def test_a_refused_run_leaves_no_folder(tmp_path, capsys):
    code, _, errors = delt(capsys, "run", "digits", "--preset", "smoke", "--ipc", "500", "--out", tmp_path / "a")
    assert code == 2 and "use --ipc 130 or less" in errors and not (tmp_path / "a").exists()


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    code, _, errors = delt(capsys, "evaluate", "--out", tmp_path / "nope")
    assert code == 2 and f"no run at {tmp_path / 'nope'} (looked for config.json in it), and no data set" in errors


def test_a_terminal_of_another_encoding_shows_what_it_can(smoke_run):
    command = [sys.executable, "-m", "delt", "show", str(smoke_run.path)]
    found = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=True)
    assert b" ? " in found.stdout and not found.stderr


@pytest.mark.parametrize("command", ["run digits", "experiment digits", "compare digits --methods rded", "sweep", "show", "verify"])
def test_a_path_that_cannot_be_is_one_line(command, tmp_path, capsys):
    place, name = tmp_path / ("a" * 300), command.split()[0]
    (tmp_path / "sweep.yaml").write_text("parameters: {dataset: digits, preset: smoke}\ngrid: {seed: [0, 1]}\n")
    words = {"sweep": [tmp_path / "sweep.yaml", "--out", place], "show": [place], "verify": [place]}
    code, _, errors = delt(capsys, *command.split(), *words.get(name, ["--preset", "smoke", "--out", place]))
    assert code == 2 and errors.startswith("delt: ") and errors.count("\n") == 1 and "aaaa" in errors


@pytest.mark.parametrize("closed", ["0<&- 1>&- 2>&-", "2>&-"])
def test_a_run_begins_where_streams_are_closed(tmp_path, closed):
    """As where cron or a daemon starts it."""
    line = f"exec {sys.executable} -m delt squeeze digits --preset smoke --out {tmp_path / 'a'} {closed}"
    assert subprocess.run(["bash", "-c", line], check=False).returncode == 0
    assert (tmp_path / "a" / "teachers" / "teacher.safetensors").is_file()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_a_full_disk_under_the_log_is_one_line_and_the_exit_code_stays():
    def run(command):
        return subprocess.run(["bash", "-c", f"exec {sys.executable} -m delt {command}"], capture_output=True, text=True)

    printed = run("datasets >/dev/full")
    assert printed.returncode == 2 and printed.stderr.count("\n") == 1
    assert "what is printed cannot be written: No space left on device" in printed.stderr
    assert run("datasets >/dev/full 2>&1").returncode == 2  # the last words have no room either
    assert run("run nothing --out nowhere 2>/dev/full").returncode == 2

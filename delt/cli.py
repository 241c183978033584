"""`delt ...`: a thin skin over the pipeline. Every field of the configuration is a flag, built from the dataclasses.

delt run digits --preset demo --out runs/a
delt show runs/a
"""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from delt.data.specs import short_name
from delt.errors import ConfigError, DeltError, unknown, visible
from delt.flags import ImageSettings, PlanSettings, Settings, StudySettings, check_options, flags_given
from delt.ranks import prefix, rank, ranks

STAGES = {
    "run": "Do a whole run: teacher, ranking, synthesis, labels, students, and a table.",
    "squeeze": "Train or load the teacher of a run.",
    "rank": "Score the real patches of a run and choose its starting images.",
    "recover": "Optimise the synthetic images of a run.",
    "relabel": "Store the soft labels of a run, where they are stored.",
    "evaluate": "Train the students of a run; on a finished run, new recipes, students or seeds add rows. "
    "With --images and --dataset, do so with distilled images from elsewhere.",
}


FROM_IMAGES = ("config", "method", "ipc", "iterations", "round_iterations", "sub_batches")  # settled by --images, as are rank_ and recover_
PLACES = ("out", "config", "images")


def _from_images(given: dict[str, Any]) -> dict[str, Any]:
    """The flags of `delt evaluate` with those of images from elsewhere put into the words of `delt run`."""
    from delt.data.given import count_given

    images, dataset = given.pop("images", None), given.pop("images_of", None)
    if images is None and dataset is None:
        return given
    if images is None:
        raise ConfigError(f"--dataset {dataset} goes with --images FOLDER; without images from elsewhere write `delt evaluate {dataset}`")
    if needless := [name for name in given if name in FROM_IMAGES or name.startswith(("rank_", "recover_"))]:
        raise ConfigError(f"--images are evaluated as they are: leave out {', '.join('--' + name.replace('_', '-') for name in needless)}")
    if given.setdefault("dataset", dataset) is None or dataset not in (None, given["dataset"]):
        raise ConfigError("--images FOLDER needs --dataset NAME, the one data set of its classes (`delt datasets` lists them)")
    name = f"{short_name(given['dataset'])}-given-{images.resolve().name}-seed{given.get('seed', 0)}"
    return {"out": Path("runs") / name, **given, "method": "given", "rank_folder": str(images), "ipc": count_given(images)}


def _configured(settings: Any) -> tuple[Any, Path]:
    """The configuration and run folder that the flags mean."""
    from delt.methods import changed, configure
    from delt.results import read_config

    given = flags_given(settings)
    given |= {name: Path(value).expanduser() for name, value in given.items() if name in PLACES}  # no shell does it in --out=~/a
    given = _from_images(given)
    out, source = given.pop("out", None), given.pop("config", None)
    if source is None and "dataset" not in given and out is not None and (out / "config.json").is_file():
        source = out / "config.json"
    if source is None and "dataset" not in given and out is not None:
        raise ConfigError(f"no run at {out} (looked for config.json in it), and no data set: name one (`delt datasets` lists them)")
    if source is not None:
        if not source.is_file():
            raise ConfigError(f"no configuration at {source}: give the config.json of a run")
        config = changed(read_config(source), given)
    elif "dataset" in given:
        config = configure(**given)
    else:
        raise ConfigError("no data set: name one (`delt datasets` lists them), or give --config FILE or the --out of a run")
    return config, out or Path("runs") / f"{short_name(config.dataset)}-{config.method}-ipc{config.ipc}-seed{config.seed}"


def _stage(name: str) -> Callable[[Any], None]:
    def command(settings: Any) -> None:
        from delt.pipeline import run

        config, out = _configured(settings)
        done = run(config, out, until="evaluate" if name == "run" else name)
        if rank() > 0:
            return
        if name in ("run", "evaluate"):
            print(f"\n{done.table()}\n")
        print(f"{name}: done, {visible(out)}")

    command.__doc__ = STAGES[name]
    command.__annotations__ = {"settings": ImageSettings if name == "evaluate" else Settings, "return": None}
    return command


def plan(settings: Any) -> None:
    """Say what a run will compute, write and take, before any of it is done: the flags of `delt run`, and --machine."""
    from delt.analysis.plan import plan_of

    wanted = {name: value for name, value in vars(settings).items() if name != "machine"}
    config, _ = _configured(Settings(**wanted))
    print(f"\n{plan_of(config, settings.machine or 'here').table()}\n")


plan.__annotations__ = {"settings": PlanSettings, "return": None}


def experiment(settings: Any) -> None:
    """Do a run inside the experiment notebook; --out receives the executed notebook, its HTML copy and the run folder."""
    from delt.batch import experiment as execute
    from delt.results import load

    config, out = _configured(settings)
    notebook, page = execute(config, out)
    print(f"\n{load(out / 'run').table()}\n")
    print(f"notebook  {notebook}\npage      {page}\nrun       {out / 'run'}")


experiment.__annotations__ = {"settings": Settings, "return": None}


def sweep(file: tyro.conf.Positional[Path], out: Path | None = None, jobs: int | None = None, engine: str = "local") -> None:
    """Run a grid or a list of points, each in the experiment notebook; the same command does what is missing or failed.

    Args:
        file: sweep file (papermill_runs/sweeps/*.yaml).
        out: folder of the sweep; papermill_runs/NAME where not given.
        jobs: points at a time; where not given the file's, or 1, on a cluster as many as fit.
        engine: where points run: local, slurm or ray.
    """
    from delt.batch import run_sweep

    result = run_sweep(file, out, jobs, engine)
    print(f"\n{len(result.done)} points done, {len(result.failed)} failed")
    for name, error in result.failed.items():
        print(f"  {name}: {visible(error)}\n    {result.out / name / 'error.txt'}")
    print(f"picture   {result.out / 'summary.png'}\nsummary   {result.out / 'summary.html'}")
    if result.failed:
        sys.exit(1)


def compare(settings: Any) -> None:
    """Run several methods on one data set under one protocol, and put them into one table beside random real images.

    Each row has at least 5 students unless --evaluate-seeds or preset smoke says otherwise. With --recipe paper each method is
    evaluated by its own paper's protocol, beside random real images under the same.
    """
    from delt.study import study

    given = flags_given(settings)
    dataset, methods = given.pop("dataset", None), given.pop("methods", None)
    if dataset is None or methods is None:
        raise ConfigError("give a data set and --methods NAME,NAME (`delt datasets` and `delt methods` list them)")
    sizes = given.pop("ipc", "")
    if not all(part.isdecimal() for part in sizes.split(",") if sizes):
        raise ConfigError(f"ipc is {sizes!r}; allowed are whole numbers with commas, such as 3,10")
    ipcs = [int(part) for part in sizes.split(",")] if sizes else [None]
    out = given.pop("out", Path("runs") / f"{short_name(dataset)}-compare")
    names = [name.strip() for name in methods.split(",") if name.strip()]
    found = study(dataset, names, out, ipcs, **given)
    print(f"\n{found.table()}\n\ntable     {out / 'table.txt'}\npicture   {out / 'comparison.png'}")


compare.__annotations__ = {"settings": StudySettings, "return": None}


Folders = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FOLDER [FOLDER ..]", help_behavior_hint="")]


def show(folders: tyro.conf.Positional[Folders]) -> None:
    """Print what a run folder holds: its settings, its table and its files; of several, one table of all.

    Args:
        folders: run folders, or patterns such as "runs/*".
    """
    from delt.analysis.compare import differences_to, table
    from delt.results import compare, load_all

    if not folders:
        raise ConfigError("no run folder: name one, or several to compare them")
    runs = load_all(folders)
    if len(runs) == 1:
        print(next(iter(runs.values())).describe())
    else:
        found = compare(runs)
        print("\n".join([table(found), "", *map(visible, differences_to(found, "random"))]).rstrip())


def verify(folder: tyro.conf.Positional[Path]) -> None:
    """Re-hash every file of a run against its manifest; exit code 2 where something is missing or damaged.

    Args:
        folder: the run folder.
    """
    from delt.artifacts.folder import verify as check
    from delt.results import load

    problems = check(load(folder).path)
    if problems:
        print("\n".join(map(visible, problems)))
        sys.exit(2)
    print(f"{visible(folder)}: every file is as recorded")


def bench(
    device: str = "auto",
    sizes: str = "32,64,224",
    variants: str = "",
    seconds: float = 1.0,
    smoke: bool = False,
    out: Path | None = None,
) -> None:
    """Measure how fast synthesis is on this machine, beside a plain loop in the published style.

    Args:
        device: auto, cpu, cuda or cuda:N.
        sizes: pixels per side, with commas.
        variants: arithmetic of the teacher, with commas, such as fp32,fp16+compile (default: those that suit the device).
        seconds: of each measurement, at least.
        smoke: a tiny network and tiny images, as a proof that everything runs; nothing is written without --out.
        out: JSON file for the result (default: bench_DEVICE.json in benchmarks/results, or here where that is not).
    """
    from delt import bench as measuring
    from delt.storage import write_json

    if not all(part.isdecimal() and 8 <= int(part) <= 1024 for part in sizes.split(",")):
        raise ConfigError(f"sizes is {sizes!r}; allowed are whole numbers from 8 to 1024 with commas, such as 32,224")
    names = [name.strip() for name in variants.split(",") if name.strip()]
    found = measuring.bench(device, [int(part) for part in sizes.split(",")], names, smoke, seconds)
    if out is None and not smoke:
        folder = Path("benchmarks/results")
        out = (folder if folder.is_dir() else Path()) / f"bench_{found['machine']['device'].split(':')[0]}.json"
    if out is not None:
        write_json(out.expanduser(), found)
        print(f"result    {out}")


def datasets() -> None:
    """List the data sets."""
    from delt.data.specs import DATASETS

    for spec in DATASETS.values():
        size = f"{spec.size} px" if spec.size else "own size"
        print(f"{spec.name:<14} {spec.count or '?':>5} classes  {size:>7}  {spec.channels or '?'} channels  {spec.hint}")
    print(f"{'folder:PATH':<14} your own images: PATH/train/CLASS/* and PATH/val/CLASS/*, or PATH/CLASS/* split from a fixed seed")


def methods() -> None:
    """List the methods."""
    from delt.methods import METHODS

    for name, method in METHODS.items():
        print(f"{name:<12} {method.title}")


def models() -> None:
    """List the architectures; those marked with + have BatchNorm layers and can be teachers."""
    from delt.models.zoo import architectures, teachers

    able = set(teachers())
    for name in architectures():
        print(f"{'+' if name in able else ' '} {name}")


COMMANDS: dict[str, Callable[..., None]] = {
    **{name: _stage(name) for name in STAGES},
    "experiment": experiment,
    "plan": plan,
    "sweep": sweep,
    "compare": compare,
    "show": show,
    "verify": verify,
    "bench": bench,
    "datasets": datasets,
    "methods": methods,
    "models": models,
}


def _open_streams() -> None:
    """Where a shell closed a stream (2>&-), write to nowhere: the next file to be opened would otherwise take its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: its own
            os.set_inheritable(number, True)  # by workers, too
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _say(words: str) -> None:
    """The last words of a command; where they cannot be written either, as on a full disk, its exit code stays what it is."""
    try:
        print(words, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; our own errors become one line and their exit code."""
    warnings.showwarning = lambda message, *rest, **more: print(f"delt: {prefix()}warning: {visible(message)}", file=sys.stderr)
    arguments = sys.argv[1:] if arguments is None else arguments
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and "utf" not in stream.encoding.lower():
            stream.reconfigure(errors="replace")  # a terminal of another encoding shows ? for what it does not know
    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            raise unknown("command", arguments[0], COMMANDS)
        if arguments and arguments[0] in COMMANDS:
            check_options(arguments[0], COMMANDS[arguments[0]], arguments[1:])
        if ranks() > 1 and arguments and arguments[0] not in STAGES:
            raise ConfigError(f"torchrun started {ranks()} processes of `delt {arguments[0]}`; it is for {', '.join(STAGES)}")
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="delt",
            description="Dataset distillation with EarlyLate: a few synthetic images per class that train a network.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    except DeltError as error:
        if error.exit_code:  # 0: this process only followed another, which has said why
            _say(f"delt: {prefix()}{visible(error)}")
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:  # a path that cannot be: its name is too long, or a folder on the way may not be looked into
        if error.filename is not None:
            _say(f"delt: {prefix()}cannot use {visible(error.filename)}: {error.strerror}; choose another path")
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):  # what is printed: our own files say so themselves
            _say(f"delt: {prefix()}what is printed cannot be written: {error.strerror}; the same command goes on where it was")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left of it would fail again
        else:
            raise
        sys.exit(2)
    except KeyboardInterrupt:
        _say("\ndelt: stopped; the same command goes on where it was")
        sys.exit(130)


if __name__ == "__main__":
    main()

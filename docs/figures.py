"""Draw the figures of the documentation from a finished run: `python docs/figures.py RUN_FOLDER`.

They are written to `docs/images`, or to `--out`. The run has to have recorded the class that `--label` names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

import delt
from delt import plots
from delt.analysis.table import schedule_of

DPI = 130
IMAGES = Path(__file__).resolve().parent / "images"


def figures(run: delt.Run, label: int) -> dict[str, Figure]:
    """File name without its ending -> figure.

    Args:
        label: the class whose images are followed while they are optimised.

    Raises:
        DataError: the run recorded no images of that class.
        DeltError: the run is not finished, or a file was changed.
    """
    recover = run.config.recover
    drawn = {
        "images": plots.images(run.synthetic),
        "schedule": plots.schedule(
            schedule_of(run.config), recover.lr, recover.min_crop, recover.curriculum, recover.milestone, recover.clock
        ),
        "accuracy": plots.accuracy(run.scores),
        "diversity": plots.diversity(run.diversity),
    }
    if run.snapshots:
        drawn["trajectory"] = plots.trajectory(run.snapshots, label, name=dict(enumerate(run.synthetic.classes)).get(label))
    return drawn


def main() -> None:
    """Write the figures as PNG files and say where."""
    parser = argparse.ArgumentParser(description="Draw the figures of the documentation from a finished run.")
    parser.add_argument("run", type=Path, help="a finished run's folder")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder for the PNG files (default: docs/images)")
    parser.add_argument("--label", type=int, default=3, help="class whose images are followed (default: 3)")
    args = parser.parse_args()
    try:
        drawn = figures(delt.load(args.run), args.label)
    except delt.DeltError as error:
        raise SystemExit(str(error)) from None
    args.out.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        data = plots.png(figure, DPI)
        (args.out / f"{name}.png").write_bytes(data)
        print(f"{args.out / name}.png, {len(data) / 1000:.0f} kB")


if __name__ == "__main__":
    main()

"""The public face: what `import delt` promises."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import delt
from delt.artifacts.scores import Score


def test_every_name_is_there():
    for name in delt.__all__:
        assert getattr(delt, name) is not None
    assert set(delt.__all__) == set(delt._HOMES) <= set(dir(delt))


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'sqeeze'"):
        _ = delt.sqeeze


def test_importing_is_quick_and_silent():
    code = "import sys, delt\nassert 'torch' not in sys.modules\nassert 'numpy' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == done.stderr == ""


def test_the_verbs_one_by_one_make_what_a_run_makes(tmp_path):
    """The lines of README.md, for a seed that is no default."""
    config = delt.configure("digits", preset="smoke", ipc=2, seed=3, iterations=4, evaluate_controls=[])
    done = delt.run(config, tmp_path / "run")
    real = delt.open_set(config.dataset, config.data)
    job = delt.Job(config.seed, done.config.runtime)
    teacher = delt.squeeze(real, config.teacher, job)
    patches = delt.rank(teacher, real, config.rank, config.ipc, job)
    synthetic = delt.recover(teacher, patches, config.recover, job)
    labels = delt.relabel(teacher, synthetic, config.relabel, job, config.evaluate.recipe)
    scores = delt.evaluate(synthetic, labels, real.test, config.evaluate, job)
    assert isinstance(real, delt.RealSet) and isinstance(patches, delt.Patches)
    assert torch.equal(synthetic.images, done.synthetic.images) and delt.Scores(scores).rows == done.scores.rows


def test_artefacts_take_folders_as_text(tmp_path):
    images, zeros = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.long)
    synthetic = delt.SyntheticSet(images, torch.tensor([0, 1]), ("a", "b"), zeros, zeros, ["noise"] * 2, 0)
    snapshots = delt.Snapshots(images[None], zeros[None], torch.tensor([0, 1]), zeros, [])
    scores = delt.Scores([Score("delt", "common", "soft", "convnet3", 0, 1, 50.0, 50.0)])
    ranking = delt.Ranking(("a", "b"), "random", 1, *[torch.tensor([0, 1])] * 6, torch.tensor([0.5, 0.5]), torch.tensor([0, 0]))
    for made in (synthetic, snapshots, scores, ranking):
        made.save(str(tmp_path))
        assert len(type(made).load(str(tmp_path)).__dict__) == len(made.__dict__)
    assert torch.equal(delt.SyntheticSet.load(str(tmp_path)).images, images) and delt.Scores.load(str(tmp_path)) == scores
    assert delt.verify(str(tmp_path)) == delt.verify(tmp_path)

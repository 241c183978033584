"""Sets in one feature space: similarity against loops, measures that agree with the run's own, sets that do not fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from delt.analysis.diversity import intra_class_cosine
from delt.analysis.sets import FeatureSet, cosine_to_class, measured, pairwise_cosine, table
from delt.data.images import TensorImages
from delt.data.load import open_set
from delt.errors import DataError


def vectors(count, size=5, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def toy(name="toy", seed=0, per_class=8):
    labels = torch.arange(3).repeat_interleave(per_class)
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    return FeatureSet(name, images, labels, ("a", "b", "c"), ["noise"] * len(labels), features=vectors(len(labels), seed=seed))


def test_pairs_equal_the_cosine_of_each():
    features = vectors(6)
    expected = [[F.cosine_similarity(a, b, dim=0).item() for b in features] for a in features]
    assert torch.allclose(pairwise_cosine(features), torch.tensor(expected, dtype=torch.float64), atol=1e-6)


def test_cosine_to_class_equals_loops_and_its_mean_is_that_of_the_class():
    features, labels = vectors(7), torch.tensor([0, 0, 0, 2, 2, 0, 1])
    found, pairs = cosine_to_class(features, labels, 4), pairwise_cosine(features)
    for row in range(6):
        others = [pairs[row, other] for other in range(7) if other != row and labels[other] == labels[row]]
        assert found[row] == pytest.approx(sum(others) / len(others))
    assert found[6].isnan()
    means = intra_class_cosine(features, labels, 4)
    assert found[labels == 0].mean() == pytest.approx(means[0].item()) and found[labels == 2].mean() == pytest.approx(means[2].item())


def test_a_set_has_the_cosine_that_its_run_recorded(smoke_run):
    card = smoke_run.teacher.card
    for name, run in {"delt": smoke_run, **smoke_run.controls}.items():
        found = FeatureSet.of(name, run.synthetic).seen_by(smoke_run.teacher, card)
        assert found.cosine == pytest.approx(smoke_run.diversity[name]["mean"], abs=2e-6)
        recorded = {card.classes[label]: value for label, value in found.by_class.items()}
        assert recorded == pytest.approx({key[6:]: value for key, value in smoke_run.diversity[name].items() if key != "mean"}, abs=2e-6)
    assert FeatureSet.of("delt", smoke_run.synthetic).sub_batch is not None
    assert FeatureSet.of("random", smoke_run.controls["random"].synthetic).sub_batch is None


def test_real_images_are_sorted_by_class_and_name_their_place():
    images = TensorImages(torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1), torch.tensor([1, 0, 1, 0, 0, 1]))
    found = FeatureSet.real("real", images, torch.tensor([5, 4, 0, 1]), ("a", "b"), "test")
    assert found.source == ["test/4", "test/1", "test/5", "test/0"] and found.labels.tolist() == [0, 0, 1, 1]
    assert found.images.flatten().tolist() == [4, 1, 5, 0] and len(found) == 4


def test_one_class_of_a_set():
    part = dataclasses.replace(toy(), sub_batch=torch.arange(24), iterations=torch.arange(24)).of_class(1, 3)
    assert part.sub_batch.tolist() == [8, 9, 10] == part.iterations.tolist() and part.labels.unique().tolist() == [1]
    assert torch.equal(part.features, toy().features[8:11]) and toy().of_class(0).sub_batch is None


def test_measures_tell_copies_from_many():
    real, many = toy("real", seed=1), toy("many", seed=2)
    same = dataclasses.replace(many, name="same", features=many.features[[0, 8, 16]].repeat_interleave(8, 0))
    rows = [measured(found, real) for found in (real, many, same)]
    assert rows[2].vendi_class == pytest.approx(1) and rows[2].vendi <= 3.0001 and rows[2].cosine == pytest.approx(1)
    assert rows[1].vendi_class > 2 and rows[1].coverage > rows[2].coverage
    assert rows[0].density is None and rows[0].coverage is None
    text = table(rows, real)
    assert "24 held-out real images" in text and "Vendi in a class" in text
    assert [line.split()[0] for line in text.splitlines()[2:5]] == ["real", "many", "same"]


def test_a_class_of_one_image_has_no_cosine():
    assert toy(per_class=1).cosine is None and measured(toy(per_class=1), toy("real", 1)).cosine is None
    assert " - " in table([measured(toy(per_class=1), toy("real", 1))], toy("real", 1))


def test_few_real_images_have_no_density():
    """Everything else is measured, and the table says what is missing."""
    few, found = toy("real", 1, per_class=1), toy()
    row = measured(found, few)
    assert row.density is None and row.coverage is None and row.cosine == found.cosine
    assert "3 held-out real images, k = 5; they need more than 5" in table([row], few)


def test_sets_of_other_classes_are_refused():
    other = dataclasses.replace(toy("other"), classes=("x", "y", "z"))
    with pytest.raises(DataError, match="other has the classes x, y, z, real has a, b, c"):
        measured(other, toy("real"))


def test_held_out_images_are_no_images_of_the_training_set(smoke_run):
    """Else every random control would cover itself."""
    config = smoke_run.config
    real = open_set(config.dataset, config.data, torch.device("cpu"))
    train = {tuple(image.flatten().tolist()) for image in real.train.fetch(torch.arange(len(real.train)))}
    test = FeatureSet.real("real", real.test, torch.arange(len(real.test)), real.info.classes, "test")
    assert sum(tuple(image.flatten().tolist()) in train for image in test.images) == 0

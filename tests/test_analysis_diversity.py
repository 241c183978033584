import math
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from delt.analysis import diversity as module
from delt.analysis.diversity import diversity, extractor_of, features_of, intra_class_cosine, same_number
from delt.artifacts.teacher import Teacher, TeacherCard
from delt.errors import ConfigError, DataError, DeltError
from delt.models import zoo

CLASSES = ("a", "b", "c")
MEAN, STD = (0.4,), (0.3,)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    card = TeacherCard("convnet3", 8, CLASSES, 1, 8, MEAN, STD, True, "toy", 90.0, "trained", "", {})
    return Teacher(zoo.build("convnet3", 3, 1, 8, 8, generator_seed=0), card)


def pixels(count: int, channels: int = 1, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, channels, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def vectors(count: int, width: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def by_pairs(features: Tensor, labels: Tensor, classes: int) -> list[float]:
    """Every pair, one by one, in float64."""
    means = []
    for label in range(classes):
        rows = features[labels == label].double()
        cosines = [
            float(rows[i] @ rows[j] / (rows[i].norm() * rows[j].norm())) if rows[i].any() and rows[j].any() else 0.0
            for i in range(len(rows))
            for j in range(i + 1, len(rows))
        ]
        means.append(sum(cosines) / len(cosines) if cosines else math.nan)
    return means


@pytest.mark.parametrize("seed", range(4))
def test_equals_all_pairs_one_by_one(seed: int) -> None:
    labels = torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(seed))
    features = vectors(40, seed=seed) + seed  # with an offset the cosines are high: they are not centred
    features[3] = 0
    assert intra_class_cosine(features, labels, 5).tolist() == pytest.approx(by_pairs(features, labels, 5), abs=1e-12)


def test_classes_with_fewer_than_two_images_have_no_value() -> None:
    cosines = intra_class_cosine(vectors(3), torch.tensor([0, 2, 2]), 4)
    assert cosines.isnan().tolist() == [True, True, False, True]


def test_known_values() -> None:
    features = torch.tensor([[1.0, 0], [0, 1], [3, 3], [3, 3], [1, 0], [-1, 0]])
    assert intra_class_cosine(features, torch.tensor([0, 0, 1, 1, 2, 2]), 3).tolist() == pytest.approx([0, 1, -1], abs=1e-12)


def test_length_and_order_of_the_vectors_do_not_matter() -> None:
    features, labels = vectors(30), torch.arange(30) % 3
    plain = intra_class_cosine(features, labels, 3)
    scale = torch.rand(30, 1, generator=torch.Generator().manual_seed(1)) * 100 + 0.01
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(intra_class_cosine(features * scale, labels, 3), plain, atol=1e-6, rtol=0)
    torch.testing.assert_close(intra_class_cosine(features[order], labels[order], 3), plain, atol=1e-12, rtol=0)
    torch.testing.assert_close(intra_class_cosine(features, 2 - labels, 3), plain.flip(0), atol=1e-12, rtol=0)


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 3], [0, 1, -1]])
def test_refuses_labels_that_do_not_fit(labels: list[int]) -> None:
    with pytest.raises(DataError, match="3 feature vectors and . labels of 3 classes"):
        intra_class_cosine(vectors(3), torch.tensor(labels), 3)


def test_refuses_features_that_are_not_finite() -> None:
    with pytest.raises(DeltError, match="not finite"):
        intra_class_cosine(torch.tensor([[1.0], [math.nan]]), torch.tensor([0, 0]), 1)


def test_yields_the_mean_first_and_then_each_class_that_has_a_value(teacher: Teacher) -> None:
    images, labels = pixels(9), torch.tensor([0] * 4 + [1] + [2] * 4)
    values = list(diversity(images, labels, CLASSES, teacher, MEAN, STD))
    assert [name for name, _ in values] == ["mean", "class/a", "class/c"]
    assert values[0][1] == pytest.approx((values[1][1] + values[2][1]) / 2)
    normalised = ((images.float() / 255) - MEAN[0]) / STD[0]
    expected = by_pairs(zoo.features(teacher.model, normalised), labels, 3)
    assert [values[1][1], values[2][1]] == pytest.approx([expected[0], expected[2]], abs=1e-6)


def test_nothing_to_compare_yields_nothing(teacher: Teacher) -> None:
    assert list(diversity(pixels(3), torch.arange(3), CLASSES, teacher, MEAN, STD)) == []


def test_identical_images_are_not_diverse(teacher: Teacher) -> None:
    images = pixels(3).repeat_interleave(5, 0)
    values = dict(diversity(images, torch.arange(3).repeat_interleave(5), CLASSES, teacher, MEAN, STD))
    assert list(values.values()) == pytest.approx([1] * 4, abs=1e-9)
    mixed = dict(diversity(images, torch.arange(15) % 3, CLASSES, teacher, MEAN, STD))
    assert all(value < 0.999 for value in mixed.values())


def test_a_class_may_be_called_mean(teacher: Teacher) -> None:
    values = dict(diversity(pixels(6), torch.arange(6) % 3, ("mean", "b", "class/b"), teacher, MEAN, STD))
    assert set(values) == {"mean", "class/mean", "class/b", "class/class/b"}
    assert values["mean"] == pytest.approx(sum(value for name, value in values.items() if name != "mean") / 3)


def test_images_reach_the_device_a_batch_at_a_time(teacher: Teacher) -> None:
    """An extractor that sees what is handed to it; the device is one that keeps no pixels."""
    seen: list[tuple[str, int]] = []

    class Watching:
        def features(self, images: Tensor) -> Tensor:
            seen.append((images.device.type, len(images)))
            return torch.ones(len(images), 2)

    assert features_of(pixels(10), Watching(), MEAN, STD, "meta", batch=4).shape == (10, 2)
    assert seen == [("meta", 4), ("meta", 4), ("meta", 2)]
    seen.clear()
    values = dict(diversity(pixels(6), torch.arange(6) % 3, CLASSES, Watching(), MEAN, STD, "meta"))
    assert values["mean"] == pytest.approx(1) and seen == [("meta", 6)]


@pytest.mark.parametrize("batch", [1, 3, 10, 99])
def test_batching_does_not_matter(teacher: Teacher, batch: int) -> None:
    images = pixels(10)
    together = features_of(images, teacher, MEAN, STD)
    assert together.shape == (10, 8)
    assert not together.requires_grad
    torch.testing.assert_close(features_of(images, teacher, MEAN, STD, batch=batch), together, atol=1e-5, rtol=1e-5)


def test_same_number_of_real_images() -> None:
    labels = torch.arange(60) % 3
    drawn = same_number(labels, 5, seed=0)
    assert labels[drawn].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert len(drawn.unique()) == 15
    assert torch.equal(drawn, same_number(labels, 5, seed=0))
    assert not torch.equal(drawn, same_number(labels, 5, seed=1))
    assert torch.equal(same_number(torch.cat([labels, torch.tensor([3])]), 5, 0)[:15], drawn)  # another class changes none
    assert labels[same_number(labels, 99, 0)].bincount().tolist() == [20, 20, 20]
    assert len(same_number(torch.empty(0, dtype=torch.int64), 5, 0)) == 0


def test_teacher_is_its_own_extractor(teacher: Teacher) -> None:
    assert extractor_of("teacher", teacher) is teacher


@pytest.mark.parametrize(("name", "pretrained"), [("convnet4", True), ("shufflenet_v2_x0_5", False)])
def test_untrained_networks_are_the_same_for_everyone(teacher: Teacher, name: str, pretrained: bool) -> None:
    state = torch.random.get_rng_state()
    first, second = (extractor_of(name, teacher, pretrained=pretrained) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first.features(images), second.features(images))
    assert first.features(images).ndim == 2
    torch.testing.assert_close(first.features(images)[:2], first.features(images[:2]), atol=1e-5, rtol=1e-5)  # in eval mode


def test_unknown_extractor_names_the_nearest(teacher: Teacher) -> None:
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        extractor_of("resnet81", teacher)


def test_published_weights_see_the_images_that_they_expect(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the download with a flat network that hands its input on."""
    asked: list[tuple[Any, ...]] = []

    def load(*given: Any) -> nn.Module:
        asked.append(given)
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))

    monkeypatch.setattr(module, "load_weights", load)
    extractor = extractor_of("resnet18", teacher)
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    (name, arch, width, info) = asked[0]
    assert (name, arch, width, info.channels, info.size, len(info.classes)) == (weights.name, "resnet18", None, 3, 224, 1000)

    grey = torch.tensor([0.0, 0.25, 1.0])  # images of one brightness keep it when they are resized
    images = ((grey - MEAN[0]) / STD[0]).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    expected = (grey.unsqueeze(1) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(extractor.features(images), expected, atol=1e-5, rtol=1e-5)

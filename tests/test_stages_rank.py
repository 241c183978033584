"""Rank: scores against single images, the published order, crops and collages of real pixels only."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from delt.artifacts.ranking import Patches, Ranking
from delt.artifacts.synthetic import png_bytes
from delt.artifacts.teacher import Teacher, TeacherCard
from delt.config import RankConfig, RuntimeConfig
from delt.coresets import herding, k_means
from delt.data.augment import draw_boxes
from delt.data.images import DataInfo, RealSet, TensorImages, normalise
from delt.errors import DataError, DeltError, Stopped, TeacherError
from delt.job import Job
from delt.models.zoo import build
from delt.runtime import seed_of, stream
from delt.stages import rank as module
from delt.stages.rank import SMALLEST, _cut, collage, medium_order, order, rank, render

CLASSES, EACH, SIZE = ("cat", "dog", "elk"), 11, 8
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def real() -> RealSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (len(CLASSES) * EACH, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    labels = (torch.arange(len(pixels)) * 7) % len(CLASSES)  # classes are mixed, as in a real set
    images = TensorImages(pixels, labels)
    return RealSet(DataInfo("toy", CLASSES, 3, SIZE, MEAN, STD, True, 0.0), images, images, "")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    model = build("convnet3", len(CLASSES), 3, SIZE, 8, 1)
    with torch.no_grad():
        model.train()(torch.randn(64, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))
    return Teacher(model, TeacherCard("convnet3", 8, CLASSES, 3, SIZE, MEAN, STD, True, "toy", 50.0, "trained", "", {}))


def job(seed: int = 0) -> Job:
    return Job(seed, RuntimeConfig(device="cpu", threads=1))


def ranking_of(patches: Patches) -> Ranking:
    assert patches.ranking is not None
    return patches.ranking


def ranked(teacher: Teacher, real: RealSet, ipc: int = 2, seed: int = 0, **config: Any) -> Ranking:
    return ranking_of(rank(teacher, real, RankConfig(**config), ipc, job(seed)))


def probability(teacher: Teacher, pixels: Tensor, label: int, pad: int = 0) -> float:
    """The obvious score: one image alone, softmax over its logits. `pad` puts it on the mean colour."""
    image = F.pad(normalise(pixels, MEAN, STD), (pad, pad, pad, pad))
    logits = teacher.model(image)[0].double()
    return float((logits[label].exp() / logits.exp().sum()).detach())


# ---------------------------------------------------------------- order


def test_medium_order_of_the_published_example():
    assert medium_order(500)[:6] == [250, 251, 249, 252, 248, 253]
    assert medium_order(500)[-2:] == [1, 0]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 50, 51, 299, 300, 500, 1299])
def test_medium_order_is_by_distance_from_the_middle(count: int):
    middle = min(math.ceil(count / 2), count - 1)
    expected = sorted(range(count), key=lambda place: (abs(place - middle), -place))  # of two as near, the higher first
    assert medium_order(count) == expected


def test_the_other_orders():
    assert order("easy", 5, stream(0)) == [4, 3, 2, 1, 0]
    assert order("hard", 5, stream(0)) == [0, 1, 2, 3, 4]
    assert sorted(order("random", 50, stream(0))) == list(range(50)) != order("random", 50, stream(0))
    assert order("random", 50, stream(0)) == order("random", 50, stream(0)) != order("random", 50, stream(1))


# ---------------------------------------------------------------- scores and choice


def test_scores_are_those_of_single_images(teacher: Teacher, real: RealSet):
    ranking = ranked(teacher, real, keep="hard")
    expected = [
        probability(teacher, real.train.fetch(row[None]), int(label)) for row, label in zip(ranking.image, ranking.class_index, strict=True)
    ]
    assert ranking.score.tolist() == pytest.approx(expected, abs=1e-5)
    for label in range(len(CLASSES)):
        mine = ranking.class_index == label
        assert torch.equal(ranking.image[mine].sort().values, torch.nonzero(real.train.labels == label)[:, 0])
        assert (ranking.score[mine].diff() >= 0).all()
    assert ranking.score.std() > 0.01  # else the order would mean nothing


@pytest.mark.parametrize("ipc", [1, 4, EACH])
@pytest.mark.parametrize("keep", ["medium", "easy", "hard"])
def test_the_kept_images_are_the_first_in_order(keep: str, ipc: int, teacher: Teacher, real: RealSet):
    patches = rank(teacher, real, RankConfig(keep=keep), ipc, job())
    ranking = ranking_of(patches)
    assert patches.images is not None and patches.images.shape == (ipc * len(CLASSES), 3, SIZE, SIZE)
    for label, name in enumerate(CLASSES):
        images = torch.nonzero(real.train.labels == label)[:, 0].tolist()
        rising = sorted(images, key=lambda row, label=label: probability(teacher, real.train.fetch(torch.tensor([row])), label))
        places = {"medium": medium_order(EACH), "easy": list(range(EACH))[::-1], "hard": list(range(EACH))}[keep][:ipc]
        expected = [rising[place] for place in places]
        assert ranking.image[ranking.kept(label)].tolist() == expected, name
        for turn, row in enumerate(expected):
            assert torch.equal(patches.images[label * ipc + turn], real.train.fetch(torch.tensor([row]))[0])
            assert patches.sources[label * ipc + turn] == f"train/{row}[0,0,{SIZE},{SIZE}]"


@pytest.mark.parametrize(
    "config",
    [{"keep": "random"}, {"keep": "medium", "images": 5}, {"keep": "hard", "crops": 2}, {"keep": "random", "crops": 2, "images": 4}],
)
def test_draws_depend_on_the_seed_and_on_nothing_else(config: dict[str, Any], teacher: Teacher, real: RealSet):
    first = rank(teacher, real, RankConfig(**config), 3, job(1))
    torch.rand(5)
    rank(teacher, real, RankConfig(**config), 2, job(2))
    again = rank(teacher, real, RankConfig(**config), 3, job(1))
    assert first.sources == again.sources and torch.equal(first.images, again.images)  # type: ignore[arg-type]
    assert rank(teacher, real, RankConfig(**config), 3, job(2)).sources != first.sources


def test_random_keeps_distinct_images_without_asking_the_teacher(teacher: Teacher, real: RealSet):
    ranking = ranked(teacher, real, 4, keep="random")
    assert ranking.score.isnan().all()
    for label in range(len(CLASSES)):
        kept = ranking.image[ranking.kept(label)]
        assert len(set(kept.tolist())) == 4 and (real.train.labels[kept] == label).all()
    seen = {row for seed in range(20) for row in ranked(teacher, real, 4, seed, keep="random").image[:EACH].tolist()}
    assert len(seen) == EACH  # every image can be drawn


def test_candidates_are_limited_but_never_too_few(teacher: Teacher, real: RealSet):
    for images, expected in [(5, 5), (1, 3), (EACH, EACH), (300, EACH), (0, EACH)]:
        ranking = ranked(teacher, real, 3, keep="medium", images=images)
        assert ranking.class_index.bincount().tolist() == [expected] * len(CLASSES)
        assert ranking.image.unique().numel() == len(ranking)


def test_a_class_with_too_few_images_is_named(teacher: Teacher, real: RealSet):
    labels = real.train.labels.clone()
    labels[torch.nonzero(labels == 1)[:3, 0]] = 0
    short = replace(real, train=TensorImages(real.train.fetch(torch.arange(len(labels))), labels))
    with pytest.raises(DataError, match=re.escape("class 'dog' has 8 training images and 9 starting patches are needed: lower ipc")):
        rank(teacher, short, RankConfig(), 9, job())
    with pytest.raises(DataError, match="'dog' has 8 training images and 12 starting patches"):
        rank(teacher, short, RankConfig(factor=2), 3, job())
    assert len(rank(teacher, short, RankConfig(), 8, job()).sources) == 24


@pytest.mark.parametrize("keep", ["medium", "random", "noise"])
def test_a_teacher_of_other_classes_or_images_ranks_nothing(keep: str, teacher: Teacher, real: RealSet):
    names = real.info.classes
    for info, words in (
        (replace(real.info, classes=names[:-1]), f"a teacher for {len(names)} classes, the data set has {len(names) - 1}"),
        (replace(real.info, classes=(names[1], names[0], *names[2:])), f"class 0 is '{names[1]}' in the data set"),
        (replace(real.info, size=2 * real.info.size), "the teacher sees images of"),
    ):
        with pytest.raises(TeacherError, match=re.escape(words)):
            rank(teacher, replace(real, info=info), RankConfig(keep=keep), 1)


def test_noise_has_no_images_and_no_ranking(teacher: Teacher, real: RealSet):
    patches = rank(teacher, real, RankConfig(keep="noise"), 50, job())
    assert (patches.images, patches.ranking, patches.sources) == (None, None, ["noise"] * 150)


def test_progress_adds_up(teacher: Teacher, real: RealSet):
    for config in (RankConfig(), RankConfig(keep="random"), RankConfig(crops=3), RankConfig(images=4)):
        events: list[dict[str, Any]] = []
        rank(teacher, real, config, 2, Job(0, RuntimeConfig(device="cpu"), emit=events.append))
        assert events[0]["total"] == sum(event.get("done", 0) for event in events[1:]) > 0


# ---------------------------------------------------------------- crops and collages


def resized(pixels: Tensor, box: list[int], side: int) -> Tensor:
    """The obvious crop: slice, then torch's own antialiased bilinear resizing."""
    top, left, height, width = box
    part = pixels[..., top : top + height, left : left + width].float()
    return F.interpolate(part[None], (side, side), mode="bilinear", antialias=True, align_corners=False)[0]


@pytest.mark.parametrize(("size", "side"), [(8, 8), (8, 4), (9, 3), (32, 32), (32, 16), (33, 11)])
def test_cut_is_slicing_and_resizing(size: int, side: int):
    boxes = torch.cat(
        [draw_boxes(40, size, 0.05, stream("boxes", size)), torch.tensor([[0, 0, size, size], [size - 1, 0, 1, size], [2, 3, 1, 1]])]
    )
    images = 255 * torch.rand(len(boxes), 2, size, size, generator=stream("images", size))
    for found, image, box in zip(_cut(images, boxes, side), images, boxes.tolist(), strict=True):
        torch.testing.assert_close(found, resized(image, box, side), atol=2e-3, rtol=0)
    if side == size:
        assert torch.equal(_cut(images, boxes, side)[40], images[40])


@pytest.mark.parametrize("factor", [1, 2])
def test_the_best_crop_stands_for_its_image(factor: int, teacher: Teacher, real: RealSet):
    tries, side = 4, SIZE // factor
    ranking = ranked(teacher, real, 1, seed=6, keep="hard", crops=tries, factor=factor)
    for label in range(len(CLASSES)):
        boxes = draw_boxes(EACH * tries, SIZE, SMALLEST, stream(6, "rank", "crops", label), (1.0, 1.0))
        boxes, square = boxes.view(EACH, tries, 4).tolist(), boxes[:, 2] == boxes[:, 3]
        assert square.all(), "RDED's crops keep their shape"
        for image, own in zip(torch.nonzero(real.train.labels == label)[:, 0].tolist(), boxes, strict=True):
            pixels = normalise(real.train.fetch(torch.tensor([image])), MEAN, STD)[0]
            pad = (SIZE - side) // 2
            canvases = [F.pad(resized(pixels, box, side), (pad, pad, pad, pad))[None] for box in own]
            scores = [float(teacher.model(canvas).softmax(1)[0, label]) for canvas in canvases]
            row = int(torch.nonzero(ranking.image == image))
            assert ranking.score[row].item() == pytest.approx(max(scores), abs=1e-5)
            found = [int(column[row]) for column in (ranking.top, ranking.left, ranking.height, ranking.width)]
            assert found == own[scores.index(max(scores))]


class Counting(TensorImages):
    """Counts how often each image is fetched."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        super().__init__(pixels, labels)
        self.fetched = torch.zeros(len(labels), dtype=torch.long)
        self.most = 0

    def fetch(self, index: Tensor) -> Tensor:
        self.fetched += index.bincount(minlength=len(self.labels))
        self.most = max(self.most, len(index))
        return super().fetch(index)


@pytest.mark.parametrize("batch", [4, 256])
def test_every_image_is_decoded_once_however_many_crops(batch: int, teacher: Teacher, real: RealSet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("delt.stages.rank.BATCH", batch)
    images = Counting(real.train.fetch(torch.arange(len(real.train))), real.train.labels)
    patches = rank(teacher, replace(real, train=images), RankConfig(crops=5), 1, job())
    ranking = ranking_of(patches)
    assert images.fetched.tolist() == [1] * len(images) and images.most <= batch
    assert patches.of([(1, 0)]) is not None
    kept = ranking.image[ranking.kept(1)[:1]]
    images.fetched[kept] -= 1  # a starting image is cut when it is wanted, and no other
    assert images.fetched.tolist() == [1] * len(images) and images.most <= batch


@pytest.mark.parametrize("crops", [0, 1, 3])
def test_the_batches_do_not_matter(crops: int, teacher: Teacher, real: RealSet, monkeypatch: pytest.MonkeyPatch):
    whole = ranked(teacher, real, 4, crops=crops)
    monkeypatch.setattr("delt.stages.rank.BATCH", 4)  # the last batches of a class of eleven are short
    split = ranked(teacher, real, 4, crops=crops)
    torch.testing.assert_close(split.score, whole.score, atol=1e-6, rtol=0)
    for name in ("class_index", "image", "top", "left", "height", "width", "place"):
        assert torch.equal(getattr(split, name), getattr(whole, name)), name


def test_ten_images_per_class_where_nothing_is_said(teacher: Teacher, real: RealSet):
    assert len(rank(teacher, real, RankConfig(), job=job()).sources) == 10 * len(CLASSES)


def flat_set() -> RealSet:
    """Every image one grey of its own, so that a tile tells where it comes from."""
    pixels = torch.arange(36, dtype=torch.uint8).mul(7).view(36, 1, 1, 1).expand(36, 3, SIZE, SIZE).contiguous()
    images = TensorImages(pixels, torch.arange(36) // 12)
    return RealSet(DataInfo("flat", CLASSES, 3, SIZE, MEAN, STD, True, 0.0), images, images, "")


@pytest.mark.parametrize("crops", [0, 3])
@pytest.mark.parametrize(("factor", "ipc"), [(2, 3), (2, 1), (3, 1)])
def test_a_collage_is_made_of_its_tiles(factor: int, ipc: int, crops: int, teacher: Teacher):
    real, side = flat_set(), SIZE // factor
    patches = rank(teacher, real, RankConfig(keep="medium", factor=factor, crops=crops), ipc, job())
    ranking = ranking_of(patches)
    assert patches.images is not None
    for label in range(len(CLASSES)):
        kept = ranking.image[ranking.kept(label)].tolist()
        assert len(set(kept)) == ipc * factor**2
        for i in range(ipc):
            image, tiles = patches.images[label * ipc + i], [kept[k * ipc + i] for k in range(factor**2)]
            for k, origin in enumerate(tiles):
                top, left = side * (k // factor), side * (k % factor)
                assert (image[:, top : top + side, left : left + side] == 7 * origin).all()
            assert set(image.unique().tolist()) == {7 * origin for origin in tiles}  # no padding, no invented pixels
            named = [int(part.split("/")[1].split("[")[0]) for part in patches.sources[label * ipc + i].split()]
            assert named == tiles


def test_tiles_of_a_collage_are_the_resized_crops(teacher: Teacher, real: RealSet):
    patches = rank(teacher, real, RankConfig(keep="easy", factor=2, crops=3), 2, job())
    assert patches.images is not None
    for image, source in zip(patches.images, patches.sources, strict=True):
        for k, part in enumerate(source.split()):
            row, *box = map(int, re.findall(r"\d+", part))
            expected = resized(real.train.fetch(torch.tensor([row]))[0], box, 4)
            found = image[:, 4 * (k // 2) :][:, :4, 4 * (k % 2) :][..., :4]
            assert (found - expected).abs().max() <= 0.51  # rounded


def test_a_collage_that_does_not_divide_the_size_repeats_its_edge():
    tiles = torch.arange(9, dtype=torch.uint8).view(9, 1, 1, 1).expand(9, 1, 2, 2)
    image = collage(tiles, 3, 8)[0, 0]
    assert torch.equal(image[:6:2, :6:2], torch.arange(9, dtype=torch.uint8).view(3, 3))
    assert torch.equal(image[6:], image[5:6].expand(2, 8)) and torch.equal(image[:, 6:], image[:, 5:6].expand(8, 2))


@pytest.mark.parametrize("config", [{"keep": "medium"}, {"keep": "random"}, {"keep": "easy", "crops": 2, "factor": 2}])
def test_a_saved_ranking_renders_the_same_patches(config: dict[str, Any], teacher: Teacher, real: RealSet, tmp_path: Path):
    patches = rank(teacher, real, RankConfig(**config), 2, job(3))
    ranking_of(patches).save(tmp_path)
    again = render(Ranking.load(tmp_path), real, 2)
    assert again.sources == patches.sources and torch.equal(again.images, patches.images)  # type: ignore[arg-type]


# ---------------------------------------------------------------- by features


@pytest.mark.parametrize("keep", ["herding", "kmeans"])
def test_coresets_go_by_the_features_of_whole_images(keep: str, teacher: Teacher, real: RealSet):
    patches = rank(teacher, real, RankConfig(keep=keep), 4, job())
    ranking = ranking_of(patches)
    assert ranking.score.isnan().all() and patches.images is not None
    for label in range(len(CLASSES)):
        images = torch.nonzero(real.train.labels == label)[:, 0]
        features = torch.cat([teacher.features(normalise(real.train.fetch(row[None]), MEAN, STD)).detach() for row in images])
        seed = seed_of(0, "rank", "kmeans", label) % 2**32
        expected = herding(features, 4) if keep == "herding" else k_means(features, 4, seed)
        assert ranking.image[ranking.kept(label)].tolist() == images[expected].tolist()
        assert torch.equal(patches.images[label * 4 : label * 4 + 4], real.train.fetch(images[expected]))


def test_coresets_may_choose_among_crops(teacher: Teacher, real: RealSet):
    ranking = ranked(teacher, real, keep="herding", crops=3)
    assert ranking.score.isfinite().all() and len(ranking.kept(0)) == 2


# ---------------------------------------------------------------- images from elsewhere


def test_given_images_are_taken_as_they_are_and_compared_with_the_teacher(tmp_path: Path, teacher: Teacher, real: RealSet):
    brightest = Teacher(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()), teacher.card)  # channel is the class
    pixels = real.train.fetch(torch.arange(12)) // 4
    for label in range(len(CLASSES)):
        pixels[4 * label : 4 * label + 4, label] += 180

    def written(folders: list[str]) -> RankConfig:
        root = tmp_path / "-".join(folders)
        for index, image in enumerate(pixels):
            path = root / folders[index // 4] / f"{index % 4}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png_bytes(image))
        return RankConfig(keep="given", folder=str(root))

    events: list[dict[str, Any]] = []
    listening = replace(job(), emit=events.append)
    patches = rank(brightest, real, written(["00000", "00001", "00002"]), 4, listening)
    assert patches.ranking is None and patches.images is not None and torch.equal(patches.images, pixels)
    assert patches.sources[:5] == ["00000/0.png", "00000/1.png", "00000/2.png", "00000/3.png", "00001/0.png"]
    assert [event["message"] for event in events if "message" in event] == [
        f"images from {tmp_path / '00000-00001-00002'}: 100.0 % are what their folder says, as the teacher sees them"
    ]
    with pytest.raises(DataError, match=r"class order: folder 00000 looks like class 'elk' .*100 % .*, 0 % as given"):
        rank(brightest, real, written(["00001", "00002", "00000"]), 4, job())
    rank(brightest, real, written(["dog", "elk", "cat"]), 4, listening)
    assert events[-1]["message"].startswith("warning: class order: folder cat looks like class 'elk'")
    with pytest.raises(DataError, match="give --ipc 4"):
        rank(brightest, real, written(["cat", "dog", "elk"]), 3, job())
    (tmp_path / "00000-00001-00002" / "00000" / "0.png").write_bytes(png_bytes(pixels[0].repeat(1, 2, 2)))
    events.clear()
    rank(brightest, real, RankConfig(keep="given", folder=str(tmp_path / "00000-00001-00002")), 4, listening)
    assert "1 of 12 images" in next(event["message"] for event in events if "message" in event), "it is said which were resized"


# ---------------------------------------------------------------- stopped, and bad numbers


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([2, 2, 2, 2], [2, 2]), ([4], [1]), ([5, 5], [1, 1]), ([1, 3, 1, 0, 3, 4, 0], [2, 3, 2]), ([9, 1, 1], [1, 2])],
)
def test_classes_of_few_candidates_are_ranked_together(counts: list[int], expected: list[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    found = module._blocks([torch.zeros(count) for count in counts])
    assert [label for part in found for label in part] == list(range(len(counts))) and [len(part) for part in found] == expected


@pytest.mark.parametrize("config", [{}, {"crops": 2}, {"keep": "random"}, {"keep": "kmeans"}])
@pytest.mark.parametrize(("block", "left"), [(1, [2]), (1024, [0, 1, 2])])
def test_stopped_between_classes_it_goes_on_and_ends_the_same(
    config: dict[str, Any], block: int, left: list[int], teacher: Teacher, real: RealSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings, expected = RankConfig(images=5, **config), rank(teacher, real, RankConfig(images=5, **config), 2, job())
    seen = list[int]()
    monkeypatch.setattr(module, "BLOCK", block)

    def stop_in_the_third(event: dict[str, Any]) -> None:
        seen.append(event.get("done", 0))
        if len(seen) == 4:  # the total, and a report of each class
            raise Stopped

    with pytest.raises(Stopped):
        rank(teacher, real, settings, 2, Job(0, job().runtime, tmp_path, stop_in_the_third))
    real_class, ranked = module._rank_class, list[int]()

    def counted(teacher: Teacher, real: RealSet, label: int, *rest: Any) -> Any:
        ranked.append(label)
        return real_class(teacher, real, label, *rest)

    monkeypatch.setattr(module, "_rank_class", counted)
    again = rank(teacher, real, settings, 2, Job(0, job().runtime, tmp_path))
    assert ranked == left and again.sources == expected.sources and torch.equal(again.images, expected.images)
    assert ranking_of(again).save(tmp_path / "a")[0].read_bytes() == ranking_of(expected).save(tmp_path / "b")[0].read_bytes()


def test_a_score_that_is_not_finite_is_refused(teacher: Teacher, real: RealSet):
    spoiled = Teacher(build("convnet3", len(CLASSES), 3, SIZE, 8, 1), teacher.card)
    next(spoiled.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(DeltError, match="score of a patch of class 'cat' is not finite"):
        rank(spoiled, real, RankConfig(), 2, job())

"""Similarity figures: what they show equals what was measured; they fit sets of any kind."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

from delt import plots
from delt.analysis.sets import FeatureSet, cosine_to_class, pairwise_cosine
from delt.errors import DataError


def toy(name="delt", per_class=4, classes=3, made=True, seed=0):
    labels = torch.arange(classes).repeat_interleave(per_class)
    depth = torch.arange(per_class).repeat(classes) // 2
    return FeatureSet(
        name,
        torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8),
        labels,
        tuple(f"class {label}" for label in range(classes)),
        ["noise"] * len(labels),
        depth if made else None,
        100 - 10 * depth if made else None,
        torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(seed)),
    )


def on_a_plane(found, real):
    places = np.random.default_rng(0)
    return plots.embedding(places.normal(size=(len(found), 2)), real, places.normal(size=(len(real), 2)), found, "t-SNE")


def called(found, name):
    """The set with classes of long names."""
    return dataclasses.replace(found, classes=tuple(f"{name} {label} of many" for label in range(len(found.classes))))


LONG = [called(toy(name, classes=14), 3 * "long ") for name in ("delt", "random", "real")]
FOUR = [toy(per_class=5), toy("runs/one", per_class=5), toy("random", made=False), toy("real", made=False)]
FIGURES = {
    "class_similarity": lambda: plots.class_similarity([toy(), toy("random", made=False), toy("real", made=False)]),
    "class_similarity, many": lambda: plots.class_similarity([toy(classes=30)]),
    "class_similarity, ten": lambda: plots.class_similarity([toy(classes=10), toy("random", classes=10)]),
    "class_similarity, long names": lambda: plots.class_similarity(LONG),
    "class_similarity, no pairs": lambda: plots.class_similarity([toy(per_class=1), toy("random", per_class=1, made=False)]),
    "pairs, none": lambda: plots.pairs([toy(per_class=1)], 0),
    "depth, no pairs": lambda: plots.depth([toy(per_class=1), toy("random", made=False)]),
    "pairs": lambda: plots.pairs([toy(), toy("random", made=False)], 0),
    "pairs, four": lambda: plots.pairs(FOUR, 1),
    "pairs, many": lambda: plots.pairs([toy(per_class=50)], 1),
    "depth": lambda: plots.depth([toy(), toy("one_sub_batch"), toy("random", made=False)]),
    "embedding": lambda: on_a_plane(toy(), toy("real", made=False)),
}


def panels(figure):
    return [ax for ax in figure.axes if ax.axison]


def test_bars_are_sorted_and_the_line_is_their_mean():
    sets = [toy(), toy("random", made=False, seed=1), toy("real", made=False, seed=2)]
    shown = panels(plots.class_similarity(sets))
    assert len(shown) == 3
    for found, ax in zip(sets, shown, strict=True):
        heights = [bar.get_height() for bar in ax.patches]
        assert heights == sorted(found.by_class.values(), reverse=True)
        assert ax.lines[0].get_ydata()[0] == pytest.approx(np.mean(heights))
        order = sorted(found.by_class, key=lambda label: -found.by_class[label])
        assert [tick.get_text() for tick in ax.get_xticklabels()] == [found.classes[label] for label in order]


def test_many_classes_have_bars_without_names_and_lonely_images_none():
    (ax,) = panels(plots.class_similarity([toy(classes=30)]))
    assert "30 classes" in ax.get_xlabel() and len(ax.patches) == 30
    (ax,) = panels(plots.class_similarity([toy(per_class=1)]))
    assert not ax.patches and "no class has two images" in [text.get_text() for text in ax.texts]


def test_long_names_of_classes_leave_room_for_the_bars():
    figure = plots.class_similarity(LONG)
    figure.draw_without_rendering()
    for ax in panels(figure):
        assert ax.bbox.height > 0.9 * figure.dpi and ax.bbox.width > 2 * figure.dpi
        assert all("…" in tick.get_text() for tick in ax.get_xticklabels())


def test_pairs_are_the_cosines_of_one_class_without_the_diagonal():
    found = toy()
    figure = plots.pairs([found, toy("real", made=False, seed=3)], 1)
    left = figure.axes[0]
    shown = left.collections[0].get_array().reshape(4, 4)
    expected = pairwise_cosine(found.features[4:8]).numpy()
    off = ~np.eye(4, dtype=bool)
    assert np.allclose(shown[off], expected[off]) and np.ma.getmaskarray(shown)[~off].all()
    assert f"mean {expected[off].mean():.3f}" in left.get_title(loc="left")
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["1", "2"] and not figure.axes[1].get_yticklabels()
    assert left.collections[0].get_clim() == figure.axes[1].collections[0].get_clim()


def test_heights_are_named_beside_the_first_bars():
    alone, beside = panels(plots.class_similarity([toy(per_class=1), toy("random", made=False)]))
    assert not alone.patches and not alone.lines and not alone.get_ylabel() and beside.get_ylabel() == plots.similarity.COSINE
    beside.figure.draw_without_rendering()
    assert any(tick.label1.get_visible() for tick in beside.yaxis.get_major_ticks())


def test_the_mean_is_over_classes_that_have_one():
    few = toy(classes=5)
    few.labels[:4] = torch.arange(4) % 2 * 4  # class 0 keeps two images
    few.labels[4:8] = torch.tensor([1, 2, 2, 2])  # class 1 keeps one
    assert "mean over 4 classes" in plots.class_similarity([few, toy(per_class=1, classes=5)]).texts[1].get_text()


def test_pairs_that_are_all_alike_have_a_range_that_cosines_can_have():
    found = toy()
    (same, *_) = plots.pairs([dataclasses.replace(found, features=torch.ones(12, 6))], 1).axes
    low, high = same.collections[0].get_clim()
    assert low == pytest.approx(0.95) and high == 1.0


def test_pairs_refuse_what_is_no_class():
    with pytest.raises(DataError, match="allowed are labels from 0 to 2"):
        plots.pairs([toy()], 3)
    with pytest.raises(DataError, match="there is no set"):
        plots.pairs([], 0)


def test_depth_shows_every_image_and_a_line_for_sets_without_depth():
    found, real = toy(), toy("real", made=False, seed=1)
    by_number, by_updates = plots.depth([found, real]).axes
    similarity = cosine_to_class(found.features, found.labels, 3)
    for ax, of in ((by_number, found.sub_batch + 1), (by_updates, found.iterations)):
        heights = np.sort(np.concatenate([part.get_offsets()[:, 1] for part in ax.collections if isinstance(part, PathCollection)]))
        assert np.allclose(heights, np.sort(similarity.numpy()))
        line = next(line for line in ax.lines if len(line.get_ydata()) == 2)
        assert line.get_ydata()[0] == pytest.approx(real.cosine)
        assert len({round(float(value)) for value in of}) == 2


def test_depth_says_where_nothing_was_optimised():
    figure = plots.depth([toy("random", made=False)])
    assert all("no set was optimised" in [text.get_text() for text in ax.texts] for ax in figure.axes)


def test_one_image_per_class_has_no_pairs_and_says_so():
    alone, beside = toy(per_class=1), toy("random", per_class=1, made=False)
    for figure, words in (
        (plots.depth([alone, beside]), "no class has two images"),
        (plots.pairs([alone, beside], 0), "one image has no pairs"),
    ):
        assert all(words in [text.get_text() for text in ax.texts] for ax in panels(figure)[:2])


def test_embedding_has_a_mark_for_every_image_in_the_colour_of_its_class():
    found, real = toy(), toy("real", per_class=10, made=False, seed=1)
    places, behind = np.random.default_rng(0).normal(size=(12, 2)), np.random.default_rng(1).normal(size=(30, 2))
    ax = plots.embedding(places, real, behind, found).axes[0]
    under, *marks = ax.collections
    assert np.allclose(under.get_offsets(), behind) and len(marks) == 2
    for number, part in enumerate(marks):
        assert np.allclose(part.get_offsets(), places[(found.sub_batch == number).numpy()])
    assert len({tuple(colour) for colour in marks[0].get_facecolors()}) == 3
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["class 0", "class 1", "class 2", "sub-batch 1", "sub-batch 2"]
    flat = dataclasses.replace(found, sub_batch=None, iterations=None)
    assert len(plots.embedding(places, real, behind, flat).axes[0].get_legend().get_texts()) == 3
    with pytest.raises(DataError, match="3 and 30 places for 12 and 30 images"):
        plots.embedding(places[:3], real, behind, found)


def test_many_classes_share_colours_and_have_no_key():
    key = on_a_plane(toy(classes=30), toy("real", classes=30, made=False)).axes[0].get_legend()
    assert [text.get_text() for text in key.get_texts()] == ["sub-batch 1", "sub-batch 2"]
    about = [" ".join(on_a_plane(toy(classes=k), toy("real", classes=k, made=False)).texts[1].get_text().split()) for k in (10, 30)]
    assert ["colour: the class (30 classes share 10 colours)" in words for words in about] == [False, True]
    assert on_a_plane(toy(classes=30, made=False), toy("real", classes=30, made=False)).axes[0].get_legend() is None


def test_class_colours_differ_as_long_as_they_can():
    assert len(set(plots.style.class_colours(10))) == 10 and len(plots.style.class_colours(200)) == 200

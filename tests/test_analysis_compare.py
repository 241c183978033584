"""Runs side by side: one entry per set and protocol, equal controls once, and what cannot be compared is said."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from delt.analysis.accuracy import Accuracy
from delt.analysis.compare import (
    COST,
    QUALITY,
    SPACE,
    Entry,
    Protocol,
    as_reported,
    caveats,
    differences,
    differences_to,
    entries,
    label_robust_score,
    merged,
    robustness,
    table,
    usual,
)
from delt.artifacts.scores import Score
from delt.errors import DataError
from delt.methods import configure, control_of

HOW = Protocol("common", "convnet3", 10)


def students(name, labels, values, recipe="common", epochs=10):
    return [Score(name, recipe, labels, "convnet3", seed, epochs, value, value + 1) for seed, value in enumerate(values)]


def records(digest="a", stored=True):
    images = {"synthetic/0/0.png": {"bytes": 100, "sha256": digest}, "synthetic/0/1.png": {"bytes": 50, "sha256": digest}}
    recover = {"seconds": 2.0, "keys": {}, "files": images | {"synthetic.parquet": {"bytes": 900, "sha256": "x"}}}
    labels = {"soft_labels.safetensors": {"bytes": 1000, "sha256": "y"}} if stored else {}
    teachers = {"teachers/teacher.json": 30, "teachers/teacher.safetensors": 4000, "teachers/second.safetensors": 500}
    squeeze = {name: {"bytes": size, "sha256": "z"} for name, size in teachers.items()}
    found = {
        "squeeze": {"seconds": 70.0, "keys": {"data_fingerprint": "f00d"}, "files": squeeze},
        "rank": {"seconds": 1.0, "keys": {"teacher": "t"}, "files": {}},
        "recover": recover,
        "relabel": {"seconds": 0.5, "keys": {}, "files": labels},
        "evaluate": {"seconds": 80.0, "keys": {}, "files": {}},
        "diversity": {"seconds": 9.0, "keys": {"features": "teacher"}, "files": {}},
    }
    peaks = {"squeeze": 9e8, "rank": 4e8, "recover": 3e8, "relabel": 2e8, "evaluate": 8e8, "diversity": 7e8}
    return {stage: {**record, "peak_memory": int(peaks[stage])} for stage, record in found.items()}


def a_run(name="a", **given):
    config = configure("digits", ipc=5, preset="demo", **given)
    scores = [
        *students(config.method, "soft", [90.0, 92.0, 94.0]),
        *students(config.method, "hard", [80.0]),
        *students("random", "soft", [70.0, 72.0]),
        *students("full", "hard", [99.0], epochs=60),
    ]
    configs = {config.method: config, "random": control_of(config, "random")}
    diversity = {config.method: {"mean": 0.8, "class/0": 0.8}, "random": {"mean": 0.9}, "real": {"mean": 0.85}}
    return entries(name, configs, {config.method: records("a", stored=False), "random": records("r")}, scores, diversity, 10, "a cpu")


def unfinished(name="late", **given):
    config = configure("digits", preset="demo", **given)
    return entries(name, {"delt": config}, {"delt": {}}, [], {}, 0)


def test_an_entry_has_what_a_set_scored_and_cost():
    own, random, full = a_run()
    assert (own.run, own.set, own.own, own.ipc, own.protocol) == ("a", "delt", True, 5, HOW)
    assert own.accuracy == {"soft": Accuracy((90.0, 92.0, 94.0), (0, 1, 2)), "hard": Accuracy((80.0,), (0,))}
    assert (own.cosine, own.features, own.teacher, own.data, own.fingerprint) == (0.8, "teacher", "t", "digits", "f00d")
    assert own.seconds == 3.5, "neither the teacher nor the students belong to the synthesis"
    assert own.work == 10 * sum([400, 320, 240, 160, 80]) and random.work == 0
    assert own.bytes == 150 and random.bytes == 1150, "images, and labels where they are stored; the table is neither"
    assert (full.set, full.ipc, full.seconds, full.bytes, full.cosine, full.protocol) == (
        "full",
        None,
        None,
        None,
        0.85,
        HOW._replace(epochs=60),
    )


def test_an_entry_has_the_cost_of_each_stage_and_file():
    own, random, full = a_run()
    assert own.stages == {"squeeze": 70.0, "rank": 1.0, "recover": 2.0, "relabel": 0.5, "evaluate": 80.0}
    assert own.memory == 400_000_000, "neither the teacher's nor the students' peak belongs to the synthesis"
    assert (own.image_bytes, own.label_bytes, own.teacher_bytes) == (150, 0, 4500)
    assert (random.image_bytes, random.label_bytes, random.bytes) == (150, 1000, 1150)
    assert (full.stages, full.memory, full.image_bytes, full.teacher_bytes) == ({}, None, None, None)
    config = configure("digits", ipc=5, preset="demo")
    begun = {stage: record for stage, record in records().items() if stage in ("squeeze", "rank", "recover")}
    (entry,) = entries("a", {"delt": config}, {"delt": begun}, [], {}, 10)
    assert entry.stages == {"squeeze": 70.0, "rank": 1.0, "recover": 2.0} and entry.label_bytes == 0


def test_the_best_epochs_stand_beside_the_last():
    own, *_ = a_run()
    assert (
        own.best == {"soft": Accuracy((91.0, 93.0, 95.0), (0, 1, 2)), "hard": Accuracy((81.0,), (0,))}
        and own.accuracy["soft"].values[0] == 90.0
    )
    assert as_reported(own) == own.accuracy["soft"]
    assert as_reported(replace(own, protocol=HOW._replace(recipe="paper:delt"))) == own.best["soft"]
    assert as_reported(replace(own, accuracy={"hard": Accuracy((1.0,))})) is None, "values are published for soft labels"


def test_each_protocol_is_an_entry_of_its_own():
    config = configure("digits", ipc=5, preset="demo")
    scores = [*students("delt", "soft", [70.0]), *students("delt", "soft", [90.0], epochs=300)]
    short, long = entries("a", {"delt": config}, {"delt": records()}, scores, {}, 10)
    assert short.protocol and long.protocol and (short.protocol.epochs, long.protocol.epochs) == (10, 300)
    assert short.digest == long.digest and short.cosine is None


def test_what_is_not_done_yet_is_unknown():
    (entry,) = unfinished()
    assert (entry.protocol, entry.accuracy, entry.cosine, entry.seconds, entry.work, entry.bytes) == (None, {}, None, None, None, None)


def test_own_sets_come_first_and_what_is_equal_stands_once():
    both = merged([a_run("a"), a_run("b")])
    assert [(entry.run, entry.set) for entry in both] == [("a", "delt"), ("b", "delt"), ("a", "random"), ("a", "full")]
    assert [entry.set for entry in merged([a_run()], controls=())] == ["delt", "full"]
    own, random, full = a_run("b")
    different = merged([a_run("a"), [own, replace(random, digest="other images"), full]])
    assert [(entry.run, entry.set) for entry in different[2:]] == [("a", "random"), ("b", "random"), ("a", "full")]


def test_a_control_that_is_a_run_itself_stands_once():
    own, random, full = a_run()
    alone = replace(random, run="r", own=True)
    assert [(entry.run, entry.set) for entry in merged([[own, random, full], [alone]])] == [("a", "delt"), ("r", "random"), ("a", "full")]


@pytest.mark.parametrize("known", [True, False])
def test_runs_of_different_data_sets_are_refused(known):
    others = [replace(entry, data="cifar10", fingerprint="beef" if known else "", run="b") for entry in a_run()]
    with pytest.raises(DataError, match=r"run a of digits.*, run b of cifar10.*: only runs of one data set"):
        merged([a_run("a"), others])


def test_equal_names_with_other_images_are_different_data():
    with pytest.raises(DataError, match=r"run a of digits \(f00d\), run b of digits \(beef\)"):
        merged([a_run("a"), [replace(entry, run="b", fingerprint="beef") for entry in a_run()]])
    assert len(merged([a_run("a"), unfinished()])) == 4


def test_caveats_name_what_cannot_be_compared():
    own, *_ = a_run()
    assert caveats(merged([a_run("a"), a_run("b")])) == []
    assert caveats([own, *unfinished()]) == ["not evaluated yet: late"]
    longer = replace(own, run="b", protocol=HOW._replace(epochs=20))
    assert "compare accuracies only where recipe, student and epochs agree" in caveats([own, longer])[0]
    assert caveats([own, replace(longer, run="a")]) == [], "one run with two protocols has both, as its columns say"
    teacher = caveats([own, replace(own, teacher="u")])
    assert "soft labels" in teacher[0] and "features of different networks" in teacher[1]
    assert caveats([replace(own, features="resnet18"), replace(own, features="resnet18", teacher="u")]) == teacher[:1]
    assert caveats([own, replace(own, machine="a gpu")]) == ["seconds are of different machines (a cpu; a gpu): compare image-iterations"]


def test_the_usual_protocol_is_that_of_most():
    own, random, full = a_run()
    rare = replace(own, protocol=HOW._replace(epochs=20))
    assert usual([rare, own, random, full, full, full]) == HOW
    assert usual([rare, own]) == rare.protocol and usual([full, *unfinished()]) is None


def test_differences_leave_out_where_and_how_a_run_was_computed():
    configs = {"a": configure("digits", preset="demo", device="cpu"), "b": configure("digits", preset="demo", ipc=2, threads=2)}
    found = differences(configs)
    assert found["ipc"] == {"a": 5, "b": 2} and "threads" not in found and "device" not in found and "seed" not in found
    assert differences({}) == differences({"a": configs["a"]}) == {}


def test_the_table_lines_up():
    text = table(merged([a_run("first"), unfinished("late")]))
    lines = text.splitlines()
    head, _, own, late, random, full = lines[:6]
    assert head.split("  ")[0] == "run" and all(name in head for name in set(QUALITY) - {"published", "off"})
    assert [line[head.index("soft labels") :].split("  ")[0] for line in (own, late, random, full)] == [
        "92.00 ± 2.00",
        "-",
        "71.00 ± 1.41",
        "-",
    ]
    assert "3/1" in own and set(late.split()[3:]) == {"-"} and full.split()[:2] == ["-", "full"]
    assert lines[-1] == "! not evaluated yet: late"
    head, _, own, random, rule = text.split("\n\n")[1].splitlines()[:5]
    assert all(name in head for name in set(COST) - {"run"}) and set(rule) == {"-"}, "all real images and a run that waits have no cost"
    assert own.split() == ["delt", "5", "12,000", "40.00%", "70.00", "1.00", "2.00", "0.50", "80.00"]
    assert random.split()[:4] == ["random", "5", "0", "-"]
    head, _, own, _, rule = text.split("\n\n")[2].splitlines()[:5]
    assert all(name in head for name in set(SPACE) - {"run"}) and set(rule) == {"-"}
    assert own.split() == ["delt", "5", "400", "150", "0", "4,500"]


def test_what_all_rows_share_is_said_once_below():
    """A terminal has 80 columns: the tables of a run with its controls fit."""
    own, random, full = a_run()
    heads = {"recipe": "common", "student": "convnet3-w32", "epochs": 120}
    alike = [replace(entry, protocol=Protocol(*heads.values())) for entry in (replace(own, set="one_sub_batch"), random)]
    text = table(alike)
    assert "all rows: recipe common, student convnet3-w32, epochs 120" in text and not set(heads) & set(text.splitlines()[0].split())
    apart = table([*alike, replace(full, protocol=Protocol("common", "convnet3-w32", 60))])
    assert "all rows: recipe common, student convnet3-w32\n" in apart and "epochs" in apart.splitlines()[0]
    rows = [line for part in apart.split("\n\n") for line in part.splitlines()[:5]]
    assert max(map(len, rows)) <= 80
    assert "recipe" in table(alike[:1]).splitlines()[0] and "all rows" not in table(alike[:1])


def test_a_set_of_two_protocols_cost_once():
    own, random, _ = a_run()
    longer = replace(own, protocol=HOW._replace(epochs=300))
    quality, cost, space = table([own, longer, random]).split("\n\n")
    assert [line.split()[0] for line in quality.splitlines()[2:5]] == ["delt", "delt", "random"]
    assert all([line.split()[0] for line in part.splitlines()[2:4]] == ["delt", "random"] for part in (cost, space))


def a_claim(recipe="paper:delt", student="resnet18", ipc=50, data="imagenet-1k", epochs=300, name="delt", **given):
    """An entry whose last epochs have mean 50 and whose best have 60."""
    how = Protocol(recipe, student, epochs)
    kinds = {"accuracy": {"soft": Accuracy((49.0, 50.0, 51.0))}, "best": {"soft": Accuracy((59.0, 60.0, 61.0))}}
    return Entry("a", name, True, data, ipc=ipc, protocol=how, **{**kinds, **given})


def row_of(entry):
    """Last two cells of the entry's row, and the notes."""
    text = table([entry]).split("\n\n")[0]
    cells = [cell.strip() for cell in text.splitlines()[2].split("  ") if cell.strip()]
    return cells[-2], cells[-1], text


def test_published_values_stand_beside_the_best_epoch_of_the_papers_recipe():
    values, off, text = row_of(a_claim())
    assert values == "46.8 / 59.2 ± 0.4" and off == f"{13.2:+.1f} / {0.8 / math.hypot(1, 0.4):+.1f}"
    assert "card of DELT (arXiv 2411.19946) (delt 46.8)" in text and "VILA-Lab/DELT, README table (delt 59.2 ± 0.4)" in text
    assert caveats([a_claim()]) == []


def test_published_values_of_another_teacher_are_said():
    own, other = a_claim(backbone="resnet18"), a_claim(student="resnet101", backbone="resnet18")
    assert caveats([own]) == []
    assert caveats([own, other]) == ["published values are of a teacher like the student, and the teacher here is another: a (resnet101)"]
    assert caveats([a_claim("paper:cda", "resnet50", name="cda", backbone="resnet18")]) == [], "one teacher for all students there"


def test_published_values_stand_beside_the_last_epoch_of_another_recipe():
    values, off, _ = row_of(a_claim("common"))
    assert values == "46.8 / 59.2 ± 0.4" and off == f"{3.2:+.1f} / {-9.2 / math.hypot(1, 0.4):+.1f}"
    for other in (a_claim("common"), a_claim(epochs=20), a_claim("paper:delt", name="sre2l")):
        assert caveats([other]) == ["students trained otherwise than the paper's own, so off does not judge the images alone: a"]


def test_values_of_one_source_and_student_have_no_spread():
    one = a_claim(data="cifar10", ipc=50, student="resnet101", name="sre2l", best={"soft": Accuracy((40.0,))})
    values, off, text = row_of(one)
    assert values == "66.0 / 34.9" and off == "- / -" and "published by" in text


@pytest.mark.parametrize(
    "entry",
    [
        a_claim(student="resnet18-w32"),
        a_claim(data="imagenet-1k at 64 px"),
        a_claim(ipc=5),
        a_claim(name="delt+cda"),
        replace(a_claim(), own=False),
        replace(a_claim(), protocol=None, accuracy={}, best={}),
    ],
)
def test_nothing_was_published_of_other_sets(entry):
    text = table([entry])
    assert not {"published", "off"} & set(text.splitlines()[0].split()) and "published by" not in text


def test_columns_in_which_nothing_is_known_are_left_out_and_so_is_the_name_of_a_single_run():
    own, random, full = a_run()
    head = table([own, random, full]).splitlines()[0].split("  ")
    assert not {"run", "published", "off"} & {name.strip() for name in head}
    other, *_ = a_run("second")
    assert table([own, other]).startswith("run") and "LRS" not in table([own, other]), "it needs random images and all of them"
    bare = replace(own, cosine=None, stages={}, accuracy={"soft": own.accuracy["soft"]})
    assert table([bare]).splitlines()[0].split()[-2:] == ["best*", "n"] and "img-it" not in table([bare])


def test_an_empty_table_has_its_head():
    assert table([]).startswith("run") and merged([]) == []


def test_a_protocol_reads_well():
    assert str(HOW) == "convnet3, recipe common, 10 epochs" and Entry("a", "delt", True, "digits").accuracy == {}


def test_the_label_robust_score_is_that_of_the_paper():
    def slow(full, hard, soft, random):
        hlr, ior = (full - hard) / 100, (soft - random) / 100
        alpha = 0.5 * ior - 0.5 * hlr
        return 100 * (math.exp(alpha) - math.exp(-1)) / (math.exp(1) - math.exp(-1))

    for numbers in ((99.4, 82.5, 77.3, 70.3), (90.0, 10.0, 60.0, 50.0), (50.0, 60.0, 70.0, 10.0)):
        assert label_robust_score(*numbers) == pytest.approx(slow(*numbers))
    assert label_robust_score(80, 80, 50, 50) == pytest.approx(26.9, abs=0.05)
    assert label_robust_score(100, 100, 100, 0) > label_robust_score(100, 90, 100, 0) > label_robust_score(100, 90, 90, 0)


def test_the_score_needs_the_numbers_beside_it():
    how = Protocol("common", "convnet3", 30)
    own = Entry("a", "delt", True, "digits", ipc=5, protocol=how, accuracy={"soft": Accuracy((80.0,)), "hard": Accuracy((60.0,))})
    random = Entry("b", "random", True, "digits", ipc=5, protocol=how, accuracy={"soft": Accuracy((70.0,)), "hard": Accuracy((65.0,))})
    full = Entry("a", "full", False, "digits", protocol=Protocol("common", "convnet3", 60), accuracy={"hard": Accuracy((90.0,))})
    assert robustness([own, random, full], own) == pytest.approx(label_robust_score(90, 60, 80, 70))
    assert robustness([own, random], own) is None and robustness([own, full], own) is None
    other = Entry("b", "random", True, "digits", ipc=9, protocol=how, accuracy=random.accuracy)
    assert robustness([own, other, full], own) is None, "a control of another size is none"
    text = table([own, random, full])
    assert f"{label_robust_score(90, 60, 80, 70):.1f}" in text and "label-robust score" in text


def test_a_part_of_the_classes_and_another_size_are_in_the_data_sets_name():
    def data(**given):
        return {entry.data for entry in entries("a", {"delt": configure("cifar10", **given)}, {"delt": {}}, [], {}, 0)}

    assert data() == {"cifar10"} and data(data_classes="cat,dog,frog") == {"cifar10, 3 classes"}
    assert data(data_classes="cat,dog", data_size=16) == {"cifar10, 2 classes at 16 px"}
    assert data(data_hold_out=0.1) == {"cifar10, 10 % held out"}


def test_a_run_is_held_against_its_own_control():
    """Not against that of the first run in the table, whose teacher and seeds may be others."""
    first, second = a_run("a"), [replace(entry, run="b", teacher="u") for entry in a_run("b")]
    second[1] = replace(second[1], accuracy={"soft": Accuracy((50.0, 50.0), (0, 1))})
    found = [first[0], second[0], first[1], second[1], first[2]]
    assert differences_to(found, "random")[1:] == differences_to(first, "random")[1:] + differences_to(second, "random")[1:]
    assert robustness(found, second[0]) == robustness(second, second[0]) != robustness(first, first[0])


def test_a_run_without_a_control_takes_that_of_its_teacher_or_says_why_not():
    own, random, _ = a_run("a")
    strange = replace(random, run="z", teacher="u", accuracy={"soft": Accuracy((0.0, 0.0), (0, 1))})
    later = replace(own, run="b")
    assert differences_to([strange, later, random], "random")[1].split(": ")[1] == differences_to([own, random], "random")[1].split(": ")[1]
    seeds = replace(random, accuracy={"soft": Accuracy((70.0, 72.0), (7, 8))})
    assert differences_to([own, seeds], "random")[1:] == ["  a: not known: no students of random have its labels and seeds"]


def test_runs_of_different_data_sets_are_refused_over_an_unfinished_one():
    """What is not known of a run in the middle does not make its neighbours alike."""
    own, other = a_run("a"), [replace(entry, run="c", fingerprint="beef") for entry in a_run("c")]
    with pytest.raises(DataError, match=r"run a of digits \(f00d\), run c of digits \(beef\)"):
        merged([own, unfinished("b"), other])
    with pytest.raises(DataError, match="run a of digits, run b of digits, 5 classes"):
        merged([own, [replace(entry, run="b", data="digits, 5 classes", fingerprint="") for entry in unfinished("b")]])


def test_unfinished_runs_of_different_data_sets_are_refused():
    other = [replace(entry, run="b", data="cifar10") for entry in unfinished("b")]
    with pytest.raises(DataError, match="run a of digits, run b of cifar10"):
        merged([unfinished("a"), other])
    assert merged([]) == [] and len(merged([unfinished("a"), unfinished("b")])) == 2


def test_a_run_without_measured_seconds_is_of_no_machine():
    own, *_ = a_run()
    assert caveats([own, replace(own, run="b", machine="")]) == []


def test_differences_under_several_protocols_name_them():
    own, random, _ = a_run()
    random = replace(random, accuracy=own.accuracy)  # as many students, of the same seeds
    other = HOW._replace(recipe="paper:delt")
    beside = [own, random, *(replace(entry, protocol=other) for entry in (own, random))]
    lines = differences_to(beside, "random")
    assert [line.split(":")[0] for line in lines[1:3]] == ["  a (convnet3, recipe common, 10 epochs)", "  a (convnet3, recipe paper"]
    assert [line.split(":")[0] for line in differences_to([own, random], "random")[1:]] == ["  a"]

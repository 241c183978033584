"""Accuracy over seeds: mean and spread, and differences that are paired where the seeds are the same and nowhere else."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from scipy.stats import ttest_1samp

from delt.analysis.accuracy import Accuracy, Difference, difference, paired
from delt.artifacts.scores import Score
from delt.errors import DataError


def test_accuracy_is_mean_and_sample_deviation():
    values = (80.0, 83.0, 85.0)
    accuracy = Accuracy(values)
    mean = sum(values) / 3
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    assert accuracy.mean == pytest.approx(mean) and accuracy.std == pytest.approx(std)
    assert accuracy.error == pytest.approx(std / math.sqrt(3)) and accuracy.n == 3
    assert str(accuracy) == "82.67 ± 2.52"
    alone = Accuracy((80.0,))
    assert (alone.mean, alone.std, alone.error, str(alone)) == (80.0, None, None, "80.00")


def test_scores_come_in_the_order_of_their_seeds():
    rows = [Score("delt", "common", "soft", "convnet3", seed, 30, last, 99.0) for seed, last in ((10, 70.0), (2, 90.0), (9, 80.0))]
    for _ in range(6):
        random.shuffle(rows)
        assert Accuracy.of(rows) == Accuracy((90.0, 80.0, 70.0), (2, 9, 10))


def test_seeds_are_one_per_value():
    with pytest.raises(DataError, match="2 accuracies of students with 1 seeds"):
        Accuracy((80.0, 81.0), (0,))


def test_differences_are_paired_over_seeds():
    found = paired(Accuracy((80.0, 84.0, 82.0)), Accuracy((75.0, 78.0, 78.0)))
    assert found is not None and found.mean == pytest.approx(5) and found.error == pytest.approx(1 / 3**0.5) and found.clear
    assert str(found) == "+5.00 ± 0.58" and found.n == 3
    assert str(paired(Accuracy((80.0, 70.0)), Accuracy((70.0, 80.0)))) == "+0.00 ± 10.00 (inside the noise)"
    assert "the noise is unknown" in str(paired(Accuracy((80.0,)), Accuracy((81.0,))))
    assert paired(Accuracy((80.0,)), Accuracy((81.0, 82.0))) is None


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_a_difference_is_clear_where_a_t_test_says_so(count):
    """With few pairs two standard errors are not enough: t is 12.7 for two pairs, 4.3 for three, 2.8 for five."""
    draws, verdicts = random.Random(count), set()
    for _ in range(60):
        values = [draws.gauss(0.8, 1.0) for _ in range(count)]
        found = paired(Accuracy(tuple(values)), Accuracy((0.0,) * count))
        assert found is not None and found.clear == (ttest_1samp(values, 0).pvalue < 0.05)
        verdicts.add(found.clear)
    assert True in verdicts and (count == 30 or False in verdicts)


def test_what_all_students_of_a_seed_share_is_no_noise():
    shared = (-6.0, 0.0, 6.0)
    own = [(80.0, 80.0, 80.0), (80.9, 81.0, 81.1)]
    one, other = (Accuracy(tuple(map(sum, zip(bases, shared, strict=True))), (0, 1, 2)) for bases in own)
    found = difference(other, one)
    assert found.mean == pytest.approx(1) and found.error == pytest.approx(0.1 / math.sqrt(3)) and found.clear


def test_pairs_that_differ_alike_say_nothing_of_the_noise():
    """One test image of 450 in both of two pairs: accuracies are steps, so that equal differences come by chance."""
    one, other = (Accuracy((80.0 + step, 84.0 + step), (0, 1)) for step in (0.0, 100 / 450))
    found = difference(other, one)
    assert not found.clear and str(found) == "+0.22 ± 0.00 (the same in all pairs, so the noise is unknown)"
    rounded = difference(Accuracy((80.4444, 84.6667), (0, 1)), Accuracy((80.2222, 84.4444), (0, 1)))  # as scores are kept
    assert 0 < rounded.error < 1e-3 and not rounded.clear
    assert str(difference(one, one)) == "+0.00 ± 0.00 (no difference)"


@pytest.mark.parametrize("seeds", [(1, 2, 3), (2, 1, 0), ()])
def test_other_seeds_are_not_paired(seeds):
    one, other = Accuracy((80.0, 84.0, 82.0), (0, 1, 2)), Accuracy((78.0, 81.0, 81.0), seeds)
    assert paired(one, other) is None and paired(other, one) is None
    found = difference(one, other)
    variances = [statistics.variance(side.values) / 3 for side in (one, other)]
    assert found.error == pytest.approx(math.sqrt(sum(variances))) and found.mean == pytest.approx(2) and found.n == 0


def test_a_single_student_beside_several_has_no_error():
    found = difference(Accuracy((80.0,)), Accuracy((70.0, 71.0)))
    assert found == (9.5, None, 0) and not found.clear and found.figures == "+9.50"


def test_nothing_is_not_below_zero():
    assert Difference(-0.004, 0.1, 5).figures == "+0.00 ± 0.10" and Difference(-0.006, 0.1, 5).figures == "-0.01 ± 0.10"

import numpy as np
import pytest
from sklearn.metrics import f1_score

from utils.evaluation import accuracy, bootstrap, f1_per_class, macro_f1, reliability


def test_f1_equals_scikit_learn():
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(3, size=(2, 500))
    assert macro_f1(truth, predicted) == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert f1_per_class(truth, predicted) == pytest.approx(f1_score(truth, predicted, average=None))


def test_a_class_that_never_occurs_counts_as_zero():
    assert f1_per_class(np.array([0, 2]), np.array([0, 2])).tolist() == [1.0, 0.0, 1.0]


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(100):
        truth = generator.random(200) < 0.7
        low, high = bootstrap(accuracy, truth, np.ones(200, bool), draws=200, seed=trial)
        covered += low <= 0.7 <= high
    assert 88 <= covered <= 100


def test_bootstrap_keeps_rows_together():
    column = np.arange(50)
    low, high = bootstrap(lambda a, b: float(np.abs(a - b).max()), column, column)
    assert (low, high) == (0.0, 0.0)


def test_reliability_by_hand():
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False])
    said, was, counts, error = reliability(confidence, right)
    assert said == pytest.approx([0.55, 0.95])
    assert was == pytest.approx([0.5, 1.0])
    assert counts.tolist() == [2, 2]
    assert error == pytest.approx(0.05)

"""Scores with intervals."""

from collections.abc import Callable, Sequence

import numpy as np


def macro_f1(truth: np.ndarray, predicted: np.ndarray, classes: int = 3) -> float:
    """The mean of the classes' F1; a class that neither has counts as 0."""
    return float(np.mean(f1_per_class(truth, predicted, classes)))


def f1_per_class(truth: np.ndarray, predicted: np.ndarray, classes: int = 3) -> np.ndarray:
    """F1 of each class, (classes,)."""
    hits = np.bincount(truth[truth == predicted], minlength=classes)
    both = np.bincount(truth, minlength=classes) + np.bincount(predicted, minlength=classes)
    return 2 * hits / np.maximum(both, 1)


def accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The share of right answers."""
    return float(np.mean(truth == predicted))


def bootstrap(
    statistic: Callable[..., float],
    *columns: Sequence,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic of aligned columns, rows drawn with replacement.

    >>> low, high = bootstrap(accuracy, [0, 1, 1, 0] * 50, [0, 1, 0, 0] * 50)
    >>> low < 0.75 < high
    True
    """
    arrays = [np.asarray(column) for column in columns]
    generator = np.random.default_rng(seed)
    rows = len(arrays[0])
    values = []
    for _ in range(draws):
        drawn = generator.integers(rows, size=rows)
        values.append(statistic(*(array[drawn] for array in arrays)))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def reliability(
    confidence: np.ndarray, right: np.ndarray, bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Mean confidence, share right and count of each filled bin, and the calibration error (ECE).

    A calibrated model that says 0.8 is right in 80 % of such cases.
    """
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    filled = counts > 0
    said = np.bincount(index, confidence, bins)[filled] / counts[filled]
    was = np.bincount(index, right, bins)[filled] / counts[filled]
    error = float(np.sum(counts[filled] * np.abs(said - was)) / len(confidence))
    return said, was, counts[filled], error

"""Metrics with intervals, and the statistics of generated texts."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.course.errors import CourseError
from utils.course.language import tr
from utils.models.lengths import cut
from utils.models.logprobs import answer_logps, positions


def macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The mean of the classes' F1; a class absent from truth and predictions counts as 0."""
    return float(np.mean(f1_per_class(truth, predicted)))


def f1_per_class(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """The F1 of each of the three sentiments, (3,).

    These are scikit-learn's values (a test compares them), counted a hundred times as fast: a
    bootstrap needs thousands of them.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    right, wanted, given = (
        np.bincount(labels, minlength=3)[:3]
        for labels in (truth[truth == predicted], truth, predicted)
    )
    return 2 * right / np.maximum(wanted + given, 1)


def accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The share of right answers."""
    return float(accuracy_score(truth, predicted))


def bootstrap(
    statistic: Callable[..., float],
    *columns: Sequence,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of aligned columns; rows drawn with replacement.

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
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


BINS = 10  # of equal width, for the calibration error


def reliability(
    confidence: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Mean confidence, share right and count of each filled bin, and the calibration error (ECE).

    A calibrated model is right in 80 % of the cases with confidence 0.8.
    """
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(index, minlength=BINS)
    filled = counts > 0
    mean_confidence = np.bincount(index, confidence, BINS)[filled] / counts[filled]
    share_right = np.bincount(index, right, BINS)[filled] / counts[filled]
    gaps = np.abs(mean_confidence - share_right)
    error = float(np.sum(counts[filled] * gaps) / len(confidence))
    return mean_confidence, share_right, counts[filled], error


# --- Generated texts -----------------------------------------------------------------------------


def independent_judge(texts: Sequence[str], labels: Sequence[int]) -> Pipeline:
    """A linear sentiment classifier on character and word n-grams, unlike the reward model.

    Train it on sentences that the reward model was not trained on.
    """
    if len(set(labels)) < 2:
        raise CourseError(
            tr(
                "The independent judge found {count} texts of one class and needs at least 2 "
                "classes: add rows of another class to validation or test.",
                count=len(texts),
            )
        )
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    judge = make_pipeline(make_union(words, letters), LogisticRegression(C=5, max_iter=2000))
    return judge.fit(list(texts), list(labels))


def distinct(texts: Sequence[str]) -> float:
    """The share of distinct pairs among all pairs of neighbouring words.

    It is low when the texts repeat themselves.

    >>> distinct(["a b c", "a b d"])  # a b, b c, a b, b d
    0.75
    """
    lists = [text.split() for text in texts]
    pairs = [pair for words in lists for pair in pairwise(words)]
    return len(set(pairs)) / max(len(pairs), 1)


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
) -> float:
    """exp of the mean negative log-likelihood per token, the end-of-text token included.

    The first token of a text is not counted, because no token before it predicts it. A text that
    is longer than the model's context is cut, and only its beginning counts.
    """
    encoded = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    encoded = cut(encoded, positions(model), "texts")
    logps = answer_logps(model, [row[:1] for row in encoded], [row[1:] for row in encoded])
    count = sum(len(row) - 1 for row in encoded)
    return float(np.exp(-float(logps.sum()) / max(count, 1)))


# --- The KL that a preference needs --------------------------------------------------------------


def bernoulli_kl(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """KL(Bern(new) || Bern(old)) in nats."""
    new, old = np.clip(new, 1e-12, 1 - 1e-12), np.clip(old, 1e-12, 1 - 1e-12)
    return new * np.log(new / old) + (1 - new) * np.log((1 - new) / (1 - old))


def minimal_kl(base_rates: Sequence[float], share: float) -> float:
    """The smallest KL at which any method can reach a share of negative answers.

    Each prompt's rate p is tilted by one λ to p e^λ / (p e^λ + 1 - p). λ is chosen so that the
    mean of the tilted rates is the given share.

    >>> round(minimal_kl([0.5, 0.5], 1 - 1e-12), 3)  # from a coin to certainty the KL is ln 2
    0.693
    """
    rates = np.asarray(base_rates, dtype=float)
    low, high = -60.0, 60.0
    for _ in range(100):
        tilt = (low + high) / 2
        tilted = rates / (rates + (1 - rates) * np.exp(-tilt))
        low, high = (tilt, high) if tilted.mean() < share else (low, tilt)
    return float(bernoulli_kl(tilted, rates).mean())


def tied_best_of_n_kl(rewards: Sequence[float], n: int) -> float:
    """The KL of best-of-n for one prompt, from the rewards of base samples (samples,).

    F is the share of samples with at most a given reward. Samples with the same reward are a choice
    that best-of-n makes with probability F(r)^n - F(below r)^n. A reward that was drawn once counts
    as one point of a continuous distribution, so without ties this is ln n - (n - 1) / n.

    >>> round(tied_best_of_n_kl([0.0, 0.0, 1.0, 1.0], 2), 4)  # from 1/2 to 3/4
    0.1308
    """
    _, counts = np.unique(np.asarray(rewards, dtype=float), return_counts=True)
    above = counts.cumsum() / counts.sum()  # F(r)
    below = above - counts / counts.sum()
    chosen = above**n - below**n
    tied = chosen * np.log(chosen / (above - below))

    def integral(u: np.ndarray) -> np.ndarray:  # of n u^(n-1) ln(n u^(n-1))
        safe = np.maximum(u, 1e-300)
        return u**n * (np.log(n) + (n - 1) * np.log(safe) - (n - 1) / n)

    return float(np.where(counts > 1, tied, integral(above) - integral(below)).sum())


# --- The objective J = E[r] - β KL ---------------------------------------------------------------


def best_objective(base_rewards: Sequence[Sequence[float]], beta: float) -> np.ndarray:
    """The largest J of any policy, per prompt: β ln E[exp(r / β)] over the base policy's samples.

    `base_rewards` is (samples, prompts). With few samples the estimate is slightly too low.

    >>> best_objective([[0.0], [1.0]], beta=1.0).round(4)  # ln(1/2 + e/2)
    array([0.6201])
    """
    scaled = np.asarray(base_rewards, dtype=float) / beta
    largest = scaled.max(0)
    return beta * (largest + np.log(np.mean(np.exp(scaled - largest), 0)))


def gain(found: float, base: float, best: float) -> float:
    """The share of the possible gain in J: 0 for the base policy, 1 for the optimum; it can be < 0.

    >>> gain(0.65, 0.5, 0.8)
    0.5
    """
    return (found - base) / (best - base) if best > base else 0.0

import numpy as np


def syllables(text):
    return set(text.lower().split())


def without_own(scores, instead=-np.inf):
    scores = scores.copy()
    np.fill_diagonal(scores, instead)
    return scores


def best(scores, k, axis):
    return np.sort(scores, axis=axis).take(range(-k, 0), axis=axis).mean(axis=axis, keepdims=True)


RIGHT = {
    "06.1": lambda a, b: (
        sum(s in syllables(b) for s in syllables(a)) / len(set((a + " " + b).lower().split()))
    ),
    "06.2": lambda q, a: np.array(
        [
            max((j for j in range(len(a)) if j != i), key=lambda j: q[i] @ a[j])
            for i in range(len(q))
        ]
    ),
    "06.3": lambda s, k: (s - best(s, k, 1)) + (s - best(s, k, 0)),
}
WRONG = [
    (
        "06.1",
        lambda a, b: len(set(a.split()) & set(b.split())) / len(set(a.split()) | set(b.split())),
        "lower case",
    ),
    (
        "06.1",
        lambda a, b: len(set(a.lower()) & set(b.lower())) / len(set(a.lower()) | set(b.lower())),
        "sets of letters",
    ),
    (
        "06.1",
        lambda a, b: 2 * len(syllables(a) & syllables(b)) / (len(syllables(a)) + len(syllables(b))),
        "that is the Dice coefficient",
    ),
    (
        "06.1",
        lambda a, b: len(syllables(a) & syllables(b)) / min(len(syllables(a)), len(syllables(b))),
        "smaller set",
    ),
    ("06.1", lambda a, b: len(syllables(a) & syllables(b)) / len(syllables(a)), "first set only"),
    ("06.1", lambda a, b: len(syllables(a) & syllables(b)), "number of shared syllables"),
    (
        "06.1",
        lambda a, b: (
            (n := len(syllables(a) & syllables(b))) / (len(a.split()) + len(b.split()) - n)
        ),
        "counts once",
    ),
    ("06.1", lambda a, b: 4 / 7, "share nothing have 0"),
    ("06.2", lambda q, a: (q @ a.T).argmax(1), "its own right answer"),
    ("06.2", lambda q, a: np.argsort(-(q @ a.T), axis=1)[:, 1], "drop the first of the ranking"),
    ("06.2", lambda q, a: without_own(q @ a.T, 0).argmax(1), "put -inf"),
    ("06.2", lambda q, a: without_own(q @ a.T, np.inf).argmin(1), "the farthest answers"),
    ("06.2", lambda q, a: without_own(q @ a.T).argmax(0), "nearest question of each answer"),
    ("06.2", lambda q, a: np.argsort(-(q @ a.T), axis=1)[:, :2], "shape"),
    ("06.3", lambda s, k: s - best(s, k, 1) - best(s, k, 0), "counts twice"),
    ("06.3", lambda s, k: 2 * s - best(s, k, 1), "the columns are missing"),
    ("06.3", lambda s, k: 2 * s - best(s, k, 0), "the rows are missing"),
    ("06.3", lambda s, k: 2 * s - s.mean(1, keepdims=True) - s.mean(0), "k largest, not over all"),
    (
        "06.3",
        lambda s, k: 2 * s - np.sort(s, 1)[:, :k].mean(1)[:, None] - np.sort(s, 0)[:k].mean(0),
        "k smallest",
    ),
    ("06.3", lambda s, k: 2 * s + best(s, k, 1) + best(s, k, 0), "means are subtracted"),
]

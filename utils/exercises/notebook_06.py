"""Notebook 06: Jaccard likeness, the nearest other answer, hubs."""

from collections.abc import Callable

import numpy as np

from utils.exercises.checks import Verdict, exercise

_FIRST, _SECOND = "Vì sao sao trên trời lấp lánh", "vì sao trăng lấp lánh"
_SETS = set(_FIRST.lower().split()), set(_SECOND.lower().split())  # 6 and 5 syllables, 4 shared


@exercise("06.1")
def _jaccard(attempt: Callable[[str, str], float]) -> Verdict:
    """`attempt(first, second)`: shared syllables over all of both, lower case, as sets."""
    answer = float(attempt(_FIRST, _SECOND))
    (a, b), lists = _SETS, (_FIRST.split(), _SECOND.split())
    shared = len(a & b)
    cased = set(lists[0]), set(lists[1])
    letters = set(_FIRST.lower()), set(_SECOND.lower())
    mistakes = {
        2 * shared / (len(a) + len(b)): (
            "that is Dice, the shared ones over the mean size: divide by the union instead."
        ),
        shared / min(len(a), len(b)): (
            "you divide by the smaller set: a text inside a longer one would be its twin; use the "
            "union."
        ),
        shared / len(a): "you divide by the first set only: swap the texts and the value changes.",
        float(shared): "that is the number of shared syllables: divide it by those of the union.",
        len(cased[0] & cased[1]) / len(cased[0] | cased[1]): (
            "“Vì” and “vì” are one syllable: make both texts lower case first."
        ),
        len(letters[0] & letters[1]) / len(letters[0] | letters[1]): (
            "these are sets of letters: split the texts at spaces first."
        ),
        shared / (len(lists[0]) + len(lists[1]) - shared): (
            "“sao” stands twice in the first text and counts once: compare sets, not lists."
        ),
    }
    if np.isclose(answer, shared / len(a | b)):
        both = float(attempt("một hai", "ba bốn")), float(attempt("Một hai", "hai một"))
        if np.allclose(both, (0, 1)):
            return None
        return (
            f"texts that share nothing have 0 and equal sets 1, yours has {both[0]:g}, {both[1]:g}."
        )
    for wrong, message in mistakes.items():
        if np.isclose(answer, wrong):
            return message
    return f"for {_FIRST!r} and {_SECOND!r} it is 4/7 = 0.571, yours is {answer:.3f}."


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@exercise("06.2")
def _nearest_other(attempt: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Verdict:
    """`attempt(asked, answered)`: for each question the nearest answer that is not its own."""
    generator = np.random.default_rng(0)
    asked = _unit(generator.standard_normal((40, 6)))
    answered = _unit(0.8 * asked + 0.4 * generator.standard_normal((40, 6)))
    # the last question is opposite to every answer: all its likenesses are negative
    asked[-1] = -_unit(answered.mean(axis=0, keepdims=True))[0]
    answered = np.where((answered @ asked[-1] < 0)[:, None], answered, -answered)
    likeness = asked @ answered.T
    apart = likeness.copy()
    np.fill_diagonal(apart, -np.inf)
    wanted, own = apart.argmax(axis=1), np.arange(40)
    answer = np.asarray(attempt(asked.copy(), answered.copy()))
    if answer.shape != (40,):
        return f"one index per question is wanted, shape (40,), yours has shape {answer.shape}."
    if np.array_equal(answer, wanted):
        return None
    if np.array_equal(answer, likeness.argmax(axis=1)):
        return "the own answer is still among them: a question would reject its own right answer."
    if np.array_equal(answer, np.argsort(-likeness, axis=1)[:, 1]):
        return (
            "you drop the first of the ranking: where the own answer is not the nearest, the best "
            "wrong one is lost and the own one may stay; leave out the own row by its number."
        )
    zeroed = likeness * (1 - np.eye(40))
    if np.array_equal(answer, zeroed.argmax(axis=1)):
        return "you put 0 for the own answer: likenesses can all be below 0, so put -inf."
    lowest = likeness.copy()
    np.fill_diagonal(lowest, np.inf)
    if np.array_equal(answer, lowest.argmin(axis=1)):
        return "these are the farthest answers: the nearest has the largest cosine."
    if np.array_equal(answer, apart.argmax(axis=0)):
        return "that is the nearest question of each answer: take the maximum along the answers."
    if np.any(answer == own):
        return f"{np.sum(answer == own)} questions reject their own answer: leave out the own row."
    return f"{np.sum(answer != wanted)} of 40 are not the nearest answer to another question."


@exercise("06.3")
def _csls(attempt: Callable[[np.ndarray, int], np.ndarray]) -> Verdict:
    """`attempt(likeness, k)`: 2 s - r - c, with means over the k largest of each row and column."""
    likeness = np.random.default_rng(1).random((7, 5))
    k = 2
    rows = np.sort(likeness, axis=1)[:, -k:].mean(axis=1)[:, None]
    columns = np.sort(likeness, axis=0)[-k:].mean(axis=0)[None, :]
    answer = np.asarray(attempt(likeness.copy(), k))
    if answer.shape != likeness.shape:
        return f"one value a likeness is wanted, shape (7, 5), yours has shape {answer.shape}."
    means = likeness.mean(axis=1, keepdims=True), likeness.mean(axis=0, keepdims=True)
    low = np.sort(likeness, axis=1)[:, :k].mean(axis=1)[:, None], np.sort(likeness, axis=0)[:k]
    mistakes = [
        (likeness - rows - columns, "the likeness counts twice, 2 s, since two means go off it."),
        (2 * likeness - rows, "the columns are missing: it is the hubs among the answers we want."),
        (2 * likeness - columns, "the rows are missing: subtract r of each question too."),
        (2 * likeness + rows + columns, "the means are subtracted, or hubs would gain."),
        (2 * likeness - means[0] - means[1], "the means go over the k largest, not over all."),
        (
            2 * likeness - low[0] - low[1].mean(axis=0),
            "these are the k smallest: sort the other way.",
        ),
    ]
    if np.allclose(answer, 2 * likeness - rows - columns):
        return None
    for wrong, message in mistakes:
        if np.allclose(answer, wrong):
            return message
    return "check r, (7, 1), against the rows' k largest and c, (1, 5), against the columns'."

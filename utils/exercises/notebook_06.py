"""Notebook 06: Jaccard similarity, the nearest answer to another question, hubs."""

from collections.abc import Callable

import numpy as np

from utils.course.language import tr
from utils.exercises.checks import Verdict, exercise

_FIRST, _SECOND = "Vì sao sao trên trời lấp lánh", "vì sao trăng lấp lánh"
_SETS = set(_FIRST.lower().split()), set(_SECOND.lower().split())  # 6 and 5 syllables, 4 shared


@exercise("06.1")
def _jaccard(attempt: Callable[[str, str], float]) -> Verdict:
    """`attempt(first, second)`: intersection over union of the lower-case syllables, as sets."""
    answer = float(attempt(_FIRST, _SECOND))
    (a, b), lists = _SETS, (_FIRST.split(), _SECOND.split())
    shared = len(a & b)
    cased = set(lists[0]), set(lists[1])
    letters = set(_FIRST.lower()), set(_SECOND.lower())
    mistakes = {
        2 * shared / (len(a) + len(b)): (
            "that is the Dice coefficient, which divides by the mean size: divide by the union."
        ),
        shared / min(len(a), len(b)): (
            "you divide by the smaller set, so a text inside a longer one would have similarity 1: "
            "divide by the union."
        ),
        shared / len(a): "you divide by the first set only: divide by the union of both sets.",
        float(shared): "that is the number of shared syllables: divide it by the union's size.",
        len(cased[0] & cased[1]) / len(cased[0] | cased[1]): (
            "“Vì” and “vì” are one syllable: make both texts lower case first."
        ),
        len(letters[0] & letters[1]) / len(letters[0] | letters[1]): (
            "these are sets of letters: split the texts at spaces first."
        ),
        shared / (len(lists[0]) + len(lists[1]) - shared): (
            "“sao” occurs twice in the first text and counts once: compare sets, not lists."
        ),
    }
    if np.isclose(answer, shared / len(a | b)):
        both = float(attempt("một hai", "ba bốn")), float(attempt("Một hai", "hai một"))
        if np.allclose(both, (0, 1)):
            return None
        return tr(
            "texts that share nothing have 0 and equal sets have 1: yours has "
            "{different:g} and {equal:g}.",
            different=both[0],
            equal=both[1],
        )
    for wrong, message in mistakes.items():
        if np.isclose(answer, wrong):
            return message
    return tr(
        "the similarity of {first!r} and {second!r} is 4/7 = 0.571, and yours is {answer:.3f}.",
        first=_FIRST,
        second=_SECOND,
        answer=answer,
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@exercise("06.2")
def _nearest_other(attempt: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Verdict:
    """`attempt(asked, answered)`: for each question the nearest answer to another question."""
    generator = np.random.default_rng(0)
    asked = _unit(generator.standard_normal((40, 6)))
    answered = _unit(0.8 * asked + 0.4 * generator.standard_normal((40, 6)))
    # the last question points away from every answer, so all its similarities are negative
    asked[-1] = -_unit(answered.mean(axis=0, keepdims=True))[0]
    answered = np.where((answered @ asked[-1] < 0)[:, None], answered, -answered)
    similarities = asked @ answered.T
    apart = similarities.copy()
    np.fill_diagonal(apart, -np.inf)
    wanted, own = apart.argmax(axis=1), np.arange(40)
    answer = np.asarray(attempt(asked.copy(), answered.copy()))
    if answer.shape != (40,):
        return tr(
            "give one index per question, shape (40,): yours has shape {shape}.", shape=answer.shape
        )
    if np.array_equal(answer, wanted):
        return None
    if np.array_equal(answer, similarities.argmax(axis=1)):
        return "you search among all answers: a question would reject its own right answer."
    if np.array_equal(answer, np.argsort(-similarities, axis=1)[:, 1]):
        return (
            "you drop the first of the ranking, which is not always the question's own answer: "
            "leave out the own answer by its row number."
        )
    zeroed = similarities * (1 - np.eye(40))
    if np.array_equal(answer, zeroed.argmax(axis=1)):
        return "you put 0 for the own answer: all similarities may be below 0, so put -inf."
    lowest = similarities.copy()
    np.fill_diagonal(lowest, np.inf)
    if np.array_equal(answer, lowest.argmin(axis=1)):
        return "these are the farthest answers: the nearest answer has the largest cosine."
    if np.array_equal(answer, apart.argmax(axis=0)):
        return "that is the nearest question of each answer: take the maximum over the answers."
    if np.any(answer == own):
        return tr(
            "{count} questions reject their own answer: leave out that row.",
            count=np.sum(answer == own),
        )
    return tr(
        "{count} of your 40 answers are not the nearest of another question.",
        count=np.sum(answer != wanted),
    )


@exercise("06.3")
def _csls(attempt: Callable[[np.ndarray, int], np.ndarray]) -> Verdict:
    """`attempt(similarities, k)`: 2 s - r - c, with the k largest's mean per row and per column."""
    similarities = np.random.default_rng(1).random((7, 5))
    k = 2
    rows = np.sort(similarities, axis=1)[:, -k:].mean(axis=1)[:, None]
    columns = np.sort(similarities, axis=0)[-k:].mean(axis=0)[None, :]
    answer = np.asarray(attempt(similarities.copy(), k))
    if answer.shape != similarities.shape:
        return tr(
            "give one value per similarity, shape (7, 5): yours has shape {shape}.",
            shape=answer.shape,
        )
    means = similarities.mean(axis=1, keepdims=True), similarities.mean(axis=0, keepdims=True)
    low = (
        np.sort(similarities, axis=1)[:, :k].mean(axis=1)[:, None],
        np.sort(similarities, axis=0)[:k],
    )
    mistakes = [
        (
            similarities - rows - columns,
            "the similarity counts twice, as 2 s, because two means are subtracted.",
        ),
        (2 * similarities - rows, "the columns are missing: subtract c of each answer too."),
        (2 * similarities - columns, "the rows are missing: subtract r of each question too."),
        (
            2 * similarities + rows + columns,
            "you add the means, which raises the hubs: the means are subtracted.",
        ),
        (
            2 * similarities - means[0] - means[1],
            "you average over all: each mean goes over the k largest, not over all.",
        ),
        (
            2 * similarities - low[0] - low[1].mean(axis=0),
            "your means go over the k smallest: sort in the other direction.",
        ),
    ]
    if np.allclose(answer, 2 * similarities - rows - columns):
        return None
    for wrong, message in mistakes:
        if np.allclose(answer, wrong):
            return message
    return "r (7, 1) is the mean of each row's k largest, and c (1, 5) of each column's k largest."

"""Questions on whose answers people vote: systematic ones with a known value, or science."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import DatasetDict

from utils.data.families import systematic
from utils.data.pairs import science_questions


@dataclass(frozen=True)
class Questions:
    """Questions to vote on and held-out ones, and the short right answers as far as known."""

    asked: list[str]
    held_out: list[str]
    values: dict[str, str]  # question -> its right value; without an entry if it is unknown


def voting_questions(
    families: Sequence[str], pairs: DatasetDict, count: int, held_out: int, seed: int
) -> Questions:
    """`count` questions, of which `held_out` are not voted on, in an order drawn by the seed.

    With families, the questions are theirs in `pairs`, and the held-out ones are in its test
    split. Without families, or if `pairs` has none of their questions (as a user's own data), they
    are the shipped science questions, whose right answers no table contains.
    """
    value = {row.question: row.value for row in systematic() if row.kind in families}
    train, test = ([q for q in pairs[s]["question"] if q in value] for s in ("train", "test"))
    if train and test:
        held, rest = _drawn(test, held_out, seed), _drawn(train, max(0, count - held_out), seed)
        return Questions(rest, held, {question: value[question] for question in [*held, *rest]})
    drawn = _drawn(science_questions(), count, seed)
    return Questions(drawn[held_out:], drawn[:held_out], {})


def _drawn(questions: Sequence[str], count: int, seed: int) -> list[str]:
    order = np.random.default_rng(seed).permutation(len(questions))[:count]
    return [questions[index] for index in order]


def says(answer: str, value: str) -> bool:
    """Whether the first sentence of an answer contains the value as whole words.

    >>> says("Con mèo là động vật em nhé.", "động vật"), says("15 là số lẻ.", "5")
    (True, False)
    """
    first = re.split(r"[.!?\n]", answer)[0]
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", first, re.IGNORECASE) is not None

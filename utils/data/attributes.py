"""Pairs of answers with equal content that differ in four attributes of form.

Each attribute is present in a chosen answer with one probability and in a rejected answer with
another one, independently of the others. Then the preference is known exactly: by Bayes' rule each
attribute that one of two answers has more raises the log-odds that it is the chosen one by the same
amount, `worth`. So the policy in which DPO must end can be computed before it is trained.
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from datasets import Dataset

from utils.course.language import tr
from utils.data.reading import DataError

OPENINGS = ("Dạ", "thưa anh chị", "về câu hỏi này")
CLOSING = "ạ"
NAMES = (*OPENINGS, CLOSING)
COMBINATIONS = tuple(product((False, True), repeat=len(NAMES)))  # all 16


def with_attributes(answer: str, present: Sequence[bool]) -> str:
    """The answer, which ends with a full stop, with the attributes that are present.

    >>> with_attributes("Rẻ là trái nghĩa của đắt.", (True, False, True, True))
    'Dạ, về câu hỏi này: Rẻ là trái nghĩa của đắt ạ.'
    """
    openings = [name for name, wanted in zip(OPENINGS, present, strict=False) if wanted]
    if openings:
        first = ", ".join(openings)
        answer = f"{first[0].upper()}{first[1:]}: {answer}"
    return f"{answer[:-1]} {CLOSING}." if present[-1] else answer


def attributes_of(text: str) -> tuple[bool, ...]:
    """Which of the four attributes a text has."""
    opening = text.lower().partition(":")[0].split(", ")
    return (*(name.lower() in opening for name in OPENINGS), text.endswith(f" {CLOSING}."))


def worth(chosen_rate: float, rejected_rate: float) -> float:
    """The reward of one attribute in nats: the log of its odds ratio in chosen and rejected.

    >>> round(worth(0.6, 0.3), 2)
    1.25
    """
    return math.log(chosen_rate / (1 - chosen_rate)) - math.log(rejected_rate / (1 - rejected_rate))


SHORT = 16  # syllables of an answer that is still one short sentence


def plain_answers(pairs: Dataset, count: int) -> Dataset:
    """The first `count` questions whose answer is one short sentence without an attribute."""
    kept, asked = [], set()
    for number, (question, answer) in enumerate(
        zip(pairs["question"], pairs["chosen"], strict=True)
    ):
        words = answer.split()
        polite = {"dạ", "ạ", "thưa", "nhé", "nha"} & {word.strip(".,!“”").lower() for word in words}
        sentence = answer.endswith(".") and answer[:-1].count(".") == 0 and ":" not in answer
        if sentence and not polite and len(words) <= SHORT and question not in asked:
            asked.add(question)
            kept.append(number)
        if len(kept) == count:
            break
    if not kept:
        raise DataError(
            tr(
                "No answer is one sentence of at most {syllables} syllables without “dạ” and “ạ”: "
                "add short answers that end with a full stop.",
                syllables=SHORT,
            )
        )
    return pairs.select(kept)


def attribute_pairs(
    rows: Dataset, count: int, chosen_rate: float, rejected_rate: float, seed: int
) -> Dataset:
    """`count` pairs of answers to the questions of the rows, which are used in turn."""
    draws = np.random.default_rng(seed)
    chosen, rejected = (
        draws.random((count, len(NAMES))) < rate for rate in (chosen_rate, rejected_rate)
    )
    order = np.concatenate(
        [draws.permutation(len(rows)) for _ in range(math.ceil(count / len(rows)))]
    )
    texts = list(zip(rows["question"], rows["chosen"], strict=True))
    return Dataset.from_list(
        [
            {
                "question": texts[row][0],
                "chosen": with_attributes(texts[row][1], chosen[number]),
                "rejected": with_attributes(texts[row][1], rejected[number]),
            }
            for number, row in enumerate(order[:count])
        ]
    )

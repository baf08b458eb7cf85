"""The shipped pairs of data/quality have the properties that their data card states."""

import json
import re
from collections import Counter

import pytest

from tools import build_quality_data
from utils.course.paths import ROOT
from utils.data.text import syllables

FOLDER = ROOT / "data" / "quality"
FLAWS = {
    "wrong_fact",
    "missed_constraint",
    "wrong_register",
    "translationese",
    "padding",
    "over_refusal",
    "unsafe",
}


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def written() -> list[dict]:
    return lines("written.jsonl")


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict]]:
    return {split: lines(f"{split}.jsonl") for split in ("train", "test")}


def test_the_splits_are_what_the_program_makes(written, splits):
    assert build_quality_data.pairs(written) == splits


def test_sizes(written):
    long = [row for row in written if 80 <= len(row["answer"].split()) <= 250]
    assert len(written) >= 1_500 and len(long) >= 300
    assert sum(len(row["turns"]) == 3 for row in written) >= 100


def test_every_question_has_two_or_three_answers_with_different_flaws(written):
    for row in written:
        flaws = [flawed["flaw"] for flawed in row["flawed"]]
        assert 2 <= len(flaws) == len(set(flaws)) <= 3 and set(flaws) <= FLAWS
        assert row["answer"] not in [flawed["text"] for flawed in row["flawed"]]
        assert [turn["role"] for turn in row["turns"]] in (["user"], ["user", "assistant", "user"])


def test_no_question_is_asked_twice(written):
    asked = [frozenset(syllables(" ".join(t["content"] for t in row["turns"]))) for row in written]
    assert len(set(asked)) == len(asked)
    index: dict[str, list[int]] = {}
    for number, words in enumerate(asked):
        shared = Counter(other for word in words for other in index.get(word, []))
        near = [o for o, count in shared.items() if count >= 0.8 * len(words | asked[o])]
        assert not near, written[number]["turns"]
        for word in words:
            index.setdefault(word, []).append(number)


def test_neither_length_nor_shared_words_give_the_better_answer(splits):
    pairs = splits["train"] + splits["test"]

    def share(key) -> float:
        found = [key(row, row["chosen"]) - key(row, row["rejected"]) for row in pairs]
        return sum(d > 0 for d in found) / sum(d != 0 for d in found)

    def overlap(row, answer):
        return len(set(syllables(row["question"])) & set(syllables(answer)))

    assert 0.4 < share(lambda row, answer: len(answer.split())) < 0.6
    assert 0.4 < share(overlap) < 0.6


def test_the_card_counts_what_is_there(written, splits):
    card = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    counts = Counter(flawed["flaw"] for row in written for flawed in row["flawed"])
    for flaw, count in counts.items():
        assert re.search(rf"`{flaw}` \({count:,}[):]", card), (flaw, count)
    for split, rows in splits.items():
        questions = len({row["id"].split("-")[0] for row in rows})
        assert f"| {split}.jsonl | {len(rows):,} | {questions:,} |" in card

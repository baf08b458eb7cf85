"""Questions to vote on: systematic ones with a known value, science ones without."""

import pytest
from datasets import Dataset, DatasetDict

from utils.data import load_preferences, says, science_questions, systematic, voting_questions

FAMILIES = ("phân loại", "màu sắc")


def test_held_out_questions_are_of_test_and_voted_ones_of_train():
    pairs = load_preferences(quiet=True)
    found = voting_questions(FAMILIES, pairs, count=60, held_out=15, seed=3)
    assert (len(found.asked), len(found.held_out)) == (45, 15)
    assert set(found.asked) <= set(pairs["train"]["question"])
    assert set(found.held_out) <= set(pairs["test"]["question"])
    assert set(found.values) == {*found.asked, *found.held_out}
    answers = {row.question: row for row in systematic()}
    for question, value in found.values.items():
        assert answers[question].kind in FAMILIES
        assert says(answers[question].answer, value), answers[question]
    assert found == voting_questions(FAMILIES, pairs, count=60, held_out=15, seed=3)
    assert found != voting_questions(FAMILIES, pairs, count=60, held_out=15, seed=4)


def test_without_families_or_their_questions_they_are_about_science():
    own = Dataset.from_dict({"question": ["Ai?"], "chosen": ["Tôi."], "rejected": ["Không."]})
    for families, pairs in (
        ((), load_preferences(quiet=True)),
        (FAMILIES, DatasetDict(train=own, test=own)),
    ):
        found = voting_questions(families, pairs, count=30, held_out=10, seed=3)
        assert (len(found.asked), len(found.held_out), found.values) == (20, 10, {})
        assert {*found.asked, *found.held_out} <= set(science_questions())
        assert not set(found.asked) & set(found.held_out)


@pytest.mark.parametrize(
    ("answer", "value", "expected"),
    [
        ("Con mèo là động vật em nhé.", "động vật", True),
        ("Con mèo là Động Vật", "động vật", True),
        ("Con mèo là đồ vật. Con gà là động vật.", "động vật", False),  # another sentence
        ("15 là số lẻ.", "5", False),  # part of a number
        ("Từ “mưa” có 3 chữ cái.", "3", True),
        ("", "đỏ", False),
        ("Màu đỏ (tươi)?", "đỏ (tươi)", True),  # no pattern
    ],
)
def test_the_first_sentence_says_a_value_as_whole_words(answer, value, expected):
    assert says(answer, value) is expected

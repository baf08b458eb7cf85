"""Attributes are written and found again, and the preference they carry is known exactly."""

import math
from itertools import product

import pytest
from datasets import Dataset

from utils.data.attributes import (
    COMBINATIONS,
    NAMES,
    attribute_pairs,
    attributes_of,
    plain_answers,
    with_attributes,
    worth,
)
from utils.data.pairs import load_preferences
from utils.data.reading import DataError

ROWS = Dataset.from_dict({"question": ["Một?", "Hai?"], "chosen": ["Là một.", "Là hai."]})


@pytest.mark.parametrize("present", COMBINATIONS)
def test_attributes_are_found_again(present):
    text = with_attributes("Thủ đô của Ý là Rôma.", present)
    assert attributes_of(text) == present
    assert "hủ đô của Ý là Rôma" in text


def test_worth_is_the_log_odds_that_the_answer_with_the_attribute_is_the_chosen_one():
    chosen, rejected = 0.6, 0.3

    def probability(present: bool, rate: float) -> float:
        return rate if present else 1 - rate

    for first, second in product((False, True), repeat=2):
        as_given = probability(first, chosen) * probability(second, rejected)
        swapped = probability(second, chosen) * probability(first, rejected)
        log_odds = math.log(as_given / swapped)
        assert log_odds == pytest.approx((first - second) * worth(chosen, rejected))


def test_pairs_have_the_rates_and_equal_content_and_use_every_question():
    pairs = attribute_pairs(ROWS, 4000, 0.6, 0.3, seed=1)
    for side, rate in (("chosen", 0.6), ("rejected", 0.3)):
        found = [attributes_of(text) for text in pairs[side]]
        for number in range(len(NAMES)):
            share = sum(each[number] for each in found) / len(found)
            assert abs(share - rate) < 0.035  # four standard errors
    assert sorted(set(pairs["question"])) == ["Hai?", "Một?"]
    for question, chosen, rejected in zip(*(pairs[c] for c in pairs.column_names), strict=True):
        content = "Là một" if question == "Một?" else "Là hai"
        assert content in chosen and content in rejected
    again = attribute_pairs(ROWS, 4000, 0.6, 0.3, seed=1)
    other = attribute_pairs(ROWS, 4000, 0.6, 0.3, seed=2)
    assert again["chosen"][:] == pairs["chosen"][:] != other["chosen"][:]


def test_plain_answers_are_short_distinct_and_without_attributes(monkeypatch):
    monkeypatch.delenv("COURSE_PREFERENCE_DATA", raising=False)
    rows = plain_answers(load_preferences(quiet=True)["train"], 200)
    assert len(rows) == len(set(rows["question"])) == 200
    assert all(not any(attributes_of(text)) and len(text.split()) <= 16 for text in rows["chosen"])
    polite = Dataset.from_dict({"question": ["Một?"], "chosen": ["Dạ, là một ạ."]})
    with pytest.raises(DataError, match="add short answers"):
        plain_answers(polite, 5)

"""The shipped pairs of data/human_like have the properties that their data card states."""

import json
import re

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from tools import build_human_like
from utils.course.paths import ROOT
from utils.data import load_human_like
from utils.data.mining import longer_wins
from utils.data.pairs import HUMAN_LIKE
from utils.data.text import duplicate_key, syllables
from utils.judge import independent_judge

FOLDER = ROOT / "data" / "human_like"
SPLITS = ("train", "test")
NEAR = 0.8  # the share of common syllables (Jaccard) from which two prompts ask the same
FOLDS = 5
EASY = 0.90  # a linear judge must not be right more often


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def written() -> list[dict]:
    return lines("written.jsonl")


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict]]:
    return {split: lines(f"{split}.jsonl") for split in SPLITS}


def naive_bayes(texts: list[str], labels: list[int]):
    words = CountVectorizer(token_pattern=r"\w+")
    return make_pipeline(words, MultinomialNB()).fit(texts, labels)


def judged(make, train: list[dict], test: list[dict]) -> np.ndarray:
    """Whether a judge trained on `train` finds the chosen answer of each pair of `test`."""
    texts = [row[side] for side in ("chosen", "rejected") for row in train]
    judge = make(texts, [1] * len(train) + [0] * len(train))
    chosen, rejected = (
        judge.predict_proba([row[side] for row in test])[:, 1] for side in ("chosen", "rejected")
    )
    return chosen > rejected


def test_the_splits_are_what_the_program_makes(written, splits):
    assert build_human_like.pairs(written) == splits
    assert (len(splits["train"]), len(splits["test"])) == (280, 60)


def test_the_loader_reads_them(splits, monkeypatch):
    monkeypatch.delenv("COURSE_HUMAN_LIKE_DATA", raising=False)
    loaded = load_human_like(quiet=True)
    for split in SPLITS:
        wanted = [{name: row[name] for name in HUMAN_LIKE.columns} for row in splits[split]]
        assert loaded[split].to_list() == wanted


def test_every_row_says_where_it_comes_from(splits):
    names = {"id", *HUMAN_LIKE.columns, "theme", "dialect", "author", "reviewer", "date"}
    rows = splits["train"] + splits["test"]
    assert all(set(row) == names and all(row.values()) for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)


def test_no_text_stands_twice_and_no_prompt_of_test_is_near_one_of_train(splits):
    rows = splits["train"] + splits["test"]
    for column in HUMAN_LIKE.columns:
        assert len({duplicate_key(row[column]) for row in rows}) == len(rows)
    asked = {split: [set(syllables(row["prompt"])) for row in splits[split]] for split in SPLITS}
    for one in asked["test"]:
        assert all(len(one & other) < NEAR * len(one | other) for other in asked["train"])


@pytest.mark.parametrize("make", [independent_judge, naive_bayes])
def test_a_linear_judge_finds_the_natural_answer_in_at_most_nine_of_ten_pairs(
    make, written, splits
):
    on_test = judged(make, splits["train"], splits["test"]).mean()
    parts = [(written[k::FOLDS], k) for k in range(FOLDS)]
    across = [
        judged(make, [row for n, row in enumerate(written) if n % FOLDS != k], part)
        for part, k in parts
    ]
    assert 0.6 < on_test <= EASY
    assert np.concatenate(across).mean() <= EASY


def test_length_does_not_give_the_natural_answer(splits):
    for split in SPLITS:
        chosen, rejected = ([row[side] for row in splits[split]] for side in ("chosen", "rejected"))
        assert 0.4 <= longer_wins(chosen, rejected) <= 0.6


def test_the_card_counts_what_is_there(splits):
    card = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for split, rows in splits.items():
        chosen, rejected = ([row[side] for row in rows] for side in ("chosen", "rejected"))
        longer = f"{longer_wins(chosen, rejected):.0%}".replace("%", " %")
        assert f"| {split}.jsonl | {len(rows)} | {longer} |" in card
    for make, name in ((independent_judge, "TF-IDF"), (naive_bayes, "naive Bayes")):
        right = judged(make, splits["train"], splits["test"]).mean()
        assert re.search(rf"{name}[^.]*?{right:.0%}".replace("%", " %"), card), (name, right)

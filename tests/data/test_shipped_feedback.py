"""The shipped feedback has the properties that its data card states."""

import csv
import unicodedata
from collections import Counter, defaultdict

import pytest

from utils.data.feedback import FEEDBACK_SAMPLE, SPLITS
from utils.data.text import duplicate_key


@pytest.fixture(scope="module")
def rows():
    read = {}
    for split in SPLITS:
        with (FEEDBACK_SAMPLE / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            read[split] = list(csv.DictReader(file))
    return read


def test_sizes(rows):
    assert len(rows["validation"]) >= 250
    assert len(rows["test"]) >= 250
    assert sum(map(len, rows.values())) >= 4000


def test_no_duplicates_inside_or_across_splits(rows):
    keys = Counter(duplicate_key(row["sentence"]) for split in rows.values() for row in split)
    assert [key for key, count in keys.items() if count > 1] == []


def near_duplicates(kept, others, threshold=0.7):
    """Pairs whose sets of syllables overlap by at least the threshold (Jaccard)."""
    index, sizes = defaultdict(list), []
    for number, sentence in enumerate(others):
        syllables = set(sentence.split())
        sizes.append(len(syllables))
        for syllable in syllables:
            index[syllable].append(number)
    found = []
    for sentence in kept:
        mine = set(sentence.split())
        shared = Counter(number for syllable in mine for number in index[syllable])
        for number, count in shared.items():
            union = len(mine) + sizes[number] - count
            if count / union >= threshold:
                found.append((sentence, others[number]))
    return found


def test_no_near_duplicates_across_splits(rows):
    keys = {s: [duplicate_key(row["sentence"]) for row in rows[s]] for s in rows}
    assert near_duplicates(keys["test"], keys["train"] + keys["validation"]) == []
    assert near_duplicates(keys["validation"], keys["train"]) == []


def test_the_near_duplicate_measure_finds_one():
    assert near_duplicates(["thầy dạy rất hay"], ["thầy dạy rất là hay"])


def test_text_is_nfc_lower_case_and_not_blank(rows):
    for split in rows.values():
        for row in split:
            sentence = row["sentence"]
            assert unicodedata.is_normalized("NFC", sentence)
            assert sentence == sentence.lower().strip() and sentence


def test_balance_is_near_the_real_corpus(rows):
    for split in rows.values():
        shares = Counter(row["sentiment"] for row in split)
        assert 0.35 < shares["0"] / len(split) < 0.55
        assert 0.03 < shares["1"] / len(split) < 0.10
        assert 0.35 < shares["2"] / len(split) < 0.55
        assert len({row["topic"] for row in split}) == 4

"""Every notebook with a user's own odd data: 30 rows, very long ones, single words, emoji."""

import json
from pathlib import Path

import pytest

from tests.helpers import odd_data, tiny_lessons
from tests.helpers.odd_data import NEGATIVE, NEUTRAL, POSITIVE
from tests.helpers.warm import SHARED
from utils.course import notebooks
from utils.data.feedback import load_feedback
from utils.data.reading import DataError
from utils.judge.metrics import independent_judge
from utils.models import standins

NAMES = [path.stem for path in notebooks.files()]


def machine(folder: Path) -> dict[str, str]:
    """A lab of its own, whose lessons are as short as can be, with odd data."""
    return {
        "COURSE_PROFILE": "lab",
        "COURSE_QUICK": "1",
        "COURSE_ARTIFACTS": str(folder / "artifacts"),
        "COURSE_CACHE": str(folder / "cache"),
        "COURSE_VOTES": "",
        "COURSE_ANNOTATOR": "",
        "COURSE_FEEDBACK_DATA": str(odd_data.write_feedback(folder / "feedback")),
        "COURSE_PREFERENCE_DATA": str(odd_data.write_pairs(folder / "pairs")),
        "COURSE_HUMAN_LIKE_DATA": str(odd_data.write_human_like(folder / "human_like")),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": tiny_lessons.FOLDER,
        **SHARED,
    }


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return machine(tmp_path_factory.mktemp("own"))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_with_odd_data(name, own):
    run = notebooks.execute(name, environment=own, timeout=600)
    assert run.error is None, f"{name}: {run.error}"
    handed_over = Path(own["COURSE_ARTIFACTS"], "lab-quick", name, "metrics.json")
    assert json.loads(handed_over.read_text("utf-8"))["profile"] == "lab-quick"
    print(f"{name}: {run.seconds:.0f} s")


def test_the_data_are_as_odd_as_they_claim():
    sentences = [row[0] for rows in odd_data.FEEDBACK.values() for row in rows]
    pairs = odd_data.pairs()
    usable = [row for row in pairs if row["chosen"]]
    assert len(sentences) == len(usable) == 30 and len(pairs) == 31
    assert max(len(text.split()) for text in sentences) == odd_data.LONGEST
    assert sum(len(text.split()) >= odd_data.LONG for text in sentences) >= 4
    assert max(len(row["chosen"].split()) for row in pairs) == odd_data.LONGEST
    assert min(len(row["question"].split()) for row in pairs) == 1


def feedback_without(label: int, splits: tuple[str, ...]) -> dict[str, list]:
    return {
        split: [row for row in rows if split not in splits or row[1] != label]
        for split, rows in odd_data.FEEDBACK.items()
    }


def test_a_class_that_train_lacks_is_named(tmp_path, monkeypatch):
    rows = feedback_without(NEUTRAL, ("train",))
    monkeypatch.setenv("COURSE_FEEDBACK_DATA", str(odd_data.write_feedback(tmp_path, rows)))
    with pytest.raises(
        DataError, match=r"train\.csv has 0 rows of class 1 neutral and .* at least 1: add rows"
    ):
        load_feedback(quiet=True)


def test_too_few_rows_to_train_on_are_counted(tmp_path, monkeypatch):
    rows = {**odd_data.FEEDBACK, "train": odd_data.FEEDBACK["train"][:7]}
    monkeypatch.setenv("COURSE_FEEDBACK_DATA", str(odd_data.write_feedback(tmp_path, rows)))
    with pytest.raises(DataError, match=r"train\.csv has 7 rows and .* at least 8: add rows"):
        load_feedback(quiet=True)


def test_an_empty_sentence_is_named_by_its_line(tmp_path, monkeypatch):
    rows = {**odd_data.FEEDBACK, "test": [("kém", NEGATIVE, 0), ("\u200b", POSITIVE, 0)]}
    monkeypatch.setenv("COURSE_FEEDBACK_DATA", str(odd_data.write_feedback(tmp_path, rows)))
    with pytest.raises(DataError, match=r"test\.csv, line 3, column sentence: the cell is empty"):
        load_feedback(quiet=True)


def test_two_kinds_of_emoji_are_two_sentences(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_FEEDBACK_DATA", str(odd_data.write_feedback(tmp_path)))
    load_feedback()
    assert "WARNING" not in capsys.readouterr().out


def test_notebook_00_says_which_pairs_it_misses(own, tmp_path):
    rows = feedback_without(POSITIVE, ("test",))
    folder = odd_data.write_feedback(tmp_path, rows)
    lacking = {**own, "COURSE_FEEDBACK_DATA": str(folder), "COURSE_ARTIFACTS": str(tmp_path)}
    run = notebooks.execute("00", environment=lacking, timeout=300)
    assert run.error == (
        "DataError: test has 0 pairs of a positive and a negative sentence about the same topic "
        "and the course needs at least 1: add rows."
    )


def test_an_independent_judge_of_one_class_is_refused():
    with pytest.raises(Exception, match="found 3 texts of one class and needs at least 2 classes"):
        independent_judge(["tệ", "dở", "chán"], [0, 0, 0])


def test_stand_ins_are_made_of_single_words_too():
    assert (standins.phobert(["tệ", "hay", "😡", "vui"] * 2) / "model.safetensors").exists()

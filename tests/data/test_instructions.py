import json

import pytest

from utils.data.instructions import COLUMNS, load_instructions
from utils.data.pairs import load_preferences
from utils.data.reading import DataError


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that writes rows or raw lines as the user's train.jsonl."""
    monkeypatch.setenv("COURSE_PREFERENCE_DATA", str(tmp_path))

    def write(*rows, encoding="utf-8"):
        lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
        (tmp_path / "train.jsonl").write_bytes("\n".join(lines).encode(encoding))

    return write


def test_the_sample_is_the_chosen_side_of_the_pairs(monkeypatch):
    monkeypatch.delenv("COURSE_PREFERENCE_DATA", raising=False)
    rows, pairs = load_instructions(quiet=True), load_preferences(quiet=True)["train"]
    assert rows.column_names == list(COLUMNS)
    asked = {(row["question"], row["chosen"]) for row in pairs if not row["history"]}
    assert set(zip(rows["question"], rows["answer"], strict=True)) == asked
    assert len(rows) == len(asked)


def test_question_and_answer_alone_are_enough(own, capsys):
    own(
        {"question": " Mèo  kêu sao? ", "answer": "Mèo kêu meo meo."},
        "",
        {"question": "Chó kêu sao?", "chosen": "Chó sủa gâu gâu.", "id": 7},
        {"question": "Gà kêu sao?", "answer": " "},
        {"question": "Mèo kêu sao?", "answer": "Mèo kêu meo meo.", "id": None},  # once more
        {"question": "Còn nữa?", "answer": "Hết rồi.", "history": [{"role": "user"}]},
        encoding="utf-8-sig",
    )
    assert load_instructions().to_list() == [
        {"id": "train-1", "question": "Mèo kêu sao?", "answer": "Mèo kêu meo meo."},
        {"id": "7", "question": "Chó kêu sao?", "answer": "Chó sủa gâu gâu."},
    ]
    printed = capsys.readouterr().out
    assert "1 row left out, because a side is empty (train.jsonl, line 4)" in printed
    assert "A byte-order mark was removed" in printed
    assert "Rows left out, because they have earlier turns: 1." in printed
    assert "Rows left out, because they repeat an earlier row: 1." in printed


def test_pairs_of_the_users_own_are_read_as_pairs(own):
    own(
        *(
            {"question": f"{n}?", "chosen": f"đúng {n}", "rejected": f"sai {n}", "id": str(n)}
            for n in range(20)
        )
    )
    answers = load_instructions(quiet=True)["answer"]
    assert len(answers) == 18  # every tenth row goes to the test split
    assert set(answers) < {f"đúng {n}" for n in range(20)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a"', r"train\.jsonl, line 1, character \d+: broken JSON"),
        ('["a", "b"]', "line 1: the value is list instead of an object"),
        ('{"question": "a", "output": "b"}', r"no text called answer or chosen \(found: question"),
        ('{"answer": "b"}', "no text called question"),
        ('{"question": "a", "answer": 3}', "no text called answer"),
        ('{"question": "a", "answer": ""}', "no row with a question and an answer"),
    ],
)
def test_what_cannot_be_read_is_reported_in_a_sentence(own, line, message):
    own(line)
    with pytest.raises(DataError, match=message):
        load_instructions()

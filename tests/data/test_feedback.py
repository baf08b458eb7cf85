import unicodedata

import pytest
from datasets import Dataset, DatasetDict

from utils.data import feedback
from utils.data.feedback import load_feedback
from utils.data.reading import DataError, fingerprint

GOOD = {
    "train": [
        ("thầy dạy hay .", 2, 0),
        ("phòng học nóng .", 0, 2),
        ("không có ý kiến .", 1, 3),
    ]
    * 1
    + [(f"câu khen số {n} , dễ hiểu .", 2, 0) for n in range(12)],
    "validation": [("giáo trình cũ .", 0, 1)],
    "test": [("cô vui tính .", 2, 0), ("thiếu máy chiếu .", 0, 2)],
}


def write(folder, split, rows, header="sentence,sentiment,topic", end="\n", encoding="utf-8"):
    lines = [header] + [f"{s},{a},{b}" for s, a, b in rows]
    text = end.join(lines) + end
    folder.joinpath(f"{split}.csv").write_bytes(text.encode(encoding))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for split, rows in GOOD.items():
        write(tmp_path, split, [(f'"{s}"', a, b) for s, a, b in rows])
    monkeypatch.setenv("COURSE_FEEDBACK_DATA", str(tmp_path))
    return tmp_path


def test_own_folder_has_the_schema_of_the_sample(folder, monkeypatch):
    own = load_feedback(quiet=True)
    monkeypatch.delenv("COURSE_FEEDBACK_DATA")
    sample = load_feedback(quiet=True)
    assert {s: own[s].features for s in own} == {s: sample[s].features for s in sample}
    assert own["test"][0] == {"sentence": "cô vui tính .", "sentiment": 2, "topic": 0}


def test_hub_has_the_schema_of_the_sample(monkeypatch, folder):
    rows = {"sentence": ["Thâ\u0300y  hay"], "sentiment": [2], "topic": [0], "extra": [1]}
    asked = []

    def hub(identifier, revision):
        asked.append((identifier, revision))
        return DatasetDict({split: Dataset.from_dict(rows) for split in feedback.SPLITS})

    monkeypatch.setenv("COURSE_FEEDBACK_DATA", "hub")
    monkeypatch.setattr(feedback, "load_hub_dataset", hub)
    loaded = load_feedback(quiet=True)
    assert asked == [("uitnlp/vietnamese_students_feedback", "refs/convert/parquet")]
    assert loaded["train"].features == feedback.FEATURES
    assert loaded["train"][0]["sentence"] == "Thầy hay"


def test_missing_validation_is_split_off_train_and_reported(folder, capsys):
    (folder / "validation.csv").unlink()
    loaded = load_feedback()
    assert len(loaded["validation"]) == 1
    assert len(loaded["train"]) + 1 == len(GOOD["train"])
    assert "No validation.csv: 1 rows were split off train." in capsys.readouterr().out


def test_a_sentence_that_stands_twice_is_never_in_both_splits(folder):
    (folder / "validation.csv").unlink()
    often = [("Thầy hay quá", 2, 0), ("Phòng nóng", 0, 2)] * 20
    write(folder, "train", often + [(f"Câu số {n}", n % 3, 0) for n in range(60)])
    loaded = load_feedback(quiet=True)
    train, validation = (set(loaded[split]["sentence"]) for split in ("train", "validation"))
    assert not train & validation and {"Thầy hay quá", "Phòng nóng"} <= train
    assert len(validation) == 6 and set(loaded["validation"]["sentiment"]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda f: write(f, "train", [("hay", 2, 0)], header="text,sentiment,topic"),
            r"train\.csv, line 1: column sentence is missing \(found: text, sentiment, topic\)",
        ),
        (
            lambda f: write(f, "test", [("hay", 2, 0), ("dở", 3, 0)]),
            r"test\.csv, line 3, column sentiment: '3' is not a label: use 0 negative",
        ),
        (
            lambda f: write(f, "test", [("hay", 2, "")]),
            r"test\.csv, line 2, column topic: '' is not a label",
        ),
        (
            lambda f: write(f, "train", [("hay", 2, 0), ('"  "', 2, 0)]),
            r"train\.csv, line 3, column sentence: the cell is empty",
        ),
        (
            lambda f: write(f, "train", [("hay", 2, 0), ("dạy được", 2, 0)], encoding="cp1258"),
            r"train\.csv, line 3: byte 0x\w\w is not UTF-8: save the file again",
        ),
        (lambda f: write(f, "validation", []), r"validation\.csv has no rows under the header"),
        (lambda f: (f / "test.csv").unlink(), r"test\.csv is missing"),
        (
            lambda f: write(f, "test", [("hay , vui", 2, "0,1")]),
            r"line 2 has more cells than columns",
        ),
        (
            lambda f: write(f, "train", [('"Thầy hay', 2, 0), ('Cô nói "chậm" quá', 0, 0)]),
            r"train\.csv, line \d: the quotes do not match",
        ),
        (
            lambda f: write(f, "train", [('"Thầy hay', 2, 0), *[("câu " * 40, 2, 0)] * 4000]),
            r"train\.csv, line \d+: the quotes do not match",
        ),
        (lambda f: (f / "train.csv").write_text(""), r"train\.csv, line 1: column sentence"),
    ],
)
def test_bad_files_get_one_sentence(folder, break_it, message):
    text = "dạy được".encode("cp1258", errors="replace")  # Windows' Vietnamese code page
    assert text
    if "byte" in message:
        raw = b"sentence,sentiment,topic\nhay,2,0\nd\xf2y \xb2,2,0\n"
        (folder / "train.csv").write_bytes(raw)
    else:
        break_it(folder)
    with pytest.raises(DataError, match=message) as caught:
        load_feedback(quiet=True)
    assert "\n" not in str(caught.value)


def test_a_source_that_is_no_folder(monkeypatch):
    monkeypatch.setenv("COURSE_FEEDBACK_DATA", "no/such/folder")
    with pytest.raises(DataError, match="is not a folder"):
        load_feedback(quiet=True)


def test_bom_crlf_and_nfd_are_mended_counted_and_reported(folder, capsys):
    nfd = unicodedata.normalize("NFD", "giảng dạy tốt")
    write(folder, "test", [(nfd, 2, 0), ("dở", 0, 0)], end="\r\n", encoding="utf-8-sig")
    loaded = load_feedback()
    assert loaded["test"]["sentence"][0] == "giảng dạy tốt"
    printed = capsys.readouterr().out
    assert "A byte-order mark was removed from test.csv." in printed
    assert "Windows line ends were converted in test.csv." in printed
    assert "1 rows were in NFD" in printed


def test_a_leak_is_warned_with_the_count(folder, capsys):
    write(folder, "test", [("THẦY dạy hay", 2, 0), ("dở", 0, 0)])
    load_feedback()
    assert "WARNING: 1 test sentences also occur in train" in capsys.readouterr().out


def test_the_fingerprint_follows_the_rows(folder):
    first = fingerprint(load_feedback(quiet=True))
    assert first == fingerprint(load_feedback(quiet=True))
    write(folder, "validation", [("khác", 0, 1)])
    assert first != fingerprint(load_feedback(quiet=True))

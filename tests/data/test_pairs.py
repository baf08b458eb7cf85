import json
import unicodedata

import pytest
from datasets import Dataset, DatasetDict

from utils.course import artifacts
from utils.data import pairs
from utils.data.instructions import load_instructions
from utils.data.pairs import (
    HUMAN_LIKE,
    PREFERENCES,
    load_human_like,
    load_preferences,
    science_questions,
    tidy,
)
from utils.data.reading import DataError, fingerprint


def row(number, **changes):
    made = {
        "id": f"r{number}",
        "question": f"Câu hỏi số {number} là gì?",
        "chosen": f"Đây là câu trả lời {number}.",
        "rejected": f"Không rõ, có lẽ {number}.",
    }
    return made | changes


def write(folder, split, rows, end="\n", encoding="utf-8"):
    text = "".join(json.dumps(r, ensure_ascii=False) + end for r in rows)
    folder.joinpath(f"{split}.jsonl").write_bytes(text.encode(encoding))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write(tmp_path, "train", [row(n) for n in range(20)])
    write(tmp_path, "test", [row(n) for n in range(100, 103)])
    monkeypatch.setenv("COURSE_PREFERENCE_DATA", str(tmp_path))
    return tmp_path


def test_own_folder_has_the_schema_of_the_sample(folder, monkeypatch, capsys):
    own = load_preferences()
    assert capsys.readouterr().out == "Nothing to mend in the data.\n"
    monkeypatch.delenv("COURSE_PREFERENCE_DATA")
    sample = load_preferences(quiet=True)
    assert {s: own[s].features for s in own} == {s: sample[s].features for s in sample}
    assert own["test"][0] == row(100) | {"history": [], "tier": ""}
    assert len(own["train"]) == 20


def test_hub_has_the_schema_and_odd_rows_are_reported(folder, monkeypatch, capsys):
    asked = []
    rows = {
        "id": ["alpaca-1", "alpaca-1", "alpaca-3", "alpaca-4"],
        "question": ["Một?", "Hai?", "Một?", "Bốn?"],
        "chosen": ["a  b\n  c", "x", "a b\n  c", "z"],
        "rejected": ["b", "x", "b", None],
        "extra": [1, 2, 3, 4],
    }

    def hub(identifier):
        asked.append(identifier)
        test = {name: values[:1] for name, values in rows.items()} | {"question": ["Năm?"]}
        return DatasetDict({"train": Dataset.from_dict(rows), "test": Dataset.from_dict(test)})

    monkeypatch.setenv("COURSE_PREFERENCE_DATA", "hub")
    monkeypatch.setattr(pairs, "load_hub_dataset", hub)
    loaded = load_preferences()
    assert asked == ["thainq107/Vi-Alpaca-Preference"]
    assert loaded["train"].features == PREFERENCES.features
    assert loaded["train"]["chosen"][0] == "a b\n  c"
    assert loaded["train"]["id"][:] == ["alpaca-1", "alpaca-3"]
    printed = capsys.readouterr().out
    assert "Read from the Hub: thainq107/Vi-Alpaca-Preference." in printed
    assert "1 row left out, because chosen and rejected are the same (train, row 2)." in printed
    assert "1 row left out, because a side is empty (train, row 4)." in printed
    kept = "1 row kept, although an earlier row of the split has the same texts (train, row 3)."
    assert kept in printed


def test_offline_decides_if_no_source_is_set(monkeypatch):
    monkeypatch.delenv("COURSE_PREFERENCE_DATA", raising=False)
    monkeypatch.setattr(pairs, "load_hub_dataset", lambda identifier: {}["no Hub here"])
    assert len(load_preferences(offline=True, quiet=True)["test"]) >= 300
    with pytest.raises(KeyError, match="no Hub here"):
        load_preferences(offline=False, quiet=True)


def test_missing_test_is_split_off_train_and_reported(folder, capsys):
    (folder / "test.jsonl").unlink()
    loaded = load_preferences()
    assert (len(loaded["train"]), len(loaded["test"])) == (18, 2)
    assert not set(loaded["train"]["id"]) & set(loaded["test"]["id"])
    assert "No test split: 2 rows were split off train." in capsys.readouterr().out


def test_all_rows_of_a_question_go_to_one_split(folder, capsys):
    (folder / "test.jsonl").unlink()
    rows = [row(n, rejected=f"Sai {k}.", id=f"r{n}-{k}") for n in range(20) for k in range(3)]
    write(folder, "train", rows)
    loaded = load_preferences()
    assert (len(loaded["train"]), len(loaded["test"])) == (54, 6)
    assert not set(loaded["train"]["question"]) & set(loaded["test"]["question"])
    assert "also in" not in capsys.readouterr().out


def test_half_an_emoji_and_an_endless_number_are_no_stack(folder):
    path = folder / "train.jsonl"
    rows = [row(n, chosen=f"Vui {n} \ud83d?") for n in range(20)]
    text = "".join(json.dumps(each) + "\n" for each in rows)
    path.write_text(text)
    assert load_preferences(quiet=True)["train"][0]["chosen"] == "Vui 0 \ufffd?"
    path.write_text(text + '{"id": ' + "9" * 5000 + "}\n")
    with pytest.raises(DataError, match="line 21, character 1: broken JSON"):
        load_preferences(quiet=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"id": "1", "question": "a",}\n',
            r"train\.jsonl, line 1, character 29: broken JSON \(.+",
        ),
        ('\n\n{"id" "1"}\n', r"train\.jsonl, line 3, character 7: broken JSON"),
        ('["a"]\n', r"train\.jsonl, line 1: the value is list instead of an object"),
        (
            '{"id": "1", "question": "a", "chosen": "b"}\n',
            r"train\.jsonl, line 1: column rejected is missing \(found: id, question, chosen\)",
        ),
        (
            '{"id": "1", "question": "a", "chosen": 5, "rejected": "b"}\n',
            r"train\.jsonl, line 1, column chosen: the value is int instead of text",
        ),
        ("\n \n", r"train\.jsonl has no rows"),
        (
            '{"id": "1", "question": "a", "chosen": "b", "rejected": " "}\n',
            r"train has no usable row: in each row a text is empty",
        ),
    ],
)
def test_bad_files_get_one_sentence(folder, text, message):
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        load_preferences(quiet=True)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_not_utf8(folder, monkeypatch):
    (folder / "train.jsonl").write_bytes(b'{"id": "1"}\n{"question": "d\xf2y"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl, line 2: byte 0xf2 is not UTF-8"):
        load_preferences(quiet=True)
    (folder / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"train\.jsonl is missing in"):
        load_preferences(quiet=True)
    monkeypatch.setenv("COURSE_PREFERENCE_DATA", "no/such/folder")
    with pytest.raises(DataError, match="COURSE_PREFERENCE_DATA=no/such/folder is not a folder"):
        load_preferences(quiet=True)


def test_too_few_rows_for_a_test_split(folder):
    (folder / "test.jsonl").unlink()
    write(folder, "train", [row(n) for n in range(9)])
    with pytest.raises(DataError, match="only 9 questions, too few to split a test set off:"):
        load_preferences(quiet=True)


def test_unusable_rows_are_left_out_and_odd_ones_kept_all_counted_and_named(
    folder, capsys, monkeypatch
):
    monkeypatch.setattr(pairs, "LONG", 30)
    rows = [row(n) for n in range(10)]
    rows[1]["chosen"] = "  "
    rows[2]["question"] = None
    rows[3]["rejected"] = rows[3]["chosen"] + " "
    rows[4] = rows[0] | {"id": "r4"}
    rows[5]["id"] = "r0"
    rows[6]["chosen"] = "dài " * 30
    del rows[7]["id"]
    write(folder, "train", rows)
    loaded = load_preferences()
    assert len(loaded["train"]) == 7
    assert loaded["train"]["id"][-3:] == ["train-8", "r8", "r9"]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "1 rows of train had no id and were numbered.",
        "2 rows left out, because a side is empty (train.jsonl, line 2, train.jsonl, line 3).",
        "1 row left out, because chosen and rejected are the same (train.jsonl, line 4).",
        "1 row kept, although an earlier row of the split has the same texts "
        "(train.jsonl, line 5).",
        "1 row kept, although an earlier row of the split has the same id "
        "(train.jsonl, line 6: r0).",
        "1 row kept, although longer than 30 syllables: training cuts them (train.jsonl, line 7).",
    ]


def test_signs_beside_numbers_tell_questions_apart(folder, capsys):
    write(folder, "train", [row(1, question="Tính 3 + 1"), row(2, question="Tính 3 - 1")])
    load_preferences()
    assert capsys.readouterr().out == "Nothing to mend in the data.\n"


def test_bom_crlf_and_nfd_are_mended_counted_and_reported(folder, capsys):
    nfd = unicodedata.normalize("NFD", "giảng dạy tốt")
    write(folder, "test", [row(1, question=nfd), row(2, chosen="a\r\nb")], "\r\n", "utf-8-sig")
    loaded = load_preferences()
    assert loaded["test"]["question"][0] == "giảng dạy tốt"
    assert loaded["test"]["chosen"][1] == "a\nb"
    printed = capsys.readouterr().out
    assert "A byte-order mark was removed from test.jsonl." in printed
    assert "Windows line ends were converted in test.jsonl." in printed
    assert "1 rows were in NFD" in printed


def test_a_leak_is_warned_with_the_count(folder, capsys):
    write(folder, "test", [row(3, question="Chó sủa SAO"), row(5, question="Khác hẳn?")])
    write(folder, "train", [row(n) for n in range(12)] + [row(99, question="chó sủa sao?")])
    load_preferences()
    warning = "WARNING: train also asks the questions of 1 row of test ('Chó sủa SAO')"
    assert warning in capsys.readouterr().out


def test_the_fingerprint_follows_the_rows(folder):
    first = fingerprint(load_preferences(quiet=True))
    assert first == fingerprint(load_preferences(quiet=True))
    write(folder, "test", [row(7, chosen="khác")])
    assert first != fingerprint(load_preferences(quiet=True))


def test_human_like_from_sample_hub_and_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("COURSE_HUMAN_LIKE_DATA", raising=False)
    sample = load_human_like(quiet=True)
    assert sample["train"].features == HUMAN_LIKE.features
    rows = {
        "prompt": [f"How are you, {n}?" for n in range(20)],
        "chosen": ["Oh, great! You?"] * 20,
        "rejected": ["I have no feelings."] * 20,
    }
    only_train = DatasetDict({"train": Dataset.from_dict(rows)})
    monkeypatch.setattr(pairs, "load_hub_dataset", lambda identifier: only_train)
    hub = load_human_like(offline=False)
    assert hub["test"].features == sample["test"].features
    assert (len(hub["train"]), len(hub["test"])) == (18, 2)
    assert "HumanLLMs/Human-Like-DPO-Dataset" in capsys.readouterr().out
    write(tmp_path, "train", [{n: v[i] for n, v in rows.items()} for i in range(20)])
    monkeypatch.setenv("COURSE_HUMAN_LIKE_DATA", str(tmp_path))
    assert load_human_like(quiet=True)["train"][0]["prompt"] == "How are you, 0?"


def test_tidy_keeps_lines_and_indents():
    wanted = "def f(n):\n    return n"
    assert tidy("def f(n):\r\n    return  n\u200b\n") == wanted
    assert tidy("def f(n):\n\treturn\tn") == wanted
    assert tidy("\n\tdef f(n):\n\t\treturn n") == wanted
    assert tidy(" \n ") == ""


def test_science_questions_of_a_file(tmp_path, monkeypatch):
    path = tmp_path / "questions.txt"
    monkeypatch.setattr(pairs, "QUESTIONS", path)
    path.write_text("\ufeffVì sao  trời xanh?\r\n\r\nSét là gì?\r\n", encoding="utf-8")
    assert science_questions() == ["Vì sao trời xanh?", "Sét là gì?"]
    path.write_text("\n\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"questions\.txt has no questions"):
        science_questions()


def test_a_history_is_tidied_and_must_be_a_list_of_turns(folder):
    turns = [
        {"role": "user", "content": " Mèo  kêu sao? "},
        {"role": "assistant", "content": "Meo."},
    ]
    write(folder, "train", [row(1, history=turns, tier="padding"), row(2, history=None)])
    first, second = load_preferences(quiet=True)["train"]
    assert first["history"][0] == {"role": "user", "content": "Mèo kêu sao?"}
    assert (first["tier"], second["history"], second["tier"]) == ("padding", [], "")
    for wrong in ("Mèo kêu sao?", [["user", "Mèo kêu sao?"]], [{"content": "Mèo kêu sao?"}]):
        write(folder, "train", [row(1, history=wrong)])
        with pytest.raises(DataError, match=r"line 1, column history: .* list of turns"):
            load_preferences(quiet=True)


def test_several_pairs_of_one_question_are_nothing_to_report(folder, capsys):
    write(folder, "train", [row(1), row(1, id="r2", rejected="Một câu khác.")])
    load_preferences()
    assert capsys.readouterr().out == "Nothing to mend in the data.\n"


@pytest.fixture
def mined_source(tmp_path, monkeypatch):
    """COURSE_PREFERENCE_DATA=06, with an empty folder for artifacts; gives the artifact's name."""
    monkeypatch.setenv("COURSE_PREFERENCE_DATA", "06")
    monkeypatch.setenv("COURSE_PROFILE", "lab")
    monkeypatch.setenv("COURSE_ARTIFACTS", str(tmp_path / "artifacts"))
    for variable in ("COURSE_QUICK", "COURSE_HUB_REPO"):
        monkeypatch.delenv(variable, raising=False)
    return "06_build_preference_pairs"


def publish_mined(name, data=None):
    """Save two pairs as notebook 06 does."""
    data = data or fingerprint({"train": load_instructions(quiet=True)})
    inputs = {"profile": "lab", "data": data}
    rows = [row(1, tier="off_topic"), row(2, tier="systematic")]
    with artifacts.publish(name, artifacts.shelf("lab"), metrics={}, inputs=inputs) as made:
        lines = (json.dumps(each, ensure_ascii=False) for each in rows)
        (made / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return rows


def test_06_means_the_pairs_of_notebook_06_and_the_test_split_of_the_sample(
    mined_source, monkeypatch, capsys
):
    rows = publish_mined(mined_source)
    found = load_preferences()
    assert "what notebook 06 mined: 2 pairs" in capsys.readouterr().out
    assert list(found["train"]) == [each | {"history": []} for each in rows]
    questions = load_instructions(quiet=True)
    monkeypatch.delenv("COURSE_PREFERENCE_DATA")
    assert list(found["test"]) == list(load_preferences(quiet=True)["test"])
    assert list(questions) == list(load_instructions(quiet=True))


@pytest.mark.parametrize("state", ["missing", "mined from other questions"])
def test_06_runs_the_notebook_when_its_pairs_are_missing_or_stale(mined_source, monkeypatch, state):
    ran = []

    def run(name, shelf):
        ran.append(name)
        publish_mined(name)

    monkeypatch.setattr(artifacts, "_run_notebook", run)
    if state != "missing":
        publish_mined(mined_source, data="of other questions")
    assert len(load_preferences(quiet=True)["train"]) == 2
    assert ran == [mined_source]

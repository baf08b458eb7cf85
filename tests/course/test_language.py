"""What the code prints to students: one catalogue, complete, in English and in Vietnamese."""

import pytest

from tools import messages
from utils.course import language, session
from utils.course.language import CATALOGUE, LANGUAGES, LanguageError, entries, tr
from utils.course.paths import ROOT
from utils.exercises import checks

TRANSLATIONS = dict(entries(CATALOGUE.read_text(encoding="utf-8")))


@pytest.fixture
def vietnamese(monkeypatch):
    monkeypatch.setenv(language.LANGUAGE_VARIABLE, "vi")


def test_every_message_is_translated_and_no_other():
    assert list(messages.faults(TRANSLATIONS)) == []


def test_the_catalogue_is_as_the_tool_writes_it():
    assert messages.written(TRANSLATIONS) == CATALOGUE.read_text(encoding="utf-8")


def test_every_text_reads_the_same_after_writing_and_reading():
    odd = 'a "b"\n\\pi {x}'
    text = f"msgid {messages.json.dumps(odd)}\nmsgstr {messages.json.dumps(odd + '!')}\n"
    assert list(entries('msgid ""\nmsgstr ""\n"Language: vi"\n\n' + text)) == [(odd, odd + "!")]


def test_a_message_over_several_lines():
    assert list(entries('#: x.py\nmsgid ""\n"a "\n"b"\nmsgstr "c"\n')) == [("a b", "c")]


@pytest.mark.parametrize("value", [None, "", "en", "EN"])
def test_english_is_what_stands_in_the_code(value, monkeypatch):
    monkeypatch.delenv(language.LANGUAGE_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(language.LANGUAGE_VARIABLE, value)
    monkeypatch.setattr(language, "CATALOGUE", ROOT / "no such file")
    language._catalogue.cache_clear()
    assert tr("not yet: {reason}", reason="{x}") == "not yet: {x}"
    assert tr("set {} and {x}") == "set {} and {x}"  # no value, so nothing is formatted
    language._catalogue.cache_clear()


def test_vietnamese(vietnamese):
    assert tr("right.") == "đúng rồi."
    assert tr("not yet: {reason}", reason="{x}") == "chưa đúng: {x}"
    assert tr("in no catalogue") == "in no catalogue"


def test_an_unknown_language(monkeypatch):
    monkeypatch.setenv(language.LANGUAGE_VARIABLE, "fr")
    with pytest.raises(LanguageError, match=rf"COURSE_LANG=fr .*{', '.join(LANGUAGES)}"):
        session.start("00")


def test_the_checks_answer_in_vietnamese(vietnamese, capsys):
    assert not checks.check("03.2", lambda shapes, rank: 1)
    assert not checks.check("03.2", lambda shapes, rank: 64 * 32 + 16 * 64)
    assert not checks.check("03.2", ...)
    assert not checks.check("03.2", lambda shapes, rank: 1 / 0)
    assert capsys.readouterr().out.splitlines() == [
        "03.2: chưa đúng: các trọng số 64x32 và 16x64 với hạng 4 cần 704 tham số, "
        "còn của bạn là 1.",
        "03.2: chưa đúng: đó là kích thước của các trọng số đóng băng: LoRA huấn luyện "
        "A (r, in) và B (out, r).",
        "03.2: bạn chưa làm bài này.",
        "03.2: chưa đúng: code của bạn dừng lại với lỗi ZeroDivisionError: division by zero",
    ]


def test_the_hand_over_is_in_vietnamese(vietnamese, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_ARTIFACTS", str(tmp_path))
    from utils.course import artifacts, profiles

    shelf = artifacts.shelf("lab")
    course = session.Course("00_x", profiles.TABLE["lab"], 1, shelf)
    with course.hand_over({"accuracy": 0.5}):
        pass
    assert capsys.readouterr().out == "Đã lưu artifacts/lab/00_x:\n  accuracy  0.5\n"
    assert artifacts.find("00_x", shelf) == (
        shelf.folder / "00_x",
        "tìm thấy trong thư mục trên máy",
    )


def test_figures_are_labelled_in_vietnamese(vietnamese):
    from utils.show import plots

    texts = [text.get_text() for text in plots.pipeline("04").axes[0].texts]
    assert "bạn đang ở đây" in texts
    assert "03  SFT,\n4 bit" in texts
    axes = plots.histogram({"x": [1.0, 2.0]}, ["b"], "syllables", "Calibration")
    title = axes.get_title("left") or axes.get_title()  # left, if another test chose our style
    assert (axes.get_xlabel(), title) == ("số âm tiết", "Hiệu chuẩn")
    lines = {"DPO": ([1.0], [0.0])}
    figure = plots.loss_and_pull([0.0], lines, "margin, nats", "a title in no catalogue")
    assert {axes.get_xlabel() for axes in figure.axes} == {"margin, tính bằng nat"}


def test_labels_that_a_cell_gives_to_a_figure_are_messages():
    source = (
        'plots.histogram(x, c, "syllables", f"{a} of b")\nplots.clip_curves(1, 2, 3, 4, "flat")'
    )
    assert sorted(message for message, *_ in messages.of_source(source)) == ["flat", "syllables"]


@pytest.mark.parametrize(
    ("translations", "fault"),
    [
        ({"right.": ""}, "not translated"),
        ({"gone": "mất"}, "used nowhere"),
        ({"right.": "đúng"}, "another end"),
        ({"right.": "đuúng."}, "no Vietnamese syllable"),
        ({"not yet: {reason}": "chưa: {reasons}"}, "other placeholders"),
        ({"reward model": "mẫu thưởng"}, "'mô hình thưởng' for 'reward model'"),
        ({"  {name}: made in {seconds:.0f} s": "  {name}: {seconds} giây"}, "other placeholders"),
    ],
)
def test_a_fault_of_the_catalogue_is_found(translations, fault):
    (found,) = messages.faults({**TRANSLATIONS, **translations})
    assert fault in found


def test_messages_are_found_where_they_stand():
    source = """
def judge(x) -> Verdict:
    def part() -> int:
        return "no message"
    mistakes = {"key": part, 1.0: "value"}
    mistakes = [(x, "row")]
    return "then" if x else "otherwise"
tr("a"), tr("b {x}", x=1), later("c"), later("d {x}"), print("no message")
"""
    found = {text: formatted for text, _, formatted in messages.of_source(source, judges=True)}
    plain = ["key", "value", "row", "then", "otherwise", "a", "c"]
    assert found == {**dict.fromkeys(plain, False), "b {x}": True, "d {x}": True}
    assert {text for text, *_ in messages.of_source(source)} == {"a", "b {x}", "c", "d {x}"}


def test_a_noun_that_a_function_puts_into_its_sentence_is_a_message():
    source = """
progress.bar("training", 3, "step"), track(rows, "search", unit="block"), bar(name, 3, unit)
need(rows, 1, "pairs", "train.csv"), cut(rows, 3, what="no position"), print("pairs", 1, "x")
"""
    assert {text for text, *_ in messages.of_source(source)} == {
        *("training", "step", "search", "block", "pairs")
    }


def test_a_sentence_that_is_shown_without_tr_is_found():
    source = """
print(f"{name}: {value}"), print("Saved it.", tr("Read it.")), print(len("no text is printed"))
raise KeyError(name) from error
raise DataError(f"{path.name} has no rows" if rows else "there are none")
raise DataError(tr("{file} has no rows.", file=path.name))
warnings.warn(f"Skipped: the {fault}.", stacklevel=2)
"""
    assert sorted(messages.untranslated(source)) == [
        *("Saved it.", "Skipped: the {}.", "there are none", "{} has no rows")
    ]


def test_a_sentence_with_values_must_go_through_tr():
    with pytest.raises(SystemExit, match="needs tr"):
        list(messages.of_source('def f(x) -> Verdict:\n    return f"{x} is wrong."', judges=True))

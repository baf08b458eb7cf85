"""The shipped pairs and questions have the properties that their data cards state."""

import json
import re
import unicodedata
from collections import Counter, defaultdict

import pytest

from tools.build_preference_data import FOLDER, as_bytes, build, tiers
from utils.course.paths import ROOT
from utils.data.families import CAPITALS, OPPOSITES, SYNONYMS, TABLES, number_words, systematic
from utils.data.mining import longer_wins
from utils.data.pairs import load_human_like, load_preferences, science_questions
from utils.data.text import duplicate_key, syllables

SPLITS = ["train", "test"]
FLAWS = {
    "wrong_fact",
    "missed_constraint",
    "wrong_register",
    "translationese",
    "padding",
    "over_refusal",
    "unsafe",
}


@pytest.fixture(scope="module")
def pairs():
    return {
        split: [
            json.loads(line)
            for line in (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def written():
    lines = (FOLDER / "written.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def families():
    return systematic()


def test_the_files_are_what_the_sources_give(pairs):
    for split, rows in build().items():
        assert as_bytes(rows) == (FOLDER / f"{split}.jsonl").read_bytes(), (
            f"{split}.jsonl is not what the sources give: run tools/build_preference_data.py."
        )


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


def test_neither_length_nor_shared_words_show_the_better_of_two_answers_to_a_question(pairs):
    rows = [row for split in SPLITS for row in pairs[split] if row["tier"] in FLAWS]

    def share(key) -> float:
        found = [key(row, row["chosen"]) - key(row, row["rejected"]) for row in rows]
        return sum(d > 0 for d in found) / sum(d != 0 for d in found)

    def overlap(row, answer):
        return len(set(syllables(row["question"])) & set(syllables(answer)))

    assert 0.4 < share(lambda row, answer: len(answer.split())) < 0.6
    assert 0.4 < share(overlap) < 0.6


def test_the_card_counts_what_is_there(pairs):
    card = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    counts = {split: tiers(rows) for split, rows in pairs.items()}
    for tier in counts["train"]:
        assert f"| `{tier}` | {counts['train'][tier]:,} | {counts['test'][tier]:,} |" in card, tier


def test_loading_finds_nothing_to_mend(capsys, monkeypatch):
    monkeypatch.delenv("COURSE_PREFERENCE_DATA", raising=False)
    monkeypatch.delenv("COURSE_HUMAN_LIKE_DATA", raising=False)
    load_preferences()
    load_human_like()
    assert capsys.readouterr().out == "Nothing to mend in the data.\n" * 2


def test_no_id_twice_and_no_question_in_both_splits(pairs):
    rows = pairs["train"] + pairs["test"]
    assert len({row["id"] for row in rows}) == len(rows)
    asked = {
        split: {json.dumps([*r["history"], duplicate_key(r["question"])]) for r in pairs[split]}
        for split in SPLITS
    }
    assert not asked["train"] & asked["test"]


def near(kept, others):
    """Pairs of questions whose sets of syllables overlap by at least 80 % (Jaccard)."""
    sets = [(question, set(syllables(question))) for question in others]
    found = []
    for question in kept:
        mine = set(syllables(question))
        found += [(question, o) for o, s in sets if len(mine & s) >= 0.8 * len(mine | s)]
    return found


def test_no_written_answer_stands_in_both_splits(pairs):
    answers = {
        split: {
            duplicate_key(row[side])
            for row in pairs[split]
            if row["tier"] != "systematic"
            for side in ("chosen", "rejected")
        }
        for split in SPLITS
    }
    assert not answers["train"] & answers["test"]


def test_text_is_nfc_and_neither_blank_nor_padded(pairs):
    for row in pairs["train"] + pairs["test"]:
        for text in (value for value in row.values() if isinstance(value, str)):
            assert unicodedata.is_normalized("NFC", text)
            assert text and text == text.strip()


def test_off_topic_is_the_right_answer_to_another_question_and_wrong_for_this(pairs, families):
    known = {row.question: row for row in families}
    for split in SPLITS:
        answered = defaultdict(set)
        for row in pairs[split]:
            answered[row["chosen"]].add(row["question"])
        for row in pairs[split]:
            if row["tier"] in FLAWS:
                continue
            assert duplicate_key(row["chosen"]) != duplicate_key(row["rejected"])
            assert answered[row["rejected"]], "not an answer of this split"
            this = known.get(row["question"])
            others = [known.get(question) for question in answered[row["rejected"]]]
            if this is None:
                assert others == [None] * len(others)  # all are written
            else:
                assert all(this.fact != other.fact for other in others)
                assert all(this.value != other.value for other in others)


def test_the_longer_answer_is_right_half_the_time(pairs):
    for split in SPLITS:
        for tier in ("off_topic", "systematic"):
            rows = [row for row in pairs[split] if row["tier"] == tier]
            chosen, rejected = ([row[side] for row in rows] for side in ("chosen", "rejected"))
            assert 0.4 <= longer_wins(chosen, rejected) <= 0.6, (split, tier)


def test_no_answer_is_rejected_over_and_over(pairs):
    for split in SPLITS:
        assert max(Counter(row["rejected"] for row in pairs[split]).values()) <= 3


# the systematic families, where possible checked without their own tables


def test_held_out_facts_can_be_learned_but_not_their_phrasing(families):
    train = [row for row in families if not row.held_out]
    facts = Counter(row.fact for row in train)
    questions = {row.question for row in train}
    for row in families:
        if row.held_out:
            assert row.question not in questions
            if row.kind in TABLES:
                assert facts[row.fact] >= 2
            else:
                assert facts[row.fact] == 0  # test uses numbers and lists that train does not have


def test_every_phrasing_of_every_table_is_learned_and_of_the_larger_ones_tested(families):
    for kind, (facts, phrasings) in TABLES.items():
        for held_out in (True, False):
            if held_out and len(facts) < 20:
                continue
            questions = [r.question for r in families if r.kind == kind and r.held_out == held_out]
            for form in phrasings:
                parts = [re.escape(part) for part in re.split(r"\{\d\}", form.question)]
                pattern = re.compile(".+".join(parts), re.IGNORECASE)
                assert any(map(pattern.fullmatch, questions)), (kind, form.question, held_out)


def test_the_tables_are_as_large_as_promised_and_without_contradiction():
    words = [word for pair in OPPOSITES for word in pair]
    assert len(OPPOSITES) >= 80 and len(set(words)) == len(words)
    words = [word for pair in SYNONYMS for word in pair]
    assert len(set(words)) == len(words)
    assert len(CAPITALS) >= 60
    assert len({land for land, _ in CAPITALS}) == len({city for _, city in CAPITALS})
    for kind, (facts, _) in TABLES.items():
        assert len({fact[:2] for fact in facts}) == len(facts), kind


def test_a_subject_has_one_answer_in_each_family(families):
    answers = defaultdict(set)
    for row in families:
        answers[duplicate_key(row.question)].add(row.answer)
    assert all(len(found) == 1 for found in answers.values())


OPERATIONS = [
    (r"(\d+) (?:cộng|\+) (\d+) (?:bằng|=) (\d+)", lambda a, b, c: a + b == c),
    (r"(\d+) (?:-|bớt|trừ) (\d+) (?:=|còn) (\d+)", lambda a, b, c: a - b == c),
    (r"(\d+) (?:nhân|×) (\d+) (?:bằng|=) (\d+)", lambda a, b, c: a * b == c),
    (r"(\d+) (?:chia|:) (\d+) (?:được|=) (\d+)", lambda a, b, c: a == b * c),
    (r"tích của (\d+) và (\d+) là (\d+)", lambda a, b, c: a * b == c),
    (r"[Tt]ổng của (\d+) và (\d+) là (\d+)", lambda a, b, c: a + b == c),
    (r"[Ss]ố (\d+) lớn hơn số (\d+)()", lambda a, b, c: a > b),
    (r"^(\d+) lớn hơn (\d+)()", lambda a, b, c: a > b),
    (r"số (\d+) bé hơn số (\d+)()", lambda a, b, c: a < b),
    (r"Số bé là (\d+), còn (\d+) lớn hơn()", lambda a, b, c: a < b),
    (r"(?:sau của|Sau số) (\d+) là (?:số )?(\d+)()", lambda a, b, c: b == a + 1),
    (r"ngay trước (\d+) là số (\d+)()", lambda a, b, c: b == a - 1),
    (r"(?:tăng dần là|đến lớn:) (\d+), (\d+), (\d+)", lambda a, b, c: a < b < c),
    (r"giảm dần là (\d+), (\d+), (\d+)", lambda a, b, c: a > b > c),
]


@pytest.mark.parametrize(("pattern", "holds"), OPERATIONS)
def test_what_the_answers_say_about_numbers_is_true(families, pattern, holds):
    sums = [m.groups() for row in families for m in re.finditer(pattern, row.answer)]
    assert len(sums) >= 10
    wrong = [numbers for numbers in sums if not holds(*(int(n or 0) for n in numbers))]
    assert wrong == []


def test_answers_on_numbers_repeat_those_of_the_question(families):
    # "3 + 4 = 7 em nhé" must answer the question about 3 and 4
    for row in families:
        if row.kind in ("phép cộng", "phép trừ", "phép nhân", "so sánh số"):
            asked, answered = (set(re.findall(r"\d+", t)) for t in (row.question, row.answer))
            assert asked <= answered, row


def read_words(text):
    """The value of a number in words, by rules independent of number_words."""
    digits = ["không", "một", "hai", "ba", "bốn", "năm", "sáu", "bảy", "tám", "chín", "mười"]
    total = 0
    for word in text.split():
        if word == "mươi":
            total *= 10
        else:
            total += {"mốt": 1, "lăm": 5}.get(word, digits.index(word) if word in digits else 0)
    return total


def test_number_words_are_read_back():
    assert [read_words(number_words(n)) for n in range(100)] == list(range(100))
    assert [number_words(n) for n in (11, 15, 21, 25, 55, 90)] == [
        "mười một",
        "mười lăm",
        "hai mươi mốt",
        "hai mươi lăm",
        "năm mươi lăm",
        "chín mươi",
    ]
    with pytest.raises(ValueError, match="0 to 99"):
        number_words(100)


def test_sums_in_words_are_true(families):
    pattern = (
        r"^(?:Dạ, )?(.+?) (?:cộng với|thêm|và) (.+?) (?:là|gộp lại được) (.+?)(?: con nhé| ạ)?\.$"
    )
    rows = [row for row in families if row.kind == "phép cộng bằng chữ"]
    for row in rows:
        a, b, c = (read_words(t.lower()) for t in re.match(pattern, row.answer).groups())
        assert a + b == c, row
    assert len(rows) > 100


def test_counts_are_true(families):
    for row in families:
        if row.kind == "đếm chữ cái":
            word = re.search("“(.+?)”", row.answer).group(1)
            assert f" {len(word)} chữ cái" in row.answer, row
        if row.kind == "đếm đồ vật":
            things = re.search("(?:có|nuôi) (.+?)[.] ", row.question).group(1)
            assert number_words(len(re.split(", | và ", things))) in row.answer, row
        if row.kind == "đếm tiếng":
            phrase = re.search("“(.+?)”", row.answer).group(1)
            assert f" {number_words(len(phrase.split()))} tiếng" in row.answer, row


def test_units_are_true(families):
    size = {
        "mét xăng-ti-mét": 100,
        "ki-lô-mét mét": 1000,
        "ki-lô-gam gam": 1000,
        "tấn ki-lô-gam": 1000,
        "lít mi-li-lít": 1000,
        "giờ phút": 60,
        "phút giây": 60,
        "tuần ngày": 7,
        "năm tháng": 12,
        "tá chiếc": 12,
    }
    seen = set()
    pattern = r"(\d+) (\S+) (?:bằng|đổi ra được|có) ([\d.]+) (\S+?)(?: em| ạ|\.$)"
    for row in families:
        if row.kind == "đổi đơn vị":
            number, big, total, small = re.search(pattern, row.answer).groups()
            assert int(total.replace(".", "")) == int(number) * size[f"{big} {small}"], row
            seen.add(f"{big} {small}")
    assert seen == set(size)


# the other two data sets


def test_human_like_keeps_its_card(monkeypatch):
    monkeypatch.delenv("COURSE_HUMAN_LIKE_DATA", raising=False)
    loaded = load_human_like(quiet=True)
    assert (len(loaded["train"]), len(loaded["test"])) == (280, 60)
    for column in ("prompt", "chosen", "rejected"):
        texts = [duplicate_key(text) for split in SPLITS for text in loaded[split][column]]
        assert len(set(texts)) == 340
    assert near(loaded["test"]["prompt"], loaded["train"]["prompt"]) == []
    for split in SPLITS:
        assert 0.42 <= longer_wins(loaded[split]["chosen"], loaded[split]["rejected"]) <= 0.58


def test_science_questions_keep_their_card():
    questions = science_questions()
    assert len(questions) >= 120
    assert len({duplicate_key(question) for question in questions}) == len(questions)
    for question in questions:
        assert question.endswith("?")
        assert unicodedata.is_normalized("NFC", question)
        assert 8 <= len(syllables(question)) <= 25

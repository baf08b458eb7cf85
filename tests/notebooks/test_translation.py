"""The Vietnamese edition: the same cells, code and outputs, and texts that lost nothing."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.notebooks.test_notebooks import dead_links
from tools import figures, glossary, translate
from utils.course.language import CATALOGUE, entries
from utils.course.notebooks import LANGUAGE_LINE, code_hash
from utils.course.paths import NOTEBOOKS, ROOT

EDITION = sorted((NOTEBOOKS / "vi").glob("*.ipynb"))
BADGE = "https://colab.research.google.com/github/a/b/blob/v1/notebooks/{}.ipynb"
FIRST = f"""# The first lesson

<!-- badges -->
[![Open in Colab](badge.svg)]({BADGE.format("00_first")})
<!-- /badges -->

At the end you know why $\\ln 2 = 0.693$ for 1,500 pairs.

| profile | model | minutes | memory |
|---|---|---|---|
| `lab` | a stand-in | 0.5 (2 cores) | not measured |"""
SECOND = """## The reward model

- It gives **one number** per text; see [the data](../data/README.md), [next](01_second.ipynb).
- The policy keeps `beta = 0.1` and the loss is 0.25 nats in TRL 1.12, exercise 00.1."""
VIETNAMESE = {
    "00-00": """# Bài học đầu tiên

<!-- badges --><!-- /badges -->

Học xong bài này, bạn biết vì sao $\\ln 2 = 0.693$ với 1.500 cặp.

| cấu hình | mô hình | số phút | bộ nhớ |
|---|---|---|---|
| `lab` | mô hình thay thế | … | … |""",
    "00-02": """## Mô hình thưởng

- Mô hình cho **một con số** với mỗi văn bản; xem [dữ liệu](../data/README.md),
  [bài sau](01_second.ipynb).
- Chính sách giữ `beta = 0.1`, và mất mát là 0,25 nat trong TRL 1.12, bài tập 00.1.""",
}
README = f"""# The course

**English** · [Tiếng Việt](README.vi.md)

```bash
make course 00      # runs the first notebook
```

| notebook | you build | lab | t4 | a100 |
|---|---|---|---|---|
| [00 First](notebooks/00_first.ipynb) <!-- badges -->[x]({BADGE.format("00_first")})\
<!-- /badges --> | a policy | 0.5 min, 0.9 GB | not measured | not measured |

## Data

The 1,500 pairs lie in [data](data/README.md), see [above](#the-course); type `make test`.
"""
VIETNAMESE_README = """# Khóa học

[English](README.md) · **Tiếng Việt**

```bash
make course 00      # chạy notebook đầu tiên
```

| notebook | bạn sẽ dựng | lab | t4 | a100 |
|---|---|---|---|---|
| [00 Bài đầu](notebooks/00_first.ipynb) <!-- badges --><!-- /badges --> \
| một chính sách | … | … | … |

## Dữ liệu

1.500 cặp nằm trong [thư mục](data/README.md), xem [bên trên](#khóa-học); hãy gõ `make test`.
"""
SETUP = 'import os, sys\nHOME = os.path.abspath("..")\nsys.path.insert(0, HOME)\n'
TERMS = [
    {"en": "reward model", "vi": "mô hình thưởng"},
    {"en": "reward", "vi": "phần thưởng"},
    {"en": "policy", "vi": "chính sách"},
]


def notebook(*texts: tuple[str, str, str]) -> str:
    cells = []
    for cell, kind, text in texts:
        more = {"execution_count": 1, "outputs": [{"name": "x", "text": ["đầu ra\n"]}]}
        cells.append(
            {"cell_type": kind, "id": cell, "metadata": {}, "source": text.splitlines(True)}
            | (more if kind == "code" else {})
        )
    content = {"cells": cells, "metadata": {"course": {"outputs_of": "?"}}, "nbformat": 4}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of two notebooks, of which the first is translated."""
    folder, sources = tmp_path / "notebooks", tmp_path / "i18n" / "vi"
    for path in (folder, sources):
        path.mkdir(parents=True)
    first = notebook(
        ("00-00", "markdown", FIRST), ("00-01", "code", SETUP), ("00-02", "markdown", SECOND)
    )
    (folder / "00_first.ipynb").write_text(first, encoding="utf-8")
    other = notebook(("01-00", "markdown", "# The second lesson"), ("01-01", "code", SETUP))
    (folder / "01_second.ipynb").write_text(other, encoding="utf-8")
    monkeypatch.setattr(translate, "NOTEBOOKS", folder)
    monkeypatch.setattr(translate, "SOURCES", sources)
    monkeypatch.setattr(translate, "EDITION", folder / "vi")
    monkeypatch.setattr(glossary, "GLOSSARY", tmp_path / "glossary.jsonl")
    monkeypatch.setattr(translate, "READMES", (tmp_path / "README.md", tmp_path / "README.vi.md"))
    write_readmes()
    translate.READMES[1].write_text(translate.readme_built(), encoding="utf-8")
    write_blocks(sources, VIETNAMESE)
    return tmp_path


def write_readmes(english=README, translation=VIETNAMESE_README):
    for path, text in zip(translate.READMES, (english, translation), strict=True):
        path.write_text(text, encoding="utf-8")


def write_blocks(sources, texts):
    english = {"00-00": FIRST, "00-02": SECOND}
    made = [translate.Block(cell, translate.digest(english[cell]), texts[cell]) for cell in texts]
    (sources / "00_first.md").write_text("\n".join(map(str, made)), encoding="utf-8")


def change_english(course, old, new):
    path = course / "notebooks" / "00_first.ipynb"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def edition(course) -> dict:
    return json.loads((course / "notebooks/vi/00_first.ipynb").read_text(encoding="utf-8"))


# --- The real edition ----------------------------------------------------------------------------


def test_nothing_is_left_to_do():
    run = subprocess.run(
        [sys.executable, "tools/translate.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout == "0 things to do\n"


@pytest.mark.parametrize("path", EDITION, ids=lambda path: path.stem)
def test_an_edition_has_the_cells_code_and_outputs_of_the_english_notebook(path):
    check_code(json.loads(path.read_text(encoding="utf-8")), translate.english_notebook(path.stem))


@pytest.mark.parametrize("path", EDITION, ids=lambda path: path.stem)
def test_relative_links_of_an_edition_are_alive(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = "\n".join(translate.source(c) for c in cells if c["cell_type"] == "markdown")
    assert dead_links(path, prose) == []


def check_code(vietnamese: dict, english: dict):
    assert [c["id"] for c in vietnamese["cells"]] == [c["id"] for c in english["cells"]]
    assert vietnamese["metadata"] == english["metadata"]
    pairs = [
        (one, other)
        for one, other in zip(vietnamese["cells"], english["cells"], strict=True)
        if other["cell_type"] == "code"
    ]
    setup = "".join(pairs[0][0].pop("source"))
    assert setup.count(f"\n{LANGUAGE_LINE}\n") == 1
    assert setup.replace(f"{LANGUAGE_LINE}\n", "") == "".join(pairs[0][1].pop("source"))
    assert all(one == other for one, other in pairs)


def test_every_english_cell_can_be_extracted_and_preserves_itself():
    spoken = (
        "not translated",
        "decimals",
        "thousands",
        "straight",
        "no space",
        "the number",
        "the glossary",
    )
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        for cell, english in translate.text_cells(translate.english_notebook(path.stem)).items():
            found = translate.faults(english, translate.template(english))
            assert [f for f in found if not f.startswith(spoken)] == [], cell


@pytest.mark.parametrize("path", translate.READMES, ids=lambda path: path.name)
def test_a_readme_links_to_the_other_language_and_to_its_own_headings(path):
    text = path.read_text(encoding="utf-8")
    others = {other.name for other in translate.READMES} - {path.name}
    assert set(re.findall(r"\]\((README[^)]*)\)", text)) == others
    headings = re.findall(r"(?m)^#+ (.*)$", translate.FENCE.sub("", text))
    anchors = {re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= anchors


def test_the_readme_quotes_what_the_code_prints():
    texts = [path.read_text(encoding="utf-8") for path in translate.READMES]
    catalogue = list(entries(CATALOGUE.read_text(encoding="utf-8")))
    quoted = re.findall(r"(?m)^\| `([^`]+)`[^|\n]*(?:\(“([^”]+)”\)) \|", texts[1])
    assert len(quoted) >= 6
    for shown, vietnamese in quoted:
        assert f"`{shown}`" in texts[0]
        parts = [p.strip(" :") for p in re.split(r"…|\. |COURSE_PROFILE=t4|6\.0", shown)]
        assert any(
            vietnamese in translation and any(part in message for part in parts if part)
            for message, translation in catalogue
        ), shown


def test_the_readme_says_which_minutes_are_estimated():
    for path, words in zip(translate.READMES, ({}, translate.WORDS), strict=True):
        (header,) = re.findall(r"(?m)^\| notebook \|.*$", path.read_text(encoding="utf-8"))
        for profile, (word, _) in figures.WORDS.items():
            assert f"| {profile} ({words.get(word, word)}" in header


# --- The builder, on a small course --------------------------------------------------------------


def test_a_translated_notebook_is_built(course):
    assert translate.main(["--check"]) == 1  # complete, but not built
    assert translate.main(["build"]) == 0
    made = edition(course)
    check_code(edition(course), translate.english_notebook("00_first"))
    assert code_hash(made) == code_hash(translate.english_notebook("00_first"))
    first, second = ("".join(made["cells"][number]["source"]) for number in (0, 2))
    assert f"({BADGE.format('vi/00_first')})" in first
    assert "| `lab` | mô hình thay thế | 0,5 (2 nhân) | chưa đo |" in first
    assert "(../../data/README.md)" in second
    assert "(../01_second.ipynb)" in second  # it has no translation
    assert translate.main(["--check"]) == 0
    assert not (course / "notebooks/vi/01_second.ipynb").exists()


def test_a_link_stays_in_the_edition_when_its_notebook_is_translated(course):
    (course / "i18n/vi/01_second.md").write_text("", encoding="utf-8")
    assert translate.linked("[a](01_second.ipynb#x) `[b](c.md)` $[d](e)$ [f](#g)") == (
        "[a](01_second.ipynb#x) `[b](c.md)` $[d](e)$ [f](#g)"
    )


def test_the_setup_cell_finds_the_course_from_the_folder_of_the_edition(course):
    translate.main(["build"])
    code = "".join(edition(course)["cells"][1]["source"])
    for folder in ("notebooks/vi", "notebooks"):
        program = f"{code}\nexec({code!r})\nprint(HOME, os.environ['COURSE_LANG'])"
        run = subprocess.run(
            [sys.executable, "-c", program],
            cwd=course / folder,
            env={k: v for k, v in os.environ.items() if k != "COURSE_LANG"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.split() == [str(course), "vi"]


@pytest.mark.parametrize(
    ("old", "new", "stale"),
    [
        ("At the end you know", "At the end you understand", ["00-00"]),
        ("per text", "per answer", ["00-02"]),
        ("blob/v1", "blob/v2", []),  # badges and figures are filled in
        ("0.5 (2 cores)", "0.6 (2 cores)", []),
        ("đầu ra", "another output", []),
    ],
)
def test_only_a_changed_text_is_translated_again(course, capsys, old, new, stale):
    translate.main(["build"])
    change_english(course, old, new)
    assert list(translate.open_cells("00_first")) == stale
    assert translate.main(["--check"]) == 1
    capsys.readouterr()
    translate.main(["--stale"])
    assert capsys.readouterr().out.splitlines() == [f"00_first {cell} stale" for cell in stale]
    before = edition(course)
    assert translate.main(["build"]) == int(bool(stale))
    if stale:
        assert edition(course) == before
    else:
        assert translate.main(["--check"]) == 0


def test_a_missing_cell_is_refused_or_shown_in_english(course, capsys):
    write_blocks(course / "i18n/vi", {"00-00": VIETNAMESE["00-00"]})
    assert translate.main(["--check"]) == 0  # begun, and nothing is published
    assert translate.main(["build"]) == 0  # it can wait
    assert translate.main(["build", "00"]) == 1
    assert "00-02: missing" in capsys.readouterr().out
    assert not (course / "notebooks/vi").exists()
    assert translate.main(["build", "00", "--allow-missing"]) == 0
    text = "".join(edition(course)["cells"][2]["source"])
    assert text.startswith(translate.NOTE + "## The reward model")
    assert translate.main(["--check"]) == 1  # such a notebook is not to be committed


def test_a_skeleton_stands_below_the_old_translation(course):
    change_english(course, "per text", "per answer")
    assert translate.main(["extract", "00"]) == 0
    path = course / "i18n/vi/00_first.md"
    first, old, new = translate.blocks("00_first")
    assert (first.cell, old.cell, new.cell) == ("00-00", "00-02", "00-02")
    assert (old.text, new.todo) == (VIETNAMESE["00-02"], True)
    assert "per answer" in new.text
    text = path.read_text(encoding="utf-8")
    translate.main(["extract", "00"])
    assert path.read_text(encoding="utf-8") == text  # the second time changes nothing
    path.write_text(text.replace(" todo", "").replace(new.text, old.text), encoding="utf-8")
    assert any("two blocks" in fault for fault in translate.faults_of("00_first"))
    translate.main(["extract", "00"])
    assert translate.faults_of("00_first") == []
    assert translate.main(["build"]) == 0


def test_the_badges_of_a_skeleton_are_empty_and_its_figures_open(course):
    (course / "i18n/vi/00_first.md").unlink()
    translate.main(["extract", "00"])
    text = translate.blocks("00_first")[0].text
    assert "<!-- badges --><!-- /badges -->" in text
    assert "| `lab` | a stand-in | … | … |" in text


def test_a_block_without_its_cell_is_named(course):
    translate.main(["build"])
    change_english(course, '"id": "00-02"', '"id": "00-03"')
    assert translate.open_cells("00_first") == {"00-03": "missing", "00-02": "gone"}
    assert translate.main(["--check"]) == 1


@pytest.mark.parametrize(
    ("cell", "old", "new", "fault"),
    [
        ("00-00", "0.693", "0.694", "formula"),
        ("00-00", "1.500", "1,500", "1,500 is missing, in Vietnamese 1.500"),
        ("00-00", "1.500", "1.600", "1.600 is not in the English"),
        ("00-00", "<!-- badges --><!-- /badges -->", "", "badges stand"),
        ("00-00", "# Bài", "## Bài", "headings or tables"),
        ("00-00", "|---|---|---|---|\n", "", "headings or tables"),
        ("00-02", "beta = 0.1", "beta = 0.2", "code"),
        ("00-02", "../data/README.md", "data.md", "link"),
        ("00-02", "mất mát là 0,25", "mất mát là 0.25", "decimals follow a comma"),
        ("00-02", "00.1", "00.2", "00.1 is missing"),
        ("00-02", "**một con số**", "<b>một con số</b>", "tag"),
        ("00-02", "văn bản", "văn bảnn", "no Vietnamese syllable"),
        ("00-02", VIETNAMESE["00-02"], SECOND, "not translated: '- It gives"),
        ("00-02", "Chính sách", "Mô hình", "'chính sách' for 'policy'"),
        ("00-02", "# Mô hình thưởng", "# Mô hình", "'mô hình thưởng' for 'reward model'"),
    ],
)
def test_what_a_translation_must_preserve(course, cell, old, new, fault):
    rows = "\n".join(json.dumps(row, ensure_ascii=False) for row in TERMS)
    (course / "glossary.jsonl").write_text(rows, encoding="utf-8")
    assert translate.faults_of("00_first") == []
    assert old in VIETNAMESE[cell]
    write_blocks(course / "i18n/vi", VIETNAMESE | {cell: VIETNAMESE[cell].replace(old, new)})
    assert any(fault in found for found in translate.faults_of("00_first"))
    assert translate.main(["build"]) == 1


def test_the_readme_gets_badges_figures_and_its_own_links(course):
    translate.main(["build"])
    text = translate.READMES[1].read_text(encoding="utf-8")
    badge = BADGE.format("vi/00_first")
    assert f"[00 Bài đầu](notebooks/vi/00_first.ipynb) <!-- badges -->[x]({badge})<!--" in text
    assert "| một chính sách | 0,5 phút, 0,9 GB | chưa đo | chưa đo |" in text
    assert translate.main(["--check"]) == 0
    translate.READMES[0].write_text(README.replace("0.5 min", "0.6 min"), encoding="utf-8")
    assert translate.main(["--check"]) == 1


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("make course 00 ", "make course 01 ", "the code"),
        ("`make test`", "`make tests`", "the code"),
        ("## Dữ liệu", "### Dữ liệu", "headings"),
        ("\n## Dữ liệu\n", "", "1 sections instead of 2"),
        ("data/README.md", "data/", "the link"),
        ("1.500", "1.400", "the number"),
        ("bạn sẽ dựng |", "", "headings or tables"),
        ("một chính sách", "một mô hình", "the glossary"),
        ("1.500 cặp nằm", "1.500 cặp đuược nằm", "no Vietnamese syllable"),
    ],
)
def test_what_the_vietnamese_readme_must_preserve(course, old, new, fault):
    rows = "\n".join(json.dumps(row, ensure_ascii=False) for row in TERMS)
    (course / "glossary.jsonl").write_text(rows, encoding="utf-8")
    assert list(translate.readme_faults()) == []
    assert old in VIETNAMESE_README
    write_readmes(translation=VIETNAMESE_README.replace(old, new))
    assert any(fault in found for found in translate.readme_faults())


def test_a_term_can_mean_something_else_in_one_cell():
    block = translate.Block("00-02", "ab12", "x", exempt=("step", "reward"))
    assert str(block).startswith("<!-- cell 00-02 ab12 except: step, reward -->\n")
    (read,) = zip(*[iter(translate.HEAD.split(str(block))[1:])] * 5, strict=True)
    assert read[3] == "step, reward"


def test_what_need_not_be_translated(course):
    paper = "- R. Rafailov et al., *Direct Preference Optimization of a Language Model*, 2023."
    code = "```python\na = this_is_code(with_many, words_in_it, that, stay)\n```"
    example = "- thầy dạy quá nhanh và không ai theo kịp bài giảng"
    for text in (paper, code, example, "[one two three four five](https://x.org/a)", "PPO, DPO"):
        assert list(translate.faults(text, text)) == [], text
    sentence = "This sentence is still in English."
    (fault,) = translate.faults(sentence, sentence)
    assert fault.startswith("not translated")
    for title in ("## 10. Quiz", "<details><summary>Answer</summary></details>"):
        assert any("not translated" in fault for fault in translate.faults(title, title))


@pytest.mark.parametrize(
    ("english", "own", "right"),
    [
        ("### Read your curves", "### Đọc các đường cong huấn luyện", True),
        ("### Read your curves", "### Đọc các đường cong", False),
        ("## 8. Break it: no mask", "## 8. Thử làm hỏng: bỏ mặt nạ", True),
        ("**You will be able to**", "**Sau bài này, bạn có thể**", False),
        ("<summary>Solution 00.5</summary>", "<summary>Lời giải 00.5</summary>", True),
        ("<summary>Answer</summary>", "<summary>Trả lời</summary>", False),
        ("### Answers before and after", "### Câu trả lời trước và sau", True),
    ],
)
def test_titles_of_every_notebook_are_translated_alike(english, own, right):
    found = list(translate.faults(english, own))
    assert [fault.split(" as ")[0] for fault in found] == [] if right else ["not translated"]


def test_words_in_a_formula_may_be_translated():
    assert not list(translate.faults(r"$\pi_{\text{ref}}$", r"$\pi_{\text{tham chiếu}}$"))


def test_an_unknown_notebook(course):
    with pytest.raises(SystemExit, match="00_first, 01_second"):
        translate.main(["build", "07"])


# --- The glossary --------------------------------------------------------------------------------


def test_the_glossary_is_complete_and_its_references_exist():
    rows = glossary.rows(glossary.GLOSSARY)
    names = [row["en"] for row in rows]
    assert len(set(names)) == len(names) >= 120
    for row in rows:
        assert set(row) == {"en", "vi", "en_text", "vi_text", "see"}
        assert set(row["see"]) <= set(names), row["en"]
        assert row["en_text"][-1] == row["vi_text"][-1] == "."
    assert set(names) >= glossary.ORDINARY


def test_a_term_is_found_in_its_longest_form(tmp_path, monkeypatch):
    path = tmp_path / "glossary.jsonl"
    path.write_text("\n".join(map(json.dumps, [*TERMS, {"en": "odds", "vi": "chênh (odds)"}])))
    monkeypatch.setattr(glossary, "GLOSSARY", path)
    for english, translation, misused in [
        ("Two reward models", "Hai mô hình thưởng", 0),  # it is not also a reward
        ("A reward model and its reward", "Mô hình thưởng", 1),
        ("reward-free", "", 0),
        ("The policy", "Policy", 1),
        ("The odds", "Các odds", 0),  # the note is a form of the term, too
    ]:
        assert len(list(glossary.misused(english, translation))) == misused, english
    assert not list(glossary.misused("The policy", "Policy", exempt=["policy"]))


def test_the_title_of_a_paper_is_no_use_of_a_term(tmp_path, monkeypatch):
    path = tmp_path / "glossary.jsonl"
    path.write_text("\n".join(map(json.dumps, TERMS)))
    monkeypatch.setattr(glossary, "GLOSSARY", path)
    paper = "- A. Author et al., *A Reward Model for Each Policy*, 2024 (a reward)."
    assert not list(glossary.misused(f"{paper}\n{paper}", ""))
    for text in (f"{paper}\n- The policy", "- The *policy* of 2024"):
        assert len(list(glossary.misused(text, ""))) == 1, text

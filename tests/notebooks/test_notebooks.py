"""The committed notebooks: each comes from one clean run, without noise, small and complete."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import nbformat
import pytest

from utils.course import notebooks
from utils.course.notebooks import LESSONS, code_hash
from utils.course.paths import NOTEBOOKS, ROOT
from utils.exercises.checks import judge_of

PATHS = notebooks.files()
NUMBERED = pytest.mark.parametrize("path", PATHS, ids=[p.stem for p in PATHS])
SECTIONS = ("Read your curves", "Break it", "xercises", "🐢", "🐕", "🦁", "Quiz", "Hand over")
SECTIONS += ("What we simplified", "References")
NAMES = ("README.md", "README.vi.md", "CONTRIBUTING.md", "data/README.md")
DOCUMENTS = [ROOT / name for name in NAMES]
# a name such as UserWarning:, a log line, a traceback; not the English word
NOISE = re.compile(r"\b\w+Warning\b|^\s*(WARNING|ERROR)\b|Traceback \(most recent", re.MULTILINE)
MACHINE = re.compile(
    r"(?<![\w.:/])/(work|root|home|tmp|opt|usr|var|mnt|content|kaggle|Users|farm)/[\w.-]"
    r"|\b[A-Z]:\\\\?Users|site-packages|\b0x[0-9a-f]{8,}"
)
FIGURES = re.compile(r"not measured|(about |≈ ?|< ?)?\d+(\.\d+)?( (min|s|MB|GB))?( \([^)]*\))?")


def cells(path, kind):
    everything = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in everything if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def texts(path) -> Iterator[tuple[str, str]]:
    """(start of the cell, text) for every output except pictures."""
    for cell in cells(path, "code"):
        for output in cell["outputs"]:
            data = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")}
            for text in (output.get("text", ""), *data.values()):
                yield source(cell)[:60], text if isinstance(text, dict) else "".join(text)


@NUMBERED
def test_outputs_are_from_one_clean_run(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", source(cell)[:80]


@NUMBERED
def test_no_figure_is_shown_twice(path):
    """A last line that returns a figure shows it once more, unless it ends with a semicolon."""
    for cell in cells(path, "code"):
        shown = [output for output in cell["outputs"] if "image/png" in output.get("data", {})]
        assert len({output["output_type"] for output in shown}) <= 1, source(cell)[:80]


def test_the_table_of_lessons_names_every_notebook_and_no_other():
    assert [path.stem[:2] for path in PATHS] == list(LESSONS)
    assert len(PATHS) == len(list(NOTEBOOKS.glob("*.ipynb")))
    assert len({lesson.position for lesson in LESSONS.values()}) == len(LESSONS)


@NUMBERED
def test_a_notebook_hands_over_the_figure_of_the_closing_table(path):
    text = "".join(text for _, text in texts(path) if isinstance(text, str))
    assert re.search(rf"(?m)^  {LESSONS[path.stem[:2]].metric} ", text)


@NUMBERED
def test_sizes(path):
    code = [source(cell) for cell in cells(path, "code")]
    lengths = sorted(len(text.splitlines()) for text in code)
    assert len(code) <= 45
    assert lengths[len(lengths) // 2] <= 10
    assert lengths[-1] <= 40
    assert path.stat().st_size < 800_000


@NUMBERED
def test_no_widget_state_and_no_profile_branch(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"]
    for cell in cells(path, "code"):
        assert not re.search(r"if .*profile", source(cell))


@NUMBERED
def test_anatomy(path):
    prose = "\n".join(source(cell) for cell in cells(path, "markdown"))
    missing = [section for section in SECTIONS if section not in prose]
    assert missing == []


@NUMBERED
def test_the_setup_cell_is_the_same_everywhere_and_short(path):
    setup = source(cells(path, "code")[0])
    assert len(setup.splitlines()) <= 8
    first = source(cells(PATHS[0], "code")[0])
    number = re.compile(r'start\("\d\d",')
    assert number.sub("", setup) == number.sub("", first)
    assert f'start("{path.stem[:2]}", KEEP_ON_DRIVE)' in setup
    assert 'KEEP_ON_DRIVE = False  # @param {type:"boolean"}' in setup


def dead_links(path, prose: str) -> list[str]:
    """Relative link targets, in Markdown and HTML, that do not exist."""
    prose = re.sub(r"(?s)```.*?```|`[^`\n]*`", "", prose)
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)\s]+)[^)]*\)", prose)
    targets += re.findall(r"""(?:src|href)=["'](?!https?:|#|data:|mailto:)([^"']+)""", prose)
    targets += re.findall(r"(?m)^\[[^\]]+\]:\s+(?!https?:|#)(\S+)", prose)
    return [target for target in targets if not (path.parent / target.split("#")[0]).exists()]


@NUMBERED
def test_relative_links_are_alive(path):
    prose = "\n".join(source(cell) for cell in cells(path, "markdown"))
    assert dead_links(path, prose) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_relative_links_of_the_documents_are_alive(path):
    assert dead_links(path, path.read_text(encoding="utf-8")) == []


def test_a_dead_link_is_seen(tmp_path):
    prose = "[a](gone.md#x) [b](https://x.org) `[c](code.md)` <img src='no.png'>\n[d]: lost.md\n"
    assert dead_links(tmp_path / "x.md", prose) == ["gone.md#x", "no.png", "lost.md"]


@NUMBERED
def test_the_code_is_not_newer_than_its_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    made_of = notebook["metadata"].get("course", {}).get("outputs_of")
    assert made_of == code_hash(notebook), "run it again: tools/run_course.py NN --write"


@NUMBERED
def test_outputs_hold_no_warning_and_no_place_on_a_machine(path):
    for cell, text in texts(path):
        for pattern in (NOISE, MACHINE):
            found = pattern.search(str(text))
            assert not found, f"{cell}: {found.group()}"


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("x.py:3: UserWarning: beware", NOISE),
        ("  WARNING root", NOISE),
        ("Traceback (most recent call last)", NOISE),
        ("saved to " + "/".join(("", "home", "an", "course", "x")), MACHINE),
        ("File '/tmp/ipykernel_3/1.py'", MACHINE),
        ("<Styler at 0x7f2a00305b50>", MACHINE),
        (r"C:\Users\an", MACHINE),
    ],
)
def test_noise_is_seen(text, pattern):
    assert pattern.search(text)
    assert not pattern.search("A warning: https://x.org/home/y, data/tmp/z and 3/4 of 10")


def profile_rows(path) -> list[list[str]]:
    """The cells of the table profile -> model, minutes, memory, its head left out."""
    lines = [line for line in source(cells(path, "markdown")[0]).splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@NUMBERED
def test_the_table_of_profiles_has_figures_or_says_not_measured(path):
    rows = profile_rows(path)
    assert [re.search(r"\w+", row[0]).group() for row in rows] == ["lab", "t4", "a100"]
    for row in rows:
        for figure in row[2:]:
            assert FIGURES.fullmatch(figure), f"{row[0]}: {figure}"


def test_the_tables_say_what_the_committed_json_says():
    run = subprocess.run(
        [sys.executable, "tools/figures.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_placeholders_are_no_figures():
    for figure in ("not measured", "1.8 (2 cores)", "0.9 GB", "12", "about 3 min"):
        assert FIGURES.fullmatch(figure)
    for figure in ("LAB_MINUTES", "@MIN@ (2 cores)", "", "?", "soon", "… GB"):
        assert not FIGURES.fullmatch(figure)


@NUMBERED
def test_every_exercise_has_its_judge_and_a_folded_solution(path):
    code = "\n".join(source(cell) for cell in cells(path, "code"))
    prose = "\n".join(source(cell) for cell in cells(path, "markdown"))
    asked = set(re.findall(r"""(?:check|attempt)\(["'](\d\d\.\d+)["']""", code))
    assert len(asked) >= 3
    for name in asked:
        assert name[:2] == path.stem[:2]
        assert callable(judge_of(name))
    assert prose.count("<details>") >= len(asked)
    assert prose.count("<details>") == prose.count("</details>")


@NUMBERED
def test_cells_have_names_of_their_own_and_no_leftovers(path):
    everything = cells(path, "code") + cells(path, "markdown")
    names = [cell["id"] for cell in everything]
    assert len(set(names)) == len(names)
    for cell in everything:
        assert source(cell).strip(), cell["id"]
        assert not {"execution", "widgets", "collapsed"} & set(cell["metadata"]), cell["id"]
    too_long = [
        line for cell in cells(path, "code") for line in source(cell).split("\n") if len(line) > 110
    ]
    assert too_long == []


def test_cleaning_notes_whose_outputs_they_are(tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell('REPO, TAG = "a", "b"\nx')]
    )
    both = {
        "text/plain": "<Styler at 0x7f2a00305b50>",
        "text/html": '<style>#T_0a1b2 td {}</style><table id="T_0a1b2"><td id="T_0a1b2_row0">',
    }
    shown = nbformat.v4.new_output("display_data", both)
    notebook.cells[0].outputs = [shown]
    notebook.metadata["widgets"] = {}
    notebooks.clean(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info", "course"}
    cleaned = notebook.cells[0].outputs[0]["data"]
    assert cleaned["text/plain"] == "<Styler>"
    assert cleaned["text/html"] == '<style>#T_1 td {}</style><table id="T_1"><td id="T_1_row0">'
    nbformat.write(notebook, tmp_path / "x.ipynb")
    saved = json.loads((tmp_path / "x.ipynb").read_text(encoding="utf-8"))
    assert saved["metadata"]["course"]["outputs_of"] == code_hash(saved)
    saved["cells"][0]["source"] = ['REPO, TAG = "c", "d"\n', "x"]  # what `make badges` rewrites
    assert saved["metadata"]["course"]["outputs_of"] == code_hash(saved)
    saved["cells"][0]["source"] = ['REPO, TAG = "c", "d"\n', "y"]
    assert saved["metadata"]["course"]["outputs_of"] != code_hash(saved)


def test_a_failing_notebook_is_reported_not_raised(tmp_path, monkeypatch):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("x = 1"), nbformat.v4.new_code_cell("raise KeyError(x)")]
    )
    nbformat.write(notebook, tmp_path / "99_broken.ipynb")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    seen = []
    run = notebooks.execute("99", on_cell=lambda done, total: seen.append((done, total)))
    assert run.error == "KeyError: 1"
    assert seen[0] == (1, 2)
    with pytest.raises(FileNotFoundError, match="99_broken"):
        notebooks.path_of("98")

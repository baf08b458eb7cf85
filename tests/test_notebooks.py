"""The committed notebooks: from one clean run, quiet, small, complete."""

import json
import re

import pytest

from utils import notebooks
from utils.notebooks import FOLDER

PATHS = sorted(FOLDER.glob("*.ipynb"))
NUMBERED = pytest.mark.parametrize("path", PATHS, ids=[p.stem for p in PATHS])
SECTIONS = ("Read your curves", "Break it", "xercises", "🐢", "🐕", "🦁", "Quiz", "Hand over")
SECTIONS += ("What we simplified", "References", "not measured")


def cells(path, kind):
    everything = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in everything if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


@NUMBERED
def test_outputs_are_from_one_clean_run(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", source(cell)[:80]


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
    number = re.compile(r'start\("\d\d"\)')
    assert number.sub("", setup) == number.sub("", first)
    assert f'start("{path.stem[:2]}")' in setup


@NUMBERED
def test_relative_links_are_alive(path):
    prose = "\n".join(source(cell) for cell in cells(path, "markdown"))
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", prose):
        assert (FOLDER / target.split("#")[0]).exists(), target


def test_a_failing_notebook_is_reported_not_raised(tmp_path, monkeypatch):
    import nbformat

    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("x = 1"), nbformat.v4.new_code_cell("raise KeyError(x)")]
    )
    nbformat.write(notebook, tmp_path / "99_broken.ipynb")
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    seen = []
    run = notebooks.execute("99", on_cell=lambda done, total: seen.append((done, total)))
    assert run.error == "KeyError: 1"
    assert seen[0] == (1, 2)
    with pytest.raises(FileNotFoundError, match="99_broken"):
        notebooks.path_of("98")

"""The course's own errors in a real shell and a real kernel."""

import ast
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from utils.course.errors import TRACEBACK_VARIABLE, CourseError
from utils.course.paths import ROOT


class SpoonError(CourseError, ValueError):
    """An error of the course that is also a ValueError."""


@pytest.fixture
def shown(monkeypatch):
    """The output of a shell for a cell that raises an error."""
    shell = InteractiveShell()
    lines = []
    monkeypatch.setattr(shell, "_showtraceback", lambda kind, value, stb: lines.extend(stb))

    def run(error: Exception) -> list[str]:
        def deep(frames: int) -> None:
            if frames:
                deep(frames - 1)
            try:
                {}["cause"]
            except KeyError:
                raise error  # noqa: B904 - the context is what must not be shown

        lines.clear()
        shell.user_ns["deep"] = deep
        assert not shell.run_cell("deep(40)").success
        return "\n".join(lines).splitlines()

    return run


def test_an_error_of_the_course_is_its_sentence(shown):
    assert shown(SpoonError("There is no spoon: bring one.")) == [
        "SpoonError: There is no spoon: bring one."
    ]


def test_the_frames_come_back_on_request(shown, monkeypatch):
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    lines = shown(SpoonError("There is no spoon: bring one."))
    assert any("KeyError: 'cause'" in line for line in lines)
    assert lines[-1].endswith("SpoonError: There is no spoon: bring one.")
    assert sum("in deep" in line for line in lines) >= 2


def test_an_error_of_someone_else_keeps_its_frames(shown):
    lines = shown(ValueError("not ours"))
    assert len(lines) > 20 and "KeyError" in "\n".join(lines)


def raised_with_a_sentence(source: str) -> list[str]:
    """The classes of the errors that a source raises with a sentence for the user, which is `tr`.

    >>> raised_with_a_sentence("raise DataError(tr('No rows: add some.'))\\nraise KeyError(name)")
    ['DataError']
    """
    calls = [n.exc for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Raise)]
    return [
        ast.unparse(call.func)
        for call in calls
        if isinstance(call, ast.Call) and call.args and ast.unparse(call.args[0])[:3] == "tr("
    ]


def family(sources: list[str]) -> set[str]:
    """CourseError and the classes that are derived from it."""
    trees = [node for source in sources for node in ast.walk(ast.parse(source))]
    bases = {n.name: set(map(ast.unparse, n.bases)) for n in trees if isinstance(n, ast.ClassDef)}
    found = {"CourseError"}
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    return found


def test_an_error_with_a_sentence_for_the_user_is_one_of_the_courses():
    paths = sorted((ROOT / "utils").rglob("*.py"))
    sources = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in paths}
    raised = {(p, name) for p, source in sources.items() for name in raised_with_a_sentence(source)}
    assert len(raised) > 20 and (Path("utils/ppo/trainer.py"), "SettingError") in raised
    known = family(list(sources.values()))
    known.add("ImportError")  # of utils/exercises/equality.py, which catches it and prints it
    assert {(path, name) for path, name in raised if name.split(".")[-1] not in known} == set()


def test_a_notebook_shows_the_sentence_and_stops():
    cells = [
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from utils.course.errors import CourseError",
        "raise CourseError('There is no spoon: bring one.') from KeyError('cause')",
        "1 / 0",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    with pytest.raises(CellExecutionError, match="There is no spoon"):
        NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    (output,) = notebook.cells[1].outputs
    assert output.traceback == ["CourseError: There is no spoon: bring one."]
    assert (output.ename, output.evalue) == ("CourseError", "There is no spoon: bring one.")
    assert notebook.cells[2].outputs == []

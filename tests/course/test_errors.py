"""The course's own errors in a real shell and a real kernel."""

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

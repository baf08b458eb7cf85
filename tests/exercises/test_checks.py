import importlib

import pytest

from utils.course.notebooks import LESSONS
from utils.course.paths import ROOT
from utils.exercises import checks
from utils.exercises.checks import ExerciseError, check

# tests/exercises/notebook_NN.py holds RIGHT (name -> solution) and WRONG (name, attempt, message)
MODULES = [
    importlib.import_module(f"tests.exercises.{path.stem}")
    for path in sorted((ROOT / "tests" / "exercises").glob("notebook_*.py"))
]
RIGHT = {name: solution for module in MODULES for name, solution in module.RIGHT.items()}
WRONG = [case for module in MODULES for case in module.WRONG]


@pytest.mark.parametrize("name", RIGHT)
def test_right_solutions_pass(name, capsys):
    assert check(name, RIGHT[name])
    assert capsys.readouterr().out == f"{name}: right.\n"


@pytest.mark.parametrize(("name", "attempt", "message"), WRONG)
def test_typical_mistakes_are_named(name, attempt, message, capsys):
    assert not check(name, attempt)
    assert message in capsys.readouterr().out


@pytest.mark.parametrize("name", RIGHT)
def test_a_missing_attempt_does_not_stop_the_run(name, capsys):
    assert not check(name, ...)
    assert "no attempt yet" in capsys.readouterr().out


def test_every_exercise_has_two_named_mistakes():
    for name in RIGHT:
        assert sum(wrong == name for wrong, _, _ in WRONG) >= 2


def test_every_notebook_has_judged_exercises():
    judged = {path.stem for path in (ROOT / "utils" / "exercises").glob("notebook_*.py")}
    tested = {path.stem for path in (ROOT / "tests" / "exercises").glob("notebook_*.py")}
    notebooks = {f"notebook_{number}" for number in LESSONS}
    assert notebooks <= judged == tested


def test_an_unknown_exercise():
    with pytest.raises(ExerciseError, match=r"01\.1"):
        check("01.9", 1)
    with pytest.raises(ExerciseError, match="none"):
        check("99.9", 1)


def test_a_stub_is_no_attempt_and_the_solution_takes_its_place(capsys):
    def stub(x):
        """What x is."""
        ...  # your code

    def right(x):
        return x + 1

    def wrong(x):
        return x

    def course(x):
        return 1 + x

    @checks.exercise("99.1", solution=course)
    def judge(attempt):
        return None if attempt(1) == 2 else "add 1 to x."

    assert checks.attempt("99.1", stub) is course
    assert "no attempt yet" in capsys.readouterr().out
    assert checks.attempt("99.1", right) is right
    assert checks.attempt("99.1", wrong) is course
    assert "add 1 to x." in capsys.readouterr().out
    assert checks.attempt("99.1", lambda x: None) is course

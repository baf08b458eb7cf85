import importlib
import math

import numpy as np
import pytest
import torch.nn.functional as F

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


def _closed_form(rate, worth, beta):
    return 1 / (1 + math.exp(-(math.log(rate / (1 - rate)) + worth / beta)))


def _least_kl(rates, share):
    low, high = -30.0, 30.0
    while high - low > 1e-9:
        tilt = (low + high) / 2
        tilted = rates * np.exp(tilt) / (rates * np.exp(tilt) + 1 - rates)
        low, high = (tilt, high) if tilted.mean() < share else (low, tilt)
    new = np.log(tilted / rates) * tilted + np.log((1 - tilted) / (1 - rates)) * (1 - tilted)
    return new.mean()


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("01.1", lambda z, y, w: F.cross_entropy(z.double(), y, w.double())),
        ("02.9", lambda r, b: r.max() + b * np.log(np.exp((r - r.max()) / b).mean())),
        ("02.10", _least_kl),
        ("04.1", _closed_form),
    ],
)
def test_right_solutions_in_another_form_pass_too(name, attempt, capsys):
    assert check(name, attempt), capsys.readouterr().out


def _tokens_overwritten(logits, tokens, mask):
    labels = tokens[:, 1:]
    labels[~mask[:, 1:]] = -100
    return labels


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("00.1", _tokens_overwritten),
        ("02.3", lambda kl, *_: kl.mul_(-1)),
        ("02.4", lambda rewards, *_: rewards.zero_()),
    ],
)
def test_an_attempt_that_overwrites_its_input_is_named(name, attempt, capsys):
    assert not check(name, attempt)
    assert "your function changes a tensor that it was given" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["00.9", "01.2", "02.9", "05.1", "08.5"])
def test_a_forgotten_return_is_named(name, capsys):
    assert not check(name, lambda *given: print(given))
    assert "your function returns nothing" in capsys.readouterr().out


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
    with pytest.raises(ExerciseError, match=r"called '1\.1': this notebook has none"):
        check("1.1", 1)
    with pytest.raises(ExerciseError, match=r"00\.9, 00\.10"):  # in order
        check("00.99", 1)
    with pytest.raises(ExerciseError, match=r"No later cell needs exercise 00\.9: use `check`"):
        checks.attempt("00.9", len)


def test_a_stub_is_no_attempt_and_the_solution_takes_its_place(capsys, monkeypatch):
    monkeypatch.setattr(checks, "_EXERCISES", dict(checks._EXERCISES))
    monkeypatch.setattr(checks, "_SOLUTIONS", dict(checks._SOLUTIONS))

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

"""Exercises: `check("01.1", answer)` prints that the answer is right, or what the mistake is.

`attempt("00.1", function)` is for a function that later cells need: it returns the student's
function if it is right, and the course's solution otherwise, so that every notebook runs to its
end. The judges are in `utils/exercises/`, one module per notebook.
"""

import dis
import functools
import importlib
import importlib.util
from collections.abc import Callable

from utils.course.errors import CourseError
from utils.course.language import tr

# None when the attempt is right, else a sentence on what is wrong; `check` translates a sentence
# without values, and a judge translates one with values itself
Verdict = str | None
_EXERCISES: dict[str, Callable[..., Verdict]] = {}
_SOLUTIONS: dict[str, Callable] = {}


class ExerciseError(CourseError, LookupError):
    """An exercise that the notebook does not have."""


class InputChanged(Exception):
    """An attempt wrote into a tensor that it was given, which later cells still need."""


def exercise(name: str, solution: Callable | None = None) -> Callable:
    """Register the judge of one exercise, and its solution where later cells need one."""

    def register(judge: Callable[..., Verdict]) -> Callable[..., Verdict]:
        _EXERCISES[name] = judge
        if solution:
            _SOLUTIONS[name] = solution
        return judge

    return register


def names_of(lesson: str) -> list[str]:
    """The exercises of one notebook, in order; its module is imported at the first use.

    >>> names_of("04")
    ['04.1', '04.2', '04.3']
    """
    module = f"utils.exercises.notebook_{lesson}"
    if lesson.isdigit() and importlib.util.find_spec(module):
        importlib.import_module(module)
    found = [name for name in _EXERCISES if name[:2] == lesson]
    return sorted(found, key=lambda name: int(name[3:]))


def judge_of(name: str) -> Callable[..., Verdict]:
    """The judge of one exercise."""
    known = names_of(name[:2])
    if name not in known:
        raise ExerciseError(
            tr(
                "No exercise is called {name!r}: this notebook has {known}.",
                name=name,
                known=", ".join(known) or tr("none"),
            )
        )
    return _EXERCISES[name]


def is_stub(attempt: object) -> bool:
    """Whether nothing has been written: `None`, `...`, or a function without a body."""
    if not hasattr(attempt, "__code__"):
        return attempt is None or attempt is ...
    steps = list(dis.get_instructions(attempt))
    empty = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}
    loaded = {step.argval for step in steps if step.opname in ("LOAD_CONST", "RETURN_CONST")}
    return {step.opname for step in steps} <= empty and loaded <= {None}


def attempt(name: str, function: Callable) -> Callable:
    """The student's function if it is right, else the course's solution."""
    judge_of(name)
    if name not in _SOLUTIONS:
        raise ExerciseError(tr("No later cell needs exercise {name}: use `check`.", name=name))
    if check(name, function):
        return function
    print(tr("The cells below use the course's solution."))
    return _SOLUTIONS[name]


def check(name: str, attempt: object) -> bool:
    """Judge an attempt and print one line; a missing attempt does not stop the notebook."""
    judge = judge_of(name)
    if is_stub(attempt):
        print(f"{name}: {tr('no attempt yet.')}")
        return False
    returned: list = []
    try:
        verdict = judge(_watched(attempt, returned) if callable(attempt) else attempt)
    except InputChanged:
        verdict = tr("your function changes a tensor that it was given: work on a copy of it.")
    except Exception as error:
        kind = type(error).__name__
        verdict = tr("your code stopped with {kind}: {error}", kind=kind, error=error)
        if returned and returned[-1] is None:
            verdict = tr("your function returns nothing: end it with `return`.")
    result = tr("right.") if verdict is None else tr("not yet: {reason}", reason=tr(verdict))
    print(f"{name}: {result}")
    return verdict is None


def _watched(attempt: Callable, returned: list) -> Callable:
    """The attempt, which keeps its results in `returned` and may not change its tensors."""

    @functools.wraps(attempt)
    def watched(*given: object, **named: object) -> object:
        versions = [getattr(each, "_version", None) for each in given]  # torch counts every write
        returned.append(attempt(*given, **named))
        if versions != [getattr(each, "_version", None) for each in given]:
            raise InputChanged
        return returned[-1]

    return watched

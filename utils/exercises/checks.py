"""Exercises: `check("01.1", attempt)` prints that the attempt is right, or what the mistake is.

The judges are in `utils/exercises/`, one module per notebook.
"""

import importlib
import importlib.util
from collections.abc import Callable

Verdict = str | None  # None when the attempt is right, else a sentence on what is wrong
_EXERCISES: dict[str, Callable[..., Verdict]] = {}


def exercise(name: str) -> Callable:
    """Register the judge of one exercise."""

    def register(judge: Callable[..., Verdict]) -> Callable[..., Verdict]:
        _EXERCISES[name] = judge
        return judge

    return register


def judge_of(name: str) -> Callable[..., Verdict]:
    """The judge of one exercise; its notebook's module is imported at the first use."""
    module = f"utils.exercises.notebook_{name[:2]}"
    if importlib.util.find_spec(module):
        importlib.import_module(module)
    if name not in _EXERCISES:
        known = ", ".join(n for n in sorted(_EXERCISES) if n[:2] == name[:2]) or "none"
        raise KeyError(f"No exercise is called {name!r}: this notebook has {known}.")
    return _EXERCISES[name]


def check(name: str, attempt: object) -> bool:
    """Judge an attempt and print one line; a missing attempt does not stop the notebook."""
    judge = judge_of(name)
    if attempt is None or attempt is ...:
        print(f"{name}: no attempt yet.")
        return False
    try:
        verdict = judge(attempt)
    except Exception as error:
        verdict = f"your code stopped with {type(error).__name__}: {error}"
    print(f"{name}: {'right.' if verdict is None else 'not yet: ' + verdict}")
    return verdict is None

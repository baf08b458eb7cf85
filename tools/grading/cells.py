"""The exercises of a notebook, found by their numbers, and what the course defines before them.

Nothing is executed here: notebooks are read as JSON, and their code as syntax trees.
"""

import ast
import builtins
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from utils.course.notebooks import path_of

JUDGES = ("attempt", "check")
NUMBER = re.compile(r"\d\d\.\d{1,2}")
CALL = re.compile(r"""\b(?:attempt|check)\s*\(\s*["'](\d\d\.\d{1,2})["']""")
MAGIC = re.compile(r"(?m)^[ \t]*[%!].*$")
LONGEST_CELL = 100_000  # characters
LARGEST_FILE = 50_000_000  # bytes
FAULTS = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)


class UnreadableError(Exception):
    """A file or a cell that cannot be read; the message is one sentence."""


@dataclass(frozen=True)
class Given:
    """What the course's notebook defines before an exercise, and the exercise's code uses."""

    statements: tuple[str, ...] = ()  # imports, functions, classes and constants, in order
    solutions: dict[str, str] = field(default_factory=dict)  # name -> the exercise it solves


def parse(source: str) -> ast.Module:
    """The syntax tree of a cell; lines of IPython's commands are left out if they must be."""
    if len(source) > LONGEST_CELL:
        raise UnreadableError(f"the cell has more than {LONGEST_CELL:,} characters.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the student's backslashes are not the teacher's concern
        try:
            return ast.parse(source)
        except FAULTS:
            pass
        try:
            return ast.parse(MAGIC.sub("", source))
        except SyntaxError as error:
            what = f"line {error.lineno} of the cell is not valid Python: {error.msg}."
            raise UnreadableError(what) from None
        except FAULTS as error:
            raise UnreadableError(f"the cell is not valid Python: {error}") from None


def calls(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """The exercises that a piece of code hands in: the number and the expression of the attempt.

    >>> [(name, ast.unparse(given)) for name, given in calls(ast.parse('check("04.1", f);'))]
    [('04.1', 'f')]
    """
    for part in ast.walk(node):
        if not isinstance(part, ast.Call):
            continue
        called = getattr(part.func, "id", getattr(part.func, "attr", ""))
        given = [*part.args[1:2], *(word.value for word in part.keywords)]
        first = part.args[0].value if part.args and isinstance(part.args[0], ast.Constant) else ""
        if called in JUDGES and given and isinstance(first, str) and NUMBER.fullmatch(first):
            yield first, given[0]


def until(tree: ast.Module, name: str) -> tuple[list[ast.stmt], ast.expr]:
    """The statements before an exercise is handed in for the last time, and the attempt itself."""
    found = [
        (index, given)
        for index, statement in enumerate(tree.body)
        for number, given in calls(statement)
        if number == name
    ]
    last, given = found[-1]
    return [part for part in tree.body[:last] if not list(calls(part))], given


def code_of(path: Path) -> list[str]:
    """The code cells of a notebook, in order."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UnreadableError(f"the file is larger than {LARGEST_FILE // 10**6} MB.")
        notebook = json.loads(path.read_bytes().decode("utf-8-sig"))
        cells = [cell for cell in notebook["cells"] if cell.get("cell_type") == "code"]
        sources = ["".join(cell.get("source") or "") for cell in cells]
    except OSError as error:
        raise UnreadableError(f"the file cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UnreadableError("the file is not a notebook: it has no readable cells.") from None
    return sources


def exercises(sources: list[str]) -> dict[str, list[str]]:
    """Exercise -> the cells that hand it in; a cell that is not valid Python counts too."""
    found: dict[str, list[str]] = {}
    for source in sources:
        if not CALL.search(source):
            continue
        try:
            names = [name for name, _ in calls(parse(source))]
        except UnreadableError:
            names = CALL.findall(source)
        for name in dict.fromkeys(names):
            found.setdefault(name, []).append(source)
    return found


# --- The course's own notebook -------------------------------------------------------------------


@cache
def course(lesson: str) -> tuple[ast.Module, ...]:
    """The code cells of a notebook of the course."""
    return tuple(parse(source) for source in code_of(path_of(lesson)))


@cache
def shipped(name: str) -> tuple[int, str]:
    """The cell of an exercise in the course's notebook: its position, and what it looks like."""
    for index, cell in enumerate(course(name[:2])):
        if any(number == name for number, _ in calls(cell)):
            return index, ast.dump(cell)
    return len(course(name[:2])), ""


def is_changed(source: str, name: str) -> bool:
    """Whether a cell differs from the course's cell in more than comments and spaces."""
    try:
        return ast.dump(parse(source)) != shipped(name)[1]
    except (UnreadableError, RecursionError):
        return True


def _defined(statement: ast.stmt) -> Iterator[tuple[str, str]]:
    """The names that a statement defines without running the notebook, each with its source."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name, ast.unparse(statement)
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        for alias in statement.names:
            one = ast.copy_location(
                ast.Import([alias])
                if isinstance(statement, ast.Import)
                else ast.ImportFrom(statement.module, [alias], statement.level),
                statement,
            )
            yield alias.asname or alias.name.split(".")[0], ast.unparse(one)
    elif isinstance(statement, ast.Assign) and not list(calls(statement)):
        try:
            ast.literal_eval(statement.value)
        except FAULTS:
            return
        for target in statement.targets:
            if isinstance(target, ast.Name):
                yield target.id, ast.unparse(statement)


def used(code: str | ast.AST) -> set[str]:
    """The names that a piece of code reads, without Python's own."""
    tree = ast.parse(code) if isinstance(code, str) else code
    names = {part.id for part in ast.walk(tree) if isinstance(part, ast.Name)}
    return names - set(dir(builtins))


def given(name: str, source: str) -> Given:
    """What the course's notebook defines before an exercise, and this cell uses."""
    known: dict[str, tuple[int, str]] = {}
    solved: dict[str, str] = {}
    order = 0
    for cell in course(name[:2])[: shipped(name)[0]]:
        for statement in cell.body:
            order += 1
            for defined, text in _defined(statement):
                known[defined] = order, text
                solved.pop(defined, None)
            for number, function in calls(statement):
                if isinstance(function, ast.Name) and isinstance(statement, ast.Assign):
                    solved[function.id] = number
    needed: dict[int, str] = {}
    solutions: dict[str, str] = {}
    waiting, seen = used(parse(source)), set()
    while waiting:
        wanted = waiting.pop()
        seen.add(wanted)
        if wanted in solved:
            solutions[wanted] = solved[wanted]
        elif wanted in known:
            place, text = known[wanted]
            needed[place] = "\n".join(filter(None, [needed.get(place), text]))
            waiting |= used(text) - seen
    return Given(tuple(needed[place] for place in sorted(needed)), solutions)

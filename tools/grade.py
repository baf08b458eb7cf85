"""Grade the exercises of a folder of students' notebooks: a table and a summary.

    python tools/grade.py FOLDER                    # writes FOLDER/grades.csv
    python tools/grade.py FOLDER --seconds 5 --output week3.csv

Every *.ipynb below FOLDER is one student's notebook. An exercise is found by its number, in a cell
that calls `attempt("02.3", …)` or `check("02.3", …)`; nothing else of the notebook is executed. The
student's code runs in a process of its own, which knows no judge: the judge calls the student's
function from outside, so that a notebook cannot give itself a result. docs/teaching.md says what
the process is kept from, and what not.
"""

import argparse
import csv
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if TYPE_CHECKING:  # torch is loaded when there is something to grade
    from tools.grading.judging import Limits

COLUMNS = ("student", "exercise", "result", "message")
LONGEST = 300  # characters of a message in the table


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    student: str  # the notebook's path in the folder, without .ipynb
    exercise: str  # empty where the file has none
    result: str
    message: str


def notebooks(folder: Path) -> list[Path]:
    """The students' notebooks below a folder; links and Jupyter's own copies are left out."""
    found = sorted(folder.rglob("*.ipynb"))
    return [
        path
        for path in found
        if path.is_file()
        and not path.is_symlink()
        and not path.name.startswith("._")  # what a Mac adds to an archive
        and not {".ipynb_checkpoints", "__MACOSX"} & set(path.parts)
    ]


def clean(text: str) -> str:
    """A text for one field: one line, not long, and no formula to a spreadsheet.

    >>> clean("=HYPERLINK(1)"), clean("two\\nlines")
    ("'=HYPERLINK(1)", 'two lines')
    """
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\s]+", " ", text).strip()
    line = line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
    return "'" + line if line[:1] in ("=", "+", "-", "@") else line


def grade(path: Path, student: str, limits: "Limits") -> tuple[list[Row], list[str]]:
    """The rows of one notebook, and the layers of protection that its code ran under."""
    from tools.grading import cells
    from tools.grading.judging import ERROR, Grader
    from utils.exercises.checks import names_of

    try:
        found = cells.exercises(cells.code_of(path))
    except cells.UnreadableError as error:
        return [Row(student, "", ERROR, clean(str(error)))], []
    lessons = sorted({name[:2] for name in found})
    if not lessons and re.match(r"\d\d_", path.name):
        lessons = [path.name[:2]]
    lessons = [lesson for lesson in lessons if names_of(lesson)]
    if not lessons:
        return [Row(student, "", ERROR, "the notebook has no exercise of the course.")], []
    rows, layers = [], []
    for lesson in lessons:
        with Grader(lesson, limits) as grader:
            for name in names_of(lesson):
                outcome = grader.outcome(name, found.get(name, []))
                rows.append(Row(student, name, outcome.result, clean(outcome.message)))
        layers = grader.layers or layers
    return rows, layers


def write(path: Path, rows: list[Row]) -> None:
    """Write the table for a spreadsheet: UTF-8 with a mark, one row per exercise."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows((clean(row.student), row.exercise, row.result, row.message) for row in rows)
    try:
        os.replace(part, path)
    except PermissionError:
        raise OSError(f"{path} is open in another program: the table is in {part}.") from None


def counts(rows: list[Row]) -> str:
    """The results of some rows in words: `3 passed, 1 failed`."""
    found = Counter(row.result for row in rows)
    return ", ".join(f"{number} {result}" for result, number in sorted(found.items()))


def everyone(folder: Path, limits: "Limits", jobs: int) -> Iterator[tuple[list[Row], list[str]]]:
    """The rows of every notebook, in order, as they become known."""
    paths = notebooks(folder)
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda path, name: grade(path, name, limits), paths, names)


def main() -> None:
    """Grade a folder."""
    parser = argparse.ArgumentParser(
        description="Run the judges of the exercises over a folder of students' notebooks."
    )
    parser.add_argument("folder", type=Path, nargs="?", help="the students' notebooks")
    parser.add_argument("--output", type=Path, help="the table (default: FOLDER/grades.csv)")
    parser.add_argument("--seconds", type=float, default=10.0, help="time limit per exercise")
    parser.add_argument("--memory", type=float, default=4.0, help="memory limit in GiB")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    if options.folder is None or not options.folder.is_dir():
        named = "no folder is named" if options.folder is None else f"no folder {options.folder}"
        sys.exit(f"There is {named}: python tools/run.py grade FOLDER, or make grade FOLDER=…")
    if not notebooks(options.folder):
        sys.exit(f"{options.folder} has no notebook: put the students' *.ipynb files into it.")
    output = options.output or options.folder / "grades.csv"

    import torch

    from tools.grading.judging import Limits
    from utils.course.errors import CourseError

    torch.set_num_threads(1)
    limits = Limits(options.seconds, int(options.memory * 2**30))
    rows, layers = [], set()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            for found, held in everyone(options.folder, limits, max(1, options.jobs)):
                print(f"{clean(found[0].student)}: {counts(found)}", flush=True)
                rows += found
                layers |= set(held)
        finally:  # what is judged is kept, whatever stops the others
            if rows:
                write(output, rows)
    except (CourseError, OSError) as error:
        sys.exit(f"{error}")
    students = len({row.student for row in rows})
    print(f"\n{students} notebooks, {len(rows)} results: {counts(rows)}")
    if layers:
        print(f"Protection while the code ran: {', '.join(sorted(layers))}.")
    print(f"The table: {output}")


if __name__ == "__main__":
    main()

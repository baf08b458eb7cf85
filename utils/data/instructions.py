"""Questions with their right answers, from which preference pairs are built."""

import json
import os
from pathlib import Path

from datasets import Dataset

from utils.course.language import tr
from utils.data.pairs import MINED, PREFERENCES, PairReport, load_preferences, tidy
from utils.data.reading import DataError, read_text, say_report

COLUMNS = ("id", "question", "answer")


def load_instructions(offline: bool = True, *, quiet: bool = False) -> Dataset:
    """The train split's questions and right answers, each question once: id, question, answer.

    Dialogues are left out, because their last question cannot be understood alone.
    COURSE_PREFERENCE_DATA names the source as for `load_preferences`; `06` gives the questions that
    notebook 06 mines from. In the user's own folder
    train.jsonl may have question and answer only, because the rejected answers are found later.
    """
    source = os.environ.get(PREFERENCES.variable, "").strip()
    if source not in {"", "sample", "hub", MINED}:
        path = Path(source).expanduser() / "train.jsonl"
        if path.exists() and b'"rejected"' not in path.read_bytes().partition(b"\n")[0]:
            return _without_rejected(path, quiet)
    train = one_per_question(load_preferences(offline, quiet=quiet, mined=False)["train"])
    train = train.select([row for row, turns in enumerate(train["history"]) if not turns])
    return train.rename_column("chosen", "answer").select_columns(list(COLUMNS))


def one_per_question(pairs: Dataset) -> Dataset:
    """The first pair of each question: several pairs can have one question and one good answer."""
    first: dict[tuple[str, str], int] = {}
    for number, row in enumerate(pairs.select_columns(["question", "chosen"])):
        first.setdefault((row["question"], row["chosen"]), number)
    return pairs.select(list(first.values()))


def _without_rejected(path: Path, quiet: bool) -> Dataset:
    """The rows of a JSONL file of questions and answers; an answer may also be called chosen."""
    report, kept = PairReport(), []
    for number, line in enumerate(read_text(path, report).split("\n"), 1):
        if not line.strip():
            continue
        where = tr("{file}, line {line}", file=path.name, line=number)
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                tr(
                    "{where}, character {column}: broken JSON ({error}): write one object per "
                    "line, with {columns}.",
                    where=where,
                    column=error.colno,
                    error=error.msg,
                    columns=tr("question and answer"),
                )
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                tr(
                    "{where}: the value is {kind} instead of an object: write {{...}} with "
                    "{columns}.",
                    where=where,
                    kind=type(row).__name__,
                    columns=tr("question and answer"),
                )
            )
        texts = [_text(row, names, where) for names in (("question",), ("answer", "chosen"))]
        if not all(texts):
            report.empty.append(where)
            continue
        kept.append(dict(zip(COLUMNS, (str(row.get("id", number)), *texts), strict=True)))
    if not kept:
        raise DataError(
            tr("{file} has no row with a question and an answer: add some.", file=path.name)
        )
    if not quiet:
        say_report(report)
    return Dataset.from_list(kept)


def _text(row: dict, names: tuple[str, ...], where: str) -> str:
    """The tidied text of the first of these columns that the row has."""
    value = next((row[name] for name in names if name in row), None)
    if not isinstance(value, str):
        raise DataError(
            tr(
                "{where} has no text called {names} (found: {found}): name the columns question "
                "and answer.",
                where=where,
                names=tr(" or ").join(names),
                found=", ".join(row) or tr("nothing"),
            )
        )
    return tidy(value)

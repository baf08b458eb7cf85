"""Questions with their right answers, from which preference pairs are built."""

import os
from pathlib import Path

from datasets import Dataset

from utils.course.language import tr
from utils.data.pairs import MINED, PREFERENCES, PairReport, load_preferences, objects, tidy
from utils.data.reading import DataError, say_report

COLUMNS = ("id", "question", "answer")


def load_instructions(offline: bool = True, *, quiet: bool = False) -> Dataset:
    """The train split's questions with right answers, each answer once: id, question, answer.

    Dialogues are left out, because their last question cannot be understood alone.
    COURSE_PREFERENCE_DATA names the source as for `load_preferences`; `06` gives the questions that
    notebook 06 mines from. In the user's own folder train.jsonl may have question and answer only,
    because the rejected answers are found later.
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
    columns = pairs.select_columns(["question", "chosen"])[:]
    for number, row in enumerate(zip(columns["question"], columns["chosen"], strict=True)):
        first.setdefault(row, number)
    return pairs.select(list(first.values()))


def _without_rejected(path: Path, quiet: bool) -> Dataset:
    """The rows of a JSONL file of questions and answers; an answer may also be called chosen."""
    report, kept, known, dialogues, repeated = PairReport(), [], set(), 0, 0
    for number, where, row in objects(path, tr("question and answer"), report):
        texts = [_text(row, names, where) for names in (("question",), ("answer", "chosen"))]
        if not all(texts):
            report.empty.append(where)
            continue
        if row.get("history"):
            dialogues += 1
            continue
        if tuple(texts) in known:
            repeated += 1
            continue
        known.add(tuple(texts))
        name = f"train-{number}" if row.get("id") is None else str(row["id"])
        kept.append(dict(zip(COLUMNS, (name, *texts), strict=True)))
    if not kept:
        raise DataError(
            tr("{file} has no row with a question and an answer: add some.", file=path.name)
        )
    if dialogues:
        report.notes.append(tr("Rows left out, because they have earlier turns: {n}.", n=dialogues))
    if repeated:
        report.notes.append(
            tr("Rows left out, because they repeat an earlier row: {n}.", n=repeated)
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

"""Student feedback in one schema: the shipped sample, the corpus on the Hub or the user's files."""

import csv
import io
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from utils.course.hub import load_hub_dataset
from utils.course.language import tr
from utils.course.paths import ROOT
from utils.data.reading import DataError, Report, held_apart, need, read_text, say_report
from utils.data.text import duplicate_key, normalise

FEEDBACK_VARIABLE = "COURSE_FEEDBACK_DATA"
SENTIMENTS = ["negative", "neutral", "positive"]
NEGATIVE = SENTIMENTS.index("negative")
TOPICS = ["lecturer", "training_program", "facility", "others"]
SPLITS = ["train", "validation", "test"]
LEAST = 8  # smallest number of train rows: notebook 02 continues the first words of eight rows
FEEDBACK_HUB_ID = "uitnlp/vietnamese_students_feedback"
FEEDBACK_HUB_REVISION = "refs/convert/parquet"  # `datasets` cannot run the script on main
FEEDBACK_SAMPLE = ROOT / "data" / "student_feedback"
FEATURES = Features(
    {
        "sentence": Value("string"),
        "sentiment": ClassLabel(names=SENTIMENTS),
        "topic": ClassLabel(names=TOPICS),
    }
)


class Feedback(NamedTuple):
    """One line of student feedback."""

    sentence: str
    sentiment: int
    topic: int


def _label(value: str | None, names: list[str], where: str, column: str) -> int:
    cell = (value or "").strip()
    if cell in {str(code) for code in range(len(names))}:
        return int(cell)
    coding = ", ".join(f"{code} {name}" for code, name in enumerate(names))
    raise DataError(
        tr(
            "{where}, column {column}: {cell!r} is not a label: use {coding}.",
            where=where,
            column=column,
            cell=cell,
            coding=coding,
        )
    )


def read_feedback(path: Path, report: Report) -> list[Feedback]:
    """The rows of one CSV file; the first bad cell raises an error that names the cell."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(read_text(path, report), newline=""), strict=True)
    try:
        return _rows(reader, path, report)
    except csv.Error as error:
        raise DataError(
            tr(
                "{file}, line {line}: the quotes do not match ({error}): put a sentence with a "
                "quote between double quotes, and write each quote inside it twice.",
                file=path.name,
                line=reader.line_num,
                error=error,
            )
        ) from None


def _rows(reader: csv.DictReader, path: Path, report: Report) -> list[Feedback]:
    header = [name.strip() for name in reader.fieldnames or []]
    for column in Feedback._fields:
        if column not in header:
            raise DataError(
                tr(
                    "{file}, line 1: column {column} is missing (found: {found}): use the header "
                    "sentence,sentiment,topic.",
                    file=path.name,
                    column=column,
                    found=", ".join(header) or tr("nothing"),
                )
            )
    reader.fieldnames = header
    rows = []
    for row in reader:
        where = tr("{file}, line {line}", file=path.name, line=reader.line_num)
        if None in row:
            raise DataError(
                tr(
                    "{where} has more cells than columns: put a sentence that contains a comma "
                    "between double quotes.",
                    where=where,
                )
            )
        original = row["sentence"] or ""
        sentence = normalise(original)
        if not sentence:
            raise DataError(
                tr(
                    "{where}, column sentence: the cell is empty: write a sentence or delete the "
                    "row.",
                    where=where,
                )
            )
        report.nfd_rows += not unicodedata.is_normalized("NFC", original)
        rows.append(
            Feedback(
                sentence,
                _label(row["sentiment"], SENTIMENTS, where, "sentiment"),
                _label(row["topic"], TOPICS, where, "topic"),
            )
        )
    if not rows:
        raise DataError(
            tr(
                "{file} has no rows under the header: add some or remove the file.",
                file=path.name,
            )
        )
    return rows


def _split_off_validation(rows: list[Feedback]) -> tuple[list[Feedback], list[Feedback]]:
    """Move every tenth sentence of each class to validation, so that the class shares stay.

    All rows of a sentence go with it, so that no sentence is in both.
    """
    keys = [_key(row.sentence) for row in rows]
    classes: dict[str, int] = {}  # of each sentence, where it stands first
    for key, row in zip(keys, rows, strict=True):
        classes.setdefault(key, row.sentiment)
    seen: Counter[int] = Counter()
    held_out = set()
    for key, sentiment in classes.items():
        seen[sentiment] += 1
        if seen[sentiment] % 10 == 0:
            held_out.add(key)
    return held_apart(rows, keys, held_out)


def _key(sentence: str) -> str:
    """What equal sentences share; a sentence of emoji only is its own key."""
    return duplicate_key(sentence) or sentence


def _as_dataset(rows: list[Feedback]) -> Dataset:
    columns = dict(zip(Feedback._fields, map(list, zip(*rows, strict=True)), strict=True))
    return Dataset.from_dict(columns, features=FEATURES)


def feedback_from_folder(folder: Path, report: Report) -> DatasetDict:
    """Read train.csv, test.csv and, if it exists, validation.csv from a folder."""
    if not folder.is_dir():
        raise DataError(
            tr(
                "{variable}={folder} is not a folder: name one that contains train.csv and "
                "test.csv.",
                variable=FEEDBACK_VARIABLE,
                folder=folder,
            )
        )
    rows: dict[str, list[Feedback]] = {}
    for split in SPLITS:
        path = folder / f"{split}.csv"
        if path.exists():
            rows[split] = read_feedback(path, report)
        elif split != "validation":
            raise DataError(
                tr(
                    "{file} is missing in {folder}: add this file.",
                    file=path.name,
                    folder=folder.name,
                )
            )
    if "validation" not in rows:
        rows["train"], rows["validation"] = _split_off_validation(rows["train"])
        if not rows["validation"]:
            raise DataError(
                tr(
                    "train.csv is too short to split a validation set off: add rows, or add "
                    "validation.csv."
                )
            )
        report.notes.append(
            tr(
                "No validation.csv: {count} rows were split off train.",
                count=len(rows["validation"]),
            )
        )
    need(rows["train"], LEAST, "rows", "train.csv")
    for code, name in enumerate(SENTIMENTS):
        of_class = [row for row in rows["train"] if row.sentiment == code]
        need(of_class, 1, tr("rows of class {code} {name}", code=code, name=name), "train.csv")
    return DatasetDict({split: _as_dataset(rows[split]) for split in SPLITS})


def feedback_from_hub(report: Report) -> DatasetDict:
    """The real corpus, UIT-VSFC, from the Hub; this course does not redistribute it."""
    loaded = load_hub_dataset(FEEDBACK_HUB_ID, revision=FEEDBACK_HUB_REVISION)

    def clean(row: dict) -> dict:
        return {**row, "sentence": normalise(row["sentence"])}

    report.notes.append(tr("Read from the Hub: {repository}.", repository=FEEDBACK_HUB_ID))
    return DatasetDict(
        {
            split: loaded[split].select_columns(list(Feedback._fields)).map(clean).cast(FEATURES)
            for split in SPLITS
        }
    )


def load_feedback(offline: bool = True, *, quiet: bool = False) -> DatasetDict:
    """Student feedback in train, validation and test.

    The environment variable COURSE_FEEDBACK_DATA names the source: `sample` (shipped), `hub` (the
    real corpus) or a folder with the user's own files. If it is not set, an offline profile uses
    the sample and every other profile uses the Hub.
    """
    source = os.environ.get(FEEDBACK_VARIABLE, "").strip() or ("sample" if offline else "hub")
    report = Report()
    if source == "hub":
        loaded = feedback_from_hub(report)
    else:
        folder = FEEDBACK_SAMPLE if source == "sample" else Path(source).expanduser()
        loaded = feedback_from_folder(folder, report)
    known = set(map(_key, loaded["train"]["sentence"]))
    report.leaked = sum(_key(s) in known for s in loaded["test"]["sentence"])
    if not quiet:
        say_report(report)
    return loaded

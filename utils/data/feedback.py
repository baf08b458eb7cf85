"""Student feedback in one schema, whether shipped, from the Hub, or the user's own."""

import csv
import io
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from utils.course.hub import load_hub_dataset
from utils.course.paths import ROOT
from utils.data.reading import DataError, Report, need, read_text
from utils.data.text import duplicate_key, normalise

FEEDBACK_WISH = "COURSE_FEEDBACK_DATA"
SENTIMENTS = ["negative", "neutral", "positive"]
NEGATIVE = SENTIMENTS.index("negative")
TOPICS = ["lecturer", "training_program", "facility", "others"]
SPLITS = ["train", "validation", "test"]
LEAST = 8  # rows of train: notebook 02 continues the first words of eight
FEEDBACK_HUB_ID = "uitnlp/vietnamese_students_feedback"
FEEDBACK_HUB_REVISION = "refs/convert/parquet"  # the script on main no longer loads
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
    raise DataError(f"{where}, column {column}: {cell!r} is not a label: use {coding}.")


def read_feedback(path: Path, report: Report) -> list[Feedback]:
    """The rows of one CSV file; the first bad cell stops with a sentence that names it."""
    reader = csv.DictReader(io.StringIO(read_text(path, report), newline=""))
    header = [name.strip() for name in reader.fieldnames or []]
    for column in Feedback._fields:
        if column not in header:
            raise DataError(
                f"{path.name}, line 1: column {column} is missing (found: "
                f"{', '.join(header) or 'nothing'}): name the columns sentence,sentiment,topic."
            )
    reader.fieldnames = header
    rows = []
    for row in reader:
        where = f"{path.name}, line {reader.line_num}"
        if None in row:
            raise DataError(
                f"{where}: more cells than columns: put a sentence that contains a comma "
                "between double quotes."
            )
        original = row["sentence"] or ""
        sentence = normalise(original)
        if not sentence:
            raise DataError(f"{where}, column sentence: empty: write a sentence or delete the row.")
        report.nfd_rows += not unicodedata.is_normalized("NFC", original)
        rows.append(
            Feedback(
                sentence,
                _label(row["sentiment"], SENTIMENTS, where, "sentiment"),
                _label(row["topic"], TOPICS, where, "topic"),
            )
        )
    if not rows:
        raise DataError(f"{path.name}: no rows under the header: add some or remove the file.")
    return rows


def _split_off_validation(rows: list[Feedback]) -> tuple[list[Feedback], list[Feedback]]:
    """Every tenth row of each class, so that the classes keep their shares."""
    seen: Counter[int] = Counter()
    train, validation = [], []
    for row in rows:
        seen[row.sentiment] += 1
        (validation if seen[row.sentiment] % 10 == 0 else train).append(row)
    return train, validation


def _as_dataset(rows: list[Feedback]) -> Dataset:
    columns = dict(zip(Feedback._fields, map(list, zip(*rows, strict=True)), strict=True))
    return Dataset.from_dict(columns, features=FEATURES)


def feedback_from_folder(folder: Path, report: Report) -> DatasetDict:
    """train.csv, test.csv and, if there, validation.csv of a folder."""
    if not folder.is_dir():
        raise DataError(
            f"{FEEDBACK_WISH}={folder} is not a folder: give one that holds train.csv and test.csv."
        )
    rows: dict[str, list[Feedback]] = {}
    for split in SPLITS:
        path = folder / f"{split}.csv"
        if path.exists():
            rows[split] = read_feedback(path, report)
        elif split != "validation":
            raise DataError(f"{path.name} is missing in {folder.name}: the course needs it.")
    if "validation" not in rows:
        rows["train"], rows["validation"] = _split_off_validation(rows["train"])
        if not rows["validation"]:
            raise DataError(
                "train.csv is too short to split a validation set off it: "
                "add rows, or add validation.csv."
            )
        report.notes.append(
            f"No validation.csv: {len(rows['validation'])} rows were split off train."
        )
    need(rows["train"], LEAST, "rows", "train.csv")
    for code, name in enumerate(SENTIMENTS):
        of_class = [row for row in rows["train"] if row.sentiment == code]
        need(of_class, 1, f"rows of class {code} {name}", "train.csv")
    return DatasetDict({split: _as_dataset(rows[split]) for split in SPLITS})


def feedback_from_hub(report: Report) -> DatasetDict:
    """The real corpus, UIT-VSFC, from the Hub; never redistributed by this course."""
    loaded = load_hub_dataset(FEEDBACK_HUB_ID, revision=FEEDBACK_HUB_REVISION)

    def clean(row: dict) -> dict:
        return {**row, "sentence": normalise(row["sentence"])}

    report.notes.append(f"Read from the Hub: {FEEDBACK_HUB_ID}.")
    return DatasetDict(
        {
            split: loaded[split].select_columns(list(Feedback._fields)).map(clean).cast(FEATURES)
            for split in SPLITS
        }
    )


def load_feedback(offline: bool = True, *, quiet: bool = False) -> DatasetDict:
    """Student feedback in train, validation and test.

    COURSE_FEEDBACK_DATA chooses: a folder of the user's own, `sample` (shipped) or `hub`
    (the real corpus). Unset, an offline profile takes the sample and the others the Hub.
    """
    wish = os.environ.get(FEEDBACK_WISH, "").strip() or ("sample" if offline else "hub")
    report = Report()
    if wish == "hub":
        loaded = feedback_from_hub(report)
    else:
        folder = FEEDBACK_SAMPLE if wish == "sample" else Path(wish).expanduser()
        loaded = feedback_from_folder(folder, report)
    known = {duplicate_key(s) or s for s in loaded["train"]["sentence"]}  # emoji have no key
    report.leaked = sum((duplicate_key(s) or s) in known for s in loaded["test"]["sentence"])
    if not quiet:
        print("\n".join(report.lines()) or "Nothing to mend in the data.")
    return loaded

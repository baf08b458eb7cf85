"""Pairs of a better and a worse answer in one schema: shipped, on the Hub or the user's files."""

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

from datasets import Dataset, DatasetDict, Features, Value

from utils.course.hub import load_hub_dataset
from utils.course.language import later, tr
from utils.course.paths import ROOT
from utils.data.reading import DataError, Report, fingerprint, held_apart, read_text, say_report
from utils.data.text import duplicate_key, normalise

SPLITS = ["train", "test"]
TURN = {"role": Value("string"), "content": Value("string")}  # of a dialogue, in TRL's format
DESCRIPTION = {"history": [TURN], "tier": Value("string")}
TEST_EVERY = 10  # when there is no test split, every tenth row of train goes into one
LONG = 400  # a row is over-long if its question and longer answer together have more syllables
MINED = "06"  # the source whose train split is the artifact of notebook 06
QUESTIONS = ROOT / "data" / "questions" / "khoa_hoc.txt"


@dataclass(frozen=True)
class Source:
    """Where one set of pairs comes from, and its columns."""

    variable: str  # the environment variable that names the source
    hub_id: str
    sample: Path
    columns: tuple[str, ...]  # the last three are the question, chosen and rejected
    described: bool = False  # the rows also have a history and a tier, where a file names them

    @property
    def asked(self) -> str:
        """The column that contains the question."""
        return self.columns[-3]

    @property
    def features(self) -> Features:
        """The schema: every column is text, except the history, which is a list of turns."""
        texts = {column: Value("string") for column in self.columns}
        return Features(texts | (DESCRIPTION if self.described else {}))


PREFERENCES = Source(
    "COURSE_PREFERENCE_DATA",
    "thainq107/Vi-Alpaca-Preference",
    ROOT / "data" / "preferences",
    ("id", "question", "chosen", "rejected"),
    described=True,
)
HUMAN_LIKE = Source(
    "COURSE_HUMAN_LIKE_DATA",
    "HumanLLMs/Human-Like-DPO-Dataset",
    ROOT / "data" / "human_like",
    ("prompt", "chosen", "rejected"),
)


@dataclass
class PairReport(Report):
    """What the loader noticed; each list contains the names of the rows."""

    empty: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    repeated_ids: list[str] = field(default_factory=list)
    over_long: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as sentences; the list is empty when there is nothing to report."""
        sentences = super().lines()
        for names, sentence in (
            (self.empty, later("{rows} left out, because a side is empty ({first}).")),
            (
                self.equal,
                later("{rows} left out, because chosen and rejected are the same ({first})."),
            ),
            (
                self.repeated,
                later(
                    "{rows} kept, although an earlier row of the split has the same texts "
                    "({first})."
                ),
            ),
            (
                self.repeated_ids,
                later(
                    "{rows} kept, although an earlier row of the split has the same id ({first})."
                ),
            ),
            (
                self.over_long,
                later(
                    "{rows} kept, although longer than {limit} syllables: training cuts them "
                    "({first})."
                ),
            ),
            (
                self.leaks,
                later(
                    "WARNING: train also asks the questions of {rows} of test ({first}), so the "
                    "scores on test will be too high. Remove these questions from one of the two "
                    "splits."
                ),
            ),
        ):
            if names:
                first = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
                sentences.append(tr(sentence, rows=_count(names), first=first, limit=LONG))
        return sentences


def _count(names: list[str]) -> str:
    return tr("1 row") if len(names) == 1 else tr("{count} rows", count=len(names))


def tidy(text: str) -> str:
    """The text normalised line by line, so that line breaks and the indents of code stay.

    A tab at the start of a line becomes four spaces; an indent that all lines have is dropped.

    >>> tidy("1.  Đun nước\\u200b\\n\\t2. Rót ")
    '1. Đun nước\\n    2. Rót'
    """
    text = dedent(text.replace("\r\n", "\n").expandtabs(4)).strip()
    lines = [line.rstrip() for line in text.split("\n")]
    return "\n".join(line[: len(line) - len(line.lstrip(" "))] + normalise(line) for line in lines)


def objects(path: Path, wanted: str, report: Report) -> Iterator[tuple[int, str, dict]]:
    """The number, the name and the object of each line of a JSONL file; blank lines are skipped.

    A line that is no object raises an error that names it and says what is `wanted`.
    """
    for number, line in enumerate(read_text(path, report).split("\n"), 1):
        if not line.strip():
            continue
        where = tr("{file}, line {line}", file=path.name, line=number)
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits
            raise DataError(
                tr(
                    "{where}, character {column}: broken JSON ({error}): write one object per "
                    "line, with {columns}.",
                    where=where,
                    column=getattr(error, "colno", 1),
                    error=getattr(error, "msg", error),
                    columns=wanted,
                )
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                tr(
                    "{where}: the value is {kind} instead of an object: write {{...}} with "
                    "{columns}.",
                    where=where,
                    kind=type(row).__name__,
                    columns=wanted,
                )
            )
        yield number, where, row


def _read_lines(path: Path, source: Source, report: PairReport) -> list[tuple[str, dict]]:
    """Each row of a JSONL file with its name; a file without rows is an error."""
    rows = [(where, row) for _, where, row in objects(path, ", ".join(source.columns), report)]
    if not rows:
        raise DataError(tr("{file} has no rows: add some or remove the file.", file=path.name))
    return rows


def _checked(
    rows: Iterable[tuple[str, dict]], split: str, source: Source, report: PairReport
) -> list[dict[str, str]]:
    """The usable rows of a split in the schema; rows left out or unusual go into the report."""
    kept, known, identifiers = [], set(), set()
    unnamed = 0
    for number, (where, row) in enumerate(rows, 1):
        clean = {}
        for column in source.columns:
            value = row.get(column)
            if column == "id":
                unnamed += value is None
                clean[column] = str(f"{split}-{number}" if value is None else value)
                continue
            if column not in row:
                raise DataError(
                    tr(
                        "{where}: column {column} is missing (found: {found}): name the columns "
                        "{columns}.",
                        where=where,
                        column=column,
                        found=", ".join(map(str, row)) or tr("nothing"),
                        columns=", ".join(source.columns),
                    )
                )
            if value is not None and not isinstance(value, str):
                raise DataError(
                    tr(
                        "{where}, column {column}: the value is {kind} instead of text: put it "
                        "between double quotes.",
                        where=where,
                        column=column,
                        kind=type(value).__name__,
                    )
                )
            clean[column] = tidy(value or "")
        texts = [clean[column] for column in source.columns if column != "id"]
        given = (row[column] or "" for column in source.columns if column != "id")
        report.nfd_rows += not all(unicodedata.is_normalized("NFC", text) for text in given)
        if not all(texts):
            report.empty.append(where)
            continue
        if clean["chosen"] == clean["rejected"]:
            report.equal.append(where)
            continue
        if source.described:
            clean |= {
                "history": _turns(row.get("history"), where),
                "tier": str(row.get("tier") or ""),
            }
        if tuple(texts) in known:
            report.repeated.append(where)
        known.add(tuple(texts))
        if "id" in clean:
            if clean["id"] in identifiers:
                report.repeated_ids.append(f"{where}: {clean['id']}")
            identifiers.add(clean["id"])
        question, chosen, rejected = (len(text.split()) for text in texts)
        if question + max(chosen, rejected) > LONG:
            report.over_long.append(where)
        kept.append(clean)
    if unnamed:
        report.notes.append(
            tr("{count} rows of {split} had no id and were numbered.", count=unnamed, split=split)
        )
    if not kept:
        raise DataError(
            tr(
                "{split} has no usable row: in each row a text is empty or chosen equals "
                "rejected: add rows with two different answers.",
                split=split,
            )
        )
    return kept


def _turns(history: object, where: str) -> list[dict[str, str]]:
    """The earlier turns of a dialogue, tidied; an empty list if the row has none."""
    turns = history or []
    for turn in turns if isinstance(turns, list) else [turns]:
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise DataError(
                tr(
                    "{where}, column history: the value is not a list of turns: write {example}.",
                    where=where,
                    example='[{"role": "user", "content": "…"}, '
                    '{"role": "assistant", "content": "…"}]',
                )
            )
    return [{"role": str(t["role"]), "content": tidy(str(t["content"]))} for t in turns]


def _key(text: str) -> str:
    """A key that equal questions share; in a text with digits, punctuation counts as well."""
    digits = any(map(str.isdigit, text))
    return normalise(text).lower() if digits else duplicate_key(text) or text


def _with_test(
    rows: dict[str, list[dict]], source: Source, report: PairReport
) -> dict[str, list[dict]]:
    """Both splits; a missing test split is taken from train, all rows of a question together."""
    if "test" in rows:
        return rows
    train = rows["train"]
    keys = [_key(row[source.asked]) for row in train]
    held_out = set(list(dict.fromkeys(keys))[TEST_EVERY - 1 :: TEST_EVERY])
    kept, test = held_apart(train, keys, held_out)
    if not test:
        raise DataError(
            tr(
                "train has only {count} questions, too few to split a test set off: add rows until "
                "there are {least}, or add a test split.",
                count=len(set(keys)),
                least=TEST_EVERY,
            )
        )
    report.notes.append(tr("No test split: {count} rows were split off train.", count=len(test)))
    return {"train": kept, "test": test}


def _from_folder(folder: Path, source: Source, report: PairReport) -> dict[str, list[dict]]:
    """Read train.jsonl and, if it exists, test.jsonl from a folder."""
    if not folder.is_dir():
        raise DataError(
            tr(
                "{variable}={folder} is not a folder: name one with train.jsonl.",
                variable=source.variable,
                folder=folder,
            )
        )
    rows = {}
    for split in SPLITS:
        path = folder / f"{split}.jsonl"
        if path.exists():
            read = _read_lines(path, source, report)
            rows[split] = _checked(read, split, source, report)
        elif split == "train":
            raise DataError(
                tr(
                    "{file} is missing in {folder}: add this file.",
                    file=path.name,
                    folder=folder.name,
                )
            )
    return rows


def _from_hub(source: Source, report: PairReport) -> dict[str, list[dict]]:
    """The real data set, from the Hub."""
    loaded = load_hub_dataset(source.hub_id)
    report.notes.append(tr("Read from the Hub: {repository}.", repository=source.hub_id))
    rows = {}
    for split in SPLITS:
        if split in loaded:
            named = (
                (tr("{split}, row {row}", split=split, row=number), row)
                for number, row in enumerate(loaded[split], 1)
            )
            rows[split] = _checked(named, split, source, report)
    if "train" not in rows:
        raise DataError(
            tr(
                "{repository} has no split train: set {variable} to sample or to a folder.",
                repository=source.hub_id,
                variable=source.variable,
            )
        )
    return rows


def _mined(offline: bool, report: PairReport) -> list[dict]:
    """The pairs that notebook 06 mined from these questions; it is run if they are missing."""
    from utils.course import artifacts, notebooks, profiles
    from utils.data.instructions import load_instructions

    name, profile = notebooks.path_of(MINED).stem, profiles.choose().name
    questions = load_instructions(offline, quiet=True)
    inputs = {"profile": profile, "data": fingerprint({"train": questions})}
    folder = artifacts.require(name, artifacts.shelf(profile), inputs=inputs)
    read = _read_lines(folder / "pairs.jsonl", PREFERENCES, report)
    rows = _checked(read, "train", PREFERENCES, report)
    report.notes.append(tr("Train is what notebook 06 mined: {count} pairs.", count=len(rows)))
    return rows


def _load(source: Source, offline: bool, quiet: bool, mined: bool = False) -> DatasetDict:
    setting = os.environ.get(source.variable, "").strip()
    if source is PREFERENCES and setting == MINED:
        setting = ""
    else:
        mined = False
    setting = setting or ("sample" if offline else "hub")
    report = PairReport()
    if setting == "hub":
        rows = _from_hub(source, report)
    else:
        folder = source.sample if setting == "sample" else Path(setting).expanduser()
        rows = _from_folder(folder, source, report)
    rows = _with_test(rows, source, report)
    if mined:
        rows["train"] = _mined(offline, report)
    known = Counter(_key(row[source.asked]) for row in rows["train"])
    report.leaks = [
        repr(row[source.asked][:40]) for row in rows["test"] if _key(row[source.asked]) in known
    ]
    if not quiet:
        say_report(report)
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {column: [row[column] for row in rows[split]] for column in source.features},
                features=source.features,
            )
            for split in SPLITS
        }
    )


def load_preferences(
    offline: bool = True, *, quiet: bool = False, mined: bool = True
) -> DatasetDict:
    """Questions with a chosen and a rejected answer: id, question, chosen, rejected, history, tier.

    `history` has the earlier turns of a dialogue. `tier` says what is wrong with the rejected
    answer of a shipped pair; it is empty for other pairs. COURSE_PREFERENCE_DATA names the source:
    `sample` (shipped), `hub` (Vi-Alpaca-Preference) or a folder with the user's own files. If it is
    not set, an offline profile uses the sample and every other profile uses the Hub. With `06`, the
    train split is what notebook 06 mined from that default's train split, and the test split is the
    default's; `mined=False` gives the default's train split, as notebook 06 itself needs. Rows of
    more than 400 syllables are kept and counted in the report.
    """
    return _load(PREFERENCES, offline, quiet, mined)


def load_human_like(offline: bool = True, *, quiet: bool = False) -> DatasetDict:
    """Prompts with a natural and a stiff answer: prompt, chosen, rejected.

    COURSE_HUMAN_LIKE_DATA names the source as COURSE_PREFERENCE_DATA does for `load_preferences`.
    """
    return _load(HUMAN_LIKE, offline, quiet)


def written(pairs: Dataset, *, dialogues: bool = False) -> Dataset:
    """The pairs without the systematic ones, and without dialogues unless they are wanted."""
    rows = enumerate(zip(pairs["tier"], pairs["history"], strict=True))
    return pairs.select(
        [i for i, (tier, turns) in rows if tier != "systematic" and (dialogues or not turns)]
    )


def science_questions() -> list[str]:
    """The science questions for collecting preferences, one per line of the file."""
    lines = (normalise(line) for line in read_text(QUESTIONS, Report()).split("\n"))
    questions = [line for line in lines if line]
    if not questions:
        raise DataError(tr("{file} has no questions: write one per line.", file=QUESTIONS.name))
    return questions

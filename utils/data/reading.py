"""Functions that all data loaders share: encodings, error messages, a report, a fingerprint."""

import hashlib
from collections.abc import Collection, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from datasets import DatasetDict

from utils.course.errors import CourseError
from utils.course.language import tr

Row = TypeVar("Row")
Rows = TypeVar("Rows", bound=Sized)


class DataError(CourseError, ValueError):
    """Data that cannot be used; the message names file, line, column and what to do."""


def need(rows: Rows, least: int, what: str, where: str) -> Rows:
    """Return the rows, or raise an error when a lesson needs more of them."""
    if len(rows) < least:
        raise DataError(
            tr(
                "{where} has {found} {what} and the course needs at least {least}: add rows.",
                where=where,
                found=len(rows),
                what=tr(what),
                least=least,
            )
        )
    return rows


def held_apart(
    rows: Sequence[Row], keys: Sequence[str], held_out: Collection[str]
) -> tuple[list[Row], list[Row]]:
    """The rows that stay, and those with a key that is held out: all rows of a key together."""
    stay, apart = [], []
    for row, key in zip(rows, keys, strict=True):
        (apart if key in held_out else stay).append(row)
    return stay, apart


@dataclass
class Report:
    """What the loader repaired or noticed."""

    nfd_rows: int = 0
    bom_files: list[str] = field(default_factory=list)
    crlf_files: list[str] = field(default_factory=list)
    leaked: int = 0
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as sentences; the list is empty when there is nothing to report."""
        sentences = list(self.notes)
        if self.bom_files:
            files = ", ".join(self.bom_files)
            sentences.append(tr("A byte-order mark was removed from {files}.", files=files))
        if self.crlf_files:
            files = ", ".join(self.crlf_files)
            sentences.append(tr("Windows line ends were converted in {files}.", files=files))
        if self.nfd_rows:
            sentences.append(
                tr("{count} rows were in NFD and were normalised to NFC.", count=self.nfd_rows)
            )
        if self.leaked:
            sentences.append(
                tr(
                    "WARNING: {count} test sentences also occur in train, so the scores on "
                    "test will be too high. Remove these sentences from one of the two.",
                    count=self.leaked,
                )
            )
        return sentences


def say_report(report: Report) -> None:
    """Print the report, or that there is nothing to report."""
    print("\n".join(report.lines()) or tr("Nothing to mend in the data."))


def read_text(path: Path, report: Report) -> str:
    """A file's text; a byte-order mark and Windows line ends are removed and reported."""
    raw = path.read_bytes()
    if raw.startswith(b"\xef\xbb\xbf"):
        report.bom_files.append(path.name)
        raw = raw[3:]
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(
            tr(
                "{file}, line {line}: byte 0x{byte:02x} is not UTF-8: save the file again with "
                "encoding UTF-8 (in Excel: 'CSV UTF-8').",
                file=path.name,
                line=line,
                byte=raw[error.start],
            )
        ) from None
    if "\r\n" in text:
        report.crlf_files.append(path.name)
        text = text.replace("\r\n", "\n")
    return text


def fingerprint(data: DatasetDict) -> str:
    """A short hash of all rows, which identifies the data that an artifact was made from."""
    digest = hashlib.sha256()
    for split in sorted(data):
        columns = data[split].with_format(None)[:]  # at once; one by one takes ten times as long
        for column in sorted(columns):
            digest.update(repr((split, column, columns[column])).encode())
    return digest.hexdigest()[:16]

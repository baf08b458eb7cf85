"""What every reader of data shares: encodings, errors that name a cell, and a fingerprint."""

import hashlib
from collections.abc import Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from datasets import DatasetDict

from utils.course.errors import CourseError

Rows = TypeVar("Rows", bound=Sized)


class DataError(CourseError, ValueError):
    """Data that cannot be used, with file, line, column and the way out."""


def need(rows: Rows, least: int, what: str, where: str) -> Rows:
    """The rows; one sentence stops when there are too few for what a lesson does with them."""
    if len(rows) < least:
        raise DataError(
            f"{where} has {len(rows)} {what} and the course needs at least {least}: add rows."
        )
    return rows


@dataclass
class Report:
    """What the loader mended or noticed."""

    nfd_rows: int = 0
    bom_files: list[str] = field(default_factory=list)
    crlf_files: list[str] = field(default_factory=list)
    leaked: int = 0
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as sentences, none when there is nothing to say."""
        said = list(self.notes)
        if self.bom_files:
            said.append(f"Byte-order mark removed from {', '.join(self.bom_files)}.")
        if self.crlf_files:
            said.append(f"Windows line ends read in {', '.join(self.crlf_files)}.")
        if self.nfd_rows:
            said.append(f"{self.nfd_rows} rows were in NFD and were normalised to NFC.")
        if self.leaked:
            said.append(
                f"WARNING: {self.leaked} test sentences also stand in train; "
                "scores on test will flatter. Remove them from one of the two."
            )
        return said


def read_text(path: Path, report: Report) -> str:
    """A file's text; byte-order mark and Windows line ends are taken out and reported."""
    raw = path.read_bytes()
    if raw.startswith(b"\xef\xbb\xbf"):
        report.bom_files.append(path.name)
        raw = raw[3:]
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path.name}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8: "
            "save the file again with encoding UTF-8 (in Excel: 'CSV UTF-8')."
        ) from None
    if "\r\n" in text:
        report.crlf_files.append(path.name)
        text = text.replace("\r\n", "\n")
    return text


def fingerprint(data: DatasetDict) -> str:
    """A short hash of every row, to tell what data an artifact was made from."""
    digest = hashlib.sha256()
    for split in sorted(data):
        for column in sorted(data[split].column_names):
            digest.update(repr((split, column, list(data[split][column]))).encode())
    return digest.hexdigest()[:16]

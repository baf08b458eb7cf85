"""Votes in SQL: a file for one annotator, a PostgreSQL server for a whole class.

`COURSE_VOTES` names the database: `sqlite:///folder/votes.sqlite` or
`postgresql+psycopg://user:password@host/database`. A vote is confirmed once it is on disk, and it
is never deleted: a withdrawn vote stays in the table with the time of its withdrawal.
"""

import json
import os
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.schema import CreateTable

from utils.course import artifacts, colab
from utils.course.errors import CourseError

if TYPE_CHECKING:
    from datasets import Dataset

VOTES_VARIABLE = "COURSE_VOTES"
CHOICES = ("a", "b", "tie", "skip")
INSERT = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
# A kill or a power cut must not lose a confirmed vote; a writer waits while others write.
PRAGMAS = ("busy_timeout = 30000", "synchronous = FULL")
ONE_AT_A_TIME = 20_261  # PostgreSQL's advisory lock: a whole class may create the table at once

TABLE = sql.Table(
    "votes",
    sql.MetaData(),
    sql.Column("id", sql.Integer, primary_key=True),  # the order of arrival
    sql.Column("key", sql.String(32), nullable=False, unique=True),
    sql.Column("item", sql.Text, nullable=False),
    sql.Column("question", sql.Text, nullable=False),
    sql.Column("answer_a", sql.Text, nullable=False),
    sql.Column("answer_b", sql.Text, nullable=False),
    sql.Column("choice", sql.String(4), nullable=False),
    sql.Column("annotator", sql.Text, nullable=False, index=True),
    sql.Column("model_a", sql.Text, nullable=False),
    sql.Column("model_b", sql.Text, nullable=False),
    sql.Column("seed", sql.BigInteger, nullable=False),
    sql.Column("source", sql.Text, nullable=False),
    sql.Column("voted_at", sql.String(40), nullable=False),
    sql.Column("swapped", sql.Boolean, nullable=False),
    sql.Column("withdrawn_at", sql.String(40)),  # null if the vote was not withdrawn
)

Result = TypeVar("Result")


class VoteError(CourseError, RuntimeError):
    """A store that cannot be opened, or a vote that was not confirmed."""


@dataclass(frozen=True)
class Vote:
    """One judgement, with all that was on the screen."""

    item: str  # the name of the pair; a repeated pair has the same name
    question: str
    answer_a: str  # the answer on the left of the screen
    answer_b: str  # the answer on the right of the screen
    choice: str  # "a", "b", "tie" or "skip"
    annotator: str
    model_a: str = ""
    model_b: str = ""
    seed: int = 0  # the seed of the order on the screen
    source: str = "panel"  # the front end: panel, terminal, demo or simulated
    voted_at: str = ""  # UTC, ISO 8601; the store writes it
    swapped: bool = False  # whether the pair's second answer was shown as A
    key: str = ""  # unique per vote, so that adding it again changes nothing; the store writes it


COLUMNS = [TABLE.c[field.name] for field in fields(Vote)]


def storable(text: str) -> str:
    """The text with U+FFFD for what SQL or UTF-8 cannot store: NUL and lone surrogates.

    >>> storable("trăng\\x00 sao")
    'trăng\\ufffd sao'
    """
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\x00", "\ufffd")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _default_url() -> str:
    folder = artifacts.shelf("lab").folder.parent  # one store for all profiles
    return f"sqlite:///{folder / 'votes.sqlite'}"


def _parse(url: str) -> sql.URL:
    """The URL's parts; an error message leaves out the URL, which may contain a password."""
    forms = "sqlite:///folder/votes.sqlite or postgresql+psycopg://user:password@host/database"
    try:
        parts = sql.make_url(url)
    except (ArgumentError, ValueError):
        raise VoteError(f"{VOTES_VARIABLE} is not a database URL: write {forms}.") from None
    if parts.drivername not in ("sqlite", "postgresql+psycopg"):
        raise VoteError(
            f"{VOTES_VARIABLE} begins with {parts.drivername}://, which is not supported: "
            f"write {forms}."
        )
    if parts.drivername == "sqlite" and parts.database in (None, "", ":memory:"):
        raise VoteError(
            f"{VOTES_VARIABLE} names no file, so the votes would be lost: write {forms}."
        )
    return parts


def _database_name(url: sql.URL) -> str:
    """The database's name for messages, without a password or a folder of this machine."""
    if url.drivername == "sqlite":
        return f"sqlite {Path(url.database).name}"
    return f"postgresql {url.host or 'localhost'}:{url.port or 5432}/{url.database or ''}"


def open_store(url: str | None = None) -> "VoteStore":
    """Open the database of COURSE_VOTES or `artifacts/votes.sqlite`; create it if missing."""
    parts = _parse(url or os.environ.get(VOTES_VARIABLE) or _default_url())
    if parts.drivername == "sqlite":
        folder = Path(parts.database).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VoteError(
                f"The votes cannot be stored in {folder} ({error.strerror}): name another folder "
                f"in {VOTES_VARIABLE}."
            ) from None
    try:
        engine = sql.create_engine(parts, pool_pre_ping=True, connect_args=_patience(parts))
    except ImportError:
        raise VoteError(
            f"{VOTES_VARIABLE} names a PostgreSQL database and psycopg is not installed: "
            'run `pip install "psycopg[binary]"` and start again.'
        ) from None
    if parts.drivername == "sqlite":
        on_drive = Path(parts.database).is_relative_to(colab.DRIVE)
        sql.event.listen(engine, "connect", lambda raw, _: _set_pragmas(raw, on_drive))
    store = VoteStore(engine)
    store.create()
    return store


def _patience(url: sql.URL) -> dict[str, int]:
    return {"timeout": 30} if url.drivername == "sqlite" else {"connect_timeout": 10}  # seconds


def _set_pragmas(connection: object, on_drive: bool) -> None:
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    # a write-ahead log needs shared memory, which Google Drive's file system does not have
    connection.execute(f"PRAGMA journal_mode = {'DELETE' if on_drive else 'WAL'}")


class VoteStore:
    """The table of votes; each method is one transaction, retried once if the connection drops.

    >>> store = open_store("sqlite:///votes.sqlite")
    >>> store.add(Vote("q1", "Vì sao trời xanh?", "Do tán xạ.", "Do biển.", "a", annotator="An"))
    """

    def __init__(self, engine: sql.Engine) -> None:
        self.engine = engine

    def __repr__(self) -> str:
        return f"VoteStore({_database_name(self.engine.url)})"

    def create(self) -> None:
        """Create the table if it is missing; several processes may do so at the same time."""
        self._transact(self._create)

    def _create(self, connection: sql.Connection) -> None:
        if sql.inspect(connection).has_table(TABLE.name):
            return
        if self.engine.dialect.name == "postgresql":
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(ONE_AT_A_TIME)))
        connection.execute(CreateTable(TABLE, if_not_exists=True))
        for index in TABLE.indexes:
            connection.execute(sql.schema.CreateIndex(index, if_not_exists=True))

    def _transact(self, work: Callable[[sql.Connection], Result], again: bool = True) -> Result:
        """Commit what `work` does; if the connection drops, retry once on a new one."""
        try:
            with self.engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            if again and error.connection_invalidated:
                return self._transact(work, again=False)
            raise VoteError(self._sentence(error)) from None

    def _sentence(self, error: DBAPIError) -> str:
        message = str(error.orig).strip() or type(error.orig).__name__
        reason = message.splitlines()[0].rstrip(".")
        if password := self.engine.url.password:
            reason = reason.replace(password, "***")
        return (
            f"The votes at {_database_name(self.engine.url)} cannot be reached ({reason}), so "
            "nothing was confirmed: check that the database runs and is writable, or correct "
            f"{VOTES_VARIABLE}."
        )

    def add(self, vote: Vote) -> Vote:
        """Store a vote with its time and key; when this returns, the vote is on disk.

        Adding the returned vote again changes nothing.
        """
        if vote.choice not in CHOICES:
            raise VoteError(
                f"The vote's choice is {vote.choice!r}: use one of {', '.join(CHOICES)}."
            )
        for name in ("annotator", "item"):
            if not getattr(vote, name).strip():
                raise VoteError(f"The vote has no {name}: set it, so that the vote can be counted.")
        clean = {k: storable(v) if isinstance(v, str) else v for k, v in asdict(vote).items()}
        clean["voted_at"] = clean["voted_at"] or _now()
        clean["key"] = clean["key"] or uuid.uuid4().hex
        # a connection may drop after the commit: the second try then finds the key and adds nothing
        insert = INSERT[self.engine.dialect.name](TABLE).values(clean)
        statement = insert.on_conflict_do_nothing(index_elements=["key"])
        self._transact(lambda connection: connection.execute(statement))
        return Vote(**clean)

    def _standing(self, annotator: str | None) -> sql.Select:
        query = sql.select(*COLUMNS).where(TABLE.c.withdrawn_at.is_(None))
        return query if annotator is None else query.where(TABLE.c.annotator == annotator)

    def _read(self, query: sql.Select) -> list[Vote]:
        rows = self._transact(lambda connection: connection.execute(query).mappings().all())
        return [Vote(**row) for row in rows]

    def votes(self, annotator: str | None = None) -> list[Vote]:
        """The votes that were not withdrawn, in the order of arrival."""
        return self._read(self._standing(annotator).order_by(TABLE.c.id))

    def undo(self, annotator: str) -> Vote | None:
        """Withdraw the annotator's latest vote; it stays in the table as withdrawn."""
        latest = self._standing(annotator).order_by(TABLE.c.id.desc()).limit(1)
        found = self._read(latest)
        if not found:
            return None
        # by its key, so that a retry after a dropped connection withdraws no second vote
        this = (TABLE.c.key == found[0].key) & TABLE.c.withdrawn_at.is_(None)
        withdraw = sql.update(TABLE).where(this).values(withdrawn_at=_now())
        self._transact(lambda connection: connection.execute(withdraw))
        return found[0]


def write_votes(votes: Iterable[Vote], path: str | Path) -> int:
    """Write one JSON object per line; if the run is killed, the previous file stays complete."""
    path = Path(path)
    lines = [json.dumps(asdict(vote), ensure_ascii=False) + "\n" for vote in votes]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, new = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(new, 0o644)  # mkstemp's files are for their owner only
        os.replace(new, path)
    except BaseException:
        Path(new).unlink(missing_ok=True)
        raise
    return len(lines)


def read_votes(path: str | Path) -> list[Vote]:
    """The votes of an exported file; adding each to a store merges the two without duplicates."""
    with open(path, encoding="utf-8") as file:
        return [Vote(**json.loads(line)) for line in file]


def chosen_and_rejected(vote: Vote) -> tuple[str, str] | None:
    """The better answer and the other one; None for a tie or a skip."""
    if vote.choice == "a":
        return vote.answer_a, vote.answer_b
    return (vote.answer_b, vote.answer_a) if vote.choice == "b" else None


def to_dataset(votes: Iterable[Vote]) -> "Dataset":
    """The pairs that DPO trains on, one row per decided vote; `tally` counts the other votes."""
    from datasets import Dataset, Features, Value

    columns = ("prompt", "chosen", "rejected", "annotator", "item")
    rows = [
        (vote.question, *answers, vote.annotator, vote.item)
        for vote in votes
        if (answers := chosen_and_rejected(vote))
    ]
    table = {name: [row[position] for row in rows] for position, name in enumerate(columns)}
    return Dataset.from_dict(table, features=Features({n: Value("string") for n in columns}))


def tally(votes: Iterable[Vote]) -> Mapping[str, int]:
    """The number of votes, of pairs to train on, and of ties and skips, which are left out.

    >>> tally(store.votes())
    {'votes': 40, 'pairs': 31, 'ties': 6, 'skips': 3}
    """
    counts = Counter(vote.choice for vote in votes)
    pairs = counts["a"] + counts["b"]
    return {
        "votes": pairs + counts["tie"] + counts["skip"],
        "pairs": pairs,
        "ties": counts["tie"],
        "skips": counts["skip"],
    }

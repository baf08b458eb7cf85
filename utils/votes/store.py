"""Votes in SQL: a file for one annotator, a PostgreSQL server for a whole class.

`COURSE_VOTES` names the database: `sqlite:///folder/votes.sqlite` or
`postgresql+psycopg://user:password@host/database`. Parameters after a `?` go to libpq, for instance
`?sslmode=verify-full&sslrootcert=system`: without `sslmode`, libpq encrypts only if the server
offers it. A vote is confirmed once it is on disk, and it
is never deleted: a withdrawn vote stays in the table with the time of its withdrawal.

A campaign is a named set of pairs. Its pairs are in the store too, so that a class votes on the
same ones. Votes from a page whose visitors nobody has identified (the demo, the class page) wait
until a teacher accepts them; a reader gets the accepted votes unless it asks for others.
"""

import json
import os
import sqlite3
import time
import unicodedata
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError

from utils.course import artifacts, colab
from utils.course.errors import CourseError
from utils.course.language import tr
from utils.votes import schema
from utils.votes.files import write_whole
from utils.votes.pairs import Pair, campaign_name, check_pairs, clean, item_of, pair_of, storable
from utils.votes.schema import ACCEPTED, CAMPAIGNS, PAIRS, QUARANTINED, VOTERS, WAITING
from utils.votes.schema import VOTES as TABLE

if TYPE_CHECKING:
    from datasets import Dataset

VOTES_VARIABLE = "COURSE_VOTES"
CHOICES = ("a", "b", "tie", "skip")
INSERT = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
# A kill or a power cut must not lose a confirmed vote; a writer waits while others write.
WAIT = 30  # seconds for which SQLite waits for another program's lock
PRAGMAS = (f"busy_timeout = {WAIT * 1000}", "synchronous = FULL")
Result = TypeVar("Result")


class VoteError(CourseError, RuntimeError):
    """A store that cannot be opened, or a vote that was not confirmed."""


@dataclass(frozen=True)
class Vote:
    """One judgement, with all that was on the screen."""

    item: str  # the identity of the pair, from `item_of`; a repeated pair has the same one
    question: str
    answer_a: str  # the answer on the left of the screen
    answer_b: str  # the answer on the right of the screen
    choice: str  # "a", "b", "tie" or "skip"
    annotator: str
    model_a: str = ""
    model_b: str = ""
    seed: int = 0  # the seed of the order on the screen
    source: str = "panel"  # the front end: panel, terminal, class, demo or simulated
    voted_at: str = ""  # UTC, ISO 8601; the store writes it
    swapped: bool = False  # whether the pair's second answer was shown as A
    key: str = ""  # unique per vote, so that adding it again changes nothing; the store writes it
    campaign: str = ""  # the name of the set of pairs
    status: str = ""  # "accepted", "waiting" or "refused"; the store writes it by the source


@dataclass(frozen=True)
class Campaign:
    """A named set of pairs in the store."""

    name: str
    made_at: str  # UTC, ISO 8601
    pairs: int  # number of pairs
    votes: int  # number of votes that were not withdrawn, from every source


COLUMNS = [TABLE.c[field.name] for field in fields(Vote)]


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
        raise VoteError(
            tr("{name} is not a database URL: write {forms}.", name=VOTES_VARIABLE, forms=forms)
        ) from None
    if parts.drivername not in ("sqlite", "postgresql+psycopg"):
        raise VoteError(
            tr(
                "{name} begins with {driver}://, which is not supported: write {forms}.",
                name=VOTES_VARIABLE,
                driver=parts.drivername,
                forms=forms,
            )
        )
    if parts.drivername == "sqlite" and parts.database in (None, "", ":memory:"):
        raise VoteError(
            tr(
                "{name} names no file, so the votes would be lost: write {forms}.",
                name=VOTES_VARIABLE,
                forms=forms,
            )
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
                tr(
                    "The votes cannot be stored in {folder} ({reason}): name another folder in "
                    "{name}.",
                    folder=folder,
                    reason=error.strerror,
                    name=VOTES_VARIABLE,
                )
            ) from None
    try:
        engine = sql.create_engine(parts, pool_pre_ping=True, connect_args=_patience(parts))
    except ImportError:
        raise VoteError(
            tr(
                "{name} names a PostgreSQL database and psycopg is not installed: run "
                '`pip install "psycopg[binary]"` and start again.',
                name=VOTES_VARIABLE,
            )
        ) from None
    if parts.drivername == "sqlite":
        on_drive = Path(parts.database).is_relative_to(colab.DRIVE)
        sql.event.listen(engine, "connect", lambda raw, _: _set_pragmas(raw, on_drive))
    store = VoteStore(engine)
    store.create()
    return store


def _patience(url: sql.URL) -> dict[str, int]:
    return {"timeout": WAIT} if url.drivername == "sqlite" else {"connect_timeout": 10}  # seconds


def _set_pragmas(connection: object, on_drive: bool) -> None:
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    # a write-ahead log needs shared memory, which Google Drive's file system does not have
    mode = "delete" if on_drive else "wal"
    end = time.monotonic() + WAIT
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != mode:
        try:  # SQLite does not wait by itself when another program changes the mode, too
            if connection.execute(f"PRAGMA journal_mode = {mode}").fetchone()[0] != mode:
                return  # this file system has no such mode
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)


class VoteStore:
    """Votes and campaigns; each method is one transaction, retried once if the connection drops.

    >>> store = open_store("sqlite:///votes.sqlite")
    >>> pairs = store.add_pairs("trời", [{"question": "Vì sao trời xanh?", "first": "Do tán xạ.",
    ...                                   "second": "Do biển."}])
    >>> LabelPanel(pairs, store, "An", campaign="trời")
    """

    def __init__(self, engine: sql.Engine) -> None:
        self.engine = engine

    def __repr__(self) -> str:
        return f"VoteStore({_database_name(self.engine.url)})"

    def close(self) -> None:
        """Close all connections; Windows does not remove a file that is open."""
        self.engine.dispose()

    def create(self) -> None:
        """Create the tables, or migrate older ones; several processes may do so at once."""
        self._transact(schema.create)

    def _transact(self, work: Callable[[sql.Connection], Result], again: bool = True) -> Result:
        """Commit what `work` does; if the connection drops, retry once on a new one."""
        try:
            with self.engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            if again and error.connection_invalidated:
                return self._transact(work, again=False)
            raise VoteError(self._sentence(error)) from None
        except sql.exc.TimeoutError:
            raise VoteError(
                tr(
                    "The votes at {database} are busy, so nothing was confirmed: try again.",
                    database=_database_name(self.engine.url),
                )
            ) from None

    def _sentence(self, error: DBAPIError) -> str:
        message = str(error.orig).strip() or type(error.orig).__name__
        reason = message.splitlines()[0].rstrip(".")
        if password := self.engine.url.password:
            reason = reason.replace(password, "***")
        return tr(
            "The votes at {database} cannot be reached ({reason}), so nothing was confirmed: check "
            "that the database runs and is writable, or correct {name}.",
            database=_database_name(self.engine.url),
            reason=reason,
            name=VOTES_VARIABLE,
        )

    def _checked(self, vote: Vote) -> dict[str, object]:
        """The row of a vote, with its time, its key and, by its source, its status."""
        if vote.choice not in CHOICES:
            raise VoteError(
                tr(
                    "The vote's choice is {choice!r}: use one of {choices}.",
                    choice=vote.choice,
                    choices=", ".join(CHOICES),
                )
            )
        for name in ("annotator", "item"):
            if not getattr(vote, name).strip():
                raise VoteError(
                    tr(
                        "The vote has no {name}: set it, so that the vote can be counted.",
                        name=name,
                    )
                )
        row = {k: storable(v) if isinstance(v, str) else v for k, v in asdict(vote).items()}
        row["campaign"] = campaign_name(row["campaign"]) if row["campaign"] else ""
        row["voted_at"] = row["voted_at"] or _now()
        row["key"] = row["key"] or uuid.uuid4().hex
        row["status"] = row["status"] or (WAITING if vote.source in QUARANTINED else ACCEPTED)
        return row

    def _insert(self, table: sql.Table, *unique: str) -> "sqlite.Insert | postgresql.Insert":
        """An insertion that skips the rows whose `unique` columns are in the table.

        Without columns, it skips rows that any unique index of the table excludes.
        """
        return INSERT[self.engine.dialect.name](table).on_conflict_do_nothing(
            index_elements=list(unique) or None
        )

    def add(self, vote: Vote) -> Vote:
        """Store a vote with its time and key; when this returns, the vote is on disk.

        Adding the returned vote again changes nothing.
        """
        row = self._checked(vote)
        # a connection may drop after the commit: the second try then finds the key and adds nothing
        statement = self._insert(TABLE, "key").values(row)
        self._transact(lambda connection: connection.execute(statement))
        return Vote(**row)

    def cast(self, vote: Vote) -> Vote:
        """Store a vote in place of the voter's former vote on the item, which is withdrawn.

        The votes of one source have at most one standing vote per campaign, voter and item, even
        if two requests arrive at once. A request that arrives again changes nothing.
        """
        row = self._checked(vote)
        every = TABLE.alias()
        arrived = sql.select(every.c.key).where(every.c.key == row["key"]).scalar_subquery()
        same = [TABLE.c[k] == row[k] for k in ("campaign", "annotator", "item", "source")]
        former = sql.and_(*same, TABLE.c.withdrawn_at.is_(None), arrived.is_(None))
        withdraw = sql.update(TABLE).where(former).values(withdrawn_at=_now())
        insert = self._insert(TABLE, "key").values(row)

        name = " ".join([row["campaign"], row["annotator"], row["item"]])
        lock = sql.func.pg_advisory_xact_lock(sql.func.hashtextextended(name, 0))

        def work(connection: sql.Connection) -> None:
            if self.engine.dialect.name == "postgresql":
                connection.execute(sql.select(lock))  # the same voter may vote twice at one moment
            connection.execute(withdraw)  # first a statement that writes: it takes SQLite's lock
            connection.execute(insert)

        self._transact(work)
        return Vote(**row)

    def _where(
        self,
        annotator: str | None,
        campaign: str | None,
        source: str | Collection[str] | None,
        status: str | Collection[str] | None,
    ) -> sql.ColumnElement[bool]:
        wanted = {"annotator": annotator, "campaign": campaign, "source": source, "status": status}
        tests = [TABLE.c.withdrawn_at.is_(None)]
        for name, value in wanted.items():
            if isinstance(value, str):
                tests.append(TABLE.c[name] == value)
            elif value is not None:
                tests.append(TABLE.c[name].in_(list(value)))
        return sql.and_(*tests)

    def _read(self, query: sql.Select) -> list[Vote]:
        rows = self._transact(lambda connection: connection.execute(query).mappings().all())
        return [Vote(**row) for row in rows]

    def votes(
        self,
        annotator: str | None = None,
        *,
        campaign: str | None = None,
        source: str | Collection[str] | None = None,
        status: str | Collection[str] | None = ACCEPTED,
    ) -> list[Vote]:
        """The accepted votes that were not withdrawn, in the order of arrival; None means any."""
        where = self._where(annotator, campaign, source, status)
        return self._read(sql.select(*COLUMNS).where(where).order_by(TABLE.c.id))

    def undo(
        self,
        annotator: str,
        campaign: str | None = None,
        source: str | Collection[str] | None = None,
    ) -> Vote | None:
        """Withdraw the annotator's latest vote; it stays in the table as withdrawn."""
        where = self._where(annotator, campaign, source, None)
        latest = sql.select(*COLUMNS).where(where).order_by(TABLE.c.id.desc()).limit(1)
        found = self._read(latest)
        if not found:
            return None
        # by its key, so that a retry after a dropped connection withdraws no second vote
        this = (TABLE.c.key == found[0].key) & TABLE.c.withdrawn_at.is_(None)
        withdraw = sql.update(TABLE).where(this).values(withdrawn_at=_now())
        self._transact(lambda connection: connection.execute(withdraw))
        return found[0]

    def decide(
        self,
        status: str,
        campaign: str,
        *,
        annotators: Collection[str] | None = None,
        source: str | Collection[str] = QUARANTINED,
    ) -> int:
        """Accept or refuse the quarantined votes of a campaign; the number that changed.

        Without names, a vote that was refused before is not accepted.
        """
        where = self._where(None, campaign, source, None)
        if annotators is not None:
            where &= TABLE.c.annotator.in_(list(annotators))
        elif status == ACCEPTED:
            where &= TABLE.c.status == WAITING
        change = sql.update(TABLE).where(where, TABLE.c.status != status).values(status=status)
        return self._transact(lambda connection: connection.execute(change).rowcount)

    # --- Campaigns -------------------------------------------------------------------------------

    def add_pairs(self, campaign: str, pairs: Sequence[Pair]) -> list[Pair]:
        """Add pairs to a campaign, which is made if it is missing; return all of its pairs.

        A pair that the campaign already has is not added again.
        """
        check_pairs(pairs)
        name = campaign_name(campaign)
        make = self._insert(CAMPAIGNS, "name").values(name=name, made_at=_now())
        rows = [{"campaign": name, "item": item_of(pair), **clean(pair)} for pair in pairs]

        def work(connection: sql.Connection) -> None:
            connection.execute(make)
            if rows:
                connection.execute(self._insert(PAIRS, "campaign", "item"), rows)

        self._transact(work)
        return self.pairs(name)

    def pairs(self, campaign: str) -> list[Pair]:
        """The pairs of a campaign, in the order in which they were added; [] if there is none."""
        columns = [PAIRS.c[name] for name in clean({})]
        query = sql.select(*columns).where(PAIRS.c.campaign == campaign).order_by(PAIRS.c.id)
        rows = self._transact(lambda connection: connection.execute(query).mappings().all())
        return [dict(row) for row in rows]

    def campaigns(self) -> list[Campaign]:
        """All campaigns, the oldest first."""
        pairs, votes = (
            sql.select(sql.func.count())
            .where(table.c.campaign == CAMPAIGNS.c.name, *more)
            .scalar_subquery()
            for table, more in ((PAIRS, ()), (TABLE, (TABLE.c.withdrawn_at.is_(None),)))
        )
        columns = [CAMPAIGNS, pairs.label("pairs"), votes.label("votes")]
        query = sql.select(*columns).order_by(CAMPAIGNS.c.made_at)
        rows = self._transact(lambda connection: connection.execute(query).mappings().all())
        return [Campaign(**row) for row in rows]

    def add_votes(self, votes: Sequence[Vote]) -> int:
        """Add exported votes and their pairs; return how many votes were new.

        A vote that the store already has changes nothing, so a file can be read twice.
        """
        by_campaign: dict[str, dict[str, Pair]] = {}
        for vote in votes:
            if vote.campaign:
                by_campaign.setdefault(vote.campaign, {})[vote.item] = pair_of(vote)
        for campaign, pairs in by_campaign.items():
            self.add_pairs(campaign, list(pairs.values()))
        rows = [self._checked(vote) for vote in votes]

        def work(connection: sql.Connection) -> int:
            insert = self._insert(TABLE).returning(TABLE.c.id)  # a row that is skipped returns none
            return sum(len(connection.execute(insert.values(row)).all()) for row in rows)

        return self._transact(work)

    # --- Voters of the class page ----------------------------------------------------------------

    def join(self, campaign: str, name: str, voter: str | None = None) -> str | None:
        """The id of a new voter; None if the campaign has another voter of this name.

        A name that a teacher has set free can be taken once more, with all of its votes. With an
        id of the caller's, joining again after a lost answer gives the same voter.
        """
        voter = voter or uuid.uuid4().hex
        key = unicodedata.normalize("NFC", name.casefold())
        row = {"id": voter, "campaign": campaign, "name": name, "name_key": key}
        insert = self._insert(VOTERS, "campaign", "name_key").values(
            **row, joined_at=_now(), free=False
        )
        freed = (VOTERS.c.campaign == campaign) & (VOTERS.c.name_key == key) & VOTERS.c.free
        take = sql.update(VOTERS).where(freed).values(id=voter, free=False)

        mine = sql.select(VOTERS.c.id).where(VOTERS.c.id == voter, VOTERS.c.name_key == key)

        def work(connection: sql.Connection) -> bool:
            connection.execute(insert)
            connection.execute(take)
            return connection.execute(mine).first() is not None

        return voter if self._transact(work) else None

    def voters(self, campaign: str) -> dict[str, str]:
        """Voter id -> name, in the order of joining."""
        query = sql.select(VOTERS.c.id, VOTERS.c.name).where(VOTERS.c.campaign == campaign)
        query = query.order_by(VOTERS.c.joined_at)
        rows = self._transact(lambda connection: connection.execute(query).all())
        return {voter: name for voter, name in rows}

    def set_free(self, campaign: str, name: str) -> bool:
        """Let another telephone join under this name; the former one has to join again."""
        this = (VOTERS.c.campaign == campaign) & (VOTERS.c.name == name)
        change = sql.update(VOTERS).where(this).values(id=uuid.uuid4().hex, free=True)
        return bool(self._transact(lambda connection: connection.execute(change).rowcount))


def write_votes(votes: Iterable[Vote], path: str | Path) -> int:
    """Write one JSON object per line; if the run is killed, the previous file stays complete."""
    lines = [json.dumps(asdict(vote), ensure_ascii=False) + "\n" for vote in votes]
    write_whole(path, "".join(lines))
    return len(lines)


def read_votes(path: str | Path) -> list[Vote]:
    """The votes of an exported file; `VoteStore.add_votes` merges them without duplicates."""
    votes, name = [], Path(path).name
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
        for line in filter(str.strip, lines):
            vote = Vote(**json.loads(line))
            if any(type(getattr(vote, f.name)) is not f.type for f in fields(Vote)):
                raise TypeError
            votes.append(vote)
    except OSError as error:
        raise VoteError(
            tr(
                "{name} cannot be read ({reason}): check its path.",
                name=name,
                reason=error.strerror,
            )
        ) from None
    except (ValueError, TypeError):
        raise VoteError(
            tr(
                "{name}: vote {number} cannot be read: give a file that write_votes wrote.",
                name=name,
                number=len(votes) + 1,
            )
        ) from None
    return votes


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

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import sqlalchemy as sql

from tests.helpers.databases import PASSWORD
from utils.course import colab
from utils.course.paths import ROOT
from utils.votes import store as preferences
from utils.votes.pairs import shown
from utils.votes.schema import METADATA
from utils.votes.schema import VOTES as TABLE
from utils.votes.store import (
    Vote,
    VoteError,
    chosen_and_rejected,
    open_store,
    read_votes,
    tally,
    to_dataset,
    write_votes,
)

VOTE = Vote("q1", "Vì sao trời xanh?", "Do tán xạ.", "Do biển.", "a", annotator="An")
AWKWARD = (
    "nháy 'đơn' \"kép\" `ngược` \\ %s :name ; DROP TABLE votes; --",
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "dòng một\n\ndòng hai\r\n\tdòng ba\u2028dòng bốn",
    "🐢 👩‍🔬 e\u0301 ệ 漢字 \u202eđảo",
    "",
)


WRITER = """
import sys
from utils.votes.store import Vote, open_store
store = open_store()
name, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    vote = Vote(f"{name}-{number}", "Q", "một " * 50, "hai " * 50, "b", annotator=name)
    # long lines fill the pipe: the writer is never far ahead of its reader
    print(store.add(vote).item.ljust(4000), flush=True)
"""


def writer(url, name, count):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, name, str(count)],
        cwd=ROOT,
        env={**os.environ, "COURSE_VOTES": url, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


# --- What goes in comes out ----------------------------------------------------------------------


def test_a_vote_comes_back_as_it_was_stored(any_store):
    confirmed = [
        any_store.add(replace(VOTE, item=f"q{n}", question=text, answer_b=text, seed=2**40))
        for n, text in enumerate(AWKWARD)
    ]
    assert any_store.votes() == confirmed
    assert [vote.question for vote in confirmed] == list(AWKWARD)
    assert len({vote.key for vote in confirmed}) == len(AWKWARD)
    assert all(vote.voted_at.endswith("+00:00") for vote in confirmed)


def test_what_sql_cannot_hold_is_marked_not_refused(any_store):
    confirmed = any_store.add(replace(VOTE, answer_a="a\x00b\ud800c"))
    assert confirmed.answer_a == "a\ufffdb\ufffdc"
    assert any_store.votes() == [confirmed]


def test_votes_are_found_by_annotator(any_store):
    for annotator, source in (("An", "panel"), ("Bình", "panel"), ("An", "demo")):
        any_store.add(replace(VOTE, item=f"{annotator} {source}", annotator=annotator))
        any_store.add(
            replace(VOTE, item=f"{annotator} {source}", annotator=annotator, source=source)
        )
    assert len(any_store.votes(status=None)) == 6
    assert len(any_store.votes()) == 5  # the demo's vote waits
    assert len(any_store.votes("An", status=None)) == 4
    assert {vote.item for vote in any_store.votes("An")} == {"An panel", "An demo"}
    assert [v.source for v in any_store.votes(source="demo", status="waiting")] == ["demo"]
    assert len(any_store.votes(source=("panel", "demo"), status=("accepted", "waiting"))) == 6
    assert any_store.votes(campaign="another") == []
    assert any_store.votes("Bì") == []


def test_undo_takes_back_the_latest_and_deletes_nothing(any_store):
    first = any_store.add(VOTE)
    other = any_store.add(replace(VOTE, annotator="Bình"))
    demo = any_store.add(replace(VOTE, item="q2", source="demo"))
    second = any_store.add(replace(VOTE, item="q3"))
    assert any_store.undo("An") == second
    assert any_store.undo("An") == demo
    assert any_store.votes() == [first, other]
    assert any_store.undo("An") == first
    assert any_store.undo("An") is None
    assert any_store.votes() == [other]
    with any_store.engine.connect() as connection:
        rows = connection.execute(sql.select(TABLE.c.withdrawn_at)).scalars().all()
    assert len(rows) == 4 and rows.count(None) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"choice": "left"}, "choice is 'left': use one of a, b, tie, skip"),
        ({"annotator": "  "}, "has no annotator"),
        ({"item": ""}, "has no item"),
    ],
)
def test_a_vote_that_says_nothing_is_refused(store, wrong, message):
    with pytest.raises(VoteError, match=message):
        store.add(replace(VOTE, **wrong))
    assert store.votes() == []


# --- Crashes and crowds --------------------------------------------------------------------------


@pytest.mark.parametrize("confirmed_before", [1, 137, 700])
def test_a_killed_writer_loses_no_confirmed_vote(tmp_path, confirmed_before):
    path = tmp_path / "votes.sqlite"
    process = writer(f"sqlite:///{path}", "An", 1000)
    confirmed = [process.stdout.readline().strip() for _ in range(confirmed_before)]
    process.send_signal(signal.SIGKILL)
    confirmed += [line.strip() for line in process.stdout]
    assert process.wait() == -signal.SIGKILL
    assert confirmed_before <= len(confirmed) < 1000
    store = open_store(f"sqlite:///{path}")
    kept = [vote.item for vote in store.votes()]
    assert kept[: len(confirmed)] == confirmed
    assert len(kept) <= len(confirmed) + 1  # one may be committed and not yet reported
    store.engine.dispose()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store.add(VOTE)  # and the file takes the next vote


def test_a_commit_is_on_disk_before_it_is_confirmed(store):
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_eight_processes_write_at_once(new_url):
    writers = [writer(new_url, f"người {number}", 50) for number in range(8)]
    with ThreadPoolExecutor(8) as readers:
        printed = list(readers.map(lambda p: [line.strip() for line in p.stdout], writers))
    assert [process.wait() for process in writers] == [0] * 8
    votes = open_store(new_url).votes()
    assert len(votes) == 400
    assert {vote.item for vote in votes} == {item for items in printed for item in items}
    for number in range(8):  # each writer's votes are in the order in which they were cast
        mine = [vote.item for vote in votes if vote.annotator == f"người {number}"]
        assert mine == printed[number]


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request, tmp_path):
    """A database without a table: all writers try to create it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/a new folder/votes.sqlite"
    url = request.getfixturevalue("postgres")
    store = open_store(url)
    with store.engine.begin() as connection:
        METADATA.drop_all(connection)
    store.engine.dispose()
    return url


def test_threads_share_a_store(any_store):
    def ten(name):
        for number in range(10):
            any_store.add(replace(VOTE, item=f"{name}-{number}", annotator=name))
        return any_store.undo(name).item

    with ThreadPoolExecutor(20) as pool:
        undone = list(pool.map(ten, [f"n{n}" for n in range(20)]))
    assert undone == [f"n{n}-9" for n in range(20)]
    assert len(any_store.votes()) == 180


# --- Connections that drop -----------------------------------------------------------------------


def drop_connections(store):
    """Close all connections, as a restart of the server does."""
    with sql.create_engine(store.engine.url, poolclass=sql.NullPool).begin() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


def test_a_connection_dropped_while_idle_is_renewed(postgres):
    store = open_store(postgres)
    before = len(store.votes())
    drop_connections(store)
    store.add(VOTE)
    drop_connections(store)
    assert len(store.votes()) == before + 1


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
def test_a_connection_dropped_in_the_middle_doubles_no_vote(postgres, monkeypatch, moment):
    store = open_store(postgres)
    while store.undo("An"):
        pass
    commit, drops = store.engine.dialect.do_commit, iter([True])

    def broken_once(connection):
        if not next(drops, False):
            return commit(connection)
        if moment == "after the commit":
            commit(connection)
        drop_connections(store)
        return connection.execute("SELECT 1")  # fails as a commit on a dead connection does

    monkeypatch.setattr(store.engine.dialect, "do_commit", broken_once)
    confirmed = store.add(VOTE)
    assert next(drops, None) is None
    assert store.votes("An") == [confirmed]


def test_a_lost_undo_takes_back_one_vote_only(postgres, monkeypatch):
    store = open_store(postgres)
    while store.undo("An"):
        pass
    first = store.add(VOTE)
    second = store.add(replace(VOTE, item="q2"))
    commit, commits = store.engine.dialect.do_commit, []

    def broken_second(connection):
        commit(connection)
        commits.append(connection)
        if len(commits) == 2:  # the first reads, the second withdraws
            drop_connections(store)
            connection.execute("SELECT 1")

    monkeypatch.setattr(store.engine.dialect, "do_commit", broken_second)
    assert store.undo("An") == second
    assert len(commits) == 3
    assert store.votes("An") == [first]


def test_a_connection_that_stays_down_is_one_sentence(postgres, monkeypatch):
    store = open_store(postgres)
    before = len(store.votes())
    monkeypatch.setattr(store.engine.dialect, "do_commit", lambda c: c.execute("nonsense"))
    with pytest.raises(VoteError, match="nothing was confirmed"):
        store.add(VOTE)
    monkeypatch.undo()
    assert len(store.votes()) == before


def test_a_vote_that_arrives_twice_is_one_vote(any_store):
    confirmed = any_store.add(VOTE)
    assert any_store.add(confirmed) == confirmed
    assert any_store.votes() == [confirmed]


# --- Where the votes lie -------------------------------------------------------------------------


def test_the_store_is_found_by_argument_then_environment_then_artifacts(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.delenv("COURSE_VOTES", raising=False)
    open_store().add(VOTE)
    assert (tmp_path / "artifacts" / "votes.sqlite").exists()
    monkeypatch.setenv("COURSE_VOTES", f"sqlite:///{tmp_path}/class.sqlite")
    assert open_store().votes() == []
    assert (tmp_path / "class.sqlite").exists()
    assert repr(open_store(f"sqlite:///{tmp_path}/mine.sqlite")) == "VoteStore(sqlite mine.sqlite)"


def test_with_keep_on_drive_the_votes_lie_on_drive(tmp_path, monkeypatch):
    """KEEP_ON_DRIVE in the set-up cell calls `keep_on_drive`; the store then needs no setting."""
    mounted = []
    drive = SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(drive=drive))
    monkeypatch.setattr(colab, "DRIVE", tmp_path / "MyDrive" / "preference-tuning-artifacts")
    monkeypatch.setenv("COURSE_ARTIFACTS", str(tmp_path / "lost"))
    monkeypatch.delenv("COURSE_VOTES", raising=False)
    colab.keep_on_drive()
    open_store().add(VOTE)
    assert mounted == [colab.MOUNT] and not (tmp_path / "lost").exists()
    assert (colab.DRIVE / "votes.sqlite").exists()
    assert len(open_store().votes()) == 1  # another session on the same Drive


def test_the_tls_mode_of_the_url_is_honoured(postgres):
    """The tests' server has no TLS, so that a URL which demands it must be refused."""
    wanted = sql.make_url(postgres)
    open_store(wanted.update_query_dict({"sslmode": "disable"}).render_as_string(False))
    for mode, message in (("require", "does not support SSL"), ("nonsense", "sslmode")):
        url = wanted.update_query_dict({"sslmode": mode}).render_as_string(False)
        with pytest.raises(VoteError, match=message) as raised:
            open_store(url)
        assert PASSWORD not in str(raised.value) and "\n" not in str(raised.value)


SECRET = "s3cretword"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"mysql://an:{SECRET}@db/votes", "begins with mysql://"),
        (f"postgresql://an:{SECRET}@db/votes", "begins with postgresql://"),
        (f"postgresql+psycopg://an:{SECRET}@db:port/votes", "not a database URL"),
        (f"an:{SECRET}@db", "not a database URL"),
        (f"postgresql+psycopg://an:{SECRET}@127.0.0.1:1/votes", "127.0.0.1:1/votes cannot be"),
        (f"postgresql+psycopg:///v?host=127.0.0.1&port=1&password={SECRET}", "cannot be reached"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///{folder}/file/votes.sqlite", "cannot be stored in"),
        ("sqlite:///{folder}/file", "file is not a database"),
        ("sqlite:///{folder}", "unable to open database file"),
    ],
)
def test_a_wrong_url_is_one_sentence_without_the_password(tmp_path, url, message):
    (tmp_path / "file").write_text("no folder and no database" * 100)
    with pytest.raises(VoteError) as raised:
        open_store(url.replace("{folder}", str(tmp_path)))
    sentence = str(raised.value)
    assert message in sentence
    assert SECRET not in sentence and "\n" not in sentence and len(sentence) < 320
    assert raised.value.__context__ is None or raised.value.__suppress_context__


def test_a_wrong_password_is_not_repeated(postgres):
    wrong = sql.make_url(postgres).set(password=SECRET).render_as_string(hide_password=False)
    with pytest.raises(VoteError, match="password authentication failed") as raised:
        open_store(wrong)
    assert SECRET not in str(raised.value)
    store = open_store(postgres)
    assert PASSWORD not in repr(store)


def test_postgresql_without_its_driver_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(VoteError, match=r"pip install \"psycopg\[binary\]\""):
        open_store("postgresql+psycopg://an@127.0.0.1/votes")


# --- To files and to training --------------------------------------------------------------------


def test_an_export_comes_back_and_joins_another_store(store, tmp_path):
    for number, text in enumerate(AWKWARD):
        store.add(replace(VOTE, item=f"q{number}", answer_a=text, swapped=number % 2 == 0))
    store.add(replace(VOTE, item="taken back"))
    store.undo("An")
    path = tmp_path / "new" / "votes.jsonl"
    assert write_votes(store.votes(), path) == len(AWKWARD)
    assert read_votes(path) == store.votes()
    assert all(json.loads(line) for line in path.read_bytes().split(b"\n")[:-1])
    other = open_store(f"sqlite:///{tmp_path}/other.sqlite")
    for _ in range(2):  # reading the same file again adds no duplicates
        for vote in read_votes(path):
            other.add(vote)
    assert other.votes() == store.votes()


def test_an_export_brings_its_pairs_and_is_read_twice_without_harm(any_store, tmp_path):
    pair = {"question": "Vì sao?", "first": "Do tán xạ.", "second": "Do biển."}
    screens = [shown(pair, swapped) for swapped in (False, True)]
    cast = [
        Vote(**vars(screen), choice="a", annotator=name, campaign="lớp", key=f"k{name}")
        for screen, name in zip(screens, ("An", "Bình"), strict=True)
    ]
    write_votes(cast, tmp_path / "votes.jsonl")
    read = read_votes(tmp_path / "votes.jsonl")
    assert [any_store.add_votes(read) for _ in range(2)] == [2, 0]
    assert [(v.key, v.swapped) for v in any_store.votes()] == [("kAn", False), ("kBình", True)]
    (found,) = any_store.pairs("lớp")
    assert pair.items() <= found.items()


NUMBERED = {name: "x" for name in ("item", "question", "answer_a", "answer_b", "annotator")}
NUMBERED |= {"choice": "a", "swapped": "no"}  # a word where a truth value must be


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "vote 1 cannot be read"),
        ('{"question": "?"}', "vote 1 cannot"),
        (json.dumps(NUMBERED), "vote 1 cannot"),
        (None, "check its"),
    ],
)
def test_a_file_without_votes_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "votes.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(VoteError, match=message):
        read_votes(path)


def test_a_failing_export_leaves_the_former_file(store, tmp_path, monkeypatch):
    store.add(VOTE)
    path = tmp_path / "votes.jsonl"
    write_votes(store.votes(), path)
    former = path.read_bytes()
    monkeypatch.setattr(preferences.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28)))
    with pytest.raises(OSError):
        write_votes([VOTE] * 3, path)
    assert path.read_bytes() == former
    assert [p.name for p in tmp_path.glob("*votes.jsonl*")] == ["votes.jsonl"]


def test_the_data_set_prefers_what_the_annotator_preferred(store):
    random.seed(3)
    choices = [random.choice(preferences.CHOICES) for _ in range(40)]
    for number, choice in enumerate(choices):
        store.add(replace(VOTE, item=f"q{number}", choice=choice))
    rows = to_dataset(store.votes("An"))
    assert rows.column_names == ["prompt", "chosen", "rejected", "annotator", "item"]
    decided = {f"q{n}": choice for n, choice in enumerate(choices) if choice in "ab"}
    assert {row["item"] for row in rows} == set(decided)
    for row in rows:
        pair = ("Do tán xạ.", "Do biển.")
        assert (row["chosen"], row["rejected"]) == (
            pair if decided[row["item"]] == "a" else pair[::-1]
        )
    counts = tally(store.votes())
    assert counts["votes"] == 40 and counts["pairs"] == len(rows)
    assert counts["ties"] == choices.count("tie") and counts["skips"] == choices.count("skip")
    assert chosen_and_rejected(replace(VOTE, choice="tie")) is None


def test_an_empty_store_is_an_empty_data_set_with_its_columns(store):
    rows = to_dataset(store.votes())
    assert len(rows) == 0 and "chosen" in rows.column_names
    assert tally([]) == {"votes": 0, "pairs": 0, "ties": 0, "skips": 0}


def test_a_file_system_without_shared_memory_keeps_its_own_journal(tmp_path):
    path = tmp_path / "votes.sqlite"
    url = f"sqlite:///file:{path}?vfs=unix-dotfile&uri=true"
    store = open_store(url)  # it ended in an endless loop
    store.close()
    assert path.exists()


def test_a_full_pool_is_one_sentence(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/votes.sqlite")
    store.engine = sql.create_engine(
        store.engine.url, pool_size=1, max_overflow=0, pool_timeout=0.1
    )
    with store.engine.connect(), pytest.raises(VoteError, match="busy, so nothing was confirmed"):
        store.votes()


def test_votes_on_google_drive_have_no_write_ahead_log(tmp_path, monkeypatch):
    """Its file system has no shared memory; a log beside the database would lose votes there."""
    monkeypatch.setattr(colab, "DRIVE", tmp_path / "drive")
    for folder, mode in ((tmp_path / "drive", "delete"), (tmp_path / "laptop", "wal")):
        store = open_store(f"sqlite:///{folder / 'votes.sqlite'}")
        with store.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == mode

"""Who voted on what: items by content, campaigns, quarantine, and stores from before them."""

import contextlib
import itertools
import math
import os
import random
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sql
from sklearn.metrics import cohen_kappa_score

from utils.course.paths import ROOT
from utils.votes.agreement import fleiss_kappa, mean_cohen_kappa, reliable, repeated_items
from utils.votes.pairs import PairError, item_of, pair_of, read_pairs, shown, write_pairs
from utils.votes.panel import simulate
from utils.votes.schema import ACCEPTED, FORMER, VOTES, WAITING
from utils.votes.session import Session
from utils.votes.store import Vote, VoteError, _set_pragmas, open_store
from utils.votes.terminal import label_in_terminal

# the table of version 0.1.0, copied from its database
OLD_TABLE = """CREATE TABLE votes (
    id INTEGER NOT NULL, "key" VARCHAR(32) NOT NULL, item TEXT NOT NULL, question TEXT NOT NULL,
    answer_a TEXT NOT NULL, answer_b TEXT NOT NULL, choice VARCHAR(4) NOT NULL,
    annotator TEXT NOT NULL, model_a TEXT NOT NULL, model_b TEXT NOT NULL, seed BIGINT NOT NULL,
    source TEXT NOT NULL, voted_at VARCHAR(40) NOT NULL, swapped BOOLEAN NOT NULL,
    withdrawn_at VARCHAR(40), PRIMARY KEY (id), UNIQUE ("key"))"""


def drawn(who, count=20):
    """The pairs that one round, or one machine, draws from its model."""
    return [
        {
            "question": f"Câu hỏi {n}?",
            "first": f"Câu trả lời {n} của {who}.",
            "second": f"Một câu trả lời dài hơn hẳn, số {n}, cũng của {who}.",
            "model_first": f"{who}, T = 0.5",
            "model_second": f"{who}, T = 0.6",
        }
        for n in range(count)
    ]


def by_rule(question, a, b):
    """A consistent annotator whose preference depends on the texts alone."""
    return "a" if hash_of(question, a) < hash_of(question, b) else "b"


def hash_of(*texts):
    return item_of({"question": texts[0], "first": texts[1], "second": ""})


# --- The identity of an item ---------------------------------------------------------------------


def test_an_item_is_its_content_and_nothing_else():
    pair = drawn("vòng 1", 1)[0]
    assert item_of(pair) == item_of({**pair, "item": "draw 0, question 5"})
    others = [{**pair, name: text + "!"} for name, text in pair.items()]
    assert len({item_of(each) for each in [pair, *others]}) == 6
    joined = {"question": "a b", "first": "c", "second": "d"}
    assert item_of(joined) != item_of({**joined, "question": "a", "first": "b c"})


def test_a_screen_and_its_pair_have_one_item_on_either_side():
    for pair in [*drawn("x", 3), {"question": "\x00?", "first": "\ud800", "second": "b"}]:
        for swapped in (False, True):
            screen = shown(pair, swapped)
            assert screen.item == item_of(pair) == item_of(pair_of(screen))
            assert (screen.answer_a == pair_of(screen)["first"]) != swapped


def test_a_consistent_annotator_stays_consistent_in_a_second_round(store):
    """By the former names ("draw 0, question 5"), self-agreement fell from 1.00 to about a half."""
    for round_ in ("vòng 1", "vòng 2"):
        pairs = store.add_pairs(round_, drawn(round_))
        simulate(pairs, store, by_rule, "simulated: An", repeat_share=0.5, campaign=round_)
    everything = store.votes()
    assert len(everything) == 60
    assert repeated_items(everything)["simulated: An"].value == 1
    assert repeated_items(everything)["simulated: An"].count == 20
    assert reliable(everything).standings[0].kept
    named = [replace(v, item=v.question) for v in everything]  # the names of the first version
    assert repeated_items(named)["simulated: An"].value < 0.8
    second = store.votes(campaign="vòng 2")
    assert len(second) == 30 and all("vòng 2" in v.answer_a for v in second)


def test_two_machines_meet_only_in_pairs_that_are_the_same(store):
    shared = drawn("chung", 6)
    lab, t4 = [*shared, *drawn("lab", 8)], [*shared, *drawn("t4", 8)]
    for machine, pairs in (("lab", lab), ("t4", t4)):
        simulate(pairs, store, by_rule, f"simulated: {machine}", repeat_share=0, campaign="chung")
    kept = reliable(store.votes(campaign="chung"))
    assert [(s.shared, s.kappa) for s in kept.standings] == [(6, 1.0), (6, 1.0)]
    assert len(kept.votes) == 22 and kept.split == []


def test_thirty_annotators_agree_in_one_campaign_and_are_not_mixed_with_another(any_store):
    any_store.add_pairs("lớp 10A", drawn("một", 10))
    any_store.add_pairs("lớp 10B", drawn("hai", 10))

    def annotate(number):
        campaign = "lớp 10A" if number % 2 else "lớp 10B"
        pairs = any_store.pairs(campaign)
        simulate(pairs, any_store, by_rule, f"simulated: {number}", number, campaign=campaign)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(annotate, range(30)))
    for campaign in ("lớp 10A", "lớp 10B"):
        votes = any_store.votes(campaign=campaign)
        assert len(votes) == 15 * 11
        assert {v.item for v in votes} == {item_of(p) for p in any_store.pairs(campaign)}
        result = reliable(votes)
        assert all(s.kept and s.kappa == 1 for s in result.standings)
        assert len(result.standings) == 15 and len(result.votes) == 10
    assert [(c.name, c.pairs, c.votes) for c in any_store.campaigns()] == [
        ("lớp 10A", 10, 165),
        ("lớp 10B", 10, 165),
    ]


def test_pairs_are_added_once_and_keep_their_order(any_store):
    pairs = drawn("a", 5)
    assert any_store.add_pairs("  chiến   dịch ", pairs[:3]) == pairs[:3]
    assert any_store.add_pairs("chiến dịch", pairs) == pairs
    assert any_store.add_pairs("chiến dịch", []) == pairs
    assert any_store.pairs("không có") == []
    with pytest.raises(PairError, match="1 to 80 characters"):
        any_store.add_pairs(" ", pairs)


# --- Quarantine ----------------------------------------------------------------------------------


def test_votes_from_an_open_page_wait_until_a_teacher_decides(any_store):
    pairs = any_store.add_pairs("lớp", drawn("a", 2))
    for source, name in (("panel", "An"), ("class", "Bình"), ("class", "Chi"), ("demo", "khách")):
        screen = shown(pairs[0], False)
        any_store.add(
            Vote(**vars(screen), choice="a", annotator=name, source=source, campaign="lớp")
        )
    assert [v.annotator for v in any_store.votes(campaign="lớp")] == ["An"]
    assert len(any_store.votes(campaign="lớp", status=WAITING)) == 3
    assert any_store.decide(ACCEPTED, "lớp", annotators=["Bình"]) == 1
    assert any_store.decide(ACCEPTED, "lớp", annotators=["Bình"]) == 0
    assert [v.annotator for v in any_store.votes(campaign="lớp")] == ["An", "Bình"]
    assert any_store.decide("refused", "lớp") == 3  # not An's, which did not come from a page
    assert [v.annotator for v in any_store.votes(campaign="lớp")] == ["An"]
    assert any_store.decide(ACCEPTED, "another") == 0


def test_a_visitor_who_takes_the_name_of_an_annotator_changes_nothing_for_them(any_store):
    pairs = any_store.add_pairs("lớp", drawn("a", 2))
    mine = Session(pairs, any_store, "An", repeat_share=0, campaign="lớp")
    own = mine.vote("a")
    for pair in pairs:
        for source in ("class", "demo"):
            facts = {"choice": "b", "annotator": "An", "source": source, "campaign": "lớp"}
            any_store.add(Vote(**vars(shown(pair, False)), **facts))
    again = Session(pairs, any_store, "An", repeat_share=0, source="terminal", campaign="lớp")
    assert (again.done, again.current.item) == (1, item_of(pairs[1]))
    assert again.undo() == own and again.undo() is None
    left = any_store.votes("An", campaign="lớp", status=None)
    assert sorted(vote.source for vote in left) == ["class", "class", "demo", "demo"]


def test_a_changed_vote_replaces_the_former_one_and_stays_in_the_history(any_store):
    screen = shown(drawn("a", 1)[0], True)
    vote = Vote(**vars(screen), choice="a", annotator="An", source="class", campaign="lớp")
    first = any_store.cast(replace(vote, key="1" * 32))
    second = any_store.cast(replace(vote, choice="b", key="2" * 32))
    assert any_store.cast(first) == first  # a request that was sent again after the second one
    assert any_store.votes(status=None) == [second]
    with any_store.engine.connect() as connection:
        rows = connection.execute(sql.select(VOTES.c.choice, VOTES.c.withdrawn_at)).all()
    assert [(choice, bool(time)) for choice, time in rows] == [("a", True), ("b", False)]


def test_two_requests_at_once_are_one_vote(any_store):
    screen = shown(drawn("a", 1)[0], True)
    vote = Vote(**vars(screen), choice="a", annotator="An", source="class", campaign="lớp")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: any_store.cast(replace(vote, choice="ab"[n % 2])), range(24)))
    assert len(any_store.votes(status=None)) == 1
    with pytest.raises(VoteError):  # not even by the method that replaces nothing
        any_store.add(vote)


def test_a_name_is_unique_in_its_campaign(any_store):
    first = any_store.join("lớp", "Lê An")
    assert first and any_store.join("lớp", "lê an") is None
    assert any_store.join("lớp khác", "Lê An") not in (None, first)
    assert any_store.voters("lớp") == {first: "Lê An"}
    assert any_store.set_free("lớp", "Lê An") and not any_store.set_free("lớp", "nobody")
    again = any_store.join("lớp", "LÊ AN")
    assert again not in (None, first) and any_store.join("lớp", "Lê An") is None
    assert any_store.voters("lớp") == {again: "Lê An"}


# --- A store from before campaigns ---------------------------------------------------------------


def old_store(path):
    """Two rounds of version 0.1.0: the same item names for different texts; a demo vote."""
    with sqlite3.connect(path) as connection:
        connection.execute(OLD_TABLE)
        connection.execute("CREATE INDEX ix_votes_annotator ON votes (annotator)")
        number = itertools.count()
        for round_ in ("vòng 1", "vòng 2"):
            for n, pair in enumerate(drawn(round_, 8)):
                for swapped in (False, True):
                    screen = shown(pair, swapped)
                    choice = by_rule(screen.question, screen.answer_a, screen.answer_b)
                    insert(connection, next(number), f"draw 0, question {n}", screen, choice)
        demo = shown(drawn("demo", 1)[0], False)
        insert(connection, next(number), "demo-0123456789abcdef", demo, "a", "khách", "demo")
        gone = shown(drawn("vòng 1", 1)[0], False)
        insert(connection, next(number), "draw 0, question 0", gone, "b", "An", "panel", "2026")


def insert(connection, number, item, s, choice, annotator="An", source="panel", withdrawn=None):
    texts = (s.question, s.answer_a, s.answer_b, choice, annotator, s.model_a, s.model_b)
    row = (
        number + 1,
        f"{number:032x}",
        item,
        *texts,
        0,
        source,
        "2026-01-01",
        s.swapped,
        withdrawn,
    )
    connection.execute("INSERT INTO votes VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", row)


def test_an_older_store_is_migrated_with_all_of_its_votes(tmp_path):
    path = tmp_path / "votes.sqlite"
    old_store(path)
    with sqlite3.connect(path) as connection:
        before = connection.execute("SELECT key, question, choice FROM votes").fetchall()
    with ThreadPoolExecutor(6) as pool:  # several programs open it at once
        stores = list(pool.map(lambda _: open_store(f"sqlite:///{path}"), range(6)))
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT key, question, choice FROM votes").fetchall() == before
        assert connection.execute("SELECT count(*) FROM votes WHERE withdrawn_at = '2026'")
    votes = stores[0].votes(campaign=FORMER)
    assert len(votes) == 32 == len(stores[0].votes())
    assert all(v.item == item_of(pair_of(v)) for v in votes)
    agreement = repeated_items(votes)["An"]
    assert (agreement.value, agreement.count) == (1.0, 16)
    assert [v.annotator for v in stores[0].votes(campaign="demo", status=WAITING)] == ["khách"]
    stores[0].add(replace(votes[0], key="", campaign="mới"))  # and the file takes new votes
    assert len(open_store(f"sqlite:///{path}").votes()) == 33


@pytest.mark.parametrize(("message", "tries"), [("database is locked", 3), ("disk I/O error", 1)])
def test_the_journal_mode_is_set_again_while_another_program_changes_it(message, tries):
    connection = sqlite3.connect(":memory:")
    asked = []

    class Contended:  # SQLite refuses at once here, whatever the busy timeout is
        def execute(self, statement):
            if not statement.startswith("PRAGMA journal_mode = "):
                mode = "wal" if len(asked) == 3 else "delete"
                return connection.execute("SELECT ?", (mode,))
            asked.append(statement)
            raise sqlite3.OperationalError(message)

    with contextlib.suppress(sqlite3.OperationalError):
        _set_pragmas(Contended(), on_drive=False)
    assert len(asked) == tries


def test_a_migration_that_is_interrupted_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "votes.sqlite"
    old_store(path)
    with monkeypatch.context() as broken:
        broken.setattr("utils.votes.schema.pair_of", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            open_store(f"sqlite:///{path}")
    with sqlite3.connect(path) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        assert tables.fetchall() == [("votes",)]
        assert len(connection.execute("SELECT * FROM votes").fetchone()) == 15
    assert len(open_store(f"sqlite:///{path}").votes()) == 32


# --- Files of pairs ------------------------------------------------------------------------------


def test_pairs_go_to_another_machine_and_keep_their_items(tmp_path):
    pairs = [*drawn("a", 3), {"question": "dòng\u20281", "first": "", "second": "🐢 \ud800"}]
    assert write_pairs(tmp_path / "pairs.json", " chiến  dịch", pairs) == 4
    name, back = read_pairs(tmp_path / "pairs.json")
    assert name == "chiến dịch"
    assert [item_of(p) for p in back] == [item_of(p) for p in pairs]
    assert back[0] == pairs[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("[1", "is not a file of pairs"),
        ("[]", "is not a file of pairs"),
        ('{"campaign": "x", "pairs": [1]}', "is not a file of pairs"),
        ('{"campaign": "", "pairs": []}', "1 to 80 characters"),
        ('{"campaign": "x", "pairs": [{"question": "?", "first": 1}]}', "no first"),
    ],
)
def test_a_file_that_holds_no_pairs_is_named(tmp_path, text, message):
    path = tmp_path / "my pairs.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PairError, match=message):
        read_pairs(path)


# --- Many annotators -----------------------------------------------------------------------------


def opinions(table):
    """Annotator -> a letter per item ("f", "s", "t", "-" for none), as votes."""
    letters = {"f": "a", "s": "b", "t": "tie", "-": "skip"}
    return [
        Vote(f"q{n}", "?", "x", "y", letters[letter], name)
        for name, line in table.items()
        for n, letter in enumerate(line)
    ]


def test_fleiss_kappa_by_hand():
    # Three annotators, four items: fff, ffs, sss, sst.
    # P = (1, 1/3, 1, 1/3), mean 2/3; five first, six second, one tie: p = (5.5, 5.5, 1) / 12,
    # P_e = 61.5/144; κ = (96 - 61.5) / (144 - 61.5)
    found = fleiss_kappa(opinions({"An": "ffss", "Bình": "ffss", "Chi": "fsst"}))
    assert found.value == pytest.approx(34.5 / 82.5) and found.count == 4
    assert fleiss_kappa(opinions({"An": "ffss", "Bình": "ffss"})).value == 1
    assert fleiss_kappa(opinions({"An": "ff", "Bình": "ff"})).value == 1
    assert math.isnan(fleiss_kappa(opinions({"An": "tt", "Bình": "tt"})).value)
    assert math.isnan(fleiss_kappa(opinions({"An": "ff"})).value) and fleiss_kappa([]).count == 0


def test_fleiss_kappa_of_coins_is_about_zero_and_its_interval_shrinks_with_agreement():
    generator = random.Random(3)
    coins = {f"n{n}": "".join(generator.choice("fst") for _ in range(60)) for n in range(12)}
    found = fleiss_kappa(opinions(coins))
    assert found.low < 0 < found.high and abs(found.value) < 0.05
    few = fleiss_kappa(opinions({name: line[:10] for name, line in coins.items()}))
    assert few.high - few.low > found.high - found.low


def test_the_mean_of_cohens_kappa_is_that_of_all_couples():
    generator = random.Random(4)
    truth = [generator.choice("fst") for _ in range(30)]
    table = {name: "".join(generator.choice([t, t, "f", "-"]) for t in truth) for name in "ABCDE"}
    kappas = []
    for one, other in itertools.combinations(table.values(), 2):
        both = [(a, b) for a, b in zip(one, other, strict=True) if "-" not in (a, b)]
        # each item a second time with the answers' names exchanged: then both are equally likely
        exchanged = [tuple(str.translate(x, {102: "s", 115: "f"}) for x in pair) for pair in both]
        kappas.append(cohen_kappa_score(*map(list, zip(*both, *exchanged, strict=True))))
    found = mean_cohen_kappa(opinions(table))
    assert found.value == pytest.approx(sum(kappas) / 10)
    assert found.low < found.value < found.high


def test_the_names_of_the_answers_do_not_change_the_agreement():
    """A class that nearly always prefers the first answer agrees; it does not vote by chance."""
    generator = random.Random(5)
    better_first = {
        f"n{n}": "".join("s" if generator.random() < 0.05 else "f" for _ in range(20))
        for n in range(10)
    }
    exchange = {102: "s", 115: "f"}
    renamed = {
        name: "".join(x.translate(exchange) if n % 2 else x for n, x in enumerate(line))
        for name, line in better_first.items()
    }
    for kappa in (fleiss_kappa, mean_cohen_kappa):
        found = kappa(opinions(better_first))
        assert found.value == pytest.approx(kappa(opinions(renamed)).value, abs=0.02)
        assert found.value > 0.7
    assert all(standing.kept for standing in reliable(opinions(better_first)).standings)


# --- The terminal --------------------------------------------------------------------------------


def types(monkeypatch, *typed):
    line = iter(typed)

    def answer(prompt=""):
        try:
            return next(line)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)


def test_the_terminal_asks_the_same_and_continues_what_the_panel_began(store, monkeypatch, capsys):
    pairs = store.add_pairs("lớp", drawn("a", 4))
    settings = {"seed": 4, "repeat_share": 0, "campaign": "lớp"}
    Session(pairs, store, "An", **settings).vote("a")
    types(monkeypatch, "", "simulated: An", "An", "B", "\x1b[2Jnonsense", "t", "u", "q")
    assert label_in_terminal(pairs, store, **settings) == 2
    printed = capsys.readouterr().out
    cast = [(v.choice, v.source, v.campaign) for v in store.votes("An")]
    assert cast == [("a", "panel", "lớp"), ("b", "terminal", "lớp")]
    assert "[2 / 4] Câu hỏi 1?" in printed and "nonsense” is not a command" in printed
    screen = Session(pairs, store, "An", **settings).queue[1]
    assert printed.index(screen.answer_a) < printed.index(screen.answer_b)
    assert "\x1b" not in printed


def test_the_end_of_input_is_a_rest_and_a_lost_vote_is_asked_again(store, monkeypatch, capsys):
    types(monkeypatch)
    assert label_in_terminal(drawn("a"), store) == 0
    types(monkeypatch, "u", "a", "b")
    add, failures = store.add, iter([VoteError("The votes cannot be reached.")])

    def add_later(vote):
        if error := next(failures, None):
            raise error
        return add(vote)

    monkeypatch.setattr(store, "add", add_later)
    assert label_in_terminal(drawn("a"), store, "An") == 1
    printed = capsys.readouterr().out
    assert "no vote to take back" in printed and "The votes cannot be reached." in printed
    assert [v.choice for v in store.votes("An")] == ["b"]


def test_a_store_that_cannot_be_read_is_one_sentence_in_the_terminal(store, monkeypatch, capsys):
    def unreachable(*_, **__):
        raise VoteError("The votes cannot be reached.")

    monkeypatch.setattr(store, "votes", unreachable)
    assert label_in_terminal(drawn("a"), store, "An") == 0
    assert capsys.readouterr().out == "The votes cannot be reached.\n"


def test_an_answer_cannot_steer_the_terminal(store, monkeypatch, capsys):
    types(monkeypatch, "q")
    hostile = {**drawn("a", 1)[0], "first": "\x1b[2Jxoá\rmàn hình\nđỏ\x9b31m"}
    label_in_terminal([hostile], store, "An", repeat_share=0)
    printed = capsys.readouterr().out
    assert not set(printed) & {"\x1b", "\r", "\x9b"} and "xoámàn hình\nđỏ" in printed


def label(folder, *options, typed=""):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "label.py"), *options],
        input=typed,
        cwd=folder,
        env={**os.environ, "COURSE_VOTES": f"sqlite:///{folder}/votes.sqlite", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
    )


def test_make_label_votes_and_takes_its_pairs_to_another_machine(tmp_path):
    done = label(tmp_path)
    assert done.returncode == 1 and "has no pairs to vote on: run notebook 07" in done.stderr
    write_pairs(tmp_path / "pairs.json", "lớp 10A", drawn("a", 3))
    done = label(tmp_path, "--import", "pairs.json", "--name", "An", typed="a\nq\n")
    assert done.returncode == 0 and "lớp 10A: 3 pairs" in done.stdout
    store = open_store(f"sqlite:///{tmp_path}/votes.sqlite")
    (vote,) = store.votes(campaign="lớp 10A", source="terminal")
    assert (vote.annotator, vote.choice) == ("An", "a")
    assert "lớp 10A: 3 pairs, 1 votes" in label(tmp_path, "--list").stdout
    label(tmp_path, "--campaign", "lớp 10A", "--export", "again.json")
    assert read_pairs(tmp_path / "again.json") == ("lớp 10A", drawn("a", 3))
    wrong = label(tmp_path, "--campaign", "lớp 12")
    assert wrong.returncode == 1 and "use one of lớp 10A" in wrong.stderr


def test_make_label_accepts_the_votes_that_wait(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/votes.sqlite")
    for number, name in enumerate(["An", "Bình", "An"]):
        screen = shown(drawn("a")[number], False)
        facts = {"choice": "a", "annotator": name, "source": "demo", "campaign": "demo"}
        store.add(Vote(**vars(screen), **facts))
    done = label(tmp_path, "--accept", "demo", "--name", "An")
    assert "An: a · Câu hỏi 2?" in done.stdout and "2 votes of demo accepted" in done.stdout
    assert [vote.annotator for vote in store.votes(campaign="demo")] == ["An", "An"]
    assert "3 votes of demo refused" in label(tmp_path, "--refuse", "demo").stdout
    assert store.votes(campaign="demo") == [] == store.votes(campaign="demo", status=WAITING)
    wrong = label(tmp_path, "--accept", "lớp")
    assert wrong.returncode == 1 and "'lớp' has no vote" in wrong.stderr

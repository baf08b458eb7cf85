"""The class page by HTTP: joining, voting, figures, the teacher, and everybody else."""

import ast
import json
import random
import re
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sql

from tests.helpers.classes import ADDRESS, CAMPAIGN, Visitor, desk, pairs
from tools.classroom import Fair, chosen_campaign
from utils.classroom import app
from utils.classroom.app import STATIC, build
from utils.classroom.figures import disagreement
from utils.classroom.room import LETTERS, addresses, open_room, tidy_name
from utils.classroom.security import MAX_BODY, Buckets, Refusal, Signer
from utils.classroom.words import WORDS
from utils.votes.agreement import fleiss_kappa, preference
from utils.votes.pairs import campaign_name, item_of
from utils.votes.schema import PROMPTS, VOTES, WAITING


@pytest.fixture
def here(store, tmp_path):
    return desk(store, tmp_path)


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found


# --- A class votes -------------------------------------------------------------------------------


def test_a_student_joins_votes_and_changes_a_vote(here):
    an = Visitor(here)
    assert an.get("/api/hello").json() == {
        "name": None,
        "campaign": None,
        "code": True,
        "prompts": False,
    }
    assert an.get("/api/pairs").json()["error"] == "join"
    assert an.joins("  Lê   An ", here.room.code.lower()).json() == {"name": "Lê An"}
    shown = an.get("/api/pairs").json()["pairs"]
    assert {row["item"] for row in shown} == {item_of(pair) for pair in pairs()}
    assert set(shown[0]) == {"item", "question", "a", "b", "choice"}  # the models stay hidden
    assert an.votes(shown[0]["item"], "a").json() == {"item": shown[0]["item"], "choice": "a"}
    assert an.votes(shown[0]["item"], "tie", "another-click").json()["choice"] == "tie"
    assert an.get("/api/pairs").json()["pairs"] == [{**shown[0], "choice": "tie"}, *shown[1:]]
    (vote,) = here.room.store.votes(campaign=CAMPAIGN, status=WAITING)
    assert (vote.annotator, vote.choice, vote.source) == ("Lê An", "tie", "class")
    assert (vote.answer_a, vote.answer_b) == (shown[0]["a"], shown[0]["b"])
    with here.room.store.engine.connect() as connection:  # the history is kept
        rows = connection.execute(sql.select(VOTES.c.choice, VOTES.c.withdrawn_at)).all()
    assert [(choice, bool(time)) for choice, time in rows] == [("a", True), ("tie", False)]


def test_thirty_voters_lose_no_vote_and_double_none(any_store, tmp_path):
    here = desk(any_store, tmp_path)
    app = build(here, Buckets(1e6, 1e6))
    here.room.requests = Buckets(1e6, 1e6)

    def person(number):
        chance, visitor = random.Random(number), Visitor(here, app)
        assert visitor.joins(f"Học sinh {number}").status_code == 200
        cast = {}
        for row in visitor.get("/api/pairs").json()["pairs"]:
            choice = "a" if len(row["a"]) > len(row["b"]) else "b"
            choice = chance.choice([choice] * 4 + ["tie"])
            for _ in range(chance.choice([1, 1, 2])):  # some answers get lost: the page asks again
                answer = visitor.votes(row["item"], choice, f"click on {row['item']}")
                assert answer.status_code == 200
            cast[row["item"]] = choice
        return f"Học sinh {number}", cast

    with ThreadPoolExecutor(10) as pool:
        cast = dict(pool.map(person, range(30)))
    votes = here.room.votes()
    assert len(votes) == 30 * 20
    assert {(v.annotator, v.item): v.choice for v in votes} == {
        (name, item): choice for name, choices in cast.items() for item, choice in choices.items()
    }
    found = Visitor(here, app).teaches().get("/api/projector").json()
    assert (found["joined"], found["voters"], found["tally"]["votes"]) == (30, 30, 600)
    assert found["fleiss"]["value"] == pytest.approx(fleiss_kappa(votes).value)
    assert found["cohen"]["low"] <= found["cohen"]["value"] <= found["cohen"]["high"]
    assert found["position"]["low"] < 0.5 < found["position"]["high"]  # the sides were drawn
    first = pairs()[0]
    mine = [preference(vote) for vote in votes if vote.item == item_of(first)]
    assert found["items"][0]["votes"] == {
        name: mine.count(name) for name in ("first", "second", "tie", "skip")
    }
    divided = [row["disagreement"] for row in found["talk"]]
    assert divided == sorted(divided, reverse=True) and len(divided) == 5


def test_two_who_join_at_one_moment_are_both_known(here, monkeypatch):
    both, read = threading.Event(), here.room.store.voters

    def slow(campaign):  # the first reader holds an old list until the second has a newer one
        found = read(campaign)
        if len(found) == 1:
            both.wait(0.5)
        else:
            both.set()
        return found

    monkeypatch.setattr(here.room.store, "voters", slow)
    visitors = [Visitor(here), Visitor(here)]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(visitors[0].joins, "An")
        until(lambda: read(CAMPAIGN))
        assert visitors[1].joins("Bình").status_code == first.result().status_code == 200
    assert sorted(here.room.names.values()) == ["An", "Bình"]
    assert [visitor.get("/api/pairs").status_code for visitor in visitors] == [200, 200]


def test_a_restart_keeps_the_telephones_logged_in_and_their_votes(store, tmp_path):
    before = desk(store, tmp_path)
    an = Visitor(before)
    an.joins("An")
    shown = an.get("/api/pairs").json()["pairs"]
    an.votes(shown[0]["item"], "b")
    after = desk(store, tmp_path)  # a new process reads the same folder
    again = Visitor(after)
    again.cookies = an.cookies
    assert after.room.code == before.room.code
    assert again.get("/api/hello").json()["name"] == "An"
    assert again.get("/api/pairs").json()["pairs"] == [{**shown[0], "choice": "b"}, *shown[1:]]
    (kept,) = tmp_path.glob("class-*.json")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_name_is_taken_until_the_teacher_frees_it(here):
    an, other, teacher = Visitor(here), Visitor(here), Visitor(here).teaches()
    an.joins("An")
    item = item_of(pairs()[0])
    an.votes(item, "a")
    assert other.joins("AN").json()["error"] == "taken"
    teacher.tell("/api/free", name="An")
    assert an.votes(item, "b", "a-later-click").status_code == 401  # the lost telephone
    assert other.joins("An").status_code == 200
    assert other.votes(item, "b", "a-later-click").status_code == 200
    assert [v.choice for v in here.room.votes()] == ["b"]


def test_a_join_whose_answer_was_lost_can_be_sent_again(here):
    first, again, other = Visitor(here), Visitor(here), Visitor(here)
    for visitor in (first, again):
        answer = visitor.tell("/api/join", code=here.room.code, name="An", key="k" * 32)
        assert answer.json() == {"name": "An"}
    assert len(here.room.names) == 1
    for key in ("x" * 32, "k" * 31, None):
        answer = other.tell("/api/join", code=here.room.code, name="An", key=key)
        assert answer.json()["error"] == "taken"


def test_two_voters_in_one_browser_do_not_vote_for_each_other(here):
    browser = Visitor(here)
    browser.joins("Chi")
    first = browser.get("/api/pairs").json()["pairs"][0]
    browser.joins("Dũng")  # in another tab: the cookie is his now
    vote = {"item": first["item"], "choice": "a", "key": "a-key-of-a-click"}
    assert browser.tell("/api/vote", **vote, name="Chi").json()["error"] == "join"
    assert browser.tell("/api/vote", **vote, name="Dũng").status_code == 200
    assert {vote.annotator for vote in here.room.votes()} == {"Dũng"}


def test_a_full_class_still_lets_its_own_voters_in(here, monkeypatch):
    monkeypatch.setattr("utils.classroom.room.MAX_VOTERS", 1)
    an, other = Visitor(here), Visitor(here)
    for _ in range(2):  # the first answer got lost
        join = an.tell("/api/join", code=here.room.code, name="An", key="k" * 32)
        assert join.status_code == 200
    assert other.joins("Bình").json()["error"] == "full"
    here.room.set_free("An")
    assert other.joins("An").status_code == 200


@pytest.mark.parametrize(
    "name", ["", "   ", "x" * 31, "a\u202eb", "a\x00", "simulated: An", "\ud800"]
)
def test_a_name_that_cannot_be_read_is_refused(here, name):
    body = json.dumps({"code": here.room.code, "name": name})
    visitor = Visitor(here)
    visitor.headers["content-type"] = "application/json"
    assert visitor.post("/api/join", content=body).json()["error"] == "name"


def test_a_vote_on_anything_else_is_refused(here):
    an = Visitor(here)
    an.joins("An")
    for item, choice, key in (
        ("nothing", "a", "k" * 10),
        (item_of(pairs()[0]), "c", "k" * 10),
        (item_of(pairs()[0]), "a", "short"),
    ):
        assert an.votes(item, choice, key).json()["error"] == "vote"
    assert an.tell("/api/vote", item=1).json()["error"] == "field"
    assert here.room.votes() == []


def test_two_voters_who_send_the_same_key_do_not_touch_each_other(here):
    item = item_of(pairs()[0])
    for name, choice in (("An", "a"), ("Bình", "b")):
        visitor = Visitor(here)
        visitor.joins(name)
        visitor.votes(item, choice, "the-same-key")
    assert [(v.annotator, v.choice) for v in here.room.votes()] == [("An", "a"), ("Bình", "b")]


# --- Who may not -----------------------------------------------------------------------------


def test_a_cookie_that_was_changed_or_stolen_from_another_class_is_nobody(here, tmp_path):
    an = Visitor(here)
    an.joins("An")
    good = an.cookies["voter"]
    body, _, mark = good.rpartition(".")
    other = Signer(b"another key").sign({"voter": next(iter(here.room.names))})
    late = Signer(here.room.signer.key, clock=lambda: time.time() - 13 * 3600)
    for bad in (
        f"{body}.{mark[:-1]}{'0' if mark[-1] != '0' else '1'}",
        f"{body[:-2]}AA.{mark}",
        "x" * 5000,
        ".",
        "ú.ú",
        other,
        late.sign({"voter": next(iter(here.room.names))}),
        here.room.signer.sign({"voter": "unknown"}),
    ):
        visitor = Visitor(here)
        answer = visitor.get("/api/pairs", headers={"cookie": f"voter={bad}".encode()})
        assert answer.status_code == 401, bad
    teacher = Visitor(here)  # a voter's cookie does not open the teacher's page
    assert teacher.get("/api/teacher", headers={"cookie": f"teacher={good}"}).status_code == 401
    flags = Visitor(here).joins("Bình").headers["set-cookie"].lower()
    assert "httponly" in flags and "samesite=strict" in flags


def test_a_wrong_code_is_refused_and_many_are_slowed_down(here):
    visitor = Visitor(here)
    answers = [visitor.joins(f"n{n}", "ZZZZZZ").json()["error"] for n in range(12)]
    assert answers[:10] == ["code"] * 10 and answers[10:] == ["wait"] * 2
    assert visitor.joins("An").json()["error"] == "wait"  # guessing on does not help
    assert Visitor(here, client=("192.168.1.78", 1)).joins("An").status_code == 200
    assert len(here.room.code) == 6 and set(here.room.code) <= set(LETTERS)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://192.168.1.20:8000", None]
)
def test_another_page_cannot_send_anything(here, origin):
    an = Visitor(here)
    an.joins("An")
    del an.headers["origin"]
    headers = {} if origin is None else {"origin": origin}
    answer = an.post(
        "/api/vote", json={"item": "x", "choice": "a", "key": "k" * 10}, headers=headers
    )
    assert (answer.status_code, answer.json()["error"]) == (403, "origin")
    if origin:
        assert an.get("/api/pairs", headers=headers).status_code == 403
    assert an.get("/api/pairs", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    as_form = {"origin": ADDRESS, "content-type": "text/plain"}  # what a form can send
    assert an.post("/api/vote", content="{}", headers=as_form).status_code == 415


@pytest.mark.parametrize("host", ["http://evil.example:8000", "http://192.168.1.20.evil.example"])
def test_a_foreign_name_that_leads_here_is_not_answered(here, host):
    assert Visitor(here, host=host).get("/").status_code == 403


def test_without_a_code_only_this_machine_is_answered(store, tmp_path):
    here = desk(store, tmp_path, local=True)
    assert here.room.code is None
    assert Visitor(here).get("/").status_code == 403
    local = Visitor(here, host="http://127.0.0.1:8000")
    assert local.get("/").status_code == 200 and local.joins("An", "").status_code == 200


def test_a_large_body_is_not_parsed(here):
    visitor = Visitor(here)
    visitor.headers["content-type"] = "application/json"
    assert visitor.post("/api/join", content=b"[" * (MAX_BODY + 1)).status_code == 413

    def chunks():
        for _ in range(100):
            yield b"[" * 1000

    assert visitor.post("/api/join", content=chunks()).status_code == 413  # no Content-Length
    assert visitor.post("/api/join", content=b"[" * MAX_BODY).json()["error"] == "json"
    assert visitor.post("/api/join", content=b"{1").json()["error"] == "json"
    assert visitor.get("/?" + "x" * 300).status_code == 414
    assert visitor.delete("/api/join").status_code == 405


def test_a_voter_who_asks_too_often_waits_and_the_others_do_not(here):
    now = [0.0]  # the server's clock: on a slow machine a real one would fill the bucket again
    here.room.requests.clock = lambda: now[0]
    busy, calm = Visitor(here), Visitor(here)
    busy.joins("An")
    calm.joins("Bình")
    found = [busy.get("/api/pairs").status_code for _ in range(32)]
    assert found == [200] * 30 + [429] * 2
    assert calm.get("/api/pairs").status_code == 200
    now[0] = 0.2  # five requests per second
    assert [busy.get("/api/pairs").status_code for _ in range(2)] == [200, 429]


def test_one_address_cannot_keep_the_server_busy(here):
    visitor = Visitor(here, build(here, Buckets(1, 5, clock=lambda: 0.0)))
    found = [visitor.get("/static/class.css").status_code for _ in range(8)]
    assert found == [200] * 5 + [429] * 3


def test_one_address_cannot_hold_every_connection(monkeypatch):
    monkeypatch.setattr(Fair, "MOST", 2)
    monkeypatch.setattr(Fair.__base__, "connection_made", lambda *_: None)
    monkeypatch.setattr(Fair.__base__, "connection_lost", lambda *_: None)

    def opened(address):
        ended, connection = [], object.__new__(Fair)
        connection.connection_made(
            SimpleNamespace(
                get_extra_info=lambda _: (address, 1), abort=lambda: ended.append(address)
            )
        )
        return connection, bool(ended)

    found = [opened(address) for address in ("10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2")]
    assert [ended for _, ended in found] == [False, False, True, False]
    for connection, _ in found:
        connection.connection_lost(None)
    assert not Fair.held and opened("10.0.0.1")[1] is False
    Fair.held.clear()


def test_the_memory_of_the_rates_is_bounded_and_time_fills_a_bucket():
    now = [0.0]
    buckets = Buckets(rate=1, burst=2, kept=10, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    now[0] = 1.0
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    for number in range(100):
        buckets.take(str(number))
    assert len(buckets._left) == 10


def test_every_answer_forbids_foreign_content(here):
    visitor = Visitor(here)
    for path in ("/", "/teacher", "/projector", "/static/common.js", "/api/hello", "/nothing"):
        answer = visitor.get(path)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "//" not in answer.text.replace("http://", "") or path.endswith(".js")
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/student.html", "/docs"):
        assert visitor.get(path).status_code == 404


# --- The teacher ---------------------------------------------------------------------------------


def test_a_secret_opens_the_teachers_page_once(store, tmp_path):
    printed = []
    here = desk(store, tmp_path, say=printed.append)
    secret = here.room.new_secret()
    first, second = Visitor(here), Visitor(here, client=("192.168.1.79", 1))
    assert first.tell("/api/enter", secret="guess").json()["error"] == "secret"
    assert first.tell("/api/enter", secret=secret).status_code == 200
    assert second.tell("/api/enter", secret=secret).json()["error"] == "secret"
    for path in ("/api/teacher", "/api/projector", "/qr.svg", "/votes.jsonl", "/pairs.json"):
        assert first.get(path).status_code == 200
        assert second.get(path).status_code == 401
    for path in ("/api/decide", "/api/train", "/api/free", "/api/stop", "/api/invite"):
        assert second.tell(path, status="accepted", name="An").status_code == 401
    # a second teacher, with a secret that only the terminal shows
    assert secret not in first.tell("/api/invite").text
    assert second.tell("/api/enter", secret=printed[-1].split()[-1]).status_code == 200
    assert second.get("/api/teacher").status_code == 200


def test_guessing_secrets_is_slowed_down(here):
    visitor = Visitor(here)
    answers = [visitor.tell("/api/enter", secret=f"{n}").json()["error"] for n in range(12)]
    assert answers == ["secret"] * 10 + ["wait"] * 2
    assert visitor.tell("/api/enter", secret=here.room.new_secret()).json()["error"] == "wait"


def test_only_accepted_votes_are_read_by_the_course(here):
    teacher = Visitor(here).teaches()
    for name in ("An", "Bình"):
        visitor = Visitor(here)
        visitor.joins(name)
        for pair in pairs()[:6]:
            visitor.votes(item_of(pair), "a", f"click {item_of(pair)}")
    assert here.room.store.votes(campaign=CAMPAIGN) == []
    assert teacher.tell("/api/train").json()["error"] == "none"
    assert teacher.tell("/api/decide", status="accepted", names=["An"]).json() == {"changed": 6}
    found = {row["name"]: row for row in teacher.get("/api/teacher").json()["voters"]}
    assert (found["An"]["accepted"], found["Bình"]["waiting"]) == (6, 6)
    assert {v.annotator for v in here.room.store.votes(campaign=CAMPAIGN)} == {"An"}
    teacher.tell("/api/decide", status="refused", names=["An"])
    # all that wait; the votes that were refused stay so
    assert teacher.tell("/api/decide", status="accepted").json() == {"changed": 6}
    found = teacher.get("/api/projector").json()
    assert (found["tally"]["votes"], found["voters"]) == (6, 1)
    teacher.tell("/api/decide", status="accepted", names=["An"])
    assert teacher.tell("/api/decide", status="waiting").json()["error"] == "status"
    assert teacher.tell("/api/decide", status="accepted", names=[1]).json()["error"] == "names"
    lines = teacher.get("/votes.jsonl").text.splitlines()
    assert len(lines) == 12 and json.loads(lines[0])["status"] == "accepted"
    assert teacher.get("/pairs.json").json() == {"campaign": CAMPAIGN, "pairs": pairs()}


def accepted_votes(here):
    visitor = Visitor(here)
    visitor.joins("An")
    visitor.votes(item_of(pairs()[0]), "a")
    here.room.store.decide("accepted", CAMPAIGN)


def test_one_training_runs_at_a_time_and_its_answers_are_shown(store, tmp_path):
    here = desk(store, tmp_path, then="time.sleep(1)")
    accepted_votes(here)
    one, two = Visitor(here).teaches(), Visitor(here).teaches()
    assert one.tell("/api/train").status_code == 200
    assert two.tell("/api/train").json()["error"] == "running"
    until(lambda: one.get("/api/projector").json()["training"].get("step") == 3)
    visitor = Visitor(here)  # the page stays responsive
    assert visitor.joins("Bình").status_code == 200
    state = until(lambda: (s := here.job.state)["stage"] == "done" and s)
    assert state["result"]["metrics"]["pairs"] == 1
    assert state["result"]["answers"][0]["after"] == "Do tán xạ."
    assert "a line of a library" in (tmp_path / "training" / "training.log").read_text()


@pytest.mark.parametrize(
    ("then", "stage"), [("time.sleep(60)", "stopped"), ("sys.exit(3)", "failed")]
)
def test_a_training_that_is_stopped_or_fails_can_be_started_again(store, tmp_path, then, stage):
    here = desk(store, tmp_path, then=then)
    accepted_votes(here)
    teacher = Visitor(here).teaches()
    teacher.tell("/api/train")
    until(lambda: here.job.state.get("step") == 3 or here.job.state["stage"] == stage)
    if stage == "stopped":
        teacher.tell("/api/stop")
    state = until(lambda: (s := here.job.state)["stage"] == stage and s)
    assert stage == "stopped" or "status 3" in state["detail"]
    until(lambda: not here.job.running)
    assert teacher.tell("/api/train").status_code == 200
    here.job.stop()


# --- Two models on a prompt ----------------------------------------------------------------------


def words(prompt, seed):
    for n in (1, 2):
        yield f"{prompt} một {n}", f"{prompt} hai {n}"


def wait_for(visitor, name):
    return until(
        lambda: (
            (a := visitor.get(f"/api/answers/{name}").json())["status"]
            in ("done", "slow", "failed")
            and a
        )
    )


def test_a_student_compares_two_models_and_learns_their_names_after_the_vote(store, tmp_path):
    here = desk(store, tmp_path, write=words)
    an, other = Visitor(here), Visitor(here)
    an.joins("An")
    other.joins("Bình")
    name = an.tell("/api/ask", prompt="Vì sao?").json()["id"]
    answer = wait_for(an, name)
    assert {answer["a"], answer["b"]} == {"Vì sao? một 2", "Vì sao? hai 2"}
    assert other.get(f"/api/answers/{name}").status_code == 404
    models = an.tell(f"/api/answers/{name}/vote", choice="a").json()
    assert models["a"] == ("llama-sft" if "một" in answer["a"] else "llama-dpo")
    assert an.tell(f"/api/answers/{name}/vote", choice="a").json() == models  # it was sent again
    assert an.tell(f"/api/answers/{name}/vote", choice="b").json()["error"] == "voted"
    (vote,) = store.votes(source="class", status=WAITING)
    assert (vote.choice, vote.campaign) == ("a", f"{CAMPAIGN} · prompts")
    assert vote.model_a == models["a"]


def test_the_queue_is_bounded_and_a_slow_answer_ends(store, tmp_path):
    def endless(prompt, seed):
        while True:
            time.sleep(0.05)
            yield "một", "hai"

    here = desk(store, tmp_path, write=endless)
    visitors = [Visitor(here) for _ in range(15)]
    for number, visitor in enumerate(visitors):
        visitor.joins(f"n{number}")
    assert visitors[0].tell("/api/ask", prompt=" ").json()["error"] == "empty"
    assert visitors[0].tell("/api/ask", prompt="x" * 1001).json()["error"] == "long"
    found = [v.tell("/api/ask", prompt="Vì sao?") for v in visitors]
    assert [a.json().get("error") for a in found].count("queue") >= 1
    assert visitors[0].tell("/api/ask", prompt="Nữa?").json()["error"] == "mine"
    assert wait_for(visitors[0], found[0].json()["id"])["status"] == "slow"


def test_a_model_that_fails_does_not_end_the_class(store, tmp_path):
    def broken(prompt, seed):
        raise MemoryError("no room")
        yield

    here = desk(store, tmp_path, write=broken)
    an = Visitor(here)
    an.joins("An")
    for _ in range(2):
        name = an.tell("/api/ask", prompt="Vì sao?").json()["id"]
        assert wait_for(an, name)["status"] == "failed"
        assert an.tell(f"/api/answers/{name}/vote", choice="a").json()["error"] == "vote"


def test_a_long_name_of_a_class_is_cut_to_a_name_that_can_be_found_again(store, tmp_path):
    long = "x" * 59 + " và các lớp khác"
    store.add_pairs(long, pairs(1))
    here = desk(store, tmp_path, write=words)
    here.room.campaign = long
    an = Visitor(here)
    an.joins("An")
    name = an.tell("/api/ask", prompt="Vì sao?").json()["id"]
    wait_for(an, name)
    an.tell(f"/api/answers/{name}/vote", choice="a")
    (vote,) = store.votes(source="class", status=None)
    assert vote.campaign == f"{'x' * 59}{PROMPTS}" == campaign_name(vote.campaign)
    assert store.pairs(vote.campaign)
    assert chosen_campaign(store, "", None) == CAMPAIGN  # not the latest one, of the prompts


# --- Figures and pictures ------------------------------------------------------------------------


def test_disagreement_by_hand():
    assert disagreement({"first": 3, "second": 0}) == 0 == disagreement({"first": 1})
    assert disagreement({"first": 1, "second": 1}) == 1
    assert disagreement({"first": 2, "second": 1, "tie": 1}) == pytest.approx(1 - 2 / 12)


def test_the_qr_code_holds_the_address_and_the_code(here):
    picture = Visitor(here).teaches().get("/qr.svg")
    assert picture.headers["content-type"] == "image/svg+xml"
    assert picture.text.startswith("<svg") and "script" not in picture.text


def test_an_empty_class_has_no_figures_and_no_error(here):
    found = Visitor(here).teaches().get("/api/projector").json()
    assert found["fleiss"]["value"] is found["cohen"]["value"] is found["position"]["value"] is None
    assert found["talk"] == [] and len(found["items"]) == 20


def test_names_and_addresses():
    assert tidy_name(" Nguyê\u0303n  An ") == "Nguyễn An"
    with pytest.raises(Refusal):
        tidy_name("x" * 10_000)
    assert all(not address.startswith("127.") for address in addresses())


def test_a_damaged_file_of_the_class_is_made_again(store, tmp_path):
    room = open_room(store, CAMPAIGN, tmp_path)
    (path,) = tmp_path.glob("class-*.json")
    path.write_text("{")
    assert open_room(store, CAMPAIGN, tmp_path).code != room.code


def test_the_page_has_a_sentence_for_each_refusal():
    """Messages of these modules stay out of the catalogue: the page shows its own."""
    found = set()
    for path in Path(app.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Refusal":
                found.add(node.args[1].value)
    assert len(found) > 15
    found -= {"store"}  # the sentence of a VoteError, which is in the catalogue itself
    assert {f"error_{word}" for word in found} <= set(WORDS)


def test_the_words_come_from_the_catalogue_with_the_same_placeholders(here):
    answer = Visitor(here).get("/static/words.js")
    assert answer.status_code == 200 and "javascript" in answer.headers["content-type"]
    both = json.loads(answer.text.removeprefix("const WORDS = ").removesuffix(";\n"))
    assert both["vi"].keys() == both["en"].keys()
    for key, english in both["en"].items():
        vietnamese = both["vi"][key]
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", vietnamese))
        assert vietnamese != english or key in ("prompt",), key
    scripts = "".join(path.read_text("utf-8") for path in STATIC.glob("*.js"))
    pages = "".join(path.read_text("utf-8") for path in STATIC.glob("*.html"))
    asked = {*re.findall(r'data-(?:word|label)="(\w+)"', pages)}
    assert {"join", "skip", "acceptAll"} <= asked <= both["en"].keys()
    assert set(re.findall(r'word\("(\w+)"', scripts)) <= both["en"].keys()

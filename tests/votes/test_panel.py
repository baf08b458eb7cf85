import asyncio
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from html.parser import HTMLParser

import ipywidgets
import pytest

from utils.course.paths import ROOT
from utils.votes import panel as widgets
from utils.votes.agreement import fleiss_kappa, position_bias, repeated_items
from utils.votes.pairs import item_of, queue
from utils.votes.panel import DOUBLE_CLICK, LABELS, LabelPanel, side_by_side, simulate
from utils.votes.session import Session
from utils.votes.store import VoteError, open_store, to_dataset

PAIRS = [
    {
        "question": f"Câu hỏi {n}?",
        "first": f"Ngắn {n}.",
        "second": f"Một câu trả lời dài hơn hẳn, số {n}.",
        "model_first": "policy",
        "model_second": "reference",
    }
    for n in range(20)
]
ITEMS = [item_of(pair) for pair in PAIRS]
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)> & </div> \"'"
OLD = ("ipywidgets==7.7.1", "ipython_genutils==0.2.0")  # Colab's, and what it imports


# what ipywidgets 8 keeps for 7 only, the panel must not use
pytestmark = pytest.mark.filterwarnings("error::DeprecationWarning:utils.votes.panel")


def shorter(question, answer_a, answer_b):
    return "a" if len(answer_a) < len(answer_b) else "b"


@pytest.fixture
def store(tmp_path):
    return open_store(f"sqlite:///{tmp_path}/votes.sqlite")


@pytest.fixture
def at_leisure(monkeypatch):
    """Let time pass between clicks, as for a person who reads each pair."""
    monkeypatch.setattr(widgets, "DOUBLE_CLICK", 0.0)


# --- The queue -----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_queue_and_another_one_another():
    assert queue(PAIRS, seed=1) == queue(PAIRS, seed=1)
    assert queue(PAIRS, seed=1) != queue(PAIRS, seed=2)


def test_a_pair_keeps_its_side_when_pairs_are_added():
    sides = {shown.item: shown.swapped for shown in queue(PAIRS[:7], 3, 0)}
    assert sides == {shown.item: shown.swapped for shown in queue(PAIRS, 3, 0)[:7]}


def test_each_answer_stands_left_about_half_of_the_time():
    many = [{**PAIRS[0], "question": f"Câu {n}?"} for n in range(1000)]
    left = sum(not shown.swapped for shown in queue(many, seed=5, repeat_share=0))
    assert 440 < left < 560  # four standard deviations


def test_models_move_with_their_answers():
    for shown in queue(PAIRS, seed=4):
        assert (shown.model_a == "reference") == shown.swapped
        assert shown.answer_a.startswith("Một" if shown.swapped else "Ngắn")
        assert {shown.model_a, shown.model_b} == {"policy", "reference"}


def test_a_share_of_the_pairs_comes_again_at_the_end_on_the_other_side():
    line = queue(PAIRS, seed=6, repeat_share=0.25)
    first, again = line[:20], line[20:]
    assert [shown.item for shown in first] == ITEMS
    assert len(again) == len({shown.item for shown in again}) == 5
    swapped = {shown.item: shown.swapped for shown in first}
    assert all(shown.swapped != swapped[shown.item] for shown in again)


def test_wrong_pairs_are_named():
    with pytest.raises(ValueError, match=r"Pair 1 has question, answer_a and no first"):
        queue([PAIRS[0], {"question": "?", "answer_a": "a"}])
    with pytest.raises(ValueError, match="Pair 1 occurs 2 times"):
        queue([PAIRS[0], PAIRS[1], PAIRS[1]])
    assert queue([]) == []


# --- The session ---------------------------------------------------------------------------------


def test_a_vote_has_all_that_was_on_the_screen(store):
    session = Session(PAIRS, store, "An", seed=4)
    for _ in range(3):
        shown = session.current
        cast = session.vote("b")
        assert {k: getattr(cast, k) for k in vars(shown)} == vars(shown)
        assert (cast.choice, cast.annotator, cast.seed, cast.source) == ("b", "An", 4, "panel")
    assert store.votes() == session.votes


def test_a_restart_goes_on_where_it_stopped(store):
    uninterrupted = [shown.item for shown in queue(PAIRS, 7, 0.2)]
    seen = []
    while True:
        session = Session(PAIRS, store, "An", seed=7, repeat_share=0.2)  # a new one each time
        if session.current is None:
            break
        seen.append(session.current.item)
        session.vote("skip")
    assert seen == uninterrupted
    assert (session.done, len(session.queue)) == (24, 24)
    assert Session(PAIRS, store, "Bình", seed=7).done == 0
    with pytest.raises(VoteError, match="nothing is left"):
        session.vote("a")


def test_undo_asks_the_pair_again_and_reaches_no_other_pairs(store):
    other = Session([{**PAIRS[0], "question": "Hôm qua?"}], store, "An", repeat_share=0)
    other.vote("a")
    session = Session(PAIRS[:3], store, "An", repeat_share=0)
    assert session.undo() is None
    session.vote("a")
    session.vote("b")
    withdrawn = session.undo()
    assert (withdrawn.item, withdrawn.choice) == (ITEMS[1], "b")
    assert (session.current.item, session.done) == (ITEMS[1], 1)
    assert session.undo().item == ITEMS[0] and session.undo() is None
    assert [vote.question for vote in store.votes()] == ["Hôm qua?"]


def test_new_answers_to_an_old_question_are_asked_again(store):
    Session(PAIRS[:1], store, "An", repeat_share=0).vote("a")
    assert Session(PAIRS[:1], store, "An", repeat_share=0).done == 1
    changed = [{**PAIRS[0], "second": "Một câu khác."}]
    assert Session(changed, store, "An", repeat_share=0).done == 0


def test_texts_that_sql_cannot_hold_are_not_asked_for_ever(store):
    odd = [{**PAIRS[0], "first": "a\x00b", "second": "c\ud800d"}]
    Session(odd, store, "An", repeat_share=0).vote("a")
    assert Session(odd, store, "An", repeat_share=0).current is None


# --- A rule that votes ---------------------------------------------------------------------------


def test_a_rule_votes_through_the_same_session(store):
    votes = simulate(PAIRS, store, shorter, seed=8, repeat_share=0.5)
    assert votes == store.votes("simulated: shorter")
    assert len(votes) == 30
    rows = to_dataset(store.votes())
    assert all(row["chosen"].startswith("Ngắn") for row in rows)
    assert repeated_items(votes)["simulated: shorter"].value == 1
    assert position_bias(votes).low < 0.5 < position_bias(votes).high
    assert simulate(PAIRS, store, shorter, seed=8, repeat_share=0.5) == []  # all is done


def test_a_killed_simulation_goes_on(store):
    def breaks(question, answer_a, answer_b):
        if question == "Câu hỏi 5?":
            raise KeyboardInterrupt
        return shorter(question, answer_a, answer_b)

    with pytest.raises(KeyboardInterrupt):
        simulate(PAIRS, store, breaks, "simulated: shorter")
    assert len(simulate(PAIRS, store, shorter)) == 22 - 5
    assert Counter(vote.item for vote in store.votes()).most_common()[-1][1] == 1


def test_a_rule_may_not_vote_as_a_person(store):
    with pytest.raises(ValueError, match="begin its name with 'simulated:'"):
        simulate(PAIRS, store, shorter, annotator="An")
    with pytest.raises(VoteError, match="choice is 'left'"):
        simulate(PAIRS, store, lambda *_: "left", annotator="simulated: wrong")


# --- The panel -----------------------------------------------------------------------------------


def test_the_panel_votes_undoes_and_counts(store, at_leisure):
    panel = LabelPanel(PAIRS[:4], store, "An", seed=4, repeat_share=0.25)
    shown = [panel.session.current]
    for command in ("a", "b", "tie", "skip"):
        panel.buttons[command].click()
        shown.append(panel.session.current)
    assert [vote.choice for vote in store.votes("An")] == ["a", "b", "tie", "skip"]
    assert panel.bar.value == 4 and panel.bar.max == 5 and "4 / 5" in panel.counter.value
    assert "Skip" in panel.note.value
    panel.buttons["undo"].click()
    assert panel.session.current == shown[3] and panel.bar.value == 3
    for _ in range(2):
        panel.buttons["a"].click()
    assert "You have judged all" in panel.view.value
    disabled = {command for command, button in panel.buttons.items() if button.disabled}
    assert disabled == {"a", "b", "tie", "skip"}
    panel.buttons["a"].click()  # as a delayed click does
    assert len(store.votes()) == 5
    panel.buttons["undo"].click()
    assert not panel.buttons["a"].disabled and len(store.votes()) == 4


def test_the_panel_speaks_the_language_of_the_edition(store, monkeypatch):
    labels = {}
    for language in ("vi", "en"):
        monkeypatch.setenv("COURSE_LANG", language)
        panel = LabelPanel(PAIRS, store, "", campaign="trời")
        labels[language] = [button.description for button in panel.buttons.values()]
        assert ("Ghi tên" in panel.view.value) == (language == "vi")
    assert labels["vi"] == ["A tốt hơn", "B tốt hơn", "Ngang nhau", "Bỏ qua", "Hoàn tác"]
    assert labels["en"] == ["A is better", "B is better", "Tie", "Skip", "Undo"]


def test_a_name_that_is_too_long_begins_no_session(store):
    panel = LabelPanel(PAIRS, store, "An")
    panel.name_field.value = "A" * 81
    assert panel.session is None and "at most 80 characters" in panel.note.value
    panel.name_field.value = "A" * 80
    assert panel.session is not None and panel.session.annotator == "A" * 80


def test_letters_do_what_the_buttons_do(store):
    panel = LabelPanel(PAIRS[:4], store, "An", repeat_share=0)
    for letter in ("a", " B ", "t", "u", "s", "s"):
        panel.command_field.value = letter
        assert panel.command_field.value == ""
    assert [vote.choice for vote in store.votes()] == ["a", "b", "skip", "skip"]
    panel.command_field.value = "u"
    panel.command_field.value = "<b>yes"
    assert "&lt;b&gt;yes” is not a command" in panel.note.value
    assert len(store.votes()) == 3


def test_a_double_click_is_one_vote(store):
    panel = LabelPanel(PAIRS, store, "An")
    panel.buttons["a"].click()
    panel.buttons["a"].click()
    assert DOUBLE_CLICK > 0 and len(store.votes()) == 1
    panel.ready_at -= DOUBLE_CLICK  # the time has passed
    panel.buttons["a"].click()
    assert len(store.votes()) == 2


def test_without_a_name_nobody_votes_and_each_name_continues_at_its_own_pair(store, at_leisure):
    panel = LabelPanel(PAIRS[:4], store, repeat_share=0)
    assert all(button.disabled for button in panel.buttons.values())
    panel.command_field.value = "a"
    assert store.votes() == [] and "Write your name" in panel.view.value
    panel.name_field.value = " An "
    panel.buttons["a"].click()
    panel.name_field.value = "Bình"
    assert panel.bar.value == 0
    panel.name_field.value = "An"
    assert panel.bar.value == 1 and "You continue" in panel.note.value
    panel.name_field.value = "simulated: An"
    assert all(button.disabled for button in panel.buttons.values())
    assert "Names of rules" in panel.note.value
    assert {vote.annotator for vote in store.votes()} == {"An"}


def test_a_vote_that_was_not_confirmed_keeps_its_pair(store, at_leisure, monkeypatch):
    panel = LabelPanel(PAIRS, store, "An")
    before = panel.session.current

    def refuse(vote):
        raise VoteError("The votes at <db> cannot be reached.")

    with monkeypatch.context() as broken:
        broken.setattr(store, "add", refuse)
        panel.buttons["a"].click()
    assert "The votes at &lt;db&gt; cannot be reached." in panel.note.value
    assert panel.session.current == before and panel.bar.value == 0
    panel.buttons["a"].click()
    assert len(store.votes()) == 1 and "Saved" in panel.note.value


def test_the_panel_changes_to_another_campaign_of_the_store(store, at_leisure):
    first = store.add_pairs("lớp A", PAIRS[:4])
    store.add_pairs("lớp B", PAIRS[4:6])
    panel = LabelPanel(first, store, "An", repeat_share=0, campaign="lớp A")
    panel.buttons["a"].click()
    assert panel.campaign_field.options == ("lớp A", "lớp B")
    panel.campaign_field.value = "lớp B"
    assert (panel.campaign, panel.pairs) == ("lớp B", store.pairs("lớp B"))
    assert "0 / 2" in panel.counter.value and panel.bar.max == 2
    panel.buttons["b"].click()
    panel.campaign_field.value = "lớp A"
    assert "1 / 4" in panel.counter.value
    assert [(v.campaign, v.choice) for v in store.votes("An")] == [("lớp A", "a"), ("lớp B", "b")]


def test_a_campaign_that_cannot_be_read_is_not_the_one_on_the_screen(
    store, at_leisure, monkeypatch
):
    first = store.add_pairs("lớp A", PAIRS[:4])
    store.add_pairs("lớp B", PAIRS[4:6])
    panel = LabelPanel(first, store, "An", repeat_share=0, campaign="lớp A")
    with monkeypatch.context() as away:
        away.setattr(store, "pairs", lambda _: raise_away())
        panel.campaign_field.value = "lớp B"
    assert panel.campaign_field.value == "lớp A" == panel.campaign
    assert "away" in panel.note.value
    with monkeypatch.context() as away:  # between the vote and the line of agreement
        away.setattr(widgets, "agreement_line", lambda *_: raise_away())
        panel.buttons["a"].click()
    assert len(store.votes("An")) == 1 and "Saved" in panel.note.value


def raise_away():
    raise VoteError("The store is away.")


def test_two_windows_of_one_person_are_one_vote_on_each_pair(store, at_leisure):
    pairs = store.add_pairs("lớp", PAIRS[:4])
    panel = LabelPanel(pairs, store, "Hòa", repeat_share=0, campaign="lớp")
    other = Session(pairs, store, unicodedata.normalize("NFD", " Hòa "), 0, 0, campaign="lớp")
    assert other.current == panel.session.current
    other.vote("b")
    panel.buttons["a"].click()  # the panel still shows the first pair
    assert "has your vote already" in panel.note.value
    assert [(v.annotator, v.choice) for v in store.votes()] == [("Hòa", "b")]
    panel.buttons["a"].click()
    assert [v.choice for v in store.votes()] == ["b", "a"] and "2 / 4" in panel.counter.value


def test_the_agreement_follows_each_vote_and_those_of_others(store, at_leisure):
    pairs = store.add_pairs("lớp", PAIRS[:6])
    one, other = (
        LabelPanel(pairs, store, name, repeat_share=0.5, campaign="lớp") for name in ("An", "Bình")
    )
    assert "votes 0, annotators 0" in one.agreement.value
    for panel in (one, other):
        while screen := panel.session.current:  # both prefer the pair's first answer but for one
            first = panel.pairs[0]["question"] != screen.question or panel is one
            panel.buttons["b" if screen.swapped == first else "a"].click()
    assert "votes 9, annotators 1" in one.agreement.value
    assert "not known yet" in one.agreement.value
    one.refresh_button.click()
    votes = store.votes(campaign="lớp")
    assert f"votes 18, annotators 2 · you agree with yourself: {repeated_items(votes)['An']}" in (
        one.agreement.value
    )
    assert f"κ of Fleiss: {fleiss_kappa(votes, draws=200)}" in other.agreement.value
    assert 0 < fleiss_kappa(votes).value < 1


def test_without_a_campaign_there_is_nothing_to_choose(store):
    panel = LabelPanel(PAIRS, store, "An")
    shown = [widget for row in panel.children for widget in getattr(row, "children", ())]
    assert panel.campaign_field not in shown and panel.agreement not in shown
    assert panel.agreement.value == ""


def test_buttons_explain_themselves_and_stand_in_order(store):
    panel = LabelPanel(PAIRS, store, "An")
    described = [(b.description, b.tooltip) for b in panel.buttons.values()]
    assert [name for name, _ in described] == ["A is better", "B is better", "Tie", "Skip", "Undo"]
    assert all(re.search(r"\(key [abtsu]\)", tooltip) for _, tooltip in described)
    assert repr(panel) == "LabelPanel(0 of 22 done; open the notebook to vote)"
    rubric = next(child for child in panel.children if isinstance(child, ipywidgets.Accordion))
    assert rubric.selected_index is None  # folded


class Text(HTMLParser):
    """The tags and the text that a browser would make of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_data(self, data):
        self.text += data


def test_texts_of_models_and_users_are_shown_never_run(store, at_leisure):
    pair = {"question": ATTACK, "first": ATTACK, "second": "dòng 1\n\ndòng 2"}
    panel = LabelPanel([pair], store, ATTACK, rubric=[ATTACK], repeat_share=0)
    page = Text(panel.view.value)
    assert page.tags == {"div", "b"}
    assert page.text.count(ATTACK) == 2 and "dòng 1\n\ndòng 2" in page.text
    rubric = next(child for child in panel.children if isinstance(child, ipywidgets.Accordion))
    assert Text(rubric.children[0].value).text == ATTACK
    panel.buttons["a"].click()
    assert store.votes()[0].annotator == store.votes()[0].question == ATTACK
    rows = [{"before": ATTACK, "after <b>": "x\ny"}, {"before": 1, "after <b>": 2}]
    table = Text(side_by_side(rows).data)
    assert table.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    assert ATTACK in table.text and "after <b>" in table.text and "x\ny" in table.text
    assert Text(side_by_side([]).data).text == ""


def test_an_empty_answer_is_said_to_be_empty(store):
    pair = {"question": "?", "first": " \n", "second": "x"}
    assert "empty answer" in LabelPanel([pair], store, "An", repeat_share=0).view.value


def test_no_pairs_are_no_error(store):
    panel = LabelPanel([], store, "An")
    assert "0 / 0" in panel.counter.value and panel.buttons["a"].disabled


def test_the_labels_name_every_command():
    assert set(LABELS) == set(widgets.COMMANDS.values())


# --- ipywidgets 7 --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def old_ipywidgets():
    """A folder with the ipywidgets of Colab, fetched once."""
    folder = ROOT / ".cache" / OLD[0]
    if not (folder / "ipython_genutils").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder)]
        done = subprocess.run([*pip, "--quiet", *OLD], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{OLD[0]} cannot be fetched: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.long
def test_the_panel_is_the_same_with_the_ipywidgets_of_colab(old_ipywidgets):
    here = "version or panel or button or click or letters or name or shown or empty or confirmed"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-k", f"({here}) and not colab"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(old_ipywidgets), "TEST_IPYWIDGETS": "7.7."},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= 10


def test_the_version_is_the_one_that_was_asked_for():
    assert ipywidgets.__version__.startswith(os.environ.get("TEST_IPYWIDGETS", ""))


def test_the_votes_of_others_appear_by_themselves(store, monkeypatch):
    monkeypatch.setattr(widgets, "PAUSE", 0.01)
    pairs = store.add_pairs("lớp", PAIRS)

    async def class_hour():
        first = LabelPanel(pairs, store, "An", campaign="lớp")
        panel = LabelPanel(pairs, store, "An", campaign="lớp")
        simulate(pairs, store, shorter, campaign="lớp")  # of a rule
        Session(pairs, store, "Bình", source="terminal", campaign="lớp").vote("a")
        await asyncio.sleep(0.5)
        assert "votes 1, annotators 1" in panel.agreement.value
        assert "votes 0" in first.agreement.value  # only the panel that was shown last looks
        with monkeypatch.context() as patch:
            patch.setattr(store, "votes", unreachable)
            await asyncio.sleep(0.1)
        Session(pairs, store, "Chi", source="terminal", campaign="lớp").vote("b")
        await asyncio.sleep(0.5)
        assert "votes 2, annotators 2" in panel.agreement.value
        watcher = LabelPanel._watcher
        panel.close()
        await asyncio.sleep(0.1)
        assert watcher.done() and watcher.exception() is None

    def unreachable(*_, **__):
        raise VoteError("The votes cannot be reached.")

    asyncio.run(class_hour())

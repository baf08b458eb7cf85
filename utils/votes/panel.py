"""Label pairs of answers in a notebook, and show answers side by side.

The panel and a simulated annotator use the same `Session`. The controls are those that
ipywidgets 7 (Colab) and 8 have in common. Texts of models and users are escaped, so the browser
shows them as text and does not run them.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from html import escape

import ipywidgets
from IPython.display import HTML

from utils.course.errors import SettingError
from utils.course.language import later, tr
from utils.votes.agreement import fleiss_kappa, repeated_items
from utils.votes.pairs import MAX_NAME, Pair, Shown, campaign_name, queue
from utils.votes.session import COMMANDS, DEFAULT_RUBRIC, SIMULATED, Session
from utils.votes.store import Vote, VoteError, VoteStore

DOUBLE_CLICK = 0.3  # seconds without clicks after a vote: a double click must not vote twice
PAUSE = 3.0  # seconds between two looks for the votes of others
PEOPLE = ("panel", "terminal", "class")  # sources of votes on a campaign's pairs
Rule = Callable[[str, str, str], str]  # question, answer A, answer B -> "a", "b", "tie" or "skip"


def simulate(
    pairs: Sequence[Pair],
    store: VoteStore,
    rule: Rule,
    annotator: str | None = None,
    seed: int = 0,
    repeat_share: float = 0.1,
    campaign: str = "",
) -> list[Vote]:
    """Votes by a rule in code, through the same session as a person; the name marks them.

    >>> def shorter(question, a, b): return "a" if len(a) < len(b) else "b"
    >>> simulate(pairs, store, shorter)  # votes as "simulated: shorter"
    """
    annotator = annotator or f"{SIMULATED} {rule.__name__}"
    if not annotator.startswith(SIMULATED):
        raise SettingError(
            tr(
                "The annotator {annotator!r} is a rule, not a person: begin its name with "
                "{simulated!r}.",
                annotator=annotator,
                simulated=SIMULATED,
            )
        )
    session = Session(pairs, store, annotator, seed, repeat_share, "simulated", campaign)
    cast = []
    while shown := session.current:
        cast.append(session.vote(rule(shown.question, shown.answer_a, shown.answer_b)))
    return cast


# --- The panel -----------------------------------------------------------------------------------

BLUE, ORANGE, GREY = "#35618f", "#a8651c", "#5f6b7a"  # white text is readable on each
LABELS = {  # command -> the button's label, its tooltip and its colour
    "a": (later("A is better"), later("Answer A is better (key a)"), BLUE),
    "b": (later("B is better"), later("Answer B is better (key b)"), ORANGE),
    "tie": (later("Tie"), later("A tie: both are as good (key t)"), GREY),
    "skip": (later("Skip"), later("I cannot decide (key s)"), "#e3e8ee"),
    "undo": (later("Undo"), later("Take back my latest vote (key u)"), "#e3e8ee"),
}
STYLE = """<style>
.course-panel { max-width: 1160px; padding: 4px 2px; }
.course-panel .course-row { gap: 8px; overflow: visible; }
.course-panel [class*="Collapse-header"] { font-size: 15px; }
.course-panel .course-row .widget-label, .course-panel .course-row input { font-size: 15px; }
.course-panel .course-row .widget-label { margin: 2px 0; line-height: 28px; height: auto;
  white-space: normal; }
.course-count { font-size: 16px; font-weight: 600; white-space: nowrap; }
.course-question { font-size: 21px; font-weight: 600; margin: 8px 0 12px; white-space: pre-wrap;
  overflow-wrap: anywhere; unicode-bidi: isolate; }
.course-answers { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); }
.course-answer { background: #ffffff; color: #1b1f24; border: 1px solid #c9d1db;
  border-radius: 8px; overflow: hidden; }
.course-answer b { display: block; padding: 3px 16px; color: #ffffff; font-size: 16px; }
.course-answer div { padding: 10px 16px 14px; font-size: 18px; line-height: 1.55;
  min-height: 84px; max-height: 380px; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; unicode-bidi: isolate; }
.course-answer i { color: #6a737d; }
.course-rubric { font-size: 16px; margin: 2px 0; padding-left: 22px; }
.course-agreement { font-size: 15px; line-height: 1.5; white-space: normal; }
.course-note { font-size: 15px; font-weight: 600; line-height: 28px; }
.course-panel button.course-button { height: 42px; font-size: 17px; border-radius: 6px; }
.course-panel button.course-strong { color: #ffffff; font-weight: 600; }
.course-panel button.course-weak { color: #1b1f24; }
.course-panel button.course-button:focus-visible { outline: 3px solid #f2b134;
  outline-offset: 1px; }
</style>"""


def _answer_html(letter: str, text: str, colour: str) -> str:
    body = escape(text) if text.strip() else f"<i>{escape(tr('(empty answer)'))}</i>"
    head = f'<b style="background:{colour}">{letter}</b>'
    # with tabindex, a long answer can be scrolled with the arrow keys
    return f'<div class="course-answer">{head}<div tabindex="0">{body}</div></div>'


def pair_html(shown: Shown) -> str:
    """The HTML of a question and its two answers; every text is escaped."""
    return (
        f'<div class="course-question">{escape(shown.question)}</div><div class="course-answers">'
        + _answer_html("A", shown.answer_a, BLUE)
        + _answer_html("B", shown.answer_b, ORANGE)
        + "</div>"
    )


def _note_html(text: str, wrong: bool = False) -> str:
    colour = "#c9372c" if wrong else "inherit"
    return (
        f'<div class="course-note" aria-live="polite" style="color:{colour}">{escape(text)}</div>'
    )


def _rubric(rubric: Sequence[str]) -> ipywidgets.Accordion:
    points = "".join(f"<li>{escape(point)}</li>" for point in rubric)
    folded = ipywidgets.Accordion([ipywidgets.HTML(f'<ul class="course-rubric">{points}</ul>')])
    folded.set_title(0, tr("Criteria"))
    folded.selected_index = None
    return folded


def _button(command: str) -> ipywidgets.Button:
    label, tooltip, colour = LABELS[command]
    wide = ipywidgets.Layout(flex="1 1 130px", width="auto", min_width="110px")
    button = ipywidgets.Button(description=tr(label), tooltip=tr(tooltip), layout=wide)
    button.style.button_color = colour
    button.add_class("course-button")
    button.add_class("course-weak" if command in ("skip", "undo") else "course-strong")
    return button


def _row(widgets: Sequence[ipywidgets.Widget]) -> ipywidgets.HBox:
    layout = ipywidgets.Layout(flex_flow="row wrap", align_items="center", margin="6px 0")
    row = ipywidgets.HBox(widgets, layout=layout)
    row.add_class("course-row")
    return row


def agreement_line(votes: Sequence[Vote], annotator: str) -> str:
    """The votes of a campaign in one line: their number, and how far they agree."""
    people = {vote.annotator for vote in votes}
    counts = {"votes": len(votes), "people": len(people)}
    parts = [tr("This campaign: votes {votes}, annotators {people}", **counts)]
    mine = repeated_items(votes).get(annotator)
    if mine and mine.count:
        parts.append(tr("you agree with yourself: {mine}", mine=mine))
    kappa = fleiss_kappa(votes, draws=200)
    shown = tr("not known yet") if math.isnan(kappa.value) else kappa
    parts.append(tr("κ of Fleiss: {kappa}", kappa=shown))
    return " · ".join(parts)


class LabelPanel(ipywidgets.VBox):
    """A panel to judge pairs with buttons, or with a letter and Enter in the field below them.

    With a campaign, its line of agreement is shown, and another campaign of the store can be
    chosen: `panel.campaign` and `panel.pairs` are those on the screen.

    >>> LabelPanel(pairs, open_store())  # the last line of a cell shows it
    """

    _watcher: asyncio.Task | None = None  # of the panel that was shown last

    def __init__(
        self,
        pairs: Sequence[Pair],
        store: VoteStore,
        annotator: str | None = None,
        seed: int = 0,
        rubric: Sequence[str] = DEFAULT_RUBRIC,
        repeat_share: float = 0.1,
        campaign: str = "",
    ) -> None:
        campaign = campaign_name(campaign) if campaign else ""
        self.pairs, self.store, self.seed, self.campaign = pairs, store, seed, campaign
        self.repeat_share = repeat_share
        self.session: Session | None = None
        self.votes: list[Vote] = []  # of all people, when the line of agreement was drawn
        self.ready_at = 0.0  # the time from which a click counts again
        self.total = len(queue(pairs, seed, repeat_share))

        field = {"continuous_update": False}  # a value arrives with Enter
        self.name_field = ipywidgets.Text(annotator or "", placeholder=tr("your name"), **field)
        self.command_field = ipywidgets.Text(placeholder="a / b / t / s / u", **field)
        self.command_field.layout.width = "130px"
        self.bar = ipywidgets.IntProgress(value=0, min=0, max=max(self.total, 1))
        self.bar.layout = ipywidgets.Layout(flex="1 1 200px", width="auto")
        self.bar.style.bar_color = BLUE
        self.counter = ipywidgets.HTML()
        self.view, self.note = ipywidgets.HTML(), ipywidgets.HTML()
        self.agreement = ipywidgets.HTML()
        self.campaign_field = ipywidgets.Dropdown(options=self._campaigns(), value=campaign)
        self.campaign_field.layout.width = "auto"
        self.refresh_button = ipywidgets.Button(description=tr("Update"))
        self.buttons = {command: _button(command) for command in LABELS}

        self.name_field.layout.width = "200px"
        keys = tr("Keys: a, b, t (tie), s (skip), u (undo), then Enter")
        of_campaign = [
            _row([ipywidgets.Label(tr("Campaign")), self.campaign_field]),
            _row([self.agreement, self.refresh_button]),
        ]
        super().__init__(
            [
                ipywidgets.HTML(STYLE),
                *of_campaign[: 1 if campaign else 0],
                _row([ipywidgets.Label(tr("Annotator")), self.name_field, self.bar, self.counter]),
                _rubric(rubric),
                self.view,
                _row(list(self.buttons.values())),
                _row([ipywidgets.Label(keys), self.command_field, self.note]),
                *of_campaign[1 if campaign else 2 :],
            ]
        )
        self.add_class("course-panel")
        self.name_field.observe(self._on_name, "value")
        self.command_field.observe(self._on_command, "value")
        self.campaign_field.observe(self._on_campaign, "value")
        self.refresh_button.on_click(lambda _: self._draw_agreement())
        for command, button in self.buttons.items():
            button.on_click(lambda _, command=command: self._on_click(command))
        self._begin(annotator or "")
        self._watch()

    def __repr__(self) -> str:
        return f"LabelPanel({self.bar.value} of {self.total} done; open the notebook to vote)"

    def _on_name(self, change: Mapping) -> None:
        self._begin(change["new"])

    def _campaigns(self) -> list[str]:
        """The campaigns of the store that have pairs, and the one of this panel."""
        names = [each.name for each in self.store.campaigns() if each.pairs]
        return names if self.campaign in names else [*names, self.campaign]

    def _on_campaign(self, change: Mapping) -> None:
        if change["new"] == self.campaign:
            return
        name = self.name_field.value
        try:
            self.pairs, self.campaign = self.store.pairs(change["new"]), change["new"]
        except VoteError as error:
            self.campaign_field.value = self.campaign  # the votes still go there
            self._say(str(error), wrong=True)
            return
        self.total = len(queue(self.pairs, self.seed, self.repeat_share))
        self.bar.max = max(self.total, 1)
        self._begin(name)

    def _on_command(self, change: Mapping) -> None:
        typed = change["new"].strip().lower()
        if not change["new"]:
            return
        self.command_field.value = ""
        if typed in COMMANDS:
            self._act(COMMANDS[typed])
        else:
            text = tr("“{typed}” is not a command: type a, b, t, s or u.", typed=typed)
            self._say(text, wrong=True)

    def _on_click(self, command: str) -> None:
        if time.monotonic() >= self.ready_at:
            self._act(command)

    def _say(self, text: str, wrong: bool = False) -> None:
        self.note.value = _note_html(text, wrong)

    def _begin(self, name: str) -> None:
        """Start or resume this person's session."""
        self.session, name = None, name[: 4 * MAX_NAME].strip()
        try:
            if len(name) > MAX_NAME:
                most = {"most": MAX_NAME}
                self._say(tr("A name has at most {most} characters: shorten it.", **most), True)
            elif name.startswith(SIMULATED):
                start = {"start": SIMULATED}
                self._say(tr("Names of rules, not of people, begin with “{start}”.", **start), True)
            elif name:
                self.session = Session(
                    *(self.pairs, self.store, name, self.seed, self.repeat_share),
                    campaign=self.campaign,
                )
                self._say(tr("You continue where you stopped.") if self.session.done else "")
            else:
                self._say("")
        except VoteError as error:
            self._say(str(error), wrong=True)
        self._draw()

    def _act(self, command: str) -> None:
        """Vote or undo; if the vote was not confirmed, the pair stays on the screen."""
        session = self.session
        if session is None or (command != "undo" and session.current is None):
            return
        try:
            if command != "undo":
                session.vote(command)
                self._say(tr("Saved: {choice}.", choice=tr(LABELS[command][0])))
            elif withdrawn := session.undo():
                self._say(tr("Taken back: {choice}.", choice=tr(LABELS[withdrawn.choice][0])))
            else:
                self._say(tr("There is no vote to take back."))
        except VoteError as error:
            self._say(str(error), wrong=True)
        self._draw()
        self.ready_at = time.monotonic() + DOUBLE_CLICK

    def _draw(self) -> None:
        session = self.session
        shown = session.current if session else None
        self.bar.value = session.done if session else 0
        self.counter.value = f'<div class="course-count">{self.bar.value} / {self.total}</div>'
        if shown:
            self.view.value = pair_html(shown)
        else:
            text = tr("Write your name, then Enter.")
            if session:
                text = tr("You have judged all pairs. Thank you!")
            self.view.value = f'<div class="course-question">{escape(text)}</div>'
        self._draw_agreement()
        for command, button in self.buttons.items():
            button.disabled = not session or (command != "undo" and shown is None)

    def _draw_agreement(self) -> None:
        """Read the campaign's votes again, those of others too, and show how far they agree."""
        if not self.campaign:
            return
        try:
            self._show_agreement(self.store.votes(campaign=self.campaign, source=PEOPLE))
        except VoteError:  # the note is about the vote, which may be on disk
            self.agreement.value = _note_html(tr("not known yet"))

    def _show_agreement(self, votes: list[Vote]) -> None:
        self.votes = votes
        line = escape(agreement_line(votes, self.session.annotator if self.session else ""))
        self.agreement.value = f'<div class="course-agreement" aria-live="polite">{line}</div>'

    def _watch(self) -> None:
        """From now on, this panel shows the votes of others as they come; the former one stops.

        Between two cells the notebook's event loop is free for it. A program without an event loop
        sees the votes of others after each own vote.
        """
        with suppress(RuntimeError):
            loop = asyncio.get_running_loop()
            if LabelPanel._watcher:
                LabelPanel._watcher.cancel()
            LabelPanel._watcher = loop.create_task(self._follow())

    async def _follow(self) -> None:
        while self.comm is not None:  # None after `close`
            await asyncio.sleep(PAUSE)
            if not self.campaign:
                continue
            campaign = self.campaign
            with suppress(VoteError):  # the next own vote reports a store that cannot be reached
                # in a thread: a server that does not answer must not keep the cells waiting
                votes = await asyncio.to_thread(self.store.votes, campaign=campaign, source=PEOPLE)
                if campaign == self.campaign and votes != self.votes:
                    self._show_agreement(votes)


# --- Before and after ----------------------------------------------------------------------------


def side_by_side(rows: Sequence[Mapping[str, object]]) -> HTML:
    """Rows of texts as a table whose header is the first row's keys; every text is escaped.

    >>> side_by_side([{"question": "Vì sao?", "before": "Do biển.", "after": "Do tán xạ."}])
    """
    cell = "font-size:14px;line-height:1.45;text-align:left;vertical-align:top;"
    cell += "white-space:pre-wrap;overflow-wrap:anywhere"
    names = list(rows[0]) if rows else []
    head = "".join(f'<th style="{cell}">{escape(name)}</th>' for name in names)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{cell}">{escape(str(row[name]))}</td>' for name in names)
        + "</tr>"
        for row in rows
    )
    # the class stops MathJax from reading a dollar sign in an answer as the start of a formula
    table = '<table class="tex2jax_ignore mathjax_ignore" style="width:100%;table-layout:fixed">'
    return HTML(f"{table}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

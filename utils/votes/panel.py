"""Label pairs of answers in a notebook, and show answers side by side.

The panel and a simulated annotator use the same `Session`. The controls are those that
ipywidgets 7 (Colab) and 8 have in common. Texts of models and users are escaped, so the browser
shows them as text and does not run them.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import ipywidgets
from IPython.display import HTML

from utils.votes.store import Vote, VoteError, VoteStore, storable

SIMULATED = "simulated:"  # the name of an annotator that is a rule begins with this
COMMANDS = {"a": "a", "b": "b", "t": "tie", "s": "skip", "u": "undo"}
DOUBLE_CLICK = 0.3  # seconds without clicks after a vote: a double click must not vote twice
DEFAULT_RUBRIC = (
    "Đúng là trên hết: câu trả lời sai kiến thức thua câu trả lời đúng, dù viết hay hơn.",
    "Trả lời thẳng vào câu hỏi, đủ ý chính, không lạc đề.",
    "Học sinh phổ thông đọc là hiểu: câu gọn, từ ngữ quen thuộc, ví dụ gần gũi.",
    "Dài hơn không có nghĩa là tốt hơn; đứng bên trái hay bên phải cũng không quan trọng.",
    "Hai câu hay dở như nhau thì chọn “Ngang nhau”; không đủ kiến thức để chấm thì “Bỏ qua”.",
)

Pair = Mapping[str, str]  # item, question, first, second; model_first, model_second if known
Rule = Callable[[str, str, str], str]  # question, answer A, answer B -> "a", "b", "tie" or "skip"


# --- What is shown, in which order ---------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """One pair as it is shown on the screen."""

    item: str
    question: str
    answer_a: str  # on the left
    answer_b: str  # on the right
    model_a: str
    model_b: str
    swapped: bool  # whether the pair's second answer is A


def _shown(pair: Pair, swapped: bool) -> Shown:
    sides = ("second", "first") if swapped else ("first", "second")
    texts = [pair["item"], pair["question"], *(pair[side] for side in sides)]
    models = [pair.get(f"model_{side}", "") for side in sides]
    return Shown(*map(storable, texts), *models, swapped)


def _check_pairs(pairs: Sequence[Pair]) -> None:
    for number, pair in enumerate(pairs):
        if missing := [k for k in ("item", "question", "first", "second") if k not in pair]:
            raise ValueError(
                f"Pair {number} has {', '.join(pair)} and no {missing[0]}: a pair is a dict with "
                "item, question, first and second."
            )
    names, times = Counter(pair["item"] for pair in pairs).most_common(1)[0] if pairs else ("", 1)
    if times > 1:
        raise ValueError(f"{times} pairs are called {names!r}: give each pair its own item name.")


def queue(pairs: Sequence[Pair], seed: int = 0, repeat_share: float = 0.1) -> list[Shown]:
    """All pairs with sides drawn by seed and item, then a share of them again with swapped sides.

    The same seed gives the same queue, so a restart continues where it stopped.
    """
    _check_pairs(pairs)
    sides = {pair["item"]: random.Random(f"{seed} {pair['item']}").random() < 0.5 for pair in pairs}
    again = random.Random(f"{seed} again").sample(list(pairs), round(repeat_share * len(pairs)))
    return [_shown(pair, sides[pair["item"]]) for pair in pairs] + [
        _shown(pair, not sides[pair["item"]]) for pair in again
    ]


def _content(shown: Shown | Vote) -> tuple[str, frozenset[str]]:
    """A key shared by screens with the same item and the same two answers, on either side."""
    return shown.item, frozenset((shown.answer_a, shown.answer_b))


def waiting(line: Sequence[Shown], votes: Sequence[Vote]) -> list[Shown]:
    """The part of the queue without a vote; an item whose answers changed is asked again."""
    cast = Counter(map(_content, votes))
    left = []
    for shown in line:
        if cast[_content(shown)]:
            cast[_content(shown)] -= 1
        else:
            left.append(shown)
    return left


class Session:
    """One annotator's progress through the pairs; all of its state is in the store."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        store: VoteStore,
        annotator: str,
        seed: int = 0,
        repeat_share: float = 0.1,
        source: str = "panel",
    ) -> None:
        self.store, self.annotator, self.seed, self.source = store, annotator, seed, source
        self.queue = queue(pairs, seed, repeat_share)
        self.refresh()

    def refresh(self) -> None:
        """Read the annotator's votes from the store again."""
        self.votes = self.store.votes(self.annotator)
        self.waiting = waiting(self.queue, self.votes)

    @property
    def current(self) -> Shown | None:
        """The pair to judge now; None at the end."""
        return self.waiting[0] if self.waiting else None

    @property
    def done(self) -> int:
        """The number of pairs in the queue that have a vote."""
        return len(self.queue) - len(self.waiting)

    def vote(self, choice: str) -> Vote:
        """Store the choice for the current pair and go on to the next pair."""
        shown = self.current
        if shown is None:
            raise VoteError("Every pair has a vote: nothing is left to judge.")
        cast = self.store.add(
            Vote(
                **vars(shown),
                choice=choice,
                annotator=self.annotator,
                seed=self.seed,
                source=self.source,
            )
        )
        self.votes.append(cast)
        self.waiting.pop(0)
        return cast

    def undo(self) -> Vote | None:
        """Withdraw the latest vote if it is on one of these pairs; its pair is asked again."""
        self.refresh()
        mine = set(map(_content, self.queue))
        if not self.votes or _content(self.votes[-1]) not in mine:
            return None
        withdrawn = self.store.undo(self.annotator)
        self.refresh()
        return withdrawn


def simulate(
    pairs: Sequence[Pair],
    store: VoteStore,
    rule: Rule,
    annotator: str | None = None,
    seed: int = 0,
    repeat_share: float = 0.1,
) -> list[Vote]:
    """Votes by a rule in code, through the same session as a person; the name marks them.

    >>> def shorter(question, a, b): return "a" if len(a) < len(b) else "b"
    >>> simulate(pairs, store, shorter)  # votes as "simulated: shorter"
    """
    annotator = annotator or f"{SIMULATED} {rule.__name__}"
    if not annotator.startswith(SIMULATED):
        raise ValueError(
            f"The annotator {annotator!r} is a rule, not a person: begin its name with "
            f"{SIMULATED!r}."
        )
    session = Session(pairs, store, annotator, seed, repeat_share, source="simulated")
    cast = []
    while shown := session.current:
        cast.append(session.vote(rule(shown.question, shown.answer_a, shown.answer_b)))
    return cast


# --- The panel -----------------------------------------------------------------------------------

BLUE, ORANGE, GREY = "#35618f", "#a8651c", "#5f6b7a"  # white text is readable on each
LABELS = {  # command -> the button's label, its tooltip and its colour
    "a": ("A tốt hơn", "Answer A is better (key a)", BLUE),
    "b": ("B tốt hơn", "Answer B is better (key b)", ORANGE),
    "tie": ("Ngang nhau", "A tie: both are as good (key t)", GREY),
    "skip": ("Bỏ qua", "Skip: I cannot judge this pair (key s)", "#e3e8ee"),
    "undo": ("Hoàn tác", "Undo: take back my latest vote (key u)", "#e3e8ee"),
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
.course-note { font-size: 15px; font-weight: 600; line-height: 28px; }
.course-panel button.course-button { height: 42px; font-size: 17px; border-radius: 6px; }
.course-panel button.course-strong { color: #ffffff; font-weight: 600; }
.course-panel button.course-weak { color: #1b1f24; }
.course-panel button.course-button:focus-visible { outline: 3px solid #f2b134;
  outline-offset: 1px; }
</style>"""


def _answer_html(letter: str, text: str, colour: str) -> str:
    body = escape(text) if text.strip() else "<i>(câu trả lời trống)</i>"
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
    folded.set_title(0, "Tiêu chí chấm")
    folded.selected_index = None
    return folded


def _button(command: str) -> ipywidgets.Button:
    label, tooltip, colour = LABELS[command]
    wide = ipywidgets.Layout(flex="1 1 130px", width="auto", min_width="110px")
    button = ipywidgets.Button(description=label, tooltip=tooltip, layout=wide)
    button.style.button_color = colour
    button.add_class("course-button")
    button.add_class("course-weak" if command in ("skip", "undo") else "course-strong")
    return button


def _row(widgets: Sequence[ipywidgets.Widget]) -> ipywidgets.HBox:
    layout = ipywidgets.Layout(flex_flow="row wrap", align_items="center", margin="6px 0")
    row = ipywidgets.HBox(widgets, layout=layout)
    row.add_class("course-row")
    return row


class LabelPanel(ipywidgets.VBox):
    """A panel to judge pairs with buttons, or with a letter and Enter in the field below them.

    >>> LabelPanel(pairs, open_store())  # the last line of a cell shows it
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        store: VoteStore,
        annotator: str | None = None,
        seed: int = 0,
        rubric: Sequence[str] = DEFAULT_RUBRIC,
        repeat_share: float = 0.1,
    ) -> None:
        self.pairs, self.store, self.seed = pairs, store, seed
        self.repeat_share = repeat_share
        self.session: Session | None = None
        self.ready_at = 0.0  # the time from which a click counts again
        self.total = len(queue(pairs, seed, repeat_share))

        field = {"continuous_update": False}  # a value arrives with Enter
        self.name_field = ipywidgets.Text(annotator or "", placeholder="tên của bạn", **field)
        self.command_field = ipywidgets.Text(placeholder="a / b / t / s / u", **field)
        self.command_field.layout.width = "130px"
        self.bar = ipywidgets.IntProgress(value=0, min=0, max=max(self.total, 1))
        self.bar.layout = ipywidgets.Layout(flex="1 1 200px", width="auto")
        self.bar.style.bar_color = BLUE
        self.counter = ipywidgets.HTML()
        self.view, self.note = ipywidgets.HTML(), ipywidgets.HTML()
        self.buttons = {command: _button(command) for command in LABELS}

        self.name_field.layout.width = "200px"
        keys = "Bàn phím: a, b, t (ngang nhau), s (bỏ qua), u (hoàn tác) rồi Enter"
        super().__init__(
            [
                ipywidgets.HTML(STYLE),
                _row([ipywidgets.Label("Người chấm"), self.name_field, self.bar, self.counter]),
                _rubric(rubric),
                self.view,
                _row(list(self.buttons.values())),
                _row([ipywidgets.Label(keys), self.command_field, self.note]),
            ]
        )
        self.add_class("course-panel")
        self.name_field.observe(self._on_name, "value")
        self.command_field.observe(self._on_command, "value")
        for command, button in self.buttons.items():
            button.on_click(lambda _, command=command: self._on_click(command))
        self._begin(annotator or "")

    def __repr__(self) -> str:
        return f"LabelPanel({self.bar.value} of {self.total} done; open the notebook to vote)"

    def _on_name(self, change: Mapping) -> None:
        self._begin(change["new"])

    def _on_command(self, change: Mapping) -> None:
        typed = change["new"].strip().lower()
        if not change["new"]:
            return
        self.command_field.value = ""
        if typed in COMMANDS:
            self._act(COMMANDS[typed])
        else:
            self._say(f"“{typed}” không phải là lệnh: gõ a, b, t, s hoặc u.", wrong=True)

    def _on_click(self, command: str) -> None:
        if time.monotonic() >= self.ready_at:
            self._act(command)

    def _say(self, text: str, wrong: bool = False) -> None:
        self.note.value = _note_html(text, wrong)

    def _begin(self, name: str) -> None:
        """Start or resume this person's session."""
        self.session, name = None, name.strip()
        try:
            if name.startswith(SIMULATED):
                self._say(f"Tên bắt đầu bằng “{SIMULATED}” dành cho người chấm mô phỏng.", True)
            elif name:
                self.session = Session(self.pairs, self.store, name, self.seed, self.repeat_share)
                self._say("Tiếp tục từ chỗ đã dừng." if self.session.done else "")
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
                self._say(f"Đã ghi: {LABELS[command][0]}.")
            elif withdrawn := session.undo():
                self._say(f"Đã rút lại: {LABELS[withdrawn.choice][0]}.")
            else:
                self._say("Không còn phiếu nào để rút lại.")
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
            text = (
                "Đã chấm xong tất cả. Cảm ơn bạn!" if session else "Ghi tên rồi Enter để bắt đầu."
            )
            self.view.value = f'<div class="course-question">{text}</div>'
        for command, button in self.buttons.items():
            button.disabled = not session or (command != "undo" and shown is None)


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

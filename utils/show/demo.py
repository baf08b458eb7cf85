"""The web demo: one prompt, two saved models side by side, a vote for the store of notebook 07."""

import html
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from urllib.parse import urlsplit

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils.course import artifacts, colab
from utils.course.errors import CourseError
from utils.course.language import later, tr
from utils.models.saved import (
    MAX_CHARACTERS,
    MAX_TOKENS,
    MODELS,
    Answer,
    Entry,
    Library,
    SavedModelError,
    answer_both,
)
from utils.votes.pairs import shown
from utils.votes.schema import DEMO
from utils.votes.store import Vote, VoteError, VoteStore, open_store

MAX_SEED, MAX_NAME = 999, 60
EXAMPLE = "Vì sao lá cây có màu xanh?"
GUEST = "khách"  # the store's name for a visitor without one, in either language
CHOICES = {"a": later("A is better"), "tie": later("Tie"), "b": later("B is better")}
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
OPEN_PATHS = (  # the paths that the page itself requests; all others are refused
    "/assets/",
    "/static/",
    "/svelte/",
    "/theme.css",
    "/favicon.ico",
    "/manifest.json",
    "/gradio_api/queue/",
    "/gradio_api/heartbeat/",
    "/gradio_api/startup-events",
    "/gradio_api/reset",
    "/gradio_api/cancel",
    "/login",
)
LARGEST = 100_000  # bytes of a request; the longest prompt has 4,000 characters
THEME = gr.themes.Default(
    primary_hue="blue",
    spacing_size="sm",
    font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],  # fonts that need no download
    font_mono=[gr.themes.Font("monospace")],
)
CSS = """
.gradio-container {max-width: 1240px !important; padding: 12px 20px !important}
.html-container {padding: 0 !important}
.heading h1 {font-size: 1.4rem; margin: 0; display: inline}
.heading small {margin-left: 12px}
.heading small, .status-line small, .note small {opacity: .65; font-size: .85rem}
.status-line {min-height: 3.2em; padding: 5px 12px; border-radius: 6px}
.status-line.bad {background: #c44e5222}
.status-line.good {background: #4c8c5a2b}
.status-line small, .note small {display: block}
.note {min-height: 4.6em; padding: 0 12px}
.missing div {opacity: .6; border: 1px dashed currentColor; border-radius: 6px; padding: 4px 9px;
  margin-top: 6px; font-size: .82rem; line-height: 1.45; cursor: not-allowed}
.missing i {margin-right: 12px; white-space: nowrap; font-style: normal}
.settings label > span, .settings label {font-size: .82rem}
#prompt .submit-button {background: var(--primary-600); color: white}
button[id^=vote]:not(:disabled) {background: var(--primary-600); color: white}
footer {display: none !important}
"""


class DemoError(CourseError, ValueError):
    """A way to serve the page that would let anybody in."""


@dataclass(frozen=True)
class Round:
    """One prompt and its two answers, as the page shows them."""

    question: str
    entries: tuple[Entry, Entry]
    answers: tuple[Answer, Answer]
    seed: int
    voted: bool = False
    key: str = field(default_factory=lambda: secrets.token_hex(16))  # one vote per round

    def vote(self, choice: str, annotator: str) -> Vote:
        """The round as a vote; its item does not depend on which answer is on the left.

        Nobody has checked who the visitor is: the store keeps the vote apart until it is accepted.
        """
        sides = [(a.text, e.key) for a, e in zip(self.answers, self.entries, strict=True)]
        (first, model_first), (second, model_second) = sorted(sides)
        pair = {"question": self.question, "first": first, "second": second}
        pair |= {"model_first": model_first, "model_second": model_second}
        return Vote(
            **vars(shown(pair, swapped=sides != sorted(sides))),
            choice=choice,
            annotator=annotator[:MAX_NAME].strip() or GUEST,
            seed=self.seed,
            source=DEMO,
            campaign=DEMO,
            key=self.key,
        )


# --- The page's HTML: it contains no text of a model or of a visitor -----------------------------


def _status(sentence: str = "", *, mood: str = "") -> str:
    """A sentence under the answers, on a ground that says whether it went well."""
    return f'<div class="status-line {mood}" role="status">{html.escape(sentence)}</div>'


def _note(entries: tuple[Entry, Entry], answers: tuple[Answer, Answer], side: int) -> str:
    """The note under an answer: its model, and how each model with a reference scores it."""
    entry, answer = entries[side], answers[side]
    lines, against = [], []
    for judge, reward in dict(zip(entries, answer.rewards, strict=True)).items():
        if reward is not None:
            reference = next(other.label for other in MODELS if other.key == judge.reference)
            lines.append(f"<br>{html.escape(judge.label)}: <b>{reward:+.2f} nat</b>")
            score = {"model": judge.label, "reference": reference, "beta": f"{judge.beta:g}"}
            against.append(tr("{model} against {reference}, β = {beta}", **score))
    small = ""
    if lines:
        lines.insert(0, f"<br>{html.escape(tr('implicit reward of this answer by'))}")
        small = f"{tr('An implicit reward is not a measure of quality.')} {'; '.join(against)}"
    size = html.escape(tr("{count} tokens", count=answer.tokens))
    return (
        f'<div class="note"><b>{html.escape(entry.label)}</b> · {size}'
        f"{''.join(lines)}<small>{html.escape(small)}</small></div>"
    )


def _notes(entries: tuple[Entry, Entry], answers: tuple[Answer, Answer]) -> list[str]:
    return [_note(entries, answers, side) for side in (0, 1)]


def _hidden(answers: tuple[Answer, Answer]) -> list[str]:
    """The notes before a blind vote."""
    name = html.escape(tr("A hidden model"))
    words = html.escape(tr("You see the models and the implicit rewards after your vote."))
    sizes = [html.escape(tr("{count} tokens", count=answer.tokens)) for answer in answers]
    return [
        f'<div class="note"><b>{name}</b> · {size}<small>{words}</small></div>' for size in sizes
    ]


def _missing(library: Library) -> str:
    """The models that cannot be chosen yet, in grey, each with the notebook that makes it."""
    missing = [entry for entry in MODELS if entry.key not in library.available]
    boxes = ""
    for number in sorted({entry.notebook for entry in missing}):
        labels = [html.escape(entry.label) for entry in missing if entry.notebook == number]
        names = " ".join(f'<i aria-disabled="true">{label}</i>' for label in labels)
        first = html.escape(tr("run notebook {number} first", number=number))
        boxes += f"<div>{names}<br>{first}</div>"
    return f'<div class="missing">{html.escape(tr("Not made yet")) if boxes else ""}{boxes}</div>'


# --- What the page does --------------------------------------------------------------------------


def _buttons(active: bool) -> list[dict]:
    return [gr.update(interactive=active) for _ in CHOICES]


def _compare(
    library: Library,
    first: str | None,
    second: str | None,
    prompt: str | None,
    temperature: float,
    max_tokens: float,
    seed: float,
    blind: bool,
) -> Iterator[tuple]:
    """Stream both answers; in blind mode they come in random order and without names."""
    waiting = (None, *_buttons(False))
    keys = (first, second)
    order = (1, 0) if blind and secrets.randbelow(2) else (0, 1)
    yield "", "", "", "", _status(tr("Loading the models …")), *waiting
    settings = {"temperature": temperature, "max_tokens": int(max_tokens), "seed": int(seed)}
    try:
        for pair in answer_both(library, keys, prompt or "", **settings):
            answers = tuple(pair[side] for side in order)
            texts = [answer.text for answer in answers]
            yield *texts, "", "", _status(tr("Writing …")), *waiting
    except SavedModelError as error:
        yield "", "", "", "", _status(str(error), mood="bad"), *waiting
        return
    entries = library.available[keys[order[0]]], library.available[keys[order[1]]]
    answers = tuple(replace(a, rewards=tuple(a.rewards[side] for side in order)) for a in answers)
    notes = _hidden(answers) if blind else _notes(entries, answers)
    invitation = _status(tr("Which answer is better?"))
    done = Round(prompt.strip(), entries, answers, int(seed))
    yield *texts, *notes, invitation, done, *_buttons(True)


def _vote(store: VoteStore, choice: str, done: Round | None, annotator: str | None) -> tuple:
    """Store the vote and show the names; a second click changes nothing."""
    if done is None or done.voted:
        sentence = _status(tr("Send another question first."), mood="bad")
        return gr.skip(), gr.skip(), sentence, gr.skip(), *_buttons(False)
    try:
        store.add(done.vote(choice, annotator or ""))
    except VoteError as error:
        sentence = _status(tr("Your vote was not saved: {reason}", reason=error), mood="bad")
        return gr.skip(), gr.skip(), sentence, gr.skip(), *_buttons(True)
    notes = _notes(done.entries, done.answers)
    thanks = _status(
        tr("Thank you, your vote is saved: {choice}.", choice=tr(CHOICES[choice])), mood="good"
    )
    return *notes, thanks, replace(done, voted=True), *_buttons(False)


def build(shelf: artifacts.Shelf, store: VoteStore | None = None) -> gr.Blocks:
    """The page for the models that are on `shelf` when the page is built."""
    library, store = Library(shelf), store or open_store()
    choices = [(entry.label, key) for key, entry in library.available.items()]
    keys = [*library.available] or [None]
    title, slider = tr("Compare two models"), partial(gr.Slider, buttons=[], min_width=180)
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(
            f'<div class="heading"><h1>{html.escape(title)}</h1>'
            f"<small>artifacts/{html.escape(shelf.folder.name)}</small></div>"
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=285):
                models = [
                    gr.Dropdown(choices, value=keys[0], label=tr("Model 1")),
                    gr.Dropdown(choices, value=keys[:2][-1], label=tr("Model 2")),
                ]
                blind = gr.Checkbox(True, label=tr("Hide the names until I vote"))
                annotator = gr.Textbox(
                    GUEST,
                    label=tr("Your name"),
                    max_lines=1,
                    max_length=MAX_NAME,
                )
                gr.HTML(_missing(library))
            with gr.Column(scale=3, min_width=480):
                prompt = gr.Textbox(
                    label=tr("Question"),
                    placeholder=tr("For example: {question}", question=EXAMPLE),
                    max_lines=4,
                    max_length=MAX_CHARACTERS,
                    submit_btn=tr("Send"),
                    elem_id="prompt",
                )
                with gr.Row(elem_classes="settings"):
                    settings = [
                        slider(0, 1.5, 0.7, step=0.1, label=tr("Temperature")),
                        slider(8, MAX_TOKENS, 64, step=8, label=tr("Tokens, at most")),
                        slider(0, MAX_SEED, 0, step=1, label=tr("Seed")),
                    ]
                boxes, notes = [], []
                with gr.Row():
                    for side in "AB":
                        with gr.Column(min_width=220):
                            box = gr.Textbox(
                                label=tr("Answer {side}", side=side),
                                lines=9,
                                max_lines=9,
                                max_length=MAX_CHARACTERS,
                                interactive=False,
                                elem_id=f"answer-{side.lower()}",
                            )
                            boxes.append(box)
                            notes.append(gr.HTML(elem_id=f"note-{side.lower()}"))
                status = gr.HTML(_status(), elem_id="status")
                with gr.Row():
                    buttons = [
                        gr.Button(tr(words), interactive=False, elem_id=f"vote-{choice}")
                        for choice, words in CHOICES.items()
                    ]
        done = gr.State()
        after = [*notes, status, done, *buttons]
        prompt.submit(
            partial(_compare, library),
            [*models, prompt, *settings, blind],
            [*boxes, *after],
            api_visibility="private",
            show_progress="minimal",
            show_progress_on=status,
        )
        for choice, button in zip(CHOICES, buttons, strict=True):
            button.click(
                partial(_vote, store, choice),
                [done, annotator],
                after,
                api_visibility="private",
                concurrency_id="votes",
                show_progress="hidden",
            )
    return page.queue(max_size=64, default_concurrency_limit=1, api_open=False)


# --- Serving it ----------------------------------------------------------------------------------


def _guarded(app: ASGIApp, local: bool) -> ASGIApp:
    """Serve only the page's own paths; when `local`, serve them only to this machine.

    A foreign Host means that another domain name leads to this server. A foreign Origin means
    that a page of another site sent the request.
    """

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await app(scope, receive, send)
        headers, path = Headers(scope=scope), scope["path"]
        host, left = headers.get("host", ""), LARGEST
        try:
            foreign = urlsplit(f"//{host}").hostname not in LOOPBACK
            foreign |= urlsplit(headers.get("origin", f"//{host}")).netloc != host
        except ValueError:  # such as a bracket that is never closed
            foreign = True

        async def counted() -> Message:  # a body may come in parts, without its length
            nonlocal left
            message = await receive()
            if message["type"] == "http.request":
                left -= len(message.get("body", b""))
            return message if left >= 0 else {"type": "http.disconnect"}

        if local and foreign:
            refusal = PlainTextResponse("This demo answers only its own machine.", 403)
        elif not headers.get("content-length", "0").isdigit() or (
            int(headers.get("content-length", "0")) > LARGEST
        ):
            refusal = PlainTextResponse("This request is too large.", 413)
        elif path != "/" and not path.startswith(OPEN_PATHS):
            refusal = PlainTextResponse("This demo has no such page.", 404)
        else:
            return await app(scope, counted, send)
        return await refusal(scope, receive, send)

    return guard


def launch(
    page: gr.Blocks,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    inline: bool = False,
    share: bool = False,
    auth: tuple[str, str] | None = None,
) -> str:
    """Serve the page in the background and return its address.

    Other machines can reach it only if `host` or `share` allows it, and then with `auth`, a name
    and a password. On Colab and Kaggle the page is behind their own proxy, which uses its own host
    names, so the local check is off there.
    """
    public = share or host not in LOOPBACK
    if public and not (auth and all(auth)):
        raise DemoError(
            tr(
                "Other machines could use this demo without a password: pass a name and a password "
                "to launch as auth, or leave host and share as they are."
            )
        )
    local = not public and not colab.hosted()
    _, address, link = page.launch(
        server_name=host,
        server_port=port,
        inline=inline,
        share=share,
        auth=auth,
        auth_message=tr("The password is in the terminal."),
        height=840,
        prevent_thread_lock=True,
        quiet=True,
        theme=THEME,
        css=CSS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        max_file_size=1,  # bytes: nothing to upload here
        app_kwargs={"middleware": [Middleware(_guarded, local=local)]},
    )
    return link or address

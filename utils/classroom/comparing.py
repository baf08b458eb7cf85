"""A voter writes a prompt and compares the answers of two models; a bounded queue of prompts."""

import queue
import secrets
import threading
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from utils.classroom.security import Refusal
from utils.course.language import tr

MAX_PROMPT = 1000  # characters, checked before anything else is done with the text
WAITING = 12  # prompts in the queue
SECONDS = 60.0  # for the two answers to one prompt
KEPT = 300  # finished prompts in memory

Texts = tuple[str, str]
Writer = Callable[[str, int], Iterator[Texts]]  # prompt, seed -> the two answers as they grow


@dataclass
class Comparison:
    """One prompt and its two answers; the sides on the screen are drawn at random."""

    voter: str
    prompt: str
    swapped: bool
    seed: int
    status: str = "waiting"  # then "writing"; then "done", "slow" or "failed"
    texts: Texts = ("", "")
    choice: str = ""  # the voter's

    def sides(self) -> Texts:
        """The answers on the screen: A, B."""
        return self.texts[::-1] if self.swapped else self.texts


class Comparisons:
    """Prompts wait in a queue of bounded length, and one thread answers them in turn."""

    def __init__(self, write: Writer, models: tuple[str, str], seconds: float = SECONDS) -> None:
        self.write, self.models, self.seconds = write, models, seconds
        self._queue: queue.Queue[Comparison] = queue.Queue(WAITING)
        self._known: OrderedDict[str, Comparison] = OrderedDict()
        self._lock = threading.Lock()
        threading.Thread(target=self._work, daemon=True, name="comparisons").start()

    def ask(self, voter: str, prompt: str) -> str:
        """Put a prompt into the queue; return the name under which its answers are found."""
        if len(prompt) > MAX_PROMPT:
            raise Refusal(400, "long", f"A prompt has at most {MAX_PROMPT} characters.")
        prompt = unicodedata.normalize("NFC", prompt).strip()
        if not prompt:
            raise Refusal(400, "empty", "Write a prompt.")
        one = Comparison(voter, prompt, bool(secrets.randbelow(2)), secrets.randbelow(2**31))
        with self._lock:
            mine = [c for c in self._known.values() if c.voter == voter]
            if any(c.status in ("waiting", "writing") for c in mine):
                raise Refusal(429, "mine", "Your former prompt is still being answered.")
            try:
                self._queue.put_nowait(one)
            except queue.Full:
                raise Refusal(503, "queue", "Many prompts are waiting: try again soon.") from None
            name = secrets.token_hex(8)
            self._known[name] = one
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return name

    def find(self, voter: str, name: str) -> Comparison:
        """A voter's own comparison."""
        found = self._known.get(name)
        if found is None or found.voter != voter:
            raise Refusal(404, "gone", "This prompt is no longer known: write it again.")
        return found

    def _work(self) -> None:
        while True:
            one = self._queue.get()
            one.status = "writing"
            one.status = self._answer(one)

    def _answer(self, one: Comparison) -> str:
        end = time.monotonic() + self.seconds
        try:
            for texts in self.write(one.prompt, one.seed):
                one.texts = texts
                if time.monotonic() > end:
                    return "slow"
        except Exception as error:  # out of memory, a damaged artifact: the page lives on
            kind = type(error).__name__
            print(tr("A prompt was not answered: {kind}: {error}", kind=kind, error=error))
            return "failed"
        return "done"


def saved_models(shelf: "artifacts.Shelf", keys: tuple[str, str]) -> Writer:  # noqa: F821
    """A writer that loads two saved models at the first prompt."""
    from utils.models.saved import Library, answer_both

    library = Library(shelf)

    def write(prompt: str, seed: int) -> Iterator[Texts]:
        settings = {"temperature": 0.7, "max_tokens": 96, "seed": seed, "score": False}
        for first, second in answer_both(library, keys, prompt, **settings):
            yield first.text, second.text

    return write

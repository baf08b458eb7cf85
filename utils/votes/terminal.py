"""Label pairs in a terminal, with the questions and the order of the notebook's panel."""

import re
from collections.abc import Sequence

from utils.course.language import later, tr
from utils.votes.pairs import Pair
from utils.votes.session import COMMANDS, DEFAULT_RUBRIC, SIMULATED, Session
from utils.votes.store import CHOICES, VoteError, VoteStore

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # an answer must not steer the terminal
KEYS = later("a, b, t (tie), s (skip), u (undo), q (quit): ")


def label_in_terminal(
    pairs: Sequence[Pair],
    store: VoteStore,
    annotator: str = "",
    seed: int = 0,
    rubric: Sequence[str] = DEFAULT_RUBRIC,
    repeat_share: float = 0.1,
    campaign: str = "",
) -> int:
    """Ask for votes until all pairs have one, or until `q`; return how many pairs are done.

    >>> label_in_terminal(store.pairs("trời"), store, "An", campaign="trời")
    """
    session = None
    try:
        while not annotator or annotator.startswith(SIMULATED):
            annotator = input(tr("Your name: ")).strip()
        session = Session(pairs, store, annotator, seed, repeat_share, "terminal", campaign)
        print(tr("Criteria") + ":", *rubric, sep="\n  - ")
        while session.current and _obey(session, _ask(session)):
            pass
    except (EOFError, KeyboardInterrupt):
        print()
    except VoteError as error:  # the store cannot be reached: one sentence
        print(error)
    if session is None:
        return 0
    print(
        tr("{done} of {count} pairs have your vote.", done=session.done, count=len(session.queue))
    )
    return session.done


def _ask(session: Session) -> str:
    """Print the current pair and read a command."""
    screen = session.current
    texts = (screen.question, screen.answer_a, screen.answer_b)
    question, *answers = (CONTROL.sub("", text) for text in texts)
    print(f"\n[{session.done + 1} / {len(session.queue)}] {question}")
    for letter, answer in zip("AB", answers, strict=True):
        print(f"\n--- {letter} ---\n{answer or tr('(empty answer)')}")
    return input(f"\n{tr(KEYS)}").strip().lower()


def _obey(session: Session, typed: str) -> bool:
    """Do what was typed; False for a rest. If a vote was not confirmed, its pair is asked again."""
    command = COMMANDS.get(typed)
    try:
        if command in CHOICES:
            session.vote(command)
        elif command == "undo" and session.undo() is None:
            print(tr("There is no vote to take back."))
        elif command is None and typed != "q":
            text = tr("“{typed}” is not a command: type a, b, t, s, u or q.", typed=typed)
            print(CONTROL.sub("", text))
    except VoteError as error:
        print(error)
    return typed != "q"

"""Notebook 07: kappa by hand, the pull of a side, pairs from votes."""

import math
from collections.abc import Callable, Sequence

from utils.exercises.checks import Verdict, exercise
from utils.votes.store import Vote

FIRST = ["first", "first", "first", "first", "first", "first", "second", "second", "tie", "tie"]
SECOND = ["first", "first", "first", "first", "second", "first", "second", "tie", "tie", "first"]
# observed 7 of 10; by chance (6·6 + 2·2 + 2·2) of 100
OBSERVED, BY_CHANCE = 0.7, 0.44


def _vote(choice: str, swapped: bool, question: str = "?") -> Vote:
    return Vote(question, question, "trái", "phải", choice, "An", swapped=swapped)


VOTES = [  # four A, two B, one tie, one skip; five for the pair's first answer, one for its second
    _vote("a", False, "q1"),
    _vote("a", False, "q2"),
    _vote("a", False, "q3"),
    _vote("a", True, "q4"),
    _vote("b", True, "q5"),
    _vote("b", True, "q6"),
    _vote("tie", False, "q7"),
    _vote("skip", True, "q8"),
]


@exercise("07.1")
def _kappa_by_hand(attempt: Callable[[Sequence[str], Sequence[str]], float]) -> Verdict:
    """`attempt(first, second) -> kappa` of two lists of opinions."""
    answer = float(attempt(list(FIRST), list(SECOND)))
    wanted = (OBSERVED - BY_CHANCE) / (1 - BY_CHANCE)
    if abs(answer - OBSERVED) < 1e-6:
        return "that is the plain agreement: take off what chance alone would reach."
    if abs(answer - (OBSERVED - BY_CHANCE)) < 1e-6:
        return "divide by what was left to agree on, 1 - p_e: perfect agreement must give 1."
    if abs(answer - (OBSERVED - 1 / 3) / (1 - 1 / 3)) < 1e-6:
        return "chance is not one in three: multiply how often each of the two says each word."
    if abs(answer - (OBSERVED - 0.5) / 0.5) < 1e-6:
        return "chance is not a coin: multiply how often each of the two says each word."
    if abs(answer - wanted) > 1e-6:
        return f"here p_o = {OBSERVED} and p_e = {BY_CHANCE}, so kappa is {wanted:.3f}."
    opposite = float(attempt(["first", "second"] * 5, ["second", "first"] * 5))
    if abs(opposite + 1) > 1e-6:
        return "two who always disagree reach -1: do not cut kappa off at 0."
    return None


@exercise("07.2")
def _side(attempt: Callable[[Sequence[Vote]], float]) -> Verdict:
    """`attempt(votes) -> share of A among the decided votes`."""
    answer = float(attempt(list(VOTES)))
    if math.isclose(answer, 4 / 6, abs_tol=1e-6):
        return None
    if math.isclose(answer, 4 / 8, abs_tol=1e-6):
        return "ties and skips chose no side: divide by the A and B votes alone."
    if math.isclose(answer, 4 / 7, abs_tol=1e-6):
        return "a tie chose no side either: divide by the A and B votes alone."
    if math.isclose(answer, 2 / 6, abs_tol=1e-6):
        return "that is the share of B."
    if math.isclose(answer, 5 / 6, abs_tol=1e-6):
        return "the bias is about the side on the screen: leave `swapped` alone."
    return "four of the votes say A and two say B: the share is 0.667."


@exercise("07.3")
def _pairs(attempt: Callable[[Sequence[Vote]], Sequence[dict]]) -> Verdict:
    """`attempt(votes) -> [{"prompt", "chosen", "rejected"}]` of the decided votes."""
    rows = [dict(row) for row in attempt(list(VOTES))]
    wanted = [
        {
            "prompt": vote.question,
            "chosen": vote.answer_a if vote.choice == "a" else vote.answer_b,
            "rejected": vote.answer_b if vote.choice == "a" else vote.answer_a,
        }
        for vote in VOTES[:6]
    ]
    if rows == wanted:
        return None
    if any(set(row) != {"prompt", "chosen", "rejected"} for row in rows):
        return "each row has exactly the keys prompt, chosen and rejected."
    if len(rows) == 8:
        return "a tie and a skip name no better answer: leave both out."
    if len(rows) == 7:
        return "one row too many: a tie and a skip both name no better answer."
    if len(rows) != 6:
        return f"six of the eight votes are decided, yours has {len(rows)} rows."
    chosen = [row["chosen"] for row in rows]
    if chosen == [row["rejected"] for row in wanted]:
        return "chosen and rejected are exchanged."
    if chosen == ["trái"] * 6:
        return "A is not always the chosen one: look at the vote's choice."
    unswapped = [
        vote.answer_a if (vote.choice == "a") != vote.swapped else vote.answer_b
        for vote in VOTES[:6]
    ]
    if chosen == unswapped:
        return (
            "answer_a is what stood on the left, so `choice` alone says which text won: "
            "undoing `swapped` as well turns the labels of half the rows round."
        )
    return "the first row is q1 with chosen 'trái' and rejected 'phải'."

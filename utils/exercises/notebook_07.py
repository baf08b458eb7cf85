"""Notebook 07: kappa by hand, position bias, pairs from votes."""

import math
from collections.abc import Callable, Sequence

from utils.course.language import tr
from utils.exercises.checks import Verdict, exercise
from utils.votes.store import Vote

FIRST = ["first", "first", "first", "first", "first", "first", "second", "second", "tie", "tie"]
SECOND = ["first", "first", "first", "first", "second", "first", "second", "tie", "tie", "second"]
# observed agreement 7 of 10; agreement by chance (6·5 + 2·3 + 2·2) of 100
OBSERVED, BY_CHANCE = 0.7, 0.40
ONE_SHARE = (0.44, 0.38, 0.405)  # squares of the first's shares, of the second's, of their means


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
        return "that is the plain agreement: subtract p_e, the agreement expected by chance."
    if abs(answer - (OBSERVED - BY_CHANCE)) < 1e-6:
        return "divide by 1 - p_e, so that perfect agreement gives 1."
    if abs(answer - (OBSERVED - 1 / 3) / (1 - 1 / 3)) < 1e-6:
        return "chance is not one in three: multiply the two annotators' shares of each opinion."
    if abs(answer - (OBSERVED - 0.5) / 0.5) < 1e-6:
        return "chance is not a coin: multiply the two annotators' shares of each opinion."
    if any(abs(answer - (OBSERVED - chance) / (1 - chance)) < 1e-6 for chance in ONE_SHARE):
        return "p_e needs the shares of both annotators: multiply one's share by the other's."
    if abs(answer - wanted) > 1e-6:
        return tr(
            "here p_o = {observed} and p_e = {by_chance}, so kappa is {wanted:.3f}.",
            observed=OBSERVED,
            by_chance=BY_CHANCE,
            wanted=wanted,
        )
    opposite = float(attempt(["first", "second"] * 5, ["second", "first"] * 5))
    if abs(opposite + 1) > 1e-6:
        return "two annotators who always disagree have kappa -1: do not cut kappa off at 0."
    return None


@exercise("07.2")
def _side(attempt: Callable[[Sequence[Vote]], float]) -> Verdict:
    """`attempt(votes) -> share of A among the decided votes`."""
    answer = float(attempt(list(VOTES)))
    if math.isclose(answer, 4 / 6, abs_tol=1e-6):
        return None
    if math.isclose(answer, 4 / 8, abs_tol=1e-6):
        return "ties and skips chose no side: divide by the number of A and B votes."
    if math.isclose(answer, 4 / 7, abs_tol=1e-6):
        return "a tie chose no side either: divide by the number of A and B votes."
    if math.isclose(answer, 2 / 6, abs_tol=1e-6):
        return "that is the share of B: return the share of A."
    if math.isclose(answer, 5 / 6, abs_tol=1e-6):
        return "the bias is about the side on the screen: do not use `swapped`."
    return "four of the votes are for A and two are for B, so the share is 0.667."


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
        return "each row must have exactly the keys prompt, chosen and rejected."
    if len(rows) == 8:
        return "a tie and a skip name no better answer: leave both out."
    if len(rows) == 7:
        return "you have one row too many: neither a tie nor a skip names a better answer."
    if len(rows) != 6:
        return tr(
            "six of the eight votes are decided, and you return {count} rows.", count=len(rows)
        )
    chosen = [row["chosen"] for row in rows]
    if chosen == [row["rejected"] for row in wanted]:
        return "chosen and rejected are exchanged."
    if chosen == ["trái"] * 6:
        return "A is not always the chosen answer: look at the vote's choice."
    unswapped = [
        vote.answer_a if (vote.choice == "a") != vote.swapped else vote.answer_b
        for vote in VOTES[:6]
    ]
    if chosen == unswapped:
        return (
            "answer_a was on the left of the screen, so `choice` alone determines which text won: "
            "undoing `swapped` as well reverses the labels of half the rows."
        )
    return "the first row has the prompt q1, chosen 'trái' and rejected 'phải'."

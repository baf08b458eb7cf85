from collections import Counter


def _chances(first, second):
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    mine, theirs = Counter(first), Counter(second)
    by_chance = sum(mine[word] * theirs[word] for word in mine) / len(first) ** 2
    return observed, by_chance


def _kappa(first, second):
    observed, by_chance = _chances(first, second)
    return (observed - by_chance) / (1 - by_chance)


def _with_chance(first, second, counted):
    """As `_kappa`, from the shares of one list only; of both lists together: Scott's pi."""
    by_chance = sum(n**2 for n in counted.values()) / counted.total() ** 2
    return (_chances(first, second)[0] - by_chance) / (1 - by_chance)


def _share(votes, counted=("a", "b"), side="a"):
    choices = [vote.choice for vote in votes if vote.choice in counted]
    return choices.count(side) / len(choices)


def _first_of_the_pair(votes):
    decided = [vote for vote in votes if vote.choice in ("a", "b")]
    return sum((vote.choice == "a") != vote.swapped for vote in decided) / len(decided)


def _row(vote, a_won):
    answers = (vote.answer_a, vote.answer_b) if a_won else (vote.answer_b, vote.answer_a)
    return dict(zip(("prompt", "chosen", "rejected"), (vote.question, *answers), strict=True))


def _pairs(votes, keep=("a", "b"), a_won=lambda vote: vote.choice == "a"):
    return [_row(vote, a_won(vote)) for vote in votes if vote.choice in keep]


EVERY = ("a", "b", "tie", "skip")
RIGHT = {"07.1": _kappa, "07.2": _share, "07.3": _pairs}
WRONG = [
    ("07.1", lambda a, b: _chances(a, b)[0], "plain agreement"),
    ("07.1", lambda a, b: _chances(a, b)[0] - _chances(a, b)[1], "divide by 1 - p_e"),
    ("07.1", lambda a, b: (_chances(a, b)[0] - 1 / 3) / (2 / 3), "not one in three"),
    ("07.1", lambda a, b: 2 * _chances(a, b)[0] - 1, "not a coin"),
    ("07.1", lambda a, b: _with_chance(a, b, Counter(a)), "shares of both annotators"),
    ("07.1", lambda a, b: _with_chance(a, b, Counter(b)), "shares of both annotators"),
    ("07.1", lambda a, b: _with_chance(a, b, Counter(a + b)), "shares of both annotators"),
    ("07.1", lambda a, b: max(0.0, _kappa(a, b)), "always disagree"),
    ("07.2", lambda votes: _share(votes, EVERY), "ties and skips chose no side"),
    ("07.2", lambda votes: _share(votes, ("a", "b", "tie")), "a tie chose no side"),
    ("07.2", lambda votes: _share(votes, side="b"), "share of B"),
    ("07.2", _first_of_the_pair, "do not use `swapped`"),
    ("07.3", lambda votes: _pairs(votes, EVERY), "leave both out"),
    ("07.3", lambda votes: _pairs(votes, ("a", "b", "tie")), "one row too many"),
    ("07.3", lambda votes: _pairs(votes, a_won=lambda v: v.choice == "b"), "are exchanged"),
    ("07.3", lambda votes: _pairs(votes, a_won=lambda v: True), "A is not always the chosen"),
    (
        "07.3",
        lambda votes: _pairs(votes, a_won=lambda v: (v.choice == "a") != v.swapped),
        "undoing `swapped` as well",
    ),
]

"""What the projector and the teacher see of the votes: counts, agreement, disagreement."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from utils.votes.agreement import (
    PREFERENCES,
    Kappa,
    Share,
    fleiss_kappa,
    mean_cohen_kappa,
    position_bias,
    preference,
    reliable,
)
from utils.votes.pairs import TEXTS, Pair, item_of
from utils.votes.schema import REFUSED
from utils.votes.store import Vote, tally

SHOWN = 5  # items with the most disagreement
Figures = Mapping[str, object]


def _json(figure: Share | Kappa) -> dict[str, float | int | None]:
    """A figure with its interval; an undefined number is None, because JSON has no nan."""
    values = vars(figure).items()
    return {name: None if math.isnan(value) else value for name, value in values}


def disagreement(counts: Mapping[str, int]) -> float:
    """The share of couples of voters that do not agree on an item; 0 for fewer than two votes.

    >>> disagreement({"first": 2, "second": 2})
    0.6666666666666666
    """
    voters = sum(counts.values())
    agreeing = sum(n * (n - 1) for n in counts.values())
    return 1 - agreeing / (voters * (voters - 1)) if voters > 1 else 0.0


def _standing(votes: Sequence[Vote]) -> list[Vote]:
    """The votes that no teacher has refused."""
    return [vote for vote in votes if vote.status != REFUSED]


def figures(pairs: Sequence[Pair], votes: Sequence[Vote]) -> Figures:
    """The projector's figures of a campaign: per item, and over all items, of votes that stand."""
    votes = _standing(votes)
    counts: dict[str, Counter] = defaultdict(Counter)
    for vote in votes:
        counts[vote.item][preference(vote)] += 1
    items = []
    for number, pair in enumerate(pairs, start=1):
        found = counts[item_of(pair)]
        decided = {name: found[name] for name in PREFERENCES}
        items.append(
            {
                "number": number,
                "votes": {**decided, "skip": found["skip"]},
                "disagreement": disagreement(decided),
            }
        )
    # first the most divided item; of two equally divided ones, the one with more votes
    order = sorted(items, key=lambda i: (-i["disagreement"], -sum(i["votes"].values())))
    return {
        "items": items,
        "talk": [
            item | {name: pairs[item["number"] - 1][name] for name in TEXTS}
            for item in order[:SHOWN]
            if item["disagreement"] > 0
        ],
        "voters": len({vote.annotator for vote in votes}),
        "tally": tally(votes),
        "cohen": _json(mean_cohen_kappa(votes)),
        "fleiss": _json(fleiss_kappa(votes)),
        "position": _json(position_bias(votes)),
    }


def voters(names: Sequence[str], votes: Sequence[Vote]) -> list[dict[str, object]]:
    """The teacher's table: per voter the votes by status, κ against the others, and the verdict.

    Refused votes count in their column only.
    """
    standings = {one.annotator: one for one in reliable(_standing(votes)).standings}
    by_status: dict[str, Counter] = defaultdict(Counter)
    for vote in votes:
        by_status[vote.annotator][vote.status] += 1
    table = []
    for name in dict.fromkeys([*names, *by_status]):
        standing = standings.get(name)
        kappa = standing.kappa if standing else math.nan
        table.append(
            {
                "name": name,
                **{
                    status: by_status[name][status] for status in ("accepted", "waiting", "refused")
                },
                "kappa": None if math.isnan(kappa) else kappa,
                "kept": standing.kept if standing else True,
            }
        )
    return table

"""How reliable votes are: agreement with oneself, agreement with the others, position bias."""

import math
import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from utils.course.errors import SettingError
from utils.course.language import tr
from utils.votes.store import Vote

LEAST = 5  # with fewer items, an agreement is too uncertain to judge an annotator


@dataclass(frozen=True)
class Share:
    """A share of `count` cases, with its 95 % interval."""

    value: float  # nan when the count is 0
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] of {self.count}"


@dataclass(frozen=True)
class Standing:
    """The measurements of one annotator."""

    annotator: str
    self_agreement: Share  # how often the same answer was preferred when an item was repeated
    kappa: float  # against the majority of the others; nan when it cannot be computed
    shared: int  # number of items on which the others have a majority too
    kept: bool
    reason: str  # why the annotator was kept or left out, in words


@dataclass(frozen=True)
class Reliable:
    """The votes to train on, and which annotators were left out."""

    votes: list[Vote]  # one per item
    split: list[str]  # items without a majority among the consistent opinions of kept annotators
    standings: list[Standing]  # one per annotator


def preference(vote: Vote) -> str:
    """The preferred answer, independent of its side: "first", "second", "tie" or "skip".

    >>> preference(Vote("q", "?", "x", "y", "a", "An", swapped=True))
    'second'
    """
    if vote.choice not in ("a", "b"):
        return vote.choice
    return "first" if (vote.choice == "a") != vote.swapped else "second"


# --- Cohen's kappa -------------------------------------------------------------------------------


def _codes(first: Sequence[Hashable], second: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    """Both ratings as class numbers, (2, items), and the number of classes."""
    if len(first) != len(second):
        raise SettingError(
            tr(
                "Kappa compares two ratings of the same items and found {first} and {second}: "
                "give one rating per item, both lists in the same order.",
                first=len(first),
                second=len(second),
            )
        )
    number = {label: code for code, label in enumerate(dict.fromkeys([*first, *second]))}
    codes = [[number[label] for label in ratings] for ratings in (first, second)]
    return np.array(codes, dtype=np.int64).reshape(2, -1), len(number)


def _kappa(codes: np.ndarray, classes: int) -> float:
    """scikit-learn's κ; nan if there is only one class, or no item."""
    if classes < 2:
        return math.nan
    return cohen_kappa_score(*codes)


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Agreement beyond chance: 1 is perfect agreement, 0 is that of two independent coins.

    >>> cohen_kappa("aabb", "aabb"), cohen_kappa("aabb", "abab")
    (1.0, 0.0)
    """
    codes, classes = _codes(first, second)
    if classes == 0:
        warnings.warn(
            tr("Kappa of no items is undefined (nan): give items that both annotators rated."),
            stacklevel=2,
        )
    elif classes == 1:
        warnings.warn(
            tr(
                "Kappa is undefined (nan) because both ratings are always {rating!r}, so chance "
                "alone gives full agreement: rate items that differ more.",
                rating=first[0],
            ),
            stacklevel=2,
        )
    return _kappa(codes, classes)


def kappa_interval(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of κ, items drawn with replacement; nan when κ itself is undefined.

    Draws of one class only are left out, because κ is undefined there. The κ of all draws are
    computed at once: 2,000 calls of scikit-learn's function take 100 times longer.
    """
    codes, classes = _codes(first, second)
    if classes < 2:
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    drawn = generator.integers(codes.shape[1], size=(draws, codes.shape[1]))
    ones, twos = (codes[:, drawn][..., None] == np.arange(classes)).sum(2)  # (draws, classes) each
    by_chance = (ones * twos).sum(1)  # p_e · items²
    observed = (codes[0] == codes[1])[drawn].sum(1) * codes.shape[1]  # p_o · items²
    with np.errstate(invalid="ignore"):  # 0 / 0 where κ is undefined
        values = (observed - by_chance) / (codes.shape[1] ** 2 - by_chance)
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


# --- Agreement on pairs --------------------------------------------------------------------------
#
# Which answer of a pair is called first is arbitrary. So chance gives both the same probability,
# the mean of their frequencies. With the frequencies themselves κ would be near 0 for annotators
# who agree on nearly all pairs, if the better answer were always the first one (for instance the
# tuned model's).

PREFERENCES = ("first", "second", "tie")
COUPLES = 600  # of annotators, for the mean of Cohen's κ


@dataclass(frozen=True)
class Kappa:
    """An agreement beyond chance, with its 95 % interval over the items; nan if undefined."""

    value: float
    low: float
    high: float
    count: int  # items with at least two opinions

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] of {self.count}"


def _ratings(votes: Sequence[Vote]) -> np.ndarray:
    """Latest opinions as class numbers: (annotators, items), -1 without one."""
    table = {
        annotator: {item: PREFERENCES.index(voted[-1]) for item, voted in items.items()}
        for annotator, items in _decided(votes).items()
    }
    items = list(dict.fromkeys(item for opinions in table.values() for item in opinions))
    rows = [[opinions.get(item, -1) for item in items] for opinions in table.values()]
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(items))


def _exchangeable(shares: np.ndarray) -> np.ndarray:
    """Frequencies of first, second and tie, (..., 3), with the mean for first and second."""
    mean = shares[..., :2].mean(-1, keepdims=True)
    return np.concatenate([mean, mean, shares[..., 2:]], axis=-1)


def pair_kappa(mine: Sequence[str], theirs: Sequence[str]) -> float:
    """Cohen's κ of two lists of preferences, with first and second equally likely by chance.

    >>> pair_kappa(["first", "first", "second", "first"], ["first"] * 4)
    0.5
    """
    ratings = np.array([[PREFERENCES.index(p) for p in side] for side in (mine, theirs)])
    weights = np.ones((1, len(mine)))
    return float(_mean_cohen(ratings, weights)[0]) if len(mine) else math.nan


def _fleiss(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fleiss' κ for each row of `weights`, (draws, items), from counts: (items, classes)."""
    raters = counts.sum(1)  # at least two per item
    agreeing = (counts * (counts - 1)).sum(1) / (raters * (raters - 1))
    observed = weights @ agreeing / weights.sum(1)
    shares = weights @ counts
    by_chance = (_exchangeable(shares / shares.sum(1, keepdims=True)) ** 2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(by_chance < 1, (observed - by_chance) / (1 - by_chance), np.nan)


def _mean_cohen(ratings: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean Cohen's κ of the couples of annotators, for each row of `weights`."""
    classes = np.arange(len(PREFERENCES))
    total, defined = np.zeros(len(weights)), np.zeros(len(weights))
    couples = list(combinations(range(len(ratings)), 2))
    if len(couples) > COUPLES:
        couples = random.Random(0).sample(couples, COUPLES)
    for one, other in couples:
        first, second = ratings[one], ratings[other]
        drawn = weights * ((first >= 0) & (second >= 0))
        count = drawn.sum(1)
        ones, twos = (drawn @ (r[:, None] == classes) for r in (first, second))
        observed = drawn @ (first == second)
        by_chance = (_exchangeable(ones) * _exchangeable(twos)).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            kappa = (observed * count - by_chance) / (count**2 - by_chance)
        fine = np.isfinite(kappa)
        total[fine] += kappa[fine]
        defined += fine
    return np.where(defined > 0, total / np.maximum(defined, 1), np.nan)


def _with_interval(
    kappas: Callable[[np.ndarray], np.ndarray], items: int, draws: int, seed: int
) -> Kappa:
    """κ of all items, and the percentile interval of κ when items are drawn with replacement."""
    if items == 0:
        return Kappa(math.nan, math.nan, math.nan, 0)
    value = float(kappas(np.ones((1, items)))[0])
    drawn = np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), size=draws)
    values = kappas(drawn.astype(float))
    values = values[np.isfinite(values)]
    if math.isnan(value) or not len(values):
        return Kappa(math.nan, math.nan, math.nan, items)
    low, high = np.quantile(values, [0.025, 0.975])
    return Kappa(value, float(low), float(high), items)


def fleiss_kappa(votes: Sequence[Vote], *, draws: int = 1000, seed: int = 0) -> Kappa:
    """Fleiss' κ of all annotators on the items that at least two of them decided.

    The numbers of annotators may differ between items: then an item's agreement is the share of
    its couples of annotators that agree, and every item has the same weight.
    """
    ratings = _ratings(votes)
    counts = (ratings[..., None] == np.arange(len(PREFERENCES))).sum(0)  # (items, classes)
    counts = counts[counts.sum(1) >= 2]
    return _with_interval(partial(_fleiss, counts), len(counts), draws, seed)


def mean_cohen_kappa(votes: Sequence[Vote], *, draws: int = 300, seed: int = 0) -> Kappa:
    """The mean of Cohen's κ over the couples of annotators (Light's κ), each on shared items.

    A large class has thousands of couples: then a fixed sample of them is used.
    """
    ratings = _ratings(votes)
    ratings = ratings[:, (ratings >= 0).sum(0) >= 2]
    of = partial(_mean_cohen, ratings)
    return _with_interval(of, ratings.shape[1], draws, seed)


# --- One annotator -------------------------------------------------------------------------------


def wilson(hits: int, count: int) -> Share:
    """A share with Wilson's 95 % interval, which stays in [0, 1] and is valid for few items too.

    >>> print(wilson(8, 10))
    0.80 [0.49, 0.94] of 10
    """
    if count == 0:
        return Share(math.nan, math.nan, math.nan, 0)
    interval = binomtest(hits, count).proportion_ci(method="wilson")
    return Share(hits / count, float(interval.low), float(interval.high), count)


def position_bias(votes: Sequence[Vote]) -> Share:
    """The share of A among the A and B votes; far from 0.5, the side decides, not the answer."""
    sides = Counter(vote.choice for vote in votes)
    return wilson(sides["a"], sides["a"] + sides["b"])


def _decided(votes: Sequence[Vote]) -> dict[str, dict[str, list[str]]]:
    """Annotator -> item -> preferences in the order of the votes; skips are left out."""
    table: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for vote in votes:
        if vote.choice != "skip":
            table[vote.annotator][vote.item].append(preference(vote))
    return table


def repeated_items(votes: Sequence[Vote]) -> dict[str, Share]:
    """Annotator -> how often the same answer was preferred when an item was repeated.

    The first and the last vote on an item are compared; the order on screen may differ.
    """
    return {
        annotator: _self_agreement(items) for annotator, items in sorted(_decided(votes).items())
    }


def _self_agreement(items: Mapping[str, Sequence[str]]) -> Share:
    repeated = [preferences for preferences in items.values() if len(preferences) > 1]
    same = sum(preferences[0] == preferences[-1] for preferences in repeated)
    return wilson(same, len(repeated))


# --- Several annotators --------------------------------------------------------------------------


def _opinion(preferences: Sequence[str]) -> str | None:
    """One annotator's preference on an item; None if it changed between the votes."""
    return preferences[0] if len(set(preferences)) == 1 else None


def majority(opinions: Sequence[str]) -> str | None:
    """The most frequent opinion; None if two opinions are equally frequent, or there is none.

    >>> majority(["first", "first", "second"]), majority(["first", "second"])
    ('first', None)
    """
    leading = Counter(opinions).most_common(2)
    if not leading or (len(leading) == 2 and leading[0][1] == leading[1][1]):
        return None
    return leading[0][0]


def _against_the_others(
    annotator: str, opinions: Mapping[str, Mapping[str, str]], heard: Collection[str]
) -> tuple[list[str], list[str]]:
    """One annotator's opinions and the majority's among `heard`, on items that have both."""
    mine, theirs = [], []
    for item, opinion in opinions[annotator].items():
        others = majority(
            [opinions[name][item] for name in heard if name != annotator and item in opinions[name]]
        )
        if others is not None:
            mine.append(opinion)
            theirs.append(others)
    return mine, theirs


def _steady(self_agreement: Share, threshold: float) -> bool:
    """Whether the self-agreement is high enough, or not measured on enough items."""
    return self_agreement.count < LEAST or self_agreement.value >= threshold


def _judge(self_agreement: Share, kappa: float, shared: int, threshold: float) -> tuple[bool, str]:
    """Whether an annotator is kept, and why."""
    measured = []
    if self_agreement.count >= LEAST:
        number = self_agreement.count
        what = tr("self-agreement on {number} repeated items", number=number)
        measured.append((self_agreement.value, what))
    if shared >= LEAST and not math.isnan(kappa):
        measured.append((kappa, tr("kappa against the others on {number} items", number=shared)))
    if not measured:
        return True, tr(
            "kept, not measured: fewer than {least} usable repeated or shared items", least=LEAST
        )
    for value, what in measured:
        if value < threshold:
            return False, tr(
                "left out: {what} is {value:.2f}, below {threshold:.2f}",
                what=what,
                value=value,
                threshold=threshold,
            )
    figures = tr(" and ").join(
        tr("{what} is {value:.2f}", what=what, value=value) for value, what in measured
    )
    return True, tr(
        "kept: {figures}, at least {threshold:.2f}", figures=figures, threshold=threshold
    )


def _one_an_item(
    votes: Sequence[Vote], opinions: Mapping[str, Mapping[str, str]]
) -> tuple[list[Vote], list[str]]:
    """Per item the first vote that agrees with the majority, and the items without a majority."""
    judged = {v.item for v in votes if v.annotator in opinions and v.choice != "skip"}
    decision = {
        item: majority([o[item] for o in opinions.values() if item in o]) for item in judged
    }
    one: dict[str, Vote] = {}
    for vote in votes:
        opinion = opinions.get(vote.annotator, {}).get(vote.item)
        if opinion is not None and opinion == decision[vote.item] and vote.choice != "skip":
            one.setdefault(vote.item, vote)
    return list(one.values()), sorted(item for item in judged if decision[item] is None)


def reliable(votes: Sequence[Vote], threshold: float = 0.6) -> Reliable:
    """Annotators at or above the threshold, and one vote per item: what most of them prefer.

    The threshold applies to self-agreement (random votes reach about 0.5) and to κ against the
    majority of the others (random votes reach 0). An annotator whose repeated votes disagree is
    left out when κ is computed for the others. An annotator without measurements is kept.
    """
    table = _decided(votes)
    opinions = {
        annotator: {i: o for i, voted in items.items() if (o := _opinion(voted)) is not None}
        for annotator, items in table.items()
    }
    alone = {annotator: _self_agreement(items) for annotator, items in sorted(table.items())}
    steady = [annotator for annotator, share in alone.items() if _steady(share, threshold)]
    standings = []
    for annotator, self_agreement in alone.items():
        mine, theirs = _against_the_others(annotator, opinions, steady)
        kappa = pair_kappa(mine, theirs)
        kept, reason = _judge(self_agreement, kappa, len(mine), threshold)
        standings.append(Standing(annotator, self_agreement, kappa, len(mine), kept, reason))
    trusted = {s.annotator: opinions[s.annotator] for s in standings if s.kept}
    return Reliable(*_one_an_item(votes, trusted), standings)

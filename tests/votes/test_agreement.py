import math
import random
import warnings

import numpy as np
import pytest

from utils.votes.agreement import (
    cohen_kappa,
    kappa_interval,
    majority,
    position_bias,
    preference,
    reliable,
    repeated_items,
    wilson,
)
from utils.votes.store import Vote


def vote(item, choice, annotator="An", swapped=False):
    shown = ("hai", "một") if swapped else ("một", "hai")
    return Vote(item, "Chọn số nào?", *shown, choice, annotator, swapped=swapped)


# --- kappa ---------------------------------------------------------------------------------------


def test_kappa_by_hand():
    # 50 items: both yes 20, both no 15, only the first yes 5, only the second yes 10.
    # p_o = 35/50 = 0.7; p_e = 25/50 · 30/50 + 25/50 · 20/50 = 0.5; κ = 0.2 / 0.5
    first = "y" * 20 + "n" * 15 + "y" * 5 + "n" * 10
    second = "y" * 20 + "n" * 15 + "n" * 5 + "y" * 10
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    # three classes: p_o = 4/6, p_e = (3·2 + 2·2 + 1·2) / 36 = 1/3, κ = 1/2
    assert cohen_kappa("aaabbt", "aabbtt") == pytest.approx(0.5)


def test_kappa_at_its_landmarks():
    assert cohen_kappa("aabbt", "aabbt") == 1
    assert cohen_kappa("aabb", "abab") == 0
    assert cohen_kappa("aaaa", "abab") == 0  # a constant annotator agrees only by chance
    assert cohen_kappa("aaaa", "bbbb") == 0
    assert cohen_kappa("ab", "ba") == -1


def test_the_interval_is_that_of_kappas_computed_one_by_one():
    generator = random.Random(4)
    first = [generator.choice("aab") for _ in range(30)]
    second = [generator.choice([vote, "t", "a"]) for vote in first]
    drawn = np.random.default_rng(7).integers(30, size=(200, 30))
    kappas = [
        cohen_kappa(*([ratings[item] for item in items] for ratings in (first, second)))
        for items in drawn
    ]
    found = kappa_interval(first, second, draws=200, seed=7)
    assert found == pytest.approx(np.quantile(kappas, [0.025, 0.975]), abs=1e-12)


@pytest.mark.parametrize(
    ("ratings", "reason"),
    [("aaaa", "both ratings are always 'a'"), ("", "Kappa of no items is undefined")],
)
def test_undefined_kappa_is_nan_and_says_why(ratings, reason):
    with pytest.warns(UserWarning, match=reason):
        assert math.isnan(cohen_kappa(ratings, ratings))
    assert all(map(math.isnan, kappa_interval(ratings, ratings)))


def test_ratings_of_different_items_are_refused():
    with pytest.raises(ValueError, match="found 3 and 2"):
        cohen_kappa("aab", "ab")


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    # The second repeats the first with 0.8, else tosses a coin: κ = 0.8
    generator = np.random.default_rng(5)
    inside = 0
    for seed in range(100):
        first = generator.integers(2, size=120)
        second = np.where(generator.random(120) < 0.8, first, generator.integers(2, size=120))
        low, high = kappa_interval(first.tolist(), second.tolist(), draws=300, seed=seed)
        assert low < cohen_kappa(first.tolist(), second.tolist()) < high
        inside += low <= 0.8 <= high
    assert 88 <= inside <= 99


def test_the_interval_is_the_same_each_time_and_shrinks_with_items():
    few = kappa_interval("aabbab" * 3, "abbbab" * 3)
    many = kappa_interval("aabbab" * 30, "abbbab" * 30)
    assert few == kappa_interval("aabbab" * 3, "abbbab" * 3)
    assert many[1] - many[0] < (few[1] - few[0]) / 2


def test_draws_of_one_class_do_not_spoil_the_interval():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = kappa_interval("aaaab", "aaaab")
    assert low == high == 1


# --- Shares --------------------------------------------------------------------------------------


def test_wilson_by_hand():
    # Wilson 1927, 8 of 10: (0.8 + 0.19207 ± 1.96 √(0.016 + 0.0096)) / 1.38415
    share = wilson(8, 10)
    assert (share.low, share.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    for hits in (0, 10):
        edge = wilson(hits, 10)
        assert 0 <= edge.low < edge.high <= 1 and edge.high - edge.low > 0.2
    for count in range(1, 100):  # rounding must not put a bound on the wrong side of the share
        for edge in (wilson(0, count), wilson(count, count)):
            assert edge.low <= edge.value <= edge.high
    assert math.isnan(wilson(0, 0).value)


def test_position_bias_counts_the_sides_and_not_the_answers():
    always_left = [vote(f"q{n}", "a", swapped=n % 2 == 0) for n in range(40)]
    share = position_bias([*always_left, vote("t", "tie"), vote("s", "skip")])
    assert share.value == 1 and share.count == 40 and share.low > 0.5
    fair = [vote(f"q{n}", "ab"[n % 2], swapped=n % 2 == 0) for n in range(40)]
    assert position_bias(fair).low < 0.5 < position_bias(fair).high


# --- One annotator -------------------------------------------------------------------------------


def test_a_preference_does_not_depend_on_the_side():
    assert preference(vote("q", "a")) == preference(vote("q", "b", swapped=True)) == "first"
    assert preference(vote("q", "b")) == preference(vote("q", "a", swapped=True)) == "second"
    assert preference(vote("q", "tie", swapped=True)) == "tie"


def test_repeated_items_by_hand():
    votes = [
        vote("same answer, other side", "a"),
        vote("same answer, same side", "b"),
        vote("same side, other answer", "a"),
        vote("now a tie", "a"),
        vote("skipped once", "a"),
        vote("seen once", "a"),
        vote("same answer, other side", "b", swapped=True),
        vote("same answer, same side", "b"),
        vote("same side, other answer", "a", swapped=True),
        vote("now a tie", "tie"),
        vote("skipped once", "skip"),
        vote("seen once", "b", annotator="Bình"),
    ]
    shares = repeated_items(votes)
    assert (shares["An"].value, shares["An"].count) == (0.5, 4)
    assert shares["Bình"].count == 0


def test_who_always_clicks_left_does_not_agree_with_himself():
    votes = [vote(f"q{n}", "a") for n in range(10)]
    votes += [vote(f"q{n}", "a", swapped=True) for n in range(10)]
    assert repeated_items(votes)["An"].value == 0
    kept = reliable(votes, 0.6)
    assert kept.votes == []
    assert kept.standings[0].reason == (
        "left out: self-agreement on 10 repeated items is 0.00, below 0.60"
    )


# --- Several annotators --------------------------------------------------------------------------


def test_majority_by_hand():
    assert majority(["first", "second", "first"]) == "first"
    assert majority(["first", "second"]) is None
    assert majority(["tie"]) == "tie"
    assert majority([]) is None


def crowd(rules):
    """Each annotator's votes on 30 items, the side on screen by chance."""
    generator = random.Random(6)
    votes = []
    for name, rule in rules.items():
        for number in range(30):
            swapped = generator.random() < 0.5
            first_is_better = rule(number)
            votes.append(vote(f"q{number}", "ab"[first_is_better == swapped], name, swapped))
    return votes


def test_who_votes_against_the_others_is_left_out_by_name():
    truth = [random.Random(n).random() < 0.5 for n in range(30)]
    votes = crowd(
        {
            "An": lambda n: truth[n],
            "Bình": lambda n: truth[n],
            "Chi": lambda n: truth[n] if n else not truth[n],  # one mistake
            "Dũng": lambda n: not truth[n],
        }
    )
    kept = reliable(votes, 0.6)
    standing = {s.annotator: s for s in kept.standings}
    assert [name for name, s in standing.items() if not s.kept] == ["Dũng"]
    assert "kappa against the others on 30 items" in standing["Dũng"].reason
    assert standing["Dũng"].kappa < 0 < 0.9 < standing["Chi"].kappa < 1
    assert len(kept.votes) == 30 and kept.split == []
    for chosen in kept.votes:  # the majority outvotes Chi's mistake
        assert (preference(chosen) == "first") == truth[int(chosen.item[1:])]
        assert chosen.annotator != "Dũng"


def test_annotators_with_inconsistent_votes_are_left_out_for_the_others():
    """With an annotator who always votes A, most items would have no majority."""
    votes = []
    for n in range(30):
        swapped = n % 2 == 1
        right = "tie" if n % 3 == 0 else "a"
        votes.append(vote(f"q{n}", right, swapped=swapped))
        slip = "b" if n in (4, 8) else right
        votes.append(vote(f"q{n}", slip, "Bình", swapped=swapped))
        votes += [vote(f"q{n}", "a", "Chi", swapped=again) for again in (False, True)]
    standing = {s.annotator: s for s in reliable(votes, 0.6).standings}
    assert [standing[name].kept for name in ("An", "Bình", "Chi")] == [True, True, False]
    assert "self-agreement" in standing["Chi"].reason
    assert standing["An"].shared == standing["Bình"].shared == 30
    assert standing["An"].kappa == standing["Bình"].kappa > 0.8


def test_the_threshold_itself_is_good_enough():
    votes = [vote(f"q{n}", "a") for n in range(5)]
    votes += [vote(f"q{n}", "b" if n < 3 else "a", swapped=True) for n in range(5)]  # 3 of 5
    assert reliable(votes, 0.6).standings[0].kept
    assert not reliable(votes, 0.61).standings[0].kept


def test_items_without_a_majority_are_left_out_and_named():
    votes = [
        vote("divided", "a"),
        vote("divided", "b", "Bình"),
        vote("agreed", "b"),
        vote("agreed", "a", "Bình", swapped=True),
        vote("changed my mind", "a"),
        vote("changed my mind", "b"),
        vote("alone", "tie"),
        vote("skipped", "skip"),
    ]
    kept = reliable(votes)
    assert kept.split == ["changed my mind", "divided"]
    assert [(v.item, v.annotator) for v in kept.votes] == [("agreed", "An"), ("alone", "An")]
    assert all(s.kept and "not measured" in s.reason for s in kept.standings)


def test_nobody_voted():
    kept = reliable([])
    assert (kept.votes, kept.standings, kept.split) == ([], [], [])
    assert repeated_items([]) == {} and position_bias([]).count == 0

"""The untrained judge, duels in both orders, and the win rate at equal length."""

from collections import Counter

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from utils.data.pairs import load_preferences
from utils.judge.comparison import chrf, duels, length_controlled, similarity_judge


def test_chrf_by_hand():
    # one letter: 2 of 2 shared, 2 of 3 found; two letters: 1 of 1 and 1 of 2. Precision 1, recall
    # 7/12, F = 5·p·r / (4·p + r).
    assert chrf("ab", "abc") == pytest.approx(7 / 11)
    # the other way round precision is 7/12 and recall 1: recall counts four times
    assert chrf("abc", "ab") == pytest.approx(5 * 7 / 12 / (4 * 7 / 12 + 1))
    # a repeated letter counts once if the reference has it once: p = 1/3, r = 1/1
    assert chrf("aaa", "a") == pytest.approx(5 / 3 / (4 / 3 + 1))


def grams(text, n):
    squeezed = "".join(text.lower().split())
    return Counter(squeezed[start : start + n] for start in range(len(squeezed) - n + 1))


def chrf_by_hand(answer, reference):
    """The mean precision p and recall r over the lengths of n-gram that both have, and their F."""
    lengths = [n for n in range(1, 7) if grams(answer, n) and grams(reference, n)]
    found, wanted = ([grams(text, n) for n in lengths] for text in (answer, reference))
    shared = [(one & other).total() for one, other in zip(found, wanted, strict=True)]
    p, r = (
        sum(s / grams.total() for s, grams in zip(shared, all_of_them, strict=True))
        for all_of_them in (found, wanted)
    )
    p, r = p / max(len(lengths), 1), r / max(len(lengths), 1)
    return 5 * p * r / (4 * p + r) if p + r else 0.0


def test_chrf_is_that_by_hand_on_200_pairs():
    pairs = load_preferences(quiet=True)["test"].select(range(200))
    for row in pairs:
        wanted = chrf_by_hand(row["rejected"], row["chosen"])
        assert chrf(row["rejected"], row["chosen"]) == pytest.approx(wanted, abs=1e-12)


def test_chrf_knows_neither_case_nor_spaces_and_stays_between_0_and_1():
    assert chrf("Hà  Nội", "hànội") == 1
    assert chrf("", "hà nội") == chrf("hà nội", "") == chrf("xyz", "hà nội") == 0
    worse, better = chrf("thủ đô là huế", "thủ đô là hà nội"), chrf("hà nội", "thủ đô là hà nội")
    assert 0 < worse < 1 and 0 < better < 1


def test_the_similarity_judge_is_fair_to_the_order_and_calls_close_answers_a_draw():
    judge = similarity_judge()
    assert judge("?", "hà nội", "huế", "hà nội") == 1
    assert judge("?", "huế", "hà nội", "hà nội") == 0
    assert judge("?", "hà nội", "hà nội", "hà nội") == 0.5
    assert similarity_judge(tie=1.1)("?", "hà nội", "huế", "hà nội") == 0.5


WORDS = [f"câu {n}" for n in range(20)]


def test_a_judge_that_likes_the_first_answer_gives_only_ties():
    fight = duels(WORDS, WORDS, WORDS[::-1], WORDS, lambda *_: 1.0)
    assert fight.ties == 1 and fight.win_rate == 0.5 and fight.disagreed == len(WORDS)


def test_duels_are_the_same_seen_from_the_other_side():
    def judge(question, first, second, reference):
        return float(np.sign(len(first) - len(second)) + 1) / 2

    long = [word + " dài hơn" * (n % 3) for n, word in enumerate(WORDS)]
    short = [word + " nữa" * (n % 2) for n, word in enumerate(WORDS)]
    forward = duels(WORDS, long, short, WORDS, judge)
    backward = duels(WORDS, short, long, WORDS, judge)
    assert np.array_equal(forward.results, 1 - backward.results)
    assert np.array_equal(forward.longer, -backward.longer)
    assert forward.disagreed == 0 and forward.win_rate > 0.5
    assert forward.ties == np.mean(forward.results == 0.5)
    assert forward.longer[2] == 4  # syllables: "dài hơn dài hơn" against nothing


def drawn(intercept: float, slope: float, rows: int = 20_000):
    generator = np.random.default_rng(0)
    longer = generator.normal(2, 3, rows).round()
    p = 1 / (1 + np.exp(-(intercept + slope * longer)))
    return (generator.random(rows) < p).astype(float), longer


def test_an_effect_that_is_only_length_is_gone_at_equal_length():
    results, longer = drawn(0.0, 0.5)
    assert results.mean() > 0.65
    assert length_controlled(results, longer) == pytest.approx(0.5, abs=0.02)


def test_an_effect_of_its_own_stays():
    results, longer = drawn(0.8, -0.5)
    assert results.mean() < 0.5  # shorter answers win, and the first are longer
    assert length_controlled(results, longer) == pytest.approx(1 / (1 + np.exp(-0.8)), abs=0.02)


def test_the_fit_is_that_of_a_logistic_regression():
    results, longer = drawn(0.3, 0.2, 400)
    fitted = LogisticRegression(C=1e6).fit(longer[:, None], results)
    wanted = 1 / (1 + np.exp(-fitted.intercept_[0]))
    assert length_controlled(results, longer, penalty=1e-9) == pytest.approx(wanted, abs=1e-4)


def test_answers_of_one_length_leave_the_plain_win_rate():
    results = np.array([1.0] * 60 + [0.5] * 20 + [0.0] * 20)
    found = length_controlled(results, np.full(100, 3.0), penalty=1e-6)
    assert length_controlled(results, np.zeros(100), 1e-6) == pytest.approx(0.7, abs=1e-3)
    assert 0.5 < found < 1


@pytest.mark.parametrize("sign", [1, -1])
def test_results_that_length_separates_give_a_number(sign):
    longer = np.repeat([-4.0, 5.0], 50)
    found = length_controlled((sign * longer > 0).astype(float), longer)
    assert 0 < found < 1
    assert 0.5 < length_controlled(np.ones(50), longer[:50]) <= 1

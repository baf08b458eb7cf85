import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from utils.course.profiles import TABLE
from utils.judge.metrics import (
    accuracy,
    bernoulli_kl,
    best_objective,
    bootstrap,
    distinct,
    f1_per_class,
    gain,
    independent_judge,
    macro_f1,
    minimal_kl,
    perplexity,
    reliability,
    tied_best_of_n_kl,
)
from utils.models.language import language_model


def test_f1_and_accuracy_by_hand():
    truth, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    # class 0: 2 hits among 3 + 2 mentions; class 1: 1 among 2 + 2; class 2: 1 among 1 + 2
    assert f1_per_class(truth, predicted) == pytest.approx([4 / 5, 2 / 4, 2 / 3])
    assert macro_f1(truth, predicted) == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)
    assert accuracy(truth, predicted) == pytest.approx(4 / 6)


@pytest.mark.parametrize("rows", [1, 3, 40, 1000])
def test_f1_is_that_of_scikit_learn_to_the_last_bit(rows):
    generator = np.random.default_rng(rows)
    for classes in (1, 2, 3):
        truth, predicted = generator.integers(classes, size=(2, rows))
        theirs = f1_score(truth, predicted, labels=range(3), average=None, zero_division=0)
        assert f1_per_class(truth.tolist(), predicted).tolist() == theirs.tolist()


def test_a_class_that_never_occurs_counts_as_zero():
    assert f1_per_class(np.array([0, 2]), np.array([0, 2])).tolist() == [1.0, 0.0, 1.0]


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(100):
        truth = generator.random(200) < 0.7
        low, high = bootstrap(np.mean, truth, draws=200, seed=trial)
        covered += low <= 0.7 <= high
    assert 88 <= covered <= 100


def test_bootstrap_keeps_rows_together():
    column = np.arange(50)
    low, high = bootstrap(lambda a, b: float(np.abs(a - b).max()), column, column)
    assert (low, high) == (0.0, 0.0)


def test_reliability_by_hand():
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False])
    mean_confidence, accuracy, counts, error = reliability(confidence, right)
    assert mean_confidence == pytest.approx([0.55, 0.95])
    assert accuracy == pytest.approx([0.5, 1.0])
    assert counts.tolist() == [2, 2]
    assert error == pytest.approx(0.05)


def test_minimal_kl_between_the_extremes():
    rates = [0.2, 0.5, 0.8]
    assert minimal_kl(rates, np.mean(rates)) == pytest.approx(0.0, abs=1e-9)
    assert minimal_kl([0.25] * 5, 1.0) == pytest.approx(np.log(4), abs=1e-3)
    costs = [minimal_kl(rates, share) for share in (0.6, 0.7, 0.8, 0.9)]
    assert costs == sorted(costs)


def test_no_other_way_to_a_share_is_cheaper_than_minimal_kl():
    generator = np.random.default_rng(0)
    rates = generator.uniform(0.05, 0.95, 40)
    least = minimal_kl(rates, 0.85)
    tilted = rates / (rates + (1 - rates) * np.exp(-3))
    for _ in range(200):
        other = np.clip(tilted + generator.normal(0, 0.05, 40), 1e-3, 1 - 1e-3)
        other = np.clip(other + 0.85 - other.mean(), 1e-3, 1 - 1e-3)
        if other.mean() >= 0.85:
            assert bernoulli_kl(other, rates).mean() >= least - 1e-9


def test_the_kl_of_best_of_n_without_ties_equals_a_simulation():
    n, draws = 4, 200_000
    best = np.random.default_rng(0).random((draws, n)).max(1)  # density n u^(n-1) against 1
    simulated = np.mean(np.log(n * best ** (n - 1)))
    assert tied_best_of_n_kl(np.arange(50), n) == pytest.approx(simulated, abs=5e-3)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_with_two_rewards_best_of_n_is_a_choice_between_two_classes(n):
    for ones in (3, 10, 17):
        rewards, p = [1.0] * ones + [0.0] * (20 - ones), ones / 20
        wanted = bernoulli_kl(1 - (1 - p) ** n, p)
        assert tied_best_of_n_kl(rewards, n) == pytest.approx(wanted)


def test_best_of_n_without_ties_has_the_known_kl_and_with_one_reward_none():
    rewards, known = np.random.default_rng(0).random(50), np.log(8) - 7 / 8
    assert tied_best_of_n_kl(rewards, 8) == pytest.approx(known)
    assert tied_best_of_n_kl([1.0] * 50, 8) == 0.0
    some = [*rewards[:25], *[2.0] * 25]
    assert 0 < tied_best_of_n_kl(some, 8) < known


def test_the_best_objective_of_a_reward_that_is_one_with_probability_p():
    beta = 1 / 3
    for ones in (1, 5, 12):
        p = ones / 16
        rewards = [[1.0]] * ones + [[0.0]] * (16 - ones)
        wanted = beta * np.log(1 - p + p * np.exp(1 / beta))
        assert best_objective(rewards, beta) == pytest.approx([wanted])


def test_no_other_policy_has_more_than_the_best_objective():
    generator = np.random.default_rng(0)
    rewards, beta = generator.normal(size=12), 0.4
    best = best_objective(rewards[:, None], beta)[0]
    tilted = np.exp(rewards / beta) / np.exp(rewards / beta).sum()

    def value(policy):  # the base policy draws each of the 12 texts with probability 1/12
        return float(policy @ rewards - beta * (policy * np.log(12 * policy)).sum())

    assert value(tilted) == pytest.approx(best)
    assert all(value(generator.dirichlet(np.ones(12))) < best for _ in range(200))


def test_the_best_objective_lies_between_the_mean_and_the_largest_reward():
    rewards = [[0.0, 1.0], [1.0, 1.0], [0.5, 1.0]]
    assert best_objective(rewards, 1e6) == pytest.approx([0.5, 1.0], abs=1e-5)
    assert best_objective(rewards, 1e-4) == pytest.approx([1.0, 1.0], abs=1e-3)


def test_the_gain_by_hand():
    assert gain(0.4, 0.5, 0.9) == pytest.approx(-0.25)
    assert gain(0.5, 0.5, 0.5) == 0.0


def test_distinct_by_hand():
    assert distinct(["a b c", "a b d"]) == 0.75
    assert distinct(["a"]) == 0.0


def test_perplexity_ignores_padding_and_counts_the_end(texts):
    settings = TABLE["lab"].policy
    model, tokenizer = language_model(settings, texts, "cpu")
    some = [texts[0], texts[1]]
    ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in some]
    total, count = 0.0, 0
    with torch.no_grad():
        for row in ids:  # one by one, no padding at all
            total += float(model(torch.tensor([row]), labels=torch.tensor([row])).loss) * (
                len(row) - 1
            )
            count += len(row) - 1
    assert perplexity(model, tokenizer, some) == pytest.approx(np.exp(total / count), rel=1e-4)


def test_the_judge_learns_and_is_another_architecture(texts):
    labels = [2, 0, 1, 0, 2, 0] * 20
    judge = independent_judge(texts, labels)
    assert accuracy(np.array(labels), judge.predict(texts)) == 1.0
    assert not hasattr(judge, "parameters")

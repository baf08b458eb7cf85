"""The points of the frontier: which prompts and rows they use, and their means and intervals."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.helpers import tiny_ppo
from utils.judge import frontier as frontier_module
from utils.judge.frontier import (
    Frontier,
    Point,
    add_best_of_n,
    add_scaled,
    judged_rows,
    recorded,
    share_at,
    unseen,
)
from utils.judge.metrics import bernoulli_kl
from utils.models.sentiment import SentimentReward
from utils.ppo.policy import ActorCritic


class Judge:
    """Classifies a text as negative (0) if it contains the word "bad"."""

    def predict(self, texts):
        return np.array([0 if "bad" in text else 2 for text in texts])


def frontier(prompts=("a", "b"), **settings) -> Frontier:
    return Frontier(Judge(), lambda texts: [0.0] * len(texts), prompts, beta=0.5, **settings)


def test_a_judge_and_a_policy_share_no_prompt():
    held_out = unseen(["hay", "dở", "khó", "dở"], ["khó", "vui"])
    assert held_out == ["hay", "dở"]
    sentences, labels = judged_rows(
        ["hay quá", "khó quá", "dở quá"], [2, 0, 0], ["hay", "khó", "dở"], held_out
    )
    assert (sentences, labels) == (["khó quá"], [0])


def test_a_point_by_hand():
    found = {
        "texts": ["a bad", "b good", "a bad", "b bad"],  # two texts for each of two prompts
        "rewards": [1.0, 0.0, 0.5, -0.5],
        "kl": [1.0, 0.0, 2.0, 1.0],
    }
    point = frontier(seed=3).measure("PPO", 7, found)
    assert (point.method, point.step, point.seed) == ("PPO", 7, 3)
    assert point.kl == 1.0
    assert point.share == point.negative_rate == 0.75
    assert point.objective == pytest.approx(0.25 - 0.5 * 1.0)
    # per prompt: shares 1 and 1/2, KL 3/2 and 1/2; an interval draws the two prompts
    assert point.intervals["share"] == (0.5, 1.0)
    assert point.intervals["kl"] == (0.5, 1.5)


def test_best_of_n_keeps_the_highest_reward_of_each_group():
    texts = [["a bad", "b good"], ["a good", "b good"], ["a good", "b bad"], ["a bad", "b bad"]]
    rewards = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    best = frontier()
    two, four = (add_best_of_n(best, texts, rewards, n) for n in (2, 4))
    assert (two.negative_rate, two.share, two.step) == (0.75, 0.75, 2)
    assert four.negative_rate == four.share == 1.0
    assert two.kl == pytest.approx(bernoulli_kl(0.75, 0.5))
    assert two.objective == pytest.approx(0.75 - 0.5 * two.kl)


def test_the_share_at_a_kl_is_read_between_the_points_and_averaged_over_the_seeds():
    points = [Point("PPO", 0, kl, share, 0, 0, {}) for kl, share in ((0, 0.5), (2, 0.9), (1, 0.8))]
    found = [share_at(points, "PPO", kl) for kl in (0.0, 1.5, 2.0)]
    assert found == pytest.approx([0.5, 0.85, 0.9])
    assert np.isnan(share_at(points, "PPO", 2.1)) and np.isnan(share_at(points, "GRPO", 1.0))
    second = [Point("PPO", 0, kl, share, 0, 0, {}, seed=1) for kl, share in ((1, 0.6), (3, 0.7))]
    both = [share_at(points + second, "PPO", kl) for kl in (0.5, 1.0, 2.5)]
    assert both == pytest.approx([0.65, 0.7, 0.675])


def test_the_share_of_negatives_is_by_the_class_if_every_text_has_a_reward():
    def is_a(texts):
        return [text == "a" for text in texts]

    point = frontier()
    point.reward = SimpleNamespace(kind="log_odds", negative=is_a)
    found = {"texts": ["a", "b"], "rewards": [2.0, -1.0], "kl": [0, 0]}
    assert point.measure("PPO", 1, found).negative_rate == 0.5


def test_what_was_recorded_with_other_data_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(frontier_module, "BENCHMARKS", tmp_path)
    assert recorded("lab", "abc") == {}
    best = frontier()
    best.measure("PPO", 1, {"texts": ["a", "b"], "rewards": [0, 0], "kl": [0, 0]})
    runs = [{"points": best.rows(), "episodes": number} for number in (8, 32)]
    settings = {"updates": 2, "batch_size": 4}
    document = {"profile": "lab", "data": "abc", "settings": settings, "runs": runs}
    (tmp_path / "frontier.json").write_text(json.dumps(document), encoding="utf-8")
    assert recorded("t4", "abc") == recorded("lab", "other") == {}
    (point,) = recorded("lab", "abc")["points"]  # without those of the longer run
    assert (point.method, point.share) == ("PPO", 0.0)


def test_a_portrait_counts_texts_whose_class_is_negative(monkeypatch):
    """The first text is negative although its reward is below zero."""
    logits = {"a b c": [-0.2, -0.9, -0.7], "a b d": [3.0, 0.0, 0.0], "e f g": [0.3, 0.1, 1.5]}
    nothing = SimpleNamespace(eval=lambda: None)
    reward = SentimentReward(nothing, None, max_length=64, kind="capped", cap=1.0)
    reward.logits = lambda texts: torch.tensor([logits[text] for text in texts])
    judge = SimpleNamespace(predict=lambda texts: np.array([0, 0, 2]))
    monkeypatch.setattr(frontier_module, "perplexity", lambda *_: 7.0)
    models = SimpleNamespace(reference=None, tokenizer=None)
    found = frontier_module.portrait(list(logits), reward, judge, models)
    assert abs(found["reward"] - (-0.2 + 1.0 + 0.0) / 3) < 1e-6
    assert abs(found["negative (reward)"] - 2 / 3) < 1e-6
    assert abs(found["negative (judge)"] - 2 / 3) < 1e-6
    assert found["unique"] == 1


def test_a_scaled_change_of_the_weights_has_its_own_kl_and_the_weights_are_put_back():
    policy = tiny_ppo.policy()
    models = ActorCritic(policy, tiny_ppo.tokenizer(), max_new_tokens=6)
    with torch.no_grad():
        policy.get_output_embeddings().weight.mul_(1.5)
    own = {name: weight.clone() for name, weight in policy.named_parameters()}
    measured = frontier(list(tiny_ppo.PROMPTS), draws=4)
    points = add_scaled(measured, models, factors=(0.0, 0.5, 1.0, 1.5))
    assert [point.step for point in points] == [0, 50, 100, 150]
    assert {point.method for point in points} == {"PPO, scaled"}
    assert points[0].kl == pytest.approx(0, abs=1e-6)
    assert 0 < points[1].kl < points[2].kl < points[3].kl
    assert points[2].kl == pytest.approx(measured.add("PPO", models).kl)
    with pytest.raises(RuntimeError), models.scaled(0.5):
        raise RuntimeError
    assert all(torch.equal(own[name], weight) for name, weight in policy.named_parameters())

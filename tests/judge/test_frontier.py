"""The statistics of generated texts."""

from types import SimpleNamespace

import numpy as np
import torch

from utils.judge import frontier
from utils.models.sentiment import SentimentReward


def test_a_portrait_counts_texts_whose_class_is_negative(monkeypatch):
    """The first text is negative although its reward is below zero."""
    logits = {"a b c": [-0.2, -0.9, -0.7], "a b d": [3.0, 0.0, 0.0], "e f g": [0.3, 0.1, 1.5]}
    nothing = SimpleNamespace(eval=lambda: None)
    reward = SentimentReward(nothing, None, max_length=64, kind="capped", cap=1.0)
    reward.logits = lambda texts: torch.tensor([logits[text] for text in texts])
    judge = SimpleNamespace(predict=lambda texts: np.array([0, 0, 2]))
    monkeypatch.setattr(frontier, "perplexity", lambda *_: 7.0)
    models = SimpleNamespace(reference=None, tokenizer=None)
    found = frontier.portrait(list(logits), reward, judge, models)
    assert abs(found["reward"] - (-0.2 + 1.0 + 0.0) / 3) < 1e-6
    assert abs(found["negative (reward)"] - 2 / 3) < 1e-6
    assert abs(found["negative (judge)"] - 2 / 3) < 1e-6
    assert found["unique"] == 1

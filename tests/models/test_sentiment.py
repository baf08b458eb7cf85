import inspect

import pytest
import torch

from utils.course.profiles import TABLE
from utils.models import sentiment as reward_module
from utils.models.sentiment import (
    SentimentReward,
    WordDropout,
    classify,
    encode,
    negative_reward,
    sentiment_classifier,
)


@pytest.fixture(scope="module")
def parts(texts):
    torch.manual_seed(0)
    return sentiment_classifier(TABLE["lab"].reward_model, texts, "cpu")


def test_formula_on_rows_checked_by_eye():
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.3, 0.1, 1.5], [6.0, 1.0, 0.0], [-0.5, -0.9, -0.7]])
    torch.testing.assert_close(negative_reward(logits), torch.tensor([2.0, 0.0, 6.0, -0.5]))
    capped = negative_reward(logits, "capped", cap=4.0)
    torch.testing.assert_close(capped, torch.tensor([2.0, 0.0, 4.0, -0.5]))
    torch.testing.assert_close(negative_reward(logits, "probability"), logits.softmax(-1)[:, 0])
    p = logits.softmax(-1)[:, 0]
    torch.testing.assert_close(negative_reward(logits, "log_odds"), p.log() - (1 - p).log())


def test_a_shift_of_all_logits_moves_only_the_rewards_made_of_one_logit():
    logits = torch.tensor([[1.0, 0.2, -0.5], [0.3, 0.1, 1.5], [60.0, 0.0, -4.0]])
    shifted = logits + 3
    torch.testing.assert_close(logits.softmax(-1), shifted.softmax(-1))
    for kind in ("probability", "log_odds"):
        torch.testing.assert_close(negative_reward(shifted, kind), negative_reward(logits, kind))
    moved = negative_reward(shifted) - negative_reward(logits)
    torch.testing.assert_close(moved, torch.tensor([3.0, 0.0, 3.0]))
    assert negative_reward(logits, "log_odds").isfinite().all()


@pytest.mark.parametrize("kind", reward_module.KINDS)
def test_negative_counts_the_class_and_not_the_sign_of_the_reward(parts, monkeypatch, kind):
    logits = torch.tensor([[-0.2, -0.9, -0.7], [0.3, 0.1, 1.5], [2.0, 0.5, -1.0], [-2.0, 1.0, 0.9]])
    reward = SentimentReward(*parts, max_length=64, kind=kind, cap=1.0)
    monkeypatch.setattr(reward, "logits", lambda texts: logits)
    assert reward.negative([""] * 4).tolist() == [True, False, True, False]


def test_wrong_kinds_are_named():
    with pytest.raises(ValueError, match="logit, capped, probability, log_odds"):
        negative_reward(torch.zeros(1, 3), "z")
    with pytest.raises(ValueError, match="needs a cap"):
        negative_reward(torch.zeros(1, 3), "capped")


def test_training_evaluation_and_reward_see_identical_token_ids(parts, monkeypatch):
    """Fails if one of the three encodes a text differently."""
    model, tokenizer = parts
    spellings = ["thầy hoà nhã , dạy dễ hiểu", "giảng viên nhiệt tình"]
    training = encode(tokenizer, spellings, 64)["input_ids"]
    seen = []
    forward = model.forward

    def record(input_ids, attention_mask, **keywords):
        seen.extend(
            ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)
        )
        return forward(input_ids=input_ids, attention_mask=attention_mask, **keywords)

    monkeypatch.setattr(model, "forward", record)
    classify(model, tokenizer, spellings, max_length=64)
    SentimentReward(model, tokenizer, max_length=64)(spellings)
    assert sorted(seen) == sorted(training * 2)
    assert any(
        "_" in token
        for token in tokenizer.convert_ids_to_tokens([i for row in training for i in row])
    )


def test_only_one_function_tokenises():
    source = inspect.getsource(reward_module)
    assert source.count("segment_all(") == 1
    assert source.count("tokenizer(") == 1


def test_batching_and_order_do_not_matter(parts, texts):
    model, tokenizer = parts
    some = texts[:7]
    whole = classify(model, tokenizer, some, max_length=64)
    ones = torch.cat([classify(model, tokenizer, [text], max_length=64) for text in some])
    torch.testing.assert_close(whole, ones, atol=1e-5, rtol=1e-4)


def test_saved_and_loaded_reward_is_the_same(parts, texts, tmp_path):
    first = SentimentReward(*parts, max_length=64)
    first.save(tmp_path)
    again = SentimentReward.load(tmp_path)
    torch.testing.assert_close(first(texts[:5]), again(texts[:5]))
    assert again.max_length == 64


def test_word_dropout_hides_a_share_and_never_the_frame(parts):
    _, tokenizer = parts
    rows = {"input_ids": [[0, *([9] * 5000), 2]], "labels": [1]}
    hidden = WordDropout(tokenizer, 0.25)(rows)
    ids = torch.tensor(hidden["input_ids"][0])
    assert ids[0] == 0 and ids[-1] == 2 and hidden["labels"] == [1]
    assert abs(float((ids == tokenizer.mask_token_id).float().mean()) - 0.25) < 0.03


def test_an_empty_text_gets_a_number(parts):
    assert torch.isfinite(SentimentReward(*parts, max_length=64)(["", "   "])).all()

"""Texts that are longer than a model can read are cut and counted in every stage."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.helpers.odd_data import rambling
from utils.course.errors import CourseError
from utils.course.profiles import TABLE
from utils.data import mining
from utils.finetune.seq2seq_dpo import DPOSettings, encoder_decoder, tokenise
from utils.finetune.training import adapt_language_model
from utils.judge.metrics import perplexity
from utils.models import chat
from utils.models.language import language_model
from utils.models.lengths import beginning, cut, cut_columns, cut_texts
from utils.models.logprobs import positions
from utils.models.sentiment import SentimentReward, classify, encode, sentiment_classifier

LAB = TABLE["lab"]
LONG = rambling(400)


@pytest.fixture(scope="module")
def gpt2(texts):
    torch.manual_seed(0)
    model, tokenizer = language_model(LAB.policy, texts, "cpu")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{{ '\\n' if m['role'] == 'user' else eos_token }}"
        "{% endfor %}"
    )
    return model.eval(), tokenizer


def test_rows_are_cut_and_one_sentence_counts_them(capsys):
    rows = [[1, 2], [1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert cut(rows, 3, "sentences") == [[1, 2], [1, 2, 3], [5, 6, 7]]
    assert cut(rows, 3, "sentences", end=0) == [[1, 2], [1, 2, 0], [5, 6, 0]]
    sentence = "2 of 3 sentences were longer than 3 tokens and were cut.\n"
    assert capsys.readouterr().out == sentence * 2
    assert cut(rows, 5, "sentences") == rows
    assert capsys.readouterr().out == ""


def test_a_text_is_cut_between_letters(gpt2, capsys):
    _, tokenizer = gpt2
    family = "👨‍👩‍👧‍👦" * 20
    short, cut_long, cut_family = cut_texts(tokenizer, ["hay", LONG, family], 10, "prompts")
    assert short == "hay" and LONG.startswith(cut_long) and family.startswith(cut_family)
    assert cut_long and cut_family and "\ufffd" not in cut_family
    assert all(len(tokenizer(text)["input_ids"]) <= 10 for text in (cut_long, cut_family))
    assert capsys.readouterr().out == "2 of 3 prompts were longer than 10 tokens and were cut.\n"
    assert beginning(tokenizer, tokenizer("hay")["input_ids"], 0) == ""


def test_columns_are_cut_each_to_its_limit(gpt2, capsys):
    _, tokenizer = gpt2
    rows = Dataset.from_dict({"id": ["a", "b"], "prompt": ["hay", LONG], "chosen": [LONG, "có"]})
    found = cut_columns(rows, tokenizer, {"prompt": 8, "chosen": 1000})
    assert found["id"] == ["a", "b"] and found["prompt"][0] == "hay"
    assert found["chosen"] == rows["chosen"] and found.features == rows.features
    sentence = "1 of 2 texts of column prompt was longer than 8 tokens and was cut.\n"
    assert capsys.readouterr().out == sentence


def test_a_language_model_learns_from_the_beginning_of_a_long_sentence(
    gpt2, texts, tmp_path, capsys
):
    model, tokenizer = gpt2
    settings = replace(LAB.policy, adapt_epochs=1)
    sentences = [*texts[:3], LONG]
    adapt_language_model(
        model, tokenizer, sentences, sentences[2:], settings, LAB, str(tmp_path), seed=0
    )
    printed = capsys.readouterr().out
    assert "1 of 4 sentences was longer than 128 tokens and was cut." in printed
    assert "1 of 2 sentences was longer than 128 tokens and was cut." in printed


def test_the_perplexity_of_a_long_text_is_that_of_its_beginning(gpt2, capsys):
    model, tokenizer = gpt2
    ids = torch.tensor([tokenizer(LONG)["input_ids"][: positions(model)]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert perplexity(model, tokenizer, [LONG]) == pytest.approx(loss.exp().item(), rel=1e-4)
    assert "1 of 1 texts was longer than 128 tokens and was cut." in capsys.readouterr().out


def test_a_long_question_is_answered_and_its_template_stays_whole(gpt2, capsys):
    model, tokenizer = gpt2
    (prompt,) = chat.prompts_within(tokenizer, [LONG], 50)
    text = tokenizer.decode(prompt)
    assert len(prompt) <= 50 and text.endswith("\n") and LONG.startswith(text[:-1])
    found = chat.reply(model, tokenizer, ["hay?", LONG], max_new_tokens=20)
    assert all(1 <= reply.tokens <= 20 for reply in found)
    assert "1 of 2 prompts was longer than 108 tokens and was cut." in capsys.readouterr().out


def test_a_prompt_that_is_all_template_is_refused(gpt2):
    _, tokenizer = gpt2
    with pytest.raises(
        CourseError, match="The chat template alone has 1 tokens, but only 0 are left"
    ):
        chat.prompts_within(tokenizer, [LONG], 0)


@pytest.mark.parametrize(("question", "answer"), [("hay?", LONG), (LONG, "có"), (LONG, LONG)])
def test_a_long_row_has_the_log_probability_of_what_the_model_can_read(
    gpt2, question, answer, capsys
):
    model, tokenizer = gpt2
    found, tokens = chat.answer_logps(model, tokenizer, [question, "hay?"], [answer, "có"])
    assert "1 of 2 rows was longer than 128 tokens and was cut." in capsys.readouterr().out
    alone, _ = chat.answer_logps(model, tokenizer, ["hay?"], ["có"])
    assert found[1] == pytest.approx(alone.item(), abs=1e-4)
    assert torch.isfinite(found).all()
    wanted = len(chat.answer_ids(tokenizer, answer))
    assert tokens[0] == wanted if answer == "có" else 64 <= tokens[0] < wanted
    if question == "hay?":  # only the answer's end is lost
        assert tokens[0] == 128 - len(chat.prompt_ids(tokenizer, question))


def test_rows_that_do_not_fit_are_left_out_in_order_and_none_left_is_an_error(gpt2, capsys):
    _, tokenizer = gpt2
    rows = Dataset.from_dict(
        {
            "question": ["a?", LONG, "b?"],
            "chosen": ["có", "có", "không"],
            "rejected": ["", "", LONG],
        }
    )
    assert chat.not_longer(rows, tokenizer, 60)["question"] == ["a?"]
    assert chat.not_longer(rows, tokenizer, 60, sides=["chosen"])["question"] == ["a?", "b?"]
    assert capsys.readouterr().out.splitlines() == [
        "2 of 3 rows are longer than 60 tokens: left out.",
        "1 of 3 rows is longer than 60 tokens: left out.",
    ]
    with pytest.raises(CourseError, match="None of 3 rows is left with at most 1 tokens: add"):
        chat.fitting(rows, tokenizer, 1, batch_size=2)


def test_a_classifier_and_the_reward_say_what_they_cut(texts, capsys):
    torch.manual_seed(0)
    model, tokenizer = sentiment_classifier(LAB.reward_model, texts, "cpu")
    sentence = "1 of 2 sentences was longer than 64 tokens and was cut."
    ids = encode(tokenizer, ["hay", LONG], 64)["input_ids"]
    segmented = mining.segment_all(["hay", LONG])
    assert ids == tokenizer(segmented, truncation=True, max_length=64)["input_ids"]
    assert capsys.readouterr().out == f"{sentence}\n"
    classify(model, tokenizer, ["hay", LONG], max_length=64)
    assert capsys.readouterr().out == f"{sentence}\n"
    reward = SentimentReward(model, tokenizer, max_length=64)
    reward(["hay"])
    for _ in range(2):
        reward(["hay", LONG])
    assert capsys.readouterr().out == f"The reward: {sentence} Later cuts are not reported.\n"


def test_an_encoder_decoder_says_what_it_cuts_unless_it_is_told_not_to(texts, capsys):
    _, tokenizer = encoder_decoder("stand-in", texts, "cpu")
    rows = Dataset.from_dict(
        {"prompt": ["hay", LONG], "chosen": ["có"] * 2, "rejected": [LONG] * 2}
    )
    settings = DPOSettings(max_prompt_length=20, max_answer_length=30)
    found = tokenise(rows, tokenizer, settings)
    assert capsys.readouterr().out.splitlines() == [
        "1 of 2 prompts was longer than 20 tokens and was cut.",
        "2 of 2 rejected answers were longer than 30 tokens and were cut.",
    ]
    assert len(found["prompt_ids"][1]) == 20 and len(found["rejected_ids"][0]) == 30
    assert found["rejected_ids"][0][-1] == tokenizer.eos_token_id
    assert tokenise(rows, tokenizer, settings, quiet=True)["prompt_ids"] == found["prompt_ids"]
    assert capsys.readouterr().out == ""


def test_a_sentence_encoder_says_what_it_cuts(monkeypatch, capsys):
    class Encoder:
        max_seq_length = 16

        def __init__(self, *_, **__):
            self.tokenizer = lambda text: {"input_ids": text.split()}

        def encode(self, texts, **_):
            return np.eye(len(texts))

    monkeypatch.setitem(
        sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Encoder)
    )
    monkeypatch.setattr(mining.hub, "fetch", lambda name: Path(name))
    mining.embed(["hay", LONG, "thầy dạy hay và dễ hiểu"], TABLE["t4"].pair_mining, "cpu")
    sentence = "1 of 3 texts was longer than 16 tokens and was cut.\n"
    assert capsys.readouterr().out == sentence

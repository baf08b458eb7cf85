"""The benchmark on real weights belongs to the current t4 profile, and its figures are right."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import real_weights
from utils.course import notebooks
from utils.course.profiles import TABLE
from utils.models import logprobs
from utils.models.precision import NATS_PER_TOKEN

ROW = TABLE["t4"]
TRAINED = ("sft", "dpo", "orpo", "labelling")


@pytest.fixture(scope="module")
def found():
    return json.loads(real_weights.OUT.read_text(encoding="utf-8"))


def of_today(found, arm):
    run = real_weights.find(found, arm, real_weights.settings_of(arm, ROW))
    assert run is not None, f"no {arm} run with today's t4 row: run benchmarks/real_weights.py"
    return run


def test_the_base_is_not_right_yet(found):
    base = of_today(found, "base")
    assert base["accuracy_summed"]["low"] < 0.5 < base["accuracy_summed"]["high"]
    assert base["accuracy_per_token"]["high"] < 0.5


@pytest.mark.parametrize("arm", [*TRAINED, "precision"])
def test_these_arms_are_measured_with_todays_row(found, arm):
    assert real_weights.find(found, arm, real_weights.settings_of(arm, ROW))


@pytest.mark.parametrize("arm", ["sft", "orpo"])
def test_todays_row_makes_held_out_answers_likelier(found, arm):
    assert of_today(found, arm)["chosen_gain_nats_per_token"]["low"] > 0.1


@pytest.mark.parametrize("arm", ["dpo", "labelling"])
def test_todays_row_learns_a_preference(found, arm):
    """The policy starts as its reference: margin 0, accuracy at chance, loss ln 2."""
    run = of_today(found, arm)
    assert run["implicit_reward_accuracy"]["low"] >= 0.6
    assert run["margin"]["low"] > 0
    assert run["dpo_loss"] < 0.8 * np.log(2)


@pytest.mark.parametrize("arm", ["dpo", "orpo"])
def test_todays_row_raises_the_plain_accuracy_by_ten_points(found, arm):
    gain = of_today(found, arm)["gain_summed"]
    assert gain["mean"] >= 0.1 and gain["low"] > 0


@pytest.mark.parametrize("arm", TRAINED)
def test_answers_do_not_collapse(found, arm):
    run = of_today(found, arm)
    start = of_today(found, "sft" if arm == "dpo" else "base")
    before = run.get("sampled_before", start["sampled"])
    after = run.get("sampled_after", run["sampled"])
    assert after["ended"] >= before["ended"]
    assert after["distinct_2_within"] > 0.9  # sampled, because greedy answers repeat
    assert after["different_texts"] > 0.9
    assert len(run["answers"]) == real_weights.SHOWN


def test_the_rule_prefers_answers_after_training_on_its_votes(found):
    assert of_today(found, "labelling")["win_rate_rule_sampled"]["low"] > 0.5


def test_half_precision_differs_by_less_than_the_tolerance_says(found):
    measured = of_today(found, "precision")["differences"]
    for name in ("bf16", "fp16"):
        apart = measured[f"fp32 on {name} weights - {name}"]["answer_over_its_tokens_max"]
        assert 0 < apart < NATS_PER_TOKEN[name]


def test_another_learning_rate_or_alpha_is_another_setting(found):
    row = replace(ROW, sft=replace(ROW.sft, learning_rate=1.0))
    for arm in ("sft", "dpo"):  # DPO starts from the SFT adapter
        assert real_weights.find(found, arm, real_weights.settings_of(arm, row)) is None
    row = replace(ROW, chat=replace(ROW.chat, labelled_lora_alpha=1))
    assert real_weights.find(found, "labelling", real_weights.settings_of("labelling", row)) is None
    assert real_weights.settings_of("sft", row) == real_weights.settings_of("sft", ROW)


def test_first_sentences():
    assert real_weights.first_sentence("Ừ, tui biết. Mai ghé nha!") == "Ừ, tui biết."
    assert real_weights.first_sentence("Giá 3.5 triệu đó…  Mua không?") == "Giá 3.5 triệu đó…"
    assert real_weights.first_sentence("không có dấu") == "không có dấu"
    for split, rows in (("train", 280), ("test", 60)):
        pairs = real_weights.human_pairs(split)
        assert len(pairs) == rows
        assert all(a != b for a, b in zip(pairs["chosen"], pairs["rejected"], strict=True))


def test_the_shortest_rows_keep_their_order():
    pairs = real_weights.human_pairs("test").select(range(10))

    def letters(text):
        return {"input_ids": list(text)}

    kept = real_weights.shortest(pairs, letters, 4)
    sizes = [len(r["question"] + r["chosen"] + r["rejected"]) for r in pairs]
    bound = sorted(sizes)[3]
    expected = [row["question"] for row, size in zip(pairs, sizes, strict=True) if size <= bound]
    assert list(kept["question"]) == expected


def test_no_held_out_question_is_about_a_topic_of_training():
    learned, held_out = real_weights.english_questions()
    assert len(learned) == 100 and len(held_out) == 40
    topics = real_weights.TOPICS[-real_weights.HELD_OUT_TOPICS :]
    assert all("\n" not in topic for topic in real_weights.TOPICS)
    assert not any(
        question in learned
        for form in real_weights.PHRASINGS
        for question in map(form.format, topics)
    )


def test_the_rule_is_that_of_notebook_07():
    cells = json.loads(notebooks.path_of("07").read_text(encoding="utf-8"))["cells"]
    source = next(text for c in cells if "def marks(" in (text := "".join(c["source"])))
    theirs: dict = {}
    exec(source[: source.index("for text in")], theirs)
    answers = [
        "Một câu nhé.",
        "Một câu.",
        "Một câu",
        "Do bụi, do bụi, do bụi, do bụi.",
        "“Ừ ạ”",
        "",
    ]
    for answer in answers:
        assert real_weights.marks(answer) == theirs["marks"](answer)
        for other in answers:
            ours = real_weights.complete_and_polite("?", answer, other)
            assert ours == theirs["complete_and_polite"]("?", answer, other)


def test_the_rule_of_notebook_07_votes_and_ties_are_left_out():
    rule = real_weights.complete_and_polite
    rows = real_weights.voted(
        ["q1", "q2", "q3"],
        ["It is cut off in the", "A whole one.", "Whole."],
        ["It ends.", "It is", "Whole too."],
        rule,
    )
    assert rows.to_list() == [
        {"question": "q1", "chosen": "It ends.", "rejected": "It is cut off in the"},
        {"question": "q2", "chosen": "A whole one.", "rejected": "It is"},
    ]


def scores(chosen, rejected):
    return real_weights.Scores(
        np.array(chosen), np.array(rejected), np.array([1.0, 4.0]), np.array([2.0, 2.0])
    )


def test_accuracies_summed_and_per_token():
    at = scores([-3.0, -5.0], [-4.0, -4.0])  # per token: -3 against -2, -1.25 against -2
    assert at.right().tolist() == [1.0, 0.0]
    assert at.right(per_token=True).tolist() == [0.0, 1.0]


def test_gains_margins_and_losses_by_hand():
    start, now = scores([-3.0, -5.0], [-4.0, -4.0]), scores([-3.0, -3.0], [-4.0, -6.0])
    figures = real_weights.preference_figures(now, start, beta=0.5, weight=0.0)
    assert figures["accuracy_summed"]["mean"] == 1.0
    assert figures["gain_summed"]["mean"] == 0.5
    assert figures["margin"]["mean"] == 1.0  # 0.5 · (0 + 4) / 2
    assert figures["implicit_reward_accuracy"]["mean"] == 0.5  # an unchanged pair is not right
    assert figures["chosen_nats_per_token"] == pytest.approx(6 / 5)
    assert figures["orpo_loss"] == pytest.approx(6 / 5)  # λ = 0 leaves the supervised loss
    assert figures["dpo_loss"] == pytest.approx((np.log(2) + np.log1p(np.exp(-2))) / 2, abs=1e-4)
    assert "gain_summed" not in real_weights.preference_figures(start, start, 0.5, 0.3)


def test_repetition_within_a_text():
    assert real_weights.own_repetition(["a b a b a b", "một hai ba"]) == pytest.approx(0.7)
    assert real_weights.own_repetition(["one"]) == 1.0


def test_the_log_probabilities_of_tokens_add_up_to_those_of_answers():
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    prompts, answers = [[3, 4, 5], [6], [7, 8]], [[9], [10, 11, 12], [13, 14]]
    parts = real_weights.each_token(model, prompts, answers, rows=2)
    assert [len(part) for part in parts] == [1, 3, 2]
    whole = logprobs.answer_logps(model, prompts, answers)
    torch.testing.assert_close(torch.stack([part.sum() for part in parts]), whole)


def test_differences_per_token_and_per_answer():
    first = [torch.tensor([-1.0, -2.0]), torch.tensor([-1.0])]
    second = [torch.tensor([-1.5, -1.5]), torch.tensor([-0.75])]
    apart = real_weights.differences(first, second)
    assert apart["per_token_max"] == 0.5
    assert apart["per_token_mean"] == pytest.approx(1.25 / 3)
    assert apart["per_answer_max"] == apart["answer_over_its_tokens_max"] == 0.25
    assert apart["per_answer_mean"] == 0.125

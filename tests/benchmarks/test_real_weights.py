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


@pytest.fixture(scope="module")
def found():
    return json.loads(real_weights.OUT.read_text(encoding="utf-8"))


@pytest.mark.parametrize("arm", real_weights.ARMS)
def test_these_arms_are_measured_with_todays_row(found, arm):
    assert real_weights.find(found, arm, real_weights.settings_of(arm, ROW))


@pytest.fixture
def shown():
    """Made-up runs of today's row that show all that a row must show, by arm."""
    texts = {"ended": 0.5, "distinct_2_within": 0.95, "different_texts": 1.0}
    learned = {"implicit_reward_accuracy": {"low": 0.6}, "margin": {"low": 0.1}, "dpo_loss": 0.5}
    likelier = {"chosen_gain_nats_per_token": {"low": 0.2}}
    risen = {"gain_summed": {"mean": 0.1, "low": 0.05}}
    apart = {"answer_over_its_tokens_max": 1e-4}
    plain = {"low": 0.4, "high": 0.6}
    figures = {
        "base": {"accuracy_summed": plain, "accuracy_per_token": {"high": 0.4}, "sampled": texts},
        "sft": {**likelier, "sampled": texts},
        "dpo": {**learned, **risen, "sampled": texts},
        "orpo": {**likelier, **risen, "sampled": texts},
        "labelling": {
            **learned,
            "win_rate_rule_sampled": {"low": 0.6},
            "sampled_before": texts,
            "sampled_after": texts,
        },
        "precision": {
            "differences": {f"fp32 on {name} weights - {name}": apart for name in ("bf16", "fp16")}
        },
    }
    return json.loads(json.dumps(figures))  # no two runs share a part


def shortcomings(figures):
    runs = [
        {"arm": arm, "settings": real_weights.settings_of(arm, ROW), **run}
        for arm, run in figures.items()
    ]
    return real_weights.shortcomings({"runs": runs}, ROW)


def test_a_row_that_shows_all_has_no_shortcoming(shown):
    assert shortcomings(shown) == []


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("base accuracy_summed low", 0.5, "base: its accuracy is chance"),
        ("base accuracy_per_token high", 0.5, "base: per token it prefers the rejected"),
        ("sft chosen_gain_nats_per_token low", 0.1, "sft: held-out answers are likelier"),
        ("dpo margin low", 0.0, "dpo: a preference is learned"),
        ("labelling dpo_loss", float(np.log(2)), "labelling: a preference is learned"),
        ("orpo gain_summed mean", 0.09, "orpo: the plain accuracy rises by ten points"),
        ("dpo sampled ended", 0.4, "dpo: answers do not collapse"),
        ("labelling sampled_after different_texts", 0.5, "labelling: answers do not collapse"),
        ("labelling win_rate_rule_sampled low", 0.5, "labelling: the rule prefers its answers"),
    ],
)
def test_what_a_row_fails_to_show_is_named(shown, path, value, sentence):
    *parents, last = path.split()
    part = shown
    for name in parents:
        part = part[name]
    part[last] = value
    assert shortcomings(shown) == [f"not shown: {sentence}"]


def test_a_difference_above_the_tolerance_and_a_missing_arm_are_named(shown):
    (fp16,) = [name for name in shown["precision"]["differences"] if name.endswith("fp16")]
    largest = NATS_PER_TOKEN["fp16"]
    shown["precision"]["differences"][fp16] = {"answer_over_its_tokens_max": largest}
    (sentence,) = shortcomings(shown)
    assert sentence == "not shown: precision: fp16 differs by less than NATS_PER_TOKEN"
    del shown["orpo"]
    assert shortcomings(shown) == ["orpo: not measured"]


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

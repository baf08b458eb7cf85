"""benchmarks/orpo_quality.py: both methods read equal rows, and as many tokens."""

import numpy as np
import pytest
from datasets import Dataset

from benchmarks import orpo_quality as program
from utils.course.profiles import TABLE

LAB = TABLE["lab"]
PAIRS = Dataset.from_dict(
    {
        "question": [f"Câu hỏi {n}?" for n in range(40)],
        "history": [""] * 40,
        "chosen": ["một hai ba"] * 40,
        "rejected": ["một hai"] * 40,
    }
)


@pytest.fixture
def bench(monkeypatch):
    """A bench whose trainings record what they read; every token is a word."""
    monkeypatch.setattr(program.chat, "fitting", lambda pairs, *_: pairs)
    monkeypatch.setattr(program.chat, "conversations", lambda rows: rows["question"])
    for name in ("prompt_ids", "answer_ids"):
        monkeypatch.setattr(program.chat, name, lambda _, text: text.split())
    monkeypatch.setattr(program.models, "labelled_model", lambda *_: "SFT")
    found = object.__new__(program.Bench)
    found.profile, found.train, found.tokenizer, found.read = LAB, PAIRS, None, []
    found.test = PAIRS
    found.folder = "base"
    found.stage_arguments = lambda run, seed: {"output_dir": "out", "use_cpu": True, "bf16": False}
    found.fresh = lambda seed: "fresh"
    found.saved = lambda policy, name: name
    found.logps = lambda policy, rows: np.zeros((2, 3))
    found.measured = lambda policy, base: {"policy": policy}
    found.train_sft = lambda policy, rows, config: found.read.append(("SFT", rows, config))
    found.train_pairs = lambda kind, policy, rows, config: found.read.append(
        (kind.__name__, rows, config)
    )
    return found


def test_orpo_reads_the_same_rows_and_as_many_tokens(bench):
    base, sft, dpo, orpo = bench.runs(1, 40)
    assert [run["method"] for run in (base, sft, dpo, orpo)] == list(program.METHODS)
    assert (base["tokens"], sft["tokens"], dpo["tokens"]) == (0, 40 * 6, 40 * (6 + 8))
    step = 8 * LAB.orpo.batch_size
    assert abs(orpo["tokens"] - dpo["tokens"]) <= step
    (_, first, _), (_, second, _), (_, third, config) = bench.read
    assert list(first) == list(second) == list(third)
    assert config.max_steps == round(40 / LAB.orpo.batch_size * 14 / 8)


def test_a_seed_draws_other_pairs(bench):
    bench.runs(1, 10)
    bench.runs(2, 10)
    assert set(bench.read[0][1]["question"]) != set(bench.read[3][1]["question"])


def test_sft_cuts_no_row_and_has_the_steps_of_notebook_03():
    run = program.whole_rows(LAB)
    assert run.max_length == LAB.orpo.max_length > LAB.sft.max_length
    tokens, there = (each.max_length * each.batch_size for each in (run, LAB.sft))
    assert tokens < 2 * there
    assert run.learning_rate == LAB.sft.learning_rate


def test_the_lead_is_that_of_sft_and_dpo():
    runs = [
        {"method": method, "moved": moved}
        for method, moved in (("base", "0000"), ("SFT + DPO", "1110"), ("ORPO", "1000"))
    ]
    found = program.lead([*runs, *runs], ["a", "b", "c", "d"])
    assert found["mean"] == 0.5 and found["low"] <= 0.5 <= found["high"]

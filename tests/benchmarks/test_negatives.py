"""benchmarks/negatives.py: equal budgets, the held-out tiers, intervals, and resuming."""

import json
import sys

import numpy as np
import pytest

from benchmarks import negatives as program
from utils.data.pairs import load_preferences


@pytest.fixture(scope="module")
def pairs():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COURSE_PREFERENCE_DATA", raising=False)
        both = load_preferences(quiet=True)
    return {split: program.written(both[split]).select(range(300)) for split in both}


def test_every_kind_has_the_same_questions_and_chosen_answers(pairs):
    made = program.negatives_of(pairs["train"], 40, seed=1)
    assert list(made) == list(program.NEGATIVES)
    first = made["random"]
    for rows in made.values():
        assert (rows["question"], rows["chosen"]) == (first["question"], first["chosen"])
        assert len(set(rows["question"])) == len(rows) == 40
        assert not any(c == r for c, r in zip(rows["chosen"], rows["rejected"], strict=True))


def test_only_flawed_answers_are_to_the_same_question(pairs):
    made = program.negatives_of(pairs["train"], 40, seed=1)
    written = {(row["question"], row["rejected"]): row["tier"] for row in pairs["train"]}
    for question, text in zip(made["flawed"]["question"], made["flawed"]["rejected"], strict=True):
        assert written[question, text] not in program.MINED_TIERS
    answers = set(pairs["train"]["chosen"])
    for kind in ("random", "nearest", "mined"):
        assert set(made[kind]["rejected"]) <= answers


def test_a_seed_draws_other_questions_and_the_same_seed_the_same_ones(pairs):
    one, again, two = (
        program.negatives_of(pairs["train"], 40, seed)["flawed"] for seed in (1, 1, 2)
    )
    assert list(one) == list(again)
    assert set(one["question"]) != set(two["question"])


def test_a_random_row_is_never_the_own_row():
    for seed in range(20):
        found = program.other_rows(5, np.random.default_rng(seed))
        assert np.all(found != np.arange(5))
        assert set(found) <= set(range(5))


def test_each_held_out_tier_has_its_own_pairs(pairs):
    tests = program.held_out(pairs["test"])
    assert list(tests)[:2] == ["random", "off_topic"]
    assert "systematic" not in tests
    for tier in list(tests)[1:]:
        assert set(tests[tier]["tier"]) == {tier}
    random = tests["random"]
    assert len(set(random["question"])) == len(random)
    assert not any(c == r for c, r in zip(random["chosen"], random["rejected"], strict=True))


def test_the_interval_draws_the_pairs_of_a_question_together():
    verdicts = np.array([[1, 1, 1, 1, 0, 0, 0, 0]])
    apart = program.interval(verdicts, list("abcdefgh"))
    together = program.interval(verdicts, list("aaaabbbb"))
    assert apart[0] == together[0] == 0.5
    assert together[1:] == (0.0, 1.0)
    assert 0 < apart[1] < 0.5 < apart[2] < 1


def test_the_rule_takes_the_shorter_answer_and_gains_are_paired():
    tests = {"random": ["a", "b"], "padding": ["a", "b"], "wrong_fact": ["a", "b"]}
    pairs = program.Dataset.from_dict({"chosen": ["dạ", "dạ vâng"], "rejected": ["dạ vâng", "dạ"]})
    assert program.shorter(pairs) == "10"
    rule = {"random": "10", "padding": "11", "wrong_fact": "00"}
    runs = [
        run(kind, seed, {}, reward={"random": "00", "padding": "11", "wrong_fact": fact})
        for kind, fact in zip(program.NEGATIVES, ("00", "10", "11", "11"), strict=True)
        for seed in (1, 2)
    ]
    accuracy, gains = program.comparisons(runs, rule, tests)
    assert [row["accuracy"] for row in accuracy] == [0.5, 1.0, 0.0, 0.5]
    assert {row["against"]: row["gain"] for row in gains} == {
        "random": 0.5,
        "nearest": 0.25,
        "mined": 0.0,
        program.SHORTER: 0.5,
    }


def run(kind, seed, plain, **more):
    return {"negatives": kind, "seed": seed, "plain": plain, **more}


def test_the_summary_averages_the_seeds_and_joins_the_flaws():
    tests = {"random": ["a"], "off_topic": ["a"], "padding": ["a", "b"], "unsafe": ["c"]}
    verdicts = [
        {"random": "1", "off_topic": "0", "padding": "10", "unsafe": "1"},
        {"random": "1", "off_topic": "1", "padding": "00", "unsafe": "1"},
    ]
    runs = [
        run(kind, seed, each) | ({} if kind == program.SFT else {"reward": each})
        for kind in (program.SFT, *program.NEGATIVES)
        for seed, each in enumerate(verdicts)
    ]
    rows = {(row["negatives"], row["tier"]): row for row in program.summary(runs, tests)}
    assert rows["mined", "off_topic"]["plain"] == 0.5
    assert rows["mined", "all flaws"]["reward"] == pytest.approx(3 / 6)
    assert rows["mined", "all flaws"]["pairs"] == 3
    assert rows[program.SFT, "random"]["reward"] is None


def test_a_seed_that_the_json_has_is_not_trained_again(tmp_path, monkeypatch, pairs):
    trained, facts = [], {"model": "a stand-in", "data": "today's"}

    class Bench:
        def __init__(self, profile, scratch):
            self.facts = dict(facts)
            self.pairs, self.tests = pairs, program.held_out(pairs["test"])

        def runs(self, seed, count):
            trained.append((seed, count))
            plain = {tier: "1" * len(test) for tier, test in self.tests.items()}
            return [
                run(kind, seed, plain) | ({} if kind == program.SFT else {"reward": plain})
                for kind in (program.SFT, *program.NEGATIVES)
            ]

    monkeypatch.setattr(program, "Bench", Bench)
    out = tmp_path / "negatives.json"
    monkeypatch.setattr(sys, "argv", ["negatives.py", "--out", str(out)])
    monkeypatch.setattr(program, "SEEDS", (1, 2))
    program.main()
    monkeypatch.setattr(program, "SEEDS", (1, 2, 3))
    program.main()
    assert trained == [(1, program.PAIRS), (2, program.PAIRS), (3, program.PAIRS)]
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert {each["seed"] for each in saved["runs"]} == {1, 2, 3}
    assert {row["plain"] for row in saved["summary"]} == {1.0}

    facts["data"] = "another"
    with pytest.raises(SystemExit, match="measured with another data: move it away"):
        program.main()
    assert json.loads(out.read_text(encoding="utf-8")) == saved

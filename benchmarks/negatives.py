"""Which negatives teach the most? DPO on four kinds of rejected answers, with three seeds.

All four trainings of a seed start from the same SFT adapter. They read the same questions with the
same chosen answers, in equal number; only the rejected answers differ. All are judged on the same
held-out pairs, tier by tier. Writes negatives.json next to this file; a program that was
interrupted continues with the next seed.

    python benchmarks/negatives.py [--quick --out FILE]
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from datasets import Dataset
from peft import PeftModel
from trl import SFTConfig

from benchmarks.common import (
    LabBench,
    digits,
    interval,
    numbers,
    options,
    quiet,
    seed_by_seed,
    smaller,
)
from utils import models
from utils.course import session
from utils.course.profiles import TABLE, Profile
from utils.data.instructions import one_per_question
from utils.data.mining import mine, nearest, text_vectors
from utils.data.pairs import written
from utils.models import chat

SEEDS = (1, 2, 3)
PAIRS = 600  # of each kind of negatives
NEGATIVES = ("random", "nearest", "mined", "flawed")
MINED_TIERS = ("off_topic", "systematic")
EXAMPLES = 3  # questions of which the four negatives are kept for the notebook
SFT = "none (SFT)"  # the adapter that every training starts from
SHORTER = "rule: the shorter answer"


def other_rows(count: int, generator: np.random.Generator) -> np.ndarray:
    """A random other row for each of `count` rows, (count,)."""
    return (np.arange(count) + generator.integers(1, count, count)) % count


def negatives_of(pairs: Dataset, count: int, seed: int) -> dict[str, Dataset]:
    """The same questions and chosen answers with each kind of rejected answer.

    The rejected answers are searched among the answers to all questions of `pairs`. `seed` draws
    the questions, the random answers, and one of the flawed answers of each question.
    """
    generator = np.random.default_rng(seed)
    rows = one_per_question(pairs)
    questions, answers = rows["question"], rows["chosen"]
    flawed: dict[tuple[str, str], list[str]] = {}
    for row in pairs:
        if row["tier"] not in MINED_TIERS:
            flawed.setdefault((row["question"], row["chosen"]), []).append(row["rejected"])
    order, _ = nearest(*text_vectors(questions, answers), 2)
    own = order[:, 0] == np.arange(len(rows))
    others = {
        "random": other_rows(len(rows), generator),
        "nearest": np.where(own, order[:, 1], order[:, 0]),
        "mined": [found.index for found in mine(questions, answers)],
    }
    rejected = {kind: [answers[row] for row in found] for kind, found in others.items()}
    rejected["flawed"] = [
        str(generator.choice(flawed[key])) if (key := (q, a)) in flawed else ""
        for q, a in zip(questions, answers, strict=True)
    ]
    usable = [
        i for i, text in enumerate(rejected["flawed"]) if text and _differ(i, answers, others)
    ]
    drawn = sorted(generator.permutation(usable)[:count].tolist())
    return {
        kind: Dataset.from_dict(
            {
                "question": [questions[i] for i in drawn],
                "chosen": [answers[i] for i in drawn],
                "rejected": [rejected[kind][i] for i in drawn],
            }
        )
        for kind in NEGATIVES
    }


def _differ(row: int, answers: Sequence[str], others: dict[str, Sequence[int]]) -> bool:
    """Whether no other question's answer is the very text of the chosen one."""
    return all(answers[found[row]] != answers[row] for found in others.values())


def held_out(pairs: Dataset) -> dict[str, Dataset]:
    """The held-out pairs by tier; `random` has a random other answer to each question."""
    rows = one_per_question(pairs)
    other = other_rows(len(rows), np.random.default_rng(0))
    drawn = {
        "question": rows["question"],
        "chosen": rows["chosen"],
        "rejected": [rows["chosen"][row] for row in other],
    }
    tests = {"random": Dataset.from_dict(drawn)}
    flaws = sorted(set(pairs["tier"]) - {"off_topic"})
    tiers = np.array(pairs["tier"])
    for tier in ("off_topic", *flaws):
        tests[tier] = pairs.select(np.flatnonzero(tiers == tier).tolist())
    return tests


class Bench(LabBench):
    """The pairs on written questions, and the trainings on them; mining cannot search dialogues."""

    def __init__(self, profile: Profile, scratch: Path) -> None:
        super().__init__(profile, scratch)
        self.train = written(self.pairs["train"])
        self.tests = held_out(written(self.pairs["test"]))

    def sft(self, seed: int) -> Path:
        """The folder of this seed's SFT adapter, trained as in notebook 03."""
        policy = self.fresh(seed)
        rows = one_per_question(self.pairs["train"]).shuffle(seed=seed)
        rows = rows.select(range(min(self.profile.sft.rows, len(rows))))
        rows = chat.not_longer(rows, self.tokenizer, self.profile.sft.max_length, ("chosen",))
        config = SFTConfig(packing=True, **self.stage_arguments(self.profile.sft, seed))
        self.train_sft(policy, rows, config)
        return self.saved(policy, f"sft-{seed}")

    def by_tier(self, policy: PeftModel) -> dict[str, np.ndarray]:
        """ln π of the chosen and rejected answers of each tier, (2, pairs)."""
        return {tier: self.logps(policy, test) for tier, test in self.tests.items()}

    def runs(self, seed: int, count: int) -> list[dict[str, object]]:
        """The four trainings of a seed on `count` pairs, and their start; verdicts by tier."""
        start = self.sft(seed)
        before = self.by_tier(models.load_adapter(start, self.folder, self.profile))
        runs = [{"negatives": SFT, "seed": seed, "plain": _verdicts(before)}]
        for kind, pairs in negatives_of(self.train, count, seed).items():
            session.set_seed(seed)
            policy = models.labelled_model(start, self.folder, self.profile)
            self.dpo(policy, pairs, seed)
            now = self.by_tier(policy)
            ratios = {tier: now[tier] - before[tier] for tier in now}
            asked = self.tests["off_topic"]["question"][:64]
            length = self.profile.chat.max_new_tokens
            kl = chat.sampled_kl(policy, self.tokenizer, asked, max_new_tokens=length)
            run = {"negatives": kind, "seed": seed, "kl": float(kl.mean())}
            run |= {"plain": _verdicts(now), "reward": _verdicts(ratios)}
            run["examples"] = [dict(row) for row in pairs.select(range(min(EXAMPLES, len(pairs))))]
            runs.append(run)
        return runs


def _verdicts(scores: dict[str, np.ndarray]) -> dict[str, str]:
    """For each tier one digit per pair: 1 if the chosen answer has the higher score, else 0."""
    return {tier: digits(each[0] > each[1]) for tier, each in scores.items()}


def shorter(test: Dataset) -> str:
    """The verdicts of a rule that has learned nothing: the shorter answer (in characters) wins."""
    pairs = zip(test["chosen"], test["rejected"], strict=True)
    return digits(len(chosen) < len(rejected) for chosen, rejected in pairs)


def comparisons(
    runs: Sequence[dict], rule: dict[str, str], tests: dict[str, Sequence[str]]
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """The accuracy of `rule` in each tier, and what training on flawed answers gains on all flaws.

    A gain is the difference of the reward accuracies (of the rule: its accuracy) on the same pairs.
    """
    accuracy, gains, joined = [], [], _joined(tests)
    for tier, (parts, questions) in joined.items():
        mean, low, high = interval(_digits([rule], parts), questions)
        accuracy.append({"tier": tier, "accuracy": mean, "low": low, "high": high})
    flaws, questions = joined["all flaws"]
    of_kind = {
        kind: _digits([run["reward"] for run in runs if run["negatives"] == kind], flaws)
        for kind in NEGATIVES
    } | {SHORTER: _digits([rule], flaws)}
    for kind, verdicts in of_kind.items():
        if kind != "flawed":
            mean, low, high = interval(of_kind["flawed"] - verdicts, questions)
            gains.append({"against": kind, "gain": mean, "low": low, "high": high})
    return accuracy, gains


def _joined(tests: dict[str, Sequence[str]]) -> dict[str, tuple[list[str], list[str]]]:
    """Each tier, and `all flaws`: the tiers that it consists of, and their questions."""
    flaws = [tier for tier in tests if tier not in ("random", *MINED_TIERS)]
    parts = {tier: [tier] for tier in tests} | {"all flaws": flaws}
    return {
        tier: (part, [question for each in part for question in tests[each]])
        for tier, part in parts.items()
    }


def _digits(verdicts: Sequence[dict[str, str]], parts: Sequence[str]) -> np.ndarray:
    """The verdicts on the pairs of these tiers as numbers, (seeds, pairs)."""
    return numbers("".join(each[part] for part in parts) for each in verdicts)


def summary(runs: Sequence[dict], tests: dict[str, Sequence[str]]) -> list[dict[str, object]]:
    """For each kind of negatives and each tier: both accuracies over the seeds, with intervals.

    `tests` has the questions of each tier. The tier `all flaws` has the pairs of every flaw.
    """
    found = []
    for kind in (SFT, *NEGATIVES):
        chosen = [run for run in runs if run["negatives"] == kind]
        for tier, (parts, questions) in _joined(tests).items():
            row: dict[str, object] = {"negatives": kind, "tier": tier, "pairs": len(questions)}
            for name in ("plain", "reward"):
                if not all(name in run for run in chosen):  # SFT is its own reference
                    row |= {name: None, f"{name}_low": None, f"{name}_high": None}
                    continue
                verdicts = _digits([run[name] for run in chosen], parts)
                mean, low, high = interval(verdicts, questions)
                row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
            found.append(row)
    return found


def main() -> None:
    """Train every seed that the JSON does not have yet, and write the JSON after each."""
    asked = options(__doc__.splitlines()[0], __file__)
    quiet()
    profile, count, seeds = TABLE["lab"], PAIRS, SEEDS
    if asked.quick:
        profile, count, seeds = smaller(profile), 8, SEEDS[:1]
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(profile, Path(scratch))
        if asked.quick:
            tests = bench.tests.items()
            bench.tests = {tier: test.select(range(min(4, len(test)))) for tier, test in tests}
        questions = {tier: list(test["question"]) for tier, test in bench.tests.items()}

        def conclude(result: dict) -> None:
            rule = {tier: shorter(test) for tier, test in bench.tests.items()}
            result["summary"] = summary(result["runs"], questions)
            result["shorter"], result["gains"] = comparisons(result["runs"], rule, questions)
            for row in result["summary"]:
                if row["tier"] in ("random", "off_topic", "all flaws"):
                    figures = f"plain {row['plain']:.3f}, reward {row['reward'] or 0:.3f}"
                    print(f"{row['negatives']}, {row['tier']}: {figures}", flush=True)

        stages = {"sft": asdict(profile.sft), "dpo": asdict(profile.dpo)}
        facts = bench.facts | {"pairs": count} | stages
        seed_by_seed(asked.out, facts, seeds, lambda seed: bench.runs(seed, count), conclude)


if __name__ == "__main__":
    main()

"""ORPO in one stage against SFT and DPO in two, with equal rows and equal tokens, three seeds.

Both methods start from the base model and read the same pairs. SFT reads the chosen answers, then
DPO reads both answers of every pair; ORPO reads pairs until it has read as many tokens. A seed
draws the pairs, their order and the initial weights of the adapter. Rows of the base model and of
SFT alone stand beside them. Writes orpo_quality.json next to this file; a program that was
interrupted continues with the next seed.

    python benchmarks/orpo_quality.py [--quick --out FILE]
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, SFTConfig

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
from utils.course.profiles import TABLE, Profile, SFTRun
from utils.data.pairs import written
from utils.finetune.orpo import ORPOTrainer
from utils.judge import chrf
from utils.models import chat

SEEDS = (1, 2, 3)
PAIRS = 1000
SPOKEN = 100  # held-out questions that each model answers
METHODS = ("base", "SFT", "SFT + DPO", "ORPO")


def whole_rows(profile: Profile) -> SFTRun:
    """Notebook 03's SFT with packed rows so long that no answer is cut.

    One of them per step has about as many tokens as a step of notebook 03.
    """
    return replace(profile.sft, max_length=profile.orpo.max_length, batch_size=1)


class Bench(LabBench):
    """The written pairs, and the two methods on them."""

    def __init__(self, profile: Profile, scratch: Path) -> None:
        super().__init__(profile, scratch)
        self.train = written(self.pairs["train"], dialogues=True)
        test = written(self.pairs["test"], dialogues=True)
        self.test = test.select(range(min(profile.dpo.held_out, len(test))))

    def tokens(self, pairs: Dataset) -> tuple[int, int]:
        """The tokens that one pass of SFT reads, and one pass over both answers."""
        prompts = [
            len(chat.prompt_ids(self.tokenizer, question)) for question in chat.conversations(pairs)
        ]
        chosen, rejected = (
            sum(len(chat.answer_ids(self.tokenizer, text)) for text in pairs[side])
            for side in ("chosen", "rejected")
        )
        return sum(prompts) + chosen, sum(prompts) + chosen + rejected

    def measured(self, policy: PeftModel, base: np.ndarray) -> dict[str, float | None]:
        """Preferences, similarity of the answers to the chosen ones, and KL to the base."""
        now = self.logps(policy, self.test)
        asked = chat.conversations(self.test)[:SPOKEN]
        limit = {"max_new_tokens": self.profile.chat.max_new_tokens}
        replies = chat.reply(policy, self.tokenizer, asked, **limit)
        drawn = [
            each.ids for each in chat.reply(policy, self.tokenizer, asked, temperature=1.0, **limit)
        ]
        ours, _ = chat.answer_logps(policy, self.tokenizer, asked, drawn)
        with policy.disable_adapter():
            theirs, _ = chat.answer_logps(policy, self.tokenizer, asked, drawn)
        wanted = self.test["chosen"][:SPOKEN]
        moved = now - base
        towards = moved[0] > moved[1]
        return {
            "preference_accuracy": float(np.mean(now[0] > now[1])),
            "moved_towards_chosen": float(np.mean(towards)) if moved.any() else None,  # the base
            "moved": digits(towards),
            "chrf": float(np.mean([chrf(r.text, w) for r, w in zip(replies, wanted, strict=True)])),
            "ended": float(np.mean([each.ended for each in replies])),
            "kl": float((ours - theirs).mean()),
        }

    def runs(self, seed: int, count: int) -> list[dict[str, object]]:
        """The base, SFT, SFT + DPO and ORPO of a seed, on the same `count` pairs."""
        orpo = self.profile.orpo
        pairs = self.train.shuffle(seed=seed).select(range(min(count, len(self.train))))
        pairs = chat.fitting(pairs, self.tokenizer, orpo.max_length, orpo.batch_size, seed)
        once, both = self.tokens(pairs)
        policy = self.fresh(seed)
        base = self.logps(policy, self.test)
        found = [("base", self.measured(policy, base), 0)]

        arguments = self.stage_arguments(whole_rows(self.profile), seed)
        self.train_sft(policy, pairs, SFTConfig(packing=True, **arguments))
        found.append(("SFT", self.measured(policy, base), once))

        policy = models.labelled_model(self.saved(policy, "sft"), self.folder, self.profile)
        self.dpo(policy, pairs, seed)
        found.append(("SFT + DPO", self.measured(policy, base), once + both))

        policy = self.fresh(seed)
        steps = -(-len(pairs) // (orpo.batch_size * orpo.accumulation))
        budget = {"max_steps": max(1, round(steps * (once + both) / both))}  # equal tokens
        config = DPOConfig(
            beta=orpo.weight,
            train_sampling_strategy="sequential",
            **budget,
            **self.stage_arguments(orpo, seed),
        )
        self.train_pairs(ORPOTrainer, policy, pairs, config)
        read = round(both * budget["max_steps"] / steps)
        found.append(("ORPO", self.measured(policy, base), read))
        return [
            {"method": name, "seed": seed, **figures, "tokens": read}
            for name, figures, read in found
        ]


def lead(runs: Sequence[dict], questions: Sequence[str]) -> dict[str, float]:
    """By how much more often SFT + DPO than ORPO moved towards the chosen answer, on one set."""
    one, other = (
        numbers(run["moved"] for run in runs if run["method"] == name)
        for name in ("SFT + DPO", "ORPO")
    )
    return dict(zip(("mean", "low", "high"), interval(one - other, questions), strict=True))


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
            bench.test = bench.test.select(range(4))
        runs = {"sft": whole_rows(profile), "dpo": profile.dpo, "orpo": profile.orpo}
        stages = {name: asdict(run) for name, run in runs.items()}
        facts = bench.facts | {"pairs": count, "held_out": len(bench.test), **stages}

        def conclude(result: dict) -> None:
            result["peak_memory_mb"] = round(session.peak_memory_mb())
            result["moved_lead"] = lead(result["runs"], bench.test["question"])
            for run in result["runs"][-len(METHODS) :]:
                print({name: run[name] for name in ("method", "seed", "chrf", "kl")}, flush=True)

        seed_by_seed(asked.out, facts, seeds, lambda seed: bench.runs(seed, count), conclude)


if __name__ == "__main__":
    main()

"""Where DPO, SFT and ORPO end on pairs whose preference is known exactly, with three seeds.

The reference is an adapter that was trained on both answers of such pairs. Every other arm starts
from it and reads the same number of answers. `predicted` is computed from the reference before the
arm is trained. Writes attributes.json next to this file; a program that was interrupted continues
with the next seed.

    python benchmarks/attributes.py [--quick --out FILE]
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets import Dataset
from peft import PeftModel, get_peft_model
from trl import DPOConfig, SFTConfig

from benchmarks.common import machine, quiet
from utils import models
from utils.course import session
from utils.course.profiles import TABLE, AttributeRun, Profile
from utils.data.attributes import attribute_pairs, plain_answers, worth
from utils.data.pairs import load_preferences
from utils.finetune.orpo import ORPOTrainer
from utils.finetune.packing import PackedSFTTrainer
from utils.finetune.shared_prompt import SharedPromptDPOTrainer
from utils.finetune.training import run as train
from utils.judge.attributes import attribute_rates, combination_logps, divergence, predicted
from utils.models import chat
from utils.models.precision import precision_arguments

SEEDS = (1, 2, 3)
PAIRS = 1_500
BETAS = (0.5, 1.0, 2.0)
WEIGHT = 1.0  # ORPO's λ


class Bench:
    """The stand-in of the lab, its questions, and the trainings."""

    def __init__(self, profile: Profile, scratch: Path) -> None:
        self.profile, self.run, self.scratch = profile, profile.attributes, scratch
        pairs = load_preferences(quiet=True)
        self.folder, self.name = models.chat_source(profile.chat, pairs)
        self.tokenizer = models.chat_tokenizer(self.folder)
        self.questions = plain_answers(pairs["train"], self.run.questions)

    def pairs(self, count: int, seed: int) -> Dataset:
        """Pairs of this seed; the reference's and the arms' are different ones."""
        rates = self.run.chosen_rate, self.run.rejected_rate
        return attribute_pairs(self.questions, count, *rates, seed)

    def arguments(self, batch_size: int, learning_rate: float, seed: int) -> dict[str, object]:
        """What SFTConfig and DPOConfig share."""
        return {
            "output_dir": str(self.scratch / "checkpoints"),
            "per_device_train_batch_size": batch_size,
            "learning_rate": learning_rate,
            "num_train_epochs": 1,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "max_length": self.run.max_length,
            "save_strategy": "no",
            "report_to": "none",
            "seed": seed,
            **precision_arguments(self.profile),
        }

    def sft(self, policy: PeftModel, answers: Dataset, learning_rate: float, seed: int) -> None:
        """Supervised training on question, chosen."""
        arguments = self.arguments(self.run.sft_batch_size, learning_rate, seed)
        trainer = PackedSFTTrainer(
            policy,
            SFTConfig(packing=True, **arguments),
            processing_class=self.tokenizer,
            train_dataset=chat.sft_rows(answers),
        )
        train(trainer)

    def prefer(self, policy: PeftModel, pairs: Dataset, way: str, beta: float, seed: int) -> None:
        """DPO with this β, or ORPO with this λ."""
        sizes = self.run.max_length, self.run.batch_size, seed
        rows = chat.fitting(pairs, self.tokenizer, *sizes)
        arguments = self.arguments(self.run.batch_size, self.run.learning_rate, seed)
        arguments |= {"beta": beta, "train_sampling_strategy": "sequential"}
        if way == "DPO":
            arguments |= {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 32}
        kind = SharedPromptDPOTrainer if way == "DPO" else ORPOTrainer
        trainer = kind(
            policy,
            args=DPOConfig(**arguments),
            train_dataset=chat.preference_rows(rows),
            processing_class=self.tokenizer,
        )
        train(trainer)

    def reference(self, seed: int) -> Path:
        """The folder of a new reference, trained on both answers of pairs of its own."""
        session.set_seed(seed)
        base, _ = models.chat_model(self.folder, self.profile)
        policy = get_peft_model(base, models.lora(self.profile.chat))
        pairs = self.pairs(self.run.reference_pairs, 1_000 + seed)
        both = Dataset.from_dict(
            {
                "question": [*pairs["question"], *pairs["question"]],
                "chosen": [*pairs["chosen"], *pairs["rejected"]],
            }
        ).shuffle(seed=seed)
        self.sft(policy, both, self.run.sft_learning_rate, seed)
        out = self.scratch / f"reference-{seed}"
        out.mkdir(exist_ok=True)
        models.save_adapter(policy, self.tokenizer, out, self.name)
        return out

    def arm(self, reference: Path, way: str, strength: float, count: int, seed: int) -> dict:
        """Train one arm from the reference; its rates, the predicted ones, KL and answers."""
        session.set_seed(seed)
        policy = models.load_adapter(reference, self.folder, self.profile, trainable=True)
        policy.load_adapter(str(reference / "adapter"), "reference")
        policy.set_adapter("default")
        pairs, began = self.pairs(count, seed), time.perf_counter()
        if way == "SFT":  # as many answers as the other arms read: the chosen ones, twice
            answers = pairs.select([*range(len(pairs)), *range(len(pairs))]).shuffle(seed=seed)
            self.sft(policy, answers, self.run.sft_learning_rate, seed)
        elif way != "reference":
            self.prefer(policy, pairs, way, strength, seed)
        seconds = time.perf_counter() - began
        now = combination_logps(policy, self.tokenizer, self.questions)
        with models.speaking_as(policy, "reference"):
            before = combination_logps(policy, self.tokenizer, self.questions)
        value = worth(self.run.chosen_rate, self.run.rejected_rate)
        aim = predicted(before, value, strength) if way == "DPO" else None
        greedy = chat.reply(policy, self.tokenizer, self.questions["question"], max_new_tokens=48)
        contents = zip(greedy, self.questions["chosen"], strict=True)
        kl = chat.sampled_kl(policy, self.tokenizer, self.questions["question"], max_new_tokens=48)
        return {
            "way": way,
            "strength": strength,
            "seed": seed,
            "rates": attribute_rates(now).tolist(),
            "reference_rates": attribute_rates(before).tolist(),
            "predicted_rates": attribute_rates(aim).tolist() if aim is not None else None,
            "kl": divergence(now, before),
            "predicted_kl": divergence(aim, before) if aim is not None else None,
            "kl_of_answers": float(kl.mean()),
            "content_kept": sum(wanted[:-1] in r.text for r, wanted in contents) / len(greedy),
            "seconds": round(seconds, 1),
        }


def arms() -> list[tuple[str, float]]:
    """Every arm and the strength of its preference: β or λ."""
    return [("reference", 0.0), ("SFT", 0.0), *(("DPO", beta) for beta in BETAS), ("ORPO", WEIGHT)]


def smaller(run: AttributeRun) -> AttributeRun:
    """The least training, to check that the program runs."""
    return replace(run, questions=4, reference_pairs=16, batch_size=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument(
        "--quick", action="store_true", help="least training, to check that it runs"
    )
    asked = parser.parse_args()
    quiet()
    profile, count, seeds = TABLE["lab"], PAIRS, SEEDS
    if asked.quick:
        profile, count, seeds = replace(profile, attributes=smaller(profile.attributes)), 16, (1,)
    facts = {"profile": profile.name, "pairs": count, "settings": asdict(profile.attributes)}
    result = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.exists() else {}
    if any(result.get(name) != value for name, value in facts.items()):
        result = {**facts, "machine": machine("cpu"), "runs": []}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(profile, Path(scratch))
        result["model"] = bench.name
        for seed in seeds:
            if any(run["seed"] == seed for run in result["runs"]):
                continue
            reference = bench.reference(seed)
            runs = [bench.arm(reference, *arm, count, seed) for arm in arms()]
            result["runs"] += runs
            asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            for run in runs:
                mean = [sum(r) / 4 if r else 0 for r in (run["rates"], run["predicted_rates"])]
                print(f"{run['way']} {run['strength']:g}, seed {seed}: rate {mean[0]:.3f}, "
                      f"predicted {mean[1]:.3f}, KL {run['kl']:.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

"""Where DPO, SFT and ORPO end on pairs whose preference is known exactly, with three seeds.

The reference is an adapter that was trained on both answers of such pairs. Every other arm starts
from it and reads the same number of answers. `predicted` is computed from the reference before the
arm is trained. Writes attributes.json next to this file; a program that was interrupted continues
with the next seed.

    python benchmarks/attributes.py [--quick --out FILE]
"""

import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from trl import DPOConfig, SFTConfig

from benchmarks.common import LabBench, options, quiet, seed_by_seed
from utils import models
from utils.course import session
from utils.course.profiles import TABLE, Profile
from utils.data.attributes import attribute_pairs, plain_answers, worth
from utils.finetune.orpo import ORPOTrainer
from utils.finetune.shared_prompt import SharedPromptDPOTrainer
from utils.judge.attributes import attribute_rates, combination_logps, divergence, predicted
from utils.models import chat

SEEDS = (1, 2, 3)
PAIRS = 1_500
BETAS = (0.5, 1.0, 2.0)
WEIGHT = 1.0  # ORPO's λ
TOKENS = 48  # limit of an answer


class Bench(LabBench):
    """The questions with attributes, and the trainings on them."""

    def __init__(self, profile: Profile, scratch: Path) -> None:
        super().__init__(profile, scratch)
        self.run = profile.attributes
        self.questions = plain_answers(self.pairs["train"], self.run.questions)

    def drawn(self, count: int, seed: int) -> Dataset:
        """Pairs of this seed; the reference's and the arms' are different ones."""
        rates = self.run.chosen_rate, self.run.rejected_rate
        return attribute_pairs(self.questions, count, *rates, seed)

    def sft(self, policy: PeftModel, answers: Dataset, seed: int) -> None:
        """Supervised training on question, chosen."""
        config = SFTConfig(
            packing=True,
            **self.training_arguments(
                seed,
                per_device_train_batch_size=self.run.sft_batch_size,
                learning_rate=self.run.sft_learning_rate,
                max_length=self.run.max_length,
            ),
        )
        self.train_sft(policy, answers, config)

    def prefer(self, policy: PeftModel, pairs: Dataset, way: str, beta: float, seed: int) -> None:
        """DPO with this β, or ORPO with this λ, which needs no reference."""
        config = DPOConfig(
            beta=beta,
            train_sampling_strategy="sequential",
            precompute_ref_log_probs=way == "DPO",
            precompute_ref_batch_size=32 if way == "DPO" else None,
            **self.training_arguments(
                seed,
                per_device_train_batch_size=self.run.batch_size,
                learning_rate=self.run.learning_rate,
                max_length=self.run.max_length,
            ),
        )
        kind = SharedPromptDPOTrainer if way == "DPO" else ORPOTrainer
        self.train_pairs(kind, policy, pairs, config)

    def reference(self, seed: int) -> Path:
        """The folder of a new reference, trained on both answers of pairs of its own."""
        policy = self.fresh(seed)
        pairs = self.drawn(self.run.reference_pairs, 1_000 + seed)
        both = Dataset.from_dict(
            {
                "question": [*pairs["question"], *pairs["question"]],
                "chosen": [*pairs["chosen"], *pairs["rejected"]],
            }
        ).shuffle(seed=seed)
        self.sft(policy, both, seed)
        return self.saved(policy, f"reference-{seed}")

    def begun(self, reference: Path, seed: int) -> PeftModel:
        """The policy of an arm: the reference's adapter twice, of which one will be trained."""
        session.set_seed(seed)
        return models.labelled_model(reference, self.folder, self.profile)

    def imitate(self, policy: PeftModel, pairs: Dataset, seed: int) -> None:
        """SFT on as many answers as the other arms read: the chosen ones, twice."""
        twice = pairs.select([*range(len(pairs)), *range(len(pairs))])
        self.sft(policy, twice.shuffle(seed=seed), seed)

    def attributes(self, policy: PeftModel) -> tuple[Tensor, Tensor]:
        """ln π of the attributes of each question: the policy's, and the reference's."""
        now = combination_logps(policy, self.tokenizer, self.questions)
        with models.speaking_as(policy, "reference"):
            return now, combination_logps(policy, self.tokenizer, self.questions)

    def measured(self, policy: PeftModel, now: Tensor, before: Tensor) -> dict[str, object]:
        """The rates of both models, and the KL of the attributes and of whole answers."""
        asked = self.questions["question"]
        kl = chat.sampled_kl(policy, self.tokenizer, asked, max_new_tokens=TOKENS)
        return {
            "rates": attribute_rates(now).tolist(),
            "reference_rates": attribute_rates(before).tolist(),
            "kl": divergence(now, before),
            "kl_of_answers": float(kl.mean()),
        }

    def arm(self, reference: Path, way: str, strength: float, count: int, seed: int) -> dict:
        """Train one arm from the reference; its rates, the predicted ones, KL and answers."""
        policy = self.begun(reference, seed)
        pairs, began = self.drawn(count, seed), time.perf_counter()
        if way == "SFT":
            self.imitate(policy, pairs, seed)
        elif way != "reference":
            self.prefer(policy, pairs, way, strength, seed)
        seconds = time.perf_counter() - began
        now, before = self.attributes(policy)
        value = worth(self.run.chosen_rate, self.run.rejected_rate)
        aim = predicted(before, value, strength) if way == "DPO" else None
        asked = self.questions["question"]
        greedy = chat.reply(policy, self.tokenizer, asked, max_new_tokens=TOKENS)
        contents = zip(greedy, self.questions["chosen"], strict=True)
        return {
            "way": way,
            "strength": strength,
            "seed": seed,
            **self.measured(policy, now, before),
            "predicted_rates": attribute_rates(aim).tolist() if aim is not None else None,
            "predicted_kl": divergence(aim, before) if aim is not None else None,
            "content_kept": sum(wanted[:-1] in r.text for r, wanted in contents) / len(greedy),
            "seconds": round(seconds, 1),
        }


def arms() -> list[tuple[str, float]]:
    """Every arm and the strength of its preference: β or λ."""
    return [("reference", 0.0), ("SFT", 0.0), *(("DPO", beta) for beta in BETAS), ("ORPO", WEIGHT)]


def sizes(quick: bool, pairs: int) -> tuple[Profile, int, tuple[int, ...]]:
    """The profile, the pairs and the seeds; with `quick` the least, to check that it runs."""
    profile = TABLE["lab"]
    if not quick:
        return profile, pairs, SEEDS
    least = replace(profile.attributes, questions=4, reference_pairs=16, batch_size=4)
    return replace(profile, attributes=least), 16, (1,)


def report(result: dict) -> None:
    """Print the runs of the last seed."""
    for run in result["runs"][-len(arms()) :]:
        mean = [sum(r) / 4 if r else 0 for r in (run["rates"], run["predicted_rates"])]
        print(f"{run['way']} {run['strength']:g}, seed {run['seed']}: rate {mean[0]:.3f}, "
              f"predicted {mean[1]:.3f}, KL {run['kl']:.2f}", flush=True)  # fmt: skip


def main() -> None:
    asked = options(__doc__.splitlines()[0], __file__)
    quiet()
    profile, count, seeds = sizes(asked.quick, PAIRS)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(profile, Path(scratch))
        facts = bench.facts | {"pairs": count, "settings": asdict(profile.attributes)}

        def runs(seed: int) -> list[dict]:
            reference = bench.reference(seed)
            return [bench.arm(reference, *arm, count, seed) for arm in arms()]

        seed_by_seed(asked.out, facts, seeds, runs, report)


if __name__ == "__main__":
    main()

"""One round of DPO on the policy's own answers, judged by a rule, with three seeds.

The reference of attributes.py writes four answers to a question. A rule scores them: the number of
attributes, and -1 if the content is wrong. DPO learns the best one against the worst one. The
control learns the same best answers by SFT, and reads as many answers. Another arm learns pairs
with the same rule from `attribute_pairs`, which the policy did not write. Writes on_policy.json
next to this file; a program that was interrupted continues with the next seed.

    python benchmarks/on_policy.py [--quick --out FILE]
"""

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets import Dataset

from benchmarks.attributes import TOKENS, Bench, sizes
from benchmarks.common import options, quiet, seed_by_seed
from utils import models
from utils.data.attributes import attributes_of
from utils.models import chat

PAIRS = 700
SAMPLES = 4  # answers per question, of which the best and the worst are kept
BETA = 1.0
ARMS = ("reference", "SFT on the best", "DPO, own answers", "DPO, other answers")


def score(text: str, content: str) -> int:
    """The rule: the number of attributes; -1 if the content (a sentence) is not in the text."""
    body = content[:-1].lower()
    return sum(attributes_of(text)) if body in text.lower() else -1


class OnPolicy(Bench):
    """Attribute questions, and answers that a policy wrote to them itself."""

    def samples(self, policy: object, draws: int, seed: int) -> list[dict]:
        """Every question `draws` times, each time with SAMPLES answers and their scores."""
        asked = [n for n in range(len(self.questions)) for _ in range(draws * SAMPLES)]
        found = chat.reply(
            policy,
            self.tokenizer,
            [self.questions["question"][n] for n in asked],
            max_new_tokens=TOKENS,
            temperature=1.0,
            seed=seed,
        )
        contents = self.questions["chosen"]
        return [
            {"question": n, "text": each.text, "score": score(each.text, contents[n])}
            for n, each in zip(asked, found, strict=True)
        ]

    def best_and_worst(self, samples: list[dict], count: int, seed: int) -> Dataset:
        """Best against worst of each SAMPLES answers; equal scores give no pair."""
        pairs = []
        for start in range(0, len(samples), SAMPLES):
            four = sorted(samples[start : start + SAMPLES], key=lambda each: each["score"])
            if four[0]["score"] < four[-1]["score"]:
                pairs.append(
                    {
                        "question": self.questions["question"][four[0]["question"]],
                        "chosen": four[-1]["text"],
                        "rejected": four[0]["text"],
                    }
                )
        made = Dataset.from_list(pairs)
        return made.shuffle(seed=seed).select(range(min(count, len(made)))) if pairs else made

    def ruled(self, count: int, seed: int) -> Dataset:
        """Drawn pairs whose chosen answer has more attributes; the policy wrote none of them."""
        drawn = self.drawn(3 * count, seed)
        rows = zip(drawn["chosen"], drawn["rejected"], strict=True)
        kept = [n for n, (a, b) in enumerate(rows) if sum(attributes_of(a)) > sum(attributes_of(b))]
        return drawn.select(kept[:count])

    def compared(self, seed: int, count: int) -> list[dict]:
        """All arms of one seed, from one reference."""
        reference = self.reference(seed)
        policy = models.labelled_model(reference, self.folder, self.profile)
        draws = -(-count * 5 // (4 * len(self.questions)))  # some fours are ties
        own = self.best_and_worst(self.samples(policy, draws, seed), count, seed)
        own = own if len(own) else self.ruled(count, seed)  # --quick: nothing is right yet
        return [self.one(reference, arm, own, seed) for arm in ARMS]

    def one(self, reference: Path, arm: str, own: Dataset, seed: int) -> dict:
        """Train one arm; exact rates and KL, and the rule's score of new samples."""
        policy = self.begun(reference, seed)
        if arm == "SFT on the best":
            self.imitate(policy, own, seed)
        elif arm != "reference":
            pairs = own if arm == "DPO, own answers" else self.ruled(len(own), seed)
            self.prefer(policy, pairs, "DPO", BETA, seed)
        fresh = self.samples(policy, 2, 10_000 + seed)
        return {
            "arm": arm,
            "seed": seed,
            "pairs": len(own),
            **self.measured(policy, *self.attributes(policy)),
            "score": sum(each["score"] for each in fresh) / len(fresh),
            "content_kept": sum(each["score"] >= 0 for each in fresh) / len(fresh),
            "samples": [each["text"] for each in fresh[:: max(1, len(fresh) // 8)]][:8],
        }


def report(result: dict) -> None:
    """Print the runs of the last seed."""
    for run in result["runs"][-len(ARMS) :]:
        print(
            f"{run['arm']}, seed {run['seed']}: score {run['score']:.2f}, "
            f"rate {sum(run['rates']) / 4:.3f}, KL {run['kl']:.2f} "
            f"({run['kl_of_answers']:.2f} of answers), content {run['content_kept']:.0%}",
            flush=True,
        )


def main() -> None:
    asked = options(__doc__.splitlines()[0], __file__)
    quiet()
    profile, count, seeds = sizes(asked.quick, PAIRS)
    with tempfile.TemporaryDirectory() as scratch:
        bench = OnPolicy(profile, Path(scratch))
        facts = bench.facts | {"samples": SAMPLES, "beta": BETA, "asked_pairs": count}
        facts |= {"settings": asdict(profile.attributes)}
        seed_by_seed(asked.out, facts, seeds, lambda seed: bench.compared(seed, count), report)


if __name__ == "__main__":
    main()

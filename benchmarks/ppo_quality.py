"""Notebook 02's training with three seeds, to measure its variation. Writes ppo_quality.json.

Policy, reference and reward are the artifacts of the notebooks; only PPO's seed changes.
"""

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from transformers import AutoModelForCausalLM, AutoTokenizer

from utils.course.session import start
from utils.data.feedback import NEGATIVE, load_feedback
from utils.data.reading import fingerprint
from utils.judge.frontier import portrait
from utils.judge.metrics import independent_judge, minimal_kl
from utils.models.sentiment import SentimentReward
from utils.ppo.trainer import PPOConfig, PPOTrainer

SEEDS = (1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    out = parser.parse_args().out
    course = start("02")
    settings, device = course.profile.policy, course.profile.device
    data = load_feedback(offline=course.profile.offline)
    source = {"profile": course.profile.name, "data": fingerprint(data)}
    reward = SentimentReward.load(
        course.require("01_phobert_reward_model", inputs=source),
        device,
        settings.reward_kind,
        settings.reward_cap,
    )
    folder = course.require(course.notebook, inputs=source) / "reference"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    judged = [data["validation"], data["test"]]
    judge = independent_judge(
        [text for part in judged for text in part["sentence"]],
        [label for part in judged for label in part["sentiment"]],
    )

    def first_words(split: str) -> list[str]:
        return [" ".join(s.split()[: settings.prompt_words]) for s in data[split]["sentence"]]

    held_out = first_words("test")[: settings.held_out_prompts]
    runs, base_rates = [], None
    for seed in SEEDS:
        config = PPOConfig(seed=seed, **asdict(course.profile.ppo))
        policy = AutoModelForCausalLM.from_pretrained(folder).to(device)
        trainer = PPOTrainer(
            policy, tokenizer, reward, first_words("train"), config, progress=False
        )
        if base_rates is None:
            samples = [
                trainer.models.generate(held_out, seed=100 + k, from_reference=True)
                for k in range(settings.base_samples)
            ]
            negative = sum(judge.predict(texts) == NEGATIVE for texts in samples)
            base_rates = (negative + 0.5) / (len(samples) + 1)
            before = portrait(samples[0], reward, judge, trainer.models)
        history = trainer.train()
        found = trainer.evaluate(held_out, seed=7)
        after = portrait(found["texts"], reward, judge, trainer.models)
        kl = sum(found["kl"]) / len(found["kl"])
        least = minimal_kl(base_rates, after["negative (judge)"])
        runs.append(
            {
                "seed": seed,
                **after,
                "distinct-2 kept": after["distinct-2"] / before["distinct-2"],
                "KL": kl,
                "least KL": least,
                "ratio": kl / least,
                "seconds": sum(entry["seconds"] for entry in history),
            }
        )
        print(json.dumps(runs[-1]))
    result = {
        "profile": course.profile.name,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {device}",
        "data": source["data"],
        "settings": asdict(course.profile.ppo),
        "before": before,
        "runs": runs,
        **{key: value for key, value in course.facts().items() if key.endswith("_version")},
    }
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

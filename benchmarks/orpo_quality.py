"""Notebook 05's comparison with three seeds: SFT + DPO in two stages against ORPO in one stage.

Both methods start from the same base and read the same pairs. They read each chosen answer twice:
once in SFT and once in DPO, or in two passes of ORPO. A seed changes the order of the rows and the
initial weights of the adapter. Writes orpo_quality.json next to this file.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from utils.course import profiles, session  # noqa: E402

SEEDS = (1, 2, 3)


def train_way(way: str, rows, seed: int, folder: str, profile, tokenizer):  # noqa: ANN201
    """A policy trained with one method on the rows; the base is loaded again from its folder."""
    from peft import get_peft_model
    from trl import DPOConfig, SFTConfig

    from utils import models
    from utils.finetune.orpo import ORPOTrainer
    from utils.finetune.packing import PackedSFTTrainer
    from utils.finetune.shared_prompt import SharedPromptDPOTrainer
    from utils.finetune.training import run as run_training
    from utils.models import chat
    from utils.models.precision import precision_arguments

    session.set_seed(seed)
    policy = get_peft_model(models.chat_model(folder, profile)[0], models.lora(profile.chat))
    shared = {
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "seed": seed,
        **precision_arguments(profile),
    }
    stages = ["orpo"] if way == "ORPO" else ["sft", "dpo"]
    with tempfile.TemporaryDirectory() as scratch:
        for stage in stages:
            run = {"sft": profile.sft, "dpo": profile.dpo, "orpo": profile.orpo}[stage]
            sizes = {"per_device_train_batch_size": run.batch_size, "output_dir": scratch}
            passes = 2 if stage == "orpo" else 1
            sizes |= {"num_train_epochs": passes, "learning_rate": run.learning_rate}
            sizes |= {"max_length": run.max_length, **shared}
            if stage == "sft":
                arguments = SFTConfig(packing=True, **sizes)
                trainer = PackedSFTTrainer(
                    policy,
                    arguments,
                    processing_class=tokenizer,
                    train_dataset=chat.sft_rows(rows),
                )
            else:
                sizes |= {"train_sampling_strategy": "sequential"}
                data = chat.preference_rows(rows)
                if stage == "dpo":
                    arguments = DPOConfig(beta=run.beta, precompute_ref_log_probs=True, **sizes)
                else:
                    arguments = DPOConfig(beta=run.weight, **sizes)
                kind = SharedPromptDPOTrainer if stage == "dpo" else ORPOTrainer
                trainer = kind(
                    policy, args=arguments, train_dataset=data, processing_class=tokenizer
                )
            policy = run_training(trainer).model
    return policy


def judge(policy, tokenizer, test, limit: int) -> dict[str, float]:
    """Preference accuracy, similarity of the answers to the chosen ones, and KL to the base."""
    import torch

    from utils.judge.comparison import chrf
    from utils.models import chat

    questions = chat.conversations(test)
    asked = questions[:100]
    logps = [chat.answer_logps(policy, tokenizer, questions, test[side])[0].numpy()
             for side in ("chosen", "rejected")]  # fmt: skip
    replies = chat.reply(policy, tokenizer, asked, max_new_tokens=limit)
    drawn = chat.reply(policy, tokenizer, asked, max_new_tokens=limit, temperature=1.0)
    texts = [r.ids for r in drawn]
    ours, _ = chat.answer_logps(policy, tokenizer, asked, texts)
    with torch.no_grad(), policy.disable_adapter():
        base, _ = chat.answer_logps(policy, tokenizer, asked, texts)
    similarity = [
        chrf(r.text, wanted) for r, wanted in zip(replies, test["chosen"][:100], strict=True)
    ]
    return {
        "preference_accuracy": float(np.mean(logps[0] > logps[1])),
        "chrf": float(np.mean(similarity)),
        "kl": float((ours - base).mean()),
    }


def main() -> None:
    """Train with three seeds per method; the methods alternate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--out", type=Path, default=HERE / "orpo_quality.json")
    arguments = parser.parse_args()
    session.quiet()
    from utils import models
    from utils.data.pairs import load_preferences, written
    from utils.models import chat

    profile = profiles.TABLE["lab"]
    pairs = load_preferences(offline=True, quiet=True)
    folder, name = models.chat_source(profile.chat, pairs)
    tokenizer = models.chat_tokenizer(folder)
    test = written(pairs["test"], dialogues=True)
    test = test.select(range(min(profile.dpo.held_out, len(test))))
    runs = []
    for seed in SEEDS:
        drawn = pairs["train"].shuffle(seed=seed).select(range(arguments.pairs))
        rows = chat.fitting(
            drawn, tokenizer, profile.orpo.max_length, profile.orpo.batch_size, seed
        )
        for way in ("SFT + DPO", "ORPO"):
            begin = time.perf_counter()
            policy = train_way(way, rows, seed, folder, profile, tokenizer)
            seconds = time.perf_counter() - begin
            figures = judge(policy, tokenizer, test, profile.chat.max_new_tokens)
            runs.append({"way": way, "seed": seed, **figures, "train_seconds": seconds})
            print(runs[-1], flush=True)
    result = {
        "profile": "lab",
        "model": name,
        "pairs": arguments.pairs,
        "machine": f"{platform.machine()}, CPU, 2 cores",
        "peak_memory_mb": round(session.peak_memory_mb()),
        "runs": runs,
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

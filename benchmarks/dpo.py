"""The speed of notebook 04's training, compared with the first settings of the course.

    python benchmarks/dpo.py [--device cuda] [--quick] [--out FILE] [--note TEXT]

Equal work: the same pairs once, the same model in four bits with the same adapter, the same
learning rate, β and batch size, and so the same number of steps. Our method computes a prompt once
for both answers, and the log-probabilities of the reference once. It puts pairs of similar length
into a batch, and it stores activations. `original` computes a prompt twice, runs the reference at
every step, takes pairs at random, pads to the longest, and recomputes activations. The clock covers
the creation of the trainer (tokenisation, reference) and the training. Rounds are interleaved; a
ratio is computed within a round. The loss is the sigmoid loss on held-out pairs.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from benchmarks.common import Run, models, torch

METHODS = ("ours", "original")


def trainer_of(method: str, model: object, task: dict) -> object:
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    from utils.finetune.shared_prompt import SharedPromptDPOTrainer
    from utils.models.precision import float32_adapters, precision_arguments

    profile, ours = task["profile"], method == "ours"
    run = profile.dpo
    args = DPOConfig(
        output_dir=task["scratch"],
        learning_rate=run.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        num_train_epochs=1,
        beta=run.beta,
        max_length=run.max_length,
        per_device_train_batch_size=run.batch_size,
        gradient_accumulation_steps=run.accumulation,
        precompute_ref_log_probs=ours,
        train_sampling_strategy="sequential" if ours else "random",
        gradient_checkpointing=run.checkpointing if ours else True,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=0,
        **precision_arguments(profile),
    )
    kind = SharedPromptDPOTrainer if ours else DPOTrainer
    trainer = kind(
        model=model,
        args=args,
        train_dataset=task["ordered"]() if ours else task["rows"],
        processing_class=task["tokenizer"],
    )
    trainer.remove_callback(PrinterCallback)
    float32_adapters(trainer.model)
    return trainer


def prepared(method: str, task: dict) -> Run:
    """Load a model and give its adapter non-zero weights; the function returned trains it."""
    from peft import get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(task["load"](), models.lora(task["profile"].chat))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1e-3)

    def train() -> Callable[[], dict[str, float]]:
        trainer = trainer_of(method, model, task)
        trainer.train()
        return lambda: common.scores(trainer, task["held_out_loss"])

    return train


def lab_task(quick: bool, folder: str) -> dict:
    from utils.models.chat import (
        answer_ids,
        answer_logps,
        conversations,
        fitting,
        preference_rows,
        prompt_ids,
    )

    profile = common.TABLE["lab"]
    source, train, test = common.lab(32 if quick else 240, 16 if quick else 80)
    tokenizer = models.chat_tokenizer(source)
    order = (tokenizer, profile.dpo.max_length, profile.dpo.batch_size)
    train = fitting(train, *order)  # both methods get the rows that fit; `original` in random order

    asked = conversations(test)

    def both(model: object) -> torch.Tensor:
        sides = ("chosen", "rejected")
        return torch.stack([answer_logps(model, tokenizer, asked, test[side])[0] for side in sides])

    def held_out_loss(model: object) -> float:
        ours = both(model)
        model.set_adapter("ref")
        theirs = both(model)
        model.set_adapter("default")
        chosen, rejected = ours - theirs
        return float(-torch.nn.functional.logsigmoid(profile.dpo.beta * (chosen - rejected)).mean())

    tokens = 0
    for row, turns in zip(train, conversations(train), strict=True):
        prompt = len(prompt_ids(tokenizer, turns))
        tokens += 2 * prompt + sum(
            len(answer_ids(tokenizer, row[s])) for s in ("chosen", "rejected")
        )
    return {
        "profile": profile,
        "scratch": folder,
        "rows": preference_rows(train),
        "ordered": lambda: preference_rows(fitting(train, *order)),
        "tokenizer": tokenizer,
        "load": lambda: models.chat_model(source, profile)[0],
        "held_out_loss": held_out_loss,
        "tokens": tokens,
    }


def cuda_task(shape: str, profile: object, rows: int, folder: str) -> dict:
    """Questions of 60 tokens and answers of 120 tokens (medians); lengths are log-normal."""
    from datasets import Dataset

    vocabulary = common.SHAPES[shape][5]
    asked, chosen, rejected = (
        common.random_words(rows, median, spread, vocabulary, seed)
        for seed, (median, spread) in enumerate(((60, 0.5), (120, 0.9), (120, 0.9)))
    )
    texts = [
        {"prompt": q + " ", "chosen": c, "rejected": r}
        for q, c, r in zip(asked, chosen, rejected, strict=True)
    ]

    def ordered() -> Dataset:
        ranked = sorted(texts, key=lambda row: sum(map(len, row.values())))
        size = profile.dpo.batch_size
        batches = [ranked[start : start + size] for start in range(0, rows, size)]
        common.random.Random(0).shuffle(batches)
        return Dataset.from_list([row for batch in batches for row in batch])

    words = (
        2 * len(r["prompt"].split()) + len((r["chosen"] + r["rejected"]).split()) for r in texts
    )
    return {
        "profile": profile,
        "scratch": folder,
        "rows": Dataset.from_list(texts),
        "ordered": ordered,
        "tokenizer": common.word_tokenizer(vocabulary),
        "load": lambda: common.random_llama(shape, profile),
        "held_out_loss": lambda model: math.nan,
        "tokens": sum(words),
    }


def runs_of(task: dict) -> dict[str, object]:
    return {name: (lambda name=name: prepared(name, task)) for name in METHODS}


if __name__ == "__main__":
    common.main(__file__, __doc__.splitlines()[0], METHODS, lab_task, cuda_task, runs_of)

"""The speed of notebook 03's training, compared with the first settings of the course.

    python benchmarks/sft.py [--device cuda] [--quick] [--out FILE] [--note TEXT]

Equal work: the same rows once, the same model in four bits, the same learning rate, and batches of
about as many rows, and so about as many steps. Our method packs texts end to end, attends
only within a text, and stores activations. `original` pads a random batch to its longest row and
recomputes activations; `original_full` pads to `max_length`. The clock covers the creation of the
trainer (tokenisation, packing) and the training. Rounds are interleaved; a ratio is computed within
a round. The loss is that of the answers to held-out questions.
"""

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from benchmarks.common import Run, models, torch

METHODS = ("ours", "original", "original_full")


def settings_of(method: str, run: object, rows_per_step: int, device: str) -> dict:
    """The settings in which the methods differ."""
    if method == "ours":
        return {
            "packing": True,
            "gradient_checkpointing": run.checkpointing,
            "per_device_train_batch_size": run.batch_size,
            "gradient_accumulation_steps": run.accumulation,
        }
    at_once = rows_per_step if device == "cpu" else 4
    return {
        "packing": False,
        "gradient_checkpointing": True,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": max(1, rows_per_step // at_once),
        "pad_to_multiple_of": run.max_length if method == "original_full" else None,
    }


def trainer_of(method: str, model: object, tokenizer: object, rows: object, task: dict) -> object:
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from utils.finetune.packing import PackedSFTTrainer
    from utils.models.precision import float32_adapters, precision_arguments

    profile = task["profile"]
    args = SFTConfig(
        output_dir=task["scratch"],
        learning_rate=profile.sft.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        num_train_epochs=1,
        max_length=profile.sft.max_length,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        seed=0,
        **precision_arguments(profile),
        **settings_of(method, profile.sft, task["rows_per_step"], profile.device),
    )
    kind = PackedSFTTrainer if args.packing else SFTTrainer
    trainer = kind(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    float32_adapters(trainer.model)
    return trainer


def adapted(task: dict) -> object:
    from peft import get_peft_model

    torch.manual_seed(0)
    return get_peft_model(task["load"](), models.lora(task["profile"].chat))


def prepared(method: str, task: dict) -> Run:
    """Load a model; the function returned trains it."""
    model = adapted(task)

    def train() -> Callable[[], dict[str, float]]:
        trainer = trainer_of(method, model, task["tokenizer"], task["rows"], task)
        trainer.train()
        return lambda: common.scores(trainer, task["held_out_loss"])

    return train


def lab_task(quick: bool, folder: str) -> dict:
    from utils.models.chat import answer_logps, conversations, not_longer, sft_rows

    profile = common.TABLE["lab"]
    source, train, test = common.lab(48 if quick else 200, 16 if quick else 100)
    tokenizer = models.chat_tokenizer(source)
    # packing would cut longer rows, and TRL leaves some of them out when it does not pack
    train = not_longer(train, tokenizer, profile.sft.max_length, ("chosen",))

    def held_out_loss(model: object) -> float:
        logps, tokens = answer_logps(model, tokenizer, conversations(test), test["chosen"])
        return float(-logps.sum() / tokens.sum())

    task = {
        "profile": profile,
        "scratch": folder,
        "rows": sft_rows(train),
        "tokenizer": tokenizer,
        "load": lambda: models.chat_model(source, profile)[0],
        "held_out_loss": held_out_loss,
        "rows_per_step": 1,
    }
    return sized(task)


def cuda_task(shape: str, profile: object, rows: int, folder: str) -> dict:
    """Questions of 60 tokens and answers of 120 tokens (medians); lengths are log-normal."""
    from datasets import Dataset

    vocabulary = common.SHAPES[shape][5]
    asked = common.random_words(rows, 60, 0.5, vocabulary, 0)
    answered = common.random_words(rows, 120, 0.9, vocabulary, 1)
    texts = [{"prompt": q + " ", "completion": a} for q, a in zip(asked, answered, strict=True)]
    task = {
        "profile": profile,
        "scratch": folder,
        "rows": Dataset.from_list(texts),
        "tokenizer": common.word_tokenizer(vocabulary),
        "load": lambda: common.random_llama(shape, profile),
        "held_out_loss": lambda model: float("nan"),
        "rows_per_step": 1,
    }
    return sized(task)


def sized(task: dict) -> dict:
    """Add the number of tokens, and how many rows one of our steps reads on average."""
    trainer = trainer_of("ours", adapted(task), task["tokenizer"], task["rows"], task)
    run = task["profile"].sft
    packed = trainer.train_dataset
    tokens = sum(len(row) for row in packed["input_ids"])
    steps = len(packed) / (run.batch_size * run.accumulation)
    return task | {"tokens": tokens, "rows_per_step": max(1, round(len(task["rows"]) / steps))}


def runs_of(task: dict) -> dict[str, object]:
    methods = METHODS if task["profile"].device == "cpu" else METHODS[:2]
    return {name: (lambda name=name: prepared(name, task)) for name in methods}


if __name__ == "__main__":
    common.main(__file__, __doc__.splitlines()[0], METHODS, lab_task, cuda_task, runs_of)

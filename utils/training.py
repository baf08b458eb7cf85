"""What the Trainer-based notebooks share: precision flags and a quiet progress line."""

from collections.abc import Sequence

from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from utils.profiles import Policy, Profile


def precision_arguments(profile: Profile) -> dict[str, bool]:
    """What TrainingArguments must be told about the device and precision of a profile."""
    return {
        "use_cpu": profile.device == "cpu",
        "fp16": profile.precision == "fp16",
        "bf16": profile.precision == "bf16",
        "dataloader_pin_memory": profile.device == "cuda",
    }


def adapt_language_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[str],
    validation: Sequence[str],
    settings: Policy,
    profile: Profile,
    folder: str,
    seed: int,
) -> Trainer:
    """Language modelling on sentences that end with the end-of-text token; the trained Trainer.

    Labels are -100 on padding and nowhere else: where padding is the end-of-text token too, a
    collator that masks by token would hide every end, and the model would never stop.
    """

    def rows(texts: Sequence[str]) -> Dataset:
        ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
        return Dataset.from_dict({"input_ids": ids, "labels": ids})

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            num_train_epochs=settings.adapt_epochs,
            per_device_train_batch_size=settings.adapt_batch_size,
            per_device_eval_batch_size=128,
            learning_rate=settings.adapt_learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.05,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="epoch",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            **precision_arguments(profile),
        ),
        train_dataset=rows(train),
        eval_dataset=rows(validation),
        data_collator=DataCollatorForSeq2Seq(tokenizer),  # pads labels with -100
        callbacks=[EpochLines()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


class EpochLines(TrainerCallback):
    """One line an epoch instead of a progress bar: readable live and in a committed notebook."""

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        """Print the epoch, the latest training loss and the evaluation's scores."""
        trained = [entry["loss"] for entry in state.log_history if "loss" in entry]
        timings = ("runtime", "samples_per_second", "steps_per_second")
        scores = "  ".join(
            f"{name.removeprefix('eval_')} {value:.3f}"
            for name, value in (metrics or {}).items()
            if name != "epoch" and not name.endswith(timings)
        )
        training = f"training loss {trained[-1]:.3f}  " if trained else ""
        print(
            f"epoch {state.epoch:.0f}/{args.num_train_epochs:.0f}  {training}validation: {scores}"
        )

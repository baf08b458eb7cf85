"""What the Trainer-based notebooks share: precision flags and a quiet progress line."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
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

from utils.artifacts import no_space
from utils.profiles import Policy, Profile
from utils.sentences import CourseError


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


def last_checkpoint(folder: str) -> str | None:
    """The newest checkpoint that was saved whole; torn ones are removed.

    The Trainer writes trainer_state.json last: where it can be read, the rest is there.
    """
    steps = {int(path.name.split("-")[1]): path for path in Path(folder).glob("checkpoint-*")}
    for _, path in sorted(steps.items(), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
            continue
        return str(path)
    return None


def float32_adapters(model: PreTrainedModel) -> None:
    """Keep what is trained in 32 bits: TRL casts adapters to bf16, which a T4 cannot scale."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@contextmanager
def unrounded(model: PreTrainedModel) -> Iterator[None]:
    """Within the block a trainer may round what is trained; afterwards every digit is back."""
    exact = {n: p.detach().float().clone() for n, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in exact:
            parameter.data = exact[name]


RUN_MARK = "run.json"


def _same_run(trainer: Trainer, global_batch: int) -> bool:
    """Whether the checkpoints in the trainer's folder are of this very run; the mark is renewed."""
    arguments, rows = trainer.args, trainer.train_dataset.with_format(None)  # without transforms
    names = ("num_train_epochs", "max_steps", "learning_rate", "seed", "max_length", "beta")
    mark = {name: getattr(arguments, name, None) for name in names}
    ends = [{k: v for k, v in rows[at].items() if "ids" in k} for at in (0, len(rows) - 1)]
    mark |= {"batch": global_batch, "rows": len(rows), "ends": ends}
    path = Path(arguments.output_dir) / RUN_MARK
    try:
        same = json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(mark))
    except (OSError, ValueError):
        same = False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(mark), encoding="utf-8")
    return same


def fit(build: Callable[[int, int], Trainer], batch_size: int, accumulation: int) -> Trainer:
    """Train `build(batch_size, accumulation)`, from its last checkpoint if this run was cut off.

    Checkpoints of other rows or settings are removed. When memory does not suffice, half the
    batch and twice the accumulation give the same steps.
    """
    start: dict[str, torch.Tensor] = {}
    while True:
        trainer = build(batch_size, accumulation)
        float32_adapters(trainer.model)
        learned = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        start = start or {n: p.detach().to("cpu", copy=True) for n, p in learned.items()}
        if not _same_run(trainer, batch_size * accumulation):
            for old in Path(trainer.args.output_dir).glob("checkpoint-*"):
                shutil.rmtree(old)
        found = last_checkpoint(trainer.args.output_dir)
        if found:
            print(f"going on from {Path(found).name.replace('-', ' ')}")
        try:
            trainer.train(resume_from_checkpoint=found)
            return trainer
        except torch.OutOfMemoryError as error:
            if batch_size == 1:
                raise CourseError(
                    "One row alone does not fit into this device's memory: lower max_length in "
                    "utils/profiles.py, or take a smaller model."
                ) from error
            batch_size, accumulation = (batch_size + 1) // 2, accumulation * 2
            print(f"out of memory: batch {batch_size}, accumulation {accumulation} from here on")
        except Exception as error:
            if not no_space(error):
                raise
            step = trainer.state.global_step
            raise CourseError(
                f"The disk is full: the checkpoint after step {step} could not be saved. Free some "
                "space and run this cell again: it goes on from the last whole checkpoint."
            ) from error
        for name, values in start.items():  # the next try, and its reference, begin here again
            learned[name].data.copy_(values)
        del trainer, learned
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

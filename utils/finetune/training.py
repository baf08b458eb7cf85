"""What every training through transformers' Trainer shares: resuming, scarce memory, progress."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from utils.course import progress
from utils.course.errors import CourseError
from utils.course.folders import no_space
from utils.course.profiles import Policy, Profile
from utils.models import memory
from utils.models.lengths import cut, positions
from utils.models.precision import float32_adapters, precision_arguments, unwrap


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
        ids = cut(ids, positions(model), "sentences")
        return Dataset.from_dict({"input_ids": ids, "labels": ids})

    def build(batch_size: int, accumulation: int) -> Trainer:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=settings.adapt_epochs,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            per_device_eval_batch_size=settings.adapt_eval_batch_size,
            learning_rate=settings.adapt_learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.05,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="epoch",
            report_to="none",
            seed=seed,
            **precision_arguments(profile),
        )
        return Trainer(
            model=model,
            args=arguments,
            train_dataset=rows(train),
            eval_dataset=rows(validation),
            data_collator=DataCollatorForSeq2Seq(tokenizer),  # pads labels with -100
            callbacks=[EpochLines()],
        )

    return fit(build, settings.adapt_batch_size, 1)


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


RUN_MARK = "run.json"


def _same_run(trainer: Trainer, global_batch: int) -> bool:
    """Whether the checkpoints in the trainer's folder are of this very run.

    If they are not, the mark is renewed, whole or not at all.
    """
    arguments, rows = trainer.args, trainer.train_dataset.with_format(None)  # without transforms
    names = ("num_train_epochs", "max_steps", "learning_rate", "seed", "max_length", "beta")
    mark = {name: getattr(arguments, name, None) for name in names}
    ends = [{k: v for k, v in rows[at].items() if "ids" in k} for at in (0, len(rows) - 1)]
    mark |= {"batch": global_batch, "rows": len(rows), "ends": ends}
    path = Path(arguments.output_dir) / RUN_MARK
    try:
        if json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(mark)):
            return True
    except (OSError, ValueError):
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    try:
        part.write_text(json.dumps(mark), encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return False


class _Bars(TrainerCallback):
    """The bar of a training, and of each evaluation within it."""

    def __init__(self) -> None:
        self.training = self.evaluation = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.training = progress.bar("training", state.max_steps, "step")
        self.training.update(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.training.update(state.global_step - self.training.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if self.training is not None and "loss" in (logs or {}):
            self.training.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: object = None,
        **_: object,
    ) -> None:
        if self.evaluation is None:
            self.evaluation = progress.bar("evaluation", len(eval_dataloader), "batch")
        self.evaluation.update()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self.evaluation is not None:
            self.evaluation.close()
        self.evaluation = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.training.close()


def _apart(trainer: Trainer) -> None:
    """Keep what measures out of the memory that training is asked for.

    An evaluation that does not fit takes half its batch; a callback that does not fit is named.
    """
    evaluate, call = trainer.evaluate, trainer.callback_handler.call_event

    def evaluate_in_room(*arguments: object, **keywords: object) -> dict[str, float]:
        while True:
            try:
                return evaluate(*arguments, **keywords)
            except Exception as error:
                size = trainer.args.per_device_eval_batch_size
                if not memory.ran_out(error):
                    raise
                if size == 1:
                    raise CourseError(
                        "The evaluation of one row does not fit into this GPU's memory: lower "
                        "max_length in utils/course/profiles.py, or take a smaller model."
                    ) from error
            trainer.args.per_device_eval_batch_size = size // 2
            memory.release()
            print(f"out of memory: evaluation goes on with batches of {size // 2}")

    def call_and_name(event: str, *arguments: object, **keywords: object) -> TrainerControl:
        try:
            return call(event, *arguments, **keywords)
        except Exception as error:
            if not memory.ran_out(error):
                raise
            raise CourseError(
                f"What is measured during training ({event}) does not fit into this GPU's memory "
                "beside the training: let it read fewer rows at a time."
            ) from error

    trainer.evaluate, trainer.callback_handler.call_event = evaluate_in_room, call_and_name


def run(trainer: Trainer, resume_from_checkpoint: str | None = None) -> Trainer:
    """Train: adapters in 32 bits, a live bar, and the model's own precision back at the end."""
    float32_adapters(trainer.model)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(_Bars())
    _apart(trainer)
    try:
        trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    finally:
        unwrap(trainer.model)
    return trainer


def fit(build: Callable[[int, int], Trainer], batch_size: int, accumulation: int) -> Trainer:
    """Train `build(batch_size, accumulation)`, from its last checkpoint if this run was cut off.

    Checkpoints of other rows or settings are removed. When memory does not suffice, half the
    batch and twice the accumulation give the same steps.
    """
    start: dict[str, torch.Tensor] = {}
    while True:
        trainer, learned = None, {}
        try:
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
            return run(trainer, found)
        except Exception as error:
            if no_space(error):
                step = trainer.state.global_step if trainer else 0
                raise CourseError(
                    f"The disk is full: the checkpoint after step {step} could not be saved. Free "
                    "some space and run this cell again: it goes on from the last whole checkpoint."
                ) from error
            if not memory.ran_out(error):
                raise
            if batch_size == 1:
                raise CourseError(
                    "One row alone does not fit into this device's memory: lower max_length in "
                    "utils/course/profiles.py, or take a smaller model."
                ) from error
        batch_size, accumulation = (batch_size + 1) // 2, accumulation * 2
        print(f"out of memory: batch {batch_size}, accumulation {accumulation} from here on")
        for name, values in start.items():  # the next try, and its reference, begin here again
            if name in learned:
                learned[name].data.copy_(values)
        del trainer, learned
        memory.release()

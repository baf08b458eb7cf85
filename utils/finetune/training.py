"""What every training through transformers' Trainer shares: resuming, scarce memory, progress."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import set_peft_model_state_dict
from safetensors.torch import load_file, load_model
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
            save_strategy="epoch",
            save_total_limit=1,
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


def _write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


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
    _write_whole(path, json.dumps(mark))
    return False


def _to_continue(trainer: Trainer, global_batch: int) -> str | None:
    """This run's newest whole checkpoint; what lies there of another run is removed.

    The first process looks, and tells the others.
    """
    folder, found = trainer.args.output_dir, [None]
    if trainer.is_world_process_zero():
        if not _same_run(trainer, global_batch):
            for old in Path(folder).glob("checkpoint-*"):
                shutil.rmtree(old)
        found = [last_checkpoint(folder)]
    return broadcast_object_list(found)[0]


def _shares(batch_size: int, accumulation: int, processes: int) -> tuple[int, int]:
    """Batch and accumulation of each process, so that all together make the same steps.

    >>> _shares(8, 2, 4), _shares(4, 4, 8)
    ((2, 2), (1, 2))
    """
    rows = batch_size * accumulation
    if rows % processes:
        raise CourseError(
            f"A step of {rows} rows cannot be shared among {processes} processes: start a number "
            "of processes that divides it, by --num_processes."
        )
    rows //= processes
    size = max(n for n in range(1, max(1, batch_size // processes) + 1) if rows % n == 0)
    return size, rows // size


FINISHED_LOG = "trainer_state.json"


def _load_finished(trainer: Trainer, checkpoint: str) -> bool:
    """Whether this checkpoint ends its run; its weights and its log are then loaded.

    The weights lie there whole, however many processes held parts of them in training.
    """
    folder = Path(checkpoint)
    state = TrainerState.load_from_json(str(folder / FINISHED_LOG))
    if not any("train_runtime" in entry for entry in state.log_history):
        return False
    trainer.state = state
    _load_weights(trainer, folder)
    return True


def _load_weights(trainer: Trainer, checkpoint: Path) -> None:
    """Put a checkpoint's weights into the whole model of this process."""
    adapter = checkpoint / "adapter_model.safetensors"
    if adapter.is_file():
        set_peft_model_state_dict(trainer.model, load_file(adapter), "default")
    else:
        load_model(trainer.model, checkpoint / "model.safetensors")


def _load_before_sharding(trainer: Trainer, checkpoint: str) -> None:
    """Load the weights of a cut-off FSDP run while every process still holds the whole model.

    Later, Accelerate sends each weight of the model from the first process to the others, and the
    scales of 4-bit weights, which no checkpoint of an adapter holds, are missing there.
    """
    _load_weights(trainer, Path(checkpoint))
    trainer._load_from_checkpoint = lambda *_, **__: None


def _check_sharding(trainer: Trainer, checkpoint: str) -> None:
    """Refuse to go on in another way than the one in which the run was cut off."""
    sharded = (Path(checkpoint) / "pytorch_model_fsdp.bin").is_file()
    if sharded != trainer.is_fsdp_enabled:
        there, here = ("with", "without") if sharded else ("without", "with")
        raise CourseError(
            f"{Path(checkpoint).name} was saved by a training {there} FSDP that was cut off, and "
            f"this one is {here}: go on {there} it, or remove {trainer.args.output_dir}."
        )


def _note_finished(trainer: Trainer) -> None:
    """Keep the log of a run that has ended with its last checkpoint, time and final loss included.

    The Trainer saves that checkpoint before it knows them.
    """
    if not trainer.is_world_process_zero():
        return
    if found := last_checkpoint(trainer.args.output_dir):
        text = json.dumps(dataclasses.asdict(trainer.state), indent=2, sort_keys=True)
        _write_whole(Path(found) / FINISHED_LOG, text + "\n")


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

    Checkpoints of other rows or settings are removed; a run that has ended is loaded, not repeated.
    When memory does not suffice, half the batch and twice the accumulation give the same steps. So
    do several processes, each with its part of the batch.
    """
    start: dict[str, torch.Tensor] = {}
    processes = dist.get_world_size() if dist.is_initialized() else 1
    rows = batch_size * accumulation
    batch_size, accumulation = _shares(batch_size, accumulation, processes)
    while True:
        trainer, learned = None, {}
        try:
            trainer = build(batch_size, accumulation)
            if getattr(trainer.model.config, "is_encoder_decoder", False):
                # T5 takes any keyword and leaves the number of the whole step's tokens unread
                trainer.model_accepts_loss_kwargs = False
            float32_adapters(trainer.model)
            learned = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
            start = start or {n: p.detach().to("cpu", copy=True) for n, p in learned.items()}
            found = _to_continue(trainer, rows)
            if found and _load_finished(trainer, found):
                print(f"this training has ended before: {Path(found).name.replace('-', ' ')}")
                return trainer
            if found:
                _check_sharding(trainer, found)
                if trainer.is_fsdp_enabled:
                    _load_before_sharding(trainer, found)
                print(f"going on from {Path(found).name.replace('-', ' ')}")
            run(trainer, found)
            _note_finished(trainer)
            return trainer
        except Exception as error:
            if no_space(error):
                step = trainer.state.global_step if trainer else 0
                raise CourseError(
                    f"The disk is full: the checkpoint after step {step} could not be saved. Free "
                    "some space and run this cell again: it goes on from the last whole checkpoint."
                ) from error
            if not memory.ran_out(error):
                raise
            if processes > 1:
                raise CourseError(
                    f"{batch_size} rows do not fit into this GPU's memory, and {processes} "
                    "processes cannot take smaller batches on their own: halve batch_size and "
                    "double accumulation in utils/course/profiles.py, then start it again."
                ) from error
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

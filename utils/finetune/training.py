"""Common parts of every training with transformers' Trainer: resuming, low memory, progress."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import PeftModel, set_peft_model_state_dict
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
from utils.course.language import tr
from utils.course.profiles import Policy, Profile
from utils.models import memory
from utils.models.lengths import cut
from utils.models.logprobs import positions
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
    """Train on sentences that end with the end-of-text token; return the trained Trainer.

    Labels are -100 only on padding. If the padding token is also the end-of-text token, a collator
    that masks by token would hide every end, and the model would never learn to stop.
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
        return _SimilarLengths(
            model=model,
            args=arguments,
            train_dataset=rows(train),
            eval_dataset=rows(validation),
            data_collator=DataCollatorForSeq2Seq(tokenizer),  # pads labels with -100
            callbacks=[EpochLines()],
        )

    return fit(build, settings.adapt_batch_size, 1)


class _SimilarLengths(Trainer):
    """On one CPU, the rows of a batch pass through the model in parts of similar length.

    The loss of the batch is the sum of the parts' losses, because each part divides by the tokens
    of the whole batch. The batches are as random as before, and most of the padding is gone.
    """

    ROWS = 12  # of a part; smaller parts have less padding, but more passes cost more

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, object]:
        """The loss of a batch; an evaluation asks for outputs, so its batch is not divided."""
        one_cpu = self.args.device.type == "cpu" and self.args.world_size == 1
        if return_outputs or num_items_in_batch is None or not one_cpu:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        lengths = inputs["attention_mask"].sum(1)
        parts = []
        for rows in lengths.argsort(stable=True).split(self.ROWS):
            width = int(lengths[rows].max())
            part = {name: whole[rows, :width] for name, whole in inputs.items()}
            parts.append(super().compute_loss(model, part, num_items_in_batch=num_items_in_batch))
        return torch.stack(parts).sum()


class EpochLines(TrainerCallback):
    """One line per epoch instead of a progress bar: readable live and in a committed notebook."""

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
        values = {"epoch": state.epoch, "epochs": args.num_train_epochs, "scores": scores}
        if trained:
            print(
                tr(
                    "epoch {epoch:.0f}/{epochs:.0f}  training loss {loss:.3f}  "
                    "validation: {scores}",
                    loss=trained[-1],
                    **values,
                )
            )
        else:
            print(tr("epoch {epoch:.0f}/{epochs:.0f}  validation: {scores}", **values))


def last_checkpoint(folder: str) -> str | None:
    """The newest complete checkpoint; incomplete ones are removed.

    The Trainer writes trainer_state.json last: if it can be read, the other files are complete.
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
DEFINING = (  # the arguments that make another run of a training, where a trainer has them
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("weight_decay", "seed", "train_sampling_strategy", "max_length"),
    *("beta", "loss_type", "loss_weights", "label_smoothing"),
)
NEW = ("loss_weights", "adapter", "start")  # a RUN_MARK of an earlier version does not have them


def _write_whole(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _default_adapter(model: torch.nn.Module) -> tuple[list | None, str | None]:
    """The size of the default adapter, and a hash of its lora_B now; None without an adapter.

    lora_A is random in every session, so it is left out. lora_B is 0 in a new adapter.
    """
    if not isinstance(model, PeftModel):
        return None, None
    settings, weights = model.peft_config["default"], hashlib.sha256()
    for name, parameter in model.named_parameters():
        if "lora_B.default" in name:
            weights.update(parameter.detach().float().cpu().numpy().tobytes())
    size = [settings.r, settings.lora_alpha, sorted(settings.target_modules)]
    return size, weights.hexdigest()


def _same_run(trainer: Trainer, global_batch: int) -> bool:
    """Whether the checkpoints in the trainer's folder are of the same run.

    If they are not, the file RUN_MARK is written again. The weights from which a run started are
    also kept on the model, because its training in this session has changed them.
    """
    arguments, rows = trainer.args, trainer.train_dataset.with_format(None)  # without transforms
    mark = {name: getattr(arguments, name, None) for name in DEFINING}
    own = getattr(trainer, "settings", None)  # those of a trainer of ours
    mark["settings"] = dataclasses.asdict(own) if dataclasses.is_dataclass(own) else None
    data = hashlib.sha256()
    for row in rows:  # tokens and labels; a reference's log-probabilities are not data
        learned = {key: value for key, value in row.items() if "ids" in key or "label" in key}
        data.update(json.dumps(learned).encode())
    mark |= {"batch": global_batch, "rows": len(rows), "data": data.hexdigest()}
    model, path = trainer.model, Path(arguments.output_dir) / RUN_MARK
    mark["adapter"], now = _default_adapter(model)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    same = False
    for start in (getattr(model, "_course_origin", now), now):
        mark["start"] = start
        wanted = json.loads(json.dumps(mark))
        # a value that an earlier version did not write is not a reason to remove its checkpoints
        if same := {name: wanted[name] for name in NEW} | found == wanted:
            break
    model._course_origin = start
    if found != wanted:
        _write_whole(path, json.dumps(mark))
    return same


def _to_continue(trainer: Trainer, global_batch: int) -> str | None:
    """The newest complete checkpoint of this run; checkpoints of another run are removed.

    The first process searches, and sends the result to the others.
    """
    folder, found = trainer.args.output_dir, [None]
    if trainer.is_world_process_zero():
        if not _same_run(trainer, global_batch):
            for old in Path(folder).glob("checkpoint-*"):
                shutil.rmtree(old)
        found = [last_checkpoint(folder)]
    return broadcast_object_list(found)[0]


def _shares(batch_size: int, accumulation: int, processes: int) -> tuple[int, int]:
    """Batch and accumulation of each process, so that the steps are those of one process.

    >>> _shares(8, 2, 4), _shares(4, 4, 8)
    ((2, 2), (1, 2))
    """
    rows = batch_size * accumulation
    if rows % processes:
        raise CourseError(
            tr(
                "A step of {rows} rows cannot be shared among {processes} processes: set "
                "--num_processes to a number that divides {rows}.",
                rows=rows,
                processes=processes,
            )
        )
    return _split(rows // processes, max(1, batch_size // processes))


def _split(rows: int, largest: int) -> tuple[int, int]:
    """The largest batch up to `largest` that divides the rows of a step, and the accumulation.

    >>> _split(16, 4), _split(3, 1), _split(6, 4)
    ((4, 4), (1, 3), (3, 2))
    """
    size = max(n for n in range(1, largest + 1) if rows % n == 0)
    return size, rows // size


FINISHED_LOG = "trainer_state.json"


def _load_finished(trainer: Trainer, checkpoint: str) -> bool:
    """Whether this checkpoint is the end of its run; if so, load its weights and its log.

    A last checkpoint contains the complete weights, even if several processes held parts of them.
    """
    folder = Path(checkpoint)
    state = TrainerState.load_from_json(str(folder / FINISHED_LOG))
    if not any("train_runtime" in entry for entry in state.log_history):
        return False
    trainer.state = state
    _load_weights(trainer, folder)
    return True


def _load_weights(trainer: Trainer, checkpoint: Path) -> None:
    """Load a checkpoint's weights into this process's model, which must not be sharded."""
    adapter = checkpoint / "adapter_model.safetensors"
    if adapter.is_file():
        set_peft_model_state_dict(trainer.model, load_file(adapter), "default")
    else:
        load_model(trainer.model, checkpoint / "model.safetensors")


def _load_before_sharding(trainer: Trainer, checkpoint: str) -> None:
    """Load the weights of an interrupted FSDP run before the model is sharded.

    If they were loaded later, Accelerate would send every weight of the model from the first
    process to the others. This fails because the scales of 4-bit weights are in no checkpoint of
    an adapter.
    """
    _load_weights(trainer, Path(checkpoint))
    trainer._load_from_checkpoint = lambda *_, **__: None


def _check_sharding(trainer: Trainer, checkpoint: str) -> None:
    """Raise an error if the interrupted run used FSDP and this one does not, or the reverse."""
    sharded = (Path(checkpoint) / "pytorch_model_fsdp.bin").is_file()
    if sharded != trainer.is_fsdp_enabled:
        values = {"checkpoint": Path(checkpoint).name, "folder": trainer.args.output_dir}
        if sharded:
            raise CourseError(
                tr(
                    "{checkpoint} was saved by an interrupted training with FSDP, and this one "
                    "is without: continue with FSDP, or remove {folder}.",
                    **values,
                )
            )
        raise CourseError(
            tr(
                "{checkpoint} was saved by an interrupted training without FSDP, and this one "
                "is with: continue without FSDP, or remove {folder}.",
                **values,
            )
        )


def _note_finished(trainer: Trainer) -> None:
    """Save the log of a finished run, including time and final loss, into its last checkpoint.

    The Trainer saves that checkpoint before it knows the time and the final loss.
    """
    if not trainer.is_world_process_zero():
        return
    if found := last_checkpoint(trainer.args.output_dir):
        text = json.dumps(dataclasses.asdict(trainer.state), indent=2, sort_keys=True)
        _write_whole(Path(found) / FINISHED_LOG, text + "\n")


class _Bars(TrainerCallback):
    """The progress bar of a training, and of each evaluation during it.

    It also adds to each entry of the log for how many seconds the training has run. The seconds of
    an interrupted session count up to the last entry of the checkpoint.
    """

    def __init__(self) -> None:
        self.training = self.evaluation = self.begin = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.training = progress.bar("training", state.max_steps, "step")
        self.training.update(state.global_step)
        earlier = [entry["seconds"] for entry in state.log_history if "seconds" in entry]
        self.begin = perf_counter() - (earlier[-1] if earlier else 0.0)

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
        if self.begin is not None:  # an evaluation after the training does not count
            state.log_history[-1]["seconds"] = perf_counter() - self.begin

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
        self.begin = None


def _forget_evaluation(trainer: Trainer) -> None:
    """Drop what an unfinished evaluation has stored, so that no row counts twice."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, _Bars):
            callback.on_evaluate(trainer.args, trainer.state, trainer.control)
    getattr(trainer, "_metrics", {}).get("eval", {}).clear()  # TRL's
    noted = getattr(trainer, "noted", {})  # those of Seq2SeqDPOTrainer
    for name in [name for name in noted if name.startswith("eval_")]:
        del noted[name]


def _apart(trainer: Trainer) -> None:
    """Handle memory errors of evaluations and callbacks separately from those of training.

    If an evaluation does not fit, its batch is halved; with several processes, an error says what
    to do. If a callback does not fit, the error names its event.
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
                        tr(
                            "The evaluation of one row does not fit into this GPU's memory: lower "
                            "max_length in utils/course/profiles.py, or choose a smaller model."
                        )
                    ) from error
                if trainer.args.world_size > 1:  # the other processes keep the larger batch
                    raise CourseError(
                        tr(
                            "An evaluation with {size} rows per batch does not fit into this GPU's "
                            "memory, and with several processes its batch is not halved "
                            "automatically: lower per_device_eval_batch_size where this training "
                            "sets it, then start the training again.",
                            size=size,
                        )
                    ) from error
            _forget_evaluation(trainer)
            trainer.args.per_device_eval_batch_size = size // 2
            memory.release()
            print(tr("out of memory: evaluation continues with batches of {size}", size=size // 2))

    def call_and_name(event: str, *arguments: object, **keywords: object) -> TrainerControl:
        try:
            return call(event, *arguments, **keywords)
        except Exception as error:
            if not memory.ran_out(error):
                raise
            raise CourseError(
                tr(
                    "The measurement during training ({event}) does not fit into this GPU's "
                    "memory together with the training: let it read fewer rows at a time.",
                    event=event,
                )
            ) from error

    trainer.evaluate, trainer.callback_handler.call_event = evaluate_in_room, call_and_name


def run(trainer: Trainer, resume_from_checkpoint: str | None = None) -> Trainer:
    """Train adapters in 32 bits with a live bar; then restore the model's own precision."""
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
    """Train `build(batch_size, accumulation)`, from its last checkpoint if it was interrupted.

    A finished run is loaded, not repeated. Checkpoints of other rows, settings or starting weights
    are removed. If memory does not suffice, the batch is about halved and the accumulation makes up
    for it, so that each step has the same rows. It also has the same rows with several processes,
    which divide the batch among them. Its loss is the same, too, unless the loss is a mean over the
    tokens of each batch (ORPO, SFT of T5): tokens then weigh a little more or less. In a single
    process, a training that stops with an error leaves the weights as they were.
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
                # T5 accepts any keyword, but ignores the number of tokens in the whole step
                trainer.model_accepts_loss_kwargs = False
            float32_adapters(trainer.model)
            learned = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
            start = start or {n: p.detach().to("cpu", copy=True) for n, p in learned.items()}
            found = _to_continue(trainer, rows)
            label = Path(found or "").name.replace("-", " ")
            if found and _load_finished(trainer, found):
                print(
                    tr(
                        "this training is already complete: {checkpoint}; to train again, remove "
                        "{folder} and run the notebook from the beginning",
                        checkpoint=label,
                        folder=trainer.args.output_dir,
                    )
                )
                return trainer
            if found:
                _check_sharding(trainer, found)
                if trainer.is_fsdp_enabled:
                    _load_before_sharding(trainer, found)
                print(tr("continuing from {checkpoint}", checkpoint=label))
            run(trainer, found)
            _note_finished(trainer)
            return trainer
        except BaseException as error:
            if processes == 1:  # the next attempt and its reference begin where this one did
                for name, values in start.items():
                    if name in learned:
                        learned[name].data.copy_(values)
            if not isinstance(error, Exception):
                if processes == 1:
                    print(tr("stopped: the model is as before the training; run this cell again"))
                raise
            if no_space(error):
                step = trainer.state.global_step if trainer else 0
                raise CourseError(
                    tr(
                        "The disk is full: the checkpoint after step {step} could not be saved. "
                        "Free some space and run this cell again: it continues from the last "
                        "complete checkpoint.",
                        step=step,
                    )
                ) from error
            if not memory.ran_out(error):
                raise
            if processes > 1:
                raise CourseError(
                    tr(
                        "{rows} rows do not fit into this GPU's memory, and with {processes} "
                        "processes the batch is not halved automatically: halve batch_size and "
                        "double accumulation in utils/course/profiles.py, then start the training "
                        "again.",
                        rows=batch_size,
                        processes=processes,
                    )
                ) from error
            if batch_size == 1:
                raise CourseError(
                    tr(
                        "One row alone does not fit into this device's memory: lower max_length "
                        "in utils/course/profiles.py, or choose a smaller model."
                    )
                ) from error
        batch_size, accumulation = _split(batch_size * accumulation, batch_size // 2)
        print(
            tr(
                "out of memory: batch {batch}, accumulation {accumulation} from here on",
                batch=batch_size,
                accumulation=accumulation,
            )
        )
        del trainer, learned
        memory.release()


def training_seconds(trainer: Trainer) -> float:
    """How long the training took in all sessions, also if it ended before this one."""
    end = [entry for entry in trainer.state.log_history if "train_runtime" in entry][-1]
    return end.get("seconds", end["train_runtime"])  # an earlier version had no "seconds"

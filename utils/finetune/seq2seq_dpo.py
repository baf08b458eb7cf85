"""DPO for encoder-decoder models such as T5, which TRL's DPOTrainer cannot train.

1. tokenise: prompt, chosen, rejected -> the tokens of each, with the end-of-text token at the end.
2. collate: pad a batch; the mask comes from each answer's length, not from the padding token.
3. answer_logps: run the encoder once per prompt, run the decoder once for both answers, and sum
   the log-probabilities of each answer.
4. Seq2SeqDPOTrainer: compute the reference's log-probabilities once before training, then train
   with `losses.dpo_loss`.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from transformers.modeling_outputs import BaseModelOutput

from utils.course.errors import CourseError
from utils.course.language import later, tr
from utils.losses import dpo_loss, token_logps
from utils.models import memory, standins
from utils.models.language import STAND_IN, local_or_hub
from utils.models.lengths import cut, silent
from utils.models.logprobs import padded, shift_right

COLUMNS = ["prompt_ids", "chosen_ids", "rejected_ids"]
REFERENCE = ["reference_chosen_logps", "reference_rejected_logps"]


@dataclass(frozen=True)
class DPOSettings:
    """The settings of DPO that TrainingArguments does not have."""

    beta: float = 0.1  # β, the coefficient of the KL term
    variant: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    label_smoothing: float = 0.0  # fraction of flipped labels; used by `sigmoid` and `robust`
    max_prompt_length: int = 128  # tokens, including the end-of-text token
    max_answer_length: int = 128  # tokens, including the end-of-text token


class DPOError(CourseError, ValueError):
    """This trainer cannot work with the given settings or on this machine."""


def encoder_decoder(
    model_id: str, texts: Sequence[str], device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """T5 from the Hub, or a stand-in whose vocabulary is made from `texts`.

    The environment variable COURSE_T5 names another encoder-decoder, such as `VietAI/vit5-base`.
    """
    source = os.environ.get("COURSE_T5") or model_id
    source = standins.t5(texts) if source == STAND_IN else local_or_hub(source)
    model = AutoModelForSeq2SeqLM.from_pretrained(source, dtype=torch.float32)
    return model.to(device), AutoTokenizer.from_pretrained(source)


# --- 1. Text to tokens ---------------------------------------------------------------------------


def tokenise(
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: DPOSettings,
    *,
    quiet: bool = False,
) -> Dataset:
    """prompt, chosen, rejected (texts) -> prompt_ids, chosen_ids, rejected_ids.

    Each list ends with the end-of-text token. Texts longer than the settings allow are cut; unless
    `quiet`, a line reports how many.
    """
    end = tokenizer.eos_token_id
    limits = settings.max_prompt_length, settings.max_answer_length, settings.max_answer_length
    if min(limits) < 2:
        raise DPOError(
            tr(
                "At most {limit} token leaves no room for text before the end-of-text token: set "
                "max_prompt_length and max_answer_length to at least 2.",
                limit=min(limits),
            )
        )

    def encode(text: str) -> list[int]:
        ids = tokenizer(text)["input_ids"]
        return ids if ids[-1:] == [end] else [*ids, end]

    columns, say = {}, silent if quiet else print
    names = ("prompt", "chosen", "rejected")
    kinds = (later("prompts"), later("chosen answers"), later("rejected answers"))
    for column, name, what, limit in zip(COLUMNS, names, kinds, limits, strict=True):
        columns[column] = cut(list(map(encode, data[name])), limit, what, end=end, say=say)
    return Dataset.from_dict(columns)


# --- 2. Tokens to a batch ------------------------------------------------------------------------


def collate(rows: Sequence[dict], filler: int) -> dict[str, Tensor]:
    """Prompts (batch, prompt) and answers (2 · batch, answer): all chosen, then all rejected."""
    prompt, chosen, rejected = ([row[column] for row in rows] for column in COLUMNS)
    names = ("prompts", "prompt_mask", "answers", "answer_mask")
    tensors = (*padded(prompt, filler), *padded(chosen + rejected, filler))
    batch = dict(zip(names, tensors, strict=True))
    known = [column for column in REFERENCE if column in rows[0]]
    return batch | {column: torch.tensor([row[column] for row in rows]) for column in known}


# --- 3. Log-probabilities ------------------------------------------------------------------------


def answer_logps(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities of the chosen and of the rejected answers: (batch,) each."""
    mask, answers = batch["prompt_mask"].long(), batch["answers"]
    states = model.get_encoder()(input_ids=batch["prompts"], attention_mask=mask).last_hidden_state
    logits = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states.repeat(2, 1, 1)),
        attention_mask=mask.repeat(2, 1),
        decoder_input_ids=shift_right(answers, model.config.decoder_start_token_id),
        use_cache=False,
    ).logits  # (2 · batch, answer, vocabulary)
    logps = torch.where(batch["answer_mask"], token_logps(logits, answers), 0.0)
    return logps.sum(-1).chunk(2)


def logps_through(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """`answer_logps` of a model, or of a model wrapped in DistributedDataParallel.

    The wrapper averages gradients over the processes only for what its own `forward` computes.
    During this call, the `forward` of the wrapped model is therefore replaced by `answer_logps`.
    """
    inside = getattr(model, "module", None)
    if inside is None:
        return answer_logps(model, batch)
    own = vars(inside).pop("forward", None)

    def restore() -> None:
        vars(inside).pop("forward", None)
        if own is not None:
            inside.forward = own

    def forward(**batch: Tensor) -> tuple[Tensor, Tensor]:
        restore()
        return answer_logps(inside, batch)

    inside.forward = forward
    try:
        return model(**batch)
    finally:
        restore()


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0, also rates that are stored as plain numbers, as in T5's attention."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


# --- 4. Training ---------------------------------------------------------------------------------


class Seq2SeqDPOTrainer(Trainer):
    """A Trainer with DPO's loss; the reference is the given model before training."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Dataset,
        eval_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        settings: DPOSettings | None = None,
        **others: object,
    ) -> None:
        if args.n_gpu > 1:
            raise DPOError(
                tr(
                    "{count} GPUs are visible to one process, which can use only one: set "
                    "CUDA_VISIBLE_DEVICES=0, or start one process per GPU with `accelerate "
                    "launch`.",
                    count=args.n_gpu,
                )
            )
        self.settings, self.noted = settings or DPOSettings(), defaultdict(list)
        pad = partial(collate, filler=processing_class.pad_token_id)
        data = (tokenise(d, processing_class, self.settings) for d in (train_dataset, eval_dataset))
        disable_dropout(model)
        super().__init__(model, args, pad, *data, processing_class, **others)
        # the loss is a mean, so Trainer must divide it by the number of accumulated batches
        self.model_accepts_loss_kwargs = False
        self._signature_columns = COLUMNS + REFERENCE
        self.train_dataset = self.with_reference(self.train_dataset)
        self.eval_dataset = self.with_reference(self.eval_dataset)

    @torch.no_grad()
    def with_reference(self, data: Dataset) -> Dataset:
        """Add the reference's log-probs as columns: computed once instead of in every epoch."""
        rows = data.to_list()
        found = torch.zeros(2, len(rows))

        def run(numbers: list[int]) -> None:
            batch = self._prepare_inputs(self.data_collator([rows[number] for number in numbers]))
            with self.accelerator.autocast():
                found[:, numbers] = torch.stack(answer_logps(self.model, batch)).float().cpu()

        answers = [max(map(len, (row[name] for name in COLUMNS[1:]))) for row in rows]
        lengths = [len(row[COLUMNS[0]]) + n for row, n in zip(rows, answers, strict=True)]
        memory.in_batches(lengths, run, self.args.eval_batch_size * max(lengths), "reference")
        for name, column in zip(REFERENCE, found.tolist(), strict=True):
            data = data.add_column(name, column)
        return data

    def compute_loss(
        self, model: PreTrainedModel, inputs: dict[str, Tensor], *_: object, **__: object
    ) -> Tensor:
        """DPO's loss of a batch; its rewards are stored for the log."""
        with self.accelerator.autocast():  # without it, the encoder would compute in float32
            policy = torch.stack(logps_through(model, inputs))  # (2, batch)
        reference = torch.stack([inputs[column] for column in REFERENCE])
        self.note_rewards(*(self.settings.beta * (policy - reference)).detach().cpu())
        if self.settings.variant == "ipo":  # IPO uses the mean over the answer's tokens
            lengths = inputs["answer_mask"].sum(-1).view_as(policy)
            policy, reference = policy / lengths, reference / lengths
        wanted = ("beta", "variant", "label_smoothing")
        return dpo_loss(*policy, *reference, **{n: getattr(self.settings, n) for n in wanted})

    def note_rewards(self, chosen: Tensor, rejected: Tensor) -> None:
        """Store a batch's rewards until the next log, under TRL's names."""
        lead = "rewards" if self.model.training else "eval_rewards"
        self.noted[f"{lead}/chosen"].append(chosen)
        self.noted[f"{lead}/rejected"].append(rejected)
        self.noted[f"{lead}/margins"].append(chosen - rejected)
        self.noted[f"{lead}/accuracies"].append((chosen > rejected).float())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log, with the mean of the rewards stored since the last log."""
        for name in list(self.noted):
            if name.startswith("eval_") != self.model.training:
                logs[name] = torch.cat(self.noted.pop(name)).mean().item()
        super().log(logs, start_time)

    def prediction_step(
        self, model: PreTrainedModel, inputs: dict[str, Tensor], *_: object, **__: object
    ) -> tuple[Tensor, None, None]:
        """Only the loss: Trainer's own method would pass labels to the model."""
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

"""Both answers of a pair in one row after one prompt: the prompt is computed once, not twice.

TRL gives a model each pair as two rows, prompt + chosen and prompt + rejected. `PromptOnce`
replaces the model and joins the two rows to one row:

    prompt | chosen | last token of the prompt | rejected

The tokens of rejected attend to the prompt but not to chosen, and have the same positions as in
their own row. So the outputs are those of the two separate rows. The prompt's last token occurs
twice because two tokens are predicted from it: the first token of each answer.
"""

from types import SimpleNamespace

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

from utils.course import progress
from utils.course.errors import SettingError
from utils.course.language import tr
from utils.finetune.packing import need_full_attention
from utils.models.precision import unrounded

REFERENCE = ["ref_chosen_logps", "ref_rejected_logps"]  # TRL's columns


def joined(
    input_ids: Tensor, attention_mask: Tensor, labels: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Two rows per pair, chosen first, padded on the right -> a model's inputs, one row per pair.

    The second result is the column of each prediction in the joined row: (2 · pairs, sequence - 1).
    """
    answer, width = labels != -100, input_ids.shape[1]
    prompt = (attention_mask.bool() & ~answer).sum(1).chunk(2)[0][:, None]  # (pairs, 1)
    chosen, rejected = (part[:, None] for part in answer.sum(1).chunk(2))
    first, other = input_ids.chunk(2)
    if ((first != other) & (torch.arange(width, device=first.device) < prompt)).any():
        raise SettingError(tr("The two answers of a pair must follow one prompt: check the data."))
    ends = prompt + chosen + 1 + rejected
    column = torch.arange(int(ends.max()), device=input_ids.device)[None]  # (1, joined)
    second = column >= prompt + chosen
    position = torch.where(second, column - chosen - 1, column).clamp(max=width - 1)
    real = column < ends

    def taken(rows: Tensor) -> Tensor:
        first, other = rows.chunk(2)
        return torch.where(second, other.gather(1, position), first.gather(1, position))

    key, query = column[:, None, :], column[:, :, None]
    of_chosen = ~second & (column >= prompt - 1)  # with the prompt's last token, which is repeated
    seen = (key <= query) & real[:, None, :] & ~(second[:, :, None] & of_chosen[:, None, :])
    alone = torch.arange(width - 1, device=input_ids.device).expand(len(prompt), -1)
    return {
        "input_ids": taken(input_ids),
        "position_ids": position,
        "attention_mask": seen[:, None],  # (pairs, 1, joined, joined)
        "labels": taken(labels).masked_fill(~real, -100),
    }, torch.cat([alone, alone + chosen + 1]).clamp(max=column.shape[1] - 2)


class PromptOnce:
    """Used in place of a model with TRL's fused head, on TRL's batches of pairs."""

    def __init__(self, model: torch.nn.Module) -> None:
        kind = getattr(model, "module", model).config._attn_implementation  # it may be wrapped
        if kind != "sdpa":  # others accept no custom mask, or add it to the attention scores
            raise SettingError(
                tr("The shared prompt needs attn_implementation='sdpa', not '{kind}'.", kind=kind)
            )
        self.model = model

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **options: bool
    ) -> SimpleNamespace:
        """Per-token outputs of every row; they are 0 where the label is -100."""
        inputs, columns = joined(input_ids, attention_mask, labels)
        outputs = self.model(**inputs, **options)
        learned = labels[:, 1:] != -100

        def apart(values: Tensor) -> Tensor:  # (pairs, joined - 1) -> (2 · pairs, sequence - 1)
            return values.repeat(2, 1).gather(1, columns).masked_fill(~learned, 0)

        tokens = {name: v for name, v in outputs.items() if v is not None and v.dim() == 2}
        return SimpleNamespace(**{name: apart(values) for name, values in tokens.items()})


def pair_logps(model: torch.nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """ln π of the answer tokens of TRL's batch, and their mask: (2 · pairs, sequence - 1) each.

    ln π is 0 outside of answers. The model must have TRL's fused head, which DPOTrainer adds.
    """
    mask = inputs["completion_mask"].bool()
    labels = inputs["input_ids"].masked_fill(~mask, -100)
    outputs = PromptOnce(model)(
        inputs["input_ids"], inputs["attention_mask"], labels, fused_lm_head=True
    )
    return outputs.log_probs, mask[:, 1:]


class SharedPromptDPOTrainer(DPOTrainer):
    """TRL's DPOTrainer, with its losses and metrics; the policy computes each prompt only once.

    So does the reference if its log-probabilities are precomputed; otherwise it computes each
    prompt twice, as in TRL. The reference is exactly the given model before training. TRL rounds
    the adapter of a 4-bit model to bf16; this class restores the unrounded weights.
    """

    def __init__(self, model: PreTrainedModel, args: DPOConfig, **others: object) -> None:
        need_full_attention(model.config, "The shared prompt")
        with unrounded(model):
            super().__init__(model=model, args=args, **others)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        with progress.bar("reference", len(dataset), "pair") as self._counted:
            if self.accelerator.num_processes == 1:
                return super()._precompute_ref_logps(dataset, name, batch_size)
            # TRL saves them in a temporary folder of the first process, and every other process
            # reads a temporary folder of its own
            rows = DataLoader(dataset, batch_size, collate_fn=self.data_collator)
            found = [
                self.accelerator.gather_for_metrics(self.compute_ref_log_probs(self.model, batch))
                for batch in self.accelerator.prepare(rows)
            ]
        columns = zip(REFERENCE, zip(*found, strict=True), strict=True)
        for column, parts in columns:
            dataset = dataset.add_column(column, torch.cat(parts).tolist())
        return dataset

    def _compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], return_outputs: bool
    ) -> Tensor:
        return super()._compute_loss(PromptOnce(model), inputs, return_outputs)

    def compute_ref_log_probs(
        self, model: torch.nn.Module, inputs: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """TRL's results for chosen and rejected answers; also updates the progress bar."""
        found = super().compute_ref_log_probs(PromptOnce(model), inputs)
        if (counted := getattr(self, "_counted", None)) is not None:
            counted.update(len(found[0]))
        return found

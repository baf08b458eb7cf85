"""Batches of packed rows whose rows stay rows.

TRL lays the rows of a packed batch end to end as one row, for FlashAttention, which looks at each
question with its answer alone. Without it, on a T4 or a CPU, attention then costs the square of the
whole batch, and nearly all of it is masked: `PackedRows` pays the square of one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from utils.course.errors import CourseError
from utils.models.precision import unrounded


def need_full_attention(config: PreTrainedConfig, what: str) -> None:
    """Refuse a model that has layers in which a token does not see all tokens before it.

    Rows that share a row are kept apart by positions and masks of full attention; a layer with a
    window or a recurrent state would mix them, without an error.
    """
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ["full_attention"])
    if other := sorted(kinds - {"full_attention"}):
        raise CourseError(
            f"{what} needs full attention in every layer, and this {config.model_type} has "
            f"{', '.join(other)}: choose another model, or train it without {what.lower()}."
        )


@dataclass(frozen=True)
class PackedRows:
    """A data collator for `packing=True`: positions begin anew with every text, labels apart.

    The model keeps texts apart by their positions, so there is no attention mask. The padding at
    the end of a row is a text of its own, of which nothing is learned.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """`input_ids`, `labels` and `seq_lengths` a row -> (batch, longest row) tensors."""
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        width = max(map(len, ids))
        positions = []
        for row in rows:
            texts = [*row["seq_lengths"], width - len(row["input_ids"])]
            positions.append(torch.cat([torch.arange(length) for length in texts]))
        position_ids = torch.stack(positions)
        labels = [torch.tensor(row["labels"]) for row in rows]
        padded = pad_sequence(labels, batch_first=True, padding_value=-100)
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "position_ids": position_ids,
            "labels": padded.masked_fill(position_ids == 0, -100),  # not predicted by another text
        }


class PackedSFTTrainer(SFTTrainer):
    """TRL's SFTTrainer over packed batches whose rows stay rows; adapters are not rounded."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: SFTConfig,
        *,
        processing_class: PreTrainedTokenizerBase,
        **others: object,
    ) -> None:
        need_full_attention(model.config, "Packing")
        with unrounded(model):
            super().__init__(model=model, args=args, processing_class=processing_class, **others)
        self.data_collator = PackedRows(processing_class.pad_token_id)

    def real_tokens(self) -> int:
        """Tokens read in one pass over the training rows, padding not counted."""
        return sum(map(len, self.train_dataset["input_ids"]))

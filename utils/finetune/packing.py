"""Packed batches in which each row keeps its own attention.

TRL joins the rows of a packed batch to one long row. FlashAttention then computes the attention of
each text separately. Without FlashAttention, on a T4 or a CPU, the cost of attention grows with the
square of the whole batch, and nearly all of the result is masked. With `PackedRows` the cost grows
with the square of one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from utils.course.errors import CourseError
from utils.course.language import tr
from utils.models.precision import unrounded


def need_full_attention(config: PreTrainedConfig, what: str) -> None:
    """Raise an error if the model has a layer in which a token does not see all earlier tokens.

    Texts in one row are separated by the positions and masks of full attention. A layer with a
    sliding window or a recurrent state would mix them without an error.
    """
    text = config.get_text_config()
    # Mistral lists no layers: if it has a window, every layer has it
    alike = "sliding_attention" if getattr(text, "sliding_window", None) else "full_attention"
    kinds = set(getattr(text, "layer_types", None) or [alike])
    if other := sorted(kinds - {"full_attention"}):
        raise CourseError(
            tr(
                "{what} needs full attention in every layer, but this {model} has {layers}: "
                "choose another model, or train it without {that}.",
                what=tr(what),
                model=config.model_type,
                layers=", ".join(other),
                that=tr(what).lower(),
            )
        )


@dataclass(frozen=True)
class PackedRows:
    """A data collator for `packing=True`: the positions of every text begin at 0.

    The model separates the texts by their positions, so there is no attention mask. The padding at
    the end of a row counts as one more text, and its labels are -100.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """`input_ids`, `labels` and `seq_lengths` of each row -> (batch, longest row) tensors."""
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
            # a text's first token must not be predicted from the text before it
            "labels": padded.masked_fill(position_ids == 0, -100),
        }


class PackedSFTTrainer(SFTTrainer):
    """TRL's SFTTrainer with `PackedRows`; the weights of adapters are not rounded to bf16."""

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
        """The number of tokens in the training rows, without padding."""
        return sum(map(len, self.train_dataset["input_ids"]))

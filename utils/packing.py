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

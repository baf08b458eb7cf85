"""A text that is longer than a model can read is cut, and one sentence says how many were.

Every text on its way to a model comes through here: what is cut in silence looks like a model that
understands nothing, and what is not cut ends a GPT-2 with an index error.
"""

from collections.abc import Mapping, Sequence

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from utils.data.text import Say, say_longer

UNLIMITED = 10**9  # T5 has relative positions, so that its texts may have any length


def silent(sentence: str) -> None:
    """Say nothing, because it has been said before."""


def positions(model: torch.nn.Module) -> int:
    """How many tokens of prompt and answer together a model was made to read."""
    return getattr(model.config, "max_position_embeddings", None) or UNLIMITED


def cut(
    rows: Sequence[list[int]], limit: int, what: str, *, end: int | None = None, say: Say = print
) -> list[list[int]]:
    """The rows of tokens with at most `limit` each, and one sentence on how many were longer.

    `end` is the token that a cut row keeps at its end: a classifier reads it, and a language model
    must not learn that a sentence ends where it was cut.
    """
    say_longer([len(row) for row in rows], limit, what, say=say)
    last = [] if end is None else [end]
    return [row if len(row) <= limit else [*row[: limit - len(last)], *last] for row in rows]


def cut_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int, what: str
) -> list[str]:
    """The texts, longer ones as beginnings of at most `limit` tokens; counted as in `cut`."""
    ids = [tokenizer(text)["input_ids"] for text in texts]
    say_longer([len(row) for row in ids], limit, what)
    return [
        text if len(row) <= limit else beginning(tokenizer, row, limit)
        for text, row in zip(texts, ids, strict=True)
    ]


def cut_columns(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, limits: Mapping[str, int]
) -> Dataset:
    """The rows with the texts of each named column cut to its limit; counted as in `cut`."""
    texts = {
        name: cut_texts(tokenizer, rows[name], limit, f"texts of column {name}")
        for name, limit in limits.items()
    }
    return Dataset.from_dict({**rows.to_dict(), **texts}, features=rows.features)


def beginning(tokenizer: PreTrainedTokenizerBase, ids: list[int], limit: int) -> str:
    """The text of the first tokens, at most `limit` of them when it is read again.

    A last letter of which only some bytes are there is left out.
    """
    for kept in range(limit, 0, -1):
        text = tokenizer.decode(ids[:kept], skip_special_tokens=True).rstrip("\ufffd")
        if len(tokenizer(text)["input_ids"]) <= limit:
            return text
    return ""

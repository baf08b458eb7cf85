"""Texts that are longer than a model's context are cut, and one line reports how many.

Every text that goes to a model is cut here. If texts were cut without a message, poor answers could
not be explained. If they were not cut, GPT-2 would stop with an index error.
"""

from collections.abc import Mapping, Sequence

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from utils.course.language import tr
from utils.data.text import Say, say_longer


def silent(sentence: str) -> None:
    """Print nothing, because the same line was printed before."""


def cut(
    rows: Sequence[list[int]], limit: int, what: str, *, end: int | None = None, say: Say = print
) -> list[list[int]]:
    """The rows with at most `limit` tokens each; one line reports how many were longer.

    If `end` is given, a cut row ends with this token, which a classifier needs. A language model
    must not learn that a sentence ends at the cut, so it is not given there.
    """
    say_longer([len(row) for row in rows], limit, what, say=say)
    last = [] if end is None else [end]
    return [row if len(row) <= limit else [*row[: limit - len(last)], *last] for row in rows]


def cut_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int, what: str
) -> list[str]:
    """The texts, cut to at most `limit` tokens each; one line reports how many, as in `cut`."""
    ids = [tokenizer(text)["input_ids"] for text in texts]
    say_longer([len(row) for row in ids], limit, what)
    return [
        text if len(row) <= limit else beginning(tokenizer, row, limit)
        for text, row in zip(texts, ids, strict=True)
    ]


def cut_columns(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, limits: Mapping[str, int]
) -> Dataset:
    """The rows with the texts of each named column cut to its limit, as in `cut_texts`."""
    texts = {
        name: cut_texts(tokenizer, rows[name], limit, tr("texts of column {name}", name=name))
        for name, limit in limits.items()
    }
    return Dataset.from_dict({**rows.to_dict(), **texts}, features=rows.features)


def beginning(tokenizer: PreTrainedTokenizerBase, ids: list[int], limit: int) -> str:
    """The text of the first tokens; encoded again, it has at most `limit` tokens.

    If the last letter is incomplete because some of its bytes were cut, it is left out.
    """
    for kept in range(limit, 0, -1):
        text = tokenizer.decode(ids[:kept], skip_special_tokens=True).rstrip("\ufffd")
        if len(tokenizer(text)["input_ids"]) <= limit:
            return text
    return ""

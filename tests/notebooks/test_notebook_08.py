"""Notebook 08's check of a tokenizer: unknown emoji are tolerable, unknown letters are not."""

import json

import pytest

from utils.course import notebooks


@pytest.fixture(scope="module")
def lesson() -> dict:
    """The functions that the notebook defines to count unknown tokens."""
    cells = json.loads(notebooks.path_of("08").read_text(encoding="utf-8"))["cells"]
    source = "".join(next(cell["source"] for cell in cells if cell["id"] == "08-14"))
    names: dict = {}
    exec(source[: source.index("for name, tokenizer")], names)
    return names


class Letters:
    """A tokenizer that knows some characters; every other one is unknown, as in T5."""

    unk_token_id = 0

    def __init__(self, known: str) -> None:
        self.known = known

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1 + self.known.find(letter) for letter in t] for t in texts]}


def test_emoji_are_taken_out_and_letters_of_vietnamese_stay(lesson):
    text = "Ôi thương thế! 😂❤️ 100% nhé… “ừ” 👍🏽"
    kept = " ".join(lesson["letters_only"](text).split())
    assert kept == "Ôi thương thế! 100% nhé… “ừ”"


def test_emoji_alone_do_not_fail_a_tokenizer_and_letters_do(lesson):
    texts = ["great job 😂😂😂", "so am I ❤️"]
    english = Letters("abcdefghijklmnopqrstuvwxyzI ")
    assert lesson["unknown_share"](english, texts) > 0.1
    assert lesson["unknown_share"](english, map(lesson["letters_only"], texts)) == 0
    vietnamese = ["được nữa", "cữ ữ"]
    assert lesson["unknown_share"](english, map(lesson["letters_only"], vietnamese)) > 0.1

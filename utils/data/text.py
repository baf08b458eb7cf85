"""Vietnamese text: one normalisation and one word segmentation for the whole course."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

from utils.course import progress
from utils.course.language import tr

# "hòa" and "hoà" are the same word. underthesea writes the first. VnCoreNLP, which segmented
# PhoBERT's pre-training text, writes the second, so the text given to PhoBERT uses the second.
_TONE_STYLES = """
òa oà  óa oá  ỏa oả  õa oã  ọa oạ  òe oè  óe oé  ỏe oẻ  õe oẽ  ọe oẹ
ùy uỳ  úy uý  ủy uỷ  ũy uỹ  ụy uỵ
""".split()  # noqa: SIM905
_TO_NEW = dict(zip(_TONE_STYLES[::2], _TONE_STYLES[1::2], strict=True))
_OPEN_SYLLABLE = re.compile("(" + "|".join(_TO_NEW) + r")(?![^\W\d_])")
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")
_HALF = re.compile("[\ud800-\udfff]")
_NOT_WORD = re.compile(r"[\W_]+")
Say = Callable[[str], None]  # shows a sentence to the person who runs a cell, e.g. `print`


def normalise(text: str) -> str:
    """The text in NFC, without invisible characters, with single spaces.

    Half of an emoji, which another program cut, becomes the character for unknown text.

    >>> normalise("thâ\u0300y   vui\u200b")
    'thầy vui'
    """
    whole = _HALF.sub("\ufffd", text)
    return " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFC", whole)).split())


def new_tone_style(text: str) -> str:
    """The text with its tone marks on the vowels where PhoBERT's pre-training text has them.

    >>> new_tone_style("hòa nhã, khỏe, quý thầy thủy chung")
    'hoà nhã, khoẻ, quý thầy thuỷ chung'
    """
    return _OPEN_SYLLABLE.sub(lambda match: _TO_NEW[match.group(1)], text)


@lru_cache(maxsize=200_000)
def segment(text: str) -> str:
    """The text with each word's syllables joined by underscores, as PhoBERT was trained on it.

    >>> segment("giảng viên nhiệt tình")
    'giảng_viên nhiệt_tình'
    """
    from underthesea import word_tokenize  # the import takes 3 seconds, so it waits for first use

    clean = normalise(text)
    return new_tone_style(word_tokenize(clean, format="text")) if clean else ""


def segment_all(texts: Sequence[str]) -> list[str]:
    """`segment` for each text; the result of a text seen before comes from the cache."""
    return [segment(text) for text in progress.track(texts, "segmentation", unit="text")]


def duplicate_key(text: str) -> str:
    """A key shared by texts that differ only in case, punctuation, spacing and tone style."""
    return _NOT_WORD.sub(" ", new_tone_style(normalise(text).lower())).strip()


def syllables(text: str) -> list[str]:
    """The syllables of a text in lower case, without punctuation.

    >>> syllables("Thầy dạy hay!")
    ['thầy', 'dạy', 'hay']
    """
    return duplicate_key(text).split()


def say_longer(lengths: Sequence[int], limit: int, what: str, *, say: Say = print) -> None:
    """Report how many texts were longer than the limit; report nothing when no text was.

    >>> say_longer([3, 200], 128, "sentences")
    1 of 2 sentences was longer than 128 tokens and was cut.
    """
    if longer := sum(length > limit for length in lengths):
        values = {"longer": longer, "total": len(lengths), "what": tr(what), "limit": limit}
        if longer == 1:
            say(tr("1 of {total} {what} was longer than {limit} tokens and was cut.", **values))
        else:
            say(
                tr(
                    "{longer} of {total} {what} were longer than {limit} tokens and were cut.",
                    **values,
                )
            )

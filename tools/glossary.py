"""The glossary of the course, i18n/glossary.jsonl: what a term is called in Vietnamese.

A row has the keys `en`, `vi`, `en_text` and `vi_text` (the definitions), and `see` (other terms).
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.course.paths import ROOT

GLOSSARY = ROOT / "i18n" / "glossary.jsonl"
# also ordinary words of English, which need not be translated by the term
ORDINARY = {"return", "item", "mask", "shift", "update", "weight", "state", "score"}
NOTE = re.compile(r" *\(([^)]*)\)")  # an abbreviation, another word, or the subject


@cache
def rows(path: Path) -> tuple[dict, ...]:
    """The rows of a glossary, longest English term first; none without a file."""
    if not path.exists():
        return ()
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(sorted(map(json.loads, lines), key=lambda row: -len(row["en"])))


def words(term: str) -> list[str]:
    """The forms of a term, in lower case: without its note, and the note.

    >>> words("số chênh (odds)")
    ['số chênh', 'odds']
    """
    return [NOTE.sub("", term).lower(), *NOTE.findall(term.lower())]


def misused(english: str, translation: str, exempt: Sequence[str] = ()) -> Iterator[str]:
    """Terms of an English text whose translation has no word that the glossary gives for them.

    `exempt` has the terms that mean something else in this text.
    """
    english = re.sub(r"([Tt]he )?(?<!Face )\bHub\b|’s", "'s", english)
    prose, own = english.lower(), translation.lower()
    for row in rows(GLOSSARY):
        term = re.escape(words(row["en"])[0].replace("’s", "'s"))
        prose, times = re.subn(rf"(?<![\w-]){term}(s|es)?(?![\w-])", " ", prose)
        # a longer term is taken out, so that “reward model” is not also “reward”
        free = row["en"] in ORDINARY or row["en"] in exempt
        if times and not free and not any(word in own for word in words(row["vi"])):
            yield f"the glossary says {row['vi']!r} for {row['en']!r}"

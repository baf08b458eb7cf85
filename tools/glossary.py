"""The glossary of the course, i18n/glossary.jsonl: what a term is called in Vietnamese.

A row has the keys `en`, `vi`, `en_text` and `vi_text` (the definitions), and `see` (other terms).
`python tools/glossary.py` writes docs/glossary.md, to be read on GitHub; `make site` does so too.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.course.paths import ROOT

GLOSSARY = ROOT / "i18n" / "glossary.jsonl"
READABLE = ROOT / "docs" / "glossary.md"
# also ordinary words of English, which need not be translated by the term
ORDINARY = {"return", "item", "mask", "shift", "update", "weight", "state", "score"}
NOTE = re.compile(r" *\(([^)]*)\)")  # an abbreviation, another word, or the subject

BREAK = "<br>"  # a new line within a paragraph of Markdown
PAPER = re.compile(r"(?m)^[-*] [A-Z]\. .*\*.+\*.*\b(19|20)\d\d\b.*$")  # a line of the references


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

    `exempt` has the terms that mean something else in this text. The title of a paper is no use of
    a term.
    """
    english = PAPER.sub("", english)
    english = re.sub(r"([Tt]he )?(?<!Face )\bHub\b|’s", "'s", english)
    prose, own = english.lower(), translation.lower()
    for row in rows(GLOSSARY):
        term = re.escape(words(row["en"])[0].replace("’s", "'s"))
        prose, times = re.subn(rf"(?<![\w-]){term}(s|es)?(?![\w-])", " ", prose)
        # a longer term is taken out, so that “reward model” is not also “reward”
        free = row["en"] in ORDINARY or row["en"] in exempt
        if times and not free and not any(word in own for word in words(row["vi"])):
            yield f"the glossary says {row['vi']!r} for {row['en']!r}"


def folded(text: str) -> str:
    """A text in lower case without diacritics, to sort and to find by.

    >>> folded("Điểm thưởng")
    'diem thuong'
    """
    parts = unicodedata.normalize("NFD", text.lower().replace("đ", "d"))
    return "".join(character for character in parts if not unicodedata.combining(character))


def slug(term: str) -> str:
    """The id of a term on a page.

    >>> slug("Cohen’s kappa"), slug("label −100")
    ('cohens-kappa', 'label-100')
    """
    return re.sub(r"[^a-z0-9]+", "-", re.sub("[’']", "", term.lower())).strip("-")


def readable() -> str:
    """The glossary in Markdown: a paragraph per term, with both names and both sentences."""
    found = sorted(rows(GLOSSARY), key=lambda row: folded(row["en"]))
    lines = [
        "# Glossary · Bảng thuật ngữ",
        "",
        f"{len(found)} terms of the course, in English and in Vietnamese. "
        "This file is written from `i18n/glossary.jsonl` by `tools/glossary.py`.",
    ]
    for row in found:
        see = ", ".join(f"[{each}](#{slug(each)})" for each in row["see"])
        lines += [
            "",
            f'<a id="{escape(slug(row["en"]))}"></a>'
            + f"**{row['en']}** · **{row['vi']}**"
            + BREAK,
            row["en_text"] + BREAK,
            row["vi_text"] + (f"{BREAK}See also: {see}" if see else ""),
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    READABLE.parent.mkdir(exist_ok=True)
    READABLE.write_text(readable(), encoding="utf-8")

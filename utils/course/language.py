"""The language of what the code prints to students: `tr("{count} rows are left out.", count=3)`.

The English text stands in the code, and is the key of the catalogue
i18n/vi/LC_MESSAGES/course.po. `COURSE_LANG` is `en` or `vi`; without it, the language is English
and no catalogue is read. `tools/messages.py` keeps the catalogue and the code in step.
"""

import ast
import gettext
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from utils.course.errors import CourseError
from utils.course.paths import ROOT

LANGUAGE_VARIABLE = "COURSE_LANG"
LANGUAGES = ("en", "vi")
CATALOGUE = ROOT / "i18n" / "vi" / "LC_MESSAGES" / "course.po"


class LanguageError(CourseError, ValueError):
    """The course has no edition in this language."""


class Catalogue(gettext.NullTranslations):
    """The translations of a .po file, which is read as text: nothing needs to be compiled."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.entries = dict(entries(path.read_text(encoding="utf-8")))

    def gettext(self, message: str) -> str:
        """The translation; a message without one stays as it is."""
        return self.entries.get(message) or message


def entries(text: str) -> Iterator[tuple[str, str]]:
    r"""The pairs of message and translation of a .po file, without its header.

    >>> list(entries('msgid "right."\nmsgstr "đúng."\n'))
    [('right.', 'đúng.')]
    """
    for block in re.split(r"\n\s*\n", text):
        parts = {"msgid": "", "msgstr": ""}
        field = ""
        for line in block.splitlines():
            word, _, rest = line.partition(" ")
            if word in parts:
                field, line = word, rest
            if field and line.startswith('"'):
                parts[field] += ast.literal_eval(line)
        if parts["msgid"]:
            yield parts["msgid"], parts["msgstr"]


def language() -> str:
    """The language that COURSE_LANG names; English without it."""
    asked = os.environ.get(LANGUAGE_VARIABLE, "").strip().lower() or LANGUAGES[0]
    if asked not in LANGUAGES:
        raise LanguageError(
            f"{LANGUAGE_VARIABLE}={asked} is not one of {', '.join(LANGUAGES)}: choose one."
        )
    return asked


@cache
def _catalogue() -> Catalogue:
    return Catalogue(CATALOGUE)


def tr(message: str, /, **values: object) -> str:
    """The message in the student's language, with its values set in as by `str.format`.

    >>> tr("{name}: {share:.0%} is right.", name="An", share=0.5)
    'An: 50% is right.'
    """
    text = in_language(language(), message)
    return text.format(**values) if values else text


def in_language(code: str, message: str) -> str:
    """The message in one language, whatever COURSE_LANG says; its placeholders stay."""
    return message if code == "en" else _catalogue().gettext(message)


def later(message: str) -> str:
    """The same text; it marks a message in a table, which `tr` translates when it is shown."""
    return message

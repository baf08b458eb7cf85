"""Checks the typography and the spelling of every Vietnamese text of this repository.

    python tools/vietnamese.py            # print every fault with its file and line; exit 1 if any

The rules, in the order in which they are checked:
1. Unicode: NFC, no invisible characters.
2. Spelling: a word with Vietnamese letters is a possible syllable. This finds typing errors such as
   "nghiệpp", but not a real word in the wrong place.
3. Tone marks as in "hòa", "thúy", "khỏe"; y in "kỹ", "lý", "mỹ", "tỷ", "kỳ", "quý".
4. Quotation marks are curly in prose; there is one space after a punctuation mark and none before.
5. Numbers as in 1.000.000 and 2,5; but section 2.5 is `mục 2.5`.

Student feedback is written as students type it: rules 3 (y), 4 and 5 do not hold for it.
"""

import csv
import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.course.paths import ROOT

INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")
TONES = "\u0300\u0301\u0303\u0309\u0323"  # huyền, sắc, ngã, hỏi, nặng
_ONSETS = "b c ch d đ g gh gi h k kh l m n ng ngh nh p ph qu r s t th tr v x".split()  # noqa: SIM905
# every vowel group with its possible final consonants; "-" is none
_RHYMES = """
a: - c ch i m n ng nh o p t u y
ă: c k m n ng p t
â: c m n ng p t u y
e: - c m n ng o p t
ê: - ch m n nh p t u
i: - a ch m n nh p t u
iê: c m n ng p t u
o: - a ac ach ai am an ang anh ao ap at ay ă ăc ăm ăn ăng ăp ăt c e en eo et i m n ng oc ong p t
ô: - c i m n ng ôc ông p t
ơ: - i m n p t
u: - a c i m n ng p t y
uâ: - n ng t y
uă: c m n ng t
ue: -
uê: - ch n nh
ui: -
uo: -
uô: c i m n ng t
uơ: - n t
uy: - ch n nh p t u
uya: -
uyê: n t
ư: - a c i m n ng t u
ươ: c i m n ng p t u
y: - ch m n nh t u
yê: m n ng t u
"""
_KNOWN = """
ôxy ôxi ôxít nitơ mêtan vectơ kilômét milimét sôcôla lênin ưcln brasília bogotá asunción
reykjavík ramé phnôm đắk lắk alô ôsin cacahuètes dzậy zới đc
""".split()  # noqa: SIM905 (borrowed words, names and abbreviations with Vietnamese letters)
_Y = re.compile(r"\b(k[ĩì]|l[í]|mĩ|tỉ|quí)\b(?! (mỉ|lẽ|tê|lô|mẩn))", re.IGNORECASE)
_NEW_TONE = re.compile(
    r"(?<![qQ])(oà|oá|oả|oã|oạ|oè|oé|oẻ|oẽ|oẹ|uỳ|uý|uỷ|uỹ|uỵ)(?![^\W\d_])", re.IGNORECASE
)
_WORD = re.compile(r"[^\W\d_]+")
_MARKED = re.compile("[À-ÃÈ-ÊÌÍÒ-ÕÙÚÝà-ãè-êìíò-õùúýĂăĐđĨĩŨũƠơƯưẠ-ỹ]")
_BEFORE = re.compile(r"[^\W_] [,.;!?](?!\w)")
_AFTER = re.compile(r"[^\W\d_][,;!?](?=[^\W\d_])")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}((,\d{3}){2,}|,000)(?![\d,])")
_DECIMAL = re.compile(r"(?<![\w.,])\d+\.\d{1,2}(?![\d.])")
_POINT = re.compile("Python|IELTS|GPA|==|TensorFlow|USB|[Pp]hiên bản")  # a decimal point is right
# the number of a section is no decimal: "### 2.7 Title", "mục 2.3 và 2.4"
_SECTION = re.compile(r"(?m:^#+ \d+\.\d+)|\b[Mm]ục \d+\.\d+(?:(?:,| và| đến) \d+\.\d+)*")
_STRAIGHT = re.compile(r'"')
_CODE = re.compile(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|https?://\S+|<[^>]+>", re.DOTALL)


@dataclass(frozen=True)
class Fault:
    """One fault of one text."""

    where: str
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {self.text}"


def _rhymes() -> set[str]:
    found = set()
    for part in _RHYMES.strip().splitlines():
        vowel, _, endings = part.partition(": ")
        found |= {vowel + ("" if end == "-" else end) for end in endings.split()}
    return found


RHYMES = _rhymes()


def plain(syllable: str) -> str:
    """The syllable in lower case without its tone mark.

    >>> plain("Thầy")
    'thây'
    """
    parts = unicodedata.normalize("NFD", syllable.lower())
    return unicodedata.normalize("NFC", "".join(c for c in parts if c not in TONES))


def possible(syllable: str) -> bool:
    """Whether Vietnamese spelling allows the syllable.

    >>> possible("nghiệp"), possible("nghiệpp"), possible("giếng"), possible("quýt")
    (True, False, True, True)
    """
    tones = sum(c in TONES for c in unicodedata.normalize("NFD", syllable))
    bare = plain(syllable)
    if tones > 1:
        return False
    for onset in ("", *_ONSETS):
        rest = bare.removeprefix(onset) if onset else bare
        if bare.startswith(onset) and rest in RHYMES:
            return True
        if onset == "gi" and bare.startswith("gi") and "i" + rest in RHYMES:
            return True
        if onset == "qu" and bare.startswith("qu") and "u" + rest in RHYMES:
            return True
    return False


def faults(text: str, where: str, *, feedback: bool = False, data: bool = True) -> Iterator[Fault]:
    """Every fault of a text; `data` adds the rules on quotes, spaces and numbers."""

    def fault(what: str, start: int, end: int) -> Fault:
        return Fault(where, what, text[max(0, start - 20) : end + 20].replace("\n", " "))

    if unicodedata.normalize("NFC", text) != text:
        yield Fault(where, "not in NFC", text[:60])
    for match in INVISIBLE.finditer(text):
        yield fault("invisible character", *match.span())
    for match in _WORD.finditer(text):
        word = match.group()
        known = len(word) == 1 or word.lower() in _KNOWN
        drawn_out = feedback and re.search(r"(\w)\1$|aa$", word)  # "siêuuu"
        if _MARKED.search(word) and not (known or drawn_out or possible(word)):
            yield fault(f"{word!r} is no Vietnamese syllable", *match.span())
    for match in _NEW_TONE.finditer(text):
        if not data and "hoà" in text:  # a lesson that shows both spellings of a word
            continue
        yield fault(f"tone mark of {match.group()!r}", *match.span())
    if feedback or not data:
        return
    for match in _Y.finditer(text):
        yield fault(f"write y: {match.group(1)!r}", *match.span())
    prose = text
    for pattern in (_CODE, _SECTION):
        prose = pattern.sub(lambda m: "x" * len(m.group()), prose)
    rules = {
        _STRAIGHT: "straight quotation mark",
        _BEFORE: "space before a punctuation mark",
        _AFTER: "no space after a punctuation mark",
        _THOUSANDS: "thousands are separated by a dot",
        _DECIMAL: "decimals follow a comma",
    }
    if _POINT.search(text):
        del rules[_DECIMAL]
    for rule, what in rules.items():
        for match in rule.finditer(prose):
            yield fault(what, *match.span())


def _strings(value: object) -> Iterator[str]:
    """All strings of a JSON value, without keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def of_file(path: Path) -> Iterator[Fault]:
    """The faults of one shipped file."""
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            for part in _strings(json.loads(line)):
                yield from faults(part, f"{name}:{number}")
    elif path.suffix == ".csv":
        for number, row in enumerate(csv.DictReader(text.splitlines()), 2):
            yield from faults(row["sentence"], f"{name}:{number}", feedback=True)
    elif path.suffix == ".ipynb":
        for cell in json.loads(text)["cells"]:
            source = "".join(cell["source"]).replace("\\n", " ")
            yield from faults(source, f"{name}:{cell['id']}", data=False)
    else:
        for number, line in enumerate(text.splitlines(), 1):
            line = line.replace("\\n", " ")  # a line break in the label of a diagram
            yield from faults(line, f"{name}:{number}", data=path.suffix == ".txt")


def shipped() -> list[Path]:
    """Every file that holds Vietnamese text for readers."""
    folders = ("data/**/*", "notebooks/**/*.ipynb", "i18n/**/*.md", "docs/**/*.vi.md")
    kinds = {".jsonl", ".csv", ".txt", ".md", ".ipynb"}
    found = {ROOT / "README.vi.md", *(path for folder in folders for path in ROOT.glob(folder))}
    return sorted(path for path in found if path.suffix in kinds)


def main() -> int:
    """Print the faults; the exit status is 1 if there is one."""
    found = [fault for path in shipped() for fault in of_file(path)]
    for fault in found:
        print(fault)
    print(f"{len(found)} faults in {len(shipped())} files")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

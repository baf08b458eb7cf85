"""Build the Vietnamese notebooks, notebooks/vi, from the English ones and i18n/vi/<notebook>.md.

README.vi.md is written by hand, section by section as README.md; `build` fills in its badges, the
links to notebooks and the measured figures.

    python tools/translate.py extract 00       # write the cells to translate into i18n/vi
    python tools/translate.py build [00 01 …]  # write notebooks/vi; a notebook with faults is not
    python tools/translate.py --stale          # print the cells to translate, or to translate again
    python tools/translate.py --check          # change nothing; exit 1 if there is something to do

The English notebook is the only source of code and outputs. A block of i18n/vi translates one text
cell. Its first line names the cell and the hash of the English text that it translates:

    <!-- cell 00-04 3f9a1c2b7d60 -->
    ## RLHF là gì

A skeleton has `todo` before `-->` and the English text below: write the Vietnamese there, remove
`todo`, and delete the old block above it. `except: step, reward` before `-->` lists terms of the
glossary that mean something else in this cell. The badges and the measured figures of the table of
profiles come from the English cell: the block has empty badges and `…` in the last two columns.
Links are written as in English, relative to notebooks/. TITLES has the sections that occur
in every notebook and what they are called.
"""

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools import glossary, vietnamese
from tools.badges import BADGES, CLOSE, OPEN
from utils.course.notebooks import LANGUAGE_LINE
from utils.course.paths import NOTEBOOKS, ROOT

SOURCES = ROOT / "i18n" / "vi"
EDITION = NOTEBOOKS / "vi"
READMES = (ROOT / "README.md", ROOT / "README.vi.md")
NOTE = "> 🇬🇧 **Chưa dịch.** Ô này còn giữ nguyên tiếng Anh.\n\n"
FEW = 4  # so many equal words can be a name
WORDS = {  # in the table of profiles
    "not measured": "chưa đo",
    "2 cores": "2 nhân",
    "estimated": "ước tính",
    "simulated": "mô phỏng",
    "about": "khoảng",
    "min": "phút",
    "s": "giây",
}
HEAD = re.compile(r"^<!-- cell (\S+) ([0-9a-f]+)( todo)?(?: except: ([^>]*?))? -->\n", re.MULTILINE)
ROW = re.compile(r"(?m)^(\| `(lab|t4|a100)`[^|\n]*\|[^|\n]*)\|([^|\n]*\|[^|\n]*)\|$")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$", re.DOTALL)
GUIDE = re.compile(r"teaching(\.vi)?\.md(#.*)?$")  # each edition links to its own guide
LINK = re.compile(
    r"""(?<=\]\()[^)\s]+|(?<=src=["'])[^"']+|(?<=href=["'])[^"']+|https?://[^\s)>]+"""
)
TAG = re.compile(r"</?[a-z]+[^>]*>")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
# no decimals: the number of an exercise, the size of a model, the version of a library
NAMES = re.compile(
    r"\b0\d\.\d+\b|(?<=[A-Za-z]-)\d+\.\d+|\b(TRL|PEFT|PyTorch|CUDA|Llama|CC BY) \d+\.\d+"
)
TITLE = re.compile(r"(?m)^#+ (?:\d+\. )?(.*)|<summary>(.*?)</summary>|^\*\*([^*\n]+)\*\*$")
TITLES = {  # that occur in every notebook
    "You will be able to": "Học xong, bạn có thể",
    "Read your curves": "Đọc các đường cong huấn luyện",
    "Break it": "Thử làm hỏng",
    "Exercises": "Bài tập",
    "Solution": "Lời giải",
    "Quiz": "Câu hỏi ôn tập",
    "Answer": "Đáp án",
    "Hand over": "Bàn giao",
    "What we simplified": "Chúng ta đã đơn giản hóa những gì",
    "References": "Tài liệu tham khảo",
}

SWITCH = re.compile(r"(?m)^.*\]\(README(\.vi)?\.md\).*\n\n")  # the line between the languages
LESSON = re.compile(  # a row of the README's table of notebooks
    r"(?m)^(\| \[(\d\d) [^\]]*\]\()([^)]*)(\) )<!-- badges -->(.*?)<!-- /badges -->"
    r"( \|[^|\n]*)\|([^|\n]*\|[^|\n]*\|[^|\n]*)\|$"
)
FENCE = re.compile(r"(?s)```(\w+)\n(.*?)```")


@dataclass(frozen=True)
class Block:
    """The translation of one text cell."""

    cell: str
    digest: str  # of the English text that it translates
    text: str
    todo: bool = False  # a skeleton, with the English text
    exempt: tuple[str, ...] = ()  # terms of the glossary that mean something else here

    def __str__(self) -> str:
        head = f"<!-- cell {self.cell} {self.digest}{' todo' if self.todo else ''}"
        if self.exempt:
            head += f" except: {', '.join(self.exempt)}"
        return f"{head} -->\n{self.text}\n"


# --- Reading -------------------------------------------------------------------------------------


def source(cell: dict) -> str:
    """The text of a cell."""
    return "".join(cell["source"])


def template(english: str) -> str:
    """A cell's text without what is filled in when the edition is built: badges and figures."""
    return ROW.sub(r"\1| … | … |", BADGES.sub(OPEN + CLOSE, english))


def digest(english: str) -> str:
    """The hash of the text that a block translates."""
    return hashlib.sha256(template(english).encode()).hexdigest()[:12]


def english_notebook(stem: str) -> dict:
    """The English notebook."""
    return json.loads((NOTEBOOKS / f"{stem}.ipynb").read_text(encoding="utf-8"))


def text_cells(notebook: dict) -> dict[str, str]:
    """Cell id -> text of the cells that are not code."""
    return {c["id"]: source(c) for c in notebook["cells"] if c["cell_type"] != "code"}


def blocks(stem: str) -> list[Block]:
    """The blocks of a notebook's file in i18n/vi, in order; none without a file."""
    path = SOURCES / f"{stem}.md"
    parts = HEAD.split(path.read_text(encoding="utf-8")) if path.exists() else [""]
    return [
        Block(cell, found, text.strip(), bool(todo), tuple(exempt.split(", ")) if exempt else ())
        for cell, found, todo, exempt, text in zip(*[iter(parts[1:])] * 5, strict=True)
    ]


def done(stem: str) -> dict[str, Block]:
    """Cell id -> its block, without skeletons; of two blocks the later one counts."""
    return {block.cell: block for block in blocks(stem) if not block.todo}


def open_cells(stem: str) -> dict[str, str]:
    """Cell id -> what is to do: `missing`, `stale`, or `gone` for a block without its cell."""
    cells, translated = text_cells(english_notebook(stem)), done(stem)
    found = {}
    for cell, english in cells.items():
        if cell not in translated:
            found[cell] = "missing"
        elif translated[cell].digest != digest(english):
            found[cell] = "stale"
    return found | {cell: "gone" for cell in translated if cell not in cells}


def begun() -> list[str]:
    """The names of the notebooks that have a file in i18n/vi or an edition in notebooks/vi."""
    known = {path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")}
    files = [*SOURCES.glob("*.md"), *EDITION.glob("*.ipynb")]
    return sorted({path.stem for path in files} & known)


# --- What a translation must preserve ------------------------------------------------------------


def _without(text: str, *patterns: re.Pattern) -> str:
    for pattern in patterns:
        text = pattern.sub(" ", text)
    return text


def _prose(text: str) -> str:
    """The words of a text: no code, formula, link target, tag, badge or figure."""
    text = template(text).replace(OPEN + CLOSE, "")
    return _without(text, CODE, FORMULA, LINK, TAG)


def _formulas(text: str) -> list[str]:
    """The formulas; the words in \\text{…} may be translated."""
    found = FORMULA.findall(CODE.sub(" ", text))
    return [re.sub(r"\\text\{[^}]*\}", r"\\text{}", formula) for formula in found]


def _structure(text: str) -> list[str]:
    """Headings with their levels, and rows of tables with their numbers of columns, in order."""
    lines = CODE.sub("`", text).splitlines()
    return [
        re.match(r"#+", line).group() if line[0] == "#" else "|" * FORMULA.sub("", line).count("|")
        for line in lines
        if re.match(r"#+ |\|", line)
    ]


def in_vietnamese(number: str) -> str:
    """An English number with the Vietnamese separators.

    >>> in_vietnamese("1,543"), in_vietnamese("0.95"), in_vietnamese("12")
    ('1.543', '0,95', '12')
    """
    return number.translate(str.maketrans(",.", ".,"))


def _lost_numbers(english: str, translation: str) -> Iterator[str]:
    """The numbers of one text that the other lacks; a version such as 3.11 may stay as it is."""
    left = Counter(NUMBER.findall(_prose(translation)))
    for number in NUMBER.findall(_prose(english)):
        forms = [in_vietnamese(number)] + ([] if "," in number else [number])
        used = next((form for form in forms if left[form]), None)
        if used is None:
            yield f"the number {number} is missing, in Vietnamese {forms[0]}"
        else:
            left[used] -= 1
    for number in left.elements():
        yield f"the number {number} is not in the English text"


def _same(what: str, english: Sequence[str], translation: Sequence[str]) -> Iterator[str]:
    wanted, found = Counter(english), Counter(translation)
    for part in wanted - found:
        yield f"{what} {part!r} is missing"
    for part in found - wanted:
        yield f"{what} {part!r} is not in the English text"


def _remainders(english: str, translation: str) -> Iterator[str]:
    """Lines that are still English: equal to a line of the cell, with more than a few words."""
    known, own = (_without(text, CODE, FORMULA) for text in (english, template(translation)))
    known = {line.strip() for line in known.splitlines()}
    for line in own.splitlines():
        # the text of a link may be the title of a page; a Vietnamese example stays as it is
        prose = _prose(re.sub(r"\[[^\]]*\](?=\()", "", line))
        words = [w for w in re.findall(r"[^\W\d_]+", prose) if not vietnamese._MARKED.search(w)]
        if line.strip() in known and len(words) > FEW and not glossary.PAPER.match(line):
            yield f"not translated: {line.strip()[:60]!r}"
    titles, own_titles = (
        ["".join(title) for title in TITLE.findall(text)] for text in (english, translation)
    )
    for title, wanted in TITLES.items():
        times = sum(bool(re.match(rf"{title}\b", found)) for found in titles)
        if sum(found.startswith(wanted) for found in own_titles) < times:
            yield f"not translated as {wanted!r}: the title {title!r}"


def faults(english: str, translation: str, exempt: Sequence[str] = ()) -> Iterator[str]:
    """What is wrong with the translation of a cell, one sentence per fault."""
    english = template(english)
    yield from _same("the code", CODE.findall(english), CODE.findall(translation))
    yield from _same("the formula", _formulas(english), _formulas(translation))
    links = [LINK.findall(_without(text, CODE, FORMULA)) for text in (english, translation)]
    links[1] = [link.replace("_vi.png", ".png") for link in links[1]]  # a page in Vietnamese
    links = [[GUIDE.sub("teaching.md", link) for link in each] for each in links]
    yield from _same("the link", *links)
    tags = [TAG.findall(_without(text, CODE, FORMULA)) for text in (english, translation)]
    yield from _same("the tag", *tags)
    yield from _lost_numbers(english, translation)
    if _structure(english) != _structure(translation):
        yield "headings or tables differ from the English text"
    if BADGES.findall(english) != BADGES.findall(translation):
        yield f"write {OPEN}{CLOSE} where the badges stand"
    yield from _remainders(english, translation)
    yield from glossary.misused(_prose(english), _prose(translation), exempt)
    for fault in vietnamese.faults(NAMES.sub("0", translation), "Vietnamese"):
        core = fault.text[10:-10]
        if not (vietnamese._MARKED.search(core) and core in english):  # an example, as it is
            yield f"{fault.what}: {fault.text}"


def faults_of(stem: str) -> list[str]:
    """The faults of all blocks of a notebook that are not stale."""
    cells = text_cells(english_notebook(stem))
    found = [
        f"{cell}: {fault}"
        for cell, block in done(stem).items()
        if cell in cells and block.digest == digest(cells[cell])
        for fault in faults(cells[cell], block.text, block.exempt)
    ]
    times = Counter(block.cell for block in blocks(stem) if not block.todo)
    twice = [cell for cell, number in times.items() if number > 1]
    return found + [f"{cell}: two blocks, delete the old one" for cell in twice]


# --- The README ----------------------------------------------------------------------------------


def _untranslated(block: re.Match) -> str:
    """What stays the same in a block of code: commands, numbers of a diagram, names of rooms."""
    kind, code = block.groups()
    if kind == "mermaid":
        code = re.sub(r'"[^"]*"', lambda label: " ".join(NUMBER.findall(label.group())), code)
    elif kind == "text":
        code = re.sub(r"(?m) {2,}.*$", "", code)
    else:
        code = re.sub(r"(?m) *# .*$", "", code)
    return f"```{kind}\n{code}```"


def readme_sections(text: str) -> list[str]:
    """The README from heading to heading, without what differs: see SWITCH, LESSON and FENCE."""
    text = FENCE.sub(_untranslated, SWITCH.sub("", text))
    text = LESSON.sub(rf"\1\2\4{OPEN}{CLOSE}\6| … | … | … |", text)
    return re.split(r"(?m)^(?=##+ )", text.replace("](#", "](# "))


def readme_faults() -> Iterator[str]:
    """What is wrong with the Vietnamese README, one sentence per fault."""
    both = [readme_sections(path.read_text(encoding="utf-8")) for path in READMES]
    if len(both[0]) != len(both[1]):
        yield f"{len(both[1])} sections instead of {len(both[0])}"
        return
    for english, translation in zip(*both, strict=True):
        for fault in faults(english, translation):
            yield f"{translation.splitlines()[0]}: {fault}"


def readme_built() -> str:
    """The Vietnamese README with the badges and figures of the English one, and its own links."""
    english, translation = (path.read_text(encoding="utf-8") for path in READMES)
    rows = {row.group(2): row for row in LESSON.finditer(english)}

    def row(own: re.Match) -> str:
        _, _, link, _, badges, _, figures = rows[own.group(2)].groups()
        if (EDITION / Path(link).name).exists():
            link, badges = (t.replace("notebooks/", "notebooks/vi/") for t in (link, badges))
        start, _, _, bridge, _, text, _ = own.groups()
        return f"{start}{link}{bridge}{OPEN}{badges}{CLOSE}{text}|{figure(figures)}|"

    return LESSON.sub(row, translation)


# --- Building ------------------------------------------------------------------------------------


def figure(english: str) -> str:
    """A figure of the table of profiles in Vietnamese.

    >>> figure("0.5 (2 cores)"), figure("not measured")
    ('0,5 (2 nhân)', 'chưa đo')
    """
    text = NUMBER.sub(lambda match: in_vietnamese(match.group()), english)
    return re.sub(rf"\b({'|'.join(WORDS)})\b", lambda match: WORDS[match.group()], text)


def linked(text: str) -> str:
    """The text with links from notebooks/vi: one folder up, except to a translated notebook."""

    def target(match: re.Match) -> str:
        link = match.group()
        own = re.fullmatch(r"(\d\d_\w+)\.ipynb(#.*)?", link)
        if re.match(r"https?:|#|mailto:|data:", link):
            return link
        return link if own and (SOURCES / f"{own.group(1)}.md").exists() else f"../{link}"

    parts = re.split(f"({CODE.pattern}|{FORMULA.pattern})", text, flags=re.DOTALL)
    return "".join(
        part if index % 2 else LINK.sub(target, part) for index, part in enumerate(parts)
    )


def filled(english: str, translation: str) -> str:
    """The translation with the badges and the measured figures of the English cell."""
    for badges in BADGES.findall(english):
        own = badges.replace("/notebooks/", "/notebooks/vi/")
        translation = translation.replace(OPEN + CLOSE, own)
    figures = {match.group(2): figure(match.group(3)) for match in ROW.finditer(english)}
    return ROW.sub(lambda m: f"{m.group(1)}|{figures.get(m.group(2), m.group(3))}|", translation)


def in_edition(code: str) -> str:
    """The set-up cell of the edition: one line more, after the import of os."""
    first, rest = code.split("\n", 1)
    return f"{first}\n{LANGUAGE_LINE}\n{rest}"


def built(stem: str) -> str:
    """The text of the Vietnamese notebook; a cell without a current translation stays English."""
    notebook, translated, waiting = english_notebook(stem), done(stem), open_cells(stem)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code[0]["source"] = in_edition(source(code[0])).splitlines(keepends=True)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            continue
        english = source(cell)
        if cell["id"] in waiting:
            text = NOTE + filled(english, template(english))
        else:
            text = filled(english, translated[cell["id"]].text)
        cell["source"] = linked(text).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def build(stem: str, allow_missing: bool = False) -> bool:
    """Write the Vietnamese notebook, or say why not."""
    waiting, found = open_cells(stem), faults_of(stem)
    if found or (waiting and not allow_missing):
        print(f"{stem} is not built:")
        for line in [*(f"{cell}: {what}" for cell, what in waiting.items()), *found]:
            print(f"  {line}")
        return False
    EDITION.mkdir(parents=True, exist_ok=True)
    (EDITION / f"{stem}.ipynb").write_text(built(stem), encoding="utf-8")
    print(f"{stem}: built" + f", {len(waiting)} cells in English" * bool(waiting))
    return True


def check() -> list[str]:
    """What there is to do: faults, editions that are out of date, and complete ones not built.

    A notebook whose translation is not complete has nothing to do as long as it has no edition.
    """
    found = []
    for stem in begun():
        path = EDITION / f"{stem}.ipynb"
        found += [f"{stem}: {fault}" for fault in faults_of(stem)]
        waiting = open_cells(stem)
        if path.exists() and waiting:
            found += [f"{stem}: {cell}: {what}" for cell, what in waiting.items()]
        elif not waiting and not (
            path.exists() and path.read_text(encoding="utf-8") == built(stem)
        ):
            found.append(f"{stem}: the edition is not what `tools/translate.py build` writes")
    found += [f"{READMES[1].name}: {fault}" for fault in readme_faults()]
    if READMES[1].read_text(encoding="utf-8") != readme_built():
        found.append(f"{READMES[1].name} is not what `tools/translate.py build` writes")
    return found


def extract(stem: str) -> int:
    """Write a skeleton for each cell to translate, below the old Vietnamese; return how many."""
    cells, translated = text_cells(english_notebook(stem)), done(stem)
    skeletons = {block.cell: block for block in blocks(stem) if block.todo}
    waiting = open_cells(stem)
    written: list[Block] = []
    for cell, english in cells.items():
        written += [translated[cell]] if cell in translated else []
        if cell in waiting:
            new = Block(cell, digest(english), template(english), todo=True)
            old = skeletons.get(cell, new)  # with what was written into it so far
            written.append(old if old.digest == new.digest else new)
    written += [translated[cell] for cell, what in waiting.items() if what == "gone"]
    SOURCES.mkdir(parents=True, exist_ok=True)
    (SOURCES / f"{stem}.md").write_text("\n".join(map(str, written)), encoding="utf-8")
    return sum(block.todo for block in written)


def stem_of(number: str) -> str:
    """The name of the notebook with this number or name."""
    found = [path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")]
    matching = [stem for stem in found if stem.startswith(number)]
    if len(matching) != 1:
        sys.exit(f"No notebook begins with {number!r}: use one of {', '.join(sorted(found))}.")
    return matching[0]


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments ask; 1 if something is left to do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=("build", "extract"))
    parser.add_argument("numbers", nargs="*", help="of notebooks; all that have a file in i18n/vi")
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if not done")
    parser.add_argument("--stale", action="store_true", help="print the cells to translate")
    parser.add_argument(
        "--allow-missing", action="store_true", help="build with cells that are still English"
    )
    given = parser.parse_args(arguments)
    names = [stem_of(number) for number in given.numbers] or begun()
    if given.check:
        found = check()
        print(*found, f"{len(found)} things to do", sep="\n")
        return int(bool(found))
    if given.stale:
        for stem in names:
            for cell, what in open_cells(stem).items():
                print(stem, cell, what)
        return 0
    if given.command == "extract":
        for stem in names:
            print(f"i18n/vi/{stem}.md: {extract(stem)} cells to translate")
        return 0
    if given.command == "build":
        if not (given.numbers or given.allow_missing):  # what is only begun can wait
            names = [n for n in names if (EDITION / f"{n}.ipynb").exists() or not open_cells(n)]
        success = all([build(stem, given.allow_missing) for stem in names])
        READMES[1].write_text(readme_built(), encoding="utf-8")
        return int(not success)
    parser.print_help()
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

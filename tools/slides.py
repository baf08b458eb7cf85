"""Slides of each notebook, made from its cells: one HTML file that needs no network.

    python tools/slides.py            # every notebook, in both editions, into artifacts/slides
    python tools/slides.py 00 04      # only these

Which cell becomes what is decided here, by a rule, and not by tags in the notebooks: tags would be
edited by hand in two editions and would be lost when a cell is copied. The rule reads the English
notebook, and a cell of the Vietnamese edition with the same id follows it:

- Left out: the set-up cell, cells before the first section that only import, folded solutions and
  answers, and the sections that come after the quiz.
- A text cell becomes as many slides as its blocks need; a heading begins a slide.
- A code cell of at most `CODE_LINES` lines is shown with what it printed; of a longer one only the
  pictures and tables are shown. Every picture has a slide of its own.
- An exercise's cell is shown without its outputs.

The file has its own script of some lines: arrow keys and the space bar turn pages, Home and End go
to the ends, and printing gives one slide per page. Formulas are drawn by matplotlib.
"""

import argparse
import base64
import hashlib
import io
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import matplotlib
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt
from markupsafe import Markup
from matplotlib.mathtext import MathTextParser, math_to_image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from tools.badges import BADGES
from tools.grading.cells import CALL
from utils.course.notebooks import LANGUAGE_LINE, files, path_of
from utils.course.paths import NOTEBOOKS, ROOT

EDITIONS = {"en": NOTEBOOKS, "vi": NOTEBOOKS / "vi"}
OUTPUT = ROOT / "artifacts" / "slides"
CODE_LINES = 16  # of a code cell that is shown
PRINTED_LINES = 12  # of what it printed
DRAWING_LINES = 4  # of a cell that only draws: its picture is shown without the code
ROOM = 13.5  # lines of text on one slide
SLACK = 1.15  # so much more is allowed where it avoids a slide with one line: letters get smaller
WIDTH = 88  # characters of a line of text
TABLE_ROWS = 9  # of a table that a cell shows
LONG_TABLE = 1400, 5  # a table with so many letters shows fewer rows
LAST = re.compile(r"(?m)^## (\d+\. )?(Hand over|What we simplified|References)")
FOLDED = re.compile(r"<details>.*?</details>", re.DOTALL)
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)
HEADING = re.compile(r"(?m)^(#{1,3}) +(.*)$")
INTRODUCES = re.compile(r":$|^\*\*[^*]+\*\*$")  # a block that belongs to the next one
PLAIN, POINT = Markup("{}"), Markup("<ul>{}</ul>")
TITLES = {"en": "Preference Tuning with LLMs", "vi": "Tinh chỉnh LLM theo sở thích"}


@dataclass(frozen=True)
class Block:
    """A piece of a slide, and how many lines of text it is as high as."""

    body: Markup
    lines: float
    together: bool = False  # it begins a slide with the block after it, as an introduction does


@dataclass
class Slide:
    """One slide: the section's title, and its blocks."""

    title: str
    blocks: list[Block] = field(default_factory=list)
    first: bool = False  # the title of the notebook

    @property
    def lines(self) -> float:
        """The height of the blocks."""
        return sum(block.lines for block in self.blocks)


# --- The rule: which cells are shown, and how ----------------------------------------------------


def source(cell: dict) -> str:
    """The text of a cell."""
    return "".join(cell["source"])


def is_folded(text: str) -> bool:
    """Whether a text cell has nothing but a solution or an answer to unfold."""
    return not FOLDED.sub("", text).strip()


def prepares(code: str) -> bool:
    """Whether a cell sets the notebook up, or imports and draws the map of the course."""
    return "from utils.course import start" in code or "plots.use_style()" in code


def plan(notebook: dict) -> dict[str, str]:
    """Cell id -> `text`, `code`, `exercise` or `outputs`, of the cells that are shown, in order."""
    found: dict[str, str] = {}
    for cell in notebook["cells"]:
        text = source(cell)
        if cell["cell_type"] == "markdown":
            if LAST.search(text):
                break
            if not is_folded(text):
                found[cell["id"]] = "text"
        elif CALL.search(text):
            found[cell["id"]] = "exercise"
        elif not prepares(text) and len(text.splitlines()) <= CODE_LINES:
            found[cell["id"]] = "code"
        else:
            found[cell["id"]] = "outputs"
    return found


# --- Text ----------------------------------------------------------------------------------------

matplotlib.rcParams["mathtext.fontset"] = "dejavusans"  # it has every letter of Vietnamese
matplotlib.rcParams["svg.fonttype"] = "path"
matplotlib.rcParams["svg.hashsalt"] = "slides"
SIMPLER = (  # what matplotlib does not know -> what it knows
    (re.compile(r"\\[bB]igg?[lr]?(?=[\[\](){}|])"), ""),
    (re.compile(r"\\[td]frac"), r"\\frac"),
    (re.compile(r"\\frac(\d)(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\[lr]Vert"), r"\\|"),
    (re.compile(r"\\underbrace\{(.+?)\}_\{\\text\{.*?\}\}"), r"\1"),
    (re.compile(r"\\begin\{cases\}(.+?)\\end\{cases\}", re.DOTALL), r"\1"),
    (re.compile(r"\\\\(?= )"), r";\\quad "),
    (re.compile(r" & "), r"\\ \\ "),
)


@cache
def picture_of(formula: str) -> Markup:
    """A formula as a drawing, in the height of the text; its source where it cannot be drawn.

    >>> picture_of("x^2").startswith('<img class="formula"')
    True
    """
    drawn = " ".join(formula.split())
    try:
        MathTextParser("path").parse(f"${drawn}$")
    except ValueError:
        for pattern, simpler in SIMPLER:
            drawn = pattern.sub(simpler, drawn)
    file = io.BytesIO()
    try:
        depth = math_to_image(f"${drawn}$", file, dpi=72, format="svg", color="#1d2733")
    except ValueError:
        return Markup("<code>{}</code>").format(formula.strip())
    text = file.getvalue().decode()
    height = float(re.search(r'height="([\d.]+)pt"', text).group(1))
    data = base64.b64encode(re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL).encode())
    size = f"height:{height / 9.2:.2f}em;vertical-align:{-depth / 9.2:.2f}em"
    image = '<img class="formula" style="{}" alt="{}" src="data:image/svg+xml;base64,{}">'
    return Markup(image).format(size, formula.strip(), data.decode())


def _with_formulas(text: str) -> tuple[str, dict[str, Markup]]:
    """The text with a word for each formula, which Markdown leaves alone; word -> drawing."""
    drawings: dict[str, Markup] = {}
    display = Markup('<span class="display">{}</span>')

    def replaced(match: re.Match) -> str:
        formula = match.group(1) or match.group(2)
        word = "formula" + hashlib.sha256(match.group().encode()).hexdigest()[:16]
        drawn = picture_of(formula)
        drawings[word] = display.format(drawn) if match.group(1) else drawn
        return word

    parts = re.split(f"({CODE.pattern})", text, flags=re.DOTALL)
    done = [part if place % 2 else FORMULA.sub(replaced, part) for place, part in enumerate(parts)]
    return "".join(done), drawings


def _height(text: str) -> float:
    """About how many lines of a slide a piece of Markdown takes."""
    plain = re.sub(r"\]\([^)]*\)|[*`]|formula[0-9a-f]{16}", "", text)
    rows = [line for line in plain.splitlines() if line.strip()]
    if rows and all(line.lstrip().startswith("|") for line in rows):
        return sum(1.15 * (1 + len(line) // 120) for line in rows) - 0.5
    return sum(1 + len(line) // WIDTH for line in rows) + 0.35 + 1.2 * ("$$" in text)


def blocks_of(text: str) -> Iterator[Block]:
    """The blocks of a text: paragraphs, tables, and the single points of lists."""
    text, drawings = _with_formulas(text)
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = markdown.parse(text)
    rows = text.splitlines()

    def made(part: list, lines: tuple[int, int], wrap: Markup = PLAIN) -> Block:
        body = Markup(markdown.renderer.render(part, markdown.options, {}))
        for word, drawing in drawings.items():
            body = body.replace(word, drawing)
        body = wrap.format(body)
        written = "\n".join(rows[lines[0] : lines[1]])
        height = _height(written) + sum(1.6 for d in re.findall(r'class="display"', body))
        return Block(body, height, together=bool(INTRODUCES.search(written.strip())))

    place = 0
    while place < len(tokens):
        end, depth = place, 0
        while True:
            depth += tokens[end].nesting
            end += 1
            if depth == 0:
                break
        part, token = tokens[place:end], tokens[place]
        if token.type in ("bullet_list_open", "ordered_list_open"):
            number, item, depth = int(token.attrGet("start") or 1), 1, 0
            for at in range(1, len(part) - 1):
                depth += part[at].nesting
                if depth == 0:
                    kind = Markup('<ol start="{}">{{}}</ol>').format(number)
                    kind = POINT if token.tag == "ul" else kind
                    yield made(part[item : at + 1], part[item].map, kind)
                    item, number = at + 1, number + 1
        elif token.map and rows[token.map[0] : token.map[1]]:
            yield made(part, token.map)
        place = end


# --- Code and what it shows ----------------------------------------------------------------------


def code_block(code: str) -> Block:
    """Code in colours."""
    body = Markup(highlight(code.strip("\n"), PythonLexer(), HtmlFormatter(nowrap=True)))
    lines = code.strip("\n").splitlines()
    longest = max(map(len, lines), default=0)
    size = " wide" if longest > 92 else ""
    height = 0.67 * len(lines) + 0.9
    return Block(Markup('<pre class="code{}">{}</pre>').format(size, body), height)


def _cut(lines: list[str], most: int) -> str:
    kept = [line if len(line) <= 118 else line[:117] + "…" for line in lines[:most]]
    return "\n".join(kept + ["…"] * (len(lines) > most))


def shown(outputs: Iterable[dict]) -> Iterator[tuple[str, Block]]:
    """What a cell shows: `picture` or `text`, and its block."""
    for output in outputs:
        data = output.get("data", {})
        if picture := data.get("image/png"):
            image = Markup('<img class="figure" src="data:image/png;base64,{}">')
            yield "picture", Block(image.format("".join(picture).replace("\n", "")), ROOM)
        elif table := data.get("text/html"):
            soup = BeautifulSoup("".join(table), "html.parser")
            for script in soup.find_all("script"):
                script.decompose()
            rows, letters = soup.find_all("tr"), len(soup.get_text())
            most = LONG_TABLE[1] if letters > LONG_TABLE[0] else TABLE_ROWS
            for row in rows[most:]:
                row.decompose()
            height = max(1.25 * min(len(rows), most), letters / WIDTH) + 0.5
            body = Markup('<div class="table">{}</div>').format(Markup(soup.decode_contents()))
            yield "text", Block(body, height)
        else:
            text = output.get("text") or data.get("text/plain") or ""
            lines = "".join(text).strip("\n").splitlines()
            if lines:
                body = Markup('<pre class="printed">{}</pre>').format(_cut(lines, PRINTED_LINES))
                height = 0.6 * min(len(lines), PRINTED_LINES + 1) + 0.9
                yield "text", Block(body, height)


# --- Slides --------------------------------------------------------------------------------------


class Deck:
    """The slides of a notebook, filled from the top."""

    def __init__(self) -> None:
        self.slides: list[Slide] = []

    def begin(self, title: str, first: bool = False) -> None:
        """Begin a slide; a heading that has nothing below it gets none of its own."""
        if self.slides and not self.slides[-1].blocks and not self.slides[-1].first:
            self.slides.pop()
        self.slides.append(Slide(title, first=first))

    def add(self, blocks: list[Block]) -> None:
        """Add blocks to this slide, or in equal parts to this one and the next ones."""
        total = self.slides[-1].lines + sum(block.lines for block in blocks)
        parts = max(1, math.ceil(total / ROOM / SLACK))
        room = ROOM * SLACK if parts == 1 else max(total / parts * 1.08, ROOM * 0.6)
        for place, block in enumerate(blocks):
            now = self.slides[-1]
            following = blocks[place + 1].lines if block.together and blocks[place + 1 :] else 0.0
            if now.blocks and now.lines + block.lines + following > room:
                self.begin(now.title)
            self.slides[-1].blocks.append(block)

    def whole(self, *blocks: Block) -> None:
        """Add blocks that belong together, on a new slide if this one has no room for them."""
        if self.slides[-1].blocks and self.slides[-1].lines + sum(b.lines for b in blocks) > ROOM:
            self.begin(self.slides[-1].title)
        self.slides[-1].blocks += blocks

    def text(self, text: str) -> None:
        """Add a text cell; its headings begin slides."""
        parts = HEADING.split(FOLDED.sub("", BADGES.sub("", text)))
        self.add(list(blocks_of(parts[0]))) if self.slides else None
        for level, title, body in zip(*[iter(parts[1:])] * 3, strict=True):
            self.begin(title, first=level == "#")
            self.add(list(blocks_of(body)))

    def code(self, cell: dict, how: str) -> None:
        """Add a code cell with what it printed, then its pictures."""
        code = source(cell).replace(f"{LANGUAGE_LINE}\n", "")
        outputs = [] if how == "exercise" else list(shown(cell["outputs"]))
        pictures = [block for kind, block in outputs if kind == "picture"]
        others = [block for kind, block in outputs if kind != "picture"]
        if how == "outputs":
            others = [block for block in others if "printed" not in block.body]
        elif not (pictures and len(code.splitlines()) <= DRAWING_LINES):
            others = [code_block(code), *others]
        if sum(block.lines for block in others) <= ROOM * SLACK:
            self.whole(*others)
        else:
            for block in others:
                self.whole(block)
        for block in pictures:
            self.whole(block)


def deck(stem: str, language: str) -> list[Slide]:
    """The slides of a notebook in one edition."""
    shown_cells = plan(json.loads((NOTEBOOKS / f"{stem}.ipynb").read_text(encoding="utf-8")))
    path = EDITIONS[language] / f"{stem}.ipynb"
    made = Deck()
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        how = shown_cells.get(cell["id"])
        if how == "text":
            made.text(source(cell))
        elif how and made.slides:
            made.code(cell, how)
    return [slide for slide in made.slides if slide.blocks or slide.first]


def page(stem: str, language: str) -> Markup:
    """The HTML of a notebook's slides."""
    slides = deck(stem, language)
    name = slides[0].title
    parts = []
    for number, slide in enumerate(slides, 1):
        parts.append(
            Markup(
                '<section class="{kind}"><{tag}>{heading}</{tag}>\n'
                '<div class="body">{body}</div>\n<div class="foot"><span>{course} · {name}</span>'
                "<span>{number} / {last}</span></div></section>"
            ).format(
                kind="slide title" if slide.first and number == 1 else "slide",
                tag="h1" if slide.first else "h2",
                heading=markdown_title(slide.title),
                body=Markup("\n").join(block.body for block in slide.blocks),
                course=TITLES[language],
                name=markdown_title(name),
                number=number,
                last=len(slides),
            )
        )
    program = (ROOT / "tools" / "slides.js").read_text(encoding="utf-8")
    # a table that a cell has saved is HTML: nothing in it may run or ask the network
    known = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{known}'"
    )
    return Markup(
        '<!doctype html>\n<html lang="{language}"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width"><title>{name}</title>\n'
        "<style>{style}\n{colours}</style></head>\n<body>\n{slides}\n"
        "<script>{program}</script>\n</body></html>\n"
    ).format(
        language=language,
        name=name,
        policy=policy,
        style=Markup((ROOT / "tools" / "slides.css").read_text(encoding="utf-8")),
        colours=Markup(HtmlFormatter(style="xcode").get_style_defs("pre.code")),
        slides=Markup("\n").join(parts),
        program=Markup((ROOT / "tools" / "slides.js").read_text(encoding="utf-8")),
    )


def markdown_title(title: str) -> Markup:
    """A heading in HTML, with its formulas."""
    text, drawings = _with_formulas(title)
    made = Markup(MarkdownIt("commonmark").renderInline(text))
    for word, drawing in drawings.items():
        made = made.replace(word, drawing)
    return made


def main() -> None:
    """Write the slides."""
    parser = argparse.ArgumentParser(description="Make slides of the notebooks.")
    parser.add_argument("notebooks", nargs="*", help="numbers, as 00; without one: all")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    try:
        stems = [path_of(name).stem for name in options.notebooks] or [p.stem for p in files()]
    except FileNotFoundError as error:
        sys.exit(str(error))
    for language, folder in EDITIONS.items():
        for stem in stems:
            if not (folder / f"{stem}.ipynb").exists():
                print(f"{stem} has no edition in {language} yet")
                continue
            path = options.output / language / f"{stem}.html"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page(stem, language), encoding="utf-8")
            print(f"{path}: {path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()

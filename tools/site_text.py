"""Markdown and outputs of the course as HTML, for tools/build_site.py.

A heading has the id of its cell, so that it is the same in both editions. Formulas are MathML,
which browsers show without any program. A term leads to the glossary where it first stands.
HTML is a `Markup`: its `format` and `join` escape whatever is not.
"""

import base64
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bs4 import BeautifulSoup, NavigableString, Tag
from markupsafe import Markup
from nbconvert.filters import ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools import glossary
from tools.badges import settings

try:
    from math_core import LatexError, LatexToMathML
except ImportError:
    sys.exit("math-core turns the formulas into MathML: run python tools/run.py site.")

MATHML = LatexToMathML()
# an answer on one line is HTML, which Markdown leaves as it is: its own text is rendered before
FOLDED = re.compile(r"(?m)(?<=</summary>)(?!<)(.+)(?=</details> *$)")
WIDTHLESS = re.compile("[\u2061-\u2064]")  # signs such as "function application" of MathML
UNLINKED = {"a", "code", "pre", "math", "summary", "h1", "h2", "h3", "h4", "script", "th"}


def mathml(formula: str, block: bool = False) -> Markup:
    """A LaTeX formula as MathML."""
    try:
        return Markup(MATHML.convert_with_local_state(formula.strip(), displaystyle=block))
    except LatexError as error:
        sys.exit(f"The formula ${formula.strip()}$ is not LaTeX that math-core reads: {error}.")


def coloured(code: str, language: str) -> Markup:
    """Code with a span per token; the colours stand in site.css."""
    try:
        lexer = get_lexer_by_name(language or "text")
    except ClassNotFound:
        lexer = get_lexer_by_name("text")
    return Markup(highlight(code.strip("\n"), lexer, HtmlFormatter(nowrap=True))).rstrip("\n")


def of_soup(soup: BeautifulSoup | Tag) -> Markup:
    """What a parsed piece of HTML contains, its texts escaped again."""
    return Markup(soup.decode_contents())


def plain(html: str) -> str:
    """The words of a piece of HTML, with single spaces."""
    soup = BeautifulSoup(str(html), "html.parser")
    for anchor in soup.select("a.anchor"):
        anchor.decompose()
    for formula in soup.find_all("math"):
        formula.replace_with(WIDTHLESS.sub("", formula.get_text()))
    for block in soup.find_all(["p", "li", "td", "th", "tr", "summary", "pre", "div", "br"]):
        block.append(" ")
    return " ".join(soup.get_text().split())


# --- Markdown ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heading:
    """A heading of a page."""

    level: int
    anchor: str
    html: Markup

    @property
    def text(self) -> str:
        """The words of the heading."""
        return plain(self.html)


def address(link: str) -> str:
    """Where a link of a notebook leads on the site: to a page, or to a file on GitHub.

    >>> address("../01_phobert_reward_model.ipynb#01-04"), address("#00-08")
    ('01_phobert_reward_model.html#01-04', '#00-08')
    """
    if re.match(r"[a-z]+:|#", link):
        return link
    if page := re.fullmatch(r"(?:\.{1,2}/|vi/)*(\d\d_\w+)\.ipynb(#.*)?", link):
        return f"{page[1]}.html{page[2] or ''}"
    found = settings()
    path = re.sub(r"^(\.{1,2}/)+", "", link)
    return f"https://github.com/{found['repository']}/blob/{found['tag']}/{path}"


class Renderer(IPythonRenderer):
    """nbconvert's Markdown with formulas as MathML and headings that have the id of their cell."""

    def __init__(self, cell: str) -> None:
        super().__init__(escape=False, exclude_anchor_links=True)
        self.cell = cell
        self.headings: list[Heading] = []

    def heading(self, text: str, level: int, **attributes: object) -> str:
        """A heading with an id and a link to itself; the second of a cell is `00-88-2`."""
        number = len(self.headings) + 1
        anchor = self.cell + (f"-{number}" if number > 1 else "")
        words = of_soup(BeautifulSoup(text, "html.parser"))
        self.headings.append(Heading(level, anchor, words))
        link = '<a class="anchor" href="#{id}" aria-hidden="true" tabindex="-1">#</a>'
        made = Markup('<h{level} id="{id}">{words} ' + link + "</h{level}>\n")
        return str(made.format(level=level, id=anchor, words=words))

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """A link that leads somewhere from the site."""
        return super().link(text, address(url), title)

    def block_math(self, body: str) -> str:
        """A formula on a line of its own."""
        return str(Markup('<span class="formula">{}</span>').format(mathml(body, block=True)))

    def inline_math(self, body: str) -> str:
        """A formula within a line."""
        return str(mathml(body))

    def block_code(self, code: str, info: str | None = None) -> str:
        """A block of code in colours."""
        shown = coloured(code, (info or "").split(" ")[0])
        return str(Markup('<pre class="code"><code>{}</code></pre>').format(shown))


def _paragraph(match: re.Match) -> str:
    """The one line of an answer, which is rendered before the answer."""
    return str(Markup("<p>{}</p>").format(line(match[1])))


def rendered(markdown: str, cell: str = "x") -> tuple[Markup, list[Heading]]:
    """The HTML of a text cell, and its headings.

    >>> str(rendered("<details><summary>Why?</summary>It is $x$.</details>")[0])
    '<details><summary>Why?</summary><p>It is <math><mi>x</mi></math>.</p></details>\\n\\n'
    """
    renderer = Renderer(cell)
    markdown = FOLDED.sub(_paragraph, markdown)
    return Markup(MarkdownWithMath(renderer=renderer).render(markdown)), renderer.headings


def line(markdown: str) -> Markup:
    """The HTML of one paragraph, without its tag."""
    html = rendered(markdown)[0].strip()
    return html.removeprefix("<p>").removesuffix("</p>")


# --- Terms of the glossary -----------------------------------------------------------------------


def forms(row: dict, language: str) -> list[str]:
    """The forms of a term in a text: without its note; the note too if it is an abbreviation.

    >>> forms({"en": "clipping (PPO)", "vi": "cắt ngưỡng"}, "en")
    ['clipping']
    >>> forms({"en": "low-rank adaptation (LoRA)", "vi": "LoRA"}, "en")
    ['low-rank adaptation', 'LoRA']
    """
    term, *notes = glossary.NOTE.sub("", row[language]), *glossary.NOTE.findall(row[language])
    initials = "".join(word[0] for word in re.findall(r"\w+", term)).lower()
    same = [n for n in notes if n[0].lower() == initials[0] and re.search("[A-Z]{2}|LoRA", n)]
    return [term, *(same if language == "en" else notes)]


@dataclass
class Terms:
    """The terms of one page: each is linked where it first stands."""

    rows: Sequence[dict]
    used: dict[str, dict] = field(default_factory=dict)  # id -> row

    def __post_init__(self) -> None:
        self._patterns: dict[str, tuple[re.Pattern, dict[str, dict]]] = {}

    def pattern(self, language: str) -> tuple[re.Pattern, dict[str, dict]]:
        """What finds the terms of a language, longest first, and the row of each form."""
        if language not in self._patterns:
            known: dict[str, dict] = {}
            for row in self.rows:
                if row["en"] not in glossary.ORDINARY:
                    for form in forms(row, language):
                        known.setdefault(form.lower(), row)
            words = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
            ending = "(?:s|es)?" if language == "en" else ""
            found = re.compile(rf"(?<![\w-])({words}){ending}(?![\w-])", re.IGNORECASE)
            self._patterns[language] = found, known
        return self._patterns[language]

    def link(self, soup: BeautifulSoup, language: str) -> None:
        """Link the first use of each term in a piece of a page."""
        pattern, known = self.pattern(language)
        for text in soup.find_all(string=True):
            if any(parent.name in UNLINKED for parent in text.parents):
                continue
            pieces: list[NavigableString | Tag] = []
            end = 0
            for match in pattern.finditer(text):
                row = known[match.group(1).lower()]
                anchor = glossary.slug(row["en"])
                if anchor in self.used:
                    continue
                self.used[anchor] = row
                link = soup.new_tag("a", attrs={"class": "term"}, href=f"glossary.html#{anchor}")
                link.string = match.group()
                pieces += [NavigableString(text[end : match.start()]), link]
                end = match.end()
            if pieces:
                text.replace_with(*pieces, NavigableString(text[end:]))


def finished(html: str, language: str, terms: Terms | None = None) -> Markup:
    """HTML of a text cell with its terms linked, and tables that scroll by themselves."""
    soup = BeautifulSoup(str(html), "html.parser")
    if terms is not None:
        terms.link(soup, language)
    for table in soup.find_all("table"):
        table.wrap(soup.new_tag("div", attrs={"class": "scroll"}))
    for cell in soup.find_all("th"):
        if cell.get_text(strip=True):
            cell["scope"] = "col"
        else:
            cell.name = "td"
    return of_soup(soup)


# --- Outputs -------------------------------------------------------------------------------------


def clean_table(html: str) -> Markup:
    """A table of pandas without its own style, ids and classes; other tags lose their attributes.

    >>> str(clean_table('<style>x</style><table id="T"><tr><td class="a">1</td></tr></table>'))
    '<div class="scroll"><table><tr><td>1</td></tr></table></div>'
    """
    soup = BeautifulSoup(html, "html.parser")
    for tag in soup.find_all(["style", "script"]):
        tag.decompose()
    for tag in soup.find_all("th"):
        if not tag.get_text(strip=True):
            tag.name = "td"
        else:
            tag["scope"] = "col" if tag.find_parent("thead") else "row"
    for tag in soup.find_all(True):
        wide = "white-space:pre-wrap" in tag.get("style", "")
        tag.attrs = {k: v for k, v in tag.attrs.items() if k in ("scope", "colspan", "rowspan")}
        if wide:
            tag["class"] = "text"
    for table in soup.find_all("table"):
        table.wrap(soup.new_tag("div", attrs={"class": "scroll"}))
    return of_soup(soup).strip()


@dataclass(frozen=True)
class Picture:
    """A PNG of a notebook."""

    data: bytes

    @property
    def name(self) -> str:
        """A name from its content: both editions show the same file."""
        return f"{hashlib.sha256(self.data).hexdigest()[:16]}.png"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return int.from_bytes(self.data[16:20], "big"), int.from_bytes(self.data[20:24], "big")


def outputs(cell: dict) -> Iterator[Markup | Picture]:
    """The outputs of a code cell: HTML or pictures."""
    printed = Markup('<pre class="output">{}</pre>')
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            yield printed.format(Markup(ansi2html("".join(output["text"]).rstrip())))
        elif output["output_type"] == "error":
            lines = "\n".join(output["traceback"])
            yield printed.format(Markup(ansi2html(lines)))
        elif "image/png" in output["data"]:
            yield Picture(base64.b64decode("".join(output["data"]["image/png"])))
        elif "text/html" in output["data"]:
            yield clean_table("".join(output["data"]["text/html"]))
        elif "text/plain" in output["data"]:
            yield printed.format("".join(output["data"]["text/plain"]))

"""Build the site of the course into build/site: `make site`.

    python tools/build_site.py [--output FOLDER]

The notebooks are not run: the site shows their committed outputs. A Vietnamese page shows the
English text, with a note, where notebooks/vi has no translation. The look is in site/. What is put
together as `Markup` is escaped unless it is HTML already.
"""

import argparse
import ast
import functools
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bs4 import BeautifulSoup
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools import glossary, site_tables, site_text
from tools.badges import BADGES, settings
from tools.translate import EDITION, NOTE, figure, in_edition, in_vietnamese, source
from utils.course.notebooks import files
from utils.course.paths import ROOT

ASSETS = ROOT / "site"
OUTPUT = ROOT / "build" / "site"
MARK = ".nojekyll"  # in every site that this program wrote
LANGUAGES = ("en", "vi")
READMES = {"en": ROOT / "README.md", "vi": ROOT / "README.vi.md"}
NUMBER = Markup(' class="number"')
PLOT = re.compile(r"plots\.(\w+)\(")
EMPTY = Markup()
CODE = Markup('<pre class="code"><code>{}</code></pre>')
HEADING = re.compile(r"<h[1-4].*?</h[1-4]>", re.DOTALL)


@dataclass
class Page:
    """A page before the template: its text, its sections and what is found by a search."""

    name: str  # of the file
    title: str
    body: Markup
    sections: list[site_text.Heading] = field(default_factory=list)
    entries: list[dict[str, str]] = field(default_factory=list)  # of the search
    terms: dict[str, dict] = field(default_factory=dict)  # of the glossary, that the page links
    buttons: list[tuple[str, str]] = field(default_factory=list)  # word, address
    promise: Markup = EMPTY  # what the reader will have at the end

    @property
    def number(self) -> str:
        """The number of a notebook, from its file."""
        return self.name[:2]

    @property
    def short(self) -> str:
        """The title of a notebook without its number."""
        return self.title.split(" · ", 1)[-1]


@dataclass(frozen=True)
class Edition:
    """One language of the site."""

    language: str
    words: dict
    output: Path

    @property
    def folder(self) -> Path:
        """Where its pages lie: the English ones on top."""
        return self.output if self.language == "en" else self.output / self.language

    def number(self, value: float, decimals: int | None = None) -> str:
        """A number with the separators of the language."""
        text = (
            f"{value:,}" if decimals is None or isinstance(value, int) else f"{value:,.{decimals}f}"
        )
        return text if self.language == "en" else in_vietnamese(text)


def all_words() -> dict[str, dict]:
    """The words of the pages: language -> key -> text."""
    return json.loads((ASSETS / "words.json").read_text(encoding="utf-8"))


# --- Notebooks -----------------------------------------------------------------------------------


def plot_words() -> dict[str, str]:
    """Function of utils/show/plots.py -> the first line of its docstring."""
    tree = ast.parse((ROOT / "utils" / "show" / "plots.py").read_text(encoding="utf-8"))
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    docs = {node.name: ast.get_docstring(node) for node in functions}
    return {name: doc.split("\n")[0] for name, doc in docs.items() if doc}


def translations(path: Path) -> dict[str, str]:
    """Cell id -> Vietnamese text, without the cells that the edition still has in English."""
    own = EDITION / path.name
    if not own.exists():
        return {}
    cells = json.loads(own.read_text(encoding="utf-8"))["cells"]
    texts = {c["id"]: source(c) for c in cells if c["cell_type"] == "markdown"}
    return {cell: text for cell, text in texts.items() if not text.startswith(NOTE.strip())}


@dataclass
class NotebookPage:
    """Turns a notebook into a page of one edition."""

    path: Path
    edition: Edition
    plots: dict[str, str]

    def __post_init__(self) -> None:
        self.words = self.edition.words
        self.terms = site_text.Terms(glossary.rows(glossary.GLOSSARY))
        self.page = Page(f"{self.path.stem}.html", "", Markup())
        self.section = ""  # the heading above the cell

    def built(self) -> Page:
        """The page."""
        cells = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        own = translations(self.path) if self.edition.language == "vi" else {}
        foreign = self.edition.language == "vi" and not own
        parts = [self.note("fallback")] if foreign else []
        noted = foreign
        for cell in cells:
            if cell["cell_type"] == "markdown":
                english = self.edition.language == "vi" and cell["id"] not in own
                if english and not noted:
                    parts.append(self.note("untranslated"))
                noted = foreign or english
                parts.append(self.text(cell["id"], own.get(cell["id"], source(cell)), english))
            elif cell["cell_type"] == "code":
                parts.append(self.code(cell, translated=bool(own)))
        self.page.body = Markup("\n").join(parts)
        self.page.terms = self.terms.used
        self.page.buttons = self.buttons(bool(own))
        return self.page

    def note(self, key: str) -> Markup:
        """A sentence that the text below is English."""
        return Markup('<p class="note" lang="vi">{}</p>').format(self.words[key])

    def text(self, cell: str, markdown: str, english: bool) -> Markup:
        """A text cell."""
        html, headings = site_text.rendered(BADGES.sub("", markdown), cell)
        language = "en" if english else self.edition.language
        self.remember(html, headings, cell)
        html = site_text.finished(html, language, self.terms)
        anchor = EMPTY if headings else Markup(' id="{}"').format(cell)
        foreign = Markup(' lang="{}"').format(language) if english else EMPTY
        return Markup('<section class="text"{}{}>{}</section>').format(anchor, foreign, html)

    def remember(self, html: Markup, headings: Sequence[site_text.Heading], cell: str) -> None:
        """Add a cell's headings to the sections, and its words to the search."""
        for heading in headings:
            self.section = heading.text
            if heading.level == 1:
                self.page.title = heading.text
                first = BeautifulSoup(str(html), "html.parser").find("p")
                self.page.promise = site_text.of_soup(first) if first else EMPTY
            elif heading.level == 2:
                self.page.sections.append(heading)
        pieces = re.split(r"(?=<h[1-4] id=)", html)
        for piece in filter(str.strip, pieces):
            found = re.match(r'<h[1-4] id="([^"]+)"', piece)
            words = site_text.plain(HEADING.sub(" ", piece))
            if found or not self.page.entries:
                anchor = found.group(1) if found else cell
                title = next((h.text for h in headings if h.anchor == anchor), self.page.title)
                self.page.entries.append({"a": anchor, "t": title, "x": words})
            else:
                self.page.entries[-1]["x"] += f" {words}"

    def code(self, cell: dict, translated: bool) -> Markup:
        """A code cell with its outputs; an edition's set-up cell chooses its language."""
        code = source(cell)
        if translated and code.startswith("import os"):
            code = in_edition(code)
        shown = CODE.format(site_text.coloured(code, "python"))
        parts = [self.output(each, code) for each in site_text.outputs(cell)]
        below = Markup('<div class="outputs">{}</div>').format(Markup().join(parts))
        section = Markup('<section class="cell" id="{}">{}{}</section>')
        return section.format(cell["id"], shown, below if parts else EMPTY)

    def output(self, output: Markup | site_text.Picture, code: str) -> Markup:
        """An output: a figure becomes a file that both editions show."""
        if isinstance(output, Markup):
            return output
        folder = self.edition.output / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / output.name).write_bytes(output.data)
        function = next(iter(PLOT.findall(code)[::-1]), "")
        alt = self.words["figure"].format(
            section=self.section,
            function=function or "matplotlib",
            what=self.plots.get(function, ""),
        )
        root = "" if self.edition.language == "en" else "../"
        width, height = output.size
        image = '<img src="{}figures/{}" alt="{}" width="{}" height="{}" loading="lazy">'
        return Markup(image).format(root, output.name, alt.strip(" :"), width, height)

    def buttons(self, translated: bool) -> list[tuple[str, str]]:
        """Where the notebook can be opened: the Vietnamese one where it exists."""
        repository, tag = settings()["repository"], settings()["tag"]
        inside = f"notebooks/{'vi/' if translated else ''}{self.path.name}"
        github = f"https://github.com/{repository}/blob/{tag}/{inside}"
        colab = f"https://colab.research.google.com/github/{repository}/blob/{tag}/{inside}"
        target = self.edition.output / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / inside, target)
        root = "" if self.edition.language == "en" else "../"
        return [
            ("colab", colab),
            ("kaggle", f"https://kaggle.com/kernels/welcome?src={github}"),
            ("download", f"{root}{inside}"),
        ]


# --- The other pages -----------------------------------------------------------------------------


def start_page(edition: Edition, lessons: Sequence[Page]) -> Page:
    """The first page: what the course is, how to start, and the notebooks."""
    readme, words = READMES[edition.language].read_text(encoding="utf-8"), edition.words
    title, *paragraphs = readme.split("\n\n")
    title = title.removeprefix("# ")
    lead = next(text for text in paragraphs if "](README" not in text)  # not the other language
    commands = re.search(r"```bash\n(.*?)```", readme, re.DOTALL).group(1)
    minutes = site_tables.read("lab.json")["notebooks"]["lab"]
    cards = []
    for page in lessons:
        measured = minutes.get(page.number, {}).get("minutes")
        time = (
            words["not_measured"]
            if measured is None
            else words["minutes"].format(n=edition.number(measured, 1))
        )
        cards.append(
            Markup(
                '<li><a href="{0.name}"><span class="number">{0.number}</span> {0.short}</a>'
                '<p>{0.promise}</p><p class="quiet">{1}</p></li>'
            ).format(page, time)
        )
    body = Markup(
        '<h1 id="top">{title}</h1><p class="lead">{lead}</p><h2 id="start">{words[start]}</h2>'
        '{commands}<h2 id="notebooks">{words[notebooks]}</h2><ol class="cards">{cards}</ol>'
    ).format(
        title=title,
        lead=site_text.line(lead),
        words=words,
        commands=CODE.format(site_text.coloured(commands, "bash")),
        cards=Markup().join(cards),
    )
    return Page("index.html", words["course"], body)


def glossary_page(edition: Edition) -> Page:
    """Every term with its name in the other language and a sentence."""
    own, other = (edition.language, "vi" if edition.language == "en" else "en")
    rows = sorted(glossary.rows(glossary.GLOSSARY), key=lambda row: glossary.folded(row[own]))
    names = {row["en"]: row[own] for row in rows}
    page = Page("glossary.html", edition.words["glossary"], Markup())
    items = []
    for row in rows:
        anchor, sentence = glossary.slug(row["en"]), site_text.line(row[f"{own}_text"])
        link = Markup('<a href="#{}">{}</a>')
        see = Markup(", ").join(link.format(glossary.slug(e), names[e]) for e in row["see"])
        more = Markup('<p class="quiet">{}: {}</p>').format(edition.words["see"], see)
        items.append(
            Markup(
                '<dt id="{}">{} <span class="other" lang="{}">{}</span></dt><dd>{}{}</dd>'
            ).format(anchor, row[own], other, row[other], sentence, more if see else EMPTY)
        )
        entry = {"a": anchor, "t": row[own], "x": site_text.plain(sentence)}
        page.entries.append(entry if row[own] == row[other] else entry | {"o": row[other]})
    lead = edition.words["glossary_lead"].format(n=len(rows))
    body = Markup('<h1 id="top">{}</h1><p>{}</p><dl>{}</dl>')
    page.body = body.format(page.title, lead, Markup().join(items))
    return page


def measured_page(edition: Edition) -> Page:
    """The tables of benchmarks/."""
    words = edition.words
    page = Page("measured.html", words["measured"], Markup())
    settled = settings()
    github = f"https://github.com/{settled['repository']}/blob/{settled['tag']}/benchmarks"
    lead = Markup('<h1 id="top">{}</h1><p>{}</p>').format(page.title, words["measured_lead"])
    parts, cell = [lead], Markup("<td{}>{}</td>")

    def shown(value: site_tables.Value, column: Sequence[site_tables.Value]) -> Markup:
        if value is None:
            return cell.format(NUMBER, words["not_measured"])
        if isinstance(value, str):
            if edition.language == "vi" and re.fullmatch(r"[\d.–]+", value):
                value = in_vietnamese(value)
            return cell.format("", words["ways"][value[1:]] if value[0] == "@" else value)
        decimals = max(len(str(v).partition(".")[2]) for v in column if isinstance(v, float | int))
        return cell.format(NUMBER, edition.number(value, decimals))

    for make in site_tables.TABLES:
        table = make()
        title, sentence = words["tables"][table.key]
        columns = list(zip(*table.rows, strict=True))
        numeric = [any(isinstance(value, int | float) for value in column) for column in columns]
        head = Markup().join(
            Markup('<th scope="col"{}>{}</th>').format(NUMBER * right, words["columns"][column])
            for column, right in zip(table.columns, numeric, strict=True)
        )
        rows = Markup().join(
            Markup("<tr>{}</tr>").format(Markup().join(map(shown, row, columns)))
            for row in table.rows
        )
        machine = table.machine if edition.language == "en" else figure(table.machine)
        link = Markup('<a href="{0}/{1}">{1}</a>')
        links = Markup(", ").join(link.format(github, name) for name in table.files)
        page.sections.append(site_text.Heading(2, table.key, escape(title)))
        page.entries.append({"a": table.key, "t": title, "x": sentence})
        parts.append(
            Markup(
                '<h2 id="{key}">{title}</h2><p>{sentence}</p><div class="scroll"><table>'
                "<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
                '<p class="quiet">{words[from]}: {links}. {words[machine]}: {machine}.</p>'
            ).format(
                key=table.key,
                title=title,
                sentence=sentence,
                head=head,
                rows=rows,
                words=words,
                links=links,
                machine=machine,
            )
        )
    page.body = Markup().join(parts)
    return page


# --- Writing -------------------------------------------------------------------------------------


def tips(page: Page, language: str) -> dict[str, list[str]]:
    """What the page shows over a term: id -> both names and the sentence."""
    other = "vi" if language == "en" else "en"
    return {
        anchor: [row[language], row[other], site_text.line(row[f"{language}_text"])]
        for anchor, row in page.terms.items()
    }


def script(data: object) -> Markup:
    """JSON that can stand in a <script>."""
    written = functools.partial(json.dumps, ensure_ascii=False, separators=(",", ":"))
    return htmlsafe_json_dumps(data, dumps=written)


def write_edition(edition: Edition, jinja: Environment) -> None:
    """Write every page of an edition, and its index for the search."""
    plots = plot_words()
    lessons = [NotebookPage(path, edition, plots).built() for path in files()]
    reference = [measured_page(edition), glossary_page(edition)]
    pages = [start_page(edition, lessons), *lessons, *reference]
    edition.folder.mkdir(parents=True, exist_ok=True)
    other = "vi" if edition.language == "en" else "en"
    template = jinja.get_template("page.html")
    for index, page in enumerate(pages):
        html = template.render(
            page=page,
            words=edition.words,
            language=edition.language,
            other=other,
            other_words=all_words()[other],
            other_address=f"vi/{page.name}" if other == "vi" else f"../{page.name}",
            root="" if edition.language == "en" else "../",
            lessons=lessons,
            reference=reference,
            previous=pages[index - 1] if index else None,
            following=pages[index + 1] if index + 1 < len(pages) else None,
            tips=script(tips(page, edition.language)),
            repository=settings()["repository"],
        )
        (edition.folder / page.name).write_text(html, encoding="utf-8")
    index = [{"p": page.name, "n": page.title, **entry} for page in pages for entry in page.entries]
    (edition.folder / "search.js").write_text(
        f"window.courseIndex={script(index)};\n", encoding="utf-8"
    )


def built_files(output: Path) -> Iterator[Path]:
    """The files of the site."""
    return (path for path in output.rglob("*") if path.is_file())


def build(output: Path) -> None:
    """Write the whole site into a new folder, or in place of an older site."""
    if output.exists() and any(output.iterdir()) and not (output / MARK).is_file():
        raise SystemExit(f"{output} has files that this program did not write: name a new folder.")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    shutil.copytree(ASSETS / "fonts", output / "fonts")
    for name in ("site.css", "site.js"):
        shutil.copy(ASSETS / name, output)
    (output / MARK).touch()  # GitHub Pages serves the files as they are
    jinja = Environment(
        loader=FileSystemLoader(ASSETS),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for language in LANGUAGES:
        write_edition(Edition(language, all_words()[language], output), jinja)


def main(arguments: Sequence[str]) -> None:
    """Build the site and say where it lies."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the folder, made anew")
    output = parser.parse_args(arguments).output
    build(output)
    found = list(built_files(output))
    size = sum(path.stat().st_size for path in found) / 1e6
    print(f"{len(found)} files, {size:.1f} MB. Open {output / 'index.html'} in a browser.")


if __name__ == "__main__":
    main(sys.argv[1:])

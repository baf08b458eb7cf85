"""The files of the site: links, ids, headings, formulas, terms, tables, missing translations."""

import doctest
import json
import re
import subprocess
import sys
from copy import copy
from itertools import pairwise
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

from tools import glossary
from utils.course.notebooks import files
from utils.course.paths import ROOT

pytest.importorskip(
    "math_core", reason="The package of the site is not installed: run make site once."
)
from tools import build_site, site_tables, site_text

NAMES = ["index.html", *(f"{p.stem}.html" for p in files()), "measured.html", "glossary.html"]
PAGES = [*NAMES, *(f"vi/{name}" for name in NAMES)]


@pytest.fixture(scope="module")
def soups(site):
    return {
        name: BeautifulSoup((site / name).read_text(encoding="utf-8"), "html.parser")
        for name in PAGES
    }


def test_every_page_exists_in_both_languages(site):
    found = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert found == set(PAGES)


def test_every_link_and_every_file_of_a_page_is_there(site, soups):
    ids = {(site / n).resolve(): {tag["id"] for tag in s.select("[id]")} for n, s in soups.items()}
    for name, soup in soups.items():
        for tag in soup.select("[href], [src]"):
            address = urlsplit(tag.get("href") or tag["src"])
            if address.scheme:
                continue
            target = (site / name).parent / unquote(address.path) if address.path else site / name
            assert target.exists(), f"{name}: {address.path}"
            if address.fragment:
                assert address.fragment in ids[target.resolve()], f"{name}: #{address.fragment}"


def test_no_page_loads_anything_from_another_server(site, soups):
    for name, soup in soups.items():
        loading = soup.select("[src], link[rel=stylesheet], link[rel=icon], link[rel=preload]")
        for tag in loading:
            address = tag.get("src") or tag["href"]
            assert not re.match(r"(https?:)?//", address), f"{name}: {address}"
    style = (site / "site.css").read_text(encoding="utf-8")
    for address in re.findall(r"url\(([^)]+)\)", style):
        assert (site / address).exists()
    assert "@import" not in style


def test_sections_have_the_same_ids_in_both_languages(soups):
    for name in NAMES:
        own = [tag["id"] for tag in soups[name].select("main [id]")]
        other = [tag["id"] for tag in soups[f"vi/{name}"].select("main [id]")]
        assert len(own) == len(set(own)), name
        assert sorted(own) == sorted(other), name
    for path in files():
        cells = {cell["id"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}
        found = {tag["id"] for tag in soups[f"{path.stem}.html"].select("main [id]")}
        assert found >= cells


def test_headings_pictures_and_language_are_as_a_screen_reader_needs_them(soups):
    for name, soup in soups.items():
        assert soup.html["lang"] == ("vi" if name.startswith("vi/") else "en")
        assert " object at 0x" not in str(soup), name  # a word of the template that is a method
        levels = [int(tag.name[1]) for tag in soup.select("main :is(h1, h2, h3, h4)")]
        assert levels[0] == 1 and levels.count(1) == 1, name
        assert all(b - a <= 1 for a, b in pairwise(levels)), name
        for picture in soup.select("img"):
            assert len(picture["alt"]) > 20 and "“”" not in picture["alt"], name
            assert int(picture["width"]) > 100 and int(picture["height"]) > 50
        for head in soup.select("th"):
            assert head.get_text(strip=True) and head["scope"] in ("col", "row"), name


def test_every_formula_is_mathml(soups):
    for path in files():
        text = "".join(
            "".join(cell["source"])
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "markdown"
        )
        text = re.sub(r"```.*?```|`[^`\n]+`", "", text, flags=re.DOTALL)
        formulas = re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", text, re.DOTALL)
        soup = copy(soups[f"{path.stem}.html"])
        assert len(soup.select("main math")) == len(formulas), path.stem
        for tag in soup.select("main math, main pre, main code, main .scroll"):
            tag.decompose()
        assert "\\ln" not in soup.main.get_text() and "$" not in soup.main.get_text()


def test_a_link_to_a_file_of_the_repository_leads_to_github():
    html = site_text.rendered(
        "[a](../../utils/losses.py) [b](02_gpt2_ppo.ipynb) [c](https://x.org)"
    )
    links = [a["href"] for a in BeautifulSoup(html[0], "html.parser").select("a")]
    repository = site_text.settings()["repository"]
    assert re.fullmatch(rf"https://github\.com/{repository}/blob/[^/]+/utils/losses\.py", links[0])
    assert links[1:] == ["02_gpt2_ppo.html", "https://x.org"]


def test_an_answer_stays_folded_within_its_question():
    question = (
        "1. Why $\\beta$?\n<details><summary>Answer</summary>So `a*b*c`, $x^*$, $y^*$.</details>\n"
    )
    soup = BeautifulSoup(site_text.rendered(question + "\n2. And?")[0], "html.parser")
    answer = soup.select_one("ol > li > details")
    assert answer.get_text() == "AnswerSo a*b*c, x∗, y∗."
    assert len(answer.select("math")) == 2 and not soup.select("em")


def test_every_answer_of_a_notebook_is_folded(soups):
    for path in files():
        for name in (f"{path.stem}.html", f"vi/{path.stem}.html"):
            for answer in soups[name].select("details"):
                assert len(answer.get_text(strip=True)) > len(answer.summary.get_text()) + 3, name


def test_a_formula_that_is_not_latex_is_one_sentence():
    with pytest.raises(SystemExit, match=r"\\nonsense.* is not LaTeX"):
        site_text.mathml(r"\nonsense{x}")
    assert "<msub><mi>π</mi><mtext>ref</mtext></msub>" in site_text.mathml(r"\pi_{\text{ref}}")


def test_the_search_knows_every_section(site, soups):
    for language, folder in (("en", site), ("vi", site / "vi")):
        text = (folder / "search.js").read_text(encoding="utf-8")
        index = json.loads(text.removeprefix("window.courseIndex=").rstrip().removesuffix(";"))
        known = {(entry["p"], entry["a"]) for entry in index}
        for name in NAMES[1:-2]:
            soup = soups[name if language == "en" else f"vi/{name}"]
            for heading in soup.select("main :is(h1, h2, h3)"):
                assert (name, heading["id"]) in known
        (losses,) = [e for e in index if e["p"] == NAMES[1] and e["a"] == "00-08"]
        assert "lnπ(y∣x)=" in losses["x"].replace(" ", "")  # formulas, as text
        terms = [entry for entry in index if entry["p"] == "glossary.html"]
        assert len(terms) == len(glossary.rows(glossary.GLOSSARY)) >= 120


def test_buttons_of_a_notebook(soups):
    for path in files():
        for prefix in ("", "vi/"):
            links = [a["href"] for a in soups[f"{prefix}{path.stem}.html"].select(".buttons a")]
            assert len(links) == 3 and all(link.endswith(path.name) for link in links)
            assert links[0].startswith("https://colab.research.google.com/github/")
            assert links[1].startswith("https://kaggle.com/kernels/welcome?src=https://github.com/")


def test_the_start_page_says_what_the_readme_says(soups):
    for name, readme in (("index.html", "README.md"), ("vi/index.html", "README.vi.md")):
        text = (ROOT / readme).read_text(encoding="utf-8")
        assert f"# {soups[name].h1.get_text()}\n" in text
        lead = soups[name].select_one(".lead").get_text()
        assert len(lead) > 200 and lead in text
        assert soups[name].select_one("pre.code").get_text().strip() in text
        assert len(soups[name].select(".cards li p:first-of-type")) == len(files())


# --- Translations that are missing ---------------------------------------------------------------


@pytest.fixture
def vietnamese(tmp_path, monkeypatch):
    """Build notebook 00 in Vietnamese from an edition with these texts: cell id -> text."""
    (path,) = [path for path in files() if path.stem.startswith("00")]
    words = build_site.all_words()["vi"]
    edition = build_site.Edition("vi", words, tmp_path / "site")

    def page(texts: dict[str, str] | None) -> BeautifulSoup:
        folder = tmp_path / "edition"
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr(build_site, "EDITION", folder)
        monkeypatch.setattr(build_site.shutil, "copy", lambda *_: None)
        if texts is not None:
            cells = [
                {"cell_type": "markdown", "id": cell, "source": text.splitlines(keepends=True)}
                for cell, text in texts.items()
            ]
            (folder / path.name).write_text(json.dumps({"cells": cells}), encoding="utf-8")
        built = build_site.NotebookPage(path, edition, {}).built()
        return BeautifulSoup(built.body, "html.parser")

    return page


def test_without_an_edition_the_page_is_english_with_one_note(vietnamese):
    soup = vietnamese(None)
    (note,) = soup.select(".note")
    assert "chưa được dịch" in note.get_text() and note["lang"] == "vi"
    assert soup.select_one("section.text")["lang"] == "en"
    assert soup.find(id="00-08").get_text().startswith("1. The log-probability")


def test_cells_that_are_not_translated_are_english_with_a_note_above_them(vietnamese):
    own = {
        "00-00": "# Các hàm mất mát\n\nMột câu.",  # the number of the notebook was forgotten
        "00-08": "## 1. Log xác suất của câu trả lời",
        "00-12": build_site.NOTE + "### On a tiny GPT-2",  # the edition itself has it in English
        "99-99": "## Một ô không còn nữa",
    }
    soup = vietnamese(own)
    assert soup.h1.get_text().startswith("Các hàm mất mát")
    translated = soup.find(id="00-08").find_parent("section")
    assert "lang" not in translated.attrs and "Log xác suất" in translated.get_text()
    for cell in ("00-04", "00-12"):
        assert soup.find(id=cell).find_parent("section")["lang"] == "en"
    assert soup.find(id="99-99") is None
    for note in soup.select(".note"):  # a note per run of English cells, not per cell
        following = note.find_next_sibling("section", class_="text")
        assert following["lang"] == "en"
    assert "Chưa dịch" not in soup.get_text()
    assert 'os.environ.setdefault("COURSE_LANG", "vi")' in soup.find(id="00-01").get_text()


# --- The glossary and the measurements -----------------------------------------------------------


def test_a_term_is_linked_where_it_first_stands_on_a_page(soups):
    for name, soup in soups.items():
        links = [a["href"].split("#")[1] for a in soup.select("a.term")]
        assert len(links) == len(set(links))
        if name in NAMES[1:-2]:
            assert len(links) >= 10, name
            assert set(json.loads(soup.find(id="terms").string)) == set(links)


def test_the_longest_term_wins_and_code_stays_as_it_is():
    rows = glossary.rows(glossary.GLOSSARY)
    terms = site_text.Terms(rows)
    html = "<p>The reward models, <code>policy</code>, a reward and a reward.</p><h2>KL term</h2>"
    html = site_text.finished(html, "en", terms)
    assert re.findall(r"#([\w-]+)\">([^<]+)<", html) == [
        ("reward-model", "reward models"),
        ("reward", "reward"),
    ]
    assert site_text.finished("<p>Hàm phần thưởng.</p>", "vi", site_text.Terms(rows)) == (
        '<p>Hàm <a class="term" href="glossary.html#reward">phần thưởng</a>.</p>'
    )


def test_the_glossary_on_github_is_written_from_the_same_file():
    text = glossary.READABLE.read_text(encoding="utf-8")
    assert text == glossary.readable(), "Run python tools/glossary.py."
    anchors = re.findall(r'<a id="([^"]+)"', text)
    assert len(anchors) == len(set(anchors)) >= 120
    assert set(re.findall(r"\(#([^)]+)\)", text)) <= set(anchors)


def test_the_measurements_are_those_of_the_files(soups):
    seconds = site_tables.read("mining.json")["seconds"]
    episodes = site_tables.read("ppo.json")["sizes"][0]["ours_episodes_per_second"]
    for name, shown in (("measured.html", str), ("vi/measured.html", build_site.in_vietnamese)):
        cells = {cell.get_text() for cell in soups[name].select("td")}
        assert {shown(str(seconds)), shown(str(episodes))} <= cells
        for table in soups[name].select("table"):
            assert len({len(row.find_all(["td", "th"])) for row in table.select("tr")}) == 1
        assert len(soups[name].select("table")) == len(site_tables.TABLES)


def test_a_notebook_without_a_measurement_has_its_row():
    assert [row[0] for row in site_tables.notebooks().rows] == [p.name[:2] for p in files()]


def test_both_languages_have_the_same_words():
    english, vietnamese = (build_site.all_words()[language] for language in ("en", "vi"))
    assert set(english) == set(vietnamese)
    for key in ("tables", "columns", "ways"):
        assert set(english[key]) == set(vietnamese[key])
    for make in site_tables.TABLES:
        table = make()
        assert table.key in english["tables"] and set(table.columns) <= set(english["columns"])


def test_the_examples_in_docstrings_hold():
    for module in (site_text, site_tables, glossary):
        result = doctest.testmod(module)
        assert result.attempted and not result.failed


def test_without_its_package_the_builder_says_what_to_run():
    program = (
        "import sys; sys.modules['math_core'] = None; sys.argv = ['build_site.py']; "
        "import runpy; runpy.run_path('tools/build_site.py', run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "run python tools/run.py site" in run.stderr

"""Slides made of the notebooks' cells."""

import json
import re

import pytest

from tools import slides
from utils.course.notebooks import LANGUAGE_LINE, files

STEMS = [path.stem for path in files()]


@pytest.mark.parametrize("stem", STEMS)
def test_a_page_needs_no_network_and_gives_no_solution_away(stem):
    page = slides.page(stem, "en")
    assert re.findall(r"<(?:link|script)\b[^>]*(?:src|href)|url\(|@import", page) == []
    assert set(re.findall(r'<img [^>]*src="(\w+):', page)) <= {"data"}
    assert "<details" not in page and "badge" not in page
    assert page.count("<section") == page.count("</section>") > 10


@pytest.mark.parametrize("stem", STEMS)
def test_every_formula_can_be_drawn(stem):
    notebook = json.loads((slides.NOTEBOOKS / f"{stem}.ipynb").read_text(encoding="utf-8"))
    texts = [slides.source(c) for c in notebook["cells"] if c["cell_type"] == "markdown"]
    found = slides.FORMULA.findall(slides.CODE.sub(" ", "\n\n".join(texts)))
    assert [f for pair in found for f in pair if f and "<img" not in slides.picture_of(f)] == []


@pytest.mark.parametrize("stem", STEMS)
def test_the_rule_covers_the_sections_and_exercises(stem):
    notebook = json.loads((slides.NOTEBOOKS / f"{stem}.ipynb").read_text(encoding="utf-8"))
    plan = slides.plan(notebook)
    kinds = {cell["id"]: cell for cell in notebook["cells"]}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    wanted = [cell["id"] for cell in code if slides.CALL.search(slides.source(cell))]
    assert [cell for cell, how in plan.items() if how == "exercise"] == wanted
    shown = [len(slides.source(kinds[c]).splitlines()) for c, how in plan.items() if how == "code"]
    assert shown and max(shown) <= slides.CODE_LINES
    titles = [slide.title for slide in slides.deck(stem, "en")]
    sections = [
        title
        for cell, how in plan.items()
        for level, title in slides.HEADING.findall(slides.source(kinds[cell]))
        if how == "text" and level == "##"
    ]
    without_text = set(sections) - set(titles)  # only a heading, above a smaller one
    assert len(without_text) <= 3
    for slide in slides.deck(stem, "en"):  # a table of answers is one block, and gets small letters
        assert slide.lines <= slides.ROOM * 1.25 or len(slide.blocks) == 1, slide.title


def test_the_other_edition_follows_the_same_rule(tmp_path, monkeypatch):
    notebook = json.loads((slides.NOTEBOOKS / f"{STEMS[0]}.ipynb").read_text(encoding="utf-8"))
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    first["source"].insert(1, LANGUAGE_LINE + "\n")
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = slides.source(cell).replace("Hand over", "Bàn giao")
    (tmp_path / f"{STEMS[0]}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    monkeypatch.setitem(slides.EDITIONS, "vi", tmp_path)
    page = slides.page(STEMS[0], "vi")
    assert 'lang="vi"' in page and "COURSE_LANG" not in page and "Bàn giao" not in page
    assert page.count("<section") == slides.page(STEMS[0], "en").count("<section")


def test_a_list_is_divided_and_its_numbers_go_on():
    text = "Three reasons:\n\n" + "\n".join(f"{n}. {'word ' * 60}" for n in range(1, 9))
    deck = slides.Deck()
    deck.text(f"## Why\n\n{text}")
    assert [slide.title for slide in deck.slides] == ["Why"] * len(deck.slides)
    assert len(deck.slides) > 1
    bodies = "".join(block.body for slide in deck.slides for block in slide.blocks)
    assert re.findall(r'start="(\d)"', bodies) == [*"12345678"]
    assert "Three reasons" in deck.slides[0].blocks[0].body and len(deck.slides[0].blocks) > 1

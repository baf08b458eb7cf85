"""The slides in a browser: text fits, keys turn the pages, paper has one slide per page."""

import json

import pytest

from tools import slides

OVERFLOW = """() => [...document.querySelectorAll(".slide")].flatMap((slide, place) => {
  const body = slide.querySelector(".body");
  const size = parseFloat(body.style.fontSize || "100");
  const fits = body.scrollHeight <= body.clientHeight && body.scrollWidth <= body.clientWidth;
  return fits && size >= 60 ? [] : [[place + 1, size, body.scrollHeight, body.clientHeight]];
})"""
NUMBER = "() => document.querySelector('.slide.on .foot span:last-child').textContent"


@pytest.fixture(params=["00_preference_losses_from_scratch", "06_build_preference_pairs"])
def deck(request, browser_page, tmp_path):
    path = tmp_path / "slides.html"
    path.write_text(slides.page(request.param, "en"), encoding="utf-8")
    asked = []
    browser_page.on("request", lambda request: asked.append(request.url))
    browser_page.goto(path.as_uri())
    browser_page.wait_for_selector("body[data-ready]", state="attached")
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    return browser_page


def test_every_text_fits_its_slide(deck):
    assert deck.evaluate(OVERFLOW) == []


def test_the_keys_turn_the_pages_and_paper_has_them_all(deck):
    total = deck.locator(".slide").count()
    for key, number in (
        *(("ArrowRight", 2), (" ", 3), ("ArrowLeft", 2), ("End", total), ("ArrowRight", total)),
        *(("Home", 1), ("ArrowLeft", 1)),
    ):
        deck.keyboard.press(key)
        assert deck.evaluate(NUMBER) == f"{number} / {total}"
    deck.emulate_media(media="print")
    assert deck.locator(".slide >> visible=true").count() == total
    printed = deck.pdf(prefer_css_page_size=True, print_background=True)
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") == total


def test_nothing_in_a_cell_can_run_or_ask_the_network(browser_page, tmp_path, monkeypatch):
    stem = "05_orpo_vs_dpo"
    notebook = json.loads((slides.NOTEBOOKS / f"{stem}.ipynb").read_text(encoding="utf-8"))
    shown = [c for c, how in slides.plan(notebook).items() if how == "code"]
    cell = next(cell for cell in notebook["cells"] if cell["id"] == shown[0])
    attack = (
        "<b id='reached'>x</b><img src='x:' onerror='window.ran = 1'><img src='http://127.0.0.1:9/'>"
        "<scr<script></script>ipt>window.ran = 1</script><svg onload='window.ran = 1'></svg>"
    )
    cell["outputs"] = [{"output_type": "display_data", "data": {"text/html": attack}}]
    (tmp_path / f"{stem}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    monkeypatch.setitem(slides.EDITIONS, "vi", tmp_path)
    (tmp_path / "slides.html").write_text(slides.page(stem, "vi"), encoding="utf-8")
    answered = []
    browser_page.on("response", lambda response: answered.append(response.url))
    browser_page.goto((tmp_path / "slides.html").as_uri())
    browser_page.wait_for_selector("body[data-ready]", state="attached")  # our own script runs
    assert browser_page.locator("#reached").count() == 1
    assert browser_page.evaluate("() => window.ran") is None
    assert [url for url in answered if url.startswith("http")] == []

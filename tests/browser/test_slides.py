"""The slides in a browser: text fits, keys turn the pages, paper has one slide per page."""

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

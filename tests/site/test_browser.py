"""The site in a real browser, opened from the disk: no server, no network."""

import re

import pytest
from playwright.sync_api import expect

from tests.site.test_pages import NAMES, PAGES

FIRST, FOURTH = "00_preference_losses_from_scratch.html", "04_llama_dpo_vi_alpaca.html"
# The lowest contrast of a text with the colour behind it, and that text.
CONTRAST = """() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  let worst = [21, ""];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || e.closest("script, style, .anchor, .copy") || !e.getClientRects().length) continue;
    const both = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    const [a, b] = both.sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) worst = [ratio, `${e.tagName}.${e.className}: ${e.textContent}`];
  }
  return worst;
}"""


@pytest.fixture
def opened(site, browser_page):
    """Open a page of the site; at the end nothing was asked of a server, and no error was shown."""
    faults = []
    browser_page.on("console", lambda message: faults.append(message.text))
    browser_page.on("pageerror", lambda error: faults.append(str(error)))
    browser_page.on(
        "request",
        lambda r: None if re.match("file:|data:|blob:", r.url) else faults.append(r.url),
    )

    def open_page(name: str, width: int = 1280, height: int = 800):
        browser_page.set_viewport_size({"width": width, "height": height})
        browser_page.goto(f"{site.as_uri()}/{name}")
        browser_page.evaluate("document.fonts.ready")
        return browser_page

    yield open_page
    assert faults == []


def test_every_page_opens_without_an_error_and_fits_a_telephone(opened):
    for name in PAGES:
        page = opened(name, 360, 740)
        for picture in page.locator("img").all()[:2]:
            picture.scroll_into_view_if_needed()
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, name
        broken = "[...document.images].filter((i) => i.complete && !i.naturalWidth).length"
        assert page.evaluate(broken) == 0, name


def test_the_switch_lands_on_the_same_section(opened):
    page = opened(FIRST)
    switch = page.locator("#switch")
    for anchor in ("00-08", "00-13", "00-88-2"):  # a heading, code without one, a second heading
        page.evaluate("(id) => document.getElementById(id).scrollIntoView()", anchor)
        expect(switch).to_have_attribute("href", re.compile(f"#{anchor}$"))
        before = page.locator("html").get_attribute("lang")
        switch.click()
        page.wait_for_load_state("load")
        assert page.locator("html").get_attribute("lang") != before
        assert page.url.endswith(f"{FIRST}#{anchor}")
        expect(page.locator(f'[id="{anchor}"]')).to_be_in_viewport()


def test_the_contents_name_the_nine_notebooks_and_the_section_in_view(opened):
    page = opened(FOURTH)
    contents = page.get_by_role("navigation", name="Contents")
    for name in NAMES:
        assert contents.locator(f'a[href="{name}"]').count() == 1
    expect(contents.locator('[aria-current="page"]')).to_have_attribute("href", FOURTH)
    link = contents.locator(".sections a").nth(3)
    link.click()
    expect(link).to_have_attribute("aria-current", "location")


@pytest.mark.parametrize("folder", ["", "vi/"])
def test_a_search_finds_words_without_their_diacritics(opened, folder):
    page = opened(f"{folder}{FIRST}")
    first = {}
    for query in ("điểm thưởng", "diem thuong", "ĐIỂM THƯỞNG", "phần thưởng", "phan thuong"):
        page.keyboard.press("/")
        page.locator("#query").fill(query)
        results = page.locator("#results a")
        expect(results.first).to_be_visible()
        expect(page.locator("#hint")).to_contain_text(re.compile(r"\d+ (results|kết quả)"))
        first[query] = results.evaluate_all("(all) => all.map((a) => a.getAttribute('href'))")
        assert page.locator("#results mark").count()
        page.keyboard.press("Escape")
    assert set(first["diem thuong"]) == set(first["điểm thưởng"]) == set(first["ĐIỂM THƯỞNG"])
    assert first["phan thuong"][0] == first["phần thưởng"][0] == "glossary.html#reward"
    # what an edition does not have is searched in the other one
    assert all(href.startswith("vi/") for href in first["diem thuong"]) == (folder == "")

    page.keyboard.press("Control+k")
    page.locator("#query").fill("phan thuong")
    expect(page.locator("#results mark").first).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    second = page.evaluate("document.activeElement.getAttribute('href')")
    assert second == first["phan thuong"][1]
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/{second}")

    page.keyboard.press("/")
    page.locator("#query").fill("không-có-từ-này")
    expect(page.locator("#hint")).to_have_text(re.compile("Nothing found|Không tìm thấy"))


def test_a_search_shows_a_text_and_does_not_interpret_it(opened):
    page = opened("index.html")
    page.keyboard.press("/")
    page.locator("#query").fill("<img src=x onerror=alert(1)>")
    expect(page.locator("#hint")).to_have_text(re.compile("Nothing found"))
    page.locator("#query").fill("eos")
    expect(page.locator("#results a").first).to_be_visible()
    assert page.locator("#results :not(li, a, b, small, span, mark)").count() == 0


def test_a_term_shows_its_meaning_to_mouse_keyboard_and_finger(opened, browser, site):
    page = opened(FIRST)
    term, tip = page.locator("a.term").first, page.locator("#tip")
    term.hover()
    expect(tip).to_be_visible()
    assert len(tip.inner_text()) > 30
    tip.hover()  # it stays, so that it can be read with a magnifier
    page.wait_for_timeout(400)
    expect(tip).to_be_visible()
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    page.mouse.move(0, 0)
    term.focus()
    expect(tip).to_be_visible()
    expect(term).to_have_attribute("aria-describedby", "tip")
    page.keyboard.press("Enter")
    page.wait_for_url("**/glossary.html#*")

    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True)
    phone = context.new_page()
    phone.goto(f"{site.as_uri()}/{FIRST}")
    phone.locator("a.term").nth(2).tap()
    expect(phone.locator("#tip")).to_be_visible()
    assert "glossary" not in phone.url
    box = phone.locator("#tip").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    phone.locator("a.term").nth(2).tap()
    phone.wait_for_url("**/glossary.html#*")
    context.close()


@pytest.mark.parametrize("name", [FIRST, f"vi/{FOURTH}", "measured.html", "vi/glossary.html"])
def test_text_can_be_read_in_light_and_dark(opened, name):
    page = opened(name)
    papers = set()
    for _ in range(2):
        ratio, text = page.evaluate(CONTRAST)
        assert ratio >= 4.5, f"{ratio:.2f} {text}"
        papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.locator("#theme").click()
    assert len(papers) == 2


def test_the_chosen_theme_holds_on_the_next_page(opened):
    page = opened("index.html")
    page.locator("#theme").click()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.locator(".cards a").first.click()
    page.wait_for_url(f"**/{FIRST}")
    assert page.locator("html").get_attribute("data-theme") == "dark"


def test_the_keyboard_reaches_everything_and_the_focus_is_seen(opened):
    page = opened(FIRST)
    page.keyboard.press("Tab")
    skip = page.locator(".skip")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    stops = []
    for _ in range(5):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert stops[:4] == ["brand", "find", "switch", "theme"]
    page.evaluate("document.getElementById('00-16').scrollIntoView()")
    before = page.evaluate("scrollY")
    page.locator("#find").focus()  # the bar is in view: the page stays where it is
    page.wait_for_timeout(100)
    assert page.evaluate("scrollY") == before > 0
    skip.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"

    page = opened(FOURTH, 390, 800)
    menu, contents = page.locator("#menu"), page.locator("#contents")
    expect(contents).to_be_hidden()
    menu.focus()
    page.keyboard.press("Enter")
    expect(contents).to_be_visible()
    expect(menu).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Escape")
    expect(contents).to_be_hidden()
    # a table that is wider than the page scrolls by itself, also by keys
    table = page.locator(".text .scroll").first
    expect(table).to_have_attribute("tabindex", "0")
    assert table.evaluate("(e) => e.scrollWidth > e.clientWidth")


def test_lines_have_a_readable_length_and_formulas_their_font(opened):
    page = opened(FIRST)
    # the width of a paragraph in mean letters
    width = page.evaluate("""() => {
      const p = [...document.querySelectorAll("main p")].find((e) => e.textContent.length > 200);
      const ruler = document.createElement("span");
      ruler.textContent = "the gradient of a policy, seen as a text ";
      ruler.style.cssText = "display: inline-block; white-space: pre";
      p.append(ruler);
      return p.clientWidth / (ruler.getBoundingClientRect().width / ruler.textContent.length);
    }""")
    assert 60 <= width <= 80
    page.evaluate("document.fonts.ready")
    loaded = page.evaluate(
        "[...document.fonts].filter((f) => f.status === 'loaded').map((f) => f.family)"
    )
    assert {"Course Math", "Be Vietnam Pro"} <= {family.strip('"') for family in loaded}

"""A visitor of the web demo chooses, asks, reads and votes; no data goes to other hosts."""

import re
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.browser import screenshot
from utils.course import artifacts
from utils.models import saved, standins
from utils.show import demo
from utils.votes import store as preferences

ATTACK = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
QUESTION = "giảng viên <script>document.title=1</script>"
PATIENCE = 60_000  # milliseconds for a page or two answers on a busy machine


@pytest.fixture(scope="module", autouse=True)
def _vietnamese():
    """The page as the Vietnamese edition shows it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_LANG", "vi")
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return preferences.open_store(f"sqlite:///{tmp_path_factory.mktemp('votes') / 'v.sqlite'}")


@pytest.fixture(scope="module")
def address(texts, store, tmp_path_factory):
    """The address of the demo with two tiny GPT-2 models, served by this process."""
    shelf = artifacts.Shelf(tmp_path_factory.mktemp("shelf") / "lab")
    with artifacts.publish("02_gpt2_ppo_negative_feedback", shelf, metrics={}) as folder:
        for seed, name in enumerate(("reference", "policy")):
            source = standins.gpt2(texts, vocabulary=400, seed=seed)
            AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder / name)
            AutoTokenizer.from_pretrained(source).save_pretrained(folder / name)
    page = demo.build(shelf, store)
    yield demo.launch(page)
    page.close(verbose=False)


@pytest.fixture
def visit(browser_page, address):
    """The open page; requests to other hosts are recorded and blocked."""
    abroad, errors = [], []
    expect.set_options(timeout=PATIENCE)

    def watch(route):
        if urlsplit(route.request.url).hostname == "127.0.0.1":
            route.continue_()
        else:
            abroad.append(route.request.url)
            route.abort()

    browser_page.route("**/*", watch)
    browser_page.on("pageerror", lambda error: errors.append(str(error)))
    browser_page.goto(address)
    expect(browser_page.locator("#prompt textarea")).to_be_visible()
    yield browser_page
    expect.set_options(timeout=None)
    assert (abroad, errors) == ([], [])


def choose(page, label, model):
    """Choose a model and return the options of the list."""
    page.get_by_label(label).click()
    options = page.get_by_role("option")
    expect(options.first).to_be_visible()
    offered = [option.get_attribute("aria-label") for option in options.all()]
    page.get_by_role("option", name=model).click()
    expect(page.get_by_label(label)).to_have_value(model)
    expect(options).to_have_count(0)  # wait until the list has closed
    return offered


def ask(page, question):
    page.locator("#prompt textarea").fill(question)
    page.get_by_role("button", name="Gửi").click()


def test_choose_ask_read_vote(visit, store, monkeypatch):
    plain = saved.Loaded.text
    monkeypatch.setattr(saved.Loaded, "text", lambda *seen: f"{ATTACK} {plain(*seen)}")
    expect(visit.locator(".missing")).to_contain_text("chạy notebook 04 trước")
    offered = choose(visit, "Mô hình 1", "GPT-2 nhận xét · PPO")
    assert offered == ["GPT-2 nhận xét · gốc", "GPT-2 nhận xét · PPO"]
    choose(visit, "Mô hình 2", "GPT-2 nhận xét · gốc")
    visit.get_by_label("Tên của bạn").fill("Lan <b>đậm</b>")
    expect(visit.locator("#vote-a")).to_be_disabled()

    ask(visit, QUESTION)
    expect(visit.locator("#status")).to_contain_text("Câu nào hay hơn?")
    shown = [visit.locator(f"#answer-{side} textarea").input_value() for side in "ab"]
    assert all(text.startswith(ATTACK) and len(text) > len(ATTACK) for text in shown)
    assert "ẩn" in visit.locator("#note-a").inner_text()
    assert not any("PPO" in visit.locator(f"#note-{side}").inner_text() for side in "ab")
    screenshot(visit, "demo-before-the-vote")

    visit.locator("#vote-b").click()
    expect(visit.locator("#status")).to_contain_text("Đã lưu phiếu bầu")
    (vote,) = store.votes(campaign="demo", status="waiting")
    assert (vote.question, vote.choice, vote.source) == (QUESTION, "b", "demo")
    assert vote.annotator == "Lan <b>đậm</b>"
    assert [vote.answer_a, vote.answer_b] == [preferences.storable(text) for text in shown]
    names = {"gpt2-base": "GPT-2 nhận xét · gốc", "gpt2-ppo": "GPT-2 nhận xét · PPO"}
    for side, model in (("a", vote.model_a), ("b", vote.model_b)):
        expect(visit.locator(f"#note-{side}")).to_contain_text(names[model])
        note = visit.locator(f"#note-{side}").inner_text()
        assert len(re.findall(r"PPO: [+-]\d+\.\d\d nat", note)) == 1  # one judge, both answers
    for choice in demo.CHOICES:
        expect(visit.locator(f"#vote-{choice}")).to_be_disabled()
    assert visit.title() == "So sánh hai mô hình"
    assert visit.locator("img[src=x]").count() == 0
    assert visit.evaluate("document.documentElement.scrollWidth") <= 1280
    assert visit.evaluate("document.documentElement.scrollHeight") <= 800  # no scrolling
    screenshot(visit, "demo-after-the-vote")


def test_a_prompt_that_is_empty_or_endless_gets_a_sentence(visit):
    ask(visit, "   ")
    expect(visit.locator("#status")).to_contain_text("Hãy nhập một câu hỏi.")
    ask(visit, "rất dài " * 300)
    expect(visit.locator("#status")).to_contain_text("Câu hỏi quá dài")
    expect(visit.locator("#vote-a")).to_be_disabled()
    screenshot(visit, "demo-too-long")
    ask(visit, "phòng học")
    expect(visit.locator("#vote-a")).to_be_enabled()


def test_it_can_be_used_by_keyboard_on_a_narrow_dark_screen(visit):
    visit.emulate_media(color_scheme="dark")
    visit.set_viewport_size({"width": 420, "height": 900})
    visit.reload()
    visit.locator("#prompt textarea").fill("thầy dạy")
    visit.keyboard.press("Enter")
    expect(visit.locator("#vote-tie")).to_be_enabled()
    visit.locator("#vote-tie").focus()
    visit.keyboard.press("Enter")
    expect(visit.locator("#status")).to_contain_text("Đã lưu phiếu bầu")
    assert visit.evaluate("document.documentElement.scrollWidth") <= 420
    screenshot(visit, "demo-narrow-dark")


def test_another_machine_logs_in_with_the_password_first(browser_page, store, tmp_path):
    page = demo.build(artifacts.Shelf(tmp_path / "lab"), store)
    expect.set_options(timeout=PATIENCE)
    try:
        demo.launch(page, host="0.0.0.0", auth=("demo", "mật khẩu"))
        browser_page.goto(f"http://127.0.0.1:{page.server_port}/")
        expect(browser_page.locator("input[type=password]")).to_be_visible()
        assert browser_page.locator("#prompt").count() == 0
        browser_page.locator("input:not([type=password])").first.fill("demo")
        browser_page.locator("input[type=password]").fill("mật khẩu")
        browser_page.get_by_role("button", name="Login").click()
        expect(browser_page.locator("#prompt textarea")).to_be_visible()
    finally:
        expect.set_options(timeout=None)
        page.close(verbose=False)

"""A class in a real browser: a telephone, the projector and the teacher, in both languages."""

import random
import threading
import time
from urllib.parse import urlsplit

import pytest
import uvicorn
from playwright.sync_api import expect

from tests.browser import screenshot
from tests.helpers import classes
from utils.classroom.app import build
from utils.classroom.security import Buckets
from utils.data import load_preferences
from utils.votes.pairs import item_of
from utils.votes.store import open_store

PATIENCE = 30_000  # milliseconds on a busy machine
PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True}
PROJECTOR = {"viewport": {"width": 1280, "height": 800}}
ATTACK = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
ANSWER = "Lá cây có màu xanh vì chất diệp lục hấp thụ ánh sáng đỏ và xanh lam."
DOUBLE_TAP = """async () => {
    const button = document.querySelector('[data-choice=a]');
    const count = document.getElementById('count'), before = count.textContent;
    button.click();
    while (count.textContent === before) await new Promise((done) => setTimeout(done, 5));
    button.click();  // the next pair is on the screen, and nobody has read it
}"""


def some_pairs():
    """Twelve pairs of the shipped data, and one hostile pair."""
    rows = load_preferences(quiet=True)["test"].select(range(12)).to_list()
    rows.append({"question": f"Vì sao {ATTACK}?", "chosen": ATTACK, "rejected": "dài" * 200})
    return [
        {"question": row["question"], "first": row["chosen"], "second": row["rejected"]}
        | {"model_first": "chosen", "model_second": "rejected"}
        for row in rows
    ]


def two_models(prompt, seed):
    words = ANSWER.split()
    for count in range(1, len(words) + 1):
        time.sleep(0.02)
        yield " ".join(words[:count]), " ".join(words[count // 2 :: -1])


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.setattr(classes, "pairs", lambda count: some_pairs())
    store = open_store(f"sqlite:///{tmp_path}/votes.sqlite")
    desk = classes.desk(store, tmp_path, write=two_models, then="time.sleep(2)")
    desk.comparisons.seconds = 60
    return desk


@pytest.fixture
def address(desk):
    """The address of the class, served by this process."""
    config = uvicorn.Config(
        build(desk, Buckets(1e6, 1e6)), port=0, log_level="warning", access_log=False, ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def visitors(browser):
    """Makes visitors with cookies of their own; none may ask another host or make an error."""
    contexts, abroad, errors = [], [], []

    def visitor(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "request",
            lambda r: (
                None if urlsplit(r.url).hostname in ("127.0.0.1", None) else abroad.append(r.url)
            ),
        )
        page.on(
            "console", lambda m: errors.append(m.text) if "Content Security" in m.text else None
        )
        return page

    expect.set_options(timeout=PATIENCE)
    yield visitor
    expect.set_options(timeout=None)
    for context in contexts:
        context.close()
    assert (abroad, errors) == ([], [])


def others_vote(desk, count=27):
    """The rest of the class: most prefer the first answer, some items divide them."""
    room = desk.room
    for number in range(count):
        chance = random.Random(number)
        voter, name = room.join(f"Học sinh {number + 1}")
        for place, pair in enumerate(room.pairs):
            if chance.random() < 0.1:
                continue
            right = chance.random() < (0.55 if place % 4 == 2 else 0.9)
            swapped = room.screen(name, pair).swapped
            choice = "tie" if chance.random() < 0.08 else "ab"[right == swapped]
            room.vote(voter, item_of(pair), choice, f"click {number} {place}")


def on_screen(page, name):
    """A picture of what the telephone shows at once."""
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=screenshot(page, name))


def no_wider(page, width):
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_class_votes_and_sees_what_its_votes_changed(desk, address, visitors):
    # a telephone: the code comes with the QR code's address
    phone = visitors(**PHONE)
    phone.goto(f"{address}/#{desk.room.code}")
    expect(phone.locator("#code")).to_have_value(desk.room.code)
    on_screen(phone, "class-phone-join-vi")
    phone.get_by_role("button", name="English").click()
    on_screen(phone, "class-phone-join-en")
    phone.get_by_role("button", name="Tiếng Việt").click()
    phone.locator("#code").fill("ZZZZZZ")
    phone.get_by_label("Tên của bạn").fill("Lê An")
    phone.locator("#join").get_by_role("button").click()
    expect(phone.locator("#message")).to_contain_text("Mã không đúng")
    phone.locator("#code").fill(desk.room.code.lower())
    phone.locator("#join").get_by_role("button").click()
    expect(phone.locator("#question")).to_be_visible()
    expect(phone.locator("#count")).to_have_text("0 / 13")
    no_wider(phone, 360)
    on_screen(phone, "class-phone-vote-vi")

    # taps, keys, and a double tap
    phone.wait_for_timeout(400)
    phone.get_by_role("button", name="A tốt hơn").tap()
    expect(phone.locator("#count")).to_have_text("1 / 13")
    assert phone.evaluate("document.activeElement.id") == "question"
    phone.wait_for_timeout(400)
    phone.evaluate(DOUBLE_TAP)
    phone.wait_for_timeout(500)
    expect(phone.locator("#count")).to_have_text("2 / 13")
    for key, count in (("b", 3), ("t", 4), ("s", 5)):
        phone.wait_for_timeout(400)
        phone.keyboard.press(key)
        expect(phone.locator("#count")).to_have_text(f"{count} / 13")
    phone.keyboard.press("ArrowLeft")
    expect(phone.get_by_role("button", name="Bỏ qua")).to_have_attribute("aria-pressed", "true")
    phone.wait_for_timeout(400)
    phone.get_by_role("button", name="Ngang nhau").tap()  # a changed vote
    expect(phone.get_by_role("button", name="Ngang nhau")).to_have_attribute("aria-pressed", "true")
    phone.get_by_role("button", name="English").click()
    on_screen(phone, "class-phone-changed-en")
    choices = [vote.choice for vote in desk.room.votes()]
    assert choices == ["a", "a", "b", "tie", "tie"]

    # the hostile pair is text
    hostile = next(
        n for n, row in enumerate(desk.room.queue("Lê An")) if "<script>" in row["question"]
    )
    for _ in range(13):
        phone.keyboard.press("ArrowLeft")
    for _ in range(hostile):
        phone.keyboard.press("ArrowRight")
    expect(phone.locator("#question")).to_contain_text(ATTACK)
    assert phone.locator("img").count() == 0 and phone.title() == "Bình chọn · Vote"
    no_wider(phone, 360)

    # two models on a prompt
    phone.get_by_role("button", name="Ask two models").click()
    phone.locator("#prompt").fill("Vì sao lá cây có màu xanh?")
    phone.locator("#send").click()
    expect(phone.locator("#message")).to_contain_text("Which answer is better?")
    on_screen(phone, "class-phone-prompt-en")
    phone.get_by_role("button", name="B is better").tap()
    expect(phone.locator("#message")).to_contain_text("wrote answer B")

    # the teacher
    others_vote(desk)
    teacher = visitors(**PROJECTOR)
    secret = desk.room.new_secret()
    teacher.goto(f"{address}/teacher#{secret}")
    expect(teacher.locator("#voters tr")).to_have_count(29)
    assert secret not in teacher.url
    screenshot(teacher, "class-teacher-vi")
    expect(teacher.locator("#train")).to_be_disabled()
    teacher.get_by_role("button", name="English").click()
    teacher.get_by_role("button", name="Refuse: Học sinh 3", exact=True).click()
    teacher.get_by_role("button", name="Accept all waiting votes").click()
    expect(teacher.locator("#accept-all")).to_be_disabled()
    screenshot(teacher, "class-teacher-en")

    # the projector hides the choices until the teacher shows them
    projector = teacher.context.new_page()
    projector.goto(f"{address}/projector?lang=vi")
    expect(projector.locator("#items li")).to_have_count(13)
    expect(projector.locator("#code")).to_have_text(desk.room.code)
    expect(projector.locator("#talk")).to_be_hidden()
    projector.wait_for_function("document.getElementById('qr').naturalWidth > 0")
    projector.set_viewport_size(PROJECTOR["viewport"])
    screenshot(projector, "class-projector-vi")
    projector.get_by_role("button", name="Hiện lựa chọn").click()
    expect(projector.locator("#talk article").first).to_be_visible()
    screenshot(projector, "class-projector-choices-vi")
    projector.get_by_role("button", name="English").click()
    no_wider(projector, 1280)
    screenshot(projector, "class-projector-choices-en")

    # the training, with progress, and before and after
    teacher.get_by_role("button", name="Run DPO on the accepted votes").click()
    expect(teacher.locator("#training")).to_contain_text("Training: step 3 of 3")
    expect(teacher.locator("#stop")).to_be_enabled()
    screenshot(teacher, "class-teacher-training-en")
    expect(projector.locator("#training")).to_contain_text("Do tán xạ.")
    assert projector.locator("#training b").count() == 0
    screenshot(projector, "class-projector-after-en")

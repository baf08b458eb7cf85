"""The labelling panel in a real JupyterLab, used with a mouse and with a keyboard."""

import json
import os

import nbformat
import pytest
from playwright.sync_api import expect

from tests.browser import jupyterlab, run_cells, screenshot
from utils.course.paths import ROOT
from utils.votes.pairs import item_of
from utils.votes.panel import DOUBLE_CLICK
from utils.votes.store import open_store

ATTACK = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\">"
ATTACK += " $x$ và $$y$$"
PAIRS = [
    {
        "question": "Vì sao bầu trời ban ngày có màu xanh?",
        "first": "Vì không khí tán xạ ánh sáng xanh mạnh hơn ánh sáng đỏ: bước sóng càng ngắn thì "
        "tán xạ càng nhiều. Ánh sáng xanh vì thế đến mắt ta từ mọi phía của bầu trời.",
        "second": f"Vì bầu trời phản chiếu màu của biển. {ATTACK}",
    },
    {
        "question": "Tại sao lá cây thường có màu xanh lục?",
        "first": "Lá có chất diệp lục. Chất này hấp thụ ánh sáng đỏ và xanh lam, phản xạ ánh sáng "
        "lục.\n\nMùa thu, diệp lục phân huỷ nên lá lộ ra màu vàng, màu cam.",
        "second": "Do cây hút nước màu xanh từ trong đất.",
    },
    {
        "question": "Vì sao nước đá nổi trên mặt nước?",
        "first": "Nước đóng băng thì nở ra, nên khối lượng riêng của đá nhỏ hơn của nước.",
        "second": "Vì đá lạnh hơn nước.",
    },
]
CELLS = (
    """import json
from utils.course.paths import ROOT
from utils.votes.store import open_store
from utils.votes.panel import LabelPanel, side_by_side
pairs = json.load(open("pairs.json"))""",
    "LabelPanel(pairs, open_store(), seed=4, repeat_share=0)",
    """rows = [{"price": "5 $ hay 6 $, $5 hay $6?", "before": pair["second"]} for pair in pairs]
side_by_side(rows)""",
)


@pytest.fixture
def lab(tmp_path):
    """The address of a notebook in a new JupyterLab, which ends after the test."""
    home = tmp_path / "home"
    home.mkdir()
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, home / "panel.ipynb")
    (home / "pairs.json").write_text(json.dumps(PAIRS), encoding="utf-8")
    votes = f"sqlite:///{tmp_path}/votes.sqlite"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COURSE_VOTES": votes}
    environment["COURSE_LANG"] = "vi"
    with jupyterlab(home, "panel.ipynb", environment) as address:
        yield address


def test_a_class_votes_in_jupyterlab(lab, browser_page, tmp_path):
    page, unread = browser_page, 1000 * DOUBLE_CLICK + 50  # milliseconds
    store = open_store(f"sqlite:///{tmp_path}/votes.sqlite")
    page.goto(lab)
    page.wait_for_selector(".jp-Notebook .jp-Cell >> nth=1")
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')  # the kernel runs
    run_cells(page, "Run All Cells")
    panel = page.locator(".course-panel")
    panel.wait_for(timeout=120_000)
    question, answers = panel.locator(".course-question"), panel.locator(".course-answer div")
    buttons = panel.locator("button.course-button")

    # without a name no vote is possible
    expect(question).to_contain_text("Ghi tên")
    expect(buttons.first).to_be_disabled()
    panel.get_by_placeholder("tên của bạn").fill("Lan")
    panel.get_by_placeholder("tên của bạn").press("Enter")
    expect(question).to_have_text(PAIRS[0]["question"])
    screenshot(page, "panel-first-pair")

    # a model's text is shown and not interpreted
    both = answers.all_inner_texts()
    assert sorted(both) == sorted([PAIRS[0]["first"], PAIRS[0]["second"]])
    assert panel.locator("script, img, mjx-container").count() == 0
    assert page.title() != "broken"

    table = page.locator(".jp-RenderedHTML table")
    expect(table.locator("tbody tr")).to_have_count(len(PAIRS))
    expect(table).to_contain_text(ATTACK)
    assert table.locator("script, img, mjx-container").count() == 0  # neither HTML nor formulas
    expect(table.locator("td").first).to_have_text("5 $ hay 6 $, $5 hay $6?")

    # one click stores one row
    buttons.filter(has_text="A tốt hơn").click()
    expect(question).to_have_text(PAIRS[1]["question"])
    (vote,) = store.votes()
    assert (vote.item, vote.choice) == (item_of(PAIRS[0]), "a")
    assert (vote.annotator, vote.source) == ("Lan", "panel")
    assert [vote.answer_a, vote.answer_b] == both
    screenshot(page, "panel-second-pair")

    # a letter and Enter store one row too, and the letter does not trigger a notebook shortcut
    command = panel.get_by_placeholder("a / b / t / s / u")
    command.click()
    page.keyboard.type("b")
    page.keyboard.press("Enter")
    expect(question).to_have_text(PAIRS[2]["question"])
    expect(command).to_have_value("")
    expect(command).to_be_focused()
    page.keyboard.type("u")
    page.keyboard.press("Enter")
    expect(question).to_have_text(PAIRS[1]["question"])
    assert [(v.item, v.choice) for v in store.votes()] == [(item_of(PAIRS[0]), "a")]
    page.keyboard.type("x")
    page.keyboard.press("Enter")
    expect(panel.locator(".course-note")).to_contain_text("không phải là lệnh")
    assert page.locator(".jp-Notebook .jp-Cell").count() == len(CELLS)

    # Tab moves through the buttons in order, Space presses a button
    buttons.first.focus()
    labels = []
    for _ in range(5):
        labels.append(page.evaluate("document.activeElement.innerText").strip())
        page.keyboard.press("Tab")
    assert labels == ["A tốt hơn", "B tốt hơn", "Ngang nhau", "Bỏ qua", "Hoàn tác"]
    page.wait_for_timeout(unread)
    buttons.filter(has_text="Ngang nhau").focus()
    screenshot(page, "panel-keyboard-focus")
    page.keyboard.press("Space")
    expect(question).to_have_text(PAIRS[2]["question"])
    page.wait_for_timeout(unread)
    buttons.filter(has_text="Hoàn tác").click()
    expect(question).to_have_text(PAIRS[1]["question"])

    # a double click stores one vote, and no second vote for the next, unread pair
    page.wait_for_timeout(unread)
    buttons.filter(has_text="Ngang nhau").dblclick()
    page.wait_for_timeout(unread)
    expect(question).to_have_text(PAIRS[2]["question"])
    buttons.filter(has_text="Bỏ qua").click()
    expect(question).to_contain_text("Đã chấm xong")
    expect(buttons.filter(has_text="A tốt hơn")).to_be_disabled()
    assert [v.choice for v in store.votes("Lan")] == ["a", "tie", "skip"]

    panel.locator("text=Tiêu chí chấm").click()
    expect(panel.locator(".course-rubric li")).to_have_count(5)
    screenshot(page, "panel-done-with-rubric")

    # another person starts at the first pair; the first person, in a new kernel, where she stopped
    panel.get_by_placeholder("tên của bạn").fill("Minh")
    panel.get_by_placeholder("tên của bạn").press("Enter")
    expect(question).to_have_text(PAIRS[0]["question"])
    panel.get_by_placeholder("tên của bạn").fill("Lan")
    panel.get_by_placeholder("tên của bạn").press("Enter")
    expect(question).to_contain_text("Đã chấm xong")
    page.wait_for_timeout(unread)
    buttons.filter(has_text="Hoàn tác").click()
    expect(question).to_have_text(PAIRS[2]["question"])
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Restart Kernel and Run All Cells…", exact=True).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    expect(question).to_contain_text("Ghi tên", timeout=60_000)
    panel.get_by_placeholder("tên của bạn").fill("Lan")
    panel.get_by_placeholder("tên của bạn").press("Enter")
    expect(question).to_have_text(PAIRS[2]["question"])
    expect(panel.locator(".course-count")).to_have_text("2 / 3")
    assert [v.choice for v in store.votes()] == ["a", "tie"]

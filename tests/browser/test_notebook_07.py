"""A person votes in notebook 07 in a real JupyterLab, and the notebook trains on these votes.

As on a T4, but on a CPU and with the small models and data of the loopback Hub.
"""

import json
import os
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Page, Response, expect

from tests.browser import jupyterlab, run_cells, screenshot
from tests.helpers import tiny_lessons
from tests.hub.conftest import hub_with_matching_vocabularies, surroundings
from utils.course.notebooks import path_of
from utils.course.paths import ROOT
from utils.course.session import SEED
from utils.votes.pairs import Shown, queue, read_pairs
from utils.votes.panel import DOUBLE_CLICK
from utils.votes.store import open_store, read_votes

NAME = "07_collect_preferences"
ROWS = 60  # per split on the Hub
VOTES = 16  # two DPO steps per epoch
PATIENCE = 240_000  # milliseconds for half of the notebook on a busy machine


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with hub_with_matching_vocabularies(tmp_path_factory.mktemp("shelves"), ROWS) as running:
        yield running


@pytest.fixture
def machine(hub, tmp_path) -> dict[str, str]:
    """The environment of a new machine on which An will vote."""
    return surroundings(
        hub,
        tmp_path / "home",
        COURSE_PROFILE="t4",
        COURSE_ALLOW_CPU="1",
        COURSE_ARTIFACTS=str(tmp_path / "artifacts"),
        COURSE_VOTES=f"sqlite:///{tmp_path}/votes.sqlite",
        OMP_NUM_THREADS="1",  # enough for one small layer, and fast while other programs run
        HF_HUB_OFFLINE="0",
        HF_TOKEN="",
        PYTHONPATH=os.pathsep.join([tiny_lessons.FOLDER, str(ROOT)]),
    )


@pytest.fixture
def notebook(tmp_path) -> Path:
    """A copy of the notebook without outputs, because JupyterLab saves what it runs."""
    course = tmp_path / "course"
    (course / "notebooks").mkdir(parents=True)
    for name in ("benchmarks", "configs", "data", "utils"):
        (course / name).symlink_to(ROOT / name)
    content = nbformat.read(path_of(NAME), as_version=4)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(content, course / "notebooks" / f"{NAME}.ipynb")
    return course / "notebooks" / f"{NAME}.ipynb"


@pytest.fixture
def lab(notebook, machine):
    """The address of the copy in a new JupyterLab."""
    course = notebook.parent.parent
    with jupyterlab(course, f"{notebook.parent.name}/{notebook.name}", machine) as address:
        yield address


def run(page: Page, item: str, notebook: Path) -> nbformat.NotebookNode:
    """Run cells through the menu, check that none fails, and return the saved notebook."""
    waiting = run_cells(page, item)
    expect(waiting).to_have_count(0, timeout=PATIENCE)
    with page.expect_response(is_saved):
        page.keyboard.press("Control+s")
    content = nbformat.read(notebook, as_version=4)
    assert [out.traceback for out in outputs(content) if out.output_type == "error"] == []
    return content


def is_saved(answer: Response) -> bool:
    return answer.request.method == "PUT" and "/api/contents/" in answer.url


def outputs(content: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in content.cells for output in cell.get("outputs", [])]


def vote_for_the_shorter(page: Page, shown: Shown, by_keyboard: bool) -> str:
    """Read both answers on the screen, vote for the shorter one, and return its side."""
    panel = page.locator(".course-panel")
    expect(panel.locator(".course-question")).to_have_text(shown.question)
    answers = panel.locator(".course-answer div")
    expect(answers).to_have_text([shown.answer_a, shown.answer_b])
    a, b = (len(text) for text in answers.all_inner_texts())
    choice = "a" if a < b else "b"
    if by_keyboard:
        panel.get_by_placeholder("a / b / t / s / u").click()
        page.keyboard.type(choice)
        page.keyboard.press("Enter")
    else:
        page.wait_for_timeout(1000 * DOUBLE_CLICK + 50)
        panel.get_by_role("button", name=f"{choice.upper()} is better").click()
    return choice


def test_the_votes_of_a_person_become_an_adapter(browser_page, lab, notebook, machine):
    page, artifacts = browser_page, Path(machine["COURSE_ARTIFACTS"], "t4")
    page.goto(lab)
    after_the_panel = page.locator(".jp-CodeCell", has_text="def votes_of_people")
    after_the_panel.locator(".jp-InputPrompt").click()
    run(page, "Run All Above Selected Cell", notebook)

    name = page.locator(".course-panel").get_by_placeholder("your name")
    name.fill("An")
    name.press("Enter")
    store = open_store(machine["COURSE_VOTES"])
    (campaign,) = store.campaigns()
    screens = queue(store.pairs(campaign.name), SEED)
    choices = []
    for number, shown in enumerate(screens[:VOTES]):
        choices.append(vote_for_the_shorter(page, shown, by_keyboard=number % 2 == 0))
    panel = page.locator(".course-panel")
    expect(panel.locator(".course-count")).to_have_text(f"{VOTES} / {len(screens)}")
    panel.evaluate("panel => panel.scrollIntoView()")
    expect(panel.locator(".course-agreement")).to_contain_text(f"votes {VOTES}, annotators 1")
    screenshot(page, "notebook-07-vote")

    votes = store.votes(campaign=campaign.name)
    assert len(votes) == len(store.votes(status=None))
    assert {(vote.annotator, vote.source) for vote in votes} == {("An", "panel")}
    assert [vote.choice for vote in votes] == choices
    for vote, shown in zip(votes, screens, strict=False):
        assert vars(shown).items() <= vars(vote).items()

    after_the_panel.locator(".jp-InputPrompt").click()
    content = run(page, "Run Selected Cell and All Below", notebook)
    assert all(cell.execution_count for cell in content.cells if cell.cell_type == "code")
    printed = "".join(out.text for out in outputs(content) if out.output_type == "stream")
    assert f"{VOTES} votes of people\n" in printed
    screenshot(page, "notebook-07-handed-over")

    metrics = json.loads((artifacts / NAME / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["people"], metrics["votes"], metrics["pairs"]) == (1, VOTES, VOTES)
    assert read_votes(artifacts / NAME / "votes.jsonl") == votes
    assert read_pairs(artifacts / NAME / "pairs.json")[0] == campaign.name

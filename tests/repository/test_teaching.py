"""The guide for teachers, in both languages: the same parts, and nothing that the course lacks."""

import json
import re
from pathlib import Path

import pytest

from tools import vietnamese
from tools.messages import of_source
from tools.translate import NAMES
from utils.course.language import CATALOGUE, entries
from utils.course.notebooks import LESSONS, path_of
from utils.course.paths import ROOT
from utils.exercises.checks import names_of

GUIDES = {"en": ROOT / "docs" / "teaching.md", "vi": ROOT / "docs" / "teaching.vi.md"}
# where the notebooks of a guide's language lie, and their README
EDITIONS = {
    "en": ("../notebooks", "../README.md"),
    "vi": ("../notebooks/vi", "../README.vi.md"),
}
TEXTS = {language: path.read_text(encoding="utf-8") for language, path in GUIDES.items()}
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXERCISE = re.compile(r"\b0\d\.\d{1,2}\b")
PLACE = re.compile(r"§(\d+(?:\.\d+)?)")
MISTAKE = re.compile(r"(?m)^\| (\d\d\.\d+) \| .+ \| `(.+)` \|$")
MINUTES = re.compile(r"(?m)^\| (\d+) \| ")


def sections(language: str) -> dict[str, str]:
    """The parts of a guide by the number of their notebook, and the others by their position."""
    parts = re.split(r"(?m)^## ", TEXTS[language])
    return {
        part[:2] if part[:2] in LESSONS else str(place): part for place, part in enumerate(parts)
    }


def anchors(path: Path) -> set[str]:
    """What a link to a heading of this file may be called, as on GitHub."""
    titles = re.findall(r"(?m)^#+ (.*)$", path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_both_languages_have_the_same_parts():
    english, translated = sections("en"), sections("vi")
    assert list(english) == list(translated)
    assert set(LESSONS) < set(english)
    for name, part in english.items():
        other = translated[name]
        assert re.findall(r"(?m)^#+", part) == re.findall(r"(?m)^#+", other), name
        assert len(re.findall(r"(?m)^[|-]", part)) == len(re.findall(r"(?m)^[|-]", other)), name
        for pattern in (PLACE, EXERCISE, MINUTES):
            assert sorted(pattern.findall(part)) == sorted(pattern.findall(other)), name


@pytest.mark.parametrize("language", GUIDES)
def test_links_lead_somewhere(language):
    for link in LINK.findall(TEXTS[language]):
        target, _, anchor = link.partition("#")
        path = (GUIDES[language].parent / target).resolve()
        assert path.is_relative_to(ROOT) and path.exists(), link
        assert not anchor or anchor in anchors(path), link
    folder, readme = EDITIONS[language]
    for lesson in LESSONS:
        assert f"]({folder}/{path_of(lesson).name})" in sections(language)[lesson]
    assert {link.split("#")[0] for link in LINK.findall(TEXTS[language]) if "#" in link} == {readme}


@pytest.mark.parametrize("language", GUIDES)
@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_names_exercises_and_sections_that_exist(language, lesson):
    part = sections(language)[lesson]
    known = {name for number in LESSONS for name in names_of(number)}
    assert set(EXERCISE.findall(part)) <= known
    notebook = json.loads(path_of(lesson).read_text(encoding="utf-8"))
    text = "\n".join("".join(c["source"]) for c in notebook["cells"])
    numbered = set(re.findall(r"(?m)^##+ (\d+(?:\.\d+)?)\.? ", text))
    assert set(PLACE.findall(part)) <= numbered
    assert sum(map(int, MINUTES.findall(part))) == 90


@pytest.mark.parametrize("language", GUIDES)
def test_a_mistake_has_the_message_of_its_check(language):
    found = MISTAKE.findall(TEXTS[language])
    assert {name[:2] for name, _ in found} == set(LESSONS)
    translations = dict(entries(CATALOGUE.read_text(encoding="utf-8")))
    checks = ROOT / "utils" / "exercises" / "checks.py"
    of_every_check = {text for text, *_ in of_source(checks.read_text(encoding="utf-8"))}
    for name, message in found:
        module = ROOT / "utils" / "exercises" / f"notebook_{name[:2]}.py"
        known = {text for text, *_ in of_source(judges_of(module), judges=True)} | of_every_check
        shown = known if language == "en" else known | {translations.get(text) for text in known}
        assert message in shown, name


def judges_of(module: Path) -> str:
    """The source of judges; f-strings, which are not messages yet, are left out."""
    return re.sub(r"\bf(?=\")", "", module.read_text(encoding="utf-8"))


def test_the_vietnamese_guide_has_no_fault_of_spelling_or_typography():
    for number, line in enumerate(TEXTS["vi"].splitlines(), 1):
        plain = re.sub(r"§\d+\.\d+|Linux 5\.13", "0", NAMES.sub("0", line))
        assert list(vietnamese.faults(plain, f"line {number}")) == []
    assert GUIDES["vi"] in vietnamese.shipped()

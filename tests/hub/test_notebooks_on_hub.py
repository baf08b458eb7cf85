"""Every notebook in the t4 profile, on a CPU, against the loopback Hub.

Identifiers, revisions and loading code are those of the real profile; only what the Hub serves is
small: models of one layer and a few hundred rows a split.
"""

import json
from pathlib import Path

import pytest

from tests.hub import shelves
from tests.hub.conftest import hub_of_its_own_words, surroundings
from utils import models, notebooks

NAMES = [path.stem for path in sorted(notebooks.FOLDER.glob("[0-9][0-9]_*.ipynb"))]
ROWS = 120  # a split
FEEDBACK, PAIRS = "uitnlp/vietnamese_students_feedback", "thainq107/Vi-Alpaca-Preference"
LLAMA = shelves.GATED[shelves.CHAT.llama]  # there is no token here, so the copy serves
NEEDS = {  # what a notebook must have taken from the Hub
    "01": {"vinai/phobert-base", FEEDBACK},
    "02": {"NlpHUST/gpt2-vietnamese"},
    "03": {LLAMA, PAIRS},
    "06": {"bkai-foundation-models/vietnamese-bi-encoder"},
    "07": {shelves.GATED[shelves.CHAT.labelled]},
    "08": {"google-t5/t5-small", "openai-community/gpt2", "HumanLLMs/Human-Like-DPO-Dataset"},
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with hub_of_its_own_words(tmp_path_factory.mktemp("shelves"), ROWS) as running:
        yield running


@pytest.fixture(scope="module")
def machine(hub, tmp_path_factory) -> dict[str, str]:
    """The environment of one fresh machine on which all notebooks run, one after another."""
    place = tmp_path_factory.mktemp("machine")
    return surroundings(
        hub,
        place / "home",
        COURSE_PROFILE="t4",
        COURSE_ALLOW_CPU="1",
        COURSE_ARTIFACTS=str(place / "artifacts"),
        HF_HUB_OFFLINE="0",
        HF_TOKEN="",
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_on_the_hub(name, hub, machine):
    hub.forget()
    run = notebooks.execute(name, environment=machine, timeout=900)
    assert run.error is None
    for repository in NEEDS.get(name[:2], ()):
        cache = Path(machine["HF_HOME"], "hub")
        assert list(cache.glob(f"*--{repository.replace('/', '--')}/.verified/*.json")), repository
    place = Path(machine["COURSE_ARTIFACTS"], "t4", name, "metrics.json")
    metrics = json.loads(place.read_text(encoding="utf-8"))
    assert metrics["profile"] == "t4"
    print(f"{name}: {run.seconds:.0f} s, {run.peak_mb:.0f} MB")


@pytest.mark.parametrize("name", [name for name in NAMES if name[:2] in ("03", "04", "05")])
def test_a_notebook_runs_with_qwen(name, machine):
    """The same cells; an adapter of the Llama is not taken for one of the Qwen."""
    run = notebooks.execute(name, environment={**machine, models.CHAT_WISH: "qwen"}, timeout=900)
    assert run.error is None
    folder = Path(machine["COURSE_ARTIFACTS"], "t4", name)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["inputs"]["model"] == shelves.CHAT.qwen


def test_a_notebook_runs_again_without_a_network(machine, tmp_path):
    gone = {**machine, "HF_ENDPOINT": "http://127.0.0.1:9", "COURSE_ARTIFACTS": str(tmp_path)}
    assert notebooks.execute("01", environment=gone, timeout=600).error is None


def test_a_notebook_without_network_and_cache_stops_with_one_sentence(machine, tmp_path):
    gone = {**machine, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    run = notebooks.execute("01", environment=gone, timeout=600)
    assert run.error.startswith(f"UnreachableError: The Hub did not deliver {FEEDBACK} (Connect")
    assert "check the connection and run this cell again" in run.error

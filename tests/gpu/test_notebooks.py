"""Every notebook on an emulated T4 and on an emulated A100, against the loopback Hub.

Identifiers, revisions, dtypes and loading code are those of the real profiles; only what the Hub
serves is small: models of one layer and a few hundred rows per split. The T4s are Colab's: each
notebook has a machine of its own, and they share nothing but Google Drive. On the A100 all
notebooks run on one machine, one after another.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu.test_inside import HERE, emulated
from tests.hub import shelves
from tests.hub.conftest import hub_of_its_own_words, surroundings
from tests.hub.server import Hub
from utils import models
from utils.course import notebooks

NAMES = [path.stem for path in notebooks.files()]
CHAT_NAMES = [name for name in NAMES if name[:2] in ("03", "04", "05")]
ROWS = 120  # per split
FEEDBACK, PAIRS = "uitnlp/vietnamese_students_feedback", "thainq107/Vi-Alpaca-Preference"
NEEDS = {  # what a notebook must have taken from the Hub
    "01": {"vinai/phobert-base", FEEDBACK},
    "02": {"NlpHUST/gpt2-vietnamese"},
    # there is no token here, so the ungated copies serve
    "03": {shelves.CHAT.choices["llama"].copy, PAIRS},
    "06": {"bkai-foundation-models/vietnamese-bi-encoder"},
    "07": {shelves.CHAT.labelled.copy},
    "08": {"google-t5/t5-small", "openai-community/gpt2", "HumanLLMs/Human-Like-DPO-Dataset"},
}
KEPT_MB = 30  # a tiny model and its optimizer, not one per experiment


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Hub]:
    with hub_of_its_own_words(tmp_path_factory.mktemp("shelves"), ROWS) as running:
        yield running


def machine(hub: Hub, gpu: str, folder: Path, **more: str) -> dict[str, str]:
    """The environment of a fresh machine with this GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "COURSE_PROFILE": "",  # the hardware chooses
        "COURSE_ARTIFACTS": str(folder / "artifacts"),
        "EMULATED_GPU_LOG": str(folder / "cells.jsonl"),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "",
        "OMP_NUM_THREADS": "1",
        "TINY_LESSONS": "1",
    }
    return surroundings(hub, folder / "home", **emulated(gpu, **settings | more))


def finished(run: notebooks.Execution, artifacts: Path, profile: str) -> dict:
    """What a notebook that ran to its end has handed over as metrics."""
    assert run.error is None, f"{run.notebook}: {run.error}"
    metrics = json.loads((artifacts / profile / run.notebook / "metrics.json").read_text("utf-8"))
    assert metrics["profile"] == profile
    return metrics


def cells(environment: dict[str, str]) -> list[dict]:
    """What each cell took of the GPU's memory."""
    text = Path(environment["EMULATED_GPU_LOG"]).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def drive(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("drive")


@pytest.mark.xdist_group("t4")
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_on_a_t4_that_keeps_its_artifacts_on_drive(name, hub, drive, tmp_path):
    own = machine(hub, "t4", tmp_path, SIMULATED_DRIVE=str(drive))
    own["PYTHONPATH"] = os.pathsep.join([str(HERE / "colab"), own["PYTHONPATH"]])
    run = notebooks.execute(name, environment=own, form={"KEEP_ON_DRIVE": True}, timeout=900)
    kept = drive / "MyDrive" / "preference-tuning-artifacts"
    finished(run, kept, "t4")
    made_here = {path.name for path in (kept / "t4").iterdir() if path.name[0].isdigit()}
    earlier = set(NAMES[: NAMES.index(name) + 1])
    assert {made.removesuffix(".former") for made in made_here} <= earlier  # nothing made twice
    assert not (tmp_path / "artifacts").exists()
    for repository in NEEDS.get(name[:2], ()):
        cache = Path(own["HF_HOME"], "hub")
        assert list(cache.glob(f"*--{repository.replace('/', '--')}/.verified/*.json")), repository
    used = cells(own)
    if name.startswith("07"):  # its last cell loads the saved model: the trained one goes before
        assert used[-1]["kept"] < 1.5 * used[-2]["kept"]
    assert used[-1]["kept"] < KEPT_MB * 2**20, max(used, key=lambda cell: cell["kept"])
    print(f"{name}: {run.seconds:.0f} s, peak {max(c['peak'] for c in used) / 2**20:.1f} MB")


@pytest.fixture(scope="module")
def a100(hub, tmp_path_factory) -> dict[str, str]:
    return machine(hub, "a100", tmp_path_factory.mktemp("a100"), COURSE_QUICK="1")


@pytest.mark.xdist_group("a100")
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_on_an_a100_as_a_quick_lesson(name, a100):
    """Its artifacts lie in a folder of their own, apart from those of a full run."""
    run = notebooks.execute(name, environment=a100, timeout=900)
    finished(run, Path(a100["COURSE_ARTIFACTS"]), "a100-quick")
    print(f"{name}: {run.seconds:.0f} s")


@pytest.fixture(scope="module")
def t4(hub, tmp_path_factory) -> dict[str, str]:
    return machine(hub, "t4", tmp_path_factory.mktemp("t4"))


OTHERS = [("qwen", name) for name in CHAT_NAMES]
OTHERS += [("qwen3", CHAT_NAMES[0]), ("sailor", CHAT_NAMES[0])]


@pytest.mark.xdist_group("other models")
@pytest.mark.parametrize(("wish", "name"), OTHERS)
def test_a_notebook_with_another_chat_model(wish, name, t4):
    """The same cells; an adapter of one model is not taken for one of another."""
    run = notebooks.execute(name, environment={**t4, models.CHAT_WISH: wish}, timeout=900)
    artifacts = Path(t4["COURSE_ARTIFACTS"])
    finished(run, artifacts, "t4")
    manifest = json.loads((artifacts / "t4" / name / "manifest.json").read_text("utf-8"))
    assert manifest["inputs"]["model"] == shelves.CHAT.choices[wish].hub_id


def test_kaggles_two_gpus_count_as_one(hub, tmp_path):
    own = machine(hub, "two-t4", tmp_path)
    own.pop("CUDA_VISIBLE_DEVICES", None)
    run = notebooks.execute(CHAT_NAMES[0], environment=own, timeout=900)
    finished(run, Path(own["COURSE_ARTIFACTS"]), "t4")


def test_kaggles_older_gpu_is_refused_with_a_sentence(hub, tmp_path):
    own = machine(hub, "p100", tmp_path)
    run = notebooks.execute("00", environment=own, timeout=300)
    assert run.error.startswith(
        "ProfileError: This GPU has capability 6.0 and the course needs 7.5"
    )


@pytest.mark.xdist_group("a100")
def test_a_notebook_runs_again_without_a_network(a100, tmp_path):
    gone = {**a100, "HF_ENDPOINT": "http://127.0.0.1:9", "COURSE_ARTIFACTS": str(tmp_path)}
    assert notebooks.execute("01", environment=gone, timeout=600).error is None


@pytest.mark.xdist_group("a100")
def test_a_notebook_without_network_and_cache_stops_with_one_sentence(a100, tmp_path):
    gone = {**a100, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    run = notebooks.execute("01", environment=gone, timeout=600)
    assert run.error.startswith(f"UnreachableError: The Hub did not deliver {FEEDBACK} (Connect")
    assert "check the connection and run this cell again" in run.error

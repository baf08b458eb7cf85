"""Notebooks with the other chat models on an emulated T4, and on Kaggle's GPUs."""

import json
from pathlib import Path

import pytest

from tests.gpu.machines import CHAT_NAMES, finished, machine
from tests.helpers.warm import SHARED
from tests.hub import shelves
from utils import models
from utils.course import notebooks


@pytest.fixture(scope="module")
def t4(hub, tmp_path_factory) -> dict[str, str]:
    return machine(hub, "t4", tmp_path_factory.mktemp("t4")) | SHARED


OTHERS = [("qwen", name) for name in CHAT_NAMES]
OTHERS += [("qwen3", CHAT_NAMES[0]), ("sailor", CHAT_NAMES[0])]


@pytest.mark.parametrize(("choice", "name"), OTHERS)
def test_a_notebook_with_another_chat_model(choice, name, t4):
    """The same cells run, and an adapter of one model is not used for another."""
    run = notebooks.execute(name, environment={**t4, models.CHAT_VARIABLE: choice}, timeout=900)
    artifacts = Path(t4["COURSE_ARTIFACTS"])
    finished(run, artifacts, "t4")
    manifest = json.loads((artifacts / "t4" / name / "manifest.json").read_text("utf-8"))
    assert manifest["inputs"]["model"] == shelves.CHAT.choices[choice].hub_id


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

"""The loopback Hub and a client process for it, shared by the tests of this folder."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import TEXTS
from tests.hub import server, shelves
from utils.course.paths import ROOT

WITHOUT = {"HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "COURSE_PROFILE"}


def surroundings(hub: server.Hub, home: Path, **more: str) -> dict[str, str]:
    """The environment of a new machine that uses the loopback Hub."""
    kept = {key: value for key, value in os.environ.items() if key not in WITHOUT}
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",  # plain HTTP: there is no Xet server here
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # as utils.course sets it
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        **more,
    }


@contextmanager
def hub_with_matching_vocabularies(folder: Path, rows: int) -> Iterator[server.Hub]:
    """The loopback Hub with `rows` per split, models with vocabularies learned from its data."""
    repositories = shelves.data_sets(folder, rows)
    texts = shelves.sentences(repositories)
    with server.serve([*repositories, *shelves.models(folder, texts)]) as running:
        yield running


@pytest.fixture(scope="session")
def shelf(tmp_path_factory) -> list[server.Repository]:
    """Everything, built once."""
    folder = tmp_path_factory.mktemp("shelves")
    return shelves.models(folder, TEXTS * 20) + shelves.data_sets(folder, rows=60)


@pytest.fixture
def hub(shelf):
    with server.serve([*shelf]) as running:
        yield running


@pytest.fixture
def client(hub, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Run a program on a new machine that can reach only the loopback Hub."""

    def run(program: str, **more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", program],
            env=surroundings(hub, tmp_path / "home", **more),
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run

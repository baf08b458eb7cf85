"""Every notebook on one emulated A100, one after another, then again without a network."""

from pathlib import Path

import pytest

from tests.gpu.machines import FEEDBACK, NAMES, finished, machine
from tests.helpers.warm import SHARED
from utils.course import notebooks

NOBODY = "http://127.0.0.1:9"  # no server answers here


@pytest.fixture(scope="module")
def a100(hub, tmp_path_factory) -> dict[str, str]:
    return machine(hub, "a100", tmp_path_factory.mktemp("a100"), COURSE_QUICK="1")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_on_an_a100_as_a_quick_lesson(name, a100):
    """Its artifacts are in a separate folder, so they do not replace those of a full run."""
    run = notebooks.execute(name, environment=a100 | SHARED, timeout=900)
    finished(run, Path(a100["COURSE_ARTIFACTS"]), "a100-quick")
    print(f"{name}: {run.seconds:.0f} s")


def test_a_notebook_runs_again_without_a_network(a100, tmp_path):
    gone = {**a100, "HF_ENDPOINT": NOBODY, "COURSE_ARTIFACTS": str(tmp_path)}
    assert notebooks.execute("01", environment=gone, timeout=600).error is None


def test_a_notebook_without_network_and_cache_stops_with_one_sentence(a100, tmp_path):
    gone = {**a100, "HF_ENDPOINT": NOBODY, "HF_HOME": str(tmp_path)}
    run = notebooks.execute("01", environment=gone, timeout=600)
    assert run.error.startswith(f"UnreachableError: The Hub did not deliver {FEEDBACK} (Connect")
    assert "check the connection and run this cell again" in run.error

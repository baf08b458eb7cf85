"""Every notebook on an emulated T4, against the loopback Hub.

Identifiers, revisions, dtypes and loading code are those of the real profile. Only the models and
data of the Hub are small: models of one layer and a few hundred rows per split. As on Colab, each
notebook has a separate machine, and the machines share only Google Drive.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu.machines import FEEDBACK, NAMES, PAIRS, cells, finished, machine
from tests.gpu.test_inside import HERE
from tests.helpers.warm import SHARED
from tests.hub import shelves
from utils.course import notebooks

NEEDS = {  # the files that a notebook must have requested from the Hub
    "01": {"vinai/phobert-base", FEEDBACK},
    "02": {"NlpHUST/gpt2-vietnamese"},
    # without a token, the ungated copies are used
    "03": {shelves.CHAT.choices["llama"].copy, PAIRS},
    "06": {"bkai-foundation-models/vietnamese-bi-encoder"},
    "07": {shelves.CHAT.labelled.copy},
    "08": {"google-t5/t5-small", "openai-community/gpt2", "HumanLLMs/Human-Like-DPO-Dataset"},
}
KEPT_MB = 30  # a tiny model and its optimizer, not one per experiment
POLICIES = 18  # of notebook 02; with the gradients of all steps a cell left 45


@pytest.fixture(scope="module")
def drive(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("drive")


@pytest.fixture
def empty(tmp_path_factory) -> Iterator[Path]:
    """The folder of a new machine; its path is the same in every test."""
    folder = tmp_path_factory.getbasetemp() / "new-machine"
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_on_a_t4_that_keeps_its_artifacts_on_drive(name, hub, drive, empty):
    own = machine(hub, "t4", empty, SIMULATED_DRIVE=str(drive), **SHARED)
    own["PYTHONPATH"] = os.pathsep.join([str(HERE / "colab"), own["PYTHONPATH"]])
    run = notebooks.execute(name, environment=own, form={"KEEP_ON_DRIVE": True}, timeout=900)
    kept = drive / "MyDrive" / "preference-tuning-artifacts"
    finished(run, kept, "t4")
    made_here = {path.name for path in (kept / "t4").iterdir() if path.name[0].isdigit()}
    earlier = set(NAMES[: NAMES.index(name) + 1])
    assert {made.removesuffix(".former") for made in made_here} <= earlier  # none was made twice
    assert not (empty / "artifacts").exists()
    for repository in NEEDS.get(name[:2], ()):
        cache = Path(own["HF_HOME"], "hub")
        assert list(cache.glob(f"*--{repository.replace('/', '--')}/.verified/*.json")), repository
    used = cells(own)
    if name.startswith("02"):
        most = max(cell["kept"] for cell in used) / used[2]["kept"]
        assert most < POLICIES, f"a cell leaves {most:.1f} times its policy on the GPU"
        print(f"at most {most:.1f} policies")
    if name.startswith("07"):  # its last cell frees the trained model, then loads the saved one
        assert used[-1]["kept"] < 0.75 * used[-2]["kept"]  # two models would need as much as before
    assert used[-1]["kept"] < KEPT_MB * 2**20, max(used, key=lambda cell: cell["kept"])
    print(f"{name}: {run.seconds:.0f} s, peak {max(c['peak'] for c in used) / 2**20:.1f} MB")

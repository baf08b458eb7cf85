import json
import subprocess
import sys
import textwrap

import pytest

from utils.course import artifacts, folders, notebooks
from utils.course.artifacts import ArtifactError, Shelf, find, publish, require
from utils.course.folders import FolderError, fault
from utils.course.paths import ROOT

NAME = "01_phobert_reward_model"


@pytest.fixture
def place(tmp_path):
    return Shelf(tmp_path / "artifacts" / "lab")


def save(place, content="weights", **keywords):
    with publish(NAME, place, metrics={"accuracy": 0.9}, **keywords) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "weights.safetensors").write_text(content)
    return place.folder / NAME


def test_a_saved_artifact_is_whole_and_has_metrics(place):
    folder = save(place)
    assert fault(folder) is None
    assert json.loads((folder / "metrics.json").read_text()) == {"accuracy": 0.9}
    assert find(NAME, place)[0] == folder


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "model" / "weights.safetensors").write_text("weigh"), "5 bytes instead"),
        (lambda f: (f / "model" / "weights.safetensors").write_text("wEights"), "was altered"),
        (lambda f: (f / "model" / "weights.safetensors").unlink(), "is missing"),
        (lambda f: (f / "model" / "more.json").write_text("{}"), "not in its manifest"),
        (lambda f: (f / "manifest.json").unlink(), "no manifest"),
        (lambda f: (f / "manifest.json").write_text('{"files": {'), "manifest is damaged"),
    ],
)
def test_damage_is_detected_and_rebuilt_never_loaded(place, monkeypatch, damage, said):
    damage(save(place))
    folder, reason = find(NAME, place)
    assert folder is None and said in reason
    monkeypatch.setattr(artifacts, "_run_notebook", lambda *_: save(place, "anew"))
    rebuilt = require(NAME, place)
    assert (rebuilt / "model" / "weights.safetensors").read_text() == "anew"


def test_an_artifact_of_other_data_is_not_used(place):
    save(place, inputs={"data": "sample"})
    assert find(NAME, place, {"data": "sample"})[0] is not None
    assert find(NAME, place, {"data": "own"}) == (None, "it was made from other data")


def test_a_failing_block_leaves_the_former_artifact(place):
    folder = save(place, "former")
    with (
        pytest.raises(RuntimeError),
        publish(NAME, place, metrics={}) as new,
    ):
        (new / "half").write_text("x")
        raise RuntimeError
    assert fault(folder) is None
    assert (folder / "model" / "weights.safetensors").read_text() == "former"
    assert [p.name for p in place.folder.iterdir()] == [NAME]


def test_a_full_disk_is_one_sentence(place, monkeypatch):
    save(place, "former")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "swap", full)
    with pytest.raises(FolderError, match="free some disk space"):
        save(place, "later")
    assert fault(place.folder / NAME) is None


def test_pickles_are_refused(place):
    with (
        pytest.raises(FolderError, match="safetensors"),
        publish(NAME, place, metrics={}) as folder,
    ):
        (folder / "pytorch_model.bin").write_text("x")


def test_killed_between_the_two_renames_the_former_comes_back(place):
    folder = save(place, "former")
    folder.rename(folder.with_name(f".{NAME}.former"))
    assert find(NAME, place)[0] == folder
    assert (folder / "model" / "weights.safetensors").read_text() == "former"


def test_killed_while_writing_leaves_nothing_that_loads(place, tmp_path):
    program = textwrap.dedent(
        f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from utils.course.artifacts import Shelf, publish
        with publish({NAME!r}, Shelf(Path({str(place.folder)!r})), metrics={{}}) as folder:
            (folder / "half.safetensors").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    subprocess.run([sys.executable, "-c", program])
    assert find(NAME, place)[0] is None


def test_drive_gets_a_copy_and_gives_it_back(tmp_path):
    place = Shelf(tmp_path / "local", drive=tmp_path / "drive")
    save(place)
    other_machine = Shelf(tmp_path / "fresh", drive=tmp_path / "drive")
    folder, how = find(NAME, other_machine)
    assert how == "copied from Drive"
    assert fault(folder) is None


def test_a_damaged_copy_on_drive_is_not_used(tmp_path):
    place = Shelf(tmp_path / "local", drive=tmp_path / "drive")
    save(place)
    (tmp_path / "drive" / NAME / "model" / "weights.safetensors").write_text("")
    assert find(NAME, Shelf(tmp_path / "fresh", drive=tmp_path / "drive"))[0] is None


def test_require_says_what_to_do_when_building_does_not_help(place, monkeypatch):
    monkeypatch.setattr(artifacts, "_run_notebook", lambda *_: None)
    with pytest.raises(ArtifactError, match=r"open notebooks/01_phobert_reward_model\.ipynb"):
        require(NAME, place)


def test_the_notebook_that_makes_an_artifact_gets_the_users_token(tmp_path, monkeypatch, capsys):
    """A child process cannot read Colab's secrets: without it, it would take the ungated copy."""
    given = {}

    def execute(name, on_cell=None, environment=None):
        given.update(environment)
        return notebooks.Execution(name, 1.0, "stopped", 0.0)

    monkeypatch.setattr(artifacts.notebooks, "execute", execute)
    monkeypatch.setattr(artifacts.hub, "read_token", lambda: "hf_from_the_secret")
    with pytest.raises(artifacts.ArtifactError, match="stopped with: stopped"):
        artifacts.require("01_phobert_reward_model", artifacts.Shelf(tmp_path / "lab"))
    assert given["HF_TOKEN"] == "hf_from_the_secret"
    assert "is run now (" in capsys.readouterr().out  # and how long that takes

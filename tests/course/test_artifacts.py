import json
import shutil
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
def shelf(tmp_path):
    return Shelf(tmp_path / "artifacts" / "lab")


def save(shelf, content="weights", **keywords):
    with publish(NAME, shelf, metrics={"accuracy": 0.9}, **keywords) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "weights.safetensors").write_text(content)
    return shelf.folder / NAME


def test_a_saved_artifact_is_whole_and_has_metrics(shelf):
    folder = save(shelf)
    assert fault(folder) is None
    assert json.loads((folder / "metrics.json").read_text()) == {"accuracy": 0.9}
    assert find(NAME, shelf)[0] == folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model" / "weights.safetensors").write_text("weigh"), "5 bytes instead"),
        (lambda f: (f / "model" / "weights.safetensors").write_text("wEights"), "was altered"),
        (lambda f: (f / "model" / "weights.safetensors").unlink(), "is missing"),
        (lambda f: (f / "model" / "more.json").write_text("{}"), "not in its manifest"),
        (lambda f: (f / "manifest.json").unlink(), "no manifest"),
        (lambda f: (f / "manifest.json").write_text('{"files": {'), "manifest is damaged"),
    ],
)
def test_damage_is_detected_and_rebuilt_never_loaded(shelf, monkeypatch, damage, message):
    damage(save(shelf))
    folder, reason = find(NAME, shelf)
    assert folder is None and message in reason
    monkeypatch.setattr(artifacts, "_run_notebook", lambda *_: save(shelf, "anew"))
    rebuilt = require(NAME, shelf)
    assert (rebuilt / "model" / "weights.safetensors").read_text() == "anew"


def test_an_artifact_of_other_data_is_not_used(shelf):
    save(shelf, inputs={"data": "sample"})
    assert find(NAME, shelf, {"data": "sample"})[0] is not None
    assert find(NAME, shelf, {"data": "own"}) == (None, "it was made from other data")


def test_a_failing_block_leaves_the_former_artifact(shelf):
    folder = save(shelf, "former")
    with (
        pytest.raises(RuntimeError),
        publish(NAME, shelf, metrics={}) as new,
    ):
        (new / "half").write_text("x")
        raise RuntimeError
    assert fault(folder) is None
    assert (folder / "model" / "weights.safetensors").read_text() == "former"
    assert [p.name for p in shelf.folder.iterdir()] == [NAME]


def test_a_full_disk_is_one_sentence(shelf, monkeypatch):
    save(shelf, "former")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "swap", full)
    with pytest.raises(FolderError, match="free some disk space"):
        save(shelf, "later")
    assert fault(shelf.folder / NAME) is None


def test_pickles_are_refused(shelf):
    with (
        pytest.raises(FolderError, match="safetensors"),
        publish(NAME, shelf, metrics={}) as folder,
    ):
        (folder / "pytorch_model.bin").write_text("x")


def test_killed_between_the_two_renames_the_former_comes_back(shelf):
    folder = save(shelf, "former")
    folder.rename(folder.with_name(f".{NAME}.former"))
    assert find(NAME, shelf)[0] == folder
    assert (folder / "model" / "weights.safetensors").read_text() == "former"


def test_killed_while_writing_leaves_nothing_that_loads(shelf, tmp_path):
    program = textwrap.dedent(
        f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from utils.course.artifacts import Shelf, publish
        with publish({NAME!r}, Shelf(Path({str(shelf.folder)!r})), metrics={{}}) as folder:
            (folder / "half.safetensors").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    subprocess.run([sys.executable, "-c", program])
    assert find(NAME, shelf)[0] is None


def test_drive_gets_a_copy_and_gives_it_back(tmp_path):
    shelf = Shelf(tmp_path / "local", drive=tmp_path / "drive")
    save(shelf)
    other_machine = Shelf(tmp_path / "fresh", drive=tmp_path / "drive")
    folder, how = find(NAME, other_machine)
    assert how == "copied from Drive"
    assert fault(folder) is None


def test_a_full_drive_is_one_sentence_and_leaves_no_part(tmp_path, monkeypatch):
    def full(source, new, **_):
        (new / "part").write_text("half")
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device")])

    monkeypatch.setattr(artifacts.shutil, "copytree", full)
    shelf = Shelf(tmp_path / "local", drive=tmp_path / "drive")
    with pytest.raises(ArtifactError, match="free some space there"):
        save(shelf)
    assert not list((tmp_path / "drive").iterdir())
    assert find(NAME, Shelf(tmp_path / "local"))[0]  # it is saved on this machine


def test_looking_at_a_folder_does_not_damage_it(shelf):
    folder = save(shelf)
    (folder / ".DS_Store").write_text("Finder")
    (folder / "model" / ".ipynb_checkpoints").mkdir()
    (folder / "model" / ".ipynb_checkpoints" / "config-checkpoint.json").write_text("{}")
    assert find(NAME, shelf)[0] == folder


def test_a_damaged_copy_on_drive_is_not_used(tmp_path):
    shelf = Shelf(tmp_path / "local", drive=tmp_path / "drive")
    save(shelf)
    (tmp_path / "drive" / NAME / "model" / "weights.safetensors").write_text("")
    assert find(NAME, Shelf(tmp_path / "fresh", drive=tmp_path / "drive"))[0] is None


def test_require_says_what_to_do_when_building_does_not_help(shelf, monkeypatch):
    monkeypatch.setattr(artifacts, "_run_notebook", lambda *_: None)
    with pytest.raises(ArtifactError, match=r"open notebooks/01_phobert_reward_model\.ipynb"):
        require(NAME, shelf)


def test_the_notebook_that_makes_an_artifact_gets_the_users_token(tmp_path, monkeypatch, capsys):
    """A child process cannot read Colab's secrets; without it, the copy would be used."""
    given = {}

    def execute(name, on_cell=None, environment=None):
        given.update(environment)
        return notebooks.Execution(name, 1.0, "stopped", 0.0)

    monkeypatch.setattr(artifacts.notebooks, "execute", execute)
    monkeypatch.setattr(artifacts.hub, "read_token", lambda: "hf_from_the_secret")
    with pytest.raises(artifacts.ArtifactError, match="stopped with: stopped"):
        artifacts.require("01_phobert_reward_model", artifacts.Shelf(tmp_path / "lab"))
    assert given["HF_TOKEN"] == "hf_from_the_secret"
    assert "is run now (" in capsys.readouterr().out  # followed by the expected time

"""If the disk fills up while saving, the error is one sentence and earlier files stay."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from tests.helpers import chat_worker as worker
from tests.helpers import tiny_ppo
from utils.course.artifacts import Shelf, publish
from utils.course.errors import CourseError
from utils.course.folders import FolderError, fault
from utils.finetune.training import fit, last_checkpoint

SIZE = 48  # MB


@pytest.fixture
def small_disk(tmp_path):
    """A separate small file system, which only root may mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here: it takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, leave: int = 40_000) -> None:
    """Fill the disk except for this many bytes."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        file.write(bytes(shutil.disk_usage(folder).free - leave))


def free(folder: Path) -> None:
    (folder / "filler").unlink()


class FillAfter(TrainerCallback):
    """The disk fills up once the checkpoint of a step is saved."""

    def __init__(self, step: int, disk: Path):
        self.step, self.disk = step, disk

    def on_save(self, args, state, control, **_):
        if state.global_step == self.step:
            fill(self.disk)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_training_says_so_and_goes_on_from_the_checkpoint_before(kind, small_disk, tmp_path):
    folder, data, limit = worker.stand_in(), worker.pairs()["train"], {"max_steps": 8}

    def run(checkpoints: Path, *watchers: TrainerCallback) -> list[float]:
        model = worker.shaken(worker.adapted(folder))

        def build(*sizes):
            trainer = worker.MAKERS[kind](model, folder, data, checkpoints, *sizes, **limit)
            for watcher in watchers:
                trainer.add_callback(watcher)
            return trainer

        log = fit(build, worker.BATCH, 1).state.log_history
        return [entry["loss"] for entry in log if "loss" in entry]

    checkpoints = small_disk / "checkpoints"
    with pytest.raises(CourseError, match=r"^The disk is full: the checkpoint after step 6 could"):
        run(checkpoints, FillAfter(3, small_disk))
    free(small_disk)
    assert last_checkpoint(str(checkpoints)) == str(checkpoints / "checkpoint-3")
    assert run(checkpoints) == pytest.approx(run(tmp_path / "roomy"), abs=1e-6)


def test_ppo_says_so_and_goes_on_from_the_checkpoint_before(small_disk):
    def history(**options) -> list[dict]:
        return [update | {"seconds": 0} for update in tiny_ppo.trainer(**options).train()]

    checkpoints = small_disk / "checkpoints"

    def fill_up(metrics: dict) -> None:
        if metrics["update"] == 3:  # checkpoints follow updates 2, 4 and 6
            fill(small_disk)

    with pytest.raises(FolderError, match=r"update-000004 could not be saved \(No space left"):
        history(checkpoint_dir=checkpoints, on_update=fill_up)
    assert [path.name for path in checkpoints.iterdir()] == ["update-000002"]
    assert fault(checkpoints / "update-000002") is None
    free(small_disk)
    assert history(checkpoint_dir=checkpoints) == history()


@pytest.mark.parametrize("format", ["safetensors", "text"])
def test_an_artifact_saved_before_stays_whole(small_disk, format):
    shelf = Shelf(small_disk / "lab")

    def save(size: int) -> None:
        with publish("01_phobert_reward_model", shelf, metrics={"size": size}) as folder:
            if format == "text":
                (folder / "model.txt").write_text("x" * size)
            else:
                save_file({"w": torch.zeros(size // 4)}, folder / "model.safetensors")

    save(1_000_000)
    fill(small_disk, leave=500_000)
    with pytest.raises(FolderError, match=r"could not be saved \(No space left on device\): free"):
        save(2_000_000)
    assert fault(shelf.folder / "01_phobert_reward_model") is None
    assert [path.name for path in shelf.folder.iterdir()] == ["01_phobert_reward_model"]
    free(small_disk)
    save(2_000_000)
    assert fault(shelf.folder / "01_phobert_reward_model") is None

"""A killed run continues from its newest whole checkpoint as if nothing had happened."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.helpers import tiny_ppo
from tests.helpers.launching import launched
from utils.ppo import checkpoints, processes

WORKER = Path(tiny_ppo.__file__)


def run(out: Path, *arguments: object) -> subprocess.Popen:
    process = launched([WORKER, out, *map(str, arguments)])
    print(process.communicate(timeout=300)[0])
    return process


def metrics(out: Path) -> dict:
    found = json.loads(out.read_text())
    for update in found["history"]:
        del update["seconds"]
    return found


def test_killed_three_times_and_run_again_the_metrics_are_those_of_an_uninterrupted_run(tmp_path):
    whole = run(tmp_path / "whole.json")
    assert whole.returncode == 0
    for kill_at in (1, 3, 4):  # before the first checkpoint, between two, right after one
        killed = run(tmp_path / "killed.json", tmp_path / "checkpoints", kill_at)
        assert killed.returncode == -signal.SIGKILL
        assert not (tmp_path / "killed.json").exists()
    assert run(tmp_path / "killed.json", tmp_path / "checkpoints").returncode == 0
    assert metrics(tmp_path / "killed.json") == metrics(tmp_path / "whole.json")
    assert metrics(tmp_path / "whole.json")["history"][-1]["kl_coef"] != 0.1  # the controller moved
    # Starting a finished run again runs no update.
    assert run(tmp_path / "again.json", tmp_path / "checkpoints", 6).returncode == 0
    assert metrics(tmp_path / "again.json") == metrics(tmp_path / "whole.json")


def history(trainer) -> list[dict]:
    return [update | {"seconds": 0} for update in trainer.train()]


@pytest.mark.parametrize("victim", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(tmp_path, victim):
    whole = history(tiny_ppo.trainer())
    tiny_ppo.trainer({"updates": 4}, checkpoint_dir=tmp_path).train()
    newest = tmp_path / "update-000004" / victim
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.warns(UserWarning, match=f"update-000004 is skipped: {victim} has"):
        trainer = tiny_ppo.trainer(checkpoint_dir=tmp_path)
        trainer.resume()
    assert trainer.updates_done == 2
    with pytest.warns(UserWarning):
        assert history(tiny_ppo.trainer(checkpoint_dir=tmp_path)) == whole


def test_only_the_newest_two_checkpoints_stay_and_no_pickle_among_them(tmp_path):
    tiny_ppo.trainer({"checkpoint_every": 1}, checkpoint_dir=tmp_path).train()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [
        "update-000005",
        "update-000006",
    ]
    files = {file.suffix for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {".json", ".safetensors"}


def test_more_updates_may_be_asked_for_but_no_other_settings(tmp_path):
    tiny_ppo.trainer({"updates": 2}, checkpoint_dir=tmp_path).train()
    longer = tiny_ppo.trainer({"updates": 4, "checkpoint_every": 1}, checkpoint_dir=tmp_path)
    assert [update["update"] for update in longer.train()] == [1, 2, 3, 4]
    other = tiny_ppo.trainer({"learning_rate": 0.5}, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"made with learning_rate = 0\.003 and this run has 0\.5"):
        other.train()
    llama = tiny_ppo.trainer(model=tiny_ppo.policy("llama"), checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="a run with other parameters: make the policy"):
        llama.train()


def test_a_run_from_other_weights_does_not_continue(tmp_path):
    """Its reference is another one, so every KL would be wrong."""
    tiny_ppo.trainer({"updates": 2}, checkpoint_dir=tmp_path).train()
    policy = tiny_ppo.policy()
    with torch.no_grad():
        next(policy.parameters()).mul_(1.01)
    other = tiny_ppo.trainer({"updates": 4}, model=policy, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="a run with other starting weights: make the policy"):
        other.train()


def test_a_run_with_another_reference_does_not_continue(tmp_path):
    def trainer(factor, updates):
        reference = tiny_ppo.policy(seed=9)
        with torch.no_grad():
            next(reference.parameters()).mul_(factor)
        return tiny_ppo.trainer({"updates": updates}, checkpoint_dir=tmp_path, reference=reference)

    trainer(1.0, 2).train()
    assert len(trainer(1.0, 4).train()) == 4
    with pytest.raises(ValueError, match="a run with other starting weights"):
        trainer(1.01, 6).train()


class Stopped(BaseException):
    """As a KeyboardInterrupt."""


def interrupted(trainer, step):
    """Train until this optimiser step, and stop there."""
    take, taken = trainer.step, []

    def stops(loss):
        taken.append(loss)
        if len(taken) == step:
            raise Stopped
        return take(loss)

    trainer.step = stops
    with pytest.raises(Stopped):
        trainer.train()
    trainer.step = take
    return trainer


def test_an_interruption_within_an_update_does_not_leave_half_of_it(tmp_path):
    settings = {"updates": 4, "checkpoint_every": 1, "batch_size": 8, "minibatch_size": 4}
    whole = tiny_ppo.trainer(settings).train()
    per_update = len(range(0, 8, 4)) * tiny_ppo.config(**settings).epochs
    again = interrupted(tiny_ppo.trainer(settings, checkpoint_dir=tmp_path), per_update * 2 + 2)
    found = again.train()  # the same trainer, as when a cell is run again
    names = set(whole[0]) - {"seconds"}
    assert [[u[n] for n in names] for u in found] == [[u[n] for n in names] for u in whole]
    alone = interrupted(tiny_ppo.trainer(settings), 2)  # no checkpoint has the weights before it
    with pytest.raises(ValueError, match="Update 1 was interrupted"):
        alone.train()


def weights(trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.parameters.values()]


def test_an_interrupted_first_update_of_the_policy_leaves_no_moments(tmp_path):
    """The checkpoint before it has none, because only the values were trained until then."""
    settings = {"updates": 4, "checkpoint_every": 1, "kl_estimator": "exact", "value_updates": 2}
    settings |= {"shared_value_head": False, "whiten_advantages": False}
    whole = tiny_ppo.trainer(settings)
    whole.train()
    steps = 2 * tiny_ppo.config(**settings).epochs  # of an update
    again = interrupted(tiny_ppo.trainer(settings, checkpoint_dir=tmp_path), 2 * steps + 3)
    again.train()
    assert all(map(torch.equal, weights(again), weights(whole)))


def test_an_interruption_after_the_last_step_of_an_update_does_not_repeat_it(tmp_path, monkeypatch):
    settings = {"updates": 3, "checkpoint_every": 1}
    whole = tiny_ppo.trainer(settings)
    whole.train()
    again = tiny_ppo.trainer(settings, checkpoint_dir=tmp_path)

    def stops(tensors):
        if again.updates_done == 1 and len([*tensors]) == 1:  # the sums of the second update
            raise Stopped

    monkeypatch.setattr(processes, "add", stops)
    with pytest.raises(Stopped):
        again.train()
    monkeypatch.undo()
    again.train()
    assert all(map(torch.equal, weights(again), weights(whole)))


def test_new_checkpoints_stay_although_damaged_ones_have_larger_numbers(tmp_path):
    tiny_ppo.trainer(checkpoint_dir=tmp_path).train()
    for folder in tmp_path.iterdir():
        (folder / "state.json").write_text("{")
    again = tiny_ppo.trainer({"updates": 6, "checkpoint_every": 1}, checkpoint_dir=tmp_path)
    again.on_update = lambda metrics: interrupt(metrics["update"] == 3)
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(Stopped):
        again.train()
    found = sorted(folder.name for folder in tmp_path.iterdir())
    assert found == ["update-000002", "update-000003"]


def interrupt(now: bool) -> None:
    if now:
        raise Stopped


def test_the_save_of_the_last_update_is_tried_again(tmp_path, monkeypatch):
    trainer = tiny_ppo.trainer({"updates": 2}, checkpoint_dir=tmp_path)
    monkeypatch.setattr(checkpoints, "save", lambda *_: interrupt(True))
    with pytest.raises(Stopped):
        trainer.train()
    monkeypatch.undo()
    assert len(trainer.train()) == 2
    assert [folder.name for folder in tmp_path.iterdir()] == ["update-000002"]


def test_metrics_of_the_user_may_be_tensors(tmp_path):
    options = {"extra_metrics": lambda experience: {"mean": experience.scores.mean()}}
    trainer = tiny_ppo.trainer({"updates": 1}, checkpoint_dir=tmp_path, **options)
    (update,) = trainer.train()
    assert update["mean"] == pytest.approx(update["reward"])


def test_what_a_killed_save_left_behind_is_swept_up(tmp_path):
    torn = tmp_path / ".update-000002.k2j3h4"
    torn.mkdir()
    (torn / "weights.safetensors").write_bytes(b"half")
    tiny_ppo.trainer({"updates": 2}, checkpoint_dir=tmp_path).train()
    assert [folder.name for folder in tmp_path.iterdir()] == ["update-000002"]


def test_the_gradient_scaler_is_restored(tmp_path):
    trainer = tiny_ppo.trainer({"updates": 2, "precision": "fp16"}, checkpoint_dir=tmp_path)
    trainer.train()
    again = tiny_ppo.trainer({"updates": 3, "precision": "fp16"}, checkpoint_dir=tmp_path)
    again.resume()
    assert again.scaler.state_dict() == trainer.scaler.state_dict() != {}

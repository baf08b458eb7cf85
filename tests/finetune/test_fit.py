"""`fit` skips incomplete checkpoints, and halves the batch when memory does not suffice."""

import contextlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model

from tests.helpers import chat_worker as worker
from utils import models
from utils.course.errors import CourseError
from utils.finetune import training
from utils.finetune.seq2seq_dpo import DPOSettings
from utils.finetune.training import fit, last_checkpoint


def whole_checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


@pytest.mark.parametrize("damage", [None, "", '{"global_step": 1'])
def test_a_torn_checkpoint_is_removed_and_passed_over(tmp_path, damage):
    good, torn = whole_checkpoint(tmp_path, 9), whole_checkpoint(tmp_path, 12)
    state = torn / "trainer_state.json"
    if damage is None:
        state.unlink()
    else:
        state.write_text(damage)
    assert last_checkpoint(str(tmp_path)) == str(good)
    assert not torn.exists() and good.exists()


def test_the_newest_checkpoint_is_the_one_of_most_steps_not_the_last_by_name(tmp_path):
    whole_checkpoint(tmp_path, 90), whole_checkpoint(tmp_path, 100)
    assert last_checkpoint(str(tmp_path)).endswith("checkpoint-100")
    assert last_checkpoint(str(tmp_path / "none")) is None


@pytest.fixture(scope="module")
def folder():
    return worker.stand_in()


@pytest.fixture(scope="module")
def data():
    return worker.pairs()["train"]


def runs_out_above(limit: int, trainer, step: int = 0):
    """The trainer; from the given step on, batches above the limit run out of memory."""
    training_step = trainer.training_step

    def scarce(*arguments, **keywords):
        if trainer.args.per_device_train_batch_size > limit and trainer.state.global_step >= step:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return training_step(*arguments, **keywords)

    trainer.training_step = scarce
    return trainer


def run(kind, folder, data, out, limit, step=0, **changes):
    """Return the losses and the batch sizes that were tried."""
    model = worker.adapted(folder)
    if kind == "dpo":
        model = worker.shaken(model)
    tried = []

    def build(*sizes):
        tried.append(sizes)
        trainer = worker.MAKERS[kind](model, folder, data, out, *sizes, **changes)
        return runs_out_above(limit, trainer, step)

    trainer = fit(build, worker.BATCH, 1)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, tried


@pytest.fixture(scope="module")
def roomy(folder, data, tmp_path_factory):
    """The losses of each kind with enough memory."""
    losses = {}
    for kind in ("sft", "dpo"):
        out = tmp_path_factory.mktemp(kind)
        losses[kind], tried = run(kind, folder, data, out, worker.BATCH, max_steps=8)
        assert tried == [(4, 1)]
    return losses


@pytest.mark.parametrize(  # in the first step, before the first checkpoint, and after it
    ("kind", "step"), [(kind, step) for kind in ("sft", "dpo") for step in (0, 2, 5)]
)
def test_out_of_memory_halves_the_batch_and_the_steps_stay_the_same(
    kind, step, folder, data, roomy, tmp_path, capsys
):
    found, tried = run(kind, folder, data, tmp_path, 2, step, max_steps=8)
    assert tried == [(4, 1), (2, 2)]
    assert "out of memory: batch 2, accumulation 2 from here on" in capsys.readouterr().out
    assert len(found) == len(roomy[kind]) == 8
    assert found == pytest.approx(roomy[kind], abs=2e-3)
    if kind == "dpo":
        assert found[0] == pytest.approx(math.log(2), abs=1e-4)  # policy = reference


def test_one_row_that_does_not_fit_is_one_sentence(folder, data, tmp_path):
    with pytest.raises(CourseError, match=r"^One row alone does not fit .* smaller model\.$"):
        run("sft", folder, data, tmp_path, 0, max_steps=2)


def test_what_is_trained_stays_in_32_bits(folder, data, tmp_path):
    model = worker.adapted(folder)

    def build(*sizes):
        trainer = worker.sft_trainer(model, folder, data, tmp_path, *sizes, max_steps=1)
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
        return trainer

    fit(build, 2, 1)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_stopped_training_leaves_the_weights_as_they_were(error, folder, data, roomy, tmp_path):
    """The cell is run again in the same kernel: policy and reference begin where they began."""
    model = worker.shaken(worker.adapted(folder))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    stops = [True]

    def build(*sizes):
        if "ref" in model.peft_config:
            model.delete_adapter("ref")
        trainer = worker.MAKERS["dpo"](model, folder, data, tmp_path, *sizes, max_steps=8)
        step = trainer.training_step

        def stopped(*arguments, **keywords):
            if stops and trainer.state.global_step == 5:
                raise error
            return step(*arguments, **keywords)

        trainer.training_step = stopped
        return trainer

    with pytest.raises(error):
        fit(build, worker.BATCH, 1)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], values) for name, values in before.items())
    stops.clear()
    trainer = fit(build, worker.BATCH, 1)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx(roomy["dpo"], abs=2e-3)


def test_other_labels_are_another_run(tmp_path):
    """A corrected label in the middle of the data must not load the former model."""
    rows = {"input_ids": [[1, 2], [3, 4], [5, 6]], "labels": [0, 1, 2]}
    arguments, model = SimpleNamespace(output_dir=str(tmp_path)), torch.nn.Module()

    def trainer(**changes):
        data = Dataset.from_dict(rows | changes)
        return SimpleNamespace(args=arguments, train_dataset=data, model=model)

    assert not training._same_run(trainer(), 2) and training._same_run(trainer(), 2)
    assert not training._same_run(trainer(labels=[0, 2, 2]), 2)
    assert not training._same_run(trainer(input_ids=[[1, 2], [3, 9], [5, 6]]), 2)


def test_another_loss_or_another_schedule_is_another_run(folder, data, tmp_path):
    """Otherwise a training with new settings would end at once, with the former weights."""
    trainer = worker.sft_trainer(worker.adapted(folder), folder, data, tmp_path, 2, 1, max_steps=1)
    trainer.settings = DPOSettings()  # as a Seq2SeqDPOTrainer has them
    changes = (
        lambda: setattr(trainer, "settings", DPOSettings(variant="robust", label_smoothing=0.2)),
        lambda: setattr(trainer.args, "loss_type", ["ipo"]),
        lambda: setattr(trainer.args, "loss_weights", [0.5]),
        lambda: setattr(trainer.args, "lr_scheduler_type", "constant"),
    )
    assert not training._same_run(trainer, 2) and training._same_run(trainer, 2)
    for change in changes:
        change()
        assert not training._same_run(trainer, 2) and training._same_run(trainer, 2)


class Stop(Exception):
    """Interrupts a training."""


@pytest.fixture
def train(folder, data, tmp_path):
    """Train a model by DPO, stopped before step `until`; return the steps that were computed."""

    def train(model, until=None):
        computed = []

        def build(*sizes):
            trainer = worker.dpo_trainer(model, folder, data, tmp_path, *sizes, max_steps=4)
            step = trainer.training_step

            def counted(*arguments, **keywords):
                if trainer.state.global_step == until:
                    raise Stop
                computed.append(trainer.state.global_step)
                return step(*arguments, **keywords)

            trainer.training_step = counted
            return trainer

        with contextlib.suppress(Stop):
            fit(build, worker.BATCH, 1)
        return computed

    return train


def adapter(folder, seed, alpha=None):
    """An adapter that notebook 03 has trained: lora_B is not 0; lora_A is of this session."""
    settings = worker.LAB.chat
    settings = replace(settings, lora_alpha=alpha or settings.lora_alpha)
    model = get_peft_model(models.chat_model(folder, worker.LAB)[0], models.lora(settings))
    return worker.shaken(model, seed=seed)


@pytest.mark.parametrize("until", [None, 3], ids=["complete", "interrupted"])
def test_a_run_goes_on_only_from_the_adapter_with_which_it_began(until, folder, train, capsys):
    model, begun = adapter(folder, 1), [0, 1, 2, 3][:until]
    left = [] if until is None else [3]
    assert train(model, until) == begun
    assert train(adapter(folder, 1), until) == []  # the same adapter, in another session
    assert train(adapter(folder, 2), until) == begun
    assert train(adapter(folder, 2, alpha=99), until) == begun
    assert train(adapter(folder, 2, alpha=99)) == left
    capsys.readouterr()
    assert train(adapter(folder, 2, alpha=99)) == []
    assert "already complete: checkpoint 4; to train again, remove /" in capsys.readouterr().out


def test_a_cell_that_is_run_again_does_not_train_its_own_result(folder, train, tmp_path):
    """The training has changed the weights of the model, but they began where the run began."""
    model = adapter(folder, 1)
    assert train(model) == [0, 1, 2, 3] and train(model) == []
    mark = json.loads((tmp_path / training.RUN_MARK).read_text())
    for checkpoint in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (tmp_path / training.RUN_MARK).unlink()
    assert train(model) == [0, 1, 2, 3]  # this run began with the trained weights
    assert json.loads((tmp_path / training.RUN_MARK).read_text())["start"] != mark["start"]
    assert train(model) == [] and train(adapter(folder, 1)) == [0, 1, 2, 3]


def test_a_run_of_an_earlier_version_of_the_course_goes_on(folder, train, tmp_path):
    """Its mark does not say with which adapter it began; from now on, it does."""
    path = tmp_path / training.RUN_MARK
    train(adapter(folder, 1), until=3)
    whole = path.read_text()
    earlier = {k: v for k, v in json.loads(whole).items() if k not in training.NEW}
    path.write_text(json.dumps(earlier))
    assert train(adapter(folder, 1)) == [3]
    assert json.loads(path.read_text()) == json.loads(whole)
    path.write_text(json.dumps(earlier | {"seed": 99}))
    assert train(adapter(folder, 1)) == [0, 1, 2, 3]


def test_the_seconds_of_an_interrupted_session_count(folder, data, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(training, "perf_counter", lambda: clock[0])
    stops = [True]

    def build(*sizes):
        model = worker.adapted(folder)
        trainer = worker.sft_trainer(model, folder, data, tmp_path, *sizes, max_steps=5)
        step = trainer.training_step

        def slow(*arguments, **keywords):
            if stops and trainer.state.global_step == 4:
                raise Stop
            clock[0] += 10
            return step(*arguments, **keywords)

        trainer.training_step = slow
        return trainer

    with pytest.raises(Stop):
        fit(build, worker.BATCH, 1)
    stops.clear()
    clock[0] += 1000  # nobody trains
    trainer = fit(build, worker.BATCH, 1)  # from step 3
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["seconds"] for entry in losses] == [10, 20, 30, 40, 50]
    assert training.training_seconds(trainer) == 50
    trainer.log({"eval_loss": 1.0})  # an evaluation after the training
    assert "seconds" not in trainer.state.log_history[-1]
    assert training.training_seconds(fit(build, worker.BATCH, 1)) == 50
    entry = next(row for row in trainer.state.log_history if "train_runtime" in row)
    del entry["seconds"]  # a checkpoint of an earlier version
    assert training.training_seconds(trainer) == entry["train_runtime"]


def test_the_mark_of_a_run_is_written_whole_or_not_at_all(folder, data, tmp_path, monkeypatch):
    """A kill or a full disk while the mark is written must not lose the checkpoints of that run."""
    trainer = worker.sft_trainer(worker.adapted(folder), folder, data, tmp_path, 2, 1, max_steps=1)
    assert not training._same_run(trainer, 2) and training._same_run(trainer, 2)
    written = (tmp_path / training.RUN_MARK).read_text()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training.os, "replace", fails)
    trainer.args.learning_rate = 1e-9  # this makes it another run, so the mark must change
    with pytest.raises(OSError, match="No space left"):
        training._same_run(trainer, 2)
    assert (tmp_path / training.RUN_MARK).read_text() == written
    assert [path.name for path in tmp_path.iterdir()] == [training.RUN_MARK]

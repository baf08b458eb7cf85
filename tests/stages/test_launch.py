"""Stages launched without Jupyter: two processes equal one, and a killed run continues.

As a program (`python tests/stages/test_launch.py STAGE --output FOLDER`) it is the launcher with
the tiny models of chat_worker; KILL_AT=N ends the first process by SIGKILL after step N.
"""

import ast
import doctest
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.helpers import chat_worker
from tests.helpers.launching import finished, launched
from utils import models
from utils.course import artifacts, notebooks, profiles, session
from utils.course.errors import CourseError
from utils.course.paths import ROOT
from utils.data import load_preferences
from utils.finetune import launch, seq2seq_dpo, training
from utils.finetune.training import fit
from utils.models import chat_standins

CONFIGS = ROOT / "configs" / "accelerate"
KILL = "KILL_AT"
SFT = "03_llama_sft_vi_alpaca"


def small() -> None:
    """Shrink the lab profile and its stand-ins in this process."""
    torch.set_num_threads(1)
    chat_standins._pretrain = lambda *_: None
    chat_standins.SHAPE.update(chat_worker.SMALL)
    lab = profiles.TABLE["lab"]
    few = {"rows": 24, "batch_size": 4, "save_steps": 2, "epochs": 1}
    profiles.TABLE["lab"] = replace(
        lab,
        # 60 texts make 24 packed rows, and so six full batches: several processes fill up a last
        # batch that is not full with the first rows, and one process does not
        sft=replace(lab.sft, max_length=160, **few | {"rows": 60}),
        dpo=replace(lab.dpo, max_length=192, **few),
        orpo=replace(lab.orpo, max_length=192, batch_size=4, save_steps=2, epochs=1),
        policy=replace(lab.policy, adapt_epochs=1),
        ppo=replace(lab.ppo, updates=3, value_updates=1, batch_size=16, minibatch_size=8),
        reward_model=replace(lab.reward_model, epochs=1),
        small_dpo=replace(lab.small_dpo, train_pairs=32, held_out=16, sft_epochs=1, dpo_epochs=1),
    )


def log_every_step() -> None:
    """A notebook logs means over several steps, and after a kill over those that are left."""
    begin = training._Bars.on_train_begin

    def on_train_begin(self, args, state, control, **others):
        begin(self, args, state, control, **others)
        state.logging_steps = 1

    training._Bars.on_train_begin = on_train_begin


def die_after(step: int) -> None:
    """Let the first process of a training be killed after this step."""
    advance = training._Bars.on_step_end

    def on_step_end(self, args, state, control, **others):
        advance(self, args, state, control, **others)
        if state.global_step == step and args.process_index == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    training._Bars.on_step_end = on_step_end


def start(stage: str, out: Path, *options: str, **environment: str) -> subprocess.Popen:
    """The launcher of a stage, under `accelerate launch` with these options, else by itself."""
    lab = {profiles.PROFILE_VARIABLE: "lab"} | environment
    return launched([__file__, stage, "--output", out], *options, **lab)


def finish(process: subprocess.Popen) -> str:
    return finished(process, 600)


def two_processes(name: str, *more: str) -> list[str]:
    options = ["--config_file", str(CONFIGS / f"{name}.yaml"), "--num_processes", "2"]
    return [*options, *(more or ("--main_process_port", "0"))]


def steps(out: Path, notebook: str) -> list[tuple[float, float]]:
    """Loss and length of the gradient of each logged step."""
    (checkpoints,) = (out / "lab").glob(f".{notebook}*-checkpoints")
    state = Path(training.last_checkpoint(str(checkpoints))) / "trainer_state.json"
    log = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return [(entry["loss"], entry["grad_norm"]) for entry in log if "loss" in entry]


def same(one: list, two: list) -> None:
    assert len(one) > 1
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-4)


# --- The table of stages -------------------------------------------------------------------------


@pytest.mark.parametrize("name", launch.STAGES)
def test_a_stage_names_cells_and_statements_that_its_notebook_has(name):
    stage = launch.STAGES[name]
    document = json.loads(notebooks.path_of(name[:2]).read_text(encoding="utf-8"))
    order = [cell["id"] for cell in document["cells"]]
    wanted = [*stage.cells, *stage.saving]
    assert wanted == sorted(wanted, key=order.index)
    assert [cell for cell, _ in launch.programs(name, {**stage.cells, **stage.saving})] == wanted
    assert list(stage.cells)[-1] in stage.together  # the training cell ends a stage
    assert stage.together <= set(stage.cells)


def calls(body: list[ast.stmt]) -> set[str]:
    """What statements call when they are run; the bodies of what they define are left out."""
    now = [one for one in body if not isinstance(one, ast.FunctionDef | ast.ClassDef)]
    nodes = [node.func for one in now for node in ast.walk(one) if isinstance(node, ast.Call)]
    return {node.attr if isinstance(node, ast.Attribute) else node.id for node in nodes}


@pytest.mark.parametrize("name", launch.STAGES)
def test_what_trains_is_run_by_all_processes_at_once(name):
    """If processes trained one after another, the first would wait for the others for ever."""
    document = json.loads(notebooks.path_of(name[:2]).read_text(encoding="utf-8"))
    sources = {cell["id"]: "".join(cell["source"]) for cell in document["cells"]}
    stage = launch.STAGES[name]
    meeting = {"fit", "PPOTrainer", "adapt_language_model", "train"}
    found = {c for c, s in stage.cells.items() if calls(launch.chosen(sources[c], s)) & meeting}
    assert found == stage.together


def test_a_name_that_a_cell_binds_no_more_is_reported():
    with pytest.raises(launch.LaunchError, match="no longer binds 'gone'"):
        launch.chosen("a = 1\nb = 2", "a gone")
    kept = launch.chosen("a = 1\nb = 2\nprint(b)", "-a")
    assert [statement.lineno for statement in kept] == [2, 3]
    with pytest.raises(launch.LaunchError, match="has no cell 03-gone"):
        list(launch.programs("03", {"03-gone": ""}))


def test_the_examples_in_the_docstrings_hold():
    for module in (launch, training, notebooks):
        assert doctest.testmod(module).failed == 0


# --- Sharing the work ----------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 4, 8, 16])
def test_processes_together_make_the_steps_of_one(processes):
    for batch_size, accumulation in ((4, 4), (16, 1), (8, 2)):
        size, times = training._shares(batch_size, accumulation, processes)
        assert size * times * processes == batch_size * accumulation
        assert size * processes <= max(batch_size, processes)  # not more rows than on one GPU


def test_a_step_that_cannot_be_shared_is_refused():
    with pytest.raises(CourseError, match="8 rows cannot be shared among 3 processes"):
        training._shares(8, 1, 3)


@pytest.mark.parametrize(
    ("local", "visible", "seen"),
    [(None, None, None), ("1", None, "1"), ("1", "4,6", "6"), ("0", "", ""), (None, "2,3", "2,3")],
)
def test_a_process_sees_its_own_gpu(monkeypatch, local, visible, seen):
    for name, value in {"LOCAL_RANK": local, "CUDA_VISIBLE_DEVICES": visible}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    launch.see_one_gpu()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == seen


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(launch.LaunchError, match="Process 2 of this machine has no GPU"):
        launch.see_one_gpu()


def test_a_stage_that_cannot_be_sharded_says_so(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(launch, "join", lambda device: None)
    with pytest.raises(launch.LaunchError, match="Stage 02 keeps a whole model on every GPU"):
        launch.train("02")


def test_a_wrapped_t5_computes_within_its_wrappers_forward(monkeypatch):
    class Inside(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, **batch):
            self.calls += 1
            return self.module(**batch)

    monkeypatch.setattr(seq2seq_dpo, "answer_logps", lambda model, batch: model(batch["x"]) + 1)
    wrapped = Wrapper(Inside())
    assert seq2seq_dpo.logps_through(wrapped, {"x": torch.ones(1)}).item() == 3
    assert wrapped.calls == 1
    assert "forward" not in vars(wrapped.module)  # it is itself again
    assert seq2seq_dpo.logps_through(wrapped.module, {"x": torch.ones(1)}).item() == 3


# --- A training that has ended -------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder():
    return chat_worker.stand_in()


def test_a_training_that_has_ended_is_loaded_not_repeated(folder, tmp_path, capsys):
    data, trained = chat_worker.pairs(8)["train"], []

    def once(seed: int):
        model = chat_worker.adapted(folder, seed)

        def build(*sizes):
            trainer = chat_worker.sft_trainer(model, folder, data, tmp_path, *sizes)
            step = trainer.training_step
            trainer.training_step = lambda *a, **k: trained.append(1) or step(*a, **k)
            return trainer

        trainer = fit(build, 4, 1)
        return trainer, {n: p.detach().clone() for n, p in model.named_parameters() if "lora" in n}

    first, learned = once(seed=0)
    number = len(trained)
    second, again = once(seed=1)  # another start: what it has at the end was loaded
    assert len(trained) == number == 2
    assert "this training is already complete: checkpoint 2" in capsys.readouterr().out
    for name, values in learned.items():
        assert torch.equal(again[name], values), name
    assert second.state.log_history == first.state.log_history
    assert second.state.log_history[-1]["train_loss"] > 0


def test_checkpoints_that_began_at_other_weights_are_removed(tmp_path, capsys):
    """A launched training stays when it has ended, and the stage before may be trained again."""
    shelf = artifacts.Shelf(tmp_path)
    course = session.Course("04_llama_dpo_vi_alpaca", profiles.TABLE["lab"], 0, shelf)
    checkpoint = Path(course.checkpoints) / "checkpoint-9"

    def hand_over(weights: str, metrics: dict) -> None:
        with artifacts.publish(SFT, shelf, metrics=metrics) as new:
            (new / "adapter.safetensors").write_text(weights)
        course.require(SFT)

    hand_over("one", {"seconds": 1})
    checkpoint.mkdir()
    hand_over("one", {"seconds": 2})  # the notebook hands the launched weights over once more
    assert checkpoint.is_dir()
    hand_over("two", {"seconds": 2})
    assert not checkpoint.exists()
    assert f"{SFT} was made again" in capsys.readouterr().out


def test_a_launched_stage_keeps_its_checkpoints_for_the_notebook(tmp_path):
    course = session.Course(SFT, profiles.TABLE["lab"], 0, artifacts.Shelf(tmp_path))
    checkpoint = Path(course.checkpoints) / "checkpoint-9"
    for keep in (True, False):
        checkpoint.mkdir(parents=True, exist_ok=True)
        with replace(course, keep_checkpoints=keep).hand_over({}):
            pass
        assert checkpoint.exists() is keep


def test_a_run_that_was_cut_off_under_fsdp_goes_on_under_fsdp(folder, tmp_path):
    data = chat_worker.pairs(8)["train"]
    model = chat_worker.adapted(folder)

    def build(*sizes):
        return chat_worker.sft_trainer(model, folder, data, tmp_path, *sizes)

    fit(build, 4, 1)
    checkpoint = Path(training.last_checkpoint(str(tmp_path)))
    state = checkpoint / "trainer_state.json"
    log = json.loads(state.read_text(encoding="utf-8"))
    log["log_history"] = log["log_history"][:-1]  # it has not ended
    state.write_text(json.dumps(log), encoding="utf-8")
    (checkpoint / "pytorch_model_fsdp.bin").touch()
    with pytest.raises(
        CourseError, match="an interrupted training with FSDP, and this one is without"
    ):
        fit(build, 4, 1)


# --- Two processes and one -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Notebook 03's stage, trained and handed over by one process."""
    out = tmp_path_factory.mktemp("alone")
    finish(start("03", out))
    return out


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory) -> Path:
    """The same, spread over two processes by FSDP, until the first one was killed."""
    out = tmp_path_factory.mktemp("fsdp")
    killed = start("03", out, *two_processes("fsdp"), **{KILL: "3"})
    printed, _ = killed.communicate(timeout=300)
    assert killed.returncode != 0, printed[-3000:]
    assert not (out / "lab" / SFT).exists()
    return out


def test_a_killed_fsdp_run_goes_on_and_equals_one_process(alone, cut_off):
    """Adapter, embeddings and optimizer in two halves; one process reads what they saved."""
    printed = finish(start("03", cut_off, *two_processes("fsdp")))
    assert "continuing from checkpoint 2" in printed
    assert "Excluding from FSDP2 sharding" in printed  # the 4-bit weights, so the rest is spread
    same(steps(alone, "03"), steps(cut_off, "03"))
    loads_as_in_the_notebook(cut_off, alone)


def loads_as_in_the_notebook(out: Path, reference: Path) -> None:
    """The artifact is whole, belongs to this base, and holds the weights of one process."""
    weights = []
    for folder in (out, reference):
        found, reason = artifacts.find(SFT, artifacts.Shelf(folder / "lab"))
        assert found, reason
        tensors = load_file(found / "adapter" / "adapter_model.safetensors")
        weights.append(torch.cat([tensors[name].flatten() for name in sorted(tensors)]))
    assert (weights[0] - weights[1]).norm() < 1e-3 * weights[1].norm()
    with chat_worker.tiny():
        pairs = load_preferences(offline=True, quiet=True)
        base, _ = models.chat_source(chat_worker.LAB.chat, pairs)
    adapted = models.load_adapter(out / "lab" / SFT, base, chat_worker.LAB)
    assert adapted.active_adapter == "default"


def test_two_machines_with_a_launcher_each_equal_one_process(alone, tmp_path):
    from accelerate.utils.other import get_free_port

    port = str(get_free_port())
    address = ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    machines = [
        start("03", tmp_path, *two_processes("two_nodes", "--machine_rank", rank, *address))
        for rank in ("0", "1")
    ]
    for machine in machines:
        finish(machine)
    same(steps(alone, "03"), steps(tmp_path, "03"))
    loads_as_in_the_notebook(tmp_path, alone)


@pytest.mark.long
@pytest.mark.parametrize("stage", ["04", "05"])
def test_a_later_stage_starts_from_what_was_handed_over(alone, tmp_path, stage):
    """DPO and ORPO by DDP and by FSDP."""
    outs = {}
    for name in ("alone", "ddp", "fsdp"):
        outs[name] = tmp_path / name
        shutil.copytree(alone / "lab" / SFT, outs[name] / "lab" / SFT)
        finish(start(stage, outs[name], *(two_processes(name) if name != "alone" else ())))
        assert next((outs[name] / "lab").glob(f"{stage}_*/adapter"))
    same(steps(outs["ddp"], stage), steps(outs["fsdp"], stage))
    if stage == "04":  # ORPO's SFT loss is a mean over the tokens of each process
        same(steps(outs["alone"], stage), steps(outs["ddp"], stage))


@pytest.mark.long
@pytest.mark.parametrize("stage", ["08-t5", "08-gpt2"])
def test_notebook_08s_models_train_on_two_processes(tmp_path, stage):
    printed = finish(start(stage, tmp_path, *two_processes("ddp")))
    assert f"Stage {stage} is trained" in printed
    # SFT and DPO, found by one process
    assert printed.count("this training is already complete") == 2


@pytest.mark.long
def test_reward_model_on_two_processes_then_ppo_on_two_equals_one(tmp_path):
    """Stage 02 asks for what stage 01 has handed over.

    Both runs go on from one adapted GPT-2: each process draws dropout of its own for that.
    """
    finish(start("01", tmp_path / "alone", *two_processes("ddp")))
    finish(start("02", tmp_path / "alone"))
    shutil.copytree(tmp_path / "alone", tmp_path / "ddp")
    shutil.rmtree(next((tmp_path / "ddp" / "lab").glob(".02*/ppo-*")))
    finish(start("02", tmp_path / "ddp", *two_processes("ddp")))
    histories = []
    for out in (tmp_path / "alone", tmp_path / "ddp"):
        assert next((out / "lab").glob("02_*/policy"))
        state = max((out / "lab").glob(".02*/ppo-*/update-*/state.json"))
        histories.append(json.loads(state.read_text(encoding="utf-8"))["history"])
    for one, two in zip(*histories, strict=True):
        for figure in ("reward", "kl", "policy_loss", "value_loss"):
            assert two[figure] == pytest.approx(one[figure], rel=1e-4, abs=1e-4), figure


if __name__ == "__main__":
    small()
    log_every_step()
    if at := os.environ.get(KILL):
        die_after(int(at))
    launch.main()

"""Training stages that are killed by SIGKILL several times and started again.

    python tests/helpers/survival.py KIND FOLDER     one whole run, and one that is killed

Each run is forked from a process that has finished its imports, so that a start takes a second.
A kill comes within a random step, or while a checkpoint is being written.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tests.conftest import TEXTS
from tests.finetune import test_seq2seq_dpo as t5
from tests.helpers import chat_worker, tiny_ppo
from tests.helpers.chat_worker import BATCH, SAVE, STEPS
from utils import models
from utils.finetune.training import fit
from utils.models import standins
from utils.models.sentiment import encode

# the numbers of the kills that wait for a checkpoint to be written
KILLS, WHILE_SAVING = (10, (3, 6)) if os.environ.get("COURSE_TEST_ALL") == "1" else (3, (1,))
ENDS = "exit codes: "
Build = Callable[[int, int], Trainer]


class Progress(TrainerCallback):
    """Writes the number of each step that begins into a file."""

    def __init__(self, file: Path):
        self.file = file

    def on_step_begin(self, args, state, control, **_):
        self.file.write_text(str(state.global_step + 1))


# --- The stages: each trains STEPS steps with a checkpoint every SAVE ----------------------------


def through_fit(build: Build, checkpoints: Path, out: Path) -> None:
    """Every stage except PPO; losses and trained weights go to `out`."""

    def watched(*sizes: int) -> Trainer:
        trainer = build(*sizes)
        trainer.add_callback(Progress(checkpoints.parent / "step"))
        return trainer

    trainer = fit(watched, BATCH, 1)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    learned = {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}
    save_file(learned, out.with_suffix(".safetensors"))
    out.write_text(json.dumps({"losses": losses, "steps": trainer.state.global_step}))


def chat_stage(kind: str, checkpoints: Path, out: Path) -> None:
    folder, data = chat_worker.stand_in(), chat_worker.pairs()["train"]
    model = chat_worker.adapted(folder)
    if kind == "dpo":
        chat_worker.shaken(model)
    make = chat_worker.MAKERS[kind]
    through_fit(lambda *sizes: make(model, folder, data, checkpoints, *sizes), checkpoints, out)


def t5_stage(checkpoints: Path, out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(standins.t5(TEXTS * 20))
    model, data = t5.tiny(tokenizer), t5.pairs(BATCH * STEPS)

    def build(batch_size: int, accumulation: int) -> Trainer:
        sizes = {"per_device_train_batch_size": batch_size, "num_train_epochs": 1}
        saving = {"save_strategy": "steps", "save_steps": SAVE, "save_total_limit": 2}
        saving |= {"gradient_accumulation_steps": accumulation}
        return t5.trainer_of(tokenizer, checkpoints, model, data, **sizes, **saving)

    through_fit(build, checkpoints, out)


def reward_stage(checkpoints: Path, out: Path) -> None:
    """Notebook 01: one checkpoint per epoch, word dropout, the best epoch is kept."""
    settings, words = chat_worker.LAB.reward_model, TEXTS * 20
    standins.phobert(words)  # the first run builds it, later runs load it; the seed follows
    torch.manual_seed(0)
    model, tokenizer = models.sentiment_classifier(settings, words, "cpu")
    rows = Dataset.from_dict({**encode(tokenizer, TEXTS * 2, 32), "labels": [0, 1, 2] * 4})
    hide_words = models.WordDropout(tokenizer, share=0.2)

    def build(batch_size: int, accumulation: int) -> Trainer:
        return Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(checkpoints),
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=accumulation,
                num_train_epochs=STEPS / SAVE,
                learning_rate=1e-3,
                eval_strategy="epoch",
                save_strategy="epoch",
                save_total_limit=1,
                load_best_model_at_end=True,
                logging_steps=1,
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                seed=3,
            ),
            train_dataset=rows.with_transform(hide_words),
            eval_dataset=rows,
            data_collator=DataCollatorWithPadding(tokenizer),
        )

    through_fit(build, checkpoints, out)


def ppo_stage(checkpoints: Path, out: Path) -> None:
    """Notebook 02; one update counts as one step."""
    step = checkpoints.parent / "step"
    trainer = tiny_ppo.trainer(
        {"updates": STEPS, "checkpoint_every": SAVE, "target_kl": 0.5, "kl_horizon": 40},
        checkpoint_dir=checkpoints,
        on_update=lambda metrics: step.write_text(str(metrics["update"] + 1)),
    )
    losses = [update["kl"] + update["reward"] for update in trainer.train()]
    save_file(
        {n: p.detach() for n, p in trainer.parameters.items()}, out.with_suffix(".safetensors")
    )
    out.write_text(json.dumps({"losses": losses, "steps": len(losses)}))


STAGES: dict[str, Callable[[Path, Path], None]] = {
    "reward": reward_stage,
    "ppo": ppo_stage,
    **{k: (lambda *folders, k=k: chat_stage(k, *folders)) for k in chat_worker.MAKERS},
    "t5": t5_stage,
}


# --- Kills ---------------------------------------------------------------------------------------


def child(kind: str, folder: Path, out: Path) -> int:
    """Fork a run whose checkpoints are in `folder`; return its process id."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step").unlink(missing_ok=True)
    if pid := os.fork():
        return pid
    status = 1
    try:
        torch.set_num_threads(1)
        STAGES[kind](folder / "checkpoints", out)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait_for(condition: Callable[[], bool], pid: int, seconds: float = 240) -> None:
    """Wait until the condition holds; the child must still run then."""
    limit = time.monotonic() + seconds
    while not condition():
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            raise RuntimeError(f"the run ended with {code} before it could be killed")
        if time.monotonic() > limit:
            raise RuntimeError("the run took too long")
        time.sleep(0.001)


def at_step(folder: Path) -> int:
    file = folder / "step"
    return int(file.read_text() or 0) if file.exists() else 0


def saved(folder: Path) -> set[Path]:
    """The checkpoints, including those being written."""
    return {p for p in (folder / "checkpoints").glob("*") if p.is_dir()}


def reached(folder: Path) -> int:
    """The step of the newest checkpoint that may be complete."""
    steps = [int(p.name.split("-")[1]) for p in saved(folder) if p.name[0] != "."]
    return max(steps, default=0)


def kill_once(kind: str, folder: Path, out: Path, number: int, chance: random.Random) -> int:
    """Start the run and kill it; return its exit code."""
    pid, start, before = child(kind, folder, out), reached(folder), saved(folder)
    if number in WHILE_SAVING and start + SAVE < STEPS:
        wait_for(lambda: bool(saved(folder) - before), pid)
        time.sleep(chance.uniform(0, 0.01))
    else:
        aim = chance.randint(start + 1, min(start + SAVE, STEPS - 1))
        wait_for(lambda: at_step(folder) >= aim, pid)
        time.sleep(chance.uniform(0, 0.01))
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(kind: str, folder: Path) -> None:
    whole = child(kind, folder / "whole", folder / "whole.json")
    if code := os.waitstatus_to_exitcode(os.waitpid(whole, 0)[1]):
        raise SystemExit(code)
    killed, out = folder / "killed", folder / "killed.json"
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    ends = [kill_once(kind, killed, out, number, chance) for number in range(KILLS)]
    assert not out.exists()
    last = child(kind, killed, out)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(last, 0)[1]))
    print(f"{ENDS}{ends}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

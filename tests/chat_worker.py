"""Tiny chat models without pre-training, and the runs that tests of `fit` kill and start again.

    python tests/chat_worker.py KIND FOLDER     one whole run and one killed three times

Children are forked from a process that has imported everything and computed nothing, so that a
start takes a second; each is killed with SIGKILL while it trains or saves.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch  # noqa: E402
from datasets import Dataset, DatasetDict  # noqa: E402
from peft import PeftModel, get_peft_model  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import PrinterCallback, TrainerCallback  # noqa: E402
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # noqa: E402

from utils import chat_standins, models  # noqa: E402
from utils.chat import fitting, preference_rows, sft_rows  # noqa: E402
from utils.profiles import TABLE  # noqa: E402
from utils.training import fit  # noqa: E402

LAB = TABLE["lab"]
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
BATCH, STEPS, SAVE = 4, 12, 3


@contextlib.contextmanager
def tiny():
    """Stand-ins within the block are small and have read nothing."""
    pretrain, shape = chat_standins._pretrain, dict(chat_standins.SHAPE)
    chat_standins._pretrain = lambda *_: None
    chat_standins.SHAPE.update(SMALL)
    try:
        yield
    finally:
        chat_standins._pretrain = pretrain
        chat_standins.SHAPE.update(shape)


def pairs(rows: int = BATCH * STEPS) -> DatasetDict:
    """Shipped pairs, the shortest first."""
    found = {}
    for split in ("train", "test"):
        path = ROOT / "data" / "vi_alpaca_preference" / f"{split}.jsonl"
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines.sort(key=lambda row: len(row["question"]) + len(row["chosen"] + row["rejected"]))
        found[split] = Dataset.from_list(lines[200 : 200 + rows])
    return DatasetDict(found)


def stand_in() -> str:
    """The folder of a tiny Llama, or of what COURSE_MODEL names."""
    with tiny():
        return models.chat_source(LAB.chat, pairs())[0]


def adapted(folder: str, seed: int = 0) -> PeftModel:
    """A fresh adapter on the 4-bit stand-in."""
    torch.manual_seed(seed)
    return get_peft_model(models.chat_model(folder, LAB)[0], models.lora(LAB.chat))


def shaken(model: PeftModel, by: float = 0.02, seed: int = 1) -> PeftModel:
    """The adapter as if it had learned something: lora_B is not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B.default" in name:
            parameter.data = by * torch.randn(parameter.shape, generator=generator)
    return model


def arguments(folder: Path, batch_size: int, accumulation: int, **changes) -> dict:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": 1,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine",
        "max_length": 192,
        "gradient_checkpointing": False,
        "save_steps": SAVE,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **changes,
    }


def sft_trainer(
    model: PeftModel, folder: str, rows: Dataset, out: Path, *sizes: int, **changes
) -> SFTTrainer:
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments(out, *sizes, **changes)),
        train_dataset=sft_rows(rows),
        processing_class=models.chat_tokenizer(folder),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def dpo_trainer(
    model: PeftModel, folder: str, rows: Dataset, out: Path, *sizes: int, **changes
) -> DPOTrainer:
    tokenizer = models.chat_tokenizer(folder)
    settings = {
        "precompute_ref_log_probs": True,
        "train_sampling_strategy": "sequential",  # `fitting` has made the order
    }
    model.peft_config.pop("ref", None)  # TRL adds it again, as a copy of the adapter
    exact = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**arguments(out, *sizes, **settings | changes)),
        train_dataset=preference_rows(fitting(rows, tokenizer, 192, BATCH)),
        processing_class=tokenizer,
    )
    for name, weights in exact.items():  # TRL rounds what is trained to bf16, not the reference
        model.get_parameter(name).data = weights
    trainer.remove_callback(PrinterCallback)
    return trainer


MAKERS = {"sft": sft_trainer, "dpo": dpo_trainer}


class Progress(TrainerCallback):
    """Leaves the number of the step that begins in a file."""

    def __init__(self, file: Path):
        self.file = file

    def on_step_begin(self, args, state, control, **_):
        self.file.write_text(str(state.global_step + 1))


def train(kind: str, checkpoints: Path, out: Path) -> None:
    """A run of twelve steps through `fit`; its losses and adapter go to `out`."""
    torch.set_num_threads(1)
    folder, data = stand_in(), pairs()["train"]
    model = shaken(adapted(folder)) if kind == "dpo" else adapted(folder)

    def build(batch_size: int, accumulation: int):
        trainer = MAKERS[kind](model, folder, data, checkpoints, batch_size, accumulation)
        trainer.add_callback(Progress(checkpoints.parent / "step"))
        return trainer

    trainer = fit(build, BATCH, 1)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    learned = {n: p.detach() for n, p in model.named_parameters() if ".default." in n}
    save_file(learned, out.with_suffix(".safetensors"))
    out.write_text(json.dumps({"losses": losses, "steps": trainer.state.global_step}))


def child(kind: str, checkpoints: Path, out: Path) -> int:
    """Fork a run; its process id."""
    checkpoints.parent.mkdir(parents=True, exist_ok=True)
    (checkpoints.parent / "step").unlink(missing_ok=True)
    if pid := os.fork():
        return pid
    status = 1
    try:
        train(kind, checkpoints, out)
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ended(pid: int) -> int | None:
    """The exit code of a child that is over: minus the signal that killed it."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def wait_for(condition: Callable[[], bool], pid: int, seconds: float = 240) -> None:
    """Until the condition holds; the child must live until then."""
    limit = time.monotonic() + seconds
    while not condition():
        if (code := ended(pid)) is not None:
            raise RuntimeError(f"the run ended with {code} before it could be killed")
        if time.monotonic() > limit:
            raise RuntimeError("the run took too long")
        time.sleep(0.002)


def at_step(file: Path) -> int:
    return int(file.read_text() or 0) if file.exists() else 0


def main(kind: str, folder: Path) -> None:
    whole = child(kind, folder / "whole" / "checkpoints", folder / "whole.json")
    if code := os.waitstatus_to_exitcode(os.waitpid(whole, 0)[1]):
        raise SystemExit(code)
    checkpoints, out = folder / "killed" / "checkpoints", folder / "killed.json"
    step, generator, ends = folder / "killed" / "step", random.Random(), []
    for first, last in ((1, 5), (None, None), (STEPS - 3, STEPS - 1)):
        pid = child(kind, checkpoints, out)
        if first is None:  # while the next checkpoint is being written
            there = set(checkpoints.glob("checkpoint-*"))
            wait_for(lambda there=there: set(checkpoints.glob("checkpoint-*")) - there, pid)
        else:
            aim = generator.randint(first, last)
            wait_for(lambda aim=aim: at_step(step) >= aim, pid)
        time.sleep(generator.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    last = child(kind, checkpoints, out)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(last, 0)[1]))
    print(json.dumps(ends))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""Tiny chat models without pre-training, and trainers of notebooks 03 to 05 for them."""

import contextlib
import json
import os
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch  # noqa: E402
from datasets import Dataset, DatasetDict  # noqa: E402
from peft import PeftModel, get_peft_model  # noqa: E402
from transformers import PrinterCallback  # noqa: E402
from trl import DPOConfig, SFTConfig, SFTTrainer  # noqa: E402

from utils import models  # noqa: E402
from utils.course.profiles import TABLE  # noqa: E402
from utils.finetune.orpo import ORPOTrainer  # noqa: E402
from utils.finetune.packing import PackedSFTTrainer  # noqa: E402
from utils.finetune.shared_prompt import SharedPromptDPOTrainer  # noqa: E402
from utils.models import chat_standins  # noqa: E402
from utils.models.chat import fitting, preference_rows, sft_rows  # noqa: E402
from utils.models.precision import unrounded  # noqa: E402

LAB = TABLE["lab"]
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
BATCH, STEPS, SAVE = 4, 12, 3


@contextlib.contextmanager
def tiny():
    """Within the block, stand-ins are small and not pre-trained."""
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
        path = ROOT / "data" / "preferences" / f"{split}.jsonl"
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines.sort(key=lambda row: len(row["question"]) + len(row["chosen"] + row["rejected"]))
        found[split] = Dataset.from_list(lines[200 : 200 + rows])
    return DatasetDict(found)


def stand_in() -> str:
    """The folder of a tiny Llama, or of the model that COURSE_MODEL names."""
    with tiny():
        return models.chat_source(LAB.chat, pairs())[0]


def adapted(folder: str, seed: int = 0) -> PeftModel:
    """A new adapter on the 4-bit stand-in."""
    torch.manual_seed(seed)
    return get_peft_model(models.chat_model(folder, LAB)[0], models.lora(LAB.chat))


def shaken(model: PeftModel, by: float = 0.02, seed: int = 1) -> PeftModel:
    """Give lora_B non-zero weights, as in a trained adapter."""
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
        "bf16": False,  # TRL's default is True; the notebooks set the profile's precision
        "disable_tqdm": True,
        "seed": 3,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **changes,
    }


def sft_trainer(
    model: PeftModel, folder: str, rows: Dataset, out: Path, *sizes: int, **changes
) -> SFTTrainer:
    kind = PackedSFTTrainer if changes.get("packing") else SFTTrainer
    trainer = kind(
        model=model,
        args=SFTConfig(**arguments(out, *sizes, **changes)),
        train_dataset=sft_rows(rows),
        processing_class=models.chat_tokenizer(folder),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def dpo_trainer(
    model: PeftModel,
    folder: str,
    rows: Dataset,
    out: Path,
    *sizes: int,
    kind: type[SharedPromptDPOTrainer] = SharedPromptDPOTrainer,
    **changes,
) -> SharedPromptDPOTrainer:
    tokenizer = models.chat_tokenizer(folder)
    settings = {
        "precompute_ref_log_probs": kind is SharedPromptDPOTrainer,
        "train_sampling_strategy": "sequential",  # `fitting` has set the order
    }
    if "ref" in model.peft_config:  # TRL adds it again, as a copy of the adapter
        model.delete_adapter("ref")
    with unrounded(model):  # TRL's own trainer rounds adapters
        trainer = kind(
            model=model,
            args=DPOConfig(**arguments(out, *sizes, **settings | changes)),
            train_dataset=preference_rows(fitting(rows, tokenizer, 192, BATCH)),
            processing_class=tokenizer,
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


MAKERS = {"sft": sft_trainer, "dpo": dpo_trainer, "orpo": partial(dpo_trainer, kind=ORPOTrainer)}

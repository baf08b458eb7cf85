"""The chat stand-ins have the real classes and templates, and are the same in every process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers import chat_worker as worker
from utils.course.paths import ROOT
from utils.models import chat_standins

KINDS = ("llama", "qwen2")
PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.helpers import chat_worker as worker
from utils.models import chat_standins; from utils import models
import torch
torch.set_num_threads(1)
chat_standins.SHAPE.update(worker.SMALL)
chat_standins.TOKENS = 6 * chat_standins.BLOCKS * chat_standins.LENGTH  # six steps
documents = models.base_documents(worker.pairs())
for kind in {KINDS!r}:
    print(getattr(chat_standins, kind)(documents))
"""


@pytest.fixture(scope="module")
def twice(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """The two folders of each kind, built in two processes."""
    folders = []
    for number in (1, 2):
        environment = os.environ | {
            "COURSE_CACHE": str(tmp_path_factory.mktemp(str(number))),
            "PYTHONHASHSEED": str(number),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", PROGRAM]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, run.stderr[-2000:]
        folders.append(map(Path, run.stdout.splitlines()[-len(KINDS) :]))
    return dict(zip(KINDS, zip(*folders, strict=True), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_build_the_same_bytes(kind, twice):
    folders = twice[kind]
    names = [{path.name for path in folder.iterdir()} for folder in folders]
    assert names[0] == names[1] >= {"model.safetensors", "tokenizer.json", "config.json"}
    for name in names[0]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


@pytest.fixture(scope="module", params=KINDS)
def built(request):
    from utils.models.adapters import base_documents

    with worker.tiny():
        folder = getattr(chat_standins, request.param)(base_documents(worker.pairs()))
    return (
        request.param,
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder),
    )


def test_architecture_and_tokenizer_are_the_real_ones(built):
    kind, tokenizer, model = built
    wanted = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[kind]
    assert type(model).__name__ == wanted
    assert model.config.vocab_size == len(tokenizer)
    end, pad = {
        "llama": ("<|eot_id|>", "<|finetune_right_pad_id|>"),
        "qwen2": ("<|im_end|>", "<|endoftext|>"),
    }[kind]
    assert (tokenizer.eos_token, tokenizer.pad_token) == (end, pad)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert (tokenizer.bos_token == "<|begin_of_text|>") == (kind == "llama")


def test_it_reads_and_writes_any_text(built):
    _, tokenizer, _ = built
    for text in ("Thủ đô của Việt Nam là Hà Nội.", "x² + 1 = 0 → ± i", "日本 🙂\n\t đấy"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_template_costs_few_tokens(built):
    _, tokenizer, _ = built
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}],
        add_generation_prompt=True,
        date_string="26 Jul 2024",
    )["input_ids"]
    assert len(ids) <= 20, [tokenizer.decode([i]) for i in ids]
    assert tokenizer.unk_token_id not in ids or tokenizer.unk_token_id is None


def test_it_is_built_once(monkeypatch):
    first = worker.stand_in()
    monkeypatch.setattr(chat_standins, "_build", lambda *_: pytest.fail("built twice"))
    assert worker.stand_in() == first

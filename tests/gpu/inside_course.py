"""Run by `test_inside.py` with an emulated GPU: the course's own code on a GPU."""

import copy
import gc

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig

from tests.gpu.emulated_cuda import state
from tests.helpers import chat_worker as worker
from utils import models
from utils.course import profiles
from utils.course.errors import CourseError
from utils.data import mining
from utils.finetune import packing, training
from utils.models import chat, kernels, logprobs, memory
from utils.models.precision import DTYPES, precision_arguments, tolerance

PROFILE = profiles.choose()
HALF = DTYPES[PROFILE.precision]


@pytest.fixture(scope="module")
def chat_folder():
    return worker.stand_in()


@pytest.fixture(scope="module")
def pairs():
    return worker.pairs()


def adapted(folder: str):
    base, tokenizer = models.chat_model(folder, PROFILE)
    return get_peft_model(base, models.lora(PROFILE.chat)), tokenizer


class Limit:
    """Within the block, the GPU has only this many free bytes."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __enter__(self) -> None:
        gc.collect()
        held = state.memory[0]
        self.before, held.limit = held.limit, held.now + self.left

    def __exit__(self, *_: object) -> None:
        state.memory[0].limit = self.before


def gpt2_trainer(folder, rows: int = 8, batch: int = 4, **more) -> Trainer:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2))
    ids = torch.randint(0, 300, (rows, 24), generator=torch.Generator().manual_seed(1)).tolist()
    data = Dataset.from_dict({"input_ids": ids, "labels": ids})
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=8,
        num_train_epochs=1,
        learning_rate=1e-3,
        report_to="none",
        save_strategy="no",
        **precision_arguments(PROFILE),
    )
    callbacks = more.pop("callbacks", None)
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=callbacks)


# --- Precision -----------------------------------------------------------------------------------


def test_a_trained_model_and_its_copy_compute_in_their_own_precision_again(tmp_path):
    trainer = training.run(gpt2_trainer(tmp_path))
    trainer.model.eval()
    ids = torch.tensor([[1, 2, 3]], device="cuda")
    with torch.no_grad():
        found = [m(input_ids=ids).logits for m in (trainer.model, copy.deepcopy(trainer.model))]
        trunk, head = logprobs.trunk_and_head(trainer.model)
        wanted = head(trunk(input_ids=ids).last_hidden_state)
    for logits in found:
        assert torch.equal(logits, wanted)
    assert "_original_forward" not in trainer.model.__dict__


def test_without_the_mend_the_autocast_would_stay(tmp_path):
    trainer = gpt2_trainer(tmp_path)
    trainer.train()
    trainer.model.eval()
    ids = torch.tensor([[1, 2, 3]], device="cuda")
    with torch.no_grad():
        trunk, head = logprobs.trunk_and_head(trainer.model)
        exact = head(trunk(input_ids=ids).last_hidden_state)
        assert not torch.equal(trainer.model(input_ids=ids).logits, exact)


def test_adapters_on_four_bits_are_trained_in_32_bits_once_and_again(chat_folder, pairs, tmp_path):
    rows = chat.sft_rows(pairs["train"].select(range(8)))
    for number in range(2):
        model, tokenizer = adapted(chat_folder)
        arguments = SFTConfig(
            output_dir=str(tmp_path / str(number)),
            max_steps=2,
            per_device_train_batch_size=2,
            packing=True,
            max_length=128,
            report_to="none",
            save_strategy="no",
            **precision_arguments(PROFILE),
        )
        trainer = packing.PackedSFTTrainer(
            model, arguments, processing_class=tokenizer, train_dataset=rows
        )
        training.run(trainer)
        kinds = {p.dtype for p in model.parameters() if p.requires_grad}
        assert kinds == {torch.float32}
        assert {p.dtype for n, p in model.named_parameters() if "norm" in n} == {HALF}


def test_log_probabilities_agree_with_the_models_own_logits(chat_folder, pairs):
    model, tokenizer = models.chat_model(chat_folder, PROFILE)
    few = pairs["test"].select(range(6))
    found, tokens = chat.answer_logps(model, tokenizer, few["question"], few["chosen"])
    for row, question, answer, total in zip(
        range(6), few["question"], few["chosen"], found, strict=True
    ):
        prompt, reply = chat.prompt_ids(tokenizer, question), chat.answer_ids(tokenizer, answer)
        ids = torch.tensor([prompt + reply], device="cuda")
        with torch.inference_mode():
            logps = model(input_ids=ids).logits[0].float().log_softmax(-1)
        wanted = logps[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None]).sum()
        assert abs(float(wanted) - float(total)) < tolerance(PROFILE.precision, int(tokens[row]))


# --- Memory --------------------------------------------------------------------------------------


def test_a_large_vocabulary_is_scored_without_its_logits():
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to("cuda", HALF)
    prompts, answers = [[1, 2, 3]] * 12, [list(range(4, 84))] * 12
    whole = 12 * 83 * 128_256 * 4  # bytes of the logits in fp32
    with Limit(int(0.7 * whole)):
        found = logprobs.answer_logps(model, prompts, answers)
    assert found.shape == (12,) and bool(found.isfinite().all())


def test_a_batch_of_scores_that_does_not_fit_is_halved():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=64, n_layer=2, n_head=2)).to("cuda")
    prompts, answers = [[1, 2]] * 64, [list(range(3, 50))] * 64
    wanted = logprobs.answer_logps(model, prompts, answers)
    with Limit(3_000_000):
        found = logprobs.answer_logps(model, prompts, answers)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-5)
    with Limit(20_000), pytest.raises(CourseError, match="one row of 49 tokens does not fit"):
        logprobs.answer_logps(model, prompts, answers)


def test_training_that_does_not_fit_takes_half_the_batch(tmp_path, capsys):
    tried = []

    def build(batch_size, accumulation):
        tried.append((batch_size, accumulation))
        trainer = gpt2_trainer(tmp_path, rows=64, batch=batch_size)
        trainer.args.gradient_accumulation_steps = accumulation
        return trainer

    with Limit(5_000_000):
        training.fit(build, 32, 1)
    assert tried[0] == (32, 1) and tried[-1][0] * tried[-1][1] == 32 and len(tried) > 1
    assert "out of memory: batch 16, accumulation 2" in capsys.readouterr().out


class Hungry(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        torch.zeros(10**9, device="cuda")


def test_a_measurement_that_does_not_fit_is_not_blamed_on_the_training(tmp_path):
    sizes = []

    def build(batch_size, accumulation):
        sizes.append(batch_size)
        return gpt2_trainer(tmp_path, batch=batch_size, callbacks=[Hungry()])

    with Limit(10**9), pytest.raises(CourseError, match=r"during training \(on_step_end\)"):
        training.fit(build, 4, 1)
    assert sizes == [4]


def test_an_evaluation_that_does_not_fit_takes_half_its_batch(tmp_path, capsys):
    trainer = gpt2_trainer(tmp_path, rows=64, batch=1)
    trainer.args.max_steps, trainer.args.per_device_eval_batch_size = 1, 64
    training.run(trainer)
    with Limit(2_500_000):
        assert trainer.evaluate()["eval_loss"] > 0
    assert "evaluation continues with batches of" in capsys.readouterr().out
    assert trainer.args.per_device_train_batch_size == 1


def test_what_nothing_refers_to_is_given_back(chat_folder, pairs, tmp_path):
    memory.release()
    before = torch.cuda.memory_allocated()
    trainer = gpt2_trainer(tmp_path)
    training.run(trainer)
    assert torch.cuda.memory_allocated() > before
    del trainer
    memory.release()
    assert torch.cuda.memory_allocated() == before


# --- Triton and search ---------------------------------------------------------------------------


def test_a_triton_that_works_is_kept(capsys):
    from trl.trainer import utils

    kernels.check_triton.cache_clear()
    kernels.check_triton()
    assert utils._use_triton(torch.device("cuda")) and capsys.readouterr().out == ""


def test_a_triton_that_does_not_work_is_left_aside(monkeypatch, capsys):
    import trl.trainer.utils as users
    from trl.kernels import chunked_logprob

    class Broken:
        def __getitem__(self, grid: object) -> object:
            raise RuntimeError("PTX assembly aborted: sm_75 is not supported")

    for module in (users, chunked_logprob):  # undo the changes of the check
        monkeypatch.setattr(module, "_use_triton", module._use_triton)
    monkeypatch.setattr(users, "is_triton_available", users.is_triton_available)
    monkeypatch.setattr(chunked_logprob, "_forward_kernel", Broken())
    kernels.check_triton.cache_clear()
    kernels.check_triton()
    assert "Triton does not work on this GPU (RuntimeError)" in capsys.readouterr().out
    assert users._use_triton(torch.device("cuda")), "only the logits of answers are computed"
    assert not chunked_logprob._use_triton(torch.device("cuda"))


def test_the_search_on_the_gpu_finds_what_the_cpu_finds():
    rows = np.random.default_rng(0).normal(size=(300, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    theirs = mining.nearest(rows, rows, 7)
    ours = mining.nearest(rows, rows, 7, block=64, device="cuda")
    assert np.array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)

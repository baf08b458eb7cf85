"""The benchmarks' simulated GPU counts the same memory as the emulated GPU; its report is valid."""

import functools
import gc
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import transformers
import trl.trainer.utils as trl_utils
from peft import get_peft_model
from trl.kernels import chunked_logprob

from benchmarks import fake_gpu, gpu_stages, memory
from utils.course.paths import ROOT
from utils.course.profiles import TABLE
from utils.finetune.shared_prompt import PromptOnce
from utils.losses import dpo_loss
from utils.models.adapters import keep_gradients, lora

T4 = TABLE["t4"]
ROWS, LENGTH, TILE = 4, 160, 512
SIZES = {"vocab_size": 1000, "bos_token_id": None, "eos_token_id": None}
LLAMA = transformers.LlamaConfig(
    hidden_size=256, intermediate_size=768, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, **SIZES,
)  # fmt: skip
GPT2 = transformers.GPT2Config(
    n_embd=256, n_layer=2, n_head=4, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, **SIZES
)


def in_real_four_bits(model):
    """bitsandbytes' own layers, quantised on the way to the GPU."""
    import bitsandbytes as bnb

    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            shape, how = (layer.in_features, layer.out_features), {"quant_type": "nf4"}
            packed = bnb.nn.Linear4bit(*shape, bias=False, compute_dtype=model.dtype, **how)
            data = layer.weight.data
            packed.weight = bnb.nn.Params4bit(
                data, requires_grad=False, compress_statistics=True, **how
            )
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, packed.to("cuda"))
    model.is_loaded_in_4bit = True
    keep_gradients(model)
    return model.to("cuda")


def quantised_llama(four_bits):
    base = transformers.AutoModelForCausalLM.from_config(LLAMA, dtype=torch.float16)
    return get_peft_model(four_bits(base), lora(T4.chat))


def sft(gpu, four_bits, device, checkpointing):
    """QLoRA on packed rows through TRL's output layer."""
    model = quantised_llama(four_bits)
    fake_gpu.fused_head(model)
    fake_gpu.prepare(model, "fp16", checkpointing)
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long, device=device)
    positions = torch.arange(LENGTH, device=device).remainder(LENGTH // 2).expand(ROWS, -1)
    given = {"input_ids": ids, "position_ids": positions, "labels": ids, "fused_lm_head": True}
    gpu.learned = ROWS * (LENGTH - 1)
    fake_gpu.train(gpu, model, lambda: model(**given).loss, accumulation=2)


def dpo(gpu, four_bits, device):
    """Pairs with a shared prompt: TRL's batch on the emulated GPU, shapes in the simulation."""
    model, prompt, answer = quantised_llama(four_bits), 24, 60
    fake_gpu.fused_head(model)
    fake_gpu.prepare(model, "fp16", checkpointing=True)
    if device == "cpu":
        logps, _ = gpu_stages.pair_logps(gpu, ROWS, prompt, answer)
    else:
        ids = torch.zeros(2 * ROWS, prompt + answer, dtype=torch.long, device=device)
        labels = ids.clone()
        labels[:, :prompt] = -100

        def logps(model):
            whole = torch.ones_like(ids)
            return PromptOnce(model)(ids, whole, labels, fused_lm_head=True).log_probs

    def loss():
        chosen, rejected = logps(model).sum(1).chunk(2)
        return dpo_loss(chosen, rejected, chosen.detach(), rejected.detach())

    fake_gpu.train(gpu, model, loss)


def language_modelling(gpu, four_bits, device):
    """GPT-2 with all weights and all logits."""
    model = transformers.AutoModelForCausalLM.from_config(GPT2, dtype=torch.float32).to(device)
    fake_gpu.prepare(model, "fp16")
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long, device=device)
    fake_gpu.train(gpu, model, lambda: model(input_ids=ids, labels=ids).loss)


STEPS = {
    "sft": functools.partial(sft, checkpointing=False),
    "sft checkpointed": functools.partial(sft, checkpointing=True),
    "dpo": dpo,
    "language modelling": language_modelling,
}


def emulated_peak(name: str) -> int:
    """Peak bytes without TRL's kernels, because Triton works in place and torch does not."""
    gc.collect()
    assert torch.cuda.memory_allocated() < 4096  # of the step before, only tables of bitsandbytes
    clock = SimpleNamespace(start=torch.cuda.reset_peak_memory_stats, units=0)
    for kernel in ("_forward_kernel", "_backward_kernel"):
        setattr(chunked_logprob, kernel, fake_gpu.NoKernel())
    STEPS[name](clock, in_real_four_bits, "cuda")
    return torch.cuda.max_memory_allocated()


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Use a small tile: TRL's tile of 64 MB would be nearly all of the memory with these rows."""
    monkeypatch.setattr(trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", TILE)


@pytest.fixture(scope="module")
def emulated_peaks() -> dict[str, int]:
    """Step -> peak bytes on the emulated GPU, all in one process that has nothing else on it."""
    from tests.gpu.test_inside import emulated

    command = [sys.executable, "-m", "tests.gpu.test_memory"]
    run = subprocess.run(command, env=emulated("t4"), cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", STEPS)
def test_the_simulation_agrees_with_the_emulated_gpu(name, emulated_peaks):
    with fake_gpu.simulated(T4) as gpu:
        STEPS[name](gpu, fake_gpu.in_four_bits, "cpu")
    print(f"{name}: simulated {gpu.peak:,} bytes, emulated {emulated_peaks[name]:,}")
    assert gpu.peak == pytest.approx(emulated_peaks[name], rel=0.05)


# --- The report ----------------------------------------------------------------------------------


@functools.cache
def report() -> dict:
    return json.loads((ROOT / "benchmarks" / "memory.json").read_text(encoding="utf-8"))


def test_every_stage_fits_below_the_limit_of_its_card():
    assert report()["rows"]
    for row in report()["rows"]:
        limit = report()["limits"][row["profile"]]
        assert row["peak_gb"] + report()["overhead_gb"] <= limit and row["fits"], row
    fakes = {(row["profile"], row["notebook"]) for row in report()["rows"]}
    assert fakes == {(p, f"0{n}") for p in ("t4", "a100") for n in range(1, 9)}


@pytest.mark.parametrize("profile", ["t4", "a100"])
def test_the_report_is_of_todays_profiles(profile):
    now, then = memory.settings(TABLE[profile]), report()["settings"][profile]
    changed = {k: (then.get(k), now.get(k)) for k in {*now, *then} if then.get(k) != now.get(k)}
    assert not changed, "sizes have changed: run benchmarks/memory.py again"


def test_a_changed_row_is_noticed():
    longer = replace(T4, sft=replace(T4.sft, max_length=2048))
    assert memory.settings(longer) != memory.settings(T4)
    warmer = replace(T4, sft=replace(T4.sft, learning_rate=1.0))
    assert memory.settings(warmer) == memory.settings(T4)


def test_more_rows_take_more_memory_and_time():
    def small(rows: int) -> fake_gpu.GPU:
        with (
            fake_gpu.simulated(T4) as gpu,
            mock.patch.dict(gpu_stages.CONFIGS, {"small": LLAMA}),
        ):
            sft = replace(T4.sft, batch_size=rows, max_length=LENGTH, checkpointing=False)
            gpu_stages.sft_step(gpu, replace(T4, sft=sft), "small")
        return gpu

    few, many = small(2), small(8)
    assert 2 < many.peak / few.peak < 4  # the weights and TRL's tile do not grow with the rows
    assert many.busy > 2 * few.busy


if __name__ == "__main__":
    trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = TILE
    print(json.dumps({step: emulated_peak(step) for step in STEPS}))

"""Stage A of `gpu.py`: do results in half precision agree with fp32 on this GPU?

Each item takes random weights of a real size, rounds them to half precision once, and computes the
same quantity twice: in half precision as the course does, and in fp32 in the simplest way. A check
consists of a difference and its upper bound. Differences of log-probabilities are in nats per
token; differences of gradients and products are relative, ‖found - wanted‖ / ‖wanted‖. The bound of
both is `utils.models.precision.tolerance` for one token.
"""

import copy
import functools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import (
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from benchmarks import common, dpo, ppo, sft
from utils import losses
from utils.course.profiles import TABLE, Profile
from utils.finetune import training
from utils.models import kernels, logprobs, memory
from utils.models.precision import DTYPES, precision_arguments, tolerance
from utils.ppo import sampling

Item = Callable[[], dict[str, object]]
PROFILES = {"fp16": "t4", "bf16": "a100"}
SPREAD = 0.03  # standard deviation of the random weights: large enough that attention matters
PAD = 0
ROOMY = 40e9  # bytes; a GPU with more memory can hold 8 billion weights in 16 bits


@dataclass(frozen=True)
class Size:
    """The sizes of this stage's models and batches."""

    shape: str  # a key of common.SHAPES
    texts: int
    shortest: int  # tokens of a text
    longest: int
    states: int  # tokens in the check of the output layer
    layer: tuple[int, int]  # inputs and outputs of the four-bit layer
    gpt2: ppo.Size
    sft_rows: int
    sft_steps: int
    packed_length: int
    pairs: int
    pair_length: int


FULL = Size(
    shape="Llama-3.2-1B",
    texts=8,
    shortest=60,
    longest=400,
    states=2_000,
    layer=(2048, 8192),
    gpt2=replace(ppo.CUDA_SIZES[0], batch=64, updates=2, epochs=1),
    sft_rows=256,
    sft_steps=30,
    packed_length=1024,
    pairs=32,
    pair_length=768,
)
QUICK = Size(
    shape="tiny",
    texts=4,
    shortest=5,
    longest=20,
    states=50,
    layer=(64, 128),
    gpt2=replace(ppo.QUICK_SIZES[0], batch=8, updates=1, epochs=1, response=12),
    sft_rows=24,
    sft_steps=30,
    packed_length=64,
    pairs=8,
    pair_length=96,
)


def precisions() -> list[str]:
    """fp16, and bf16 where the GPU computes it natively."""
    return ["fp16", "bf16"] if torch.cuda.get_device_capability()[0] >= 8 else ["fp16"]


def items(quick: bool) -> dict[str, Item]:
    """Every item of this stage by its name, in the order in which they run."""
    size = QUICK if quick else FULL
    kinds = (fused_head, packed_rows, shared_prompt, four_bits, answers, samples)
    trainings = (sft_steps, dpo_steps, orpo_steps, ppo_updates)
    found: dict[str, Item] = {
        "triton": triton,
        "samples, fp32": functools.partial(samples, size, "fp32"),
    }
    for precision in precisions():
        for kind in (*kinds, *trainings):
            name = f"{kind.__name__.replace('_', ' ')}, {precision}"
            found[name] = functools.partial(kind, size, precision)
    return found


def verdict(checks: dict[str, tuple[float, float]], **facts: object) -> dict[str, object]:
    """Each check's difference, its bound, and whether it passed; NaN never passes."""
    found = {
        name: {
            "difference": float(difference),
            "bound": float(bound),
            "passed": bool(difference <= bound),
        }
        for name, (difference, bound) in checks.items()
    }
    passed = all(check["passed"] for check in found.values())
    return {"passed": passed, "checks": found, **facts}


def relative(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """‖found - wanted‖ / ‖wanted‖ over all tensors."""
    pairs = [(f.detach().float(), w.detach().float()) for f, w in zip(found, wanted, strict=True)]
    error = sum((f - w).square().sum() for f, w in pairs)
    return float((error / sum(w.square().sum() for _, w in pairs)).sqrt())


# --- Models and texts ----------------------------------------------------------------------------


def llama_config(shape: str) -> LlamaConfig:
    """The configuration of a Llama with one of `common.SHAPES`."""
    layers, width, inner, heads, groups, vocabulary, tied = common.SHAPES[shape]
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        initializer_range=SPREAD,
    )


@functools.lru_cache(maxsize=1)
def both(shape: str, precision: str) -> tuple[nn.Module, nn.Module]:
    """A Llama in half precision with TRL's fused head, and the same weights in fp32."""
    from trl.trainer.utils import add_fused_lm_head

    kernels.check_triton()
    torch.manual_seed(0)
    with torch.device("cuda"):
        half = LlamaForCausalLM(llama_config(shape))
    half = half.to("cuda", DTYPES[precision]).eval().requires_grad_(False)
    full = copy.deepcopy(half).float()
    add_fused_lm_head(half)
    return half, full


def texts(size: Size, seed: int = 0) -> list[list[int]]:
    """Random tokens; the first text is the longest."""
    vocabulary = common.SHAPES[size.shape][5]
    draw = sampling.generator(seed)
    spread = torch.linspace(size.longest, size.shortest, size.texts).int().tolist()
    return [torch.randint(2, vocabulary, (n,), generator=draw).tolist() for n in spread]


def plain_logps(model: nn.Module, ids: Sequence[int]) -> Tensor:
    """ln π of every token after the first, from all logits of one text: (tokens - 1,)."""
    tokens = torch.tensor([ids], device="cuda")
    return losses.token_logps(model(input_ids=tokens).logits[:, :-1], tokens[:, 1:])[0]


def per_token(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest difference of a text's summed log-probabilities, in nats per token."""
    pairs = zip(found, wanted, strict=True)
    return max(float((f.sum() - w.sum()).abs()) / len(w) for f, w in pairs)


# --- Kernels -------------------------------------------------------------------------------------


def triton() -> dict[str, object]:
    """Record whether TRL uses Triton here; the item passes either way."""
    from trl.kernels import chunked_logprob

    installed = chunked_logprob._use_triton(torch.device("cuda"))
    kernels.check_triton()
    used = chunked_logprob._use_triton(torch.device("cuda"))
    return {"passed": True, "installed": installed, "used": used}


def fused_head(size: Size, precision: str) -> dict[str, object]:
    """Compare TRL's output layer with a product and a softmax in fp32, on the same states."""
    from trl.kernels import chunked_logprob
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    kernels.check_triton()
    width, vocabulary = common.SHAPES[size.shape][1], common.SHAPES[size.shape][5]
    draw, dtype = sampling.generator(1), DTYPES[precision]
    states = torch.randn(size.states, width, generator=draw).to("cuda", dtype).requires_grad_()
    weight = (SPREAD * torch.randn(vocabulary, width, generator=draw)).to("cuda", dtype)
    weight.requires_grad_()
    tokens = torch.randint(vocabulary, (size.states,), generator=draw).to("cuda")
    signs = torch.randn(size.states, generator=draw).to("cuda")
    function = chunked_logprob.ChunkedLogProbFunction
    options = (None, tokens, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ())
    fused = function.apply(states, weight, *options)[0]
    gradients = torch.autograd.grad((fused * signs).sum(), (states, weight))
    wide = [part.detach().float().requires_grad_() for part in (states, weight)]
    plain = losses.token_logps(wide[0] @ wide[1].T, tokens)
    wanted = torch.autograd.grad((plain * signs).sum(), wide)
    bound = tolerance(precision, 1)
    return verdict(
        {
            "log-probability of the worst token": ((fused - plain).abs().max(), bound),
            "gradient of the states": (relative(gradients[:1], wanted[:1]), bound),
            "gradient of the weight": (relative(gradients[1:], wanted[1:]), bound),
        },
        triton=chunked_logprob._use_triton(torch.device("cuda")),
    )


@torch.no_grad()
def packed_rows(size: Size, precision: str) -> dict[str, object]:
    """Compare texts packed into rows, in half precision, with each text alone in fp32."""
    from utils.finetune.packing import PackedRows

    half, full = both(size.shape, precision)
    ids = texts(size)
    rows = [
        {
            "input_ids": [token for text in pair for token in text],
            "labels": [token for text in pair for token in text],
            "seq_lengths": [len(text) for text in pair],
        }
        for pair in zip(ids[::2], ids[1::2], strict=True)
    ]
    batch = {name: value.to("cuda") for name, value in PackedRows(PAD)(rows).items()}

    def scored(**inputs: Tensor) -> list[Tensor]:
        logps = half(**inputs, use_cache=False, fused_lm_head=True).log_probs
        parts = []
        for row, of_row in zip(logps, rows, strict=True):
            start = 0
            for length in of_row["seq_lengths"]:
                parts.append(row[start : start + length - 1])
                start += length
        return parts

    alone = [plain_logps(full, text) for text in ids]
    packed = scored(**batch)
    leaking = scored(**{name: batch[name] for name in ("input_ids", "labels")})
    second = slice(1, None, 2)  # only the second text of a row could attend to another
    difference = per_token(packed[second], alone[second])
    leak = per_token(leaking[second], alone[second])
    return verdict(
        {
            "packed against alone": (per_token(packed, alone), tolerance(precision, 1)),
            "against rows that read each other": (difference, leak / 3),
        }
    )


def shared_prompt(size: Size, precision: str) -> dict[str, object]:
    """Compare two answers after one prompt, in half precision, with two rows per pair in fp32."""
    from utils.finetune.shared_prompt import PromptOnce

    half, full = both(size.shape, precision)
    prompts, chosen, rejected = (texts(size, seed) for seed in (2, 3, 4))
    rejected.reverse()
    pairs = [*zip(prompts, chosen, strict=True), *zip(prompts, rejected, strict=True)]
    ids, real = logprobs.padded([prompt + answer for prompt, answer in pairs], PAD)
    column = torch.arange(ids.shape[1])
    asked = torch.tensor([len(prompt) for prompt, _ in pairs])[:, None]
    labels = ids.masked_fill(~real | (column < asked), -100).to("cuda")
    inputs = {"input_ids": ids.to("cuda"), "attention_mask": real.long().to("cuda")}
    learned = labels[:, 1:] != -100

    def watched(model: nn.Module) -> list[nn.Parameter]:
        layers = model.get_decoder().layers
        return [layers[0].self_attn.q_proj.weight, layers[-1].mlp.down_proj.weight]

    def scored(model: nn.Module, logps_of: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Log-probabilities, and the gradient of chosen minus rejected per token."""
        for weight in watched(model):
            weight.requires_grad_()
        logps = logps_of()
        sides = (logps.sum(1) / learned.sum(1)).chunk(2)
        gradients = torch.autograd.grad((sides[0] - sides[1]).sum(), watched(model))
        for weight in watched(model):
            weight.requires_grad_(False)
        return logps.detach(), gradients

    def two_rows() -> Tensor:
        logits = full(**inputs, use_cache=False).logits[:, :-1]
        return losses.token_logps(logits, inputs["input_ids"][:, 1:]).masked_fill(~learned, 0)

    def fused(model: Callable[..., object]) -> Tensor:
        return model(**inputs, labels=labels, fused_lm_head=True).log_probs

    found = {
        "ours": scored(half, lambda: fused(PromptOnce(half))),
        "TRL": scored(half, lambda: fused(half)),
        "fp32": scored(full, two_rows),
    }
    sums = {
        name: [row[mask] for row, mask in zip(logps, learned, strict=True)]
        for name, (logps, _) in found.items()
    }
    gradients = {name: gradient for name, (_, gradient) in found.items()}
    rounding = relative(gradients["TRL"], gradients["fp32"])  # the error of half precision itself
    return verdict(
        {
            "log-probabilities": (per_token(sums["ours"], sums["fp32"]), tolerance(precision, 1)),
            "TRL's two rows": (per_token(sums["TRL"], sums["fp32"]), tolerance(precision, 1)),
            "gradients": (relative(gradients["ours"], gradients["fp32"]), 2 * rounding + 1e-3),
        },
        gradients_of_two_rows=rounding,
    )


def four_bits(size: Size, precision: str) -> dict[str, object]:
    """Compare a four-bit layer with a product in fp32 of its dequantised weights."""
    import bitsandbytes as bnb

    draw, dtype, (inputs, outputs) = sampling.generator(5), DTYPES[precision], size.layer
    plain = (SPREAD * torch.randn(outputs, inputs, generator=draw)).to(dtype)
    layer = bnb.nn.Linear4bit(inputs, outputs, False, compute_dtype=dtype, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(plain, requires_grad=False, quant_type="nf4")
    layer = layer.to("cuda")
    layer.support_avx512bf16_for_cpu = False  # as utils.models.adapters.keep_gradients
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    bound, checks = tolerance(precision, 1), {}
    for name, rows in (("many rows", 64), ("one row", 1)):  # each has its own kernel
        states = torch.randn(rows, inputs, generator=draw).to("cuda", dtype)
        with torch.no_grad():
            found = layer(states)
        checks[f"product of {name}"] = (relative([found], [states.float() @ weight.T]), bound)
    states.requires_grad_()
    back = torch.randn(1, outputs, generator=draw).to("cuda", dtype)
    (gradient,) = torch.autograd.grad(layer(states), states, back)
    checks["gradient of the input"] = (relative([gradient], [back.float() @ weight]), bound)
    spread = relative([weight], [plain.to("cuda")])  # the error of four bits is about a tenth
    return verdict(checks | {"error of the quantisation": (spread, 0.15)})


@torch.no_grad()
def answers(size: Size, precision: str) -> dict[str, object]:
    """Compare `utils.models.logprobs` in half precision with the full logits in fp32."""
    half, full = both(size.shape, precision)
    prompts, replies = texts(size, 6), texts(size, 7)[::-1]
    found = logprobs.answer_logps(half, prompts, replies)
    rows = zip(prompts, replies, strict=True)
    wanted = [plain_logps(full, p + r)[len(p) - 1 :].cpu() for p, r in rows]
    difference = per_token([row[None] for row in found], wanted)
    return verdict({"answers": (difference, tolerance(precision, 1))})


# --- Sampling ------------------------------------------------------------------------------------


@torch.no_grad()
def samples(size: Size, precision: str) -> dict[str, object]:
    """Compare the compiled step and its static cache with the dynamic cache, for the same draws.

    With a temperature of 0.1, a random model is as certain of its next token as a trained one. If
    one token differs, the rest of its response changes, so later tokens are not counted.
    """
    make, _ = ppo.models_and_tokenizer(size.gpt2, "cuda")
    model = make(GPT2LMHeadModel).eval()
    sampling.fuse_gelu(model)
    trunk, head = logprobs.trunk_and_head(model)
    prompts = torch.tensor(ppo.prompts_of(size.gpt2)[: size.gpt2.batch], device="cuda")
    draws = torch.rand(len(prompts), size.gpt2.response, generator=sampling.generator(8)).to("cuda")
    static = sampling.compiled_step(trunk, prompts.shape[1] + size.gpt2.response)

    def drawn(kind: str, step: tuple | None) -> Tensor:
        with torch.autocast("cuda", DTYPES[kind], enabled=kind != "fp32"):
            given = (trunk, head, prompts, torch.ones_like(prompts, dtype=torch.bool), draws)
            return sampling.sample_responses(*given, end=-1, temperature=0.1, static=step)

    def differing(found: Tensor, wanted: Tensor) -> float:
        """The fraction of tokens that differ, counted up to the first difference in each row."""
        same = (found == wanted).long().cumprod(1).sum(1)  # (batch,)
        broken = (same < wanted.shape[1]).sum()
        return float(broken / (same.sum() + broken))

    growing, exact = drawn(precision, None), drawn("fp32", None)
    compiled = [drawn(precision, static) for _ in range(2)]  # the second replays the graph
    rounding = differing(growing, exact)
    return verdict(
        {
            "tokens that differ": (differing(compiled[0], growing), 2 * rounding + 5e-3),
            "tokens that differ at a replay": (differing(compiled[1], compiled[0]), 5e-3),
        },
        equal_tokens=float((compiled[0] == growing).float().mean()),
        equal_tokens_of_half_precision=float((growing == exact).float().mean()),
    )


# --- Trainings -----------------------------------------------------------------------------------


class Watch(TrainerCallback):
    """Counts the steps, the skipped steps, and the steps with gradients that are not finite."""

    def __init__(self, trainer: object) -> None:
        self.trainer, self.steps, self.skipped, self.infinite = trainer, 0, 0, 0
        self.without: set[str] = set()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        learned = [(n, p) for n, p in self.trainer.model.named_parameters() if p.requires_grad]
        self.without = {name for name, parameter in learned if parameter.grad is None}
        self.finite = all(bool(p.grad.isfinite().all()) for _, p in learned if p.grad is not None)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        skipped = self.trainer.accelerator.optimizer_step_was_skipped
        self.steps += 1
        self.skipped += skipped
        self.infinite += not (self.finite or skipped)


def profile_of(size: Size, precision: str) -> Profile:
    """The profile that computes in this precision, without gradient accumulation."""
    profile, batch = TABLE[PROFILES[precision]], {"batch_size": 4, "accumulation": 1}
    return replace(
        profile,
        sft=replace(profile.sft, max_length=size.packed_length, **batch),
        dpo=replace(profile.dpo, max_length=size.pair_length, **batch),
        orpo=replace(profile.orpo, max_length=size.pair_length, **batch),
    )


def trained(trainer: object, steps: int, precision: str) -> tuple[float, dict, dict]:
    """Train; return the first loss, the checks that every training must pass, and some facts."""
    trainer.args.max_steps = steps
    watch = Watch(trainer)
    trainer.add_callback(watch)
    training.run(trainer)
    model = trainer.model.eval()
    first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    trunk, head = logprobs.trunk_and_head(model)
    ids = torch.arange(2, 20, device="cuda")[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        own = head(trunk(input_ids=ids).last_hidden_state)
    wrapped = sum("_original_forward" in module.__dict__ for module in model.modules())
    others = sum(
        p.dtype != torch.float32 for p in model.parameters() if p.requires_grad
    )  # trained weights must stay in fp32
    checks = {
        "parameters without a gradient": (len(watch.without), 0),
        "steps with a gradient that is not finite": (watch.infinite, 0),
        "share of skipped steps": (watch.skipped / watch.steps, 0.2),
        "modules still in autocast": (wrapped, 0),
        "logits of another precision": (int(logits.dtype != DTYPES[precision]), 0),
        "logits against trunk and head": ((logits.float() - own.float()).abs().max(), 1e-3),
        "trained parameters that are not fp32": (others, 0),
    }
    return first, checks, {"steps": watch.steps, "skipped": watch.skipped, "first_loss": first}


def on_gpu(load: Callable[..., nn.Module], *given: object) -> nn.Module:
    """Create a model where its 16-bit weights fit: on a large GPU, otherwise on the CPU."""
    roomy = torch.cuda.get_device_properties(0).total_memory > ROOMY
    with torch.device("cuda" if roomy else "cpu"):
        return load(*given)


@contextmanager
def quick_loading() -> Iterator[None]:
    """Within the block the benchmarks draw random weights on the GPU, which takes seconds."""
    load = functools.partial(on_gpu, common.random_llama)
    with patch.object(common, "random_llama", load):
        yield


def shaken(model: nn.Module) -> nn.Module:
    """Give lora_B non-zero weights, as in a trained adapter."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=1e-3)
    return model


def sft_steps(size: Size, precision: str) -> dict[str, object]:
    """Train with packing on four-bit weights: random weights have a first loss of about ln V."""
    both.cache_clear()
    profile = profile_of(size, precision)
    with tempfile.TemporaryDirectory() as folder, quick_loading():
        task = sft.cuda_task(size.shape, profile, size.sft_rows, folder)
        model = sft.adapted(task)
        trainer = sft.trainer_of("ours", model, task["tokenizer"], task["rows"], task)
        first, checks, facts = trained(trainer, size.sft_steps, precision)
    expected = math.log(common.SHAPES[size.shape][5])
    checks["first loss against ln V"] = (abs(first - expected), 0.05 * expected)
    return verdict(checks, **facts)


def dpo_steps(size: Size, precision: str) -> dict[str, object]:
    """Four steps of our trainer and of TRL's; policy = reference, so the loss is ln 2."""
    profile, checks, facts = profile_of(size, precision), {}, {}
    for method in dpo.METHODS:
        with tempfile.TemporaryDirectory() as folder, quick_loading():
            task = dpo.cuda_task(size.shape, profile, size.pairs, folder)
            trainer = dpo.trainer_of(method, shaken(sft.adapted(task)), task)
            first, found, facts[method] = trained(trainer, 4, precision)
        found["first loss against ln 2"] = (abs(first - math.log(2)), tolerance(precision, 1))
        checks |= {f"{method}: {name}": check for name, check in found.items()}
        del trainer
        memory.release()
    return verdict(checks, **facts)


def orpo_steps(size: Size, precision: str) -> dict[str, object]:
    """Four steps of ORPO."""
    from trl import DPOConfig

    from utils.finetune.orpo import ORPOTrainer

    profile = profile_of(size, precision)
    with tempfile.TemporaryDirectory() as folder, quick_loading():
        task = dpo.cuda_task(size.shape, profile, size.pairs, folder)
        args = DPOConfig(
            output_dir=folder,
            learning_rate=profile.orpo.learning_rate,
            beta=profile.orpo.weight,
            max_length=profile.orpo.max_length,
            per_device_train_batch_size=profile.orpo.batch_size,
            gradient_checkpointing=profile.orpo.checkpointing,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **precision_arguments(profile),
        )
        trainer = ORPOTrainer(
            model=sft.adapted(task),
            args=args,
            train_dataset=task["rows"],
            processing_class=task["tokenizer"],
        )
        _, checks, facts = trained(trainer, 4, precision)
    return verdict(checks, **facts)


def ppo_updates(size: Size, precision: str) -> dict[str, object]:
    """PPO's first ratio is 1, because learning repeats the scoring pass; then run some updates."""
    from utils.ppo.trainer import PPOConfig, PPOTrainer

    make, tokenizer = ppo.models_and_tokenizer(size.gpt2, "cuda")
    config = PPOConfig(
        batch_size=size.gpt2.batch,
        minibatch_size=size.gpt2.batch,
        epochs=1,
        learning_rate=1e-5,
        max_new_tokens=size.gpt2.response,
        precision=precision,
    )
    prompts = ppo.prompts_of(size.gpt2)
    given = (make(GPT2LMHeadModel), tokenizer, ppo.random_reward, prompts, config)
    trainer = PPOTrainer(*given, progress=False)
    experience = trainer.experience(trainer.rollout())
    rows = torch.arange(config.batch_size, device="cuda")
    logps, _ = trainer.models.logps_and_values(experience.rollout, rows)
    old = experience.logps[experience.rollout.mask]
    checks = {"first log-ratio": ((logps.detach() - old).abs().max(), tolerance("fp32", 1))}
    metrics = trainer.update(experience)
    for _ in range(size.gpt2.updates):
        metrics = trainer.update(trainer.experience(trainer.rollout()))
    gradients = [p.grad for p in trainer.parameters.values() if p.grad is not None]
    infinite = sum(not bool(gradient.isfinite().all()) for gradient in gradients)
    checks["parameters without a gradient"] = (len(trainer.parameters) - len(gradients), 0)
    checks["gradients that are not finite"] = (infinite, 0)
    checks["sampling without its compiled step"] = (int(trainer.models.static is None), 0)
    scale = trainer.scaler.get_scale() if trainer.scaler.is_enabled() else 1.0
    return verdict(checks, metrics=metrics, loss_scale=scale)

"""How much GPU memory does each stage of the course take, and how long does each notebook run?

    python benchmarks/memory.py [--quick] [--out FILE]

Simulated, on a machine without a GPU. The course's own code and the libraries run at the real
shapes on torch's fake tensors, which have shapes and no numbers. A counter adds up the bytes of the
living storages, rounded up as CUDA's allocator does, and keeps their peak. Where a GPU would take
another way than a CPU (attention, dropout, autocast, Triton), "CUDA's rules" below take that way.
The same run estimates the time: each operation costs what its FLOPs or its bytes cost on the card,
and not less than what Python needs to start it. `tests/gpu/test_memory.py` compares the counter
with the emulated GPU.
"""

import argparse
import functools
import json
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import bitsandbytes
import torch
import torch.nn.functional as F
import transformers
import trl.trainer.utils as trl_utils
from accelerate.utils import convert_outputs_to_fp32
from bitsandbytes.backends.default.ops import _gemm_4bit_default_impl
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, PreTrainedModel, StaticCache, masking_utils
from trl.kernels import chunked_logprob

from utils import chat, logprobs, losses, models, sampling, seq2seq_dpo, shared_prompt
from utils.actor_critic import ActorCritic
from utils.precision import DTYPES
from utils.profiles import TABLE, Profile

aten, GB = torch.ops.aten, 2**30
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Card:
    """What a GPU of a profile is assumed to reach."""

    limit: float  # GB that a process can use
    half: float  # FLOP/s of products in half precision
    single: float  # FLOP/s of products in fp32
    bandwidth: float  # bytes/s
    launch: float  # seconds that Python and CUDA need to start one operation


CARDS = {
    "t4": Card(14.5, 0.25 * 65e12, 0.6 * 8.1e12, 0.6 * 300e9, 20e-6),
    "a100": Card(38.0, 0.35 * 312e12, 0.6 * 19.5e12, 0.6 * 1500e9, 12e-6),
}
OVERHEAD = 0.6  # GB: the CUDA context and the workspaces of cuBLAS, which no tensor holds
PROMPT, ANSWER = 70, 180  # mean tokens in the chat template: random_words of benchmarks/common.py
SHORT_PROMPT = 40  # the template alone: two long answers behind it make the longest shared row
FEEDBACK = (11_426, 1_583, 3_166)  # sentences of UIT-VSFC's splits
ASSUMPTIONS = [
    "Every figure is simulated or estimated; nothing here was measured on a GPU.",
    "1 GB is 2**30 bytes. The limits are 14.5 GB of a T4 and 38 GB of an A100 with 40 GB.",
    f"{OVERHEAD} GB are added for the CUDA context and the workspaces of cuBLAS.",
    "Fragments of the allocator and the private pool of CUDA graphs are not counted.",
    "Each stage is taken at its worst shape: every row as long as the profile allows.",
    "Without a mask, grouped attention on a T4 takes the math kernel in fp32 (torch 2.11 to 2.13).",
    "bitsandbytes dequantises a layer's weight as a whole; small batches may take less on a GPU.",
    "Sailor2-1B: 48 layers and untied embeddings are inferred from the size of its Q4_0 file.",
    "Products reach 25 % of 65 TFLOP/s on a T4 and 35 % of 312 on an A100; in fp32 60 % of 8.1 and "
    "of 19.5. Memory is read at 60 % of 300 and of 1500 GB/s.",
    "Starting an operation takes 20 µs beside a T4 and 12 µs beside an A100.",
    f"Vi-Alpaca: {PROMPT} tokens per prompt and {ANSWER} per answer on average; generation runs to "
    "its limit, since one answer of each batch is long.",
    "UIT-VSFC: 18 PhoBERT tokens and 22 GPT-2 tokens per sentence; a batch is padded to 45 and 60.",
    "Human-Like pairs: 25 tokens per prompt, 110 and 160 per chosen and rejected answer.",
    "Minutes include installing and loading: 4, and 9 for the 8B model of notebook 07; half a "
    "minute for each further loading of a chat model; voting and reading are not included.",
]

# --- The counter ---------------------------------------------------------------------------------

BLOCK = 512  # bytes: the allocator rounds up to a multiple
ATTENTION = {"_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention"}
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # where the left factor stands


@functools.cache
def composite(func: object) -> bool:
    """Whether an operation consists of others, and has no kernel of its own."""
    own = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CPU")
    return func._can_decompose() and not own


class GPU(TorchDispatchMode):
    """Counts the bytes of living storages, and what each operation costs."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card, self.held = card, {}  # storage -> bytes
        self.now = self.peak = self.operations = self.units = 0
        self.busy = 0.0  # seconds of the GPU
        self.learned = 0  # rows that the next boolean index keeps: fake masks have no numbers
        self.answer = False  # to every question about numbers, such as "is nothing padded?"

    def start(self) -> None:
        """The peak and the costs count from here on, beside what lies there already."""
        self.peak, self.operations, self.busy, self.units = self.now, 0, 0.0, 0

    def seconds(self) -> float:
        """Of one unit of work: a micro-batch, a batch or a token."""
        return max(self.busy, self.operations * self.card.launch) / max(1, self.units)

    def hold(self, tensor: Tensor) -> None:
        """Count a storage while it lives."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.held:
            self.held[key] = -(-storage.nbytes() // BLOCK) * BLOCK
            self.now += self.held[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, key).atexit = False

    def forget(self, key: int) -> None:
        """A storage is gone."""
        self.now -= self.held.pop(key, 0)

    def work(self, flops: float, moved: float, single: bool) -> None:
        """One operation: bound by its FLOPs or by the bytes it reads and writes."""
        speed = self.card.single if single else self.card.half
        self.busy += max(flops / speed, moved / self.card.bandwidth)
        self.operations += 1

    def price(self, func: object, args: tuple, out: object, tensors: list[Tensor]) -> None:
        """Add an operation's costs; views and empty tensors cost nothing."""
        name = func._schema.name.partition("::")[2]
        if func.is_view or name in FREE:
            return
        if name == "embedding":
            tensors = [out, out]  # it reads the rows that are asked for
        flops = 0.0
        if name in PRODUCTS:
            flops = 2 * tensors[-1].numel() * args[PRODUCTS[name]].shape[-1]
        elif name.removesuffix("_backward") in ATTENTION:
            query, key = args[:2] if name in ATTENTION else args[1:3]
            flops = (4 if name in ATTENTION else 10) * query.numel() * key.shape[2]
        moved = sum(tensor.nbytes for tensor in tensors)
        self.work(flops, moved, bool(tensors) and tensors[-1].dtype is torch.float32)

    def __torch_dispatch__(
        self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args)
        if func is torch.ops.bitsandbytes.gemm_4bit.default:  # its temporaries count, too
            with self:
                return _gemm_4bit_default_impl(*args, **kwargs)
        if composite(func):  # without gradients these come as one operation
            with self:
                return func.decompose(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return self.answer if args[0].dtype is torch.bool else 0
        mask = args[1][0] if func is aten.index.Tensor else None
        if mask is not None and mask.dtype is torch.bool:
            out = args[0].new_empty((self.learned, *args[0].shape[mask.dim() :]))
        else:
            out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in made:
            self.hold(tensor)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.price(func, args, out, [*given, *made])
        return out


# --- CUDA's rules --------------------------------------------------------------------------------


def attention_of(flash: bool) -> Callable[..., Tensor]:
    """`scaled_dot_product_attention` with the kernel that CUDA chooses."""

    def attention(
        query: Tensor,  # (batch, heads, queries, width)
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            never = torch.scalar_tensor(-math.inf, dtype=query.dtype)
            attn_mask = torch.where(attn_mask, 0.0, never)
        if flash and attn_mask is None and query.dtype is not torch.float32:
            given = query, key, value, dropout_p, is_causal, False
            return aten._scaled_dot_product_flash_attention(*given, scale=scale)[0]
        if key.shape[1] != query.shape[1]:
            given = query, key, value, attn_mask, dropout_p, is_causal, None
            return aten._scaled_dot_product_attention_math(*given, scale=scale, enable_gqa=True)[0]
        if attn_mask is not None:
            keys = attn_mask.shape[-1]
            if keys % 8:  # the kernel reads eight numbers at a time
                attn_mask = F.pad(attn_mask, (0, 8 - keys % 8))[..., :keys]
            attn_mask = attn_mask.expand(*query.shape[:3], keys)
        given = query, key, value, attn_mask, query.requires_grad, dropout_p, is_causal
        return aten._scaled_dot_product_efficient_attention(*given, scale=scale)[0]

    return attention


def in_float32(function: Callable) -> Callable:
    """What CUDA's autocast computes in fp32 and a CPU's does not."""

    @functools.wraps(function)
    def wide(*args: object, **how: object) -> object:
        if torch.is_autocast_enabled("cpu"):
            halves = (torch.float16, torch.bfloat16)
            args = [
                a.float() if isinstance(a, Tensor) and a.dtype in halves else a for a in args
            ]
        return function(*args, **how)

    return wide


def dropout(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """CUDA's kernel keeps its mask in one byte per number."""
    return aten.native_dropout(values, p, True)[0] if training and p else values


class NoKernel:
    """A Triton kernel: it works in place, in tensors that are counted already."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *_, **__: None


@contextmanager
def simulated(profile: Profile) -> Iterator[GPU]:
    """Within the block every tensor is fake, lies on the profile's GPU and is counted."""
    gpu = GPU(CARDS[profile.name])

    def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
        gpu.work(2 * a.numel() * b.shape[1], a.nbytes + b.nbytes + 2 * total.nbytes, False)

    rules: list[tuple[object, str, object]] = [
        (F, "scaled_dot_product_attention", attention_of(profile.precision == "bf16")),
        (F, "dropout", dropout),
        (F, "layer_norm", in_float32(F.layer_norm)),
        (F, "cross_entropy", in_float32(F.cross_entropy)),
        (F, "softmax", in_float32(F.softmax)),
        (torch, "pow", in_float32(torch.pow)),
        (masking_utils, "is_tracing", lambda *_: False),  # fake tensors pass for tracing
        (losses, "max", lambda *_: 2**40),  # no blocks for a CPU's cache in token_logps_
        (nn.Module, "to", lambda module, *_, **__: module),  # all lies where it should
        (chunked_logprob, "_use_triton", lambda device: True),
        (trl_utils, "_use_triton", lambda device: True),
        (chunked_logprob, "_forward_kernel", NoKernel()),
        (chunked_logprob, "_backward_kernel", NoKernel()),
        (chunked_logprob, "triton", SimpleNamespace(cdiv=lambda a, b: -(-a // b))),
        (chunked_logprob, "_addmm_fp32", add_product),
    ]
    with ExitStack() as stack:
        for place, name, rule in rules:
            stack.enter_context(mock.patch.object(place, name, rule, create=True))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(gpu)
        yield gpu


# --- Models --------------------------------------------------------------------------------------


def llama(hidden: int, layers: int, inner: int, tied: bool) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=128_256, hidden_size=hidden, num_hidden_layers=layers, intermediate_size=inner,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=tied,
    )  # fmt: skip


def qwen(
    kind: type, hidden: int, layers: int, inner: int, heads: int, groups: int, **others: object
) -> transformers.PreTrainedConfig:
    return kind(
        vocab_size=151_936, hidden_size=hidden, num_hidden_layers=layers, intermediate_size=inner,
        num_attention_heads=heads, num_key_value_heads=groups, **others,
    )  # fmt: skip


CONFIGS = {
    "Llama-3.2-1B": llama(2048, 16, 8192, tied=True),
    "Llama-3.1-8B": llama(4096, 32, 14_336, tied=False),
    "Qwen2.5-3B": qwen(
        transformers.Qwen2Config, 2048, 36, 11_008, 16, 2, tie_word_embeddings=True
    ),
    "Qwen3-1.7B": qwen(
        transformers.Qwen3Config, 2048, 28, 6144, 16, 8, head_dim=128, tie_word_embeddings=True
    ),
    "Sailor2-1B": qwen(
        transformers.Qwen2Config, 896, 48, 4864, 14, 2, tie_word_embeddings=False
    ),
    "PhoBERT-base": transformers.RobertaConfig(
        vocab_size=64_001, max_position_embeddings=258, type_vocab_size=1, num_labels=3
    ),
    "GPT-2": transformers.GPT2Config(),
    "T5-small": transformers.T5Config(),
}


def plain(kind: str, name: str) -> PreTrainedModel:
    """A model in fp32."""
    maker = getattr(transformers, f"AutoModelFor{kind}")
    return maker.from_config(CONFIGS[name], dtype=torch.float32)


class FourBits(Linear4bit):
    """A layer whose weight lies in NF4 with doubly quantised scales, as `models.four_bits` says."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias, self.compute_dtype = layer.bias, dtype
        packed = torch.empty(layer.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.weight.compress_statistics, self.weight.quant_type = True, "nf4"
        scales = layer.weight.numel() // 64
        outer = QuantState(
            absmax=torch.empty(-(-scales // 256)), blocksize=256, code=torch.empty(256),
            dtype=torch.float32,
        )  # fmt: skip
        self.state = QuantState(
            absmax=torch.empty(scales, dtype=torch.uint8), shape=layer.weight.shape,
            code=torch.empty(16), blocksize=64, quant_type="nf4", dtype=dtype,
            offset=torch.empty(()), state2=outer,
        )  # fmt: skip

    def forward(self, states: Tensor) -> Tensor:
        """bitsandbytes' own product."""
        given = states.to(self.compute_dtype), self.weight, self.state
        return bitsandbytes.matmul_4bit(*given, bias=self.bias).to(states.dtype)


def in_four_bits(model: PreTrainedModel) -> PreTrainedModel:
    """Every linear layer but the output layer in NF4."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, FourBits(layer, model.dtype))
    model.is_loaded_in_4bit = True
    return model


def base(profile: Profile, name: str) -> PreTrainedModel:
    """A chat model as `models.chat_model` loads it."""
    dtype = DTYPES[profile.precision]
    model = transformers.AutoModelForCausalLM.from_config(
        CONFIGS[name], dtype=dtype, attn_implementation="sdpa"
    )
    return in_four_bits(model)


def adapted(profile: Profile, name: str, *others: str) -> PeftModel:
    """The base with the adapter that is trained, and frozen ones; all in fp32."""
    model = get_peft_model(base(profile, name), models.lora(profile.chat))
    for other in others:
        model.add_adapter(other, models.lora(profile.chat))
    model.set_adapter("default")
    return model


def trained_states(model: nn.Module) -> list[Tensor]:
    """AdamW's two numbers per trained parameter, as a trainer that is still there keeps them."""
    return [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in "mv"]


def prepare(model: nn.Module, precision: str, checkpointing: bool = False) -> None:
    """What a trainer makes of a model: autocast, fp32 outputs, checkpointing."""
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    if precision != "fp32":
        forward = torch.autocast("cpu", DTYPES[precision])(model.forward)
        model.forward = convert_outputs_to_fp32(forward)
    model.train()


def train(
    gpu: GPU, model: nn.Module, micro_batch: Callable[[], Tensor], accumulation: int = 1
) -> torch.optim.Optimizer:
    """Two steps: in the second AdamW's states lie beside the activations."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    gpu.start()
    for _ in range(2):
        for _ in range(min(accumulation, 2)):  # with more, gradients lie there from the second on
            micro_batch().backward()
            gpu.units += 1
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def tokens(rows: int, length: int) -> Tensor:
    """Fake token ids, labels or masks (rows, length)."""
    return torch.zeros(rows, length, dtype=torch.long)


# --- Stages of 01 and 02: the reward, the policy -------------------------------------------------


def reward_step(gpu: GPU, profile: Profile, length: int) -> str:
    """01: a step of PhoBERT with all its weights."""
    rows = profile.reward_model.batch_size
    model = plain("SequenceClassification", "PhoBERT-base")
    prepare(model, profile.precision)
    labels = torch.zeros(rows, dtype=torch.long)

    def loss() -> Tensor:
        logits = model(input_ids=tokens(rows, length), attention_mask=tokens(rows, length)).logits
        return F.cross_entropy(logits.float(), labels, torch.ones(3), label_smoothing=0.05)

    train(gpu, model, loss)
    return f"{rows} x {length}"


def classification(gpu: GPU, profile: Profile, length: int, training: bool) -> str:
    """128 sentences at a time: 01's evaluation under autocast, or the reward's texts in fp32."""
    model = plain("SequenceClassification", "PhoBERT-base")
    there = trained_states(model) if training else None
    prepare(model, profile.precision if training else "fp32")
    gpu.start()
    with torch.no_grad():
        model.eval()(input_ids=tokens(128, length), attention_mask=tokens(128, length))
    gpu.units, there = 1, None
    return f"128 x {length}"


def encoding(gpu: GPU, profile: Profile, length: int) -> str:
    """06: a batch of the sentence encoder, whose weights are in half precision."""
    rows = profile.pair_mining.batch_size
    config = CONFIGS["PhoBERT-base"]
    model = transformers.AutoModel.from_config(config, dtype=torch.float16).eval()
    gpu.start()
    with torch.inference_mode():
        model(input_ids=tokens(rows, length), attention_mask=tokens(rows, length))
    gpu.units = 1
    return f"{rows} x {length}"


def adaptation(gpu: GPU, profile: Profile, rows: int, length: int, training: bool) -> str:
    """02: language modelling with all logits, as transformers computes its loss."""
    model = plain("CausalLM", "GPT-2")
    prepare(model, profile.precision)
    ids = tokens(rows, length)
    if training:
        train(gpu, model, lambda: model(input_ids=ids, attention_mask=ids, labels=ids).loss)
    else:
        there = trained_states(model)
        gpu.start()
        with torch.no_grad():
            model.eval()(input_ids=ids, attention_mask=ids, labels=ids)
        gpu.units, there = 1, None
    return f"{rows} x {length}"


PROMPT_TOKENS = 8  # of the longest two words that a response continues
MAIN, GROUPS, HACKED = "main run", "RLOO and GRPO", "run without the KL"


def session(when: str) -> list[object]:
    """What notebook 02 keeps on the GPU beside the run it is in: its cells' variables."""
    gpt2 = functools.partial(plain, "CausalLM", "GPT-2")
    there: list[object] = [plain("SequenceClassification", "PhoBERT-base")]
    for model in (gpt2(), gpt2()):  # base with its Trainer's states; the student, trained by hand
        there += [model, trained_states(model)]
    there += [trained_states(gpt2())[::2], gpt2()]  # the student's gradients; the noisy reference
    if when != MAIN:  # the main trainer: policy, reference, states, gradients
        policy = gpt2()
        there += [policy, gpt2(), trained_states(policy), trained_states(policy)[::2]]
        there.append(gpt2())  # the policy of the contender before; TRL's head makes it a cycle
    if when == HACKED:
        there.append(gpt2())  # its reference: the last contender is still a variable
    return there


def whole_states(trunk: nn.Module, rollout: sampling.Rollout, rows: Tensor) -> Tensor:
    """`sampling.response_states` where every response is as long as it may be."""
    attention = rollout.attention[rows]
    start = attention.shape[1] - rollout.mask.shape[1]
    hidden = trunk(
        input_ids=rollout.tokens[rows, :-1], attention_mask=attention[:, :-1],
        position_ids=losses.positions(attention)[:, :-1], use_cache=False,
    ).last_hidden_state  # fmt: skip
    return hidden[:, start - 1 :][rollout.mask[rows]]


def ppo(gpu: GPU, profile: Profile, stage: str, when: str = MAIN) -> str:
    """02: sampling with the static cache, scoring, learning; the reward lies there, too."""
    run, there = profile.ppo, session(when)
    new, rows = run.max_new_tokens, run.minibatch_size
    words = SimpleNamespace(eos_token_id=0, pad_token_id=0)
    pair = ActorCritic(
        plain("CausalLM", "GPT-2"), words, plain("CausalLM", "GPT-2"), max_new_tokens=new,
        temperature=1.0, shared_value_head=True, precision=run.precision, batch_size=rows,
    )  # fmt: skip
    cache = StaticCache(config=pair.trunk.config, max_cache_len=PROMPT_TOKENS + new)
    prompts = [[1] * PROMPT_TOKENS] * run.batch_size
    draws = torch.rand(run.batch_size, new)
    if stage == "sampling":
        there.append(trained_states(pair.policy))
        gpu.start()
        pair.sample(prompts, draws, static=(pair.trunk, cache))
        gpu.units = 1
        return f"{run.batch_size} x ({PROMPT_TOKENS} + {new})"
    rollout = pair.sample(prompts, draws, static=(pair.trunk, cache))
    part, gpu.learned = torch.arange(rows), rows * new
    learner = nn.ModuleList([pair.policy, pair.critic])

    def loss() -> Tensor:
        logps, values = pair.logps_and_values(rollout, part)
        clipped = losses.clipped_policy_loss(logps, logps.detach(), torch.ones_like(logps))
        return clipped.mean() + losses.clipped_value_loss(values, values.detach(), values).mean()

    with mock.patch.object(sampling, "response_states", whole_states):
        if stage == "learning":
            train(gpu, learner, loss)
        else:
            there.append(trained_states(learner))
            gpu.start()
            with torch.no_grad():
                pair.logps_and_values(rollout, part), pair.reference_logps(rollout, part)
            gpu.units = 1
    return f"{rows} x ({PROMPT_TOKENS} + {new})"


def fused_head(model: nn.Module) -> None:
    """TRL's output layer, with the extra figures that its trainers ask for."""
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    outputs = ("log_probs", "entropy", "mean_logits", "is_top1")
    trl_utils.add_fused_lm_head(bare, outputs=outputs)


def group_step(gpu: GPU, profile: Profile) -> str:
    """02: a step of TRL's RLOO or GRPO, all completions in one pass."""
    rows, new = profile.group.batch_size, profile.ppo.max_new_tokens
    there, model = session(GROUPS), plain("CausalLM", "GPT-2")
    there += [plain("CausalLM", "GPT-2") for _ in range(2)]  # the contender's reference, and TRL's
    sampling.fuse_gelu(model)
    fused_head(model)
    prepare(model, profile.precision)
    model.eval()  # dropout is off
    ids, gpu.learned = tokens(rows, PROMPT_TOKENS + new), rows * new
    given = {"input_ids": ids, "attention_mask": ids, "labels": ids, "fused_lm_head": True}
    train(gpu, model, lambda: model(**given).log_probs.mean())
    return f"{rows} x ({PROMPT_TOKENS} + {new})"


# --- Stages of 03 to 05 and 07: chat models ------------------------------------------------------


def sft_step(gpu: GPU, profile: Profile, name: str, beside: bool = False) -> str:
    """03: packed rows, of which every token is learned; beside the trained model in side runs."""
    run = profile.sft
    there = adapted(profile, name) if beside else None
    model = adapted(profile, name)
    fused_head(model)
    prepare(model, profile.precision, run.checkpointing)
    ids, gpu.learned = tokens(run.batch_size, run.max_length), run.batch_size * (run.max_length - 1)
    given = {"input_ids": ids, "position_ids": ids, "labels": ids, "fused_lm_head": True}
    train(gpu, model, lambda: model(**given).loss, run.accumulation)
    del there
    return f"{run.batch_size} x {run.max_length}"


def pairs(
    gpu: GPU, count: int, prompt: int, answer: int
) -> tuple[Callable[[nn.Module], Tensor], int]:
    """A batch of pairs as `PromptOnce` gives it to a model: log-probs (2 · pairs, width - 1)."""
    width, joined = prompt + answer, prompt + 2 * answer + 1
    two, one = tokens(2 * count, width), tokens(count, joined)
    seen = torch.ones(count, 1, joined, joined, dtype=torch.bool)
    row = {"input_ids": one, "position_ids": one, "attention_mask": seen, "labels": one}
    gpu.learned = 2 * count * answer

    def logps(model: nn.Module) -> Tensor:
        places = tokens(2 * count, width - 1)
        with mock.patch.object(shared_prompt, "joined", lambda *_: (row, places)):
            return shared_prompt.PromptOnce(model)(two, two, two, fused_lm_head=True).log_probs

    return logps, joined


def pair_step(
    gpu: GPU,
    profile: Profile,
    name: str,
    part: str,  # of the profile: "dpo", "orpo" or "labelling"
    lengths: tuple[int, int] | None = None,  # of prompt and answer; None: as long as may be
    beside: bool = False,  # another chat model, as in the sweeps
) -> str:
    """04, 05, 07: a step on pairs that share their prompt."""
    run = getattr(profile, part)
    prompt, answer = lengths or (SHORT_PROMPT, run.max_length - SHORT_PROMPT)
    there = adapted(profile, name) if beside else None
    model = adapted(profile, name, *(() if part == "orpo" else ("reference", "ref")))
    fused_head(model)
    prepare(model, profile.precision, run.checkpointing)
    logps, joined = pairs(gpu, run.batch_size, prompt, answer)

    def loss() -> Tensor:
        chosen, rejected = logps(model).sum(1).chunk(2)
        if part == "orpo":
            return losses.orpo_loss(chosen / answer, rejected / answer, -chosen.mean() / answer)
        return losses.dpo_loss(chosen, rejected, chosen.detach(), rejected.detach())

    train(gpu, model, loss, run.accumulation)
    del there
    return f"{run.batch_size} x {joined}"


def reference_pass(
    gpu: GPU, profile: Profile, name: str, part: str, lengths: tuple[int, int] | None = None
) -> str:
    """04, 07: the reference's log-probs before training; ORPO has none."""
    run = getattr(profile, part)
    prompt, answer = lengths or (SHORT_PROMPT, run.max_length - SHORT_PROMPT)
    count = run.batch_size * {"dpo": 4, "labelling": 2}[part]
    model = adapted(profile, name, "reference", "ref")
    fused_head(model)
    prepare(model, profile.precision)
    logps, joined = pairs(gpu, count, prompt, answer)
    gpu.start()
    with torch.no_grad():
        logps(model)
    gpu.units = 1
    return f"{count} x {joined}"


def evaluation(
    gpu: GPU, profile: Profile, name: str, length: int, beside: bool = False, padded: bool = True
) -> str:
    """03 to 05, 07: `logprobs.answer_logps`, one batch of its budget, after a training."""
    model = adapted(profile, name, "reference")
    there = [trained_states(model), adapted(profile, name) if beside else None]
    rows, prompt = max(1, logprobs.BATCH_TOKENS // length), min(PROMPT, length // 2)
    gpu.learned, gpu.answer = rows * (length - prompt), not padded
    gpu.start()
    logprobs.answer_logps(model, [[1] * prompt] * rows, [[1] * (length - prompt)] * rows)
    gpu.units = 1
    del there
    return f"{rows} x {length}" + ("" if padded else ", none padded")


def last_token(model: nn.Module, rows: int, prompt: int, new: int) -> None:
    """What `generate` does last: the cache is full, one more token is sampled."""
    cache, config = DynamicCache(config=model.config), model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        shape = rows, heads, prompt + new - 1, width
        cache.update(*(torch.empty(shape, dtype=model.dtype) for _ in "kv"), layer)
    given = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    logits = model(input_ids=tokens(rows, 1), attention_mask=tokens(rows, prompt + new), **given)
    scores = logits.logits[:, -1].to(torch.float32, copy=True)
    torch.multinomial(scores.softmax(-1), 1)


def generation(
    gpu: GPU, profile: Profile, name: str, beside: bool = False, prompt: int = SHORT_PROMPT
) -> str:
    """03 to 05, 07: `chat.reply`, one batch of its budget, after a training."""
    model = adapted(profile, name, "reference")
    there = [trained_states(model), adapted(profile, name) if beside else None]
    new = profile.chat.max_new_tokens
    rows = chat.REPLY_TOKENS // (prompt + new)
    gpu.start()
    with torch.inference_mode():
        first = {"past_key_values": DynamicCache(config=model.config), "logits_to_keep": 1}
        ids = tokens(rows, prompt)
        model.eval()(input_ids=ids, attention_mask=ids, use_cache=True, **first)
        peak, first = gpu.peak, None
        gpu.start()
        last_token(model, rows, prompt, new)
    gpu.peak, gpu.units = max(peak, gpu.peak), 1
    del there
    return f"{rows} x ({prompt} + {new})"


# --- Stages of 08: small models ------------------------------------------------------------------


def t5(gpu: GPU, profile: Profile, stage: str, lengths: tuple[int, int] | None = None) -> str:
    """08: T5 in fp32, `sft`, `dpo` or the `evaluation` of 32 pairs, beside its earlier selves."""
    run = profile.small_dpo
    prompt, answer = lengths or (run.max_prompt_length, run.max_answer_length)
    count = 32 if stage == "evaluation" else run.batch_size
    first, model = plain("Seq2SeqLM", "T5-small"), plain("Seq2SeqLM", "T5-small")
    there = [first, plain("Seq2SeqLM", "T5-small"), trained_states(first)]
    there += [plain("CausalLM", "GPT-2") for _ in range(2)]
    there.append(trained_states(there[-1]))
    model.config.decoder_start_token_id = 0
    prepare(model, "fp32")
    ids, said = tokens(count, prompt), tokens(count, answer)
    batch = {"prompts": ids, "prompt_mask": ids.bool()}
    batch |= {"answers": tokens(2 * count, answer), "answer_mask": tokens(2 * count, answer).bool()}

    def sft() -> Tensor:
        return model(input_ids=ids, attention_mask=ids, labels=said).loss

    def dpo() -> Tensor:
        chosen, rejected = seq2seq_dpo.answer_logps(model, batch)
        return losses.dpo_loss(chosen, rejected, chosen.detach(), rejected.detach())

    if stage == "evaluation":
        there.append(trained_states(model))
        gpu.start()
        with torch.no_grad():
            dpo()
        gpu.units = 1
        return f"{count} pairs, {prompt} + {answer}"
    if stage == "dpo":
        seq2seq_dpo.disable_dropout(model)
    train(gpu, model, sft if stage == "sft" else dpo)
    return f"{count} x ({prompt} + {answer})"


def small_gpt2(
    gpu: GPU, profile: Profile, stage: str, lengths: tuple[int, int] | None = None
) -> str:
    """08: GPT-2 with TRL, `sft`, `dpo` or the `evaluation` of 32 pairs, beside all earlier models."""
    run = profile.small_dpo
    prompt, answer = lengths or (run.max_prompt_length, run.max_answer_length)
    count = 32 if stage == "evaluation" else run.batch_size
    rows = count if stage == "sft" else 2 * count
    there = [plain("Seq2SeqLM", "T5-small") for _ in range(3)]
    there += [trained_states(there[0]), trained_states(there[0])]
    there += [plain("CausalLM", "GPT-2") for _ in range(2)]
    there.append(trained_states(there[-1]))
    model, reference = plain("CausalLM", "GPT-2"), plain("CausalLM", "GPT-2")
    for each in (model, reference):
        fused_head(each)
        prepare(each, profile.precision)
    if stage != "sft":
        model.eval(), reference.eval()  # dropout is off
    ids, gpu.learned = tokens(rows, prompt + answer), rows * answer
    given = {"input_ids": ids, "attention_mask": ids, "labels": ids, "fused_lm_head": True}

    def loss() -> Tensor:
        found = model(**given)
        if stage == "sft":
            return found.loss
        chosen, rejected = found.log_probs.sum(1).chunk(2)
        with torch.no_grad():
            before = reference(**given).log_probs.sum(1).chunk(2)
        return losses.dpo_loss(chosen, rejected, *before)

    if stage == "evaluation":
        there.append(trained_states(model))
        gpu.start()
        with torch.no_grad():
            loss()
        gpu.units = 1
    else:
        train(gpu, model, loss)
    return f"{rows} x {prompt + answer}"

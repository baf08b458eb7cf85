"""A simulated GPU, for memory and time at real sizes: fake tensors and a counter.

    with simulated(TABLE["t4"]) as gpu:
        model = ...  # its tensors have shapes but no values
        train(gpu, model, loss)
    gpu.peak, gpu.seconds()

The course's code and the libraries run on torch's fake tensors. A counter adds up the bytes of the
living storages, rounded up as CUDA's allocator does, and records their peak. Where a GPU uses
another implementation than a CPU (attention, dropout, autocast, Triton), "CUDA's rules" replace it.
The time of an operation follows from its FLOPs or its bytes on the card; a run takes at least the
time that Python needs to start its operations. `tests/gpu/test_memory.py` compares this simulation
with the emulated GPU, which computes the values and therefore cannot have the real sizes.
"""

import functools
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import bitsandbytes
import torch
import torch.nn.functional as F
import trl.trainer.utils as trl_utils
from accelerate.utils import convert_outputs_to_fp32
from bitsandbytes.backends.default.ops import _gemm_4bit_default_impl
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel, masking_utils
from trl.kernels import chunked_logprob

from utils import losses
from utils.course.profiles import Profile
from utils.models.precision import DTYPES

aten = torch.ops.aten


@dataclass(frozen=True)
class Card:
    """The speeds that a profile's GPU is assumed to reach."""

    limit: float  # GB that a process can use
    half: float  # FLOP/s of products in half precision
    single: float  # FLOP/s of products in fp32
    bandwidth: float  # bytes/s
    launch: float  # seconds that Python and CUDA need to start one operation


CARDS = {
    "t4": Card(14.5, 0.25 * 65e12, 0.6 * 8.1e12, 0.6 * 300e9, 20e-6),
    "a100": Card(38.0, 0.35 * 312e12, 0.6 * 19.5e12, 0.6 * 1500e9, 12e-6),
}

# --- The counter ---------------------------------------------------------------------------------

BLOCK = 512  # bytes: the allocator rounds up to a multiple
ATTENTION = {"_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention"}
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # index of the left factor


@functools.cache
def composite(func: object) -> bool:
    """Whether an operation consists of others, and has no kernel of its own."""
    own = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CPU")
    return func._can_decompose() and not own


class GPU(TorchDispatchMode):
    """Counts the bytes of living storages, and the time of each operation."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card, self.held = card, {}  # storage -> bytes
        self.now = self.peak = self.operations = self.units = 0
        self.busy = 0.0  # seconds of the GPU
        self.learned = 0  # rows that the next boolean index keeps: fake masks have no numbers
        self.answer = False  # to every question about numbers, such as "is nothing padded?"
        self.resident: list[object] = []  # other objects on the GPU during the stage

    def start(self) -> None:
        """Restart the peak and the costs; what is on the GPU already still counts in the peak."""
        self.peak, self.operations, self.busy, self.units = self.now, 0, 0.0, 0

    def once(self, run: Callable[[], object]) -> None:
        """Run without gradients, as one unit of work."""
        self.start()
        with torch.no_grad():
            run()
        self.units = 1

    def seconds(self) -> float:
        """The seconds of one unit of work: a micro-batch, a batch or a token."""
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
        """Stop counting a storage that was freed."""
        self.now -= self.held.pop(key, 0)

    def work(self, flops: float, moved: float, single: bool) -> None:
        """Add one operation; its FLOPs or the bytes it reads and writes bound its time."""
        speed = self.card.single if single else self.card.half
        self.busy += max(flops / speed, moved / self.card.bandwidth)
        self.operations += 1

    def add_cost(self, func: object, args: tuple, out: object, tensors: list[Tensor]) -> None:
        """Add an operation's costs; views and empty tensors cost nothing."""
        name = func._schema.name.partition("::")[2]
        if func.is_view or name in FREE:
            return
        if name == "embedding":
            tensors = [out, out]  # it reads only the rows that are looked up
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
        if func is torch.ops.bitsandbytes.gemm_4bit.default:  # its temporary tensors count as well
            with self:
                return _gemm_4bit_default_impl(*args, **kwargs)
        if composite(func):  # without gradients, such an operation arrives as a whole
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
        self.add_cost(func, args, out, [*given, *made])
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
    """The function as CUDA's autocast runs it: in fp32, which a CPU's autocast does not do."""

    @functools.wraps(function)
    def wide(*args: object, **how: object) -> object:
        if torch.is_autocast_enabled("cpu"):
            halves = (torch.float16, torch.bfloat16)
            args = [a.float() if isinstance(a, Tensor) and a.dtype in halves else a for a in args]
        return function(*args, **how)

    return wide


def dropout(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """CUDA's kernel keeps its mask in one byte per number."""
    return aten.native_dropout(values, p, True)[0] if training and p else values


class NoKernel:
    """Stands for a Triton kernel, which writes only into tensors that are counted already."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *_, **__: None


@contextmanager
def simulated(profile: Profile) -> Iterator[GPU]:
    """Within the block every tensor is fake, belongs to the profile's GPU and is counted."""
    gpu = GPU(CARDS[profile.name])

    def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
        gpu.work(2 * a.numel() * b.shape[1], a.nbytes + b.nbytes + 2 * total.nbytes, False)

    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    rules: list[tuple[object, str, object]] = [
        (torch, "is_autocast_enabled", lambda *_: enabled("cpu")),  # no argument means CUDA
        (torch, "get_autocast_dtype", lambda *_: dtype("cpu")),
        (F, "scaled_dot_product_attention", attention_of(profile.precision == "bf16")),
        (F, "dropout", dropout),
        (F, "layer_norm", in_float32(F.layer_norm)),
        (F, "cross_entropy", in_float32(F.cross_entropy)),
        (F, "softmax", in_float32(F.softmax)),
        (torch, "pow", in_float32(torch.pow)),
        (masking_utils, "is_tracing", lambda *_: False),  # fake tensors look like tracing
        (losses, "max", lambda *_: 2**40),  # no blocks for a CPU's cache in token_logps_
        (nn.Module, "to", lambda module, *_, **__: module),  # every tensor is on the right device
        (chunked_logprob, "_use_triton", lambda device: True),
        (trl_utils, "_use_triton", lambda device: True),
        (chunked_logprob, "_forward_kernel", NoKernel()),
        (chunked_logprob, "_backward_kernel", NoKernel()),
        (chunked_logprob, "triton", SimpleNamespace(cdiv=lambda a, b: -(-a // b))),
        (chunked_logprob, "_addmm_fp32", add_product),
    ]
    with ExitStack() as stack:
        for owner, name, rule in rules:
            stack.enter_context(mock.patch.object(owner, name, rule, create=True))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(gpu)
        yield gpu


# --- Four bits ----------------------------------------------------------------------------------


class FourBits(Linear4bit):
    """A layer with its weight in NF4 and doubly quantised scales, as in `models.four_bits`."""

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
    """Put every linear layer except the output layer into NF4."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, FourBits(layer, model.dtype))
    model.is_loaded_in_4bit = True
    return model


# --- Trainers ------------------------------------------------------------------------------------


def fused_head(model: nn.Module) -> None:
    """TRL's output layer, with the extra figures that its trainers ask for."""
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    outputs = ("log_probs", "entropy", "mean_logits", "is_top1")
    trl_utils.add_fused_lm_head(bare, outputs=outputs)


def states_of(model: nn.Module) -> list[Tensor]:
    """AdamW's two numbers per trained parameter, which a trainer holds as long as it exists."""
    return [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in "mv"]


def prepare(model: nn.Module, precision: str, checkpointing: bool = False) -> None:
    """Prepare a model as a trainer does: autocast, fp32 outputs, checkpointing."""
    if checkpointing:
        model.activation_checkpointing_enable()
        model.enable_input_require_grads()
    if precision != "fp32":
        forward = torch.autocast("cpu", DTYPES[precision])(model.forward)
        model.forward = convert_outputs_to_fp32(forward)
    model.train()


def train(
    gpu: GPU, model: nn.Module, micro_batch: Callable[[], Tensor], accumulation: int = 1
) -> torch.optim.Optimizer:
    """One step of AdamW; an earlier step with zero gradients has created AdamW's states."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    gpu.start()
    for _ in range(min(accumulation, 2)):  # from the second micro-batch on, gradients exist already
        micro_batch().backward()
        gpu.units += 1
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def tokens(rows: int, length: int) -> Tensor:
    """Fake token ids, labels or masks (rows, length)."""
    return torch.zeros(rows, length, dtype=torch.long)

"""Everything about half precision: dtypes, settings of a trainer, and clean-up after a training.

| profile | weights of chat models | products | trained weights | gradients |
|---------|------------------------|----------|-----------------|-----------|
| lab     | NF4, rest fp32         | fp32     | fp32            | fp32      |
| t4      | NF4, rest fp16         | fp16     | fp32            | scaled    |
| a100    | NF4, rest bf16         | bf16     | fp32            | fp32      |

Models that are trained without an adapter (PhoBERT, GPT-2, T5) keep fp32 weights; autocast computes
their products in half precision.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from utils.course.profiles import Profile

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The largest difference, in nats per token, between two computations of the same log-probability
# in this precision: their kernels, order of sums and padding may differ, the weights do not.
NATS_PER_TOKEN = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}


def precision_arguments(profile: "Profile") -> dict[str, bool]:
    """The arguments of TrainingArguments for the device and precision of a profile."""
    return {
        "use_cpu": profile.device == "cpu",
        "fp16": profile.precision == "fp16",
        "bf16": profile.precision == "bf16",
        "dataloader_pin_memory": profile.device == "cuda",
    }


def tolerance(precision: str, tokens: int) -> float:
    """The largest accepted difference, in nats, of two log-probabilities summed over `tokens`.

    >>> tolerance("fp32", 100)
    0.01
    """
    return NATS_PER_TOKEN[precision] * tokens


def float32_adapters(model: nn.Module) -> None:
    """Cast trainable weights to fp32: TRL casts adapters to bf16, and fp16 scaling needs fp32."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@contextmanager
def unrounded(model: nn.Module) -> Iterator[None]:
    """Restore the trainable weights after the block, because a trainer may round them inside."""
    exact = {n: p.detach().float().clone() for n, p in model.named_parameters() if p.requires_grad}
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            if name in exact:
                parameter.data = exact[name]


def unwrap(model: nn.Module) -> None:
    """Remove the autocast that Accelerate leaves around a model's forward after training.

    Otherwise the model and all its copies would still compute in half precision.
    """
    for module in model.modules():
        original = module.__dict__.pop("_original_forward", None)
        if original is None:
            continue
        if getattr(original, "__func__", None) is type(module).forward:
            module.__dict__.pop("forward", None)
        else:
            module.forward = original

"""GPT-2 and other decoder-only language models, before any reward."""

import os
from collections.abc import Sequence

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from utils.course import hub
from utils.course.profiles import Policy
from utils.models import kernels, standins

STAND_IN = "stand-in"


def local_or_hub(source: str) -> str:
    """The path of a local folder as it is; any other name is downloaded from the Hub."""
    return source if os.path.isdir(source) else str(hub.fetch(source))


def language_model(
    settings: Policy, texts: Sequence[str], device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy before training: GPT-2 from the Hub, or a stand-in with random weights.

    The environment variable COURSE_POLICY names another causal language model, such as `gpt2`.
    """
    kernels.check_triton()
    source = os.environ.get("COURSE_POLICY") or settings.model_id
    source = standins.gpt2(texts) if source == STAND_IN else local_or_hub(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.padding_side = "right"  # for training; sampling pads on the left by itself
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.to(device), tokenizer

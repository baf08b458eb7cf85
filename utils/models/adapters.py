"""Chat models with 4-bit weights, and the adapters that are trained on them."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from datasets import DatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from utils.course import folders, hub
from utils.course.errors import CourseError
from utils.course.language import tr
from utils.course.profiles import ChatModel, ChatModels, Profile
from utils.data.instructions import one_per_question
from utils.models import chat_standins, kernels
from utils.models.language import STAND_IN
from utils.models.precision import DTYPES

CHAT_VARIABLE = "COURSE_MODEL"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class ModelError(CourseError, ValueError):
    """A model that the course does not know."""


def base_documents(pairs: DatasetDict) -> list[tuple[str, str]]:
    """The pre-training data of a chat stand-in: questions and chosen answers of the train split."""
    train = one_per_question(pairs["train"])
    return list(zip(train["question"], train["chosen"], strict=True))


def chosen_chat_model(settings: ChatModels) -> tuple[str, ChatModel]:
    """The name and the model that COURSE_MODEL selects; the first one by default."""
    name = os.environ.get(CHAT_VARIABLE, "").strip().lower() or next(iter(settings.choices))
    if name not in settings.choices:
        raise ModelError(
            tr(
                "{variable}={name} is not a model of this course: use one of {known}.",
                variable=CHAT_VARIABLE,
                name=name,
                known=", ".join(settings.choices),
            )
        )
    return name, settings.choices[name]


def chat_source(settings: ChatModels, pairs: DatasetDict) -> tuple[str, str]:
    """The folder of the chat model that COURSE_MODEL selects, and its name."""
    name, model = chosen_chat_model(settings)
    if model.hub_id == STAND_IN:
        return str(
            chat_standins.BUILDERS[name](base_documents(pairs), tokens=settings.standin_tokens)
        ), f"{name} {STAND_IN}"
    return _downloaded(model)


def _downloaded(model: ChatModel) -> tuple[str, str]:
    """Print the licence of a model, and download it; its folder and its name."""
    print(tr("{model} · licence: {licence}", model=model.hub_id, licence=tr(model.licence)))
    folder = hub.fetch(model.hub_id, model.copy)
    return str(folder), hub.name_of(folder)


def four_bits(profile: Profile) -> BitsAndBytesConfig:
    """NF4 weights with 8-bit scales; matrix products are computed in the profile's precision."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[profile.precision],
    )


def chat_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer with a padding token; if possible, not the token that ends a turn.

    Where the tokenizer has no such padding token, it gets the one that Llama 3 reserves; if its
    vocabulary does not have that one either, it is padded with the token that ends a turn.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        reserved = "<|finetune_right_pad_id|>"
        known = reserved in tokenizer.get_vocab()
        tokenizer.pad_token = reserved if known else tokenizer.eos_token
    return tokenizer


def keep_gradients(model: PreTrainedModel) -> None:
    """On a CPU, stop bitsandbytes from changing the format of the 4-bit weights.

    On a CPU with bf16 instructions, bitsandbytes repacks a layer at its first forward pass in eval
    mode. The kernel for this format rounds to bf16 and has no backward pass. Later training then
    runs without an error, but no gradient passes through the 4-bit layers.
    """
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


class UnpackedLinear4bit(Linear4bit):
    """A 4-bit layer for a CPU: it unpacks its frozen weights once and keeps the copy.

    bitsandbytes has no 4-bit product for a CPU. Its layer unpacks the weights in each forward and
    again in each backward pass, which takes most of the time when a batch is small. Outputs and
    gradients stay the same.
    """

    _unpacked: tuple[Tensor | None, Tensor | None] = (None, None)  # the 4-bit weights, their copy

    def forward(self, x: Tensor) -> Tensor:
        """The product with the unpacked weights, in the layer's precision."""
        packed, whole = self._unpacked
        dtype = self.compute_dtype or x.dtype
        if packed is not self.weight or whole.dtype != dtype:  # merging an adapter replaces them
            state = getattr(self.weight, "quant_state", None) or self.quant_state
            with torch.inference_mode(False):  # training must be able to use the copy, too
                whole = dequantize_4bit(self.weight.data.view(-1, 1), state).to(dtype)
            self._unpacked = (self.weight, whole)
        bias = None if self.bias is None else self.bias.to(dtype)
        return nn.functional.linear(x.to(dtype), whole, bias).to(x.dtype)


def unpack_once(model: PreTrainedModel) -> None:
    """Make the 4-bit layers of a model on a CPU keep their unpacked weights."""
    for layer in model.modules():
        if type(layer) is Linear4bit:
            layer.__class__ = UnpackedLinear4bit


def chat_model(
    folder: str, profile: Profile, *, quantised: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A chat model with 4-bit weights, and its tokenizer."""
    kernels.check_triton()
    tokenizer = chat_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=DTYPES[profile.precision],
        quantization_config=four_bits(profile) if quantised else None,
        device_map={"": 0} if profile.device == "cuda" else None,
        attn_implementation="sdpa",
    )
    keep_gradients(model)
    if profile.device == "cpu":
        unpack_once(model)
    model.config.use_cache = True
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.temperature = model.generation_config.top_p = None  # greedy by default
    return model, tokenizer


def lora(settings: ChatModels) -> LoraConfig:
    """The configuration of an adapter on all seven projections of every layer."""
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=PROJECTIONS,
        task_type="CAUSAL_LM",
    )


BASE_NOTE = "base.json"  # which model an adapter belongs to
START = "start"  # the folder of the adapter from which notebook 07's training started


def content_hash(folder: str | Path) -> str:
    """A short hash of a model's configuration and weights, which does not depend on the folder.

    The Hub's cache names large files by their SHA-256, so these files are not read again.
    """
    digest = hashlib.sha256()
    for path in [*sorted(Path(folder).glob("*.safetensors")), Path(folder) / "config.json"]:
        blob = Path(os.readlink(path)).name if path.is_symlink() else ""
        if len(blob) != 64:
            blob = folders.content_hash(path)
        digest.update(f"{path.name} {blob}\n".encode())
    return digest.hexdigest()[:16]


def check_base(artifact: Path, base_folder: str | Path) -> None:
    """Raise an error if the base does not have the weights that the adapter was trained on.

    The name is not enough: stand-ins that were trained on different data have the same name. An
    adapter loads on another base without an error, and then generates nonsense.
    """
    note = json.loads((artifact / BASE_NOTE).read_text(encoding="utf-8"))
    if note.get("content") not in (None, content_hash(base_folder)):
        raise ModelError(
            tr(
                "The adapter in {artifact} was trained on a {base} with other weights: use the "
                "data and settings of that training, or run the notebook that makes it again.",
                artifact=artifact.name,
                base=note["base"],
            )
        )


def save_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, base_name: str
) -> None:
    """Save the adapter, the tokenizer, and the name and hash of the base, but not its path."""
    base = Path(model.get_base_model().name_or_path)
    content = content_hash(base) if (base / "config.json").is_file() else None
    for adapter in model.peft_config.values():
        adapter.base_model_name_or_path = base_name
    chosen = {"selected_adapters": ["default"], "save_embedding_layers": False}
    model.save_pretrained(folder / "adapter", **chosen)
    (folder / "adapter" / "README.md").unlink(missing_ok=True)  # it contains the base's path
    tokenizer.save_pretrained(folder / "adapter")
    (folder / BASE_NOTE).write_text(
        json.dumps({"base": base_name, "content": content}) + "\n", encoding="utf-8"
    )


def save_start(start: Path, folder: Path) -> None:
    """Save the adapter from which a training started, so that both can be compared later."""
    if (start / "adapter").is_dir():
        shutil.copytree(start / "adapter", folder / START)


def load_adapter(
    artifact: Path,
    base_folder: str,
    profile: Profile,
    *,
    trainable: bool = False,
    quantised: bool = True,
) -> PeftModel:
    """The base, by default with 4-bit weights, and a saved adapter."""
    check_base(artifact, base_folder)
    base, _ = chat_model(base_folder, profile, quantised=quantised)
    adapter = str(artifact / "adapter")
    return PeftModel.from_pretrained(base, adapter, is_trainable=trainable)


@contextmanager
def speaking_as(model: PeftModel, adapter: str) -> Iterator[None]:
    """Use another adapter of the model within the block."""
    current = model.active_adapter
    model.set_adapter(adapter)
    try:
        yield
    finally:
        model.set_adapter(current)


# --- Notebook 07: the model whose answers are voted on --------------------------------------------


def labelled_source(settings: ChatModels, pairs: DatasetDict) -> tuple[str, str]:
    """The folder and the name of the model whose answers are voted on."""
    if settings.labelled.hub_id == STAND_IN:
        return chat_source(settings, pairs)
    return _downloaded(settings.labelled)


def labelled_start(settings: ChatModels, made: Callable[[], Path]) -> Path:
    """The adapter that `made` finds for the stand-in; a real model starts without an adapter."""
    hub_id = settings.labelled.hub_id
    return made() if hub_id == STAND_IN else Path(hub_id)


def start_name(start: Path) -> str:
    """The name of a starting point, with the first digits of its adapter's hash if it has one.

    Each round of votes has another adapter, and therefore another name.
    """
    weights = start / "adapter" / "adapter_model.safetensors"
    digits = f" · {folders.content_hash(weights)[:8]}" if weights.is_file() else ""
    return f"{start.name}{digits}"


def labelled_model(start: Path, base_folder: str, profile: Profile) -> PeftModel:
    """A policy to train; its second adapter, "reference", keeps the policy's initial state.

    Both adapters are loaded from `start`. If it has no adapter, both begin as the bare model.
    """
    if (start / "adapter").is_dir():
        model = load_adapter(start, base_folder, profile, trainable=True)
        model.load_adapter(str(start / "adapter"), "reference")
    else:
        base, _ = chat_model(base_folder, profile)
        settings = replace(profile.chat, lora_alpha=profile.chat.labelled_lora_alpha)
        model = get_peft_model(base, lora(settings))
        model.add_adapter("reference", lora(settings))  # lora_B is 0, so the outputs do not change
    model.set_adapter("default")
    return model

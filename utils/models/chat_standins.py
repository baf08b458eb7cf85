"""Tiny Llama and Qwen2 chat models, pre-trained for a minute or two on the course's Vietnamese.

They have the real architectures, tokenizer classes, special tokens and chat templates. They are
pre-trained on the train split's questions and answers as plain text, so they know some words. They
learn the chat template and the end of an answer only in the lesson.
"""

import json
import random
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
)

from utils.course import progress
from utils.models.muon import Muon
from utils.models.standins import _cached

VOCABULARY = 3000
SHAPE = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "intermediate_size": 640,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},  # small, for short texts
    "tie_word_embeddings": True,
}
# Settings of the pre-training: tokens in total, rows per step, tokens per row, learning rates of
# matrices and of all other parameters. A text of more than SHORT tokens is used with probability
# 1/4 in each pass, because a model this small learns little from long texts.
TOKENS = 520_000
BLOCKS, LENGTH, MATRIX_RATE, REST_RATE, SHORT = 8, 128, 2e-2, 5e-3, 40
LLAMA_END = "<|eot_id|>"
LLAMA_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    LLAMA_END,
)
QWEN_END = "<|im_end|>"
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", QWEN_END)
# The fixed words of the templates are single tokens; otherwise they would fill over half of a row.
LLAMA_FIXED = (
    "Cutting Knowledge Date: December 2023\nToday Date: ",
    "26 Jul 2024\n\n",
    "system",
    "user",
    "assistant",
    "\n\n",
)
QWEN_FIXED = (
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "system\n",
    "user\n",
    "assistant\n",
)
WORDS = (  # Llama 3's pattern, which splits a text before byte-pair merging
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


Documents = Sequence[tuple[str, str]]  # question, answer


def _texts(documents: Documents) -> list[str]:
    return [part for document in documents for part in document]


def _template(name: str) -> str:
    """A chat template from the TRL package."""
    return (resources.files("trl") / "chat_templates" / f"{name}.jinja").read_text("utf-8")


def _byte_pairs(texts: Sequence[str], special: Sequence[str]) -> Tokenizer:
    """A byte-level BPE tokenizer trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _stream(rows: list[list[int]], tokens: int, generator: random.Random) -> list[int]:
    """The rows joined into one list, shuffled again in each pass; long rows are often skipped."""
    ids: list[int] = []
    while len(ids) < tokens:
        kept = [row for row in rows if len(row) <= SHORT or generator.random() < 0.25]
        generator.shuffle(kept)
        ids += [token for row in kept for token in row]
    return ids


def _pretrain(model: PreTrainedModel, rows: list[list[int]], tokens: int, seed: int) -> None:
    """Train next-token prediction: Muon for the matrices, AdamW for embeddings and norms.

    Here Muon needs about half as many tokens as AdamW alone for the same perplexity.
    """
    width = LENGTH + 1
    steps = tokens // (LENGTH * BLOCKS)
    ids = _stream(rows, steps * width * BLOCKS, random.Random(seed))
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in named if p.ndim != 2 or "embed" in name]
    optimizers = (
        Muon(matrices, lr=MATRIX_RATE, weight_decay=0.05),
        torch.optim.AdamW(rest, lr=REST_RATE, weight_decay=0.0),
    )

    def share(step: int) -> float:
        """Linear warm-up over the first tenth of the steps, then linear decay."""
        return min((step + 1) / (0.1 * steps), 1.0, max(0.02, (steps - step) / (0.9 * steps)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, share) for o in optimizers]
    model.train()
    for step in progress.track(range(steps), "pre-training the stand-in", unit="step"):
        block = torch.tensor(ids[step * width * BLOCKS : (step + 1) * width * BLOCKS])
        block = block.view(BLOCKS, width)
        model(input_ids=block, labels=block).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.eval()


def _build(
    folder: Path,
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    end: str,
    tokens: int,
    seed: int,
) -> None:
    """Make the model, pre-train it on question, answer and `end`; save model and tokenizer."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        first = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        last = tokenizer.convert_tokens_to_ids(end)
        rows = []
        for document in documents:  # as plain text, without the template and its end of turn
            plain = tokenizer("\n".join(document), add_special_tokens=False)["input_ids"]
            rows.append([*first, *plain, last])
        _pretrain(model, rows, tokens, seed)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _chat(
    name: str, documents: Documents, tokens: int | None, seed: int, build: Callable[[Path], None]
) -> Path:
    return _cached(f"{name}-{VOCABULARY}-{tokens or TOKENS}-{seed}", _texts(documents), build)


def llama(documents: Documents, *, tokens: int | None = None, seed: int = 0) -> Path:
    """A Llama of 3 layers x 256 with the template and special tokens of Llama 3.2."""

    def build(folder: Path) -> None:
        learned = _byte_pairs(_texts(documents), LLAMA_SPECIAL)
        begin = LLAMA_SPECIAL[0]
        learned.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A",
            pair=f"{begin} $A {begin} $B:1",
            special_tokens=[(begin, learned.token_to_id(begin))],
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=learned,
            bos_token=begin,
            eos_token=LLAMA_END,
            pad_token="<|finetune_right_pad_id|>",
            chat_template=_template("llama3_2"),
        )
        tokenizer.add_tokens(list(LLAMA_FIXED))
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **SHAPE,
        )
        _build(folder, documents, tokenizer, config, "<|end_of_text|>", tokens or TOKENS, seed)

    return _chat("llama", documents, tokens, seed, build)


def _qwen(
    name: str,
    documents: Documents,
    tokens: int | None,
    seed: int,
    template: str,
    kind: type[PretrainedConfig],
    **shape: int,
) -> Path:
    """A model with the tokenizer and the special tokens of the Qwen family."""

    def build(folder: Path) -> None:
        learned = json.loads(_byte_pairs(_texts(documents), QWEN_SPECIAL).to_str())["model"]
        tokenizer = Qwen2Tokenizer(
            vocab=learned["vocab"],
            merges=[tuple(pair) for pair in learned["merges"]],
            eos_token=QWEN_END,
            pad_token=QWEN_SPECIAL[0],
            additional_special_tokens=["<|im_start|>"],
        )
        tokenizer.chat_template = _template(template)
        tokenizer.add_tokens(list(QWEN_FIXED))
        config = kind(
            vocab_size=len(tokenizer),
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **SHAPE,
            **shape,
        )
        _build(folder, documents, tokenizer, config, "<|endoftext|>", tokens or TOKENS, seed)

    return _chat(name, documents, tokens, seed, build)


def qwen2(documents: Documents, *, tokens: int | None = None, seed: int = 0) -> Path:
    """A Qwen2 of the same size with the template and special tokens of Qwen2.5."""
    return _qwen("qwen2", documents, tokens, seed, "qwen2_5", Qwen2Config)


def qwen3(documents: Documents, *, tokens: int | None = None, seed: int = 0) -> Path:
    """A Qwen3; with thinking off, its template begins an answer with an empty thinking block."""
    heads = {"head_dim": SHAPE["hidden_size"] // SHAPE["num_attention_heads"]}
    return _qwen("qwen3", documents, tokens, seed, "qwen3", Qwen3Config, **heads)


BUILDERS: dict[str, Callable[..., Path]] = {  # the keys are names in ChatModels.choices
    "llama": llama,
    "qwen": qwen2,
    "qwen3": qwen3,
    "sailor": qwen2,  # Sailor2 has the architecture of Qwen2.5
}

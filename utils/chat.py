"""Questions and answers through a chat template: training rows, log-probabilities, answers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.losses import sequence_logps
from utils.models import speaking_as

# Llama's template writes today's date into every prompt: a fixed one keeps runs the same
TEMPLATE = {"date_string": "26 Jul 2024"}
TEMPLATE_COLUMN = "chat_template_kwargs"  # TRL passes this column on to the template


def asked(question: str) -> list[dict[str, str]]:
    """One user turn."""
    return [{"role": "user", "content": question}]


def answered(answer: str) -> list[dict[str, str]]:
    """One assistant turn."""
    return [{"role": "assistant", "content": answer}]


def sft_rows(pairs: Dataset) -> Dataset:
    """question, chosen -> prompt, completion as TRL reads them: only the answer is learned."""
    rows = [
        {"prompt": asked(q), "completion": answered(c), TEMPLATE_COLUMN: TEMPLATE}
        for q, c in zip(pairs["question"], pairs["chosen"], strict=True)
    ]
    return Dataset.from_list(rows)


def preference_rows(pairs: Dataset) -> Dataset:
    """question, chosen, rejected -> prompt, chosen, rejected as TRL reads them."""
    columns = zip(pairs["question"], pairs["chosen"], pairs["rejected"], strict=True)
    rows = [
        {
            "prompt": asked(q),
            "chosen": answered(c),
            "rejected": answered(r),
            TEMPLATE_COLUMN: TEMPLATE,
        }
        for q, c, r in columns
    ]
    return Dataset.from_list(rows)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """The question in the template, up to where the assistant begins to speak."""
    text = tokenizer.apply_chat_template(
        asked(question), add_generation_prompt=True, tokenize=False, **TEMPLATE
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """The answer, the token that ends a turn, and what the template writes after it."""
    rendered = tokenizer.apply_chat_template(
        [*asked("?"), *answered(answer)], tokenize=False, **TEMPLATE
    )
    start = tokenizer.apply_chat_template(
        asked("?"), add_generation_prompt=True, tokenize=False, **TEMPLATE
    )
    return tokenizer(rendered[len(start) :], add_special_tokens=False)["input_ids"]


def _batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Row numbers, rows of like length together."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    return [order[start : start + size] for start in range(0, len(order), size)]


@torch.inference_mode()
def answer_logps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    answers: Sequence[str | list[int]],
    batch_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """ln π(answer | question), summed over the answer and its end; and its tokens: both (rows,).

    An answer is a text, or the tokens that a model has written.
    """
    model.eval()
    prompts = [prompt_ids(tokenizer, question) for question in questions]
    replies = [answer_ids(tokenizer, a) if isinstance(a, str) else a for a in answers]
    tokens = torch.tensor([len(reply) for reply in replies])
    logps = torch.empty(len(replies))
    for rows in _batches(
        [len(p) + len(r) for p, r in zip(prompts, replies, strict=True)], batch_size
    ):
        width = max(len(prompts[row]) + len(replies[row]) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        real, reply = torch.zeros_like(ids), torch.zeros_like(ids)
        for place, row in enumerate(rows):
            start, end = len(prompts[row]), len(prompts[row]) + len(replies[row])
            ids[place, :end] = torch.tensor(prompts[row] + replies[row])
            real[place, :end] = 1
            reply[place, start:end] = 1
        ids, real, reply = (part.to(model.device) for part in (ids, real, reply))
        logits = model(input_ids=ids, attention_mask=real).logits
        logps[rows] = sequence_logps(logits, ids, reply).float().cpu()
    return logps, tokens


def fitting(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    batch_size: int,
    seed: int = 0,
) -> Dataset:
    """The rows whose question and answers fit into `max_length`, in an order that pads little.

    TRL cuts an answer that goes beyond and drops a row whose prompt alone fills it, both without
    a word: here such rows are left out and counted. Rows of like length stand side by side,
    `batch_size` of them together, and these batches in random order: for a sequential sampler.
    """
    prompts = [len(prompt_ids(tokenizer, question)) for question in pairs["question"]]
    chosen, rejected = (
        [len(answer_ids(tokenizer, answer)) for answer in pairs[side]]
        for side in ("chosen", "rejected")
    )
    lengths = list(zip(prompts, chosen, rejected, strict=True))
    kept = [row for row, (p, c, r) in enumerate(lengths) if p + max(c, r) <= max_length]
    if left := len(lengths) - len(kept):
        print(f"{left} of {len(lengths)} rows are longer than {max_length} tokens: left out.")
    batches = _batches([sum(lengths[row]) for row in kept], batch_size)  # as in `shared_prompt`
    whole = batches[: len(kept) // batch_size]
    random.Random(seed).shuffle(whole)
    ordered = [*whole, *batches[len(whole) :]]  # one that is not full stays last
    return pairs.select([kept[place] for batch in ordered for place in batch])


@dataclass(frozen=True)
class Reply:
    """What the model said to one question."""

    text: str
    ended: bool  # by its own end token, not by the limit
    ids: list[int]  # its tokens, the end included

    @property
    def tokens(self) -> int:
        """How many tokens were written."""
        return len(self.ids)


@torch.inference_mode()
def reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 64,
) -> list[Reply]:
    """Answers to the questions: the likeliest token each time, or sampled above temperature 0."""
    model.eval()
    prompts = [prompt_ids(tokenizer, question) for question in questions]
    replies: list[Reply | None] = [None] * len(prompts)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for rows in _batches([len(prompt) for prompt in prompts], batch_size):
            width = max(len(prompts[row]) for row in rows)
            padding = tokenizer.pad_token_id
            ids = torch.tensor([[padding] * (width - len(prompts[r])) + prompts[r] for r in rows])
            lengths = torch.tensor([len(prompts[row]) for row in rows])
            real = torch.arange(width) >= (width - lengths)[:, None]  # padded on the left
            said = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=real.long().to(model.device),
                max_new_tokens=max_new_tokens,
                pad_token_id=padding,
                eos_token_id=tokenizer.eos_token_id,
                **(sampling if temperature > 0 else {"do_sample": False}),
            )[:, width:].tolist()
            for row, ids_said in zip(rows, said, strict=True):
                ended = tokenizer.eos_token_id in ids_said
                kept = ids_said[: ids_said.index(tokenizer.eos_token_id)] if ended else ids_said
                text = tokenizer.decode(kept, skip_special_tokens=True).strip()
                replies[row] = Reply(text, ended, ids_said[: len(kept) + ended])
    return replies


@torch.inference_mode()
def sampled_kl(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    reference: str = "reference",
    seed: int = 0,
) -> Tensor:
    """ln π(y) - ln π_ref(y) of an answer y that the policy samples to each question: (rows,).

    Their mean estimates KL(π ‖ π_ref) in nats an answer; `reference` names an adapter of the model.
    """
    replies = reply(
        model, tokenizer, questions, max_new_tokens=max_new_tokens, temperature=1.0, seed=seed
    )
    written = [said.ids for said in replies]
    ours, _ = answer_logps(model, tokenizer, questions, written)
    with speaking_as(model, reference):
        theirs, _ = answer_logps(model, tokenizer, questions, written)
    return ours - theirs

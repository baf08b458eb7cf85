"""Questions and answers through a chat template: training rows, log-probabilities, answers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.course.errors import CourseError
from utils.course.language import tr
from utils.models import lengths, logprobs, memory
from utils.models.adapters import speaking_as
from utils.models.logprobs import padded

# Llama's template writes today's date into every prompt; a fixed date makes runs reproducible.
# Qwen3's template lets the model write its reasoning before the answer unless this is switched off.
TEMPLATE = {"date_string": "26 Jul 2024", "enable_thinking": False}
REPLY_TOKENS = 16_384  # per batch of `reply`: the keys and values of each token use memory
TEMPLATE_COLUMN = "chat_template_kwargs"  # TRL passes this column on to the template


Turns = list[dict[str, str]]  # of a dialogue, in TRL's format; the last one is the user's


def asked(question: str | Turns) -> Turns:
    """The turns before the answer: one user turn, or the given turns of a dialogue."""
    return [{"role": "user", "content": question}] if isinstance(question, str) else question


def conversations(pairs: Dataset) -> list[str | Turns]:
    """The questions of the rows; with its earlier turns where a row has a history."""
    if "history" not in pairs.column_names:
        return list(pairs["question"])
    rows = zip(pairs["history"], pairs["question"], strict=True)
    return [[*history, *asked(question)] if history else question for history, question in rows]


def answered(answer: str) -> Turns:
    """One assistant turn."""
    return [{"role": "assistant", "content": answer}]


def sft_rows(pairs: Dataset) -> Dataset:
    """question, chosen -> prompt, completion in TRL's format: only the answer is learned."""
    rows = [
        {"prompt": asked(q), "completion": answered(c), TEMPLATE_COLUMN: TEMPLATE}
        for q, c in zip(conversations(pairs), pairs["chosen"], strict=True)
    ]
    return Dataset.from_list(rows)


def preference_rows(pairs: Dataset) -> Dataset:
    """question, chosen, rejected -> prompt, chosen, rejected in TRL's format."""
    columns = zip(conversations(pairs), pairs["chosen"], pairs["rejected"], strict=True)
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


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str | Turns) -> list[int]:
    """The tokens of the question in the template, up to the start of the assistant's answer."""
    text = tokenizer.apply_chat_template(
        asked(question), add_generation_prompt=True, tokenize=False, **TEMPLATE
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def prompts_within(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str | Turns],
    limit: int,
    *,
    say: lengths.Say = print,
) -> list[list[int]]:
    """The prompts, each of at most `limit` tokens; the question of a longer prompt is cut.

    The template is not cut, and one line reports how many prompts were cut.
    """
    prompts = [prompt_ids(tokenizer, question) for question in questions]
    lengths.say_longer([len(prompt) for prompt in prompts], limit, "prompts", say=say)
    return [
        prompt if len(prompt) <= limit else _shortened(tokenizer, question, limit)
        for prompt, question in zip(prompts, questions, strict=True)
    ]


def _shortened(tokenizer: PreTrainedTokenizerBase, question: str | Turns, limit: int) -> list[int]:
    """The prompt with the longest beginning of the question that fits into `limit` tokens.

    The earlier turns of a dialogue are left out.
    """
    last = asked(question)[-1]["content"]
    ids = tokenizer(last, add_special_tokens=False)["input_ids"]
    kept = len(ids)
    while True:
        prompt = prompt_ids(tokenizer, lengths.beginning(tokenizer, ids, kept))
        if len(prompt) <= limit:
            return prompt
        if kept == 0:
            raise CourseError(
                tr(
                    "The chat template alone has {tokens} tokens, but only {limit} are left for "
                    "the prompt: lower max_new_tokens in utils/course/profiles.py, or choose "
                    "another model.",
                    tokens=len(prompt),
                    limit=limit,
                )
            )
        kept = max(0, kept - (len(prompt) - limit))


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """The answer, the token that ends a turn, and what the template writes after it."""
    rendered = tokenizer.apply_chat_template(
        [*asked("?"), *answered(answer)], tokenize=False, **TEMPLATE
    )
    start = tokenizer.apply_chat_template(
        asked("?"), add_generation_prompt=True, tokenize=False, **TEMPLATE
    )
    return tokenizer(rendered[len(start) :], add_special_tokens=False)["input_ids"]


def answer_logps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str | Turns],
    answers: Sequence[str | list[int]],
    batch_tokens: int = logprobs.BATCH_TOKENS,
) -> tuple[Tensor, Tensor]:
    """ln π(answer | question), summed over the tokens, and the number of tokens: both (rows,).

    An answer is a text, or the tokens that a model has generated. The end token is included. If a
    row is longer than the model's context, the question is cut first, but to no less than half of
    the context; then the end of the answer is cut.
    """
    prompts = [prompt_ids(tokenizer, question) for question in questions]
    replies = [answer_ids(tokenizer, a) if isinstance(a, str) else a for a in answers]
    limit, both = logprobs.positions(model), list(zip(prompts, replies, strict=True))
    lengths.say_longer([len(prompt) + len(reply) for prompt, reply in both], limit, "rows")
    for row, (prompt, answer) in enumerate(both):
        if len(prompt) + len(answer) > limit:
            room = max(limit // 2, limit - len(answer))
            if len(prompt) > room:
                prompts[row] = _shortened(tokenizer, questions[row], room)
            replies[row] = answer[: limit - len(prompts[row])]
    found = logprobs.answer_logps(model, prompts, replies, batch_tokens=batch_tokens)
    return found, torch.tensor([len(reply) for reply in replies])


def _lengths(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, sides: Sequence[str]
) -> list[tuple[int, ...]]:
    """The numbers of tokens of each row's prompt and of each of its answers."""
    prompts = [len(prompt_ids(tokenizer, question)) for question in conversations(pairs)]
    answers = [[len(answer_ids(tokenizer, answer)) for answer in pairs[side]] for side in sides]
    return list(zip(prompts, *answers, strict=True))


def _within(counted: Sequence[tuple[int, ...]], max_length: int) -> list[int]:
    """The rows whose prompt and longest answer fit into `max_length`; prints how many do not."""
    kept = [
        row for row, (prompt, *sides) in enumerate(counted) if prompt + max(sides) <= max_length
    ]
    left, values = len(counted) - len(kept), {"total": len(counted), "limit": max_length}
    if left == 1:
        print(tr("1 of {total} rows is longer than {limit} tokens: left out.", **values))
    elif left:
        print(
            tr(
                "{left} of {total} rows are longer than {limit} tokens: left out.",
                left=left,
                **values,
            )
        )
    if not kept:
        raise CourseError(
            tr(
                "None of {total} rows is left with at most {limit} tokens: add shorter rows, or "
                "raise max_length in utils/course/profiles.py.",
                **values,
            )
        )
    return kept


def not_longer(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    sides: Sequence[str] = ("chosen", "rejected"),
) -> Dataset:
    """The rows whose question and answers fit into `max_length`, in their original order.

    A cut answer would teach the model not to end its answers. So longer rows are left out, and
    their number is printed.
    """
    return pairs.select(_within(_lengths(pairs, tokenizer, sides), max_length))


def fitting(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    batch_size: int,
    seed: int = 0,
) -> Dataset:
    """The rows whose question and answers fit into `max_length`, in an order with little padding.

    TRL cuts longer answers, and drops rows whose prompt alone fills `max_length`, both without a
    message. Here such rows are left out, and their number is printed. Each batch of `batch_size`
    rows has rows of similar length, and the batches are in random order. Use a sequential sampler.
    """
    counted = _lengths(pairs, tokenizer, ("chosen", "rejected"))
    kept = _within(counted, max_length)
    order = sorted(range(len(kept)), key=lambda index: sum(counted[kept[index]]))
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    whole = batches[: len(kept) // batch_size]
    random.Random(seed).shuffle(whole)
    ordered = [*whole, *batches[len(whole) :]]  # an incomplete batch stays last
    return pairs.select([kept[index] for batch in ordered for index in batch])


@dataclass(frozen=True)
class Reply:
    """The model's answer to one question."""

    text: str
    ended: bool  # True if the model generated the end token, False if the limit was reached
    ids: list[int]  # its tokens, including the end token

    @property
    def tokens(self) -> int:
        """The number of generated tokens."""
        return len(self.ids)


@torch.inference_mode()
def reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str | Turns],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch_tokens: int = REPLY_TOKENS,
) -> list[Reply]:
    """Answers to the questions: greedy at temperature 0, sampled at a higher temperature."""
    model.eval()
    prompts = prompts_within(tokenizer, questions, logprobs.positions(model) - max_new_tokens)
    replies: list[Reply | None] = [None] * len(prompts)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    end = tokenizer.eos_token_id

    def write(rows: list[int]) -> None:
        part = [prompts[row] for row in rows]
        ids, real = padded(part, tokenizer.pad_token_id, left=True)
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=real.long().to(model.device),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=end,
            repetition_penalty=1.0,  # Qwen's own 1.05 would change the model's probabilities
            **(sampling if temperature > 0 else {"do_sample": False}),
        )[:, ids.shape[1] :].tolist()
        for row, tokens in zip(rows, written, strict=True):
            ended = end in tokens
            kept = tokens[: tokens.index(end)] if ended else tokens
            text = tokenizer.decode(kept, skip_special_tokens=True).strip()
            replies[row] = Reply(text, ended, tokens[: len(kept) + ended])

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens = [len(prompt) + max_new_tokens for prompt in prompts]
        memory.in_batches(tokens, write, batch_tokens, "answers")
    return replies


@torch.inference_mode()
def sampled_kl(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str | Turns],
    *,
    max_new_tokens: int,
    reference: str = "reference",
    seed: int = 0,
) -> Tensor:
    """ln π(y) - ln π_ref(y) of one answer y per question, sampled from the policy: (rows,).

    The mean estimates KL(π ‖ π_ref) in nats per answer; `reference` is the name of an adapter.
    """
    replies = reply(
        model, tokenizer, questions, max_new_tokens=max_new_tokens, temperature=1.0, seed=seed
    )
    written = [each.ids for each in replies]
    limit = logprobs.positions(model) - max_new_tokens  # the prompts are cut as in `reply`
    prompts = prompts_within(tokenizer, questions, limit, say=lengths.silent)
    ours = logprobs.answer_logps(model, prompts, written)
    with speaking_as(model, reference):
        theirs = logprobs.answer_logps(model, prompts, written)
    return ours - theirs

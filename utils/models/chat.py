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
from utils.models import lengths, logprobs, memory
from utils.models.adapters import speaking_as
from utils.models.logprobs import padded

# Llama's template writes today's date into every prompt: a fixed one keeps runs the same. Qwen3's
# lets the model think aloud before it answers, unless told not to.
TEMPLATE = {"date_string": "26 Jul 2024", "enable_thinking": False}
REPLY_TOKENS = 16_384  # written and read at a time: each keeps its keys and values in memory
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


def prompts_within(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    limit: int,
    *,
    say: lengths.Say = print,
) -> list[list[int]]:
    """The prompts, each of at most `limit` tokens: of a longer one the question's end is cut.

    The template stays whole, and one sentence says how many were cut.
    """
    prompts = [prompt_ids(tokenizer, question) for question in questions]
    lengths.say_longer([len(prompt) for prompt in prompts], limit, "prompts", say=say)
    return [
        prompt if len(prompt) <= limit else _shortened(tokenizer, question, limit)
        for prompt, question in zip(prompts, questions, strict=True)
    ]


def _shortened(tokenizer: PreTrainedTokenizerBase, question: str, limit: int) -> list[int]:
    """The prompt of as much of the question as leaves it at most `limit` tokens."""
    ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    kept = len(ids)
    while True:
        prompt = prompt_ids(tokenizer, lengths.beginning(tokenizer, ids, kept))
        if len(prompt) <= limit:
            return prompt
        if kept == 0:
            raise CourseError(
                f"The chat template alone takes {len(prompt)} tokens and {limit} are left for the "
                "prompt: lower max_new_tokens in utils/course/profiles.py, or take another model."
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
    questions: Sequence[str],
    answers: Sequence[str | list[int]],
    batch_tokens: int = logprobs.BATCH_TOKENS,
) -> tuple[Tensor, Tensor]:
    """ln π(answer | question), summed over the answer and its end; and its tokens: both (rows,).

    An answer is a text, or the tokens that a model has written. A row that is longer than the
    model can read loses the end of its answer, and before that what its question has beyond half.
    """
    prompts = [prompt_ids(tokenizer, question) for question in questions]
    replies = [answer_ids(tokenizer, a) if isinstance(a, str) else a for a in answers]
    limit, both = lengths.positions(model), list(zip(prompts, replies, strict=True))
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
    """How many tokens each row's prompt has, and each of its answers."""
    prompts = [len(prompt_ids(tokenizer, question)) for question in pairs["question"]]
    answers = [[len(answer_ids(tokenizer, answer)) for answer in pairs[side]] for side in sides]
    return list(zip(prompts, *answers, strict=True))


def _within(counted: Sequence[tuple[int, ...]], max_length: int) -> list[int]:
    """The rows whose prompt fits into `max_length` with every answer; the others are counted."""
    kept = [
        row for row, (prompt, *sides) in enumerate(counted) if prompt + max(sides) <= max_length
    ]
    if left := len(counted) - len(kept):
        verb = "is" if left == 1 else "are"
        print(f"{left} of {len(counted)} rows {verb} longer than {max_length} tokens: left out.")
    if not kept:
        raise CourseError(
            f"None of {len(counted)} rows is left with at most {max_length} tokens: add shorter "
            "rows, or raise max_length in utils/course/profiles.py."
        )
    return kept


def not_longer(
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    sides: Sequence[str] = ("chosen", "rejected"),
) -> Dataset:
    """The rows whose question and answers fit into `max_length`, in their order.

    An answer that was cut would teach a model never to end: longer rows are left out and counted.
    """
    return pairs.select(_within(_lengths(pairs, tokenizer, sides), max_length))


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
    counted = _lengths(pairs, tokenizer, ("chosen", "rejected"))
    kept = _within(counted, max_length)
    order = sorted(range(len(kept)), key=lambda place: sum(counted[kept[place]]))
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
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
    batch_tokens: int = REPLY_TOKENS,
) -> list[Reply]:
    """Answers to the questions: the likeliest token each time, or sampled above temperature 0."""
    model.eval()
    prompts = prompts_within(tokenizer, questions, lengths.positions(model) - max_new_tokens)
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
    questions: Sequence[str],
    *,
    max_new_tokens: int,
    reference: str = "reference",
    seed: int = 0,
) -> Tensor:
    """ln π(y) - ln π_ref(y) of an answer y that the policy samples to each question: (rows,).

    Their mean estimates KL(π ‖ π_ref) in nats per answer; `reference` names an adapter.
    """
    replies = reply(
        model, tokenizer, questions, max_new_tokens=max_new_tokens, temperature=1.0, seed=seed
    )
    written = [said.ids for said in replies]
    room = lengths.positions(model) - max_new_tokens  # the prompts that were answered
    prompts = prompts_within(tokenizer, questions, room, say=lengths.silent)
    ours = logprobs.answer_logps(model, prompts, written)
    with speaking_as(model, reference):
        theirs = logprobs.answer_logps(model, prompts, written)
    return ours - theirs

"""Responses of any causal language model: sampled token by token, then scored in one pass.

All random numbers are computed from a seed and a purpose (see `utils.models.draws`). So no random
state needs saving, and the sampled responses do not depend on the number of processes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache
from transformers.activations import ACT2FN, NewGELUActivation

from utils import losses
from utils.course.errors import SettingError
from utils.course.language import tr
from utils.models.draws import PROMPTS, generator
from utils.models.logprobs import trunk_and_head


@dataclass(frozen=True)
class Rollout:
    """A batch of episodes: prompts are padded on the left, responses on the right."""

    tokens: Tensor  # (batch, prompt + response)
    attention: Tensor  # (batch, prompt + response), False on padding
    mask: Tensor  # (batch, response), True up to and including the end-of-text token
    ended: Tensor  # (batch,), True if the response contains the end-of-text token

    @property
    def responses(self) -> Tensor:
        """The response tokens (batch, response)."""
        return self.tokens[:, -self.mask.shape[1] :]


# --- Prompts and random numbers ------------------------------------------------------------------


def prompt_rows(prompts: int, batch_size: int, seed: int, update: int) -> Tensor:
    """Indices of an update's prompts; successive updates go through shuffled passes over all."""
    start = update * batch_size
    first, last = start // prompts, (start + batch_size - 1) // prompts
    passes = [
        torch.randperm(prompts, generator=generator(seed, PROMPTS, number))
        for number in range(first, last + 1)
    ]
    return torch.cat(passes)[start - first * prompts :][:batch_size]


# --- Models --------------------------------------------------------------------------------------


@torch.no_grad()
def check_head(model: nn.Module, prompt: list[int]) -> None:
    """Raise an error if the model's logits are not those of its output layer on the trunk."""
    trunk, head = trunk_and_head(model)
    tokens = torch.tensor([prompt], device=next(model.parameters()).device)
    with dropout_off(model):
        logits = head(trunk(input_ids=tokens).last_hidden_state)
        difference = (logits - model(input_ids=tokens).logits).abs().max().item()
    if difference > 1e-2:
        raise SettingError(
            tr(
                "{model} changes its logits after the output layer, by up to {difference:.2g}, "
                "and this sampler does not compute that: use another model.",
                model=type(model).__name__,
                difference=difference,
            )
        )


def fuse_gelu(model: nn.Module) -> None:
    """Compute GPT-2's GELU in one kernel instead of eight; results are equal up to rounding."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, ACT2FN["gelu_pytorch_tanh"].train(child.training))


@contextmanager
def dropout_off(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards each module returns to its former mode."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


# --- Drawing responses ---------------------------------------------------------------------------


def compiled_step(trunk: nn.Module, room: int) -> tuple[Callable, StaticCache]:
    """The trunk as one CUDA graph instead of hundreds of launches per token, and its cache."""
    compiled = torch.compile(trunk, mode="reduce-overhead", dynamic=False)
    return compiled, StaticCache(config=trunk.config, max_cache_len=room)


@torch.no_grad()
def sample_responses(
    trunk: nn.Module,
    head: nn.Module,
    prompts: Tensor,  # (batch, prompt), padded on the left
    attention: Tensor,  # (batch, prompt)
    draws: Tensor,  # (batch, response), uniform random numbers in [0, 1)
    end: int,
    temperature: float,
    static: tuple[Callable, StaticCache] | None = None,  # compiled trunk and its cache, on CUDA
) -> Tensor:
    """Sampled responses (batch, response); tokens after a row's end-of-text token are arbitrary."""
    batch, length = draws.shape
    responses = torch.full((batch, length), end, device=prompts.device)
    attention = torch.cat([attention, attention.new_ones(batch, length)], 1)
    position_ids = losses.positions(attention)
    rows = torch.arange(batch, device=prompts.device)  # the rows that have not been removed
    ended = torch.zeros(batch, dtype=torch.bool, device=prompts.device)
    step, cache, tokens = trunk, DynamicCache(config=trunk.config), prompts
    if static:
        cache = static[1]
        cache.reset()
    for t in range(length):
        width = prompts.shape[1] + t
        hidden = step(
            input_ids=tokens,
            attention_mask=attention if static else attention[:, :width],
            position_ids=position_ids[:, width - tokens.shape[1] : width],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        chosen = losses.inverse_cdf(head(hidden).float() / temperature, draws[rows, t])
        responses[rows, t] = chosen
        tokens, ended = chosen.unsqueeze(1), ended | (chosen == end)
        if static:
            step = static[0]
            if t % 8 == 7 and ended.all():  # not at every token: the CPU waits for the GPU here
                break
        elif 8 * ended.sum() >= len(rows):  # removing 1/8 of the rows repays copying the cache
            going = (~ended).nonzero().squeeze(1)
            if len(going) == 0:
                break
            rows, tokens, ended = rows[going], tokens[going], ended[going]
            attention, position_ids = attention[going], position_ids[going]
            cache.batch_select_indices(going)
    return responses


def as_rollout(
    prompts: Tensor, attention: Tensor, responses: Tensor, end: int, pad: int
) -> Rollout:
    """Join prompts (batch, prompt) and responses (batch, response); pad after each response."""
    mask = losses.up_to_end(responses, end)
    ended = ((responses == end) & mask).any(1)
    responses = responses.masked_fill(~mask, pad)
    tokens, attention = torch.cat([prompts, responses], 1), torch.cat([attention, mask], 1)
    return Rollout(tokens, attention, mask, ended)


# --- Scoring responses, some rows of a rollout at a time -----------------------------------------


def response_states(trunk: nn.Module, rollout: Rollout, rows: Tensor) -> Tensor:
    """The hidden state that predicts each response token of the given rows: (tokens, hidden)."""
    mask, attention = rollout.mask[rows], rollout.attention[rows]
    prompt = attention.shape[1] - mask.shape[1]
    start = int(attention.int().argmax(1).min())  # the columns before it hold only padding
    length = int(mask.sum(1).max())
    window = slice(start, prompt + length - 1)  # no token is predicted from the last one
    hidden = trunk(
        input_ids=rollout.tokens[rows, window],
        attention_mask=attention[:, window],
        position_ids=losses.positions(attention)[:, window],
        use_cache=False,
    ).last_hidden_state
    return hidden[:, prompt - 1 - start :][mask[:, :length]]


def response_logps(
    head: nn.Module, states: Tensor, rollout: Rollout, rows: Tensor, temperature: float
) -> Tensor:
    """Log-probabilities of the given rows' response tokens, from their hidden states: (tokens,)."""
    tokens = rollout.responses[rows][rollout.mask[rows]]
    return losses.token_logps_(head(states).float(), tokens, temperature)

"""The models of PPO: the policy, its reference and its value head.

The reference is a frozen copy of the policy, or the policy itself with its adapter switched off.
The value head reads the hidden states of the policy, or those of a copy of its trunk. Any method
that samples from a policy can use this class: PPO, best-of-n, an evaluation of RLOO or GRPO.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from transformers import StaticCache

from utils import losses
from utils.course import progress
from utils.course.errors import CourseError, SettingError
from utils.course.language import tr
from utils.models.draws import HELD_OUT, generator
from utils.models.logprobs import padded, positions, trunk_and_head
from utils.models.precision import DTYPES
from utils.ppo import processes, sampling
from utils.ppo.sampling import Rollout, dropout_off


class PromptError(CourseError, ValueError):
    """A prompt that the policy cannot continue."""


class ActorCritic:
    """Samples responses, and computes log-probabilities and values of their tokens."""

    def __init__(
        self,
        policy: nn.Module,  # any causal language model of transformers, with or without PEFT
        tokenizer: object,
        reference: nn.Module | None = None,  # None: a frozen copy, or the adapter switched off
        *,
        max_new_tokens: int,  # longest response
        temperature: float = 1.0,  # divides the logits, both in sampling and in scoring
        shared_value_head: bool = True,  # values from the policy's trunk; False: from a copy of it
        precision: str = "fp32",  # the precision of autocast: a key of DTYPES
        batch_size: int = 64,  # prompts per sampling pass in `generate` and `evaluate`
    ) -> None:
        self.policy, self.tokenizer = policy, tokenizer
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.dtype, self.batch_size = DTYPES[precision], batch_size
        self.device = next(policy.parameters()).device
        self.end = tokenizer.eos_token_id
        if self.end is None:
            raise SettingError(
                tr("The tokenizer has no eos_token, which ends a response: set one.")
            )
        self.pad = self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id

        sampling.fuse_gelu(policy)
        self.trunk, self.head = trunk_and_head(policy)
        # a new adapter has random weights: every process takes those of the first
        processes.broadcast(parameter.data for parameter in policy.parameters())
        if reference is policy:
            raise SettingError(tr("The reference is the policy itself: omit it, or give a copy."))
        self.reference = reference
        if reference is None and not hasattr(policy, "disable_adapter"):
            self.reference = copy.deepcopy(policy)
        if self.reference is not None:
            self.reference.requires_grad_(False).eval()
        self.critic = nn.ModuleDict({"head": nn.Linear(policy.config.hidden_size, 1)})
        nn.init.zeros_(self.critic["head"].weight)
        nn.init.zeros_(self.critic["head"].bias)
        if not shared_value_head:
            self.critic["trunk"] = copy.deepcopy(self.trunk)
        self.critic.to(self.device)
        self.static: tuple[Callable, StaticCache] | None = None  # see `compile_sampling`

    def compile_sampling(self, longest_prompt: int) -> None:
        """On CUDA, sample with one compiled step per token; on other devices, do nothing."""
        if self.device.type == "cuda":
            longest = longest_prompt + self.max_new_tokens
            self.static = sampling.compiled_step(self.trunk, longest)

    def autocast(self) -> torch.autocast:
        """A context in which the models compute in the chosen precision."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    @contextmanager
    def reference_parts(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Trunk and head of the reference: a frozen copy, or the policy without its adapter."""
        if self.reference is not None:
            yield trunk_and_head(self.reference)
        else:
            with self.policy.disable_adapter():
                yield self.trunk, self.head

    @contextmanager
    def scaled(self, factor: float) -> Iterator[None]:
        """Within it, the weights are the reference's plus `factor` times what training changed.

        0 gives the reference and 1 the policy. A factor between them interpolates (WARP), a larger
        one extrapolates (ExPO): one training gives policies for every KL.
        """
        if self.reference is None:
            raise SettingError(tr("An adapter has no second set of weights: give a reference."))
        start = dict(self.reference.named_parameters())
        own = {name: weight.detach().clone() for name, weight in self.policy.named_parameters()}
        try:
            with torch.no_grad():
                for name, weight in self.policy.named_parameters():
                    weight.copy_(torch.lerp(start[name], own[name], factor))
            yield
        finally:
            with torch.no_grad():
                for name, weight in self.policy.named_parameters():
                    weight.copy_(own[name])

    # --- Scoring responses ---

    def values(self, rollout: Rollout, rows: Tensor, states: Tensor | None = None) -> Tensor:
        """Values of the given rows' response tokens: (tokens,).

        `states` are the policy's hidden states of these tokens, if the caller has them.
        """
        if states is None or "trunk" in self.critic:
            trunk = self.critic["trunk"] if "trunk" in self.critic else self.trunk  # noqa: SIM401
            with dropout_off(trunk), self.autocast():
                states = sampling.response_states(trunk, rollout, rows)
        return self.critic["head"](states.float()).squeeze(-1)

    def logps_and_values(self, rollout: Rollout, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values of the given rows' response tokens: both (tokens,)."""
        with dropout_off(self.policy), self.autocast():
            states = sampling.response_states(self.trunk, rollout, rows)
            logps = sampling.response_logps(self.head, states, rollout, rows, self.temperature)
        return logps, self.values(rollout, rows, states)

    def logps_values_and_kl(
        self, rollout: Rollout, rows: Tensor, reference_states: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-probabilities, values, the exact KL and the reference's: each (tokens,).

        `reference_states` are the reference's hidden states of these tokens: its trunk, which takes
        most of the time, runs once per batch, and its output layer once per pass.
        """
        states, logps, kl, reference_logps = self._exact(rollout, rows, reference_states)
        return logps, self.values(rollout, rows, states), kl, reference_logps

    def _exact(self, rollout: Rollout, rows: Tensor, reference_states: Tensor) -> tuple:
        """The policy's hidden states, log-probabilities, the exact KL and the reference's."""
        with dropout_off(self.policy), self.autocast():
            states = sampling.response_states(self.trunk, rollout, rows)
            tokens = rollout.responses[rows][rollout.mask[rows]]
            with torch.no_grad(), self.reference_parts() as (_, head):
                reference_logits = head(reference_states).float()
            given = (self.head(states).float(), reference_logits, tokens, self.temperature)
            return states, *losses.token_logps_and_kl_(*given)

    @torch.no_grad()
    def reference_states(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """The reference's hidden states of the given rows' response tokens: (tokens, hidden)."""
        with self.reference_parts() as (trunk, _), dropout_off(trunk), self.autocast():
            return sampling.response_states(trunk, rollout, rows)

    @torch.no_grad()
    def reference_logps(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """The reference's log-probabilities of the given rows' response tokens: (tokens,)."""
        states = self.reference_states(rollout, rows)
        with self.reference_parts() as (_, head), self.autocast():
            return sampling.response_logps(head, states, rollout, rows, self.temperature)

    # --- Drawing responses ---

    def encode(self, prompts: Sequence[str] | Sequence[list[int]]) -> list[list[int]]:
        """Token ids of each prompt, without an end-of-text token at the end."""
        longest = positions(self.policy)
        if self.max_new_tokens >= longest:
            raise SettingError(
                tr(
                    "max_new_tokens is {new}, and the policy accepts {longest} tokens in all: make "
                    "max_new_tokens smaller.",
                    new=self.max_new_tokens,
                    longest=longest,
                )
            )
        encoded = []
        for prompt in prompts:
            ids = list(self.tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt)
            if ids and ids[-1] == self.end:
                ids.pop()
            if not 0 < len(ids) <= longest - self.max_new_tokens:
                raise PromptError(
                    tr(
                        "The prompt {prompt!r} has {tokens} tokens, but with {new} new tokens the "
                        "policy accepts 1 to {most}: change or remove this prompt.",
                        prompt=prompt,
                        tokens=len(ids),
                        new=self.max_new_tokens,
                        most=longest - self.max_new_tokens,
                    )
                )
            encoded.append(ids)
        if not encoded:
            raise PromptError(tr("There are no prompts: give at least one."))
        return encoded

    def sample(
        self,
        prompts: list[list[int]],
        draws: Tensor,  # (batch, response), uniform random numbers in [0, 1)
        width: int = 0,  # pad the prompts to at least this many tokens
        *,
        compiled: bool = False,  # use the compiled step, if there is one
        from_reference: bool = False,
    ) -> Rollout:
        """One response per prompt; the random numbers in `draws` determine every token."""
        static = self.static if compiled else None
        tokens, attention = padded(prompts, self.pad, left=True, width=width)
        tokens, attention, draws = (x.to(self.device) for x in (tokens, attention, draws))
        parts = self.reference_parts() if from_reference else nullcontext((self.trunk, self.head))
        with dropout_off(self.policy), self.autocast(), parts as models:
            given = (*models, tokens, attention, draws, self.end, self.temperature)
            try:
                responses = sampling.sample_responses(*given, static)
            except Exception as error:
                if not static:
                    raise
                warnings.warn(
                    tr("Sampling continues without torch.compile: {error}", error=error),
                    stacklevel=2,
                )
                self.static = None
                responses = sampling.sample_responses(*given)
        return sampling.as_rollout(tokens, attention, responses, self.end, self.pad)

    def texts(self, rollout: Rollout, rows: Tensor | slice = slice(None)) -> list[str]:
        """Each prompt with its response as one text, which is the reward's input."""
        tokens, attention = rollout.tokens[rows].cpu(), rollout.attention[rows].cpu()
        ids = [row[real].tolist() for row, real in zip(tokens, attention, strict=True)]
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def held_out(
        self, prompts: Sequence[str], seed: int, *, from_reference: bool = False
    ) -> Iterator[Rollout]:
        """Rollouts of the given prompts, batch by batch; only the seed determines the tokens."""
        encoded = self.encode(prompts)
        stream = generator(seed, HELD_OUT)
        draws = torch.rand((len(encoded), self.max_new_tokens), generator=stream)
        starts = range(0, len(encoded), self.batch_size)
        for start in progress.track(starts, "texts", unit="batch"):
            part = slice(start, start + self.batch_size)
            yield self.sample(encoded[part], draws[part], from_reference=from_reference)

    def generate(
        self, prompts: Sequence[str], *, seed: int = 0, from_reference: bool = False
    ) -> list[str]:
        """One sampled text per prompt; each text begins with its prompt."""
        rollouts = self.held_out(prompts, seed, from_reference=from_reference)
        return [text for rollout in rollouts for text in self.texts(rollout)]

    @torch.no_grad()
    def evaluate(self, prompts: Sequence[str], *, seed: int = 0) -> dict[str, list]:
        """One episode per prompt: lists of texts, kl to the reference (nats), lengths, ended.

        The KL is exact at each sampled token: it varies less than the log-ratio of these tokens.
        """
        found: dict[str, list] = {"texts": [], "kl": [], "lengths": [], "ended": []}
        for rollout in self.held_out(prompts, seed):
            rows = torch.arange(len(rollout.tokens), device=self.device)
            states = self.reference_states(rollout, rows)
            _, _, each, _ = self._exact(rollout, rows, states)
            kl = losses.unpack(each, rollout.mask).sum(1)
            found["texts"] += self.texts(rollout)
            found["kl"] += kl.tolist()
            found["lengths"] += rollout.mask.sum(1).tolist()
            found["ended"] += rollout.ended.tolist()
        return found

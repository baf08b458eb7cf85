"""PPO for language models, from top to bottom: sample, reward, compare with the reference, learn.

    history = PPOTrainer(policy, tokenizer, reward, prompts, PPOConfig(updates=100)).train()

The reward is any function from texts to numbers, so it may have its own tokenizer and segmentation.
Nine numbered steps make an update; their mathematics stands in `utils/losses.py`.

Simplified, and why:
- dropout off: sampling and learning must see the same policy, or the ratio is not 1;
- log-probabilities from a scoring pass, not from the sampler: it repeats learning's forward passes
  row for row, so the first ratio is exactly 1, in any precision;
- the score lands on the last token of the response, the one that ended it;
- all that is random follows from the seed and the update's number: no random state to save, and any
  number of processes draws the same episodes.
"""

import copy
import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import DynamicCache, StaticCache
from transformers.activations import ACT2FN, NewGELUActivation

from utils import artifacts, losses

Reward = Callable[[list[str]], Sequence[float] | Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROMPTS, DRAWS, SHUFFLES, HELD_OUT = range(4)  # streams of random numbers


class TrainingStopped(RuntimeError):
    """A run that cannot go on; the message says what to change, and checkpoints are kept."""


class RewardError(RuntimeError):
    """A reward that raised, or returned something else than one finite number a text."""


@dataclass(frozen=True)
class PPOConfig:
    """Every setting of a run; episodes are counted over all processes."""

    updates: int = 100  # batches of episodes, each sampled afresh and then learned from
    batch_size: int = 256  # episodes an update
    minibatch_size: int = 64  # episodes an optimiser step
    epochs: int = 2  # passes over each batch
    learning_rate: float = 5e-4  # of AdamW; about 1e-5 for a full-size policy
    anneal: bool = False  # the learning rate falls linearly to 0: late noise costs KL for nothing
    max_grad_norm: float = 1.0  # longer gradients are scaled down to this length
    max_new_tokens: int = 20  # longest response
    temperature: float = 1.0  # divides the logits, in sampling and in scoring alike
    missing_eos_penalty: float = 0.0  # taken off the score of a response that did not end itself
    reward_cap: float | None = None  # scores are clipped to ± this, so that nonsense cannot pay
    kl_coef: float = 0.3  # price of one nat of distance from the reference
    kl_estimator: Literal["k1", "k3"] = "k1"  # ln p/q, or q/p - 1 - ln q/p, never negative
    target_kl: float | None = None  # nats an episode that kl_coef adapts to reach; None: fixed
    kl_horizon: int = 10_000  # episodes over which an adaptive kl_coef reacts
    kl_limit: float = 100.0  # nats an episode that stop the run
    gamma: float = 1.0  # discount a token
    lam: float = 1.0  # λ of GAE: 1 has no bias, less trusts the values more
    whiten_rewards: bool = False  # scale per-token rewards to unit variance
    whiten_advantages: bool = True  # scale advantages to zero mean and unit variance
    clip_range: float = 0.2  # how far a ratio may move from 1 and still be followed
    value_clip_range: float | None = 0.2  # the same for values, in units of reward; None: any
    value_coef: float = 0.1  # weight of the value loss
    shared_value_head: bool = True  # values from the policy's trunk; False: from a copy of it
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of autocast; fp16 scales its gradients
    checkpoint_every: int = 10  # updates between checkpoints
    seed: int = 0  # of all that is random

    def __post_init__(self) -> None:
        whole = ("updates", "batch_size", "minibatch_size", "epochs", "max_new_tokens")
        for name in (*whole, "checkpoint_every", "temperature", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"PPOConfig.{name} is {getattr(self, name)}: make it positive.")
        if self.batch_size % self.minibatch_size:
            raise ValueError(
                f"PPOConfig.batch_size {self.batch_size} is no multiple of minibatch_size "
                f"{self.minibatch_size}: change one of the two."
            )
        for name, known in (("precision", DTYPES), ("kl_estimator", ("k1", "k3"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"PPOConfig.{name} is {getattr(self, name)!r}: use one of {', '.join(known)}."
                )


@dataclass(frozen=True)
class Rollout:
    """Episodes as tokens: prompts padded on the left, responses on the right."""

    tokens: Tensor  # (batch, prompt + response)
    attention: Tensor  # (batch, prompt + response), False on padding
    mask: Tensor  # (batch, response), True up to and including the end-of-text token
    ended: Tensor  # (batch,), True if the response ended itself

    @property
    def responses(self) -> Tensor:
        """The response tokens (batch, response)."""
        return self.tokens[:, -self.mask.shape[1] :]


@dataclass(frozen=True)
class Experience:
    """A rollout with all that learning needs, each (batch, response) but for the scores."""

    rollout: Rollout
    scores: Tensor  # (batch,) what the reward said, before cap and penalty
    logps: Tensor  # of the policy that sampled
    reference_logps: Tensor
    values: Tensor
    rewards: Tensor  # the KL's price at every token, and the score at the last
    advantages: Tensor
    returns: Tensor


# --- Steps that need no trainer ------------------------------------------------------------------


def generator(seed: int, *purpose: int) -> torch.Generator:
    """Random numbers that depend on the seed and their purpose, and on nothing else."""
    state = np.random.SeedSequence((seed, *purpose)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def prompt_rows(prompts: int, config: PPOConfig, update: int) -> Tensor:
    """Which prompts an update uses: shuffled passes over all of them, one after another."""
    start = update * config.batch_size
    first, last = start // prompts, (start + config.batch_size - 1) // prompts
    passes = [
        torch.randperm(prompts, generator=generator(config.seed, PROMPTS, number))
        for number in range(first, last + 1)
    ]
    return torch.cat(passes)[start - first * prompts :][: config.batch_size]


def left_pad(prompts: list[list[int]], pad: int, width: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens and attention (batch, prompt), so that all prompts end in the same column.

    >>> left_pad([[5, 6], [7]], pad=0)[0]
    tensor([[5, 6],
            [0, 7]])
    """
    width = max(width, *map(len, prompts))
    tokens = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts])
    attention = torch.tensor([[False] * (width - len(ids)) + [True] * len(ids) for ids in prompts])
    return tokens, attention


def score_texts(reward: Reward, texts: list[str]) -> Tensor:
    """One finite number a text (batch,); a batch that fails is halved until the text is found."""
    cause, suspects = None, list(texts)
    try:
        scores = torch.as_tensor(reward(list(texts)), dtype=torch.float32).detach().cpu()
        if scores.shape == (len(texts),) and scores.isfinite().all():
            return scores
        problem = f"returned shape {tuple(scores.shape)} for {len(texts)} texts"
        if scores.shape == (len(texts),):
            bad = int((~scores.isfinite()).nonzero()[0])
            problem, suspects = f"returned {scores[bad].item()}", [texts[bad]]
    except Exception as error:
        problem, cause = f"raised {type(error).__name__} ({error})", error
    if len(suspects) > 1:
        score_texts(reward, suspects[: len(suspects) // 2])
        score_texts(reward, suspects[len(suspects) // 2 :])
    others = f" and {len(suspects) - 1} others" if len(suspects) > 1 else ""
    raise RewardError(
        f"The reward {problem} on the text {suspects[0]!r}{others}: make it return one finite "
        "number for every text, the empty one included."
    ) from cause


def trunk_and_head(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The transformer that makes hidden states, and the layer that makes logits of them."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    return bare.get_decoder(), bare.get_output_embeddings()


def fuse_gelu(model: nn.Module) -> None:
    """GPT-2's GELU as one kernel instead of eight: the same function, equal up to rounding."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, ACT2FN["gelu_pytorch_tanh"].train(child.training))


@contextmanager
def dropout_off(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module has the mode that it had."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def sample_responses(
    trunk: nn.Module,
    head: nn.Module,
    prompts: Tensor,  # (batch, prompt), padded on the left
    attention: Tensor,  # (batch, prompt)
    draws: Tensor,  # (batch, response), uniform in [0, 1)
    end: int,
    temperature: float,
    static: tuple[Callable, StaticCache] | None = None,  # compiled trunk and its cache, on CUDA
) -> Tensor:
    """Sampled responses (batch, response); what follows a row's end-of-text token is arbitrary."""
    batch, length = draws.shape
    responses = torch.full((batch, length), end, device=prompts.device)
    attention = torch.cat([attention, attention.new_ones(batch, length)], 1)
    position_ids = losses.positions(attention)
    rows = torch.arange(batch, device=prompts.device)  # those still in the batch
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
            if t % 8 == 7 and ended.all():  # asking makes the CPU wait for the GPU
                break
        elif 8 * ended.sum() >= len(rows):  # rows that ended leave: worth a copy of the cache
            going = (~ended).nonzero().squeeze(1)
            if len(going) == 0:
                break
            rows, tokens, ended = rows[going], tokens[going], ended[going]
            attention, position_ids = attention[going], position_ids[going]
            cache.batch_select_indices(going)
    return responses


def adapted_kl_coef(kl_coef: float, kl: float, config: PPOConfig) -> float:
    """The KL's price after a batch: it rises while the KL is above its target."""
    if config.target_kl is None:
        return kl_coef
    error = min(max(kl / config.target_kl - 1, -0.2), 0.2)
    return kl_coef * (1 + error * config.batch_size / config.kl_horizon)


# --- The trainer ---------------------------------------------------------------------------------


class PPOTrainer:
    """Trains `policy` in place; under `accelerate launch` each process takes its share."""

    def __init__(
        self,
        policy: nn.Module,  # any causal language model of transformers, with or without PEFT
        tokenizer: object,  # the policy's; the reward brings its own
        reward: Reward,  # prompts with responses, as text -> one number each
        prompts: Sequence[str] | Sequence[list[int]],
        config: PPOConfig,
        *,
        reference: nn.Module | None = None,  # default: a frozen copy, or the adapter switched off
        checkpoint_dir: str | Path | None = None,  # where to save, and to continue from
        on_update: Callable[[dict], None] | None = None,  # receives each update's metrics
        progress: bool = True,  # show a progress bar
    ) -> None:
        self.policy, self.tokenizer, self.reward, self.config = policy, tokenizer, reward, config
        self.on_update, self.progress = on_update, progress
        self.shelf = artifacts.Shelf(Path(checkpoint_dir)) if checkpoint_dir else None
        self.device = next(policy.parameters()).device
        state = PartialState(cpu=self.device.type == "cpu")
        self.processes, self.rank = state.num_processes, state.process_index
        if config.minibatch_size % self.processes:
            raise ValueError(
                f"PPOConfig.minibatch_size {config.minibatch_size} cannot be shared among "
                f"{self.processes} processes: make it a multiple of their number."
            )
        self.end = tokenizer.eos_token_id
        if self.end is None:
            raise ValueError("The tokenizer has no eos_token to end a response with: set one.")
        self.pad = self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.prompts = self.encode(prompts)

        fuse_gelu(policy)
        self.trunk, self.head = trunk_and_head(policy)
        self.check_head()
        if self.processes > 1:  # a fresh adapter is random
            for parameter in policy.parameters():
                dist.broadcast(parameter.data, src=0)
        if reference is policy:
            raise ValueError("The reference is the policy itself: leave it out, or give a copy.")
        self.reference = reference
        if reference is None and not hasattr(policy, "disable_adapter"):
            self.reference = copy.deepcopy(policy)
        if self.reference is not None:
            self.reference.requires_grad_(False).eval()
        self.critic = nn.ModuleDict({"head": nn.Linear(policy.config.hidden_size, 1)})
        nn.init.zeros_(self.critic["head"].weight)
        nn.init.zeros_(self.critic["head"].bias)
        if not config.shared_value_head:
            self.critic["trunk"] = copy.deepcopy(self.trunk)
        self.critic.to(self.device)

        self.parameters = {
            f"{owner}.{name}": parameter
            for owner, model in {"policy": policy, "critic": self.critic}.items()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        dtypes = {parameter.dtype for parameter in self.parameters.values()}
        if config.precision == "fp16" and dtypes != {torch.float32}:
            raise ValueError(
                f"precision='fp16' found trainable parameters of {dtypes - {torch.float32}}, which "
                "its gradient scaler cannot handle: cast them with `.float()` first."
            )
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=0.0, fused=fused
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.kl_coef, self.updates_done, self.history = config.kl_coef, 0, []
        self.static: tuple[Callable, StaticCache] | None = None
        if self.device.type == "cuda":  # one graph a token instead of hundreds of launches
            room = max(map(len, self.prompts)) + config.max_new_tokens
            compiled = torch.compile(self.trunk, mode="reduce-overhead", dynamic=False)
            self.static = (compiled, StaticCache(config=self.trunk.config, max_cache_len=room))

    def train(self) -> list[dict[str, float]]:
        """The updates that are left after the newest whole checkpoint; the metrics of all."""
        self.resume()
        silent = not self.progress or self.rank > 0
        done, total = self.updates_done, self.config.updates
        with tqdm(desc="PPO", initial=done, total=total, disable=silent) as bar:
            while self.updates_done < self.config.updates:
                began = time.perf_counter()
                metrics = self.update(self.experience(self.rollout()))
                metrics["seconds"] = time.perf_counter() - began
                self.history.append(metrics)
                self.save()
                if self.on_update:
                    self.on_update(metrics)
                shown = ("reward", "kl", "negative_rate")
                bar.set_postfix({name: f"{metrics[name]:.2f}" for name in shown})
                bar.update()
        return self.history

    def rollout(self) -> Rollout:
        """This update's prompts with one sampled response each, from all processes."""
        # 1. Rollout
        config, update = self.config, self.updates_done
        prompts = [self.prompts[row] for row in prompt_rows(len(self.prompts), config, update)]
        shape = (config.batch_size, config.max_new_tokens)
        draws = torch.rand(shape, generator=generator(config.seed, DRAWS, update))
        mine = self.my_rows(torch.arange(config.batch_size)).flatten()
        width = max(map(len, self.prompts if self.static else prompts))
        share = self.sample([prompts[row] for row in mine], draws[mine], width, self.static)
        return Rollout(*map(self.gather, vars(share).values()))

    @torch.no_grad()
    def experience(self, rollout: Rollout) -> Experience:
        """All that learning needs to know of a rollout."""
        config, mask = self.config, rollout.mask
        shares = self.my_rows(torch.arange(len(mask), device=self.device))
        mine = shares.flatten()

        # 2. Reward: texts in, one number each out
        scores = self.gather(score_texts(self.reward, self.texts(rollout, mine)).to(self.device))
        cap = float("inf") if config.reward_cap is None else config.reward_cap
        paid = scores.clamp(-cap, cap) - config.missing_eos_penalty * ~rollout.ended

        # 3. KL against the reference, scored in the minibatches of the first epoch
        scored = [self.logps_and_values(rollout, rows) for rows in shares]
        reference = [self.reference_logps(rollout, rows) for rows in shares]
        logps, values, reference_logps = (
            self.gather(losses.unpack(torch.cat(packed), mask[mine]))
            for packed in (*zip(*scored, strict=True), reference)
        )
        kl = losses.kl_estimate(logps, reference_logps, config.kl_estimator)

        # 4. Per-token rewards: the KL's price everywhere, the score at the end
        rewards = losses.per_token_rewards(kl, paid, mask, self.kl_coef)
        if config.whiten_rewards:
            rewards = losses.masked_whiten(rewards, mask, shift_mean=False)

        # 5. Generalised advantage estimation
        advantages, returns = losses.gae(rewards, values, gamma=config.gamma, lam=config.lam)

        # 6. Whitening over the tokens that count
        if config.whiten_advantages:
            advantages = losses.masked_whiten(advantages, mask)
        return Experience(
            rollout, scores, logps, reference_logps, values, rewards, advantages, returns
        )

    def update(self, experience: Experience) -> dict[str, float]:
        """A few epochs of clipped learning from one batch; returns the update's metrics."""
        config, batch = self.config, experience
        metrics = self.describe(batch)
        if not metrics["kl"] <= config.kl_limit:
            why = f"the KL to the reference is {metrics['kl']:.3g} nats an episode, beyond kl_limit"
            remedy = f"raise kl_coef ({self.kl_coef:.3g}) or lower learning_rate"
            raise self.stopped(f"{why} {config.kl_limit:g}", remedy)
        left = 1 - self.updates_done / config.updates if config.anneal else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * left
        sums = torch.zeros(3, device=self.device)  # policy loss, value loss, clip fraction
        for epoch in range(config.epochs):
            order = torch.arange(config.batch_size)  # the first pass repeats the scoring passes
            if epoch:
                shuffle = generator(config.seed, SHUFFLES, self.updates_done, epoch)
                order = torch.randperm(config.batch_size, generator=shuffle)
            sizes = batch.rollout.mask[order].sum(1).view(-1, config.minibatch_size).sum(1)
            for rows, tokens in zip(self.my_rows(order).to(self.device), sizes, strict=True):
                mask = batch.rollout.mask[rows]
                old_logps, advantages = batch.logps[rows][mask], batch.advantages[rows][mask]
                old_values, returns = batch.values[rows][mask], batch.returns[rows][mask]
                logps, values = self.logps_and_values(batch.rollout, rows)  # each (tokens,)

                # 7. Clipped policy loss, averaged over the minibatch's tokens in all processes
                policy_loss = (
                    losses.clipped_policy_loss(
                        logps, old_logps, advantages, config.clip_range
                    ).sum()
                    / tokens
                )

                # 8. Clipped value loss
                value_loss = (
                    losses.clipped_value_loss(
                        values, old_values, returns, config.value_clip_range
                    ).sum()
                    / tokens
                )

                # 9. Step
                self.step(policy_loss + config.value_coef * value_loss)
                moved = ((logps - old_logps).exp() - 1).abs() > config.clip_range
                sums += torch.stack([policy_loss, value_loss, moved.sum() / tokens]).detach()
        if self.processes > 1:
            dist.all_reduce(sums)
        averages = (sums * config.minibatch_size / config.batch_size / config.epochs).tolist()
        names = ("policy_loss", "value_loss", "clip_fraction")
        self.updates_done += 1
        self.kl_coef = adapted_kl_coef(self.kl_coef, metrics["kl"], config)
        return metrics | dict(zip(names, averages, strict=True))

    def step(self, loss: Tensor) -> None:
        """One optimiser step on the gradients of all processes."""
        if not loss.isfinite():
            raise self.stopped(f"the loss is {loss.item():g}", "lower learning_rate")
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if self.processes > 1:
            for parameter in self.parameters.values():
                dist.all_reduce(parameter.grad)
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def describe(self, experience: Experience) -> dict[str, float]:
        """What an update's episodes were like, on average."""
        rollout, scores = experience.rollout, experience.scores
        kl = (experience.logps - experience.reference_logps).sum(1)  # (batch,)
        columns = {
            "reward": scores,
            "negative_rate": scores > 0,  # the course's reward is positive for negative feedback
            "kl": kl,  # nats an episode
            "length": rollout.mask.sum(1),
            "eos_rate": rollout.ended,
        }
        # -ln p of what was sampled is the entropy on average: nats a token, for nothing
        entropy = -experience.logps.sum() / rollout.mask.sum()
        return {
            "update": self.updates_done + 1,
            "episodes": (self.updates_done + 1) * self.config.batch_size,
            **{name: column.float().mean().item() for name, column in columns.items()},
            "entropy": entropy.item(),
            "kl_coef": self.kl_coef,
        }

    def stopped(self, why: str, remedy: str) -> TrainingStopped:
        """The error that ends a run."""
        where = f"PPO stopped in update {self.updates_done + 1}"
        kept = (
            f" and give another checkpoint_dir ({self.shelf.folder} is kept)" if self.shelf else ""
        )
        return TrainingStopped(f"{where} because {why}: {remedy}{kept}.")

    # --- Models ---

    def autocast(self) -> torch.autocast:
        """The models' precision, as the configuration says."""
        dtype = DTYPES[self.config.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    @contextmanager
    def reference_parts(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Trunk and head of the reference: the frozen copy, or the policy without its adapter."""
        if self.reference is not None:
            yield trunk_and_head(self.reference)
        else:
            with self.policy.disable_adapter():
                yield self.trunk, self.head

    def states(self, trunk: nn.Module, rollout: Rollout, rows: Tensor) -> Tensor:
        """The hidden state before each response token of some rows: (tokens, hidden)."""
        mask, attention = rollout.mask[rows], rollout.attention[rows]
        prompt = attention.shape[1] - mask.shape[1]
        start = int(attention.int().argmax(1).min())  # columns before are nothing but padding
        length = int(mask.sum(1).max())
        window = slice(start, prompt + length - 1)  # the last token predicts nothing
        hidden = trunk(
            input_ids=rollout.tokens[rows, window],
            attention_mask=attention[:, window],
            position_ids=losses.positions(attention)[:, window],
            use_cache=False,
        ).last_hidden_state
        return hidden[:, prompt - 1 - start :][mask[:, :length]]

    def logps(self, head: nn.Module, states: Tensor, rollout: Rollout, rows: Tensor) -> Tensor:
        """Log-probabilities of the response tokens of some rows: (tokens,)."""
        tokens = rollout.responses[rows][rollout.mask[rows]]
        return losses.token_logps_(head(states).float(), tokens, self.config.temperature)

    def logps_and_values(self, rollout: Rollout, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What policy and value head say of some rows' response tokens: both (tokens,)."""
        with dropout_off(self.policy, self.critic), self.autocast():
            states = self.states(self.trunk, rollout, rows)
            logps = self.logps(self.head, states, rollout, rows)
            if "trunk" in self.critic:
                states = self.states(self.critic["trunk"], rollout, rows)
        return logps, self.critic["head"](states.float()).squeeze(-1)

    @torch.no_grad()
    def reference_logps(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """What the reference says of some rows' response tokens: (tokens,)."""
        with self.reference_parts() as (trunk, head), dropout_off(trunk, head), self.autocast():
            return self.logps(head, self.states(trunk, rollout, rows), rollout, rows)

    @torch.no_grad()
    def check_head(self) -> None:
        """Refuse a model that does more to its logits than one layer on top of the trunk."""
        tokens = torch.tensor([self.prompts[0]], device=self.device)
        with dropout_off(self.policy):
            logits = self.head(self.trunk(input_ids=tokens).last_hidden_state)
            difference = (logits - self.policy(input_ids=tokens).logits).abs().max().item()
        if difference > 1e-2:
            raise ValueError(
                f"{type(self.policy).__name__} changes its logits after the output layer, by up to "
                f"{difference:.2g}, which PPOTrainer does not follow: use another model."
            )

    # --- Texts ---

    def encode(self, prompts: Sequence[str] | Sequence[list[int]]) -> list[list[int]]:
        """Token ids of each prompt, without an end-of-text token at the end."""
        longest = getattr(self.policy.config, "max_position_embeddings", 10**9)
        encoded = []
        for prompt in prompts:
            ids = list(self.tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt)
            if ids and ids[-1] == self.end:
                ids.pop()
            if not 0 < len(ids) <= longest - self.config.max_new_tokens:
                raise ValueError(
                    f"The prompt {prompt!r} has {len(ids)} tokens, and with "
                    f"{self.config.max_new_tokens} new ones the policy takes 1 to "
                    f"{longest - self.config.max_new_tokens}: change or drop it."
                )
            encoded.append(ids)
        if not encoded:
            raise ValueError("PPOTrainer found no prompts: give at least one.")
        return encoded

    def sample(
        self,
        prompts: list[list[int]],
        draws: Tensor,  # (batch, response), uniform in [0, 1)
        width: int = 0,  # pad the prompts at least this far
        static: tuple[Callable, StaticCache] | None = None,
        *,
        from_reference: bool = False,
    ) -> Rollout:
        """One response a prompt, decided by the draws."""
        tokens, attention = left_pad(prompts, self.pad, width)
        tokens, attention, draws = (x.to(self.device) for x in (tokens, attention, draws))
        parts = self.reference_parts() if from_reference else nullcontext((self.trunk, self.head))
        with dropout_off(self.policy), self.autocast(), parts as models:
            given = (*models, tokens, attention, draws, self.end, self.config.temperature)
            try:
                responses = sample_responses(*given, static)
            except Exception as error:
                if not static:
                    raise
                warnings.warn(f"Sampling goes on without torch.compile: {error}", stacklevel=2)
                self.static = None
                responses = sample_responses(*given)
        mask = losses.up_to_end(responses, self.end)
        ended = ((responses == self.end) & mask).any(1)
        responses = responses.masked_fill(~mask, self.pad)
        tokens, attention = torch.cat([tokens, responses], 1), torch.cat([attention, mask], 1)
        return Rollout(tokens, attention, mask, ended)

    def texts(self, rollout: Rollout, rows: Tensor | slice = slice(None)) -> list[str]:
        """Prompts with responses, as the reward reads them."""
        tokens, attention = rollout.tokens[rows].cpu(), rollout.attention[rows].cpu()
        ids = [row[real].tolist() for row, real in zip(tokens, attention, strict=True)]
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def held_out(
        self, prompts: Sequence[str], seed: int, *, from_reference: bool = False
    ) -> Iterator[Rollout]:
        """Rollouts of given prompts, a minibatch at a time, decided by the seed alone."""
        encoded, size = self.encode(prompts), self.config.minibatch_size
        shape = (len(encoded), self.config.max_new_tokens)
        draws = torch.rand(shape, generator=generator(seed, HELD_OUT))
        for start in range(0, len(encoded), size):
            part = slice(start, start + size)
            yield self.sample(encoded[part], draws[part], from_reference=from_reference)

    def generate(
        self, prompts: Sequence[str], *, seed: int = 0, from_reference: bool = False
    ) -> list[str]:
        """One sampled text a prompt, with the prompt in front."""
        rollouts = self.held_out(prompts, seed, from_reference=from_reference)
        return [text for rollout in rollouts for text in self.texts(rollout)]

    @torch.no_grad()
    def evaluate(self, prompts: Sequence[str], *, seed: int = 0) -> dict[str, list]:
        """One episode a prompt: lists of texts, rewards, kl (nats), lengths and ended."""
        found: dict[str, list] = {"texts": [], "kl": [], "lengths": [], "ended": []}
        for rollout in self.held_out(prompts, seed):
            rows = torch.arange(len(rollout.tokens), device=self.device)
            logps, _ = self.logps_and_values(rollout, rows)
            kl = losses.unpack(logps - self.reference_logps(rollout, rows), rollout.mask).sum(1)
            found["texts"] += self.texts(rollout)
            found["kl"] += kl.tolist()
            found["lengths"] += rollout.mask.sum(1).tolist()
            found["ended"] += rollout.ended.tolist()
        return found | {"rewards": score_texts(self.reward, found["texts"]).tolist()}

    # --- Several processes: minibatches are shared row by row, then gathered in order ---

    def my_rows(self, order: Tensor) -> Tensor:
        """This process's rows of each minibatch: (minibatches, rows)."""
        share = self.config.minibatch_size // self.processes
        return order.view(-1, self.processes, share)[:, self.rank]

    def gather(self, mine: Tensor) -> Tensor:
        """This process's rows of a batch -> the whole batch, in its own order."""
        if self.processes == 1:
            return mine
        parts = [torch.empty_like(mine) for _ in range(self.processes)]
        dist.all_gather(parts, mine.contiguous())
        share = self.config.minibatch_size // self.processes
        batch = torch.stack([part.unflatten(0, (-1, share)) for part in parts], 1)
        return batch.flatten(0, 2)  # (minibatches, processes, rows) -> (batch,)

    # --- Checkpoints ---

    def settings(self) -> dict[str, object]:
        """What a checkpoint has in common with every run that may continue it."""
        settings = asdict(self.config)
        del settings["checkpoint_every"]
        if not self.config.anneal:  # a longer run then goes on where a shorter one ended
            del settings["updates"]
        shapes = {name: list(parameter.shape) for name, parameter in self.parameters.items()}
        for name, value in {"prompts": self.prompts, "parameters": shapes}.items():
            settings[name] = hashlib.sha256(json.dumps(value).encode()).hexdigest()
        return settings

    def save(self) -> None:
        """Every `checkpoint_every` updates and at the end; the newest two are kept."""
        due = self.updates_done % self.config.checkpoint_every == 0
        due = due or self.updates_done == self.config.updates
        if not self.shelf or self.rank > 0 or not due:
            return
        state = {
            "settings": self.settings(),
            "updates_done": self.updates_done,
            "kl_coef": self.kl_coef,
            "scaler": self.scaler.state_dict(),
            "history": self.history,
        }
        moments = {
            f"{name}.{key}": value.contiguous()
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        weights = {name: p.detach().contiguous() for name, p in self.parameters.items()}
        label = f"update-{self.updates_done:06}"
        with artifacts.publish(label, self.shelf, metrics=self.history[-1]) as folder:
            save_file(weights, folder / "weights.safetensors")
            save_file(moments, folder / "optimizer.safetensors")
            (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for old in sorted(self.shelf.folder.glob("update-*"))[:-2]:
            shutil.rmtree(old)

    @torch.no_grad()
    def resume(self) -> None:
        """Continue from the newest whole checkpoint of this very run, if there is one."""
        if not self.shelf or self.updates_done:
            return
        for torn in self.shelf.folder.glob(".update-*") if self.rank == 0 else ():
            shutil.rmtree(torn)  # a save that was killed
        for folder in sorted(self.shelf.folder.glob("update-*"), reverse=True):
            if fault := artifacts.fault(folder):
                warnings.warn(f"Checkpoint {folder.name} is passed over: {fault}.", stacklevel=3)
                continue
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            for name, value in self.settings().items():
                if (saved := state["settings"].get(name)) != value:
                    raise ValueError(
                        f"The checkpoints in {folder.parent} were made with {name} = {saved!r} and "
                        f"this run has {value!r}: restore it, or give another checkpoint_dir."
                    )
            weights = load_file(folder / "weights.safetensors")
            moments = load_file(folder / "optimizer.safetensors")
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
                self.optimizer.state[parameter] = {
                    key: moments[f"{name}.{key}"].to(parameter.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
            self.scaler.load_state_dict(state["scaler"])
            self.kl_coef, self.history = state["kl_coef"], state["history"]
            self.updates_done = state["updates_done"]
            return

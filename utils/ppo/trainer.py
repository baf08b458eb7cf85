"""PPO for language models, from top to bottom: sample, reward, compare with the reference, learn.

    history = PPOTrainer(policy, tokenizer, reward, prompts, PPOConfig(updates=100)).train()

The reward is any function from texts to numbers, so it may have its own tokenizer and segmentation.
Nine numbered steps make an update. Around them, one job each: `losses` has their mathematics,
`policy` the models, `sampling` draws responses, `rewards` asks the reward, `processes` spreads
the work over processes, `checkpoints` saves and resumes.

Simplified, and why:
- dropout off: sampling and learning must see the same policy, or the ratio is not 1;
- log-probabilities from a scoring pass, not from the sampler: it repeats learning's forward passes
  row for row, so the first ratio is exactly 1, in any precision;
- the score lands on the last token of the response, the one that ended it;
- all that is random follows from the seed and the update's number: no random state to save, and any
  number of processes draws the same episodes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from utils import losses
from utils.course import artifacts
from utils.course.errors import CourseError
from utils.course.progress import bar as progress_bar
from utils.models.draws import DRAWS, SHUFFLES, generator
from utils.models.precision import DTYPES
from utils.ppo import checkpoints, processes, sampling
from utils.ppo.policy import ActorCritic
from utils.ppo.rewards import Reward, score_texts
from utils.ppo.sampling import Rollout


class TrainingStopped(CourseError, RuntimeError):
    """A run that cannot go on; the message says what to change, and checkpoints are kept."""


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
    gamma: float = 1.0  # discount per token
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


def adapted_kl_coef(kl_coef: float, kl: float, config: PPOConfig) -> float:
    """The KL's price after a batch: it rises while the KL is above its target."""
    if config.target_kl is None:
        return kl_coef
    error = min(max(kl / config.target_kl - 1, -0.2), 0.2)
    return kl_coef * (1 + error * config.batch_size / config.kl_horizon)


class PPOTrainer(ActorCritic):
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
        self.rank = processes.join(next(policy.parameters()).device, config.minibatch_size)
        super().__init__(
            policy,
            tokenizer,
            reference,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            shared_value_head=config.shared_value_head,
            precision=config.precision,
            batch_size=config.minibatch_size,
        )
        self.reward, self.config, self.prompts = reward, config, self.encode(prompts)
        self.on_update, self.progress = on_update, progress
        self.shelf = artifacts.Shelf(Path(checkpoint_dir)) if checkpoint_dir else None
        sampling.check_head(policy, self.prompts[0])

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
        if self.device.type == "cuda":
            room = max(map(len, self.prompts)) + config.max_new_tokens
            self.static = sampling.compiled_step(self.trunk, room)

    def train(self) -> list[dict[str, float]]:
        """The updates that are left after the newest whole checkpoint; the metrics of all."""
        self.resume()
        hidden = not self.progress or self.rank > 0
        with progress_bar("PPO", self.config.updates, "update", hidden=hidden) as bar:
            bar.update(self.updates_done)
            while self.updates_done < self.config.updates:
                began = time.perf_counter()
                metrics = self.update(self.experience(self.rollout()))
                metrics["seconds"] = time.perf_counter() - began
                self.history.append(metrics)
                self.save()
                if self.on_update:
                    self.on_update(metrics)
                shown = ("reward", "kl", "negative_rate")
                bar.set_postfix(**{name: f"{metrics[name]:.2f}" for name in shown})
                bar.update()
        return self.history

    def rollout(self) -> Rollout:
        """This update's prompts with one sampled response each, from all processes."""
        # 1. Rollout
        config, update = self.config, self.updates_done
        numbers = sampling.prompt_rows(len(self.prompts), config.batch_size, config.seed, update)
        prompts = [self.prompts[number] for number in numbers]
        stream = generator(config.seed, DRAWS, update)
        draws = torch.rand((config.batch_size, config.max_new_tokens), generator=stream)
        mine = processes.mine(torch.arange(config.batch_size), config.minibatch_size).flatten()
        width = max(map(len, self.prompts if self.static else prompts))
        share = self.sample([prompts[row] for row in mine], draws[mine], width, self.static)
        return Rollout(*(processes.gather(x, config.minibatch_size) for x in vars(share).values()))

    @torch.no_grad()
    def experience(self, rollout: Rollout) -> Experience:
        """All that learning needs to know of a rollout."""
        config, mask, size = self.config, rollout.mask, self.config.minibatch_size
        minibatches = processes.mine(torch.arange(len(mask), device=self.device), size)
        mine = minibatches.flatten()

        # 2. Reward: texts in, one number each out
        scores = score_texts(self.reward, self.texts(rollout, mine)).to(self.device)
        scores = processes.gather(scores, size)
        cap = float("inf") if config.reward_cap is None else config.reward_cap
        paid = scores.clamp(-cap, cap) - config.missing_eos_penalty * ~rollout.ended

        # 3. KL against the reference, scored in the minibatches of the first epoch
        scored = [self.logps_and_values(rollout, rows) for rows in minibatches]
        reference = [self.reference_logps(rollout, rows) for rows in minibatches]
        logps, values, reference_logps = (
            processes.gather(losses.unpack(torch.cat(packed), mask[mine]), size)
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
                stream = generator(config.seed, SHUFFLES, self.updates_done, epoch)
                order = torch.randperm(config.batch_size, generator=stream)
            mine = processes.mine(order, config.minibatch_size)
            sizes = batch.rollout.mask[order].sum(1).view(-1, config.minibatch_size).sum(1)
            for rows, tokens in zip(mine.to(self.device), sizes, strict=True):
                mask = batch.rollout.mask[rows]
                old_logps, advantages = batch.logps[rows][mask], batch.advantages[rows][mask]
                old_values, returns = batch.values[rows][mask], batch.returns[rows][mask]
                logps, values = self.logps_and_values(batch.rollout, rows)  # each (tokens,)

                # 7. Clipped policy loss, averaged over the minibatch's tokens in all processes
                policy_losses = losses.clipped_policy_loss(
                    logps, old_logps, advantages, config.clip_range
                )
                policy_loss = policy_losses.sum() / tokens

                # 8. Clipped value loss
                value_losses = losses.clipped_value_loss(
                    values, old_values, returns, config.value_clip_range
                )
                value_loss = value_losses.sum() / tokens

                # 9. Step
                self.step(policy_loss + config.value_coef * value_loss)
                moved = ((logps - old_logps).exp() - 1).abs() > config.clip_range
                sums += torch.stack([policy_loss, value_loss, moved.sum() / tokens]).detach()
        processes.add([sums])
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
        processes.add(parameter.grad for parameter in self.parameters.values())
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
        # -ln p of what was sampled is the entropy on average: nats per token, for nothing
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

    @torch.no_grad()
    def evaluate(self, prompts: Sequence[str], *, seed: int = 0) -> dict[str, list]:
        """One episode per prompt: lists of texts, rewards, kl (nats), lengths and ended."""
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

    # --- Checkpoints ---

    def settings(self) -> dict[str, object]:
        """What a checkpoint has in common with every run that may continue it."""
        return checkpoints.run_settings(asdict(self.config), self.prompts, self.parameters)

    def save(self) -> None:
        """Every `checkpoint_every` updates and at the end, from the first process."""
        last = self.updates_done == self.config.updates
        due = last or self.updates_done % self.config.checkpoint_every == 0
        if self.shelf and self.rank == 0 and due:
            state = {
                "settings": self.settings(),
                "updates_done": self.updates_done,
                "kl_coef": self.kl_coef,
                "scaler": self.scaler.state_dict(),
                "history": self.history,
            }
            checkpoints.save(self.shelf, state, self.parameters, self.optimizer)

    def resume(self) -> None:
        """Continue from the newest whole checkpoint of this very run, if there is one."""
        if not self.shelf or self.updates_done:
            return
        if self.rank == 0:
            checkpoints.sweep(self.shelf)
        state = checkpoints.load(self.shelf, self.settings(), self.parameters, self.optimizer)
        if state:
            self.scaler.load_state_dict(state["scaler"])
            self.kl_coef, self.history = state["kl_coef"], state["history"]
            self.updates_done = state["updates_done"]

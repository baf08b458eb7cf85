"""PPO for language models, from top to bottom: sample, reward, compare with the reference, learn.

    history = PPOTrainer(policy, tokenizer, reward, prompts, PPOConfig(updates=100)).train()

The reward is any function from texts to numbers, so it may have its own tokenizer and segmentation.
An update has nine numbered steps. Each of the other modules has one task:
- `losses` has the equations;
- `policy` holds the models;
- `sampling` samples and scores responses;
- `rewards` computes the scores of texts;
- `processes` divides the work among processes;
- `checkpoints` saves and resumes.
The trainer depends neither on the course's task nor on its notebooks: a test imports this package
with only eleven small modules of `utils`.

What is simplified, and why:
- Dropout is off. Sampling and learning must use the same policy; otherwise the ratio is not 1.
- Log-probabilities come from a scoring pass, not from the sampler. This pass repeats the forward
  passes of the first epoch, in the same minibatches, so the first ratio is exactly 1 in any
  precision.
- The score is added to the reward of the last token of the response.
- All random numbers are computed from the seed and the number of the update. So no random state
  needs saving, and the episodes do not depend on the number of processes.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from utils import losses
from utils.course.errors import CourseError, SettingError
from utils.course.language import tr
from utils.course.progress import bar as progress_bar
from utils.models.draws import DRAWS, SHUFFLES, generator
from utils.models.precision import DTYPES
from utils.ppo import checkpoints, processes, sampling
from utils.ppo.policy import ActorCritic
from utils.ppo.rewards import Reward, score_texts
from utils.ppo.sampling import Rollout

ExtraMetrics = Callable[["Experience"], Mapping[str, float]]


class TrainingStopped(CourseError, RuntimeError):
    """The run cannot continue; the message tells what to change, and checkpoints are kept."""


@dataclass(frozen=True)
class PPOConfig:
    """The settings of a run; numbers of episodes are totals over all processes."""

    updates: int = 100  # batches of episodes; each is sampled, then used for learning
    batch_size: int = 256  # episodes per update
    minibatch_size: int = 64  # episodes per optimiser step
    epochs: int = 2  # passes over each batch
    learning_rate: float = 5e-4  # of AdamW; about 1e-5 for a full-size policy
    anneal: bool = False  # decrease the learning rate linearly to 0, so late noise adds less KL
    max_grad_norm: float = 1.0  # gradients with a larger norm are scaled down to this norm
    max_new_tokens: int = 20  # longest response
    temperature: float = 1.0  # divides the logits, both in sampling and in scoring
    missing_eos_penalty: float = 0.0  # subtracted from the score if there is no end-of-text token
    reward_cap: float | None = None  # clip scores to ± this, so that extreme ones gain no more
    kl_coef: float = 0.3  # β, the coefficient of the KL term, in reward per nat
    kl_estimator: Literal["k1", "k3", "exact"] = "k1"  # see `losses.kl_estimate`; "exact" sums over
    # the vocabulary, and its gradient is in the loss: no KL comes from the luck of the draw
    target_kl: float | None = None  # nats per episode; kl_coef adapts to reach it; None: fixed
    kl_horizon: int = 10_000  # episodes; an adaptive kl_coef changes more slowly if it is larger
    kl_limit: float = 100.0  # nats per episode; the run stops above this
    gamma: float = 1.0  # discount per token
    lam: float = 1.0  # λ of GAE: 1 has no bias; a smaller λ relies more on the values
    value_lam: float | None = None  # λ of the values' targets, which need no small one; None: lam
    whiten_rewards: bool = False  # scale per-token rewards to unit variance
    whiten_advantages: bool = True  # scale advantages to zero mean and unit variance
    clip_range: float = 0.2  # ratios are clipped to 1 ± this
    value_clip_range: float | None = 0.2  # values are clipped to old ± this; None: no clipping
    value_coef: float = 0.1  # weight of the value loss
    shared_value_head: bool = True  # values from the policy's trunk; False: from a copy of it
    value_learning_rate: float | None = None  # of the values' parameters; None: learning_rate
    value_updates: int = 0  # the first updates train only the values, so the policy starts informed
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of autocast; fp16 scales the loss
    checkpoint_every: int = 10  # updates between checkpoints
    seed: int = 0  # all random numbers are computed from it

    def __post_init__(self) -> None:
        whole = ("updates", "batch_size", "minibatch_size", "epochs", "max_new_tokens")
        positive = (*whole, "checkpoint_every", "temperature", "learning_rate")
        for name in positive if self.target_kl is None else (*positive, "target_kl"):
            if not getattr(self, name) > 0:
                raise SettingError(
                    tr(
                        "PPOConfig.{name} is {value}: make it positive.",
                        name=name,
                        value=getattr(self, name),
                    )
                )
        if self.batch_size % self.minibatch_size:
            raise SettingError(
                tr(
                    "PPOConfig.batch_size {batch} is not a multiple of minibatch_size "
                    "{minibatch}: change one of the two.",
                    batch=self.batch_size,
                    minibatch=self.minibatch_size,
                )
            )
        for name, known in (("precision", DTYPES), ("kl_estimator", ("k1", "k3", "exact"))):
            if getattr(self, name) not in known:
                raise SettingError(
                    tr(
                        "PPOConfig.{name} is {value!r}: use one of {known}.",
                        name=name,
                        value=getattr(self, name),
                        known=", ".join(known),
                    )
                )
        if self.kl_estimator == "exact" and (self.whiten_advantages or self.whiten_rewards):
            raise SettingError(
                tr(
                    "PPOConfig.kl_estimator='exact' puts the KL into the loss, and whitening "
                    "scales the rewards but not this KL: set whiten_advantages=False and "
                    "whiten_rewards=False."
                )
            )
        if self.target_kl is not None and self.kl_horizon < self.batch_size:
            raise SettingError(
                tr(
                    "PPOConfig.kl_horizon {horizon} is smaller than batch_size {batch}, so kl_coef "
                    "would jump: make it larger.",
                    horizon=self.kl_horizon,
                    batch=self.batch_size,
                )
            )
        if self.value_updates >= self.updates:
            raise SettingError(
                tr(
                    "PPOConfig.value_updates {values} leaves no update for the policy: make "
                    "updates larger than that.",
                    values=self.value_updates,
                )
            )
        if self.value_updates and self.shared_value_head:
            raise SettingError(
                tr(
                    "PPOConfig.value_updates trains the values alone, but with a shared trunk "
                    "this changes the policy: set shared_value_head=False."
                )
            )


@dataclass(frozen=True)
class Experience:
    """A rollout and the tensors that learning needs: (batch, response), except the scores."""

    rollout: Rollout
    scores: Tensor  # (batch,), the reward of each text before cap and penalty
    logps: Tensor  # of the policy that sampled the responses
    reference_logps: Tensor
    kl: Tensor  # to the reference, at every token
    values: Tensor
    rewards: Tensor  # minus β times the KL at every token, plus the score at the last token
    advantages: Tensor
    returns: Tensor
    reference_states: Tensor | None  # hidden states, for the exact KL: (batch, response, hidden)


def adapted_kl_coef(kl_coef: float, kl: float, config: PPOConfig) -> float:
    """β after a batch: it rises if the KL is above its target, and falls if it is below."""
    if config.target_kl is None:
        return kl_coef
    error = min(max(kl / config.target_kl - 1, -0.2), 0.2)
    return kl_coef * (1 + error * config.batch_size / config.kl_horizon)


class PPOTrainer:
    """Trains `policy` in place; under `accelerate launch` the processes share each minibatch."""

    def __init__(
        self,
        policy: nn.Module,  # any causal language model of transformers, with or without PEFT
        tokenizer: object,  # the policy's; the reward uses its own
        reward: Reward,  # texts (prompt with response) -> one number per text
        prompts: Sequence[str] | Sequence[list[int]],
        config: PPOConfig,
        *,
        reference: nn.Module | None = None,  # default: a frozen copy, or the adapter switched off
        checkpoint_dir: str | Path | None = None,  # save here, and continue from here
        extra_metrics: ExtraMetrics | None = None,  # computes more metrics of each batch
        on_update: Callable[[dict], None] | None = None,  # receives each update's metrics
        progress: bool = True,  # show a progress bar
    ) -> None:
        self.rank = processes.join(next(policy.parameters()).device, config.minibatch_size)
        self.models = ActorCritic(
            policy,
            tokenizer,
            reference,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            shared_value_head=config.shared_value_head,
            precision=config.precision,
            batch_size=config.minibatch_size,
        )
        self.device = self.models.device
        self.reward, self.config, self.prompts = reward, config, self.models.encode(prompts)
        self.extra_metrics, self.on_update, self.progress = extra_metrics, on_update, progress
        self.checkpoint_dir = Path(checkpoint_dir) if checkpoint_dir else None
        sampling.check_head(policy, self.prompts[0])

        self.parameters = {
            f"{owner}.{name}": parameter
            for owner, model in {"policy": policy, "critic": self.models.critic}.items()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        dtypes = {parameter.dtype for parameter in self.parameters.values()}
        if config.precision == "fp16" and dtypes != {torch.float32}:
            raise SettingError(
                tr(
                    "precision='fp16' found trainable parameters of {dtypes}, which the gradient "
                    "scaler cannot handle: cast them with `.float()` first.",
                    dtypes=dtypes - {torch.float32},
                )
            )
        fused = self.device.type in ("cpu", "cuda")
        groups = [{"params": list(self.parameters.values())}]
        if config.value_learning_rate is not None:  # a rate and a gradient norm of their own
            owned = {owner: [] for owner in ("policy", "critic")}
            for name, parameter in self.parameters.items():
                owned[name.partition(".")[0]].append(parameter)
            groups = [
                {"params": owned["policy"]},
                {"params": owned["critic"], "lr": config.value_learning_rate},
            ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, weight_decay=0.0, fused=fused
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.kl_coef, self.updates_done, self.history = config.kl_coef, 0, []
        self.inside = False  # whether an update has taken steps and is not finished
        models = (policy, self.models.critic, reference)  # without one, it is the policy of now
        weights = (w for model in models if model is not None for w in model.parameters())
        self.start = checkpoints.content_hash(weights) if checkpoint_dir else ""
        self.saved = 0  # updates in the newest checkpoint
        self.models.compile_sampling(max(map(len, self.prompts)))

    def train(self) -> list[dict[str, float]]:
        """Run the updates after the newest complete checkpoint; return all updates' metrics."""
        self.resume()
        if self.updates_done > self.saved:  # the disk was full at the last save
            self.save()
        hidden = not self.progress or self.rank > 0
        with progress_bar("PPO", self.config.updates, "update", hidden=hidden) as bar:
            bar.update(self.updates_done)
            while self.updates_done < self.config.updates:
                began = time.perf_counter()
                experience = self.experience(self.rollout())
                extra = self.extra_metrics(experience) if self.extra_metrics else {}
                extra = {name: float(value) for name, value in extra.items()}  # tensors too
                metrics = self.update(experience) | extra
                metrics["seconds"] = time.perf_counter() - began
                self.history.append(metrics)
                self.save()
                if self.on_update:
                    self.on_update(metrics)
                shown = ("reward", "kl", *extra)
                bar.set_postfix(**{name: f"{metrics[name]:.2f}" for name in shown})
                bar.update()
        return self.history

    def rollout(self) -> Rollout:
        """The prompts of this update with one sampled response each, from all processes."""
        # 1. Rollout
        config, update = self.config, self.updates_done
        numbers = sampling.prompt_rows(len(self.prompts), config.batch_size, config.seed, update)
        prompts = [self.prompts[number] for number in numbers]
        stream = generator(config.seed, DRAWS, update)
        draws = torch.rand((config.batch_size, config.max_new_tokens), generator=stream)
        mine = processes.mine(torch.arange(config.batch_size), config.minibatch_size).flatten()
        width = max(map(len, self.prompts if self.models.static else prompts))
        own = self.models.sample([prompts[row] for row in mine], draws[mine], width, compiled=True)
        return Rollout(*(processes.gather(x, config.minibatch_size) for x in vars(own).values()))

    @torch.no_grad()
    def experience(self, rollout: Rollout) -> Experience:
        """Compute scores, log-probabilities, values, advantages and returns of a rollout."""
        config, mask, size = self.config, rollout.mask, self.config.minibatch_size
        minibatches = processes.mine(torch.arange(len(mask), device=self.device), size)
        mine = minibatches.flatten()

        # 2. Reward: one score per text
        scores = score_texts(self.reward, self.models.texts(rollout, mine)).to(self.device)
        scores = processes.gather(scores, size)
        cap = float("inf") if config.reward_cap is None else config.reward_cap
        adjusted = scores.clamp(-cap, cap) - config.missing_eos_penalty * ~rollout.ended

        # 3. KL to the reference, computed in the same minibatches as the first epoch
        def whole(parts: Iterable[Tensor]) -> Tensor:
            return processes.gather(losses.unpack(torch.cat(list(parts)), mask[mine]), size)

        states = None
        if config.kl_estimator == "exact":
            own = [self.models.reference_states(rollout, rows) for rows in minibatches]
            scored = [
                self.models.logps_values_and_kl(rollout, rows, part)
                for rows, part in zip(minibatches, own, strict=True)
            ]
            states = whole(own)
            logps, values, kl, reference_logps = map(whole, zip(*scored, strict=True))
        else:
            scored = [self.models.logps_and_values(rollout, rows) for rows in minibatches]
            logps, values = map(whole, zip(*scored, strict=True))
            reference_logps = whole(self.models.reference_logps(rollout, r) for r in minibatches)
            kl = losses.kl_estimate(logps, reference_logps, config.kl_estimator)

        # 4. Per-token rewards: minus β times the KL at every token, plus the score at the last
        rewards = losses.per_token_rewards(kl, adjusted, mask, self.kl_coef)
        if config.whiten_rewards:
            rewards = losses.masked_whiten(rewards, mask, shift_mean=False)

        # 5. Generalised advantage estimation
        advantages, returns = losses.gae(rewards, values, gamma=config.gamma, lam=config.lam)
        if config.value_lam is not None:
            _, returns = losses.gae(rewards, values, gamma=config.gamma, lam=config.value_lam)

        # 6. Whitening over the response tokens
        if config.whiten_advantages:
            advantages = losses.masked_whiten(advantages, mask)
        return Experience(
            rollout,
            scores,
            logps,
            reference_logps,
            kl,
            values,
            rewards,
            advantages,
            returns,
            states,
        )

    def update(self, experience: Experience) -> dict[str, float]:
        """Learn from one batch for `epochs` passes, with clipping; return the update's metrics."""
        config, batch = self.config, experience
        metrics = self.describe(batch)
        if not metrics["kl"] <= config.kl_limit:
            why = tr(
                "the KL to the reference is {kl:.3g} nats per episode, above kl_limit {limit:g}",
                kl=metrics["kl"],
                limit=config.kl_limit,
            )
            remedy = tr(
                "raise kl_coef ({kl_coef:.3g}) or lower learning_rate", kl_coef=self.kl_coef
            )
            raise self.stopped(why, remedy)
        only_values = self.updates_done < config.value_updates
        done = max(0, self.updates_done - config.value_updates)
        left = 1 - done / (config.updates - config.value_updates) if config.anneal else 1.0
        self.optimizer.param_groups[0]["lr"] = config.learning_rate * left
        names = ("policy_loss", "value_loss", "clip_fraction", "approximate_kl")
        sums, norms = torch.zeros(len(names), device=self.device), []
        for epoch in range(config.epochs):
            order = torch.arange(config.batch_size)  # epoch 0: the minibatches of the scoring pass
            if epoch:
                stream = generator(config.seed, SHUFFLES, self.updates_done, epoch)
                order = torch.randperm(config.batch_size, generator=stream)
            mine = processes.mine(order, config.minibatch_size)
            sizes = batch.rollout.mask[order].sum(1).view(-1, config.minibatch_size).sum(1)
            for rows, tokens in zip(mine.to(self.device), sizes, strict=True):
                mask = batch.rollout.mask[rows]
                old_logps, advantages = batch.logps[rows][mask], batch.advantages[rows][mask]
                old_values, returns = batch.values[rows][mask], batch.returns[rows][mask]
                if only_values:
                    values = self.models.values(batch.rollout, rows)
                    logps, kl_loss = old_logps, 0.0
                elif batch.reference_states is not None:
                    states = batch.reference_states[rows][mask]
                    given = (batch.rollout, rows, states)
                    logps, values, kl, _ = self.models.logps_values_and_kl(*given)
                    kl_loss = self.kl_coef * kl.sum() / tokens
                else:
                    logps, values = self.models.logps_and_values(batch.rollout, rows)  # (tokens,)
                    kl_loss = 0.0

                # 7. Clipped policy loss: the mean over the minibatch's tokens in all processes
                policy_losses = losses.clipped_policy_loss(
                    logps, old_logps, advantages, config.clip_range
                )
                policy_loss = policy_losses.sum() / tokens

                # 8. Clipped value loss
                value_losses = losses.clipped_value_loss(
                    values, old_values, returns, config.value_clip_range
                )
                value_loss = value_losses.sum() / tokens

                # 9. Optimiser step
                loss = 0.0 if only_values else policy_loss + kl_loss
                norms.append(self.step(loss + config.value_coef * value_loss))
                log_ratio = (logps - old_logps).detach()
                clipped = ((log_ratio.exp() - 1).abs() > config.clip_range).sum() / tokens
                kl_so_far = (log_ratio.exp() - 1 - log_ratio).sum() / tokens  # k3, old to new
                sums += torch.stack([policy_loss.detach(), value_loss.detach(), clipped, kl_so_far])
        processes.add([sums])
        averages = (sums * config.minibatch_size / config.batch_size / config.epochs).tolist()
        self.updates_done += 1
        self.kl_coef = adapted_kl_coef(self.kl_coef, metrics["kl"], config)
        self.inside = False
        lengths = torch.stack(norms)
        applied = lengths[lengths.isfinite()]  # fp16's gradient scaler skips steps that overflow
        grad_norm = applied.mean().item() if len(applied) else 0.0
        return metrics | dict(zip(names, averages, strict=True)) | {"grad_norm": grad_norm}

    def step(self, loss: Tensor) -> Tensor:
        """One optimiser step on the summed gradients of all processes; return their norm."""
        if not loss.isfinite():
            why = tr("the loss is {loss:g}", loss=loss.item())
            raise self.stopped(why, tr("lower learning_rate"))
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        gradients = (parameter.grad for parameter in self.parameters.values())
        processes.add(gradient for gradient in gradients if gradient is not None)
        self.scaler.unscale_(self.optimizer)
        norm, *_ = [  # of the group with the policy
            nn.utils.clip_grad_norm_(group["params"], self.config.max_grad_norm)
            for group in self.optimizer.param_groups
        ]
        self.inside = True
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def describe(self, experience: Experience) -> dict[str, float]:
        """The metrics of a batch before learning; most are means over its episodes."""
        rollout, mask = experience.rollout, experience.rollout.mask
        kl = (experience.logps - experience.reference_logps).sum(1)  # (batch,)
        if self.config.kl_estimator == "exact":
            kl = experience.kl.sum(1)
        columns = {
            "reward": experience.scores,
            "kl": kl,  # nats per episode
            "length": mask.sum(1),
            "eos_rate": rollout.ended,
        }
        # the mean of -ln p over sampled tokens estimates the entropy, in nats per token
        entropy = -experience.logps.sum() / mask.sum()
        returns, values = experience.returns[mask], experience.values[mask]
        unexplained = (returns - values).var() / returns.var().clamp_min(1e-12)
        return {
            "update": self.updates_done + 1,
            "episodes": (self.updates_done + 1) * self.config.batch_size,
            **{name: column.float().mean().item() for name, column in columns.items()},
            "entropy": entropy.item(),
            "explained_variance": 1 - unexplained.item(),  # how well values predict returns
            "kl_coef": self.kl_coef,
        }

    def stopped(self, why: str, remedy: str) -> TrainingStopped:
        """The error that stops a run."""
        values = {"update": self.updates_done + 1, "why": why, "remedy": remedy}
        if not self.checkpoint_dir:
            return TrainingStopped(
                tr("PPO stopped in update {update} because {why}: {remedy}.", **values)
            )
        return TrainingStopped(
            tr(
                "PPO stopped in update {update} because {why}: {remedy} and give another "
                "checkpoint_dir ({folder} is kept).",
                folder=self.checkpoint_dir,
                **values,
            )
        )

    def evaluate(self, prompts: Sequence[str], *, seed: int = 0) -> dict[str, list]:
        """One episode per prompt: lists of texts, rewards, kl (nats), lengths and ended."""
        found = self.models.evaluate(prompts, seed=seed)
        return found | {"rewards": score_texts(self.reward, found["texts"]).tolist()}

    # --- Checkpoints ---

    def settings(self) -> dict[str, object]:
        """The settings that a run must share with a checkpoint in order to continue from it."""
        given = (asdict(self.config), self.prompts, self.parameters, self.start)
        return checkpoints.run_settings(*given)

    def save(self) -> None:
        """Save every `checkpoint_every` updates and at the end; only the first process does."""
        last = self.updates_done == self.config.updates
        due = last or self.updates_done % self.config.checkpoint_every == 0
        if self.checkpoint_dir and self.rank == 0 and due:
            state = {
                "settings": self.settings(),
                "updates_done": self.updates_done,
                "kl_coef": self.kl_coef,
                "scaler": self.scaler.state_dict(),
                "history": self.history,
            }
            checkpoints.save(self.checkpoint_dir, state, self.parameters, self.optimizer)
            self.saved = self.updates_done

    def resume(self) -> None:
        """Continue from the newest complete checkpoint of the same run, if there is one.

        A trainer that was interrupted between two updates continues from its own state.
        """
        if self.updates_done and not self.inside:
            return
        state = None
        if self.checkpoint_dir:
            if self.rank == 0:
                checkpoints.sweep(self.checkpoint_dir)
            given = (self.checkpoint_dir, self.settings(), self.parameters, self.optimizer)
            state = checkpoints.load(*given)
        if self.inside and not state:
            raise SettingError(
                tr(
                    "Update {update} was interrupted, and no checkpoint has the weights before "
                    "it: make the policy and the trainer again.",
                    update=self.updates_done + 1,
                )
            )
        self.inside = False
        if state:
            self.scaler.load_state_dict(state["scaler"])
            self.kl_coef, self.history = state["kl_coef"], state["history"]
            self.saved = self.updates_done = state["updates_done"]

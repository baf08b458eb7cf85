"""Points (KL, share of negatives, J) of policies, and training with TRL's RLOO and GRPO."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
from datasets import Dataset
from sklearn.pipeline import Pipeline
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from utils.course.paths import BENCHMARKS
from utils.course.profiles import Profile
from utils.data.feedback import NEGATIVE
from utils.finetune.training import run as run_training
from utils.judge.metrics import bootstrap, distinct, perplexity, tied_best_of_n_kl
from utils.losses import positions
from utils.models.memory import release
from utils.models.precision import precision_arguments
from utils.models.sentiment import SentimentReward
from utils.ppo.policy import ActorCritic
from utils.ppo.rewards import Reward, score_texts

FACTORS = (0.3, 0.5, 0.7, 0.85, 1.15, 1.3, 1.5, 1.75, 2.0, 2.2)  # of what a training changed
SEED = 11  # the seed of the judged texts: the same random draws for every method


# --- Prompts and rows ----------------------------------------------------------------------------


def unseen(prompts: Sequence[str], seen: Sequence[str]) -> list[str]:
    """The prompts that do not occur in `seen`, each once, in their order.

    >>> unseen(["a", "b", "c", "b"], ["a"])
    ['b', 'c']
    """
    known = set(seen)
    return [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]


def judged_rows(
    sentences: Sequence[str],
    sentiments: Sequence[int],
    prompts: Sequence[str],
    held_out: Sequence[str],
) -> tuple[list[str], list[int]]:
    """The rows from which a judge may learn: those whose prompt it will not have to judge.

    `prompts` holds the prompt of each sentence.
    """
    kept = [
        (sentence, sentiment)
        for sentence, sentiment, prompt in zip(sentences, sentiments, prompts, strict=True)
        if prompt not in set(held_out)
    ]
    return [sentence for sentence, _ in kept], [sentiment for _, sentiment in kept]


# --- The frontier --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A policy at one step: means over the held-out prompts, with 95 % bootstrap intervals."""

    method: str
    step: int  # of training; n for best-of-n
    kl: float  # KL to the base policy, in nats per episode
    share: float  # share of texts that the judge classifies as negative
    negative_rate: float  # the same share by the reward
    objective: float  # J = E[r] - β KL
    intervals: dict[str, tuple[float, float]]  # of kl, share and objective, over the prompts
    seed: int = 0  # of the training


@dataclass
class Frontier:
    """Measures policies on one set of held-out prompts and collects their points."""

    judge: Pipeline
    reward: Reward
    prompts: Sequence[str]
    beta: float  # the coefficient of the KL in J, the same for every method
    draws: int = 1  # texts per prompt
    seed: int = 0  # of the training, kept with each point
    points: list[Point] = field(default_factory=list)

    def add(self, method: str, models: ActorCritic, step: int = 0) -> Point:
        """Sample texts from a policy as it is now, and add its point."""
        found = models.evaluate(list(self.prompts) * self.draws, seed=SEED)
        rewards = score_texts(self.reward, found["texts"]).tolist()
        return self.measure(method, step, found | {"rewards": rewards})

    def measure(self, method: str, step: int, found: Mapping[str, Sequence]) -> Point:
        """Add the point of `found`: texts, rewards and kl, one row of all prompts after another."""
        columns = {
            "kl": np.array(found["kl"]),
            "share": self.judge.predict(list(found["texts"])) == NEGATIVE,
            "negative_rate": self._negative(found),
            "objective": np.array(found["rewards"]) - self.beta * np.array(found["kl"]),
        }
        # texts of one prompt are alike, so an interval draws prompts and not texts
        each = {
            name: column.reshape(-1, len(self.prompts)).mean(0) for name, column in columns.items()
        }
        means = {name: float(values.mean()) for name, values in each.items()}
        drawn = {name: bootstrap(np.mean, each[name]) for name in ("kl", "share", "objective")}
        self.points.append(Point(method, step, **means, intervals=drawn, seed=self.seed))
        return self.points[-1]

    def _negative(self, found: Mapping[str, Sequence]) -> np.ndarray:
        """Which texts are negative by the reward: those with a reward, if it is 0 for others."""
        if getattr(self.reward, "kind", None) in ("probability", "log_odds"):
            return np.asarray(self.reward.negative(list(found["texts"])))
        return np.array(found["rewards"]) != 0

    def last(self, method: str) -> Point:
        """The point of this method that was added last."""
        return [point for point in self.points if point.method == method][-1]

    def rows(self) -> list[dict]:
        """The points as plain rows, for a table or a file."""
        return [asdict(point) for point in self.points]


def add_best_of_n(
    frontier: Frontier,
    texts: Sequence[Sequence[str]],  # (samples, prompts)
    rewards: np.ndarray,  # (samples, prompts)
    n: int,
) -> Point:
    """Add the point of best-of-n: of n base texts per prompt, the one with the highest reward.

    All samples are used, in groups of n. Among texts with the same reward the first one is kept.
    """
    prompts = np.arange(rewards.shape[1])
    kept_texts, kept_rewards = [], []
    for start in range(0, len(rewards) - n + 1, n):
        best = rewards[start : start + n].argmax(0)  # (prompts,)
        kept_texts += [
            texts[start + row][prompt] for row, prompt in zip(best, prompts, strict=True)
        ]
        kept_rewards.append(rewards[start + best, prompts])
    kl = np.array([tied_best_of_n_kl(rewards[:, prompt], n) for prompt in prompts])
    found = {
        "texts": kept_texts,
        "rewards": np.concatenate(kept_rewards),
        "kl": np.tile(kl, len(kept_rewards)),
    }
    return frontier.measure("best-of-n", n, found)


def scaled(method: str) -> str:
    """The name of a method's policies whose change of the weights is multiplied by a factor."""
    return f"{method}, scaled"


def add_scaled(
    frontier: Frontier,
    models: ActorCritic,
    method: str = "PPO",
    factors: Sequence[float] = FACTORS,
) -> list[Point]:
    """Add the points of a trained policy with scaled changes; the step is 100 times the factor."""
    found = []
    for factor in factors:
        with models.scaled(factor):
            found.append(frontier.add(scaled(method), models, round(100 * factor)))
    return found


def share_at(points: Sequence[Point], method: str, kl: float) -> float:
    """A method's share of negatives at this KL, read between its points; the mean over its seeds.

    A seed counts only where it has points on both sides; nan where no seed has them.
    """
    shares = []
    for seed in {point.seed for point in points if point.method == method}:
        own = (point for point in points if (point.method, point.seed) == (method, seed))
        path = sorted((point.kl, point.share) for point in own)
        if path[0][0] <= kl <= path[-1][0]:
            shares.append(np.interp(kl, *zip(*path, strict=True)))
    return float(np.mean(shares)) if shares else float("nan")


def recorded(profile: str, data: str, program: str = "frontier") -> dict:
    """What a program of benchmarks/ measured with this profile and data; {} if it was not run.

    `points` has those of the runs with PPO's episodes at most: a longer run is for the tables.
    """
    path = BENCHMARKS / f"{program}.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if (found["profile"], found["data"]) != (profile, data):
        return {}
    budget = found["settings"]["updates"] * found["settings"]["batch_size"]
    equal = (run for run in found["runs"] if run["episodes"] <= budget)
    found["points"] = [Point(**row) for run in equal for row in run["points"]]
    return found


def portrait(
    texts: Sequence[str], reward: SentimentReward, judge: Pipeline, models: ActorCritic
) -> dict[str, float]:
    """Statistics of texts: by the reward, by the judge, and by the reference of `models`."""
    return {
        "reward": float(reward(texts).mean()),
        "negative (reward)": float(reward.negative(texts).float().mean()),
        "negative (judge)": float(np.mean(judge.predict(texts) == NEGATIVE)),
        "reference perplexity": perplexity(models.reference, models.tokenizer, texts),
        "distinct-2": distinct(texts),
        "unique": len(set(texts)) / len(texts),
    }


@dataclass(frozen=True)
class GroupRun:
    """TRL's RLOO or GRPO; the KL coefficient is PPO's, so that all are trained on the same J."""

    steps: int  # batches of completions
    batch_size: int  # completions that are sampled together
    minibatch_size: int  # completions per optimiser step
    generations: int  # completions per prompt, which form a group
    learning_rate: float


def _with_positions(model: object, args: tuple, keywords: dict) -> tuple[tuple, dict]:
    """Add position ids that skip the padding on the left, because TRL's scoring pass has none."""
    mask = keywords.get("attention_mask")
    if keywords.get("position_ids") is None and mask is not None and not keywords.get("use_cache"):
        keywords["position_ids"] = positions(mask.bool())
    return args, keywords


def train_group_method(
    method: str,
    models: ActorCritic,
    reward: Reward,
    prompts: Sequence[str],
    run: GroupRun,
    profile: Profile,
    folder: str,
    frontier: Frontier,
    seed: int = 0,
) -> float:
    """Train the policy of `models` with TRL's RLOO or GRPO; return the seconds without judging.

    The policy is measured about eight times on the way, and after the last step. A step of a point
    is a batch of completions, as for PPO.
    """
    judging, each = 0.0, run.batch_size // run.minibatch_size  # optimiser steps per batch
    marks = {*range(0, run.steps, max(run.steps // 8, 1)), run.steps}
    per_step = run.batch_size // run.generations  # TRL skips a step that has too few prompts
    prompts = list(prompts) * -(-per_step // len(prompts))
    # TRL loads its reference model from the folder named in the model's configuration
    models.policy.save_pretrained(folder)
    models.policy.config._name_or_path = folder

    class Judge(TrainerCallback):
        def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
            nonlocal judging
            step, rest = divmod(state.global_step, each)
            if not rest and step in marks:
                began = time.perf_counter()
                frontier.add(method, models, step)
                judging += time.perf_counter() - began

    def negative_feedback(prompts: list[str], completions: list[str], **_: object) -> list[float]:
        texts = [prompt + text for prompt, text in zip(prompts, completions, strict=True)]
        return [float(value) for value in reward(texts)]

    # GRPO divides by the standard deviation of a group by default: its KL would weigh less
    make_config, make_trainer = {
        "RLOO": (RLOOConfig, RLOOTrainer),
        "GRPO": (partial(GRPOConfig, scale_rewards="none"), GRPOTrainer),
    }[method]
    arguments = make_config(
        output_dir=folder,
        max_steps=run.steps * each,
        per_device_train_batch_size=run.minibatch_size,
        steps_per_generation=each,
        num_generations=run.generations,
        max_completion_length=models.max_new_tokens,
        temperature=models.temperature,
        beta=profile.ppo.kl_coef,
        learning_rate=run.learning_rate,
        disable_dropout=True,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        seed=seed,
        **precision_arguments(profile),
    )
    trainer = make_trainer(
        model=models.policy,
        reward_funcs=negative_feedback,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
        processing_class=models.tokenizer,
        callbacks=[Judge()],
    )
    hooks = [
        model.register_forward_pre_hook(_with_positions, with_kwargs=True)
        for model in (models.policy, trainer.ref_model)
    ]
    began = time.perf_counter()
    run_training(trainer)
    seconds = time.perf_counter() - began - judging
    for hook in hooks:
        hook.remove()
    del trainer
    release()
    return seconds

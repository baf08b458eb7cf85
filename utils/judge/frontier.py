"""Points (KL, share of negatives) of policies, and training with TRL's RLOO and GRPO."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from datasets import Dataset
from sklearn.pipeline import Pipeline
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from utils.course.profiles import GroupRun, Profile
from utils.data.feedback import NEGATIVE
from utils.finetune.training import run as run_training
from utils.judge.metrics import distinct, perplexity
from utils.losses import positions
from utils.models.memory import release
from utils.models.precision import precision_arguments
from utils.models.sentiment import SentimentReward
from utils.ppo.policy import ActorCritic
from utils.ppo.rewards import Reward

SEED = 11  # the seed of the judged texts: the same random draws for every method


@dataclass(frozen=True)
class Point:
    """The KL and the share of negatives of a policy at one step."""

    method: str
    kl: float  # KL to the base policy, in nats per episode
    share: float  # share of texts that the judge classifies as negative
    step: int


@dataclass
class Frontier:
    """Measures policies on one set of held-out prompts and collects their points."""

    judge: Pipeline
    prompts: Sequence[str]
    points: list[Point] = field(default_factory=list)

    def add(self, method: str, models: ActorCritic, step: int = 0) -> Point:
        """Measure a policy as it is now and add its point; the reward model is not used."""
        found = models.evaluate(self.prompts, seed=SEED)
        share = float(np.mean(self.judge.predict(found["texts"]) == NEGATIVE))
        return self.add_point(method, float(np.mean(found["kl"])), share, step)

    def add_point(self, method: str, kl: float, share: float, step: int) -> Point:
        """Add a point that was measured elsewhere."""
        self.points.append(Point(method, float(kl), float(share), step))
        return self.points[-1]

    def last(self, method: str) -> Point:
        """The point of this method that was added last."""
        return [point for point in self.points if point.method == method][-1]

    def rows(self) -> list[dict]:
        """The points as plain rows, for a table or a file."""
        return [asdict(point) for point in self.points]


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
    """Train the policy of `models` with TRL's RLOO or GRPO; return the seconds without judging."""
    judging = 0.0
    per_step = run.batch_size // run.generations  # TRL skips a step that has too few prompts
    prompts = list(prompts) * -(-per_step // len(prompts))
    # TRL loads its reference model from the folder named in the model's configuration
    models.policy.save_pretrained(folder)
    models.policy.config._name_or_path = folder

    class Judge(TrainerCallback):
        def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
            nonlocal judging
            if state.global_step % max(run.steps // 6, 1) == 0:
                began = time.perf_counter()
                frontier.add(method, models, state.global_step)
                judging += time.perf_counter() - began

    def negative_feedback(prompts: list[str], completions: list[str], **_: object) -> list[float]:
        texts = [prompt + text for prompt, text in zip(prompts, completions, strict=True)]
        return [float(value) for value in reward(texts)]

    make_config, make_trainer, kl_coef = {
        "RLOO": (RLOOConfig, RLOOTrainer, run.rloo_kl_coef),
        "GRPO": (GRPOConfig, GRPOTrainer, run.grpo_kl_coef),
    }[method]
    arguments = make_config(
        output_dir=folder,
        max_steps=run.steps,
        per_device_train_batch_size=run.batch_size,
        num_generations=run.generations,
        max_completion_length=models.max_new_tokens,
        temperature=models.temperature,
        beta=kl_coef,
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

"""PPO, RLOO, GRPO and best-of-n on one set of held-out prompts, with three seeds.

Writes frontier.json. Policy, reference and reward are the artifacts of notebooks 01 and 02. Every
trained method sees the same prompts and the same number of episodes. The control is SFT on the
base policy's own texts that the reward calls negative: these texts are almost exactly draws from
the policy that maximises J. One more PPO has four times the policy updates: it shows how much of
the missing gain is a matter of episodes. The JSON is written after each run, so a program that was
interrupted continues with the next run; a run whose settings have changed is made again.
`ablations.py` changes one setting of PPO at a time.

    python benchmarks/frontier.py            # hours: every method, three seeds
    python benchmarks/frontier.py --only PPO RLOO
    python benchmarks/frontier.py --replace  # begin anew on a machine with other base models
    python benchmarks/frontier.py --quick --out /tmp/frontier.json
"""

import argparse
import copy
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.common import continued
from utils.course.profiles import PPORun, Profile
from utils.course.session import Course, set_seed, start
from utils.data.feedback import NEGATIVE, load_feedback
from utils.data.reading import fingerprint
from utils.judge.frontier import (
    Frontier,
    GroupRun,
    add_best_of_n,
    add_scaled,
    judged_rows,
    train_group_method,
    unseen,
)
from utils.judge.metrics import best_objective, gain, independent_judge, minimal_kl
from utils.models.adapters import content_hash
from utils.models.draws import DRAWS, SHUFFLES, generator
from utils.models.lengths import cut_texts
from utils.models.logprobs import positions
from utils.models.sentiment import SentimentReward
from utils.ppo import sampling
from utils.ppo.policy import ActorCritic
from utils.ppo.rewards import Reward, score_texts
from utils.ppo.trainer import PPOConfig, PPOTrainer

SEEDS = (1, 2, 3)
CONTROL = "SFT on negatives"
LONGER = "PPO, 4 times the updates"
BEST_OF = (2, 4, 8, 16, 64)
GENERATIONS = 8  # texts per prompt of RLOO and GRPO
TEXTS = 4  # per prompt at each point


@dataclass(frozen=True)
class ControlRun:
    """SFT on the texts of the base policy that the reward calls negative."""

    batch_size: int  # base texts per step; the negative ones among them are learned
    epochs: int = 4
    learning_rate: float = 3e-4  # as the lab's PPO


@dataclass
class Task:
    """What every method shares."""

    profile: Profile
    base: object  # the adapted policy, from which every training starts
    tokenizer: object
    reward: Reward
    prompts: list[str]
    frontier: Callable[[int], Frontier]  # the seed of the training -> a frontier without points
    folder: str  # for TRL's reference model
    facts: dict[str, object]  # what the points depend on, except the settings of a run

    @property
    def models(self) -> ActorCritic:
        """The base policy, to sample from."""
        return ActorCritic(
            copy.deepcopy(self.base),
            self.tokenizer,
            precision=self.profile.ppo.precision,
            max_new_tokens=self.profile.ppo.max_new_tokens,
        )


def task_of(course: Course, folder: str, held_out_prompts: int) -> Task:
    """The prompts, the judge and the models of notebook 02."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings, device = course.profile.policy, course.profile.device
    data = load_feedback(offline=course.profile.offline)
    source = {"profile": course.profile.name, "data": fingerprint(data)}
    rewarding = course.require("01_phobert_reward_model", inputs=source)
    reward = SentimentReward.load(rewarding, device, settings.reward_kind, settings.reward_cap)
    reference = course.require(course.notebook, inputs=source) / "reference"
    tokenizer = AutoTokenizer.from_pretrained(reference)
    base = AutoModelForCausalLM.from_pretrained(reference).to(device).eval()
    room = positions(base) - course.profile.ppo.max_new_tokens

    def first_words(split: str) -> list[str]:
        words = [" ".join(s.split()[: settings.prompt_words]) for s in data[split]["sentence"]]
        return cut_texts(tokenizer, words, room, "prompts")

    beginnings = {split: first_words(split) for split in ("train", "validation", "test")}
    held_out = unseen(beginnings["test"], beginnings["train"])[:held_out_prompts]
    judged = ("validation", "test")
    judge = independent_judge(
        *judged_rows(
            [text for split in judged for text in data[split]["sentence"]],
            [label for split in judged for label in data[split]["sentiment"]],
            [prompt for split in judged for prompt in beginnings[split]],
            held_out,
        )
    )
    beta = course.profile.ppo.kl_coef

    def frontier(seed: int) -> Frontier:
        return Frontier(judge, reward, held_out, beta, draws=TEXTS, seed=seed)

    facts = {
        **source,
        "policy": content_hash(reference),
        "reward": content_hash(rewarding / "model"),
        "reward_kind": settings.reward_kind,
        "reward_cap": settings.reward_cap,
        "held_out_prompts": len(held_out),
        "draws": TEXTS,
        "beta": beta,
    }
    given = (course.profile, base, tokenizer, reward, beginnings["train"], frontier, folder)
    return Task(*given, facts)


# --- The methods ---------------------------------------------------------------------------------


def base_and_best_of_n(task: Task, samples: int) -> dict:
    """The base policy, the optimum of J, and the points of best-of-n."""
    frontier, models = task.frontier(0), task.models
    texts = [models.generate(frontier.prompts, seed=100 + k) for k in range(samples)]
    rewards = np.stack([np.asarray(task.reward(part), dtype=float) for part in texts])
    negative = np.stack([frontier.judge.predict(part) == NEGATIVE for part in texts])
    points = [add_best_of_n(frontier, texts, rewards, n) for n in BEST_OF if n <= samples]
    optimum = {
        str(n): float(best_objective(rewards[:n], frontier.beta).mean())
        for n in sorted({samples // 4, samples // 2, samples})
        if n
    }
    return {
        "base_samples": samples,
        "base": {
            "share": float(negative.mean()),
            "negative_rate": float((rewards != 0).mean()),
            "objective": float(rewards.mean()),
        },
        "base_rates": ((negative.sum(0) + 0.5) / (samples + 1)).round(4).tolist(),
        "objective_optimum": optimum[str(samples)],
        "objective_optimum_by_samples": optimum,  # how much the number of samples matters
        "ceiling": {
            "n": points[-1].step,
            "negative_rate": points[-1].negative_rate,
            "share": points[-1].share,
        },
        "best_of_n": frontier.rows(),
    }


def train_ppo(task: Task, config: PPOConfig, method: str = "PPO", *, whole: bool) -> Frontier:
    """PPO's base point and its last one; `whole`: also those between, and the scaled policies."""
    frontier = task.frontier(config.seed)
    policy = copy.deepcopy(task.base)
    trainer = PPOTrainer(policy, task.tokenizer, task.reward, task.prompts, config, progress=False)
    first = config.value_updates
    on_the_way = {first + done for done in (1, 2, 4, 8, *range(16, config.updates, 16))}
    marks = {config.updates} | (on_the_way if whole else set())
    frontier.add(method, trainer.models)

    def look(metrics: dict) -> None:
        if metrics["update"] in marks:
            frontier.add(method, trainer.models, metrics["update"])

    trainer.on_update = look
    trainer.train()
    if whole:
        add_scaled_before_the_end(frontier, trainer.models, method)
    return frontier


def add_scaled_before_the_end(frontier: Frontier, models: ActorCritic, method: str) -> None:
    """Add the scaled policies; the point of the trained policy itself stays the last one."""
    end = frontier.points.pop()
    add_scaled(frontier, models, method)
    frontier.points.append(end)


def train_group(task: Task, method: str, run: GroupRun, seed: int) -> Frontier:
    """The points of TRL's RLOO or GRPO, the base point first, and of its scaled policies."""
    frontier, models = task.frontier(seed), task.models
    frontier.add(method, models)
    set_seed(seed)
    given = (method, models, task.reward, task.prompts, run, task.profile)
    train_group_method(*given, task.folder, frontier, seed)
    add_scaled_before_the_end(frontier, models, method)
    return frontier


def train_control(task: Task, run: ControlRun, episodes: int, seed: int) -> Frontier:
    """The points of SFT on the base policy's negative texts, the base point first."""
    frontier, models, new = task.frontier(seed), task.models, task.profile.ppo.max_new_tokens
    frontier.add(CONTROL, models)
    prompts, drawn = models.encode(task.prompts), []
    for number in range(episodes // run.batch_size):
        chosen = sampling.prompt_rows(len(prompts), run.batch_size, seed, number)
        draws = torch.rand((run.batch_size, new), generator=generator(seed, DRAWS, number))
        rollout = models.sample([prompts[row] for row in chosen], draws)
        negative = score_texts(task.reward, models.texts(rollout)).nonzero().flatten()
        if len(negative):
            drawn.append((rollout, negative.to(models.device)))
    weights = models.policy.parameters()
    optimizer = torch.optim.AdamW(weights, lr=run.learning_rate, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, max(1, run.epochs * len(drawn)))
    for epoch in range(run.epochs):
        order = torch.randperm(len(drawn), generator=generator(seed, SHUFFLES, epoch))
        for rollout, negative in (drawn[number] for number in order):
            optimizer.zero_grad()
            logps, _ = models.logps_and_values(rollout, negative)
            (-logps.mean()).backward()
            optimizer.step()
            rate.step()
        frontier.add(CONTROL, models, epoch + 1)
    return frontier


# --- All runs, one by one ------------------------------------------------------------------------


def group_run(run: PPORun) -> GroupRun:
    """RLOO's and GRPO's settings: as many episodes and optimiser steps per batch as PPO has."""
    sizes = (run.updates, run.batch_size, run.minibatch_size, GENERATIONS)
    return GroupRun(*sizes, run.learning_rate)


def longer(run: PPORun) -> dict:
    """PPO with four times the updates of the policy; the updates of the values alone stay."""
    updates = run.value_updates + 4 * (run.updates - run.value_updates)
    settings = asdict(replace(run, updates=updates))
    return {"episodes": updates * run.batch_size, "settings": settings}


def plan(profile: Profile, seeds: Sequence[int]) -> Iterator[dict]:
    """What is to be run: method, seed and settings."""
    episodes = profile.ppo.updates * profile.ppo.batch_size
    grouped = {"episodes": episodes, "settings": asdict(group_run(profile.ppo))}
    control = asdict(ControlRun(profile.ppo.batch_size))
    found = {
        "PPO": {"episodes": episodes, "settings": asdict(profile.ppo)},
        "RLOO": grouped,
        "GRPO": grouped,
        CONTROL: {"episodes": episodes, "settings": control},
        LONGER: longer(profile.ppo),
    }
    for method, row in found.items():
        for seed in seeds:
            yield {"method": method, "seed": seed} | row


def train(task: Task, planned: dict) -> Frontier:
    """One planned run of a method."""
    method, settings, seed = planned["method"], planned["settings"], planned["seed"]
    if method in ("PPO", LONGER):
        config = PPOConfig(seed=seed, **settings)
        return train_ppo(task, config, method, whole=method == "PPO")
    if method == CONTROL:
        return train_control(task, ControlRun(**settings), planned["episodes"], seed)
    return train_group(task, method, GroupRun(**settings), seed)


def run_all(
    task: Task,
    out: Path,
    machine: dict,  # machine and versions, for the record
    order: Sequence[dict],  # the planned runs
    train: Callable[[Task, dict], Frontier] = train,
    *,
    samples: int = max(BEST_OF),
    only: Sequence[str] = (),
    replace: bool = False,
) -> dict:
    """Every run that `out` does not have yet; `out` is written after each of them."""
    former = continued(out, task.facts, replace)
    result = {**task.facts, **machine, "settings": asdict(task.profile.ppo)}
    result |= base_and_best_of_n(task, samples)
    row = {"method": "best-of-n", "seed": 0, "episodes": 0, "settings": {}}
    row["points"] = result.pop("best_of_n")
    done = {identity(run): run for run in former.get("runs", [])}
    for planned in order:
        run = done.get(identity(planned))
        if run is None:
            if only and name_of(planned) not in only:
                continue
            began = time.perf_counter()
            points = train(task, planned).rows()
            run = planned | {"seconds": round(time.perf_counter() - began, 1), "points": points}
            done[identity(planned)] = run
        known = [done[identity(each)] for each in order if identity(each) in done]
        result["runs"] = [finished(each, result) for each in (row, *known)]
        write(result, out)
        last = run["points"][-1]
        print(
            f"{name_of(run)}, seed {run['seed']}: {last['share']:.1%} by the judge "
            f"at {last['kl']:.2f} nats, J = {last['objective']:.3f}, gain {run['gain']:.0%}",
            flush=True,
        )
    return result


def name_of(run: dict) -> str:
    """The changed setting of an ablation, or the method."""
    return run.get("arm") or run["method"]


def finished(run: dict, result: dict) -> dict:
    """The run with the share of the possible gain and the least KL of its last point."""
    last = run["points"][-1]
    run["gain"] = gain(last["objective"], result["base"]["objective"], result["objective_optimum"])
    run["least_kl"] = minimal_kl(result["base_rates"], last["share"])
    return run


def identity(run: dict) -> str:
    """Two runs with the same identity give the same points."""
    parts = [name_of(run), run["seed"], run["episodes"], run["settings"]]
    return json.dumps(parts, sort_keys=True)


def write(result: dict, out: Path) -> None:
    """Write the JSON completely or not at all."""
    part = out.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(part, out)


def smaller(profile: Profile) -> Profile:
    """A profile with the least training, to check that the program runs."""
    ppo = replace(
        profile.ppo,
        updates=2,
        batch_size=32,
        minibatch_size=16,
        value_updates=min(1, profile.ppo.value_updates),
    )
    return replace(profile, ppo=ppo)


def main(
    plan: Callable[[Profile, Sequence[int]], Iterator[dict]] = plan,
    train: Callable[[Task, dict], Frontier] = train,
    program: str = __file__,
    description: str = __doc__,
) -> None:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(program).with_suffix(".json"))
    parser.add_argument(
        "--quick", action="store_true", help="least training, to check that it runs"
    )
    parser.add_argument("--only", nargs="+", default=(), help="names of methods or arms")
    parser.add_argument(
        "--replace", action="store_true", help="begin anew if the JSON has other models or data"
    )
    asked = parser.parse_args()
    course = start("02")
    with tempfile.TemporaryDirectory() as folder:
        prompts = 20 if asked.quick else course.profile.policy.held_out_prompts
        task, seeds, samples = task_of(course, folder, prompts), SEEDS, max(BEST_OF)
        if asked.quick:
            task.profile, seeds, samples = smaller(task.profile), (1,), 4
        facts = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {course.profile.device}",
            **{key: value for key, value in course.facts().items() if key.endswith("_version")},
        }
        order = list(plan(task.profile, seeds))
        asked_for = {"samples": samples, "only": asked.only, "replace": asked.replace}
        run_all(task, asked.out, facts, order, train, **asked_for)


if __name__ == "__main__":
    main()

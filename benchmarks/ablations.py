"""PPO with one setting changed at a time, with three seeds. Writes ablations.json.

Models, prompts and measures are those of `frontier.py`. PPO itself is trained again with the same
seeds on the same machine. Each arm changes one setting and what goes with it: a shared trunk keeps
the weight of the value loss, and without value updates the policy has the updates of both. The runs
are made seed by seed: a program that was stopped has whole rounds, and continues with the next run.

    python benchmarks/ablations.py            # hours
    python benchmarks/ablations.py --quick --out /tmp/ablations.json
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import frontier
from benchmarks.frontier import Task, train_ppo
from utils.course.profiles import Profile
from utils.judge.frontier import Frontier
from utils.ppo.trainer import PPOConfig

UNCLIPPED = 1e9  # a clip range that no ratio and no value leaves


@dataclass(frozen=True)
class Arm:
    """PPO with some settings changed: one factor, compared with another arm."""

    name: str
    changes: dict[str, object]
    against: str = ""  # the arm that differs in one factor; "": PPO itself


# The exact KL excludes whitening, and a shared trunk excludes value updates: these two arms have
# two changes, and they are compared with the arm that has the first of them.
SAMPLED = {"kl_estimator": "k1"}
NOT_INFORMED = {"value_updates": 0}
ARMS = (
    Arm("sampled KL", SAMPLED),
    Arm("no value updates", NOT_INFORMED),
    Arm(
        "shared value head",
        NOT_INFORMED | {"shared_value_head": True, "value_learning_rate": None},
        "no value updates",
    ),
    Arm("lam 1", {"lam": 1.0}),
    Arm("no clip", {"clip_range": UNCLIPPED, "value_clip_range": None}),
    Arm("whitening", SAMPLED | {"whiten_advantages": True}, "sampled KL"),
    Arm("no anneal", {"anneal": False}),
)


def plan(profile: Profile, seeds: Sequence[int]) -> Iterator[dict]:
    """What is to be run: for each seed PPO itself, and PPO with one setting changed."""
    run = asdict(profile.ppo)
    row = {"method": "PPO", "episodes": profile.ppo.updates * profile.ppo.batch_size}
    for seed in seeds:
        yield row | {"arm": "", "against": "", "seed": seed, "settings": run}
        for arm in ARMS:
            settings = run | arm.changes
            if asdict(PPOConfig(**settings)) == asdict(PPOConfig(**run)):
                continue  # this profile has the arm's settings already
            names = {"arm": arm.name, "against": arm.against}
            yield row | names | {"seed": seed, "settings": settings}


def train(task: Task, planned: dict) -> Frontier:
    """One planned run; only its beginning and its end are measured."""
    return train_ppo(task, PPOConfig(seed=planned["seed"], **planned["settings"]), whole=False)


if __name__ == "__main__":
    frontier.main(plan, train, __file__, __doc__)

"""benchmarks/frontier.py: what it plans, that it runs at the smallest size, and that it resumes."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks import frontier as program
from tests.helpers import tiny_ppo
from utils.course.profiles import TABLE
from utils.judge import frontier as frontier_module
from utils.judge.frontier import Frontier, recorded
from utils.ppo.trainer import PPOConfig

LAB = TABLE["lab"]
NEW = {  # a PPO with every setting that an ablation takes away
    "kl_estimator": "exact",
    "whiten_advantages": False,
    "shared_value_head": False,
    "value_learning_rate": 1e-3,
    "value_updates": 1,
    "value_lam": 1.0,
    "lam": 0.7,
    "anneal": True,
}


class Judge:
    """Classifies a text with the word w5 as negative."""

    def predict(self, texts):
        return np.array([0 if "w5" in text.split() else 2 for text in texts])


def w5(texts):
    return [float("w5" in text.split()) for text in texts]


def profile():
    small = program.smaller(replace(LAB, ppo=replace(LAB.ppo, **NEW, max_new_tokens=6)))
    return replace(small, group=replace(small.group, batch_size=16, generations=4))


@pytest.fixture
def task(tmp_path):
    prompts = list(tiny_ppo.PROMPTS)
    return program.Task(
        profile(),
        tiny_ppo.policy(),
        tiny_ppo.tokenizer(),
        w5,
        prompts,
        lambda seed: Frontier(Judge(), w5, prompts[:3], 0.3, draws=2, seed=seed),
        str(tmp_path / "group"),
        {"profile": "lab", "data": "abc", "policy": "p", "beta": 0.3},
    )


def test_every_method_has_the_same_episodes_and_three_seeds():
    small = profile()
    runs = list(program.plan(small, program.SEEDS))
    assert {run["episodes"] for run in runs} == {small.ppo.updates * small.ppo.batch_size}
    for name in (
        "PPO",
        "RLOO",
        "GRPO",
        program.CONTROL,
        *(arm.name for arm in program.ARMS),
    ):
        assert sum((run["arm"] or run["method"]) == name for run in runs) == 3


def test_an_arm_differs_from_what_it_is_compared_with_in_one_factor():
    """The values' own learning rate goes with their trunk, and their clip with the policy's."""
    run = asdict(profile().ppo)
    together = ({"shared_value_head", "value_learning_rate"}, {"clip_range", "value_clip_range"})
    changes = {"": {}} | {arm.name: arm.changes for arm in program.ARMS}
    for arm in program.ARMS:
        one = asdict(PPOConfig(**run | arm.changes))
        other = asdict(PPOConfig(**run | changes[arm.against]))
        differs = {name for name in one if one[name] != other[name]}
        assert len(differs) == 1 or differs in together, arm.name


def test_an_arm_that_changes_nothing_is_left_out():
    plain = replace(LAB, ppo=replace(LAB.ppo, **NEW | {"lam": 1.0}))
    assert "lam 1" not in {run["arm"] for run in program.plan(plain, (1,))}


def test_the_control_learns_the_negative_texts_and_no_others(task):
    run = program.ControlRun(batch_size=32, epochs=3, learning_rate=3e-3)
    start, *_, end = program.train_control(task, run, 512, 1).points
    assert (start.step, end.step, start.kl) == (0, 3, pytest.approx(0, abs=1e-6))
    assert end.negative_rate > start.negative_rate + 0.2
    task.reward = lambda texts: [0.0] * len(texts)  # nothing is negative: nothing is learned
    *_, same = program.train_control(task, run, 64, 1).points
    assert same.kl == pytest.approx(0, abs=1e-6)


def test_it_runs_and_an_interrupted_program_continues(task, tmp_path, monkeypatch):
    out = tmp_path / "frontier.json"
    program.run_all(task, out, {}, seeds=(1,), samples=4, only=("PPO", "no clip"))
    first = json.loads(out.read_text(encoding="utf-8"))
    assert [run["arm"] or run["method"] for run in first["runs"]] == ["best-of-n", "PPO", "no clip"]
    trained = []

    def watched(task, config, **given):
        trained.append(config)
        return frontier_of(task, config, **given)

    frontier_of = program.train_ppo
    monkeypatch.setattr(program, "train_ppo", watched)
    found = program.run_all(task, out, {}, seeds=(1,), samples=4, only=("PPO", "no anneal", "GRPO"))
    assert [config.anneal for config in trained] == [False]
    names = [run["arm"] or run["method"] for run in found["runs"]]
    assert names == ["best-of-n", "PPO", "GRPO", "no clip", "no anneal"]
    assert json.loads(out.read_text(encoding="utf-8")) == json.loads(json.dumps(found))
    for run in found["runs"]:
        assert {"kl", "share", "objective", "intervals"} <= set(run["points"][-1])
        assert np.isfinite([run["gain"], run["least_kl"]]).all()
        assert run["points"][-1]["method"] == run["method"]
    grouped = [point for point in found["runs"][2]["points"] if point["method"] == "GRPO"]
    assert [point["step"] for point in grouped] == [0, 1, 2, 3, 4]
    first_step, last_step = (point["step"] for point in found["runs"][-1]["points"])
    assert first_step == 0 < last_step  # an ablation is measured before and after

    monkeypatch.setattr(frontier_module, "BENCHMARKS", tmp_path)
    shown = recorded("lab", "abc")["points"]
    wanted = {"best-of-n", "PPO", "PPO, scaled", "GRPO", "GRPO, scaled"}
    assert {point.method for point in shown} == wanted

    trained.clear()
    task.facts["beta"] = 0.2  # J has another meaning: everything is made again
    program.run_all(task, out, {}, seeds=(1,), samples=4, only=("PPO",))
    assert len(trained) == 1


def test_the_ablations_are_made_round_by_round():
    order = [run["seed"] for run in program.plan(profile(), (1, 2)) if run["arm"]]
    assert order == sorted(order) and order.count(1) == order.count(2) > 1

"""benchmarks/frontier.py and ablations.py: what they plan, that they run and that they resume."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks import ablations
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
    return replace(small, ppo=replace(small.ppo, updates=4, batch_size=16, minibatch_size=8))


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
    for name in ("PPO", "RLOO", "GRPO", program.CONTROL, program.LONGER):
        assert sum(run["method"] == name for run in runs) == 3
    equal = [run["episodes"] for run in runs if run["method"] != program.LONGER]
    assert set(equal) == {small.ppo.updates * small.ppo.batch_size}


def test_the_longer_run_has_more_updates_of_the_policy_and_no_more_of_the_values_alone(task):
    run = task.profile.ppo
    (row,) = (row for row in program.plan(task.profile, (1,)) if row["method"] == program.LONGER)
    config = PPOConfig(**row["settings"])
    assert config.updates - config.value_updates == 4 * (run.updates - run.value_updates) > 0
    assert config == replace(PPOConfig(**asdict(run)), updates=config.updates)
    first, last = program.train(task, row).points
    assert (first.step, last.step) == (0, config.updates)
    assert {first.method, last.method} == {program.LONGER}


def test_an_arm_differs_from_what_it_is_compared_with_in_one_factor():
    """The values' own learning rate goes with their trunk, and their clip with the policy's."""
    run = asdict(profile().ppo)
    together = ({"shared_value_head", "value_learning_rate"}, {"clip_range", "value_clip_range"})
    changes = {"": {}} | {arm.name: arm.changes for arm in ablations.ARMS}
    for arm in ablations.ARMS:
        one = asdict(PPOConfig(**run | arm.changes))
        other = asdict(PPOConfig(**run | changes[arm.against]))
        differs = {name for name in one if one[name] != other[name]}
        assert len(differs) == 1 or differs in together, arm.name


def test_an_arm_that_changes_nothing_is_left_out():
    plain = replace(LAB, ppo=replace(LAB.ppo, **NEW | {"lam": 1.0}))
    assert "lam 1" not in {run["arm"] for run in ablations.plan(plain, (1,))}


def test_the_control_learns_the_negative_texts_and_no_others(task):
    run = program.ControlRun(batch_size=32, epochs=3, learning_rate=3e-3)
    start, *_, end = program.train_control(task, run, 512, 1).points
    assert (start.step, end.step, start.kl) == (0, 3, pytest.approx(0, abs=1e-6))
    assert end.negative_rate > start.negative_rate + 0.2
    task.reward = lambda texts: [0.0] * len(texts)  # nothing is negative: nothing is learned
    *_, same = program.train_control(task, run, 64, 1).points
    assert same.kl == pytest.approx(0, abs=1e-6)


def test_it_runs_and_an_interrupted_program_continues(task, tmp_path, monkeypatch):
    out, order = tmp_path / "frontier.json", list(program.plan(task.profile, (1,)))
    program.run_all(task, out, {}, order, samples=4, only=("PPO",))
    first = json.loads(out.read_text(encoding="utf-8"))
    assert [run["method"] for run in first["runs"]] == ["best-of-n", "PPO"]
    trained = []

    def watched(task, planned):
        trained.append(planned["method"])
        return program.train(task, planned)

    found = program.run_all(task, out, {}, order, watched, samples=4, only=("PPO", "GRPO"))
    assert trained == ["GRPO"]
    assert [run["method"] for run in found["runs"]] == ["best-of-n", "PPO", "GRPO"]
    assert json.loads(out.read_text(encoding="utf-8")) == json.loads(json.dumps(found))
    for run in found["runs"]:
        assert {"kl", "share", "objective", "intervals"} <= set(run["points"][-1])
        assert np.isfinite([run["gain"], run["least_kl"]]).all()
        assert run["points"][-1]["method"] == run["method"]
    grouped = [point for point in found["runs"][2]["points"] if point["method"] == "GRPO"]
    assert [point["step"] for point in grouped] == [0, 1, 2, 3, 4]

    monkeypatch.setattr(frontier_module, "BENCHMARKS", tmp_path)
    shown = recorded("lab", "abc")["points"]
    wanted = {"best-of-n", "PPO", "PPO, scaled", "GRPO", "GRPO, scaled"}
    assert {point.method for point in shown} == wanted
    assert recorded("lab", "abc", "ablations") == recorded("lab", "other data") == {}

    trained.clear()
    before = out.read_text(encoding="utf-8")
    task.facts["beta"] = 0.2  # J has another meaning
    with pytest.raises(SystemExit, match="measured with another beta: move it away"):
        program.run_all(task, out, {}, order, watched, samples=4, only=("PPO",))
    assert trained == [] and out.read_text(encoding="utf-8") == before
    program.run_all(task, out, {}, order, watched, samples=4, only=("PPO",), replace=True)
    assert trained == ["PPO"]


def test_the_ablations_run_each_in_every_round(task, tmp_path):
    order = list(ablations.plan(task.profile, (1, 2)))
    seeds = [run["seed"] for run in order]
    assert seeds == sorted(seeds)
    for seed in (1, 2):
        names = [program.name_of(run) for run in order if run["seed"] == seed]
        assert names == ["PPO", *(arm.name for arm in ablations.ARMS)]
    out, chosen = tmp_path / "ablations.json", ("PPO", "no clip")
    found = program.run_all(task, out, {}, order, ablations.train, samples=4, only=chosen)
    made = [(program.name_of(run), run["seed"]) for run in found["runs"]]
    assert made == [("best-of-n", 0), ("PPO", 1), ("no clip", 1), ("PPO", 2), ("no clip", 2)]
    for run in found["runs"][1:]:
        first, last = (point["step"] for point in run["points"])
        assert first == 0 < last  # each run is measured before and after

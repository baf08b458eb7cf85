"""TRL 1.12's PPOTrainer gives the same advantages, losses and gradients for the same rollouts."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from benchmarks.ppo import fetch_trl
from tests.helpers import tiny_ppo, warm
from utils import losses, ppo
from utils.ppo import sampling

ROOT = Path(__file__).resolve().parents[2]
EPISODES, LENGTH = 10, 6


@pytest.fixture(scope="module")
def trl_folder():
    try:
        return fetch_trl()
    except RuntimeError as error:
        pytest.skip(f"TRL 1.12.0 cannot be had: {error}")


def episodes(ends: bool) -> list[tuple[list[int], list[int]]]:
    """Prompts of several lengths, each its own; responses that end early or not at all."""
    numbers = torch.Generator().manual_seed(2)
    found = []
    for row in range(EPISODES):
        prompt = [2 + row, *torch.randint(2, 40, (row % 4,), generator=numbers).tolist()]
        response = torch.randint(2, 40, (LENGTH,), generator=numbers).tolist()
        if ends and row % 3:
            response[row % LENGTH] = tiny_ppo.END
        found.append((prompt, response))
    return found


SETTINGS = {  # of whole updates; the names are the same in TRL and here
    "lam": {"lam": 0.95},
    "k3": {"kl_estimator": "k3", "gamma": 0.9, "lam": 0.5, "missing_eos_penalty": 1.0},
    "whitened": {"whiten_rewards": True, "lam": 1.0},
}
CASES = {
    **{name: {"settings": same, "temperature": 0.8} for name, same in SETTINGS.items()},
    "moved": {"noise": 1.0, "settings": {"lam": 0.95}},
    # TRL pays the score one token after the end, we pay it at the end: with λ = γ = 1 the
    # advantages are the same; its value loss counts that extra token, so it is left out.
    "ends": {"ends": True, "settings": {"lam": 1.0, "vf_coef": 0.0, "missing_eos_penalty": 0.7}},
}


@pytest.fixture(scope="module")
def through_trl(trl_folder, tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """What TRL computes in each case, all in one process."""
    out = tmp_path_factory.mktemp("trl")
    usual = {"noise": 0.0, "temperature": 1.0, "ends": False}
    cases = {name: usual | case for name, case in CASES.items()}
    for case in cases.values():
        case["episodes"] = episodes(case["ends"])
    (out / "cases.json").write_text(json.dumps(cases))
    worker = ROOT / "tests/helpers/trl_ppo_worker.py"
    command = [sys.executable, worker, out / "cases.json", out]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (trl_folder, ROOT)))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: load_file(out / f"{name}.safetensors") for name in CASES}


def our_trainer(
    found: dict[str, torch.Tensor], **changes
) -> tuple[ppo.PPOTrainer, sampling.Rollout]:
    """Our trainer with TRL's models, and the rollout that TRL was given."""
    settings = {
        "batch_size": EPISODES,
        "minibatch_size": EPISODES,
        "epochs": 1,
        "max_grad_norm": 1e9,
        "shared_value_head": False,
        "kl_coef": 0.05,
    }
    trainer = tiny_ppo.trainer(
        settings | changes, tiny_ppo.drifted(tiny_ppo.policy()), reference=tiny_ppo.policy()
    )
    with torch.no_grad():
        trainer.models.critic["head"].weight.copy_(found["score.weight"])
    tokens = found["tokens"]
    mask = losses.up_to_end(tokens[:, -LENGTH:], tiny_ppo.END)
    attention = torch.cat([tokens[:, :-LENGTH] != 1, mask], 1)
    ended = (tokens[:, -LENGTH:] == tiny_ppo.END).any(1)
    return trainer, sampling.Rollout(tokens.masked_fill(~attention, 1), attention, mask, ended)


def same_gradients(trainer: ppo.PPOTrainer, found: dict[str, torch.Tensor], value: bool) -> None:
    for name, parameter in trainer.models.policy.named_parameters():
        assert_close(parameter.grad, found[f"policy.{name}"], atol=1e-5, rtol=1e-4)
    if value:
        for name, parameter in trainer.models.critic["trunk"].named_parameters():
            theirs = found[f"value.transformer.{name}"]
            assert_close(parameter.grad, theirs, atol=1e-5, rtol=1e-4)
        theirs = found["value.score.weight"]
        assert_close(trainer.models.critic["head"].weight.grad, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_whole_update_equals_trl(name, through_trl):
    found = through_trl[name]
    trainer, rollout = our_trainer(found, temperature=0.8, **SETTINGS[name])
    experience = trainer.experience(rollout)
    assert_close(experience.logps, found["old_logps"].squeeze(-1), atol=1e-5, rtol=1e-5)
    assert_close(experience.advantages, found["advantages"], atol=1e-5, rtol=1e-5)
    if "rewards" in found:
        assert_close(experience.rewards, found["rewards"], atol=1e-5, rtol=1e-5)
    metrics = trainer.update(experience)
    assert metrics["policy_loss"] == pytest.approx(found["policy_loss"].item(), abs=1e-5)
    assert metrics["value_loss"] == pytest.approx(found["value_loss"].item(), abs=1e-5)
    same_gradients(trainer, found, value=True)


def test_clipping_equals_trl_when_the_policy_has_moved(through_trl):
    found = through_trl["moved"]
    trainer, rollout = our_trainer(found)
    experience = trainer.experience(rollout)
    old_logps = found["old_logps"].squeeze(-1)
    kl = old_logps - experience.reference_logps
    rewards = losses.per_token_rewards(kl, experience.scores, rollout.mask, 0.05)
    advantages, returns = losses.gae(rewards, experience.values, lam=0.95)
    assert_close(advantages, found["raw_advantages"], atol=1e-5, rtol=1e-5)
    advantages = losses.masked_whiten(advantages, rollout.mask)
    assert_close(advantages, found["advantages"], atol=1e-5, rtol=1e-5)
    moved = dataclasses.replace(
        experience, logps=old_logps, rewards=rewards, advantages=advantages, returns=returns
    )
    metrics = trainer.update(moved)
    assert 0.2 < metrics["clip_fraction"] < 1
    assert metrics["policy_loss"] == pytest.approx(found["policy_loss"].item(), abs=1e-5)
    assert metrics["value_loss"] == pytest.approx(found["value_loss"].item(), abs=1e-5)
    same_gradients(trainer, found, value=True)


def test_responses_that_end_early_equal_trl(through_trl):
    found = through_trl["ends"]
    trainer, rollout = our_trainer(found, lam=1.0, value_coef=0.0, missing_eos_penalty=0.7)
    assert rollout.ended.any() and not rollout.ended.all()
    experience = trainer.experience(rollout)
    theirs = found["advantages"] * rollout.mask
    assert_close(experience.advantages, theirs, atol=1e-5, rtol=1e-5)
    metrics = trainer.update(experience)
    assert metrics["policy_loss"] == pytest.approx(found["policy_loss"].item(), abs=1e-5)
    same_gradients(trainer, found, value=False)


def test_the_benchmark_runs(trl_folder, tmp_path):
    out = tmp_path / "ppo.json"
    environment = os.environ | warm.PLAIN
    python = warm.python(environment)
    command = [python, ROOT / "benchmarks/ppo.py", "--quick", "--out", out]
    environment |= {"PYTHON_EXEC": python}  # what the program starts its memory runs with
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(out.read_text())
    for size in report["sizes"]:
        for method in ("ours", "trl", "naive"):
            assert size[f"{method}_episodes_per_second"] > 0
        assert size["ratio_to_trl"] > 0 and size["ratio_to_naive"] > 0
        assert size["ours_peak_mb"] >= 0 and size["trl_peak_mb"] >= 0
    assert report["versions"]["trl"] == "1.12.0"
    assert str(ROOT) not in out.read_text()

"""Two processes under `accelerate launch` do what one process does with the same global batch."""

import json
from pathlib import Path

import pytest

from tests.helpers import tiny_ppo
from tests.helpers.launching import finished, launched

WORKER = Path(tiny_ppo.__file__)


EXACT = {  # the exact KL, and values that are trained first, by themselves
    "kl_estimator": "exact",
    "whiten_rewards": False,
    "whiten_advantages": False,
    "shared_value_head": False,
    "value_learning_rate": 1e-2,
    "value_updates": 2,
    "value_lam": 1.0,
    "lam": 0.8,
}


def launch(out: Path, settings: dict, *options: str) -> dict:
    finished(launched([WORKER, out], *options, TINY_PPO=json.dumps(settings)), 300)
    return json.loads(out.read_text())


@pytest.mark.parametrize("settings", [{}, EXACT], ids=["sampled KL", "exact KL"])
def test_two_cpu_processes_equal_one(tmp_path, settings):
    one = launch(tmp_path / "one.json", settings)
    # --multi_gpu is how accelerate starts several local processes; without a GPU they use gloo
    accelerate = "--multi_gpu --num_processes 2 --num_machines 1"
    options = "--mixed_precision no --dynamo_backend no --main_process_port 0"
    two = launch(tmp_path / "two.json", settings, *accelerate.split(), *options.split())
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(one["history"]) == len(two["history"]) == 6
    for alone, together in zip(one["history"], two["history"], strict=True):
        for name in set(alone) - {"seconds"}:
            assert together[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-5), name
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-5)

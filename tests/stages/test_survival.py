"""Each training stage, killed again and again, ends where an uninterrupted run ends.

`make test` kills each stage three times (in a step, while saving, in a step), `make test-all` ten.
"""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import survival

TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}  # of the weights; seen: bit for bit


@pytest.mark.parametrize("kind", survival.STAGES)
def test_killed_again_and_again_the_losses_and_weights_are_those_of_a_whole_run(kind, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COURSE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, survival.__file__, kind, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [-signal.SIGKILL] * survival.KILLS + [0]
    whole, killed = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("whole", "killed"))
    assert whole["steps"] == killed["steps"] == survival.STEPS
    assert killed["losses"] == pytest.approx(whole["losses"], abs=1e-6)
    wanted, found = (load_file(tmp_path / f"{n}.safetensors") for n in ("whole", "killed"))
    assert wanted.keys() == found.keys()
    for name, weights in wanted.items():
        torch.testing.assert_close(found[name], weights, **TOLERANCE, msg=name)

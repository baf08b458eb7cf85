"""Each training stage, killed again and again, ends where an uninterrupted run ends.

`make test` kills each stage three times (in a step, while saving, in a step), `make test-all` ten.
"""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import survival
from tests.helpers.launching import finished, launched

TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}  # of the weights; seen: bit for bit


@pytest.mark.parametrize("kind", survival.STAGES)
def test_killed_again_and_again_the_losses_and_weights_are_those_of_a_whole_run(kind, tmp_path):
    program = [survival.__file__, kind, tmp_path]
    printed = finished(launched(program, COURSE_CACHE=str(tmp_path / "cache")), 900)
    ends = [-signal.SIGKILL] * survival.KILLS + [0]
    assert f"{survival.ENDS}{ends}" in printed.splitlines(), printed
    whole, killed = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("whole", "killed"))
    assert whole["steps"] == killed["steps"] == survival.STEPS
    assert killed["losses"] == pytest.approx(whole["losses"], abs=1e-6)
    wanted, found = (load_file(tmp_path / f"{n}.safetensors") for n in ("whole", "killed"))
    assert wanted.keys() == found.keys()
    for name, weights in wanted.items():
        torch.testing.assert_close(found[name], weights, **TOLERANCE, msg=name)

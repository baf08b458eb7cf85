"""Tests that need a GPU: the files inside_*.py run in a process with an emulated one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.course.paths import ROOT

HERE = Path(__file__).resolve().parent


def emulated(machine: str, **more: str) -> dict[str, str]:
    """The environment of a process that sees this machine's emulated GPU."""
    paths = [str(HERE / "startup"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "EMULATED_GPU": machine,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        **more,
    }


@pytest.mark.parametrize("machine", ["t4", "a100"])
def test_the_files_pass_inside(machine):
    files = sorted(HERE.glob("inside_*.py"))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", *files],
        env=emulated(machine, COURSE_PROFILE=machine),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    print(run.stdout.strip().splitlines()[-1])

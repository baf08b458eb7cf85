"""Tests that need a GPU: each file runs in a separate process with an emulated one."""

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
@pytest.mark.parametrize("file", sorted(path.name for path in HERE.glob("inside_*.py")))
def test_a_file_passes_inside(file, machine):
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", f"tests/gpu/{file}"],
        env=emulated(machine, COURSE_PROFILE=machine),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    print(run.stdout.strip().splitlines()[-1])

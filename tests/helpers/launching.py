"""Programs under `accelerate launch`, on CPU processes that communicate by gloo."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def launched(program: Sequence[str | Path], *options: str, **environment: str) -> subprocess.Popen:
    """Start a program under `accelerate launch` with these options, or directly without options."""
    launcher = ["-m", "accelerate.commands.launch", *options] if options else []
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, program)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen, seconds: float) -> str:
    """The output of a program, which must end without an error within this time."""
    printed, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, printed[-3000:]
    return printed

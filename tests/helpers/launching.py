"""Programs under `accelerate launch`, on CPU processes that communicate by gloo."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.helpers import warm


def launched(program: Sequence[str | Path], *options: str, **environment: str) -> subprocess.Popen:
    """Start a program under `accelerate launch` with these options, or directly without options."""
    launcher = ["-m", "accelerate.commands.launch", *options] if options else []
    environment = os.environ | warm.PLAIN | environment
    python = warm.python(environment)
    return subprocess.Popen(
        [python, *launcher, *map(str, program)],
        env=environment | {"PYTHON_EXEC": python},  # what the launcher starts its processes with
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen, seconds: float) -> str:
    """The output of a program, which must end without an error within this time."""
    printed, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, printed[-3000:]
    return printed

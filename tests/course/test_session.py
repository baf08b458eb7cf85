"""The memory of a training on a CPU."""

import ctypes
import platform
import subprocess
import sys

import pytest

from utils.course.session import keep_freed_memory

FAULTS = """
import random, resource, torch
from utils.course.session import keep_freed_memory
{call}
sizes = random.Random(0)
for number in range(40):  # steps of a training: tensors of 1 to 16 MB, all freed at the end
    if number == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step = [torch.zeros(sizes.randrange(2**18, 2**22)) for _ in range(12)]
    del step
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the memory is not glibc's")
def test_the_memory_of_a_step_is_kept_for_the_next_step():
    def faults(call: str) -> int:
        program = [sys.executable, "-c", FAULTS.format(call=call)]
        return int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)

    assert 10 * faults("keep_freed_memory()") < faults("")


@pytest.mark.parametrize("error", [TypeError, AttributeError, OSError])
def test_another_system_keeps_its_own_way(monkeypatch, error):
    def refused(name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refused)
    keep_freed_memory()

"""Python reads this file when it starts, if its folder is on PYTHONPATH: the switch from outside.

EMULATED_GPU names a machine of `tests.gpu.emulated_cuda.MACHINES`, EMULATED_GPU_MB a smaller
memory, EMULATED_GPU_LOG a file that receives one line per notebook cell with its peak memory. With
TINY_LESSONS=1 the notebooks take the smallest numbers that go through every cell.
"""

import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path

MACHINE = os.environ.get("EMULATED_GPU")


def _switch_on(_: object) -> None:
    from tests.gpu import cells, emulated_cuda

    megabytes = os.environ.get("EMULATED_GPU_MB")
    emulated_cuda.switch_on(
        emulated_cuda.MACHINES[MACHINE], int(float(megabytes) * 2**20) if megabytes else None
    )
    cells.watch()


def _with_triton(module: object) -> None:
    from tests.gpu import emulated_cuda

    emulated_cuda.with_triton(module)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function on a module as soon as it has been imported."""

    def __init__(self, calls: dict) -> None:
        self.calls = calls

    def find_spec(self, name: str, path: object, target: object = None) -> object:
        if name not in self.calls:
            return None
        call = self.calls.pop(name)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def then_call(module: object) -> None:
            execute(module)
            call(module)

        spec.loader.exec_module = then_call
        return spec


if MACHINE:
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    if os.environ.get("TINY_LESSONS") == "1":
        from tests.helpers import tiny_lessons

        tiny_lessons.shrink()
    calls = {"torch": _switch_on, "trl.kernels.chunked_logprob": _with_triton}
    sys.meta_path.insert(0, _AfterImport(calls))

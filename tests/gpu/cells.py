"""Record the emulated GPU memory of each notebook cell, from inside the kernel."""

import json
import os
import sys
import time
from pathlib import Path


def watch() -> None:
    """Write one line of JSON per cell to EMULATED_GPU_LOG, if this is a notebook's kernel."""
    if "ipykernel" not in sys.modules:
        return
    from IPython.core.interactiveshell import InteractiveShell

    if InteractiveShell.initialized():
        _register(InteractiveShell.instance())
        return
    prepare = InteractiveShell.init_events  # of a copied process: the shell is made later

    def then_register(shell: InteractiveShell) -> None:
        prepare(shell)
        _register(shell)

    InteractiveShell.init_events = then_register


def _register(shell: object) -> None:
    log = os.environ.get("EMULATED_GPU_LOG")
    if not log:
        return
    from tests.gpu.emulated_cuda import state

    began = time.perf_counter()

    def reset(*_: object) -> None:
        nonlocal began
        began = time.perf_counter()
        for memory in state.memory:
            memory.peak = memory.now

    def write(result: object) -> None:
        line = {
            "cell": result.execution_count or shell.execution_count - 1,
            "seconds": round(time.perf_counter() - began, 2),
            "peak": max(memory.peak for memory in state.memory),
            "kept": sum(memory.now for memory in state.memory),
        }
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    shell.events.register("pre_run_cell", reset)
    shell.events.register("post_run_cell", write)

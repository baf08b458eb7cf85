"""Record the emulated GPU memory of each notebook cell, from inside the kernel."""

import json
import time
from pathlib import Path


def watch(log: str | None) -> None:
    """Write one line of JSON per cell from now on, if this process is a notebook's kernel."""
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if shell is None or not log:
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

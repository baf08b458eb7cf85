"""Notebook kernels that begin with the libraries imported: copies of one prepared process.

A kernel of a test spends most of its time on imports, the same ones in every test. With `SHARED`
in its environment, a kernel is forked from a process that has imported LIBRARIES in the same
surroundings. The notebook, the course's own code and its settings start in the copy.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

SHARED = {"TESTS_SHARE_IMPORTS": "1"}
# matplotlib's backend is missing: it is imported by the first figure of a kernel
LIBRARIES = (
    "ipykernel.kernelapp",  # first: the emulated GPU looks for it
    *("torch", "torch.distributed.fsdp", "torch._inductor.compile_fx", "bitsandbytes", "peft"),
    *("transformers.trainer", "transformers.models.auto.modeling_auto"),
    *("transformers.models.auto.tokenization_auto", "datasets", "pandas", "underthesea", "gradio"),
    *("trl.trainer.sft_trainer", "trl.trainer.dpo_trainer", "scipy.stats", "sklearn.pipeline"),
    *("sklearn.feature_extraction.text", "sklearn.linear_model", "nbformat", "nbclient"),
    *("matplotlib.pyplot", "matplotlib.backends.backend_agg", "IPython.core.pylabtools"),
)
# what the libraries read while they are imported; a copy needs a process with the same values
READ_AT_IMPORT = ("HF_", "CUDA_", "EMULATED_GPU", "OMP_", "PYTHONPATH", "TINY_")
READ_LATER = ("EMULATED_GPU_LOG",)


# --- The prepared process ------------------------------------------------------------------------


def _become_kernel(command: list[str], environment: Mapping[str, str], folder: str) -> None:
    """Turn this copy into the process that `command` would have started."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    sys.modules["numpy"].random.seed()
    module, arguments = command[command.index("-m") + 1], command[command.index("-m") + 2 :]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def serve() -> None:
    """Import, then fork one kernel per line of standard input, and answer with its pid.

    A line `{"pid": …}` asks for an exit status, which is null as long as the kernel runs.
    """
    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # ipykernel reads it when it is imported
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # what ipykernel sets
    for name in LIBRARIES:
        importlib.import_module(name)
    assert "matplotlib_inline.backend_inline" not in sys.modules and threading.active_count() == 1
    gc.collect()
    gc.freeze()  # a kernel's collections need not visit what was imported here
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "pid" in asked:
            found, status = os.waitpid(asked["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if found else None
        else:
            answer = os.fork()
            if answer == 0:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                out.close()
                _become_kernel(**asked)
                return
            while os.getpgid(answer) != answer:  # jupyter_client sends signals to this group
                time.sleep(0.001)
        print(json.dumps(answer), file=out, flush=True)


# --- The tests' side -----------------------------------------------------------------------------


def _surroundings(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_IMPORT) and name not in READ_LATER
    }


class Prepared:
    """A process that has imported the libraries."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.lock, self.surroundings = threading.Lock(), _surroundings(environment)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.warm"],
            env=environment,
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n", "the libraries could not be imported"

    def ask(self, **question: object) -> int | None:
        """Send a line and return the answer."""
        with self.lock:
            print(json.dumps(question), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


class Kernel:
    """A copy, with what jupyter_client uses of subprocess.Popen."""

    stdin = stdout = stderr = None

    def __init__(self, prepared: Prepared, pid: int) -> None:
        self.prepared, self.pid, self.returncode = prepared, pid, None

    def poll(self) -> int | None:
        """The exit status; None as long as the kernel runs."""
        if self.returncode is None:
            self.returncode = self.prepared.ask(pid=self.pid)
        return self.returncode

    def wait(self) -> int | None:
        """Called by jupyter_client when `poll` has found the end."""
        return self.poll()

    def send_signal(self, number: int) -> None:
        """Send a signal to this process."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def kernels() -> Iterator[None]:
    """Within the block, kernels with SHARED in their environment are copies, where one can fork."""
    from jupyter_client.provisioning import local_provisioner

    usual = local_provisioner.launch_kernel
    latest: list[Prepared] = []  # at most one

    def launch(command: list[str], **more: object) -> object:
        env = more.get("env") or {}
        if not env.keys() >= SHARED.keys() or sys.platform != "linux":
            return usual(command, **more)
        if not latest or latest[0].surroundings != _surroundings(env):
            if latest:
                latest.pop().stop()
            latest.append(Prepared(env))
        pid = latest[0].ask(command=command, environment=env, folder=more["cwd"])
        return Kernel(latest[0], pid)

    local_provisioner.launch_kernel = launch
    try:
        yield
    finally:
        local_provisioner.launch_kernel = usual
        if latest:
            latest.pop().stop()


if __name__ == "__main__":
    serve()

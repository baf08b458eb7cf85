"""A Python that begins with the libraries imported: a copy of a process that has done so.

Many tests start a program or a notebook's kernel, which spends ten seconds on the same imports.
`python` returns a file that is started like `sys.executable`. It asks a process that has imported
LIBRARIES in the same surroundings for a copy, and the copy runs the program. The course's code and
its settings are loaded in the copy. Kernels with SHARED in their environment start so too.

A test of a start (its imports, no network, a new machine) needs the real Python.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

PLAIN = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # the surroundings of most programs
SHARED = {"TESTS_SHARE_IMPORTS": "1"}
# matplotlib's backend is missing: it is imported by the first figure of a kernel
LIBRARIES = (
    "ipykernel.kernelapp",  # first: the emulated GPU looks for it
    *("torch", "torch.distributed.fsdp", "torch._inductor.compile_fx", "bitsandbytes", "peft"),
    *("transformers.trainer", "transformers.models.auto.modeling_auto"),
    *("transformers.models.auto.tokenization_auto", "datasets", "pandas", "underthesea", "gradio"),
    *("trl.trainer.sft_trainer", "trl.trainer.dpo_trainer", "scipy.stats", "sklearn.pipeline"),
    *("sklearn.feature_extraction.text", "sklearn.linear_model"),
    *("matplotlib.pyplot", "matplotlib.backends.backend_agg", "IPython.core.pylabtools"),
)
# what the libraries read while they are imported; a copy needs a process with the same values
READ_AT_IMPORT = ("HF_", "CUDA_", "EMULATED_GPU", "OMP_", "PYTHONPATH", "TINY_")
READ_LATER = ("EMULATED_GPU_LOG",)
PASSED_ON = (signal.SIGINT, signal.SIGTERM)
KEPT = 2  # prepared processes per test worker; one takes about 700 MB


def _surroundings(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_IMPORT) and name not in READ_LATER
    }


# --- The prepared process ------------------------------------------------------------------------


def _run(command: list[str], environment: Mapping[str, str], folder: str) -> None:
    """Turn this copy into the process that Python would have started with these arguments."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    sys.modules["numpy"].random.seed()
    sys.executable = environment.get("PYTHON_EXEC", sys.executable)  # for a program that restarts
    sys.orig_argv = [sys.executable, *command]
    if command[0] == "-u":
        del command[0]
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)
    if command[0] == "-m":
        sys.argv, sys.path[0] = command[1:], folder
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = command, str(Path(command[0]).resolve().parent)
        runpy.run_path(command[0], run_name="__main__")


def _serve(address: str) -> None:
    """Import, then fork a copy per connection, and send the status with which it ended."""
    own = _surroundings(os.environ)
    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # ipykernel reads it when it is imported
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # what ipykernel sets
    for name in LIBRARIES:
        importlib.import_module(name)
    assert "matplotlib_inline.backend_inline" not in sys.modules and threading.active_count() == 1
    gc.collect()
    gc.freeze()  # a copy's collections need not visit what was imported here
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    running: dict[socket.socket, int] = {}
    while os.getppid() != 1:
        ready, _, _ = select.select([listening, *running], [], [], 0.02 if running else 1)
        for source in ready:
            if source is not listening:  # who asked for this copy was killed, or passes on a signal
                number = source.recv(1)
                os.kill(running[source], number[0] if number else signal.SIGKILL)
                if not number:
                    os.waitpid(running.pop(source), 0)
                    source.close()
                continue
            asking, _ = listening.accept()
            asked, streams, _, _ = socket.recv_fds(asking, 2**20, 3)
            asked = json.loads(asked)
            if _surroundings(asked["environment"]) != own:
                asking.sendall(b"other")
                asking.close()
            elif pid := os.fork():
                running[asking] = pid
            else:
                listening.close()
                for one in (asking, *running):
                    one.close()
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                    os.close(stream)
                _run(**asked)
                return
            for stream in streams:
                os.close(stream)
        for source, pid in [*running.items()]:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del running[source]
                with contextlib.suppress(BrokenPipeError):
                    source.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                source.close()


# --- The program that a test starts --------------------------------------------------------------


def _ask(address: str, command: list[str], real: str) -> int:
    """Have a copy run `command` with the streams of this process, and return its exit status.

    In other surroundings, and with options other than -u and -m, the real Python takes over.
    """
    program = next(word for word in command if word != "-u")
    if program == "-m" or not program.startswith("-"):
        asked = {"command": command, "environment": dict(os.environ), "folder": os.getcwd()}
        server = socket.socket(socket.AF_UNIX)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
        server.connect(address)
        socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: server.send(bytes([number])))
        status = server.recv(16)
        if status != b"other":
            return int(status or -signal.SIGKILL)  # empty: the prepared process has ended
    return os.execv(real, [real, *command])  # noqa: S606 - a list of arguments and no shell


def _main(address: str, real: str) -> None:
    status = _ask(address, sys.argv[1:], real)
    if status < 0:
        if -status in PASSED_ON:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


# --- The tests' side -----------------------------------------------------------------------------


class _Prepared:
    """A process that has imported the libraries, and a file that is started like Python."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.surroundings = _surroundings(environment)
        self.folder = Path(tempfile.mkdtemp(prefix="warm"))  # short: an address has 108 characters
        address, self.python = self.folder / "socket", self.folder / "python"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.warm", str(address)],
            env=environment,
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.DEVNULL,
        )
        program = f"#!{sys.executable} -IS\nimport runpy\nasks = runpy.run_path({__file__!r})\n"
        self.python.write_text(f"{program}asks['_main']({str(address)!r}, {sys.executable!r})\n")
        self.python.chmod(0o700)
        while not address.exists():
            assert self.process.poll() is None, "the libraries could not be imported"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)


_prepared: list[_Prepared] = []  # the one that was used last comes last


def python(environment: Mapping[str, str]) -> str:
    """A file that is started like `sys.executable`, for programs with this environment."""
    if sys.platform != "linux":
        return sys.executable
    for one in _prepared:
        if one.surroundings == _surroundings(environment):
            _prepared.remove(one)
            break
    else:
        if len(_prepared) == KEPT:
            _prepared.pop(0).stop()
        one = _Prepared(environment)
    _prepared.append(one)
    return str(one.python)


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Within the block, kernels with SHARED in their environment are copies; then all end."""
    from jupyter_client.provisioning import local_provisioner

    usual = local_provisioner.launch_kernel

    def launch(command: list[str], **more: object) -> object:
        environment = more.get("env") or {}
        if environment.keys() >= SHARED.keys():
            command = [python(environment), *command[1:]]
        return usual(command, **more)

    local_provisioner.launch_kernel = launch
    try:
        yield
    finally:
        local_provisioner.launch_kernel = usual
        while _prepared:
            _prepared.pop().stop()


if __name__ == "__main__":
    _serve(sys.argv[1])

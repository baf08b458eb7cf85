"""The process in which a student's code runs: `python -P -m tools.grading.student`.

It knows no judge. It runs a cell up to the exercise's call, and then answers calls of the student's
function, which come from the judge in the teacher's process. Its messages can therefore say what
the function returns, and nothing about whether that is right.
"""

import ast
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.grading import cells, sandbox, wire
from utils.course.paths import ROOT
from utils.exercises import checks

LONGEST_ERROR = 500  # characters
SOLUTIONS = "utils.exercises.notebook_"


class Channel:
    """Messages to the teacher's process and back, one per line."""

    def __init__(self) -> None:
        self._read, self._write = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # what a student prints goes nowhere
            os.dup2(null, stream)

    def send(self, **message: Any) -> None:
        """Send one message."""
        self._write.write(wire.line(message))
        self._write.flush()

    def receive(self) -> dict:
        """The next message; the process ends when there is none any more."""
        text = self._read.readline()
        if not text:
            os._exit(0)
        return wire.message(text)


def failure(error: BaseException) -> dict:
    """An error as the name of its class and its text."""
    try:
        text = str(error)[:LONGEST_ERROR]
    except BaseException:
        text = ""
    return {"name": type(error).__name__[:60], "text": text}


class Blocked:
    """Refuses the import of the judges and their solutions; it stands first in sys.meta_path."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """No module is found here, and this one is found nowhere."""
        if name.startswith(SOLUTIONS):
            raise ImportError(f"{name} cannot be imported while an exercise is graded")


class Student:
    """The student's attempt at one exercise."""

    def __init__(self, channel: Channel, solutions: dict[str, Callable]) -> None:
        self.channel, self.solutions = channel, solutions
        self.attempt: Any = None
        self.graphs: list[tuple[torch.Tensor, list[torch.Tensor]]] = []  # of the calls, in order

    def run(self, request: dict) -> dict:
        """Run the cell up to the exercise; say what is handed in."""
        self.graphs = []
        namespace: dict[str, Any] = {"__name__": "__main__"}
        for statement in request["statements"]:
            try:
                exec(statement, namespace)
            except Exception:  # noqa: S112 - only what is missing later is an error
                continue
        namespace |= {name: self.solutions[solved] for name, solved in request["solutions"].items()}
        before, given = cells.until(cells.parse(request["source"]), request["name"])
        first: BaseException | None = None
        for statement in before:
            try:
                exec(compile(ast.Module([statement], []), "<cell>", "exec"), namespace)
            except BaseException as error:
                first = first or error
        try:
            self.attempt = eval(compile(ast.Expression(given), "<cell>", "eval"), namespace)
        except BaseException as error:
            return {"error": failure(first or error)}
        if checks.is_stub(self.attempt):
            return {"found": "stub"}
        if callable(self.attempt):
            return {"found": "function"}
        return {"found": "value", "value": wire.encode(self.attempt)}

    def remote(self, place: int) -> Callable:
        """A function of the judge, which the student's code may call."""

        def call(*arguments: Any) -> Any:
            self.channel.send(callback=place, arguments=[wire.encode(part) for part in arguments])
            answer = self.channel.receive()
            if "error" in answer:
                raise ValueError(answer["error"])
            return wire.decode(answer["value"])

        return call

    def call(self, request: dict) -> dict:
        """Call the student's function with the judge's arguments."""
        given = [wire.decode(part, self.remote) for part in request["arguments"]]
        named = {name: wire.decode(part, self.remote) for name, part in request["named"].items()}
        kept = [
            part.copy() if isinstance(part, np.ndarray) else part.detach().clone()
            if isinstance(part, torch.Tensor) else None
            for part in given
        ]  # fmt: skip
        result = self.attempt(*given, **named)
        inputs = [x for x in given if isinstance(x, torch.Tensor) and x.requires_grad]
        graph = isinstance(result, torch.Tensor) and result.requires_grad
        self.graphs.append((result, inputs) if graph else (torch.zeros(()), []))
        changed = {
            str(place): wire.encode(now)
            for place, (now, before) in enumerate(zip(given, kept, strict=True))
            if isinstance(now, torch.Tensor | np.ndarray) and not _equal(now, before)
        }
        return {"result": wire.encode(result), "graph": graph, "changed": changed}

    def backward(self, request: dict) -> dict:
        """The gradients of an earlier call's result for its inputs."""
        result, inputs = self.graphs[request["call"]]
        slope = wire.decode(request["slope"])
        found = torch.autograd.grad(result, inputs, slope, retain_graph=True, allow_unused=True)
        return {"gradients": [wire.encode(part) for part in found]}


def _equal(now: Any, before: Any) -> bool:
    if isinstance(now, np.ndarray):
        return now.tobytes() == before.tobytes()
    return wire.encode(now.detach())["data"] == wire.encode(before)["data"]


def prepare(channel: Channel) -> Student:
    """Load what the exercises need, then give up every right that they do not."""
    settings = channel.receive()
    sandbox.end_with_parent()
    torch.set_num_threads(1)
    importlib.import_module(SOLUTIONS + settings["lesson"])
    solutions = dict(checks._SOLUTIONS)
    checks._SOLUTIONS.clear()
    checks._EXERCISES.clear()
    sys.modules.pop(SOLUTIONS + settings["lesson"])
    sys.meta_path.insert(0, Blocked())
    torch.zeros(1, requires_grad=True).square().backward()  # loads what a gradient needs
    rooms = [part for part in (ROOT / "utils").iterdir() if part.name != "exercises"]
    exercises = [ROOT / "utils" / "exercises" / name for name in ("__init__.py", "checks.py")]
    exercises.append(ROOT / "utils" / "exercises" / "equality.py")
    python = {Path(sys.prefix), Path(sys.base_prefix), *map(Path, sys.path)}
    held = sandbox.close(
        Path.cwd(),
        readable=[
            *rooms,
            *exercises,
            *(path for path in python if path.is_absolute() and not ROOT.is_relative_to(path)),
            *map(Path, ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime")),
            *map(Path, ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu")),
            ROOT / "i18n",
            ROOT / "data",
        ],
        listable=[ROOT],
        memory=settings["memory"],
        seconds=settings["seconds"],
    )
    channel.send(ready=held)
    return Student(channel, solutions)


def main() -> None:
    """Answer requests until the teacher's process closes the channel."""
    channel = Channel()
    try:
        student = prepare(channel)
    except Exception:
        channel.send(broken=traceback.format_exc()[-2000:])
        return
    actions = {"run": student.run, "call": student.call, "backward": student.backward}
    while True:
        request = channel.receive()
        try:
            reply = actions[request["do"]](request)
        except BaseException as error:
            reply = {"error": failure(error)}
        try:
            channel.send(**reply)
        except (TypeError, ValueError, RecursionError) as error:
            channel.send(error=failure(error))


if __name__ == "__main__":
    main()

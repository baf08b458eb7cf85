"""The judge's side: a student's function as a callable object, and the verdict on it."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.grading import cells, wire
from utils.course.errors import CourseError
from utils.course.language import LANGUAGE_VARIABLE, tr
from utils.course.paths import ROOT
from utils.exercises.checks import judge_of

PASSED, FAILED, MISSING, ERROR, LATE = "passed", "failed", "not attempted", "error", "timed out"
START = 180  # seconds for Python and torch to load
KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT", LANGUAGE_VARIABLE)  # of the environment


@dataclass(frozen=True)
class Limits:
    """What one exercise may use."""

    seconds: float = 10.0  # for the cell, and again for the judge
    memory: int = 4 * 2**30  # bytes of address space; torch alone needs one to two GB


@dataclass(frozen=True)
class Outcome:
    """The result of one exercise."""

    result: str  # one of the five words above
    message: str


class StudentError(Exception):
    """The student's code raised an error; the class of an instance has the error's own name."""


class LateError(Exception):
    """The time limit has passed."""


class EndedError(Exception):
    """The student's process has ended or has sent nonsense; the message says which."""


def renamed(failure: object) -> StudentError:
    """An error of the student's code under its own name."""
    known = failure if isinstance(failure, dict) else {}
    name, text = str(known.get("name", ""))[:60], str(known.get("text", ""))[:500]
    return type(name if name.isidentifier() else "Error", (StudentError,), {})(text)


class _Through(torch.autograd.Function):
    """A result of the student's function as a node of the judge's graph."""

    @staticmethod
    def forward(
        ctx: Any, process: "Process", call: int, value: torch.Tensor, *inputs: torch.Tensor
    ) -> torch.Tensor:
        ctx.process, ctx.call = process, call
        return value.clone()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple:
        reply = ctx.process.ask(do="backward", call=ctx.call, slope=wire.encode(slope))
        found = [wire.decode(part) for part in reply["gradients"]]
        return None, None, None, *found


class Process:
    """One process for the exercises of one notebook, in a folder that is removed afterwards."""

    def __init__(self, lesson: str, limits: Limits) -> None:
        self.limits, self.calls = limits, 0
        self._folder = tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True)
        place = Path(self._folder.name)
        (place / "work").mkdir()
        self._errors = (place / "errors.txt").open("w+b")
        self._child = subprocess.Popen(
            [sys.executable, "-s", "-P", "-m", "tools.grading.student"],
            cwd=place / "work",
            env=self._environment(place / "work"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        self._lines: queue.Queue[bytes] = queue.Queue(maxsize=4)
        threading.Thread(target=self._read, daemon=True).start()
        self._until(START)
        seconds = int(START + 100 * limits.seconds)
        self._send(lesson=lesson, memory=limits.memory, seconds=seconds)
        try:
            self.layers = [str(name) for name in self._receive()["ready"]]
        except (KeyError, EndedError, LateError):
            self._errors.seek(0)
            told = self._errors.read().decode(errors="replace").strip().splitlines()
            self.close()
            raise CourseError(
                "The process for the students' code does not start"
                f"{': ' + told[-1] if told else ''}. Run `make setup`, then grade again."
            ) from None

    @staticmethod
    def _environment(folder: Path) -> dict[str, str]:
        """Only what Python needs: no token and no other secret of the teacher."""
        known = {name: os.environ[name] for name in KEPT if name in os.environ}
        return known | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUTF8": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "MPLBACKEND": "agg",
            **dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"), str(folder)),
        }

    def _read(self) -> None:
        """Put the lines of the process into the queue; an empty one when it has ended."""
        with contextlib.suppress(OSError, ValueError):
            while text := self._child.stdout.readline(wire.LONGEST + 1):
                self._lines.put(text)
        self._lines.put(b"")

    def _until(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def _send(self, **message: Any) -> None:
        try:
            self._child.stdin.write(wire.line(message))
            self._child.stdin.flush()
        except OSError:
            self._ended()

    def _ended(self) -> None:
        try:
            code = self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            raise EndedError("the code closed its connection to the judge.") from None
        if code < 0:
            raise EndedError(f"the code ended its process by the signal {-code}.")
        raise EndedError(f"the code ended its process with the status {code}.")

    def _receive(self) -> dict:
        try:
            text = self._lines.get(timeout=max(0.0, self._deadline - time.monotonic()))
        except queue.Empty:
            raise LateError from None
        if not text:
            self._ended()
        if len(text) > wire.LONGEST:
            raise EndedError(f"the result is larger than {wire.LONGEST // 10**6} MB.")
        return wire.message(text)

    def ask(self, functions: list[Callable] | None = None, **request: Any) -> dict:
        """Send a request, answer the calls of `functions` that come back, return the reply."""
        self._send(**request)
        while True:
            reply = self._receive()
            if "callback" in reply:
                self._answer(reply, functions or [])
            elif "error" in reply:
                raise renamed(reply["error"])
            else:
                return reply

    def _answer(self, reply: dict, functions: list[Callable]) -> None:
        """Call a function of the judge for the student's code."""
        try:
            arguments = [wire.decode(part) for part in reply["arguments"]]
            self._send(value=wire.encode(functions[int(reply["callback"])](*arguments)))
        except (EndedError, LateError):
            raise
        except Exception as error:
            self._send(error=str(error)[:500])

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the student's function, as the judge of an exercise does."""
        functions: list[Callable] = []
        reply = self.ask(
            functions,
            do="call",
            arguments=[wire.encode(part, functions) for part in arguments],
            named={name: wire.encode(part, functions) for name, part in named.items()},
        )
        for place, new in reply["changed"].items():
            _copy(wire.decode(new), arguments[int(place)])
        call, self.calls = self.calls, self.calls + 1
        result = wire.decode(reply["result"])
        inputs = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
        if reply["graph"] and inputs and isinstance(result, torch.Tensor):
            return _Through.apply(self, call, result, *inputs)
        return result

    def judge(self, name: str, source: str) -> Outcome:
        """Run the cell of an exercise, and judge what it hands in."""
        self.calls = 0
        given = cells.given(name, source)
        self._until(self.limits.seconds)
        found = self.ask(
            do="run",
            name=name,
            source=source,
            statements=given.statements,
            solutions=given.solutions,
        )
        if found["found"] == "stub":
            return Outcome(MISSING, tr("no attempt yet."))
        self._until(self.limits.seconds)
        attempt = self if found["found"] == "function" else wire.decode(found["value"])
        verdict = judge_of(name)(attempt)
        return Outcome(PASSED, tr("right.")) if verdict is None else Outcome(FAILED, tr(verdict))

    def close(self) -> None:
        """End the process and everything that it started, and remove its folder."""
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._child.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=10)
        with contextlib.suppress(queue.Empty):  # let the reading thread end
            while True:
                self._lines.get_nowait()
        for stream in (self._child.stdin, self._errors):
            with contextlib.suppress(OSError):
                stream.close()
        self._folder.cleanup()


def _copy(new: Any, old: Any) -> None:
    """Do to the judge's own tensor or array what the student's code did to its copy."""
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        with torch.no_grad():
            old.copy_(new)
    elif isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        old[...] = new


class Grader:
    """Judges the exercises of one notebook; a process that is no longer usable is replaced."""

    def __init__(self, lesson: str, limits: Limits) -> None:
        self.lesson, self.limits = lesson, limits
        self.layers: list[str] = []
        self._process: Process | None = None

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def outcome(self, name: str, found: list[str]) -> Outcome:
        """Judge an exercise from the cells that hand it in: the last one that has code counts.

        A later cell that only calls a function of an earlier one is passed over.
        """
        changed = [source for source in found if cells.is_changed(source, name)]
        if not found:
            return Outcome(MISSING, f"no cell hands in the exercise {name}.")
        if not changed:
            return Outcome(MISSING, tr("no attempt yet."))
        outcomes = []
        for source in reversed(changed):
            outcome = self._judged(name, source)
            if outcome.result != MISSING and "NameError" not in outcome.message:
                return outcome
            outcomes.append(outcome)
        return outcomes[0]

    def _judged(self, name: str, source: str) -> Outcome:
        """Judge one cell that hands the exercise in."""
        try:
            cells.parse(source)
        except cells.UnreadableError as error:
            return Outcome(ERROR, str(error))
        if self._process is None:
            self._process = Process(self.lesson, self.limits)
            self.layers = self._process.layers
        try:
            return self._process.judge(name, source)
        except LateError:
            outcome = Outcome(LATE, f"stopped after {self.limits.seconds:g} seconds.")
        except EndedError as error:
            outcome = Outcome(ERROR, str(error))
        except (wire.WireError, KeyError):
            outcome = Outcome(ERROR, "the code sent something else than a result.")
        except Exception as error:  # StudentError, or the judge's own on what the code returned
            kind = type(error).__name__
            return Outcome(
                ERROR, tr("your code stopped with {kind}: {error}", kind=kind, error=error)
            )
        self.__exit__()
        return outcome

"""The list of the course's notebooks, and a function that runs one without a browser."""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.course.errors import CourseError
from utils.course.language import LANGUAGE_VARIABLE, tr
from utils.course.paths import BENCHMARKS, NOTEBOOKS
from utils.course.progress import PROGRESS_VARIABLE

# the environment variables that `accelerate launch` sets for each process
LAUNCHERS = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "GROUP_", "ROLE_", "MASTER_")
# the only line of code that the Vietnamese edition adds, to its set-up cell: the language, and the
# folder that the English edition runs in
LANGUAGE_LINE = (
    'os.environ.setdefault("COURSE_LANG", "vi"); '
    'os.chdir(".." if os.getcwd().endswith(os.sep + "vi") else ".")'
)
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a program that does not belong to a launched training.

    >>> alone({"RANK": "1", "MASTER_PORT": "29500", "HOME": "here"})
    {'HOME': 'here'}
    """
    return {
        name: value
        for name, value in environment.items()
        if name not in RANKS and not name.startswith(LAUNCHERS)
    }


class NotebookError(CourseError, FileNotFoundError):
    """A name that belongs to no notebook, or to several."""


@dataclass(frozen=True)
class Lesson:
    """What the closing table and the map of the course show about a notebook."""

    metric: str  # the key in its metrics.json that the closing table shows
    label: str  # the name of this metric in the table
    box: str  # the text of its box on the map of the course
    position: tuple[int, int]  # column and row of this box, from the lower left


LESSONS = {
    "00": Lesson("checks_passed", "losses equal to the library's", "the losses,\nby hand", (0, 1)),
    "01": Lesson("macro_f1", "macro F1", "feedback\n→ reward", (1, 1)),
    "02": Lesson("judge_negative_after", "negative by the judge", "PPO with\nthat reward", (2, 1)),
    "03": Lesson("perplexity_after", "held-out perplexity", "SFT,\n4 bits", (1, 0)),
    "04": Lesson("attribute_rate", "rate where DPO ends", "DPO", (2, 0)),
    "05": Lesson("orpo_preference_accuracy", "ORPO prefers right", "ORPO,\none stage", (3, 0)),
    "06": Lesson("longer_wins", "longer answer is right", "answers\n→ pairs", (0, 0)),
    "07": Lesson("win_rate", "win rate after the votes", "your votes\n→ DPO", (3, 1)),
    "08": Lesson("t5_natural_after", "T5 natural, by the judge", "T5, GPT-2,\nweb demo", (4, 1)),
}
STEPS = (("01", "02"), ("06", "03"), ("03", "04"), ("04", "05"), ("07", "08"))  # arrows of the map


@dataclass(frozen=True)
class Execution:
    """The result of one run."""

    notebook: str  # file name without .ipynb
    seconds: float
    error: str | None  # the last line of the traceback; None if every cell ran
    peak_mb: float  # the kernel's peak resident memory


def files() -> list[Path]:
    """The files of the notebooks, in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def path_of(name: str) -> Path:
    """The file of a notebook, given its number or its name.

    >>> path_of("01").stem
    '01_phobert_reward_model'
    """
    found = [path for path in files() if path.name.startswith(name)]
    if len(found) != 1:
        raise NotebookError(
            tr(
                "notebooks/ has no notebook, or more than one, whose name begins with "
                "{name!r}: use one of {known}.",
                name=name,
                known=", ".join(path.stem for path in files()),
            )
        )
    return found[0]


def expected_time(name: str, profile: str) -> str:
    """The duration of a notebook in a profile: measured, estimated, or not known.

    >>> expected_time("03_llama_sft_vi_alpaca", "another machine")
    'how long it takes is not measured'
    """
    for file, word in (("lab.json", tr("measured")), ("memory.json", tr("estimated"))):
        try:
            known = json.loads((BENCHMARKS / file).read_text(encoding="utf-8"))
            minutes = known["notebooks"][profile.removesuffix("-quick")][name[:2]]["minutes"]
        except (OSError, ValueError, KeyError):
            continue
        known = {"minutes": max(1, round(minutes)), "word": word}
        if profile.endswith("-quick"):
            return tr("at most about {minutes} minutes, {word}", **known)
        return tr("about {minutes} minutes, {word}", **known)
    return tr("how long it takes is not measured")


class _PeakMemory:
    """The kernel's peak resident memory, sampled twice per second."""

    def __init__(self) -> None:
        self.peak_mb = 0.0

    def watch(self, pid: int, stop: Callable[[], bool]) -> None:
        """Sample process `pid` and its children until `stop()`."""
        import psutil

        with contextlib.suppress(psutil.Error):  # the kernel has ended
            process = psutil.Process(pid)
            while not stop():
                total = process.memory_info().rss
                for child in process.children(recursive=True):
                    with contextlib.suppress(psutil.Error):  # this child has ended meanwhile
                        total += child.memory_info().rss
                self.peak_mb = max(self.peak_mb, total / 2**20)
                time.sleep(0.5)


def execute(
    name: str,
    *,
    on_cell: Callable[[int, int], None] | None = None,
    environment: dict[str, str] | None = None,
    form: Mapping[str, object] | None = None,
    write: bool = False,
    timeout: int = 3600,
) -> Execution:
    """Run the notebook's cells in a new kernel of this Python; with `write`, save the outputs.

    `form` sets fields of the first cell, as a user does on Colab: lines `NAME = …  # @param`.
    """
    import threading

    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    path = path_of(name)
    notebook = nbformat.read(path, as_version=4)
    total = sum(cell.cell_type == "code" for cell in notebook.cells)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for field, value in (form or {}).items():
        first.source = re.sub(
            rf"(?m)^{field} = .*(?=  # @param)", f"{field} = {value!r}", first.source
        )
    done = 0

    def cell_done(cell: object, cell_index: int, execute_reply: object = None) -> None:
        nonlocal done
        done += 1
        if on_cell:
            on_cell(min(done, total), total)

    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=cell_done,
        extra_arguments=["--log-level=40"],  # hide the kernel's own warnings
    )
    memory, finished = _PeakMemory(), threading.Event()
    started, error = time.perf_counter(), None
    fixed = {PROGRESS_VARIABLE: "0"} | ({LANGUAGE_VARIABLE: "en"} if write else {})
    try:
        with client.setup_kernel(env={**alone(os.environ), **fixed, **(environment or {})}):
            pid = client.km.provisioner.pid
            watcher = threading.Thread(
                target=memory.watch, args=(pid, finished.is_set), daemon=True
            )
            watcher.start()
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
            finished.set()
            watcher.join(timeout=5)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as failure:
        plain = re.sub(r"\x1b\[[\d;]*m", "", str(failure))  # remove colour codes
        lines = [line for line in plain.splitlines() if line.strip()]
        error = lines[-1] if lines else type(failure).__name__
    finally:
        finished.set()
    if write and error is None:
        clean(notebook)
        temporary = path.with_suffix(".ipynb.part")
        nbformat.write(notebook, temporary)
        os.replace(temporary, path)
    return Execution(path.stem, time.perf_counter() - started, error, memory.peak_mb)


def code_hash(notebook: Mapping) -> str:
    """The hash of a notebook's code, without REPO and TAG (see `make badges`) and the language."""
    sources = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    code = re.sub(r"(?m)^REPO, TAG = .*$", "", "\n\n".join(sources))
    code = code.replace(f"{LANGUAGE_LINE}\n", "")
    return hashlib.sha256(code.encode()).hexdigest()


def clean(notebook: object) -> None:
    """Remove timings, widget state and addresses before a commit; store the hash of the code.

    The random names of tables become their cell's number, so that two equal runs give equal files.
    """
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "course": {"outputs_of": code_hash(notebook)},
    }
    for count, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
        cell.metadata.pop("execution", None)
        cell.execution_count = count
        merged: list = []
        for output in cell.outputs:
            if output.get("execution_count"):
                output["execution_count"] = count
            # a panel's text stands in the file; its controls need a running kernel
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
            if plain := output.get("data", {}).get("text/plain"):
                output["data"]["text/plain"] = re.sub(r" at 0x[0-9a-f]+>", ">", plain)
            if table := output.get("data", {}).get("text/html"):
                named = re.sub(r"\bT_[0-9a-f]{5}(?=_|\b)", f"T_{count}", table)
                output["data"]["text/html"] = named
            stream = output.output_type == "stream"
            if stream and merged and merged[-1].get("name") == output.name:
                merged[-1]["text"] += output["text"]
            else:
                merged.append(output)
        cell.outputs = merged

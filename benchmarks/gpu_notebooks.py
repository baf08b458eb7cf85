"""Stage B of `gpu.py`: does every notebook cell run on this GPU within a T4's memory?

The machine has no network, so a loopback Hub (`tests/hub/server.py`) serves models of the real
sizes with random weights under the real names, and the shipped samples of the data sets. The
notebooks run unchanged, in the profile t4 with COURSE_QUICK=1. Each has its own kernel, which can
use `LIMIT` bytes of the GPU. After each cell, an expression that is not part of the notebook reads
the peak memory. If a cell fails, the error is recorded and the next cell runs.
"""

import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.hub import server, shelves
from utils.course import notebooks
from utils.course.paths import ROOT
from utils.models import memory

LIMIT = 14.7e9  # bytes that a process can use of a T4
NEEDS = {  # notebook -> the models that it loads
    "03": ("Llama-3.2-1B",),
    "04": ("Llama-3.2-1B",),
    "07": ("Llama-3.2-1B",),  # COURSE_QUICK=1 replaces Llama-3.1-8B, which stage C trains
    "01": ("PhoBERT-base",),
    "02": ("GPT-2",),
    "05": ("Llama-3.2-1B",),
    "08": ("T5-small", "GPT-2"),
}
AFTER = {"02": "01", "04": "03", "05": "04"}  # a notebook -> the notebook whose artifact it needs
NAMES = {  # a model -> its names on the Hub, the gated name first
    "PhoBERT-base": ("vinai/phobert-base",),
    "GPT-2": ("NlpHUST/gpt2-vietnamese", "openai-community/gpt2"),
    "T5-small": ("google-t5/t5-small",),
    "Llama-3.2-1B": (shelves.CHAT.choices["llama"].hub_id, shelves.CHAT.choices["llama"].copy),
}
PROFILE = "t4-quick"
# evaluated after each cell; the last entry restarts the peak for the next cell
MEASURES = {
    "peak_mb": "__import__('torch').cuda.max_memory_allocated() / 1e6",
    "reserved_mb": "__import__('torch').cuda.max_memory_reserved() / 1e6",
    "kept_mb": "__import__('torch').cuda.memory_allocated() / 1e6",
    "reset": "__import__('torch').cuda.reset_peak_memory_stats()",
}
# IPython runs this when a kernel starts; a torch without CUDA has no memory limit to set
STARTUP = """(lambda torch: torch.version.cuda and torch.cuda.set_per_process_memory_fraction(
    min(1.0, {limit} / torch.cuda.get_device_properties(0).total_memory)))(__import__("torch"))
"""
Keep = Callable[[str, dict[str, object]], None]  # stores an item in the report


# --- The models on the Hub ------------------------------------------------------------------------


def put_into_cache(repository: server.Repository, home: Path) -> None:
    """Link the weights into the cache of the Hub's client, so that no file is copied.

    The client still asks the Hub for every file, and the course still checks their content.
    """
    blobs = home / "hub" / f"models--{repository.name.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for name, entry in repository.files.items():
        target = blobs / entry.get("lfs", entry)["oid"]
        if "lfs" in entry and not target.exists():
            os.link(repository.folder / name, target)


def build(model: str, folder: Path, texts: Sequence[str], quick: bool) -> dict[str, object]:
    """Write the model's folder, with random weights."""
    from benchmarks import gpu_models

    target = folder / "models" / model
    target.parent.mkdir(parents=True, exist_ok=True)
    gpu_models.build(model, texts, target, tiny=quick, device="cuda")
    memory.release()
    return {"gigabytes": sum(path.stat().st_size for path in target.iterdir()) / 1e9}


def serve(model: str, folder: Path, hub: server.Hub) -> None:
    """Serve a model from the Hub under each of its names."""
    first = server.Repository(NAMES[model][0], folder / "models" / model)
    for name in NAMES[model]:
        repository = server.Repository(name, first.folder, gated=name in shelves.GATED)
        repository.__dict__["files"] = first.files  # hashed once
        if not repository.gated:
            put_into_cache(repository, folder / "home")
        hub.repositories.append(repository)


def environment(hub: server.Hub, folder: Path) -> dict[str, str]:
    """The environment variables of a kernel that has this Hub and an empty cache."""
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "00-limit.py").write_text(STARTUP.format(limit=LIMIT), encoding="utf-8")
    without = {"HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE"}
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return kept | {
        "COURSE_ARTIFACTS": str(folder / "artifacts"),
        "COURSE_PROFILE": "t4",
        "COURSE_PROGRESS": "0",
        "COURSE_QUICK": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",  # plain HTTP: there is no Xet server here
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


# --- Cell by cell --------------------------------------------------------------------------------


def last_line(cell: object) -> str | None:
    """The error of a cell that failed, such as `NameError: …`, with its last line."""
    for output in cell.outputs:
        if output.output_type == "error":
            plain = re.sub(r"\x1b\[[\d;]*m", "", output.evalue)  # without colours
            lines = [line for line in plain.splitlines() if line.strip()]
            return f"{output.ename}: {lines[-1] if lines else ''}"
    return None


def measured(client: object) -> dict[str, float]:
    """The memory of the last cell; the question to the kernel leaves no trace in the notebook."""
    how = {"silent": True, "store_history": False, "user_expressions": MEASURES}
    reply = client.wait_for_reply(client.kc.execute("", **how))
    found = (reply or {"content": {}})["content"].get("user_expressions", {})
    return {
        name: round(float(answer["data"]["text/plain"]), 1)
        for name, answer in found.items()
        if name != "reset" and answer["status"] == "ok"
    }


@contextmanager
def kernel(notebook: object, path: Path, variables: dict[str, str]) -> Iterator[object]:
    """A client whose kernel runs until the end of the block."""
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook,
        allow_errors=True,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        shutdown_kernel="immediate",  # a cell may still run when the time is up
        extra_arguments=["--log-level=40"],
    )
    with client.setup_kernel(env=variables):
        yield client


def run_notebook(
    number: str, variables: dict[str, str], keep: Keep, left: Callable[[], float]
) -> None:
    """Run the code cells in order and store each result at once; stop when no time is left."""
    import nbformat
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    path = notebooks.path_of(number)
    notebook = nbformat.read(path, as_version=4)
    code = [(at, cell) for at, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    found: dict[str, object] = {"finished": False, "of": len(code), "errors": 0, "cells": []}
    found["limit_mb"] = LIMIT / 1e6
    began = time.perf_counter()
    with kernel(notebook, path, variables) as client:
        measured(client)  # memory used by the start of the kernel does not count in the first cell
        for count, (at, cell) in enumerate(code, start=1):
            start, stopped = time.perf_counter(), None
            try:
                client.timeout = max(1, int(left()))
                client.execute_cell(cell, at)
            except (CellTimeoutError, DeadKernelError) as failure:
                stopped = type(failure).__name__
            cut = stopped == "CellTimeoutError"
            entry = {
                "cell": count,
                "code": [*cell.source.strip().splitlines(), ""][0][:80],
                "seconds": round(time.perf_counter() - start, 2),
                "error": "the time was up" if cut else stopped or last_line(cell),
                **({} if stopped else measured(client)),
            }
            found["cells"].append(entry)
            found["errors"] += entry["error"] is not None and not cut
            found["finished"] = stopped == "DeadKernelError" or (count == len(code) and not stopped)
            found["peak_mb"] = max(each.get("peak_mb", 0.0) for each in found["cells"])
            found["seconds"] = round(time.perf_counter() - began, 1)
            keep(number, found)
            if stopped:
                break
    print(
        f"{number}: {len(found['cells'])} of {len(code)} cells, {found['errors']} with an error, "
        f"peak {found['peak_mb']:.0f} MB, {found['seconds']:.0f} s",
        flush=True,
    )


def run(
    wanted: Sequence[str],
    folder: Path,
    report: object,  # a Report of gpu.py
    attempt: Callable[[str, Callable[[], dict[str, object]]], None],
    left: Callable[[], float],
    *,
    quick: bool,
) -> None:
    """Run the wanted notebooks; if an artifact is missing, first run the notebook that makes it."""
    os.environ["COURSE_CACHE"] = str(folder / "cache")  # untrained stand-ins get their own cache
    data_sets = shelves.data_sets(folder / "data", rows=60 if quick else 10**6)
    texts = shelves.sentences(data_sets)
    served: set[str] = set()
    begun: set[str] = set()

    def handed_over(number: str) -> bool:
        return any((folder / "artifacts" / PROFILE).glob(f"{number}_*/manifest.json"))

    def ready(model: str) -> None:
        if not (folder / "models" / model).exists():
            attempt(f"model {model}", functools.partial(build, model, folder, texts, quick))
        if model not in served:
            serve(model, folder, hub)
        served.add(model)

    def go(number: str) -> None:
        if number in begun or left() < 10:
            return
        begun.add(number)
        if before := AFTER.get(number):
            if not handed_over(before):
                go(before)
            if not handed_over(before):
                if report.settled(before):  # otherwise it continues in the next call
                    report.begin(number)
                    report.keep(number, {"error": f"notebook {before} has handed nothing over"})
                return
        report.begin(number)
        try:
            for model in NEEDS[number]:
                ready(model)
            run_notebook(number, variables, report.keep, left)
        except KeyboardInterrupt:  # the time was up while a model was built
            report.forget(number)
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[-1]
            report.keep(number, {**report.items[number], "error": reason})
            print(f"{number}: {reason}", flush=True)

    with server.serve(data_sets) as hub:
        variables = environment(hub, folder)
        for number in wanted:
            go(number)

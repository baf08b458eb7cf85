"""Machines with an emulated GPU and a loopback Hub, for the notebooks that run on them."""

import json
from pathlib import Path

from tests.gpu.test_inside import emulated
from tests.hub.conftest import surroundings
from tests.hub.server import Hub
from utils.course import notebooks

NAMES = [path.stem for path in notebooks.files()]
CHAT_NAMES = [name for name in NAMES if name[:2] in ("03", "04", "05")]
ROWS = 120  # per split
FEEDBACK, PAIRS = "uitnlp/vietnamese_students_feedback", "thainq107/Vi-Alpaca-Preference"


def machine(hub: Hub, gpu: str, folder: Path, **more: str) -> dict[str, str]:
    """The environment of a new machine with this GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "COURSE_PROFILE": "",  # the hardware chooses
        "COURSE_ARTIFACTS": str(folder / "artifacts"),
        "EMULATED_GPU_LOG": str(folder / "cells.jsonl"),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "",
        "OMP_NUM_THREADS": "1",
        "TINY_LESSONS": "1",
    }
    return surroundings(hub, folder / "home", **emulated(gpu, **settings | more))


def finished(run: notebooks.Execution, artifacts: Path, profile: str) -> dict:
    """The metrics of a notebook that ran to its end."""
    assert run.error is None, f"{run.notebook}: {run.error}"
    metrics = json.loads((artifacts / profile / run.notebook / "metrics.json").read_text("utf-8"))
    assert metrics["profile"] == profile
    return metrics


def cells(environment: dict[str, str]) -> list[dict]:
    """The GPU memory of each cell."""
    text = Path(environment["EMULATED_GPU_LOG"]).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]

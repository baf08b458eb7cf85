"""The repository's folder; every other path of the course is derived from it."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
BENCHMARKS = ROOT / "benchmarks"


def cache() -> Path:
    """The folder of what can be made again (or COURSE_CACHE); it is never on Google Drive."""
    return Path(os.environ.get("COURSE_CACHE") or ROOT / ".cache")

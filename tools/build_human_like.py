"""Build data/human_like/{train,test}.jsonl from written.jsonl, with the same result always.

    python tools/build_human_like.py            write the two files
    python tools/build_human_like.py --check    report whether the shipped files are up to date

A row of written.jsonl is one pair: a prompt, a natural answer (chosen) and a competent but
impersonal one (rejected). Each prompt is asked once, so no prompt is in both splits.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.build_preference_data import update
from utils.course.paths import ROOT

FOLDER = ROOT / "data" / "human_like"
CYCLE, HELD_OUT = 17, (3, 9, 14)  # three of every seventeen rows are held out
PROVENANCE = {
    "author": "language model",
    "reviewer": "language model, blind labels of a sample",
    "date": "2026-11-27",
}


def pairs(rows: list[dict]) -> dict[str, list[dict]]:
    """The pairs of each split, in the order of written.jsonl."""
    splits: dict[str, list[dict]] = {"train": [], "test": []}
    for number, row in enumerate(rows):
        split = "test" if number % CYCLE in HELD_OUT else "train"
        splits[split].append({"id": f"{number + 1:04d}", **row, **PROVENANCE})
    return splits


def main() -> int:
    """Write or compare the two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    check = parser.parse_args().check
    lines = (FOLDER / "written.jsonl").read_text(encoding="utf-8").splitlines()
    stale = []
    for split, rows in pairs([json.loads(line) for line in lines]).items():
        path = FOLDER / f"{split}.jsonl"
        differs = update(path, rows, check)
        if not check:
            print(f"{path.name}: {len(rows):,} pairs")
        elif differs:
            stale.append(path.name)
    if stale:
        print(f"{', '.join(stale)} is not what written.jsonl gives: run without --check.")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())

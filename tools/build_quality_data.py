"""Build data/quality/{train,test}.jsonl from written.jsonl, with the same result always.

    python tools/build_quality_data.py            write the two files
    python tools/build_quality_data.py --check    report whether the shipped files are up to date

A row of written.jsonl has a question, a good answer, and two or three flawed answers to the same
question. Each flawed answer becomes one pair. All pairs of a question are in the same split.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "data" / "quality"
HELD_OUT_EVERY = 8  # every eighth question of each kind is held out
LONG = 80  # syllables of a long answer


def tier(row: dict) -> str:
    """`dialogue`, `long` or `short`."""
    if len(row["turns"]) > 1:
        return "dialogue"
    return "long" if len(row["answer"].split()) >= LONG else "short"


def pairs(rows: list[dict]) -> dict[str, list[dict]]:
    """The pairs of each split, in the order of the questions."""
    seen: Counter[str] = Counter()
    splits: dict[str, list[dict]] = {"train": [], "test": []}
    for number, row in enumerate(rows, 1):
        seen[row["kind"]] += 1
        split = "test" if seen[row["kind"]] % HELD_OUT_EVERY == 0 else "train"
        for flawed in row["flawed"]:
            splits[split].append(
                {
                    "id": f"{number:04d}-{flawed['flaw']}",
                    "history": row["turns"][:-1],
                    "question": row["turns"][-1]["content"],
                    "chosen": row["answer"],
                    "rejected": flawed["text"],
                    "flaw": flawed["flaw"],
                    "tier": tier(row),
                    "kind": row["kind"],
                    "theme": row["theme"],
                    "dialect": row["dialect"],
                    "author": "language model",
                    "reviewer": "language model, second reading of a sample",
                    "date": row["date"],
                }
            )
    return splits


def main() -> int:
    """Write or compare the two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    check = parser.parse_args().check
    lines = (FOLDER / "written.jsonl").read_text(encoding="utf-8").splitlines()
    stale = []
    for split, rows in pairs([json.loads(line) for line in lines]).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = FOLDER / f"{split}.jsonl"
        if check:
            stale += [path.name] if path.read_text(encoding="utf-8") != text else []
        else:
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"{path.name}: {len(rows):,} pairs")
    if stale:
        print(f"{', '.join(stale)} is not what written.jsonl gives: run without --check.")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())

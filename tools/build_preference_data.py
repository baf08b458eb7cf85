"""Build data/preferences/{train,test}.jsonl from its sources, with the same result always.

    python tools/build_preference_data.py            write the two files
    python tools/build_preference_data.py --check    report whether the shipped files are up to date

A row of written.jsonl has a question, a good answer, and two or three flawed answers to the same
question. Each flawed answer becomes one pair, and its tier is the name of the flaw. One more pair
has the good answer to another question (tier `off_topic`). The families of utils/data/families.py
give short facts, also with an answer to another question (tier `systematic`). Answers to other
questions are mined by utils/data/mining.py within each split and each source, so that no written
answer of one split occurs in the other split.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.course.paths import ROOT
from utils.data.families import Instruction, systematic
from utils.data.mining import mine, report

FOLDER = ROOT / "data" / "preferences"
SPLITS = ("train", "test")
HELD_OUT_EVERY = 8  # every eighth written question of each kind is held out
LONG = 80  # syllables of a long answer
Row = dict[str, object]


def length(row: Row) -> str:
    """`dialogue`, `long` or `short`."""
    if len(row["turns"]) > 1:
        return "dialogue"
    return "long" if len(row["answer"].split()) >= LONG else "short"


def written(folder: Path = FOLDER) -> dict[str, list[tuple[int, Row]]]:
    """The numbered rows of written.jsonl by split."""
    lines = (folder / "written.jsonl").read_text(encoding="utf-8").splitlines()
    seen: Counter[str] = Counter()
    splits: dict[str, list[tuple[int, Row]]] = {split: [] for split in SPLITS}
    for number, row in enumerate(map(json.loads, lines), 1):
        seen[row["kind"]] += 1
        split = "test" if seen[row["kind"]] % HELD_OUT_EVERY == 0 else "train"
        splits[split].append((number, row))
    return splits


def of_written(numbered: list[tuple[int, Row]]) -> list[Row]:
    """The pairs of the written rows: the flawed answers, then one answer to another question."""
    rows = [row for _, row in numbered]
    found = mine([asked(row) for row in rows], [row["answer"] for row in rows])
    made = []
    for (number, row), other in zip(numbered, found, strict=True):
        rejected = [(flawed["flaw"], flawed["text"]) for flawed in row["flawed"]]
        for tier, text in [*rejected, ("off_topic", rows[other.index]["answer"])]:
            made.append(
                {
                    "id": f"w{number:04d}-{tier}",
                    "history": row["turns"][:-1],
                    "question": asked(row),
                    "chosen": row["answer"],
                    "rejected": text,
                    "tier": tier,
                    "length": length(row),
                    "kind": row["kind"],
                    "theme": row["theme"],
                    "dialect": row["dialect"],
                    "author": "language model",
                    "reviewer": "language model, second reading of a sample",
                    "date": row["date"],
                }
            )
    return made


def asked(row: Row) -> str:
    """The question of a written row: the last turn of its dialogue."""
    return row["turns"][-1]["content"]


def of_families(numbered: list[tuple[int, Instruction]]) -> list[Row]:
    """Each systematic row with the right answer to another systematic question."""
    rows = [row for _, row in numbered]
    found = mine(
        [row.question for row in rows],
        [row.answer for row in rows],
        facts=[row.fact for row in rows],
        values=[row.value for row in rows],
        strata=[row.kind for row in rows],
    )
    return [
        {
            "id": f"s{number:04d}",
            "history": [],
            "question": row.question,
            "chosen": row.answer,
            "rejected": rows[other.index].answer,
            "tier": "systematic",
            "length": "short",
            "kind": row.kind,
            "theme": row.kind,
            "dialect": "chung",
            "author": "tables and phrasings by a language model, joined by a program",
            "reviewer": "program: arithmetic and tables",
            "date": "2026-11-26",
        }
        for (number, row), other in zip(numbered, found, strict=True)
    ]


def _shuffled(row: Row) -> str:
    """A sort key that shuffles the rows, the same on every machine and in every Python."""
    return hashlib.sha256(str(row["id"]).encode()).hexdigest()


def build(folder: Path = FOLDER) -> dict[str, list[Row]]:
    """The rows of both splits in their final order."""
    by_split, families = written(folder), list(enumerate(systematic(), 1))
    return {
        split: sorted(
            of_written(by_split[split])
            + of_families([one for one in families if one[1].held_out == (split == "test")]),
            key=_shuffled,
        )
        for split in SPLITS
    }


def as_bytes(rows: list[Row]) -> bytes:
    """The content of a file: one JSON object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def update(path: Path, rows: list[Row], check: bool) -> bool:
    """Write the file unless it is only to be compared; whether it had another content."""
    new = as_bytes(rows)
    differs = not path.exists() or path.read_bytes() != new
    if not check:
        path.write_bytes(new)
    return differs


def main() -> int:
    """Write the files, or compare them with the shipped ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare, write nothing")
    check = parser.parse_args().check
    changed = 0
    for split, rows in build().items():
        path = FOLDER / f"{split}.jsonl"
        differs = update(path, rows, check)
        changed += differs
        state = "up to date" if not differs else "differs" if check else "written"
        print(f"{path.name}: {len(rows):,} pairs, {state}")
        print("  " + ", ".join(f"{n} {tier}" for tier, n in tiers(rows).most_common()))
        mined = [row for row in rows if row["tier"] in ("off_topic", "systematic")]
        print("  " + ", ".join(f"{name} {value:g}" for name, value in report(mined).items()))
    return 1 if check and changed else 0


def tiers(rows: list[Row]) -> Counter[str]:
    """The number of pairs of each tier."""
    return Counter(str(row["tier"]) for row in rows)


if __name__ == "__main__":
    raise SystemExit(main())

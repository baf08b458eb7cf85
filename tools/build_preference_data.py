"""Build data/vi_alpaca_preference/{train,test}.jsonl from its sources, with the same result always.

    python tools/build_preference_data.py            write the two files
    python tools/build_preference_data.py --check    report whether the shipped files are up to date

Sources: written.jsonl (by hand) and utils/data/families.py (systematic). The rejected answers are
mined by utils/data/mining.py within each split and each source. So no hand-written answer of one
split occurs in the other split.
"""

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils.data.families import Instruction, systematic  # noqa: E402
from utils.data.mining import mine, report  # noqa: E402
from utils.data.text import syllables  # noqa: E402

FOLDER = ROOT / "data" / "vi_alpaca_preference"
HELD_OUT_EVERY = 8  # every eighth hand-written row of each kind is held out
NEAR = 0.8  # Jaccard similarity of two questions' syllables


def written(path: Path) -> list[Instruction]:
    """The hand-written rows; every eighth of a kind is held out, unless another is very similar."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    sets = [frozenset(syllables(row["question"])) for row in rows]
    seen: defaultdict[str, int] = defaultdict(int)
    made = []
    for number, row in enumerate(rows):
        seen[row["kind"]] += 1
        near = any(
            len(sets[number] & other) >= NEAR * len(sets[number] | other)
            for index, other in enumerate(sets)
            if index != number
        )
        held_out = seen[row["kind"]] % HELD_OUT_EVERY == 0 and not near
        made.append(Instruction(row["kind"], None, None, row["question"], row["answer"], held_out))
    return made


def _shuffled(row: dict[str, str]) -> str:
    """A sort key that shuffles the rows, the same on every machine and in every Python."""
    return hashlib.sha256(row["question"].encode()).hexdigest()


def _paired(named: list[tuple[str, Instruction]]) -> list[dict[str, str]]:
    """Each row with a rejected answer, which is mined among the other rows."""
    rows = [row for _, row in named]
    found = mine(
        [row.question for row in rows],
        [row.answer for row in rows],
        facts=[row.fact for row in rows],
        values=[row.value for row in rows],
        strata=[row.kind if row.fact else "by hand" for row in rows],
    )
    return [
        {
            "id": name,
            "question": row.question,
            "chosen": row.answer,
            "rejected": rows[other.index].answer,
        }
        for (name, row), other in zip(named, found, strict=True)
    ]


def build(folder: Path = FOLDER) -> dict[str, list[dict[str, str]]]:
    """The rows of both splits in their final order."""
    rows = written(folder / "written.jsonl") + systematic()
    names = [f"vi-{number:04d}" for number in range(1, len(rows) + 1)]
    built = {}
    for split in ("train", "test"):
        of_split = [
            (name, row)
            for name, row in zip(names, rows, strict=True)
            if row.held_out == (split == "test")
        ]
        # Each source is mined separately: the short result of a sum is not a plausible answer to a
        # request for advice.
        by_hand = [(name, row) for name, row in of_split if row.fact is None]
        families = [(name, row) for name, row in of_split if row.fact is not None]
        built[split] = sorted(_paired(by_hand) + _paired(families), key=_shuffled)
    return built


def as_bytes(rows: list[dict[str, str]]) -> bytes:
    """The content of a file: one JSON object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def main() -> int:
    """Write the files, or compare them with the shipped ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare, write nothing")
    check = parser.parse_args().check
    changed = 0
    for split, rows in build().items():
        path, new = FOLDER / f"{split}.jsonl", as_bytes(rows)
        same = path.exists() and path.read_bytes() == new
        changed += not same
        if not check:
            path.write_bytes(new)
        state = "up to date" if same else "differs" if check else "written"
        print(f"{path.name}: {len(rows)} rows, {state}")
        print("  " + ", ".join(f"{name} {value:g}" for name, value in report(rows).items()))
    return 1 if check and changed else 0


if __name__ == "__main__":
    raise SystemExit(main())

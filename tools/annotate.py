"""Blind sheets for people who check the labels of the shipped data, and their agreement.

    python tools/annotate.py sheet feedback --rows 200 --seed 1 --out an.csv   # no labels in it
    python tools/annotate.py score feedback an.csv binh.csv                    # filled-in sheets

| kind | the annotator fills in | the guideline |
|------|------------------------|---------------|
| feedback | sentiment (0, 1, 2) and topic (0, 1, 2, 3) | data/README.md, student_feedback |
| pairs | better (A or B) | which answer a careful reader prefers |
| human | better (A or B) | which answer reads more like a person who talks to this user |

Two annotators need sheets with the same rows: give both the same `--seed`. `score` prints Cohen's κ
between every two annotators, and between each annotator and the label that the data has.
"""

import argparse
import csv
import json
import random
import sys
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.course.paths import ROOT

COLUMNS = {"feedback": ("sentiment", "topic"), "pairs": ("better",), "human": ("better",)}
Row = dict[str, str]


def _lines(*parts: str) -> list[dict]:
    path = ROOT.joinpath("data", *parts)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def items(kind: str, seed: int) -> list[Row]:
    """Every item with its labels, in an order that depends only on the seed."""
    draw = random.Random(seed)
    found: list[Row] = []
    if kind == "feedback":
        for split in ("train", "validation", "test"):
            path = ROOT / "data" / "student_feedback" / f"{split}.csv"
            with path.open(encoding="utf-8", newline="") as file:
                found += [{"text": row.pop("sentence"), **row} for row in csv.DictReader(file)]
    else:
        if kind == "pairs":
            rows = [
                row
                for split in ("train", "test")
                for row in _lines("preferences", f"{split}.jsonl")
                if row["tier"] not in ("off_topic", "systematic")
            ]
        else:
            rows = _lines("human_like", "written.jsonl")
        for row in rows:
            turns = [f"{turn['role']}: {turn['content']}" for turn in row.get("history", [])]
            text = "\n".join([*turns, row.get("question") or row["prompt"]])
            better = draw.choice("AB")
            sides = row["chosen"], row["rejected"]
            first, second = sides if better == "A" else sides[::-1]
            found.append({"text": text, "A": first, "B": second, "better": better})
    draw.shuffle(found)
    return found


def sheet(kind: str, rows: int, seed: int, out: Path) -> None:
    """Write a sheet whose label columns are empty."""
    chosen = items(kind, seed)[:rows]
    names = ["number", "seed", *chosen[0]]
    with out.open("w", encoding="utf-8-sig", newline="") as file:  # spreadsheets need the mark
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for number, item in enumerate(chosen, 1):
            blank = dict.fromkeys(COLUMNS[kind], "")
            writer.writerow({"number": number, "seed": seed, **item, **blank})
    print(f"{out}: {len(chosen)} rows; fill in {' and '.join(COLUMNS[kind])}.")


def score(kind: str, sheets: list[Path]) -> dict[str, dict[str, float]]:
    """Cohen's κ of every two sheets, and of each sheet with the data's labels."""
    from sklearn.metrics import cohen_kappa_score

    filled = {}
    for path in sheets:
        with path.open(encoding="utf-8-sig", newline="") as file:
            filled[path.stem] = sorted(csv.DictReader(file), key=lambda row: int(row["number"]))
    seeds = {(row["seed"], len(rows)) for rows in filled.values() for row in rows}
    if len(seeds) != 1:
        raise SystemExit(
            "The sheets have different rows: make them with the same --seed and --rows."
        )
    ((seed, count),) = seeds
    labels = items(kind, int(seed))[:count]
    found: dict[str, dict[str, float]] = {}
    for column in COLUMNS[kind]:
        answers = {name: [row[column].strip() for row in rows] for name, rows in filled.items()}
        answers["labels of the data"] = [item[column] for item in labels]
        for one, other in combinations(answers, 2):
            both = [
                pair for pair in zip(answers[one], answers[other], strict=True) if all(pair)
            ]  # rows that both filled in
            kappa = cohen_kappa_score(*zip(*both, strict=True)) if both else float("nan")
            found.setdefault(column, {})[f"{one} · {other}"] = kappa
            print(f"{column}: {one} and {other}, κ = {kappa:.3f} ({len(both)} rows)")
    return found


def main() -> None:
    """The two commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("sheet", help="write an empty sheet")
    make.add_argument("kind", choices=COLUMNS)
    make.add_argument("--rows", type=int, default=200)
    make.add_argument("--seed", type=int, default=1)
    make.add_argument("--out", type=Path, required=True)
    judge = commands.add_parser("score", help="agreement of filled-in sheets")
    judge.add_argument("kind", choices=COLUMNS)
    judge.add_argument("sheets", nargs="+", type=Path)
    asked = parser.parse_args()
    if asked.command == "sheet":
        sheet(asked.kind, asked.rows, asked.seed, asked.out)
    else:
        score(asked.kind, asked.sheets)


if __name__ == "__main__":
    sys.exit(main())

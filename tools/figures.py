"""Write minutes and memory into the tables of README and notebooks, from the committed JSON.

The lab's values are measured (benchmarks/lab.json, written by `make notebooks`). Those of a T4 and
of an A100 are estimated and simulated (benchmarks/memory.json, written by benchmarks/memory.py).
`--check` changes nothing and exits with 1 if a table is out of date.
"""

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.course import notebooks
from utils.course.paths import BENCHMARKS, ROOT

WORDS = {"lab": ("2 cores", None), "t4": ("estimated", "simulated")}
WORDS["a100"] = WORDS["t4"]


def known() -> dict[str, dict[str, dict[str, float]]]:
    """The committed values: profile -> notebook -> minutes and peak_gb."""
    found: dict[str, dict] = {}
    for file in ("lab.json", "memory.json"):
        path = BENCHMARKS / file
        if path.exists():
            found |= json.loads(path.read_text(encoding="utf-8"))["notebooks"]
    return found


def figures(profile: str, number: str) -> tuple[str, str]:
    """Minutes and memory in the format of a table."""
    row = known().get(profile, {}).get(number, {})
    shown = []
    for value, unit, word in (
        (row.get("minutes"), "", WORDS[profile][0]),
        (row.get("peak_gb"), " GB", WORDS[profile][1]),
    ):
        if value is None:
            shown.append("not measured")
            continue
        digits = (
            f"{value:.0f}" if value >= 10 or (not unit and profile != "lab") else f"{value:.1f}"
        )
        shown.append(digits + unit + (f" ({word})" if word else ""))
    return shown[0], shown[1]


def in_notebook(first_cell: str, number: str) -> str:
    """The first cell with an updated table of profiles."""

    def row(match: re.Match) -> str:
        head, profile = match.group(1), match.group(2)
        return f"{head}| {' | '.join(figures(profile, number))} |"

    return re.sub(
        r"(?m)^(\| `(lab|t4|a100)`[^|\n]*\|[^|\n]*)\|[^|\n]*\|[^|\n]*\|$", row, first_cell
    )


def in_readme(text: str) -> str:
    """The README with an updated table of notebooks."""

    def row(match: re.Match) -> str:
        number = match.group(2)
        cells = []
        for profile in ("lab", "t4", "a100"):
            minutes, memory = figures(profile, number)
            if minutes == memory == "not measured":
                cells.append("not measured")
                continue
            minutes = minutes.split(" (")[0] + " min" if "not" not in minutes else minutes
            cells.append(f"{minutes}, {memory.split(' (')[0]}")
        return f"{match.group(1)}| {' | '.join(cells)} |"

    pattern = r"(?m)^(\| \[(\d\d) .*?\|[^|\n]*)\|[^|\n]*\|[^|\n]*\|[^|\n]*\|$"
    return re.sub(pattern, row, text)


def main() -> None:
    """Write the tables, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check, stale = parser.parse_args().check, []
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if in_readme(text) != text:
        stale.append(readme.name)
        if not check:
            readme.write_text(in_readme(text), encoding="utf-8")
    for path in notebooks.files():
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cell = notebook["cells"][0]
        old = "".join(cell["source"])
        new = in_notebook(old, path.stem[:2])
        if new != old:
            stale.append(path.name)
            cell["source"] = new.splitlines(keepends=True)
            if not check:
                content = json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"
                path.write_text(content, encoding="utf-8")
    if stale:
        print(("Out of date: " if check else "Written: ") + ", ".join(stale))
    if check and stale:
        sys.exit("Run tools/figures.py.")


if __name__ == "__main__":
    main()

"""Compare the metrics of two runs of the course with the same seed. Writes determinism.json.

    python benchmarks/determinism.py ARTIFACTS OTHER_ARTIFACTS

Each folder is the `artifacts/lab` that one `make course` or `make test` wrote, for example in two
clones. Every figure of every `metrics.json` is compared, except measured times and memory.
"""

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from benchmarks.ppo import machine  # noqa: E402

MEASURED = ("seconds", "per_second", "memory_mb")  # endings of names; no seed determines these


def figures(folder: Path) -> dict[str, dict[str, float]]:
    """Notebook -> its figures that the seed determines."""
    found = {}
    for path in sorted(folder.glob("[0-9][0-9]_*/metrics.json")):
        if path.parent.suffix:  # a former artifact that was kept
            continue
        metrics = json.loads(path.read_text(encoding="utf-8"))
        found[path.parent.name] = {
            name: value
            for name, value in metrics.items()
            if isinstance(value, int | float) and not name.endswith(MEASURED)
        }
    return found


def compare(one: Path, two: Path) -> dict[str, dict]:
    """For each notebook: the number of figures, and the figures that differ."""
    first, second = figures(one), figures(two)
    if not first or first.keys() != second.keys():
        raise SystemExit(f"The folders hold {sorted(first)} and {sorted(second)}: run both first.")
    report = {}
    for notebook, numbers in first.items():
        others = second[notebook]
        differ = {
            name: [numbers.get(name), others.get(name)]
            for name in sorted(numbers.keys() | others.keys())
            if numbers.get(name) != others.get(name)
        }
        report[notebook] = {"figures": len(numbers), "differ": differ}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("one", type=Path)
    parser.add_argument("two", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "determinism.json")
    asked = parser.parse_args()
    report = {"notebooks": compare(asked.one, asked.two), "machine": machine("cpu")}
    for notebook, found in report["notebooks"].items():
        print(f"{notebook}: {found['figures']} figures, {len(found['differ'])} differ")
    asked.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

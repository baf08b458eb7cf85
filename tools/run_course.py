"""Run all notebooks in order in the lab profile, offline, and print the result of each."""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.course import artifacts, notebooks, profiles
from utils.course.errors import CourseError
from utils.course.paths import BENCHMARKS


def headline(name: str, profile: str) -> str:
    """The main metric of the metrics.json that a notebook has just written."""
    lesson = notebooks.LESSONS[name[:2]]
    path = artifacts.shelf(profile).folder / name / "metrics.json"
    if not path.exists():
        return "-"
    return f"{lesson.label} {json.loads(path.read_text(encoding='utf-8'))[lesson.metric]:.3f}"


def keep_figures(runs: list[notebooks.Execution]) -> None:
    """Save minutes and memory of the runs whose outputs were saved, for the tables."""
    path = BENCHMARKS / "lab.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"notebooks": {}}
    measured = known["notebooks"].setdefault("lab", {})
    for run in runs:
        measured[run.notebook[:2]] = {
            "minutes": round(run.seconds / 60, 2),
            "peak_gb": round(run.peak_mb / 1024, 2),
        }
    known["notebooks"]["lab"] = dict(sorted(measured.items()))
    known["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run the notebooks, print a line for each and a closing table; exit with 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="save the outputs in the notebooks")
    parser.add_argument("only", nargs="*", help="numbers of notebooks; default: all")
    arguments = parser.parse_args()
    os.environ.setdefault("COURSE_PROFILE", "lab")
    profile = profiles.choose().name
    wanted = arguments.only or list(notebooks.LESSONS)
    if unknown := sorted(set(wanted) - set(notebooks.LESSONS)):
        raise CourseError(f"No notebook has the number {', '.join(unknown)}.")
    chosen = [path.stem for path in notebooks.files() if path.stem[:2] in wanted]
    live = sys.stdout.isatty()
    runs = []
    for position, name in enumerate(chosen, start=1):
        lead = f"[{position}/{len(chosen)}] {name}"

        def advance(done: int, total: int, lead: str = lead) -> None:
            if live:
                print(f"\r{lead}  {done}/{total} cells ", end="", flush=True)

        if not live:
            print(f"{lead} …", flush=True)
        run = notebooks.execute(name, on_cell=advance, write=arguments.write)
        print(f"{chr(13) if live else ''}{lead}  {run.seconds:.0f} s, {run.error or 'passed'}")
        runs.append(run)
    if arguments.write and profile == "lab":
        keep_figures([run for run in runs if run.error is None])
    width = max([len(run.notebook) for run in runs], default=10)
    print(f"\n{'notebook':{width}}  {'seconds':>7}  {'peak MB':>7}  {'headline':32}  result")
    for run in runs:
        figure = "-" if run.error else headline(run.notebook, profile)
        result = "FAIL" if run.error else "pass"
        print(
            f"{run.notebook:{width}}  {run.seconds:7.0f}  {run.peak_mb:7.0f}  {figure:32}  {result}"
        )
    for run in runs:
        if run.error:
            print(f"\n{run.notebook}: {run.error}")
    if not runs or any(run.error for run in runs):
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except CourseError as error:
        sys.exit(str(error))

"""The course's commands, the same on Linux, macOS and Windows: `python tools/run.py help`.

Only Python's standard library is needed to start: `setup` makes .venv, and the steps of the other
targets run in it. The Makefile calls this file.
"""

from __future__ import annotations  # an older Python must reach the error message of bootstrap.py

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bootstrap

ROOT = bootstrap.ROOT
MADE = ("COURSE_ARTIFACTS", "COURSE_CACHE")  # folders that need not exist yet
PATHS = (
    *MADE,
    *("COURSE_FEEDBACK_DATA", "COURSE_PREFERENCE_DATA", "COURSE_HUMAN_LIKE_DATA"),
    *("COURSE_POLICY", "COURSE_T5"),  # a folder, or a name on the Hub
)
INTERRUPTED = 130  # the exit status of a program that Ctrl-C stopped


@dataclass(frozen=True)
class Step:
    """One program that runs in .venv."""

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A command: set-up (unless `bare`), then its steps; it stops at the first step that fails."""

    words: str  # the line in `help`
    steps: tuple[Step | Callable[[], None], ...] = ()
    bare: bool = False  # True: it needs no .venv
    shown: bool = False  # print each step before it runs
    takes: str = ""  # the arguments after the target, which are passed to its last step


def python(*arguments: str, **environment: str) -> Step:
    """A step that runs .venv's Python with these arguments."""
    return Step(arguments, environment)


def print_help() -> None:
    """Print every target and what it does."""
    print("python tools/run.py TARGET, or make TARGET if make is installed:\n")
    for name, target in TARGETS.items():
        print(f"{name + ' ' + target.takes:22} {target.words}")


def clean() -> None:
    """Remove .venv, .cache, build and everything in artifacts except the votes."""
    rest = ROOT / "artifacts"
    made = [path for path in rest.glob("*") if not path.name.startswith("votes.sqlite")]
    for path in (bootstrap.VENV, ROOT / ".cache", ROOT / "build", *made):
        if path.is_symlink() or path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)


LINT = (python("-m", "ruff", "check", "."), python("-m", "ruff", "format", "--check", "."))
WORKERS = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "-rs")
# a package that only the site needs: a change of it does not make .venv anew
SITE_PACKAGE = python(
    *("-m", "pip", "install", "-q", "--disable-pip-version-check"),
    *("-r", "requirements-site.txt"),
)
STANDINS = python("tools/build_standins.py")  # before the notebooks, so that none waits for it
NBMAKE = ("-m", "pytest", "--nbmake", "-n", "2", "-p", "tests.helpers.chains")  # two chains at once
LAB = {"COURSE_PROFILE": "lab", "OMP_NUM_THREADS": "1"}
# every notebook of the lab at full size
NOTEBOOKS = python(*NBMAKE, "--nbmake-timeout=1200", "notebooks", "--ignore=notebooks/vi", **LAB)
# the Vietnamese edition, which has the same code, as short lessons
VIETNAMESE = python(
    *NBMAKE,
    "--nbmake-timeout=300",
    "notebooks/vi",
    **LAB,
    COURSE_QUICK="1",
    PYTHONPATH=str(ROOT / "tests" / "helpers" / "tiny"),
)


def tests(**environment: str) -> Step:
    """A step that runs pytest on two workers, each with one thread."""
    return python("-m", "pytest", "tests", *WORKERS, OMP_NUM_THREADS="1", **environment)


# A new command is a line here and a rule in the Makefile.
TARGETS = {
    "help": Target("this list", (print_help,), bare=True),
    "setup": Target("make or repair .venv"),
    "course": Target(
        "set up, then run all notebooks in the lab profile, or only those with the given numbers",
        (STANDINS, python("tools/run_course.py")),
        takes="[00 01 …]",
    ),
    "test": Target(
        "set up, then run the tests for every change; each notebook is shortened to seconds",
        (*LINT, tests()),
        shown=True,
    ),
    "test-all": Target(
        "the same, with the long tests and every notebook of the lab at full size",
        (*LINT, tests(COURSE_TEST_ALL="1"), VIETNAMESE, NOTEBOOKS),
        shown=True,
    ),
    "test-notebooks": Target(
        "set up, then run every notebook of the lab at full size through nbmake, two at a time",
        (NOTEBOOKS,),
        shown=True,
    ),
    "lint": Target(
        "fix what ruff can fix",
        (python("-m", "ruff", "check", "--fix", "."), python("-m", "ruff", "format", ".")),
        shown=True,
    ),
    "jupyter": Target(
        "open the course in JupyterLab",
        (python("-m", "jupyter", "lab", "--notebook-dir=."),),
        shown=True,
        takes="[options]",
    ),
    "demo": Target(
        "open the web demo on this machine",
        (python("tools/demo.py"),),
        shown=True,
        takes="[options]",
    ),
    "label": Target(
        "vote in a terminal, or import and export the pairs of a campaign",
        (python("tools/label.py"),),
        takes="[options]",
    ),
    "class": Target(
        "let a class vote on telephones: a page on this laptop's address, without internet",
        (python("tools/classroom.py"),),
        takes="[options]",
    ),
    "grade": Target(
        "judge the exercises in a folder of students' notebooks, and write a table",
        (python("tools/grade.py"),),
        takes="FOLDER [options]",
    ),
    "slides": Target(
        "make slides of every notebook, or of those given, as web pages that need no network",
        (python("tools/slides.py"),),
        takes="[00 01 …]",
    ),
    "notebooks": Target(
        "run every notebook in the lab profile and keep the outputs, in both editions",
        (
            python("tools/run_course.py", "--write"),
            python("tools/figures.py"),
            python("tools/translate.py", "build"),
        ),
    ),
    "site": Target(
        "build the site of both editions into build/site",
        (SITE_PACKAGE, python("tools/glossary.py"), python("tools/build_site.py")),
        takes="[--output FOLDER]",
    ),
    "bench": Target(
        "PPO against TRL 1.12, its frontier and ablations (hours); SFT, DPO and pair search",
        tuple(
            python(f"benchmarks/{name}.py", *more)
            for name, *more in (
                ("ppo",),
                ("frontier", "--replace"),  # another machine has other base models
                ("ablations", "--replace"),
                ("sft",),
                ("dpo",),
                ("mining",),
            )
        ),
        shown=True,
    ),
    "badges": Target(
        "make every badge and clone URL refer to a repository",
        (python("tools/badges.py"),),
        takes="owner/name",
    ),
    "lock": Target(
        "write requirements.lock for every platform, with uv; --upgrade uses newer versions",
        (python("tools/lock.py"),),
        takes="[--upgrade]",
    ),
    "clean": Target(
        "remove the environment, caches, site and artifacts; votes are kept", (clean,), bare=True
    ),
}


def make_paths_absolute() -> None:
    """Let relative paths in the course's variables mean this folder in every step.

    The steps and the notebooks' kernels have other working folders.
    """
    for name in PATHS:
        value = os.environ.get(name, "").strip()
        if value in ("", "sample", "hub", "06"):  # words for data that is not a folder
            continue
        path = Path(value).expanduser()
        if not path.is_absolute() and (path.exists() or name in MADE):
            os.environ[name] = str(path.absolute())
    if own := re.fullmatch(r"sqlite:///(?!/|[A-Za-z]:)(.+)", os.environ.get("COURSE_VOTES", "")):
        os.environ["COURSE_VOTES"] = f"sqlite:///{Path(own[1]).absolute().as_posix()}"


def run(step: Step, more: Sequence[str] = ()) -> int:
    """Run a step and return its exit status. Ctrl-C goes to the step, which handles it itself."""
    child = subprocess.Popen(
        [str(bootstrap.PYTHON), *step.arguments, *more],
        cwd=ROOT,
        env=os.environ | step.environment,
    )
    presses = 0
    while True:
        try:
            status = child.wait(timeout=0.5)  # on Windows Ctrl-C cannot end a wait without a limit
            break
        except subprocess.TimeoutExpired:
            continue
        except KeyboardInterrupt:
            presses += 1
            if presses == 3:  # the step does not react
                child.kill()
    return INTERRUPTED if presses and status else status


def main(words: Sequence[str]) -> int:
    """Run a target; return the exit status of the first step that fails, else 0."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")
    os.environ.update(PYTHONUTF8="1", PYTHONIOENCODING="utf-8")  # for every child
    # hundreds of programs import the course's code: it is compiled once
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    name, *more = words or ["help"]
    target = TARGETS.get(name)
    if target is None:
        print(f"There is no target {name!r}. Choose one of: {', '.join(TARGETS)}.", file=sys.stderr)
        return 2
    if more and not target.takes:
        print(f"{name} accepts no arguments, but got: {' '.join(more)}.", file=sys.stderr)
        return 2
    make_paths_absolute()
    if not target.bare:
        bootstrap.main()
    for step in target.steps:
        if callable(step):
            step()
            continue
        given = more if step is target.steps[-1] else ()
        if target.shown:
            set_here = [f"{variable}={value}" for variable, value in step.environment.items()]
            print(*set_here, "python", *step.arguments, *given, flush=True)
        if status := run(step, given):
            return status
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)

"""Checks that need a real GPU, in three stages, for one rented machine without a network.

    python benchmarks/gpu.py A|B|C [--out FOLDER] [--quick] [--minutes 9] [--notebooks 03 04 …]

| stage | question | program |
|-------|----------|---------|
| A | do kernels and trainings in half precision agree with fp32? | gpu_parity.py |
| B | does every notebook cell run within a T4's memory? | gpu_notebooks.py |
| C | how fast is it, against TRL and plain loops? | gpu_speed.py |

Every result is written at once to `A.json`, `B.json` or `C.json` in FOLDER, so a command that is
killed loses at most one item. The same command continues later: results of this commit on this
device are not computed again, and an item that raised an error is tried once more, at the end. A
command stops by itself after `--minutes`. `--quick` uses tiny sizes and one notebook, to check that
the program runs: `tests/gpu/test_gpu_benchmark.py` does so on the emulated GPU.

Requirements. The machine's image must have Python 3.11 or later and torch 2.11 or later for CUDA;
no other package is assumed. `--wheels` itself needs no package: it prints the packages of `WHEELS`
below that are missing on the machine, or outside the ranges of requirements.txt, with the versions
of requirements.lock. This command fetches them for the Python of that machine, here 3.12:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \\
        --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 \\
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .whl -r wheels.txt

A transfer carries at most 64 MiB, this repository (6 MB) included. All of `WHEELS` takes about
240 MB: pyarrow (52), scipy (34) and gradio (30) each share a transfer with smaller ones. The wheel
of bitsandbytes (43 MB) must be cut to the one library for the image's CUDA (`torch.version.cuda`,
here 13.0), which leaves 3.6 MB:

    zip -d .whl/bitsandbytes-*.whl '*rocm*' '*xpu*' '*cuda118*' '*cuda12*' '*cuda132*'

On the machine, in this order, with a limit of ten minutes per command:

    python -m pip install -q --no-index --no-deps --no-compile --upgrade --target SITE .whl/*.whl
    export PYTHONPATH=SITE                                # in every command
    python benchmarks/gpu.py A B C --quick --out QUICK    # two minutes: checks the set-up
    python benchmarks/gpu.py A
    python benchmarks/gpu.py B --notebooks 03 04
    python benchmarks/gpu.py C
    python benchmarks/gpu.py B                            # the rest; repeat until all is done

Copy the JSON files from the machine after each command. If they are in FOLDER
(benchmarks/gpu_results) of a new machine, their items are not computed again. `COURSE_COMMIT` names
the commit if .git is not transferred. Stage C includes TRL's old PPOTrainer if .cache/trl-1.12.0 is
transferred as well: `benchmarks/ppo.py` creates that folder. Stage B keeps its models and artifacts
in .cache/gpu (25 GB), so that a later command finds them.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
if __name__ in ("__main__", "__mp_main__"):  # an image may contain other packages with these names
    for folder in ("benchmarks", "tests"):
        sys.modules[folder] = types.ModuleType(folder)
        sys.modules[folder].__path__ = [str(ROOT / folder)]
os.environ.setdefault("COURSE_PROGRESS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

WHEELS = """
trl transformers tokenizers accelerate peft bitsandbytes safetensors datasets pyarrow
huggingface_hub hf-xet multiprocess dill xxhash numpy pandas python-dateutil six pytz tzdata
scikit-learn scipy joblib threadpoolctl narwhals underthesea underthesea_core regex PyYAML
packaging psutil tqdm requests urllib3 certifi charset-normalizer idna httpx httpcore httpx2
httpcore2 h11 anyio truststore typer click rich markdown-it-py mdurl shellingham annotated-doc
matplotlib contourpy cycler fonttools kiwisolver pillow pyparsing cloudpickle
ipykernel ipython ipython_pygments_lexers Pygments jedi parso prompt_toolkit wcwidth pexpect
ptyprocess stack-data executing asttokens pure_eval matplotlib-inline comm debugpy
jupyter_client jupyter_core pyzmq tornado traitlets nest-asyncio2 platformdirs ipywidgets
widgetsnbextension jupyterlab_widgets nbclient nbformat fastjsonschema jsonschema
jsonschema-specifications referencing rpds-py attrs
sacrebleu portalocker tabulate lxml colorama
SQLAlchemy greenlet gradio gradio_client fastapi starlette uvicorn pydantic pydantic_core
annotated-types typing-inspection python-multipart orjson pydub safehttpx semantic-version groovy
hf-gradio tomlkit brotli opentelemetry-api
"""  # all that the stages import, except torch and its dependencies
LIBRARIES = ("torch", "triton", "transformers", "trl", "peft", "bitsandbytes", "accelerate")
TRIES = 2  # for an item that fails or that ends the process
ENOUGH = 5.0  # seconds that must be left to begin an item
FOLDERS = r"(?<![\w.:/])(/[\w.@+-]+)+/"  # absolute paths, all but the last name
Found = dict[str, object]


class OutOfTime(KeyboardInterrupt):
    """The minutes are over; no library catches it, because it is a KeyboardInterrupt."""


# --- The report ----------------------------------------------------------------------------------


def commit() -> str:
    """The commit; without .git, the value of COURSE_COMMIT or a hash of the code."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    done = subprocess.run(git, capture_output=True, text=True) if shutil.which("git") else None
    if done is not None and done.returncode == 0:
        return done.stdout.strip()
    if given := os.environ.get("COURSE_COMMIT"):
        return given
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("utils/**/*.py"), *ROOT.glob("benchmarks/*.py")]):
        digest.update(path.read_bytes())
    return f"files {digest.hexdigest()[:12]}"


def driver() -> str:
    """The version of the GPU's driver, or "none"."""
    if not (program := shutil.which("nvidia-smi")):
        return "none"
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(asked, capture_output=True, text=True).stdout.split()
    return lines[0] if lines else "none"


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def machine(quick: bool) -> tuple[Found, Found]:
    """The facts that identify a run (commit, device), and further facts about the machine."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device here: this program needs one.")
    belongs = {
        "commit": commit(),
        "device": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "quick": quick,
    }
    memory = torch.cuda.get_device_properties(0).total_memory
    facts = {"memory_gb": round(memory / 1e9, 1), "cuda": torch.version.cuda, "driver": driver()}
    return belongs, facts | {"cores": os.cpu_count(), "versions": versions()}


@dataclass
class Report:
    """The JSON of one stage: a run per commit and device, each with its items."""

    path: Path
    belongs: Found
    facts: Found

    def __post_init__(self) -> None:
        self.runs: list[Found] = []
        if self.path.exists():
            self.runs = json.loads(self.path.read_text(encoding="utf-8"))["runs"]
        same = (r for r in self.runs if all(r[key] == v for key, v in self.belongs.items()))
        self.run = next(same, None)
        if self.run is None:
            self.run = {**self.belongs, **self.facts, "items": {}}
            self.runs.append(self.run)
        self.items: dict[str, Found] = self.run["items"]

    def tries(self, name: str) -> int:
        """How often an item was begun."""
        return self.items.get(name, {}).get("tries", 0)

    def settled(self, name: str) -> bool:
        """Whether an item has a result, or has failed `TRIES` times."""
        item = self.items.get(name)
        if item is None or item.get("finished") is False:
            return False
        return "error" not in item or item["tries"] >= TRIES

    def begin(self, name: str) -> None:
        """Count a try before it starts, because it may end the process."""
        tries = self.tries(name) + 1
        self.items[name] = {"error": "the process ended while this ran", "tries": tries}
        self.write()

    def keep(self, name: str, found: Found) -> None:
        """Store what the try has found so far."""
        self.items[name] = {**found, "tries": self.tries(name)}
        self.write()

    def forget(self, name: str) -> None:
        """Remove an item that the time limit interrupted: it does not count as tried."""
        self.items.pop(name, None)
        self.write()

    def write(self) -> None:
        """Replace the file in one step, without the names of this machine's folders."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = re.sub(FOLDERS, "", json.dumps({"runs": self.runs}, indent=1, ensure_ascii=False))
        part = self.path.with_suffix(".part")
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, self.path)

    def summary(self) -> str:
        """The number of items, and the items that failed or are not finished."""
        failed = [n for n, i in self.items.items() if i.get("errors") or i.get("passed") is False]
        broken = [name for name, item in self.items.items() if "error" in item]
        again = [name for name in self.items if not self.settled(name)]
        lists = {"failed": failed, "with an error": broken, "to go on with": again}
        shown = [
            f"{len(names)} {what} ({', '.join(names)})" for what, names in lists.items() if names
        ]
        return " · ".join([f"{len(self.items)} items", *shown])


def described(error: BaseException) -> str:
    """The last line of an error, and where it was raised."""
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"{lines[-1]} ({where})"


# --- Items ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clock:
    """The time limit of this command."""

    end: float

    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()


def ring(*_: object) -> None:
    raise OutOfTime


def device_lives() -> bool:
    """Whether the GPU still computes; after some CUDA errors, all later calls fail."""
    import torch

    try:
        torch.cuda.synchronize()
        return float(torch.ones(1, device="cuda").sum()) == 1.0
    except Exception:
        return False


def attempt(report: Report, name: str, item: Callable[[], Found], clock: Clock) -> None:
    """Compute an item unless it is settled, and store its result or its error."""
    if report.settled(name):
        return print(f"{name}: done before", flush=True)
    if clock.left() < ENOUGH:
        raise OutOfTime
    report.begin(name)
    began = time.perf_counter()
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, clock.left())
    try:
        found = item()
    except OutOfTime:
        report.forget(name)
        raise
    except Exception as error:
        found = {"error": described(error)}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = round(time.perf_counter() - began, 2)
    report.keep(name, {**found, "seconds": seconds})
    verdict = {True: "passed", False: "FAILED"}.get(found.get("passed"), "done")
    print(f"{name}: {found.get('error', verdict)}, {seconds:.1f} s", flush=True)
    if "error" in found and not device_lives():
        print("The GPU no longer answers this process: going on in a new one.", flush=True)
        minutes = f"{clock.left() / 60:.2f}"
        os.execv(sys.executable, [sys.executable, *sys.argv, "--minutes", minutes])
    from utils.models.memory import release

    release()


def in_order(report: Report, items: dict[str, Callable[[], Found]], clock: Clock) -> None:
    """Try every item; those that failed before come last."""
    for name in sorted(items, key=report.tries):
        attempt(report, name, items[name], clock)


def parity(report: Report, asked: argparse.Namespace, clock: Clock) -> None:
    from benchmarks import common, gpu_parity

    common.quiet()
    in_order(report, gpu_parity.items(asked.quick), clock)


def speed(report: Report, asked: argparse.Namespace, clock: Clock) -> None:
    from benchmarks import common, gpu_speed

    common.quiet()
    in_order(report, gpu_speed.items(asked.quick), clock)


def cells(report: Report, asked: argparse.Namespace, clock: Clock) -> None:
    wanted = asked.notebooks or (QUICK if asked.quick else ORDER)
    for number in filter(report.settled, wanted):
        print(f"{number}: done before", flush=True)
    wanted = [number for number in wanted if not report.settled(number)]
    if not wanted:
        return
    from benchmarks import common, gpu_notebooks
    from utils.course import paths

    def build(name: str, item: Callable[[], Found]) -> None:
        report.forget(name)  # it was built on another machine
        attempt(report, name, item, clock)

    common.quiet()
    folder = paths.cache() / ("gpu-quick" if asked.quick else "gpu")
    gpu_notebooks.run(wanted, folder, report, build, clock.left, quick=asked.quick)
    if any(not report.settled(number) for number in wanted):
        raise OutOfTime


ORDER = ("03", "04", "07", "01", "02", "05", "08")  # of notebooks; 02 needs the reward of 01
QUICK = ("01",)  # it generates no text, which would take long on a CPU
STAGES = {"A": parity, "B": cells, "C": speed}


# --- The command ---------------------------------------------------------------------------------


def plain(name: str) -> str:
    """A package's name as requirements.lock spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing() -> list[str]:
    """The packages of WHEELS that are not installed, or not in the range of requirements.txt."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = (line.split(";")[0].strip() for line in lines if "==" in line)
    locked = {plain(pin.split("==")[0]): pin for pin in pins}
    wheels = [plain(name) for name in WHEELS.split()]
    try:
        from utils.course.colab import installed_versions, requirements, satisfied
    except ModuleNotFoundError:  # without packaging no version can be compared
        return [locked[name] for name in wheels]
    here = installed_versions(wheels)
    ranges = {plain(name): wanted for name, wanted in requirements().items()}
    return [
        locked[name]
        for name in wheels
        if name not in here or (name in ranges and not satisfied(here[name], ranges[name]))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="A|B|C", help="one stage, or several")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gpu_results"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that it runs")
    parser.add_argument("--minutes", type=float, default=9.0, help="the time limit")
    parser.add_argument("--notebooks", nargs="+", choices=ORDER, help="of stage B; default: all")
    parser.add_argument("--wheels", action="store_true", help="print the packages that are missing")
    asked = parser.parse_args()
    clock = Clock(time.monotonic() + 60 * asked.minutes)
    if asked.wheels:
        return print("\n".join(missing()))
    if not asked.stages or set(asked.stages) - set(STAGES):
        parser.error("name the stages to run: A, B or C")
    machine_of = machine(asked.quick)
    for stage in asked.stages:
        report = Report(asked.out / f"{stage}.json", *machine_of)
        print(f"Stage {stage} on {report.run['device']}", flush=True)
        try:
            STAGES[stage](report, asked, clock)
        except OutOfTime:
            print("The time is up, or an item must be tried again: repeat this command.")
        print(f"Stage {stage}: {report.summary()}", flush=True)


if __name__ == "__main__":
    main()

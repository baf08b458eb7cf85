"""Make or repair .venv from requirements.lock, using only Python's standard library."""

from __future__ import annotations  # an older Python must reach the error message in `main`

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
STAMP = VENV / ".installed"  # the hash of the lock that was installed completely
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

UV = "uv==0.13.9"  # unlike pip, it finds torch's CPU builds by itself
CUDA_FREE = (
    "No NVIDIA driver was found, so torch's CPU build is installed, without several GB of CUDA."
)
CUDA_AFTER_ALL = (
    "torch's CPU build could not be fetched: pip installs the default build, with several GB of "
    "CUDA packages that this machine does not use (README, Windows, macOS and Linux)."
)
PIP_DECIDES = (
    "No NVIDIA driver was found. pip is configured with its own package sources, so these decide "
    "whether torch's CPU build is installed."
)
VERIFY = """
import importlib.metadata as metadata, sys
if sys.version_info < (3, 11):
    sys.exit("its Python is older than 3.11")
try:
    from packaging.requirements import Requirement
except ImportError:
    sys.exit("packaging (found nothing)")
wrong = []
for line in open(sys.argv[1], encoding="utf-8"):
    line = line.split("#")[0].strip()
    if not line:
        continue
    wanted = Requirement(line)
    if wanted.marker and not wanted.marker.evaluate():
        continue
    version = str(wanted.specifier).removeprefix("==")
    try:
        found = metadata.version(wanted.name).split("+")[0]
    except metadata.PackageNotFoundError:
        found = "nothing"
    if found != version:
        wrong.append(f"{wanted.name} {version} (found {found})")
sys.exit("; ".join(wrong[:5]) if wrong else 0)
"""


def lock_hash() -> str:
    """The hash of the lock, to check whether the environment was made from the current one.

    The Python version is not part of it, because `make` and `python tools/run.py` may start with
    different versions. VERIFY checks the environment's own version.
    """
    return hashlib.sha256(LOCK.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def fault() -> str | None:
    """What is wrong with .venv, or None if it can be used."""
    if not VENV.exists():
        return "it is missing"
    if not STAMP.exists() or STAMP.read_text().strip() != lock_hash():
        return "it was not made from this requirements.lock"
    try:
        check = subprocess.run(
            [str(PYTHON), "-c", VERIFY, str(LOCK)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"its Python does not start ({type(error).__name__})"
    if not check.returncode:
        return None
    silent = f"its Python ends with status {check.returncode}"
    return (check.stderr.strip().splitlines() or [silent])[-1]


def create() -> None:
    """Make a new virtual environment that has only pip, even if ensurepip is missing."""
    python = sys.executable
    if Path(sys.prefix).resolve() == VENV.resolve():  # this very Python is to be removed
        if os.name == "nt":
            sys.exit("This is the Python of .venv: leave it with `deactivate`, then try again.")
        python = sys._base_executable
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    shutil.rmtree(VENV, ignore_errors=True)
    made = subprocess.run([python, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if made.returncode == 0:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([python, "-m", "venv", "--without-pip", str(VENV)], check=True)
    command = [python, "-m", "pip", "--python", str(PYTHON), "install", "-q", "pip"]
    if subprocess.run(command).returncode:
        sys.exit(
            "This Python has neither ensurepip nor pip: install the package that contains "
            "ensurepip (Debian and Ubuntu: python3-venv), then try again."
        )


def has_nvidia_driver() -> bool:
    """Whether this Linux machine has an NVIDIA driver."""
    traces = ("/proc/driver/nvidia", "/dev/nvidia0")
    return shutil.which("nvidia-smi") is not None or any(Path(trace).exists() for trace in traces)


def needs_cpu_build() -> bool:
    """Whether torch's default build would install unused CUDA packages, as it can on Linux."""
    return sys.platform == "linux" and not has_nvidia_driver()


def pip_settings() -> dict[str, str]:
    """pip's settings on this machine, from its files and the environment: name -> value."""
    run = subprocess.run(
        [str(PYTHON), "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    pairs = (line.partition("=") for line in run.stdout.splitlines())
    return {name.split(".", 1)[-1]: value.strip("'\"") for name, _, value in pairs}


def ways(cpu: bool) -> Iterator[tuple[list[str], dict[str, str], str]]:
    """The ways to install the lock, best first: command, environment, message to print.

    uv does not read pip's settings. So pip is used if its settings name sources besides the index.
    """
    settings = pip_settings()
    # a module is compiled when it is first imported; most of them never are
    options = ("-q", "--no-compile", "--disable-pip-version-check")
    pip = [str(PYTHON), "-m", "pip", "install", *options]
    sourced = {"find-links", "extra-index-url", "no-index"} & set(settings)
    if sourced:
        yield [*pip, "-r", str(LOCK)], {}, PIP_DECIDES if cpu else ""
    else:
        uv = ["pip", "install", "-q", "--python", str(PYTHON), "-r", str(LOCK)]
        extra = {}
        if cpu and "UV_TORCH_BACKEND" not in os.environ:
            extra["UV_TORCH_BACKEND"] = "cpu"
        if "index-url" in settings and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & set(os.environ):
            extra["UV_DEFAULT_INDEX"] = settings["index-url"]
        message = CUDA_FREE if cpu else ""
        if found := shutil.which("uv"):
            yield [found, *uv], extra, message
        if cpu and subprocess.run([*pip, UV]).returncode == 0:
            yield [str(PYTHON), "-m", "uv", *uv], extra, message
        yield [*pip, "-r", str(LOCK)], {}, CUDA_AFTER_ALL if cpu else ""
    yield [*pip, "-r", str(LOCK)], {}, "Trying again, because a registry may time out once."


def install() -> None:
    """Install the lock into .venv in the first way that succeeds."""
    for command, extra, message in ways(needs_cpu_build()):
        if message:
            print(message, flush=True)
        if subprocess.run(command, env=os.environ | extra).returncode == 0:
            return
    sys.exit("pip could not install requirements.lock: see its message above.")


def main() -> None:
    """Install requirements.lock into .venv; do nothing if it is already installed."""
    if sys.version_info < (3, 11):
        sys.exit(f"The course needs Python 3.11 or newer, but this is {sys.version.split()[0]}.")
    reason = fault()
    if reason is None:
        return
    print(f"Setting up .venv, because {reason}: this can take some minutes …", flush=True)
    create()
    install()
    STAMP.write_text(lock_hash() + "\n")
    print("Ready.", flush=True)


if __name__ == "__main__":
    main()

"""Write requirements.lock, for Linux, Windows and macOS and for Python 3.11 to 3.13.

It needs uv and a package registry. The versions of the existing lock are kept if they satisfy
requirements.txt; `--upgrade` uses the newest versions.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.course.paths import ROOT

LOCK = ROOT / "requirements.lock"
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "windows", "aarch64-apple-darwin")
MACOS = {"MACOSX_DEPLOYMENT_TARGET": "14.0"}  # the oldest for which bitsandbytes has a wheel
# requirements of torch's CUDA build on Linux; a CPU build has none of them
CUDA = re.compile(r"(nvidia|cuda)-|triton==")
HEADER = """\
# Written by `make lock` (tools/lock.py) from requirements.txt.
# For Linux, Windows and macOS 14 or newer on Apple silicon, Python 3.11 to 3.13.
# torch's CUDA packages are left out: its CUDA build brings them itself, its CPU build needs none.
"""


def uv() -> str | None:
    """The path of uv: this Python's package uv, else the uv on the PATH."""
    try:
        import uv as package

        return package.find_uv_bin()
    except ImportError:
        return shutil.which("uv")


def resolve(source: Path, out: Path, *options: str) -> subprocess.CompletedProcess:
    """Resolve a file of requirements; versions that are already in `out` are preferred."""
    command = [uv(), "pip", "compile", str(source), "-o", str(out), "--no-config", "--no-header"]
    return subprocess.run(
        [*command, "--no-annotate", "--quiet", *options],
        env=os.environ | {"UV_CACHE_DIR": str(ROOT / ".cache" / "uv")} | MACOS,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def without_cuda(text: str) -> str:
    """The lock without the packages that only torch's CUDA build needs.

    >>> without_cuda("six==1.17.0\\ntriton==3.7.1 ; sys_platform == 'linux'\\n")
    'six==1.17.0\\n'
    """
    return "".join(line for line in text.splitlines(keepends=True) if not CUDA.match(line))


def main(*options: str) -> None:
    """Resolve requirements.txt for all platforms together, and write the lock."""
    if uv() is None:
        sys.exit("Writing the lock needs uv, which was not found: run pip install uv, try again.")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "requirements.lock"
        shutil.copy(LOCK, out)
        asked = ("--universal", "--python-version", PYTHONS[0], *options)
        run = resolve(ROOT / "requirements.txt", out, *asked)
        if run.returncode:
            sys.exit(f"requirements.txt cannot be resolved: {run.stderr.strip()}")
        LOCK.write_text(HEADER + without_cuda(out.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

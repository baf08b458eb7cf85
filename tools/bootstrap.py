"""Make or mend .venv from requirements.lock with nothing but Python's standard library."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
STAMP = VENV / ".installed"  # the hash of the lock that was installed in full
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

VERIFY = """
import importlib.metadata as metadata, re, sys
wrong = []
for line in open(sys.argv[1], encoding="utf-8"):
    name, _, version = line.split("#")[0].strip().partition("==")
    if not name:
        continue
    try:
        found = metadata.version(name).split("+")[0]
    except metadata.PackageNotFoundError:
        found = "nothing"
    if found != version:
        wrong.append(f"{name} {version} (found {found})")
sys.exit("; ".join(wrong[:5]) if wrong else 0)
"""


def lock_hash() -> str:
    """The hash that tells whether the environment was made from today's lock."""
    return hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()


def fault() -> str | None:
    """What is wrong with .venv, or None when it can be used as it is."""
    if not VENV.exists():
        return "it is missing"
    if not STAMP.exists() or STAMP.read_text().strip() != lock_hash():
        return "it was not made from this requirements.lock by this Python"
    try:
        check = subprocess.run(
            [str(PYTHON), "-c", VERIFY, str(LOCK)], capture_output=True, text=True, timeout=120
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"its Python does not start ({type(error).__name__})"
    return check.stderr.strip().splitlines()[-1] if check.returncode else None


def create() -> None:
    """A new, empty virtual environment with pip in it, also where ensurepip is missing."""
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    shutil.rmtree(VENV, ignore_errors=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if made.returncode == 0:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(VENV)], check=True)
    borrowed = [sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "-q", "pip"]
    if subprocess.run(borrowed).returncode:
        sys.exit(
            "Python's venv has no ensurepip and no pip to borrow: install the package that "
            "brings it (Debian and Ubuntu: python3-venv), then run make again."
        )


def main() -> None:
    """Bring .venv to the state of requirements.lock, or do nothing when it is there."""
    if sys.version_info < (3, 11):
        sys.exit(f"The course needs Python 3.11 or newer, this is {sys.version.split()[0]}.")
    reason = fault()
    if reason is None:
        return
    print(f"Setting up .venv, since {reason}: a few minutes the first time …", flush=True)
    create()
    pip = [str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for attempt in (1, 2):  # a registry may time out once
        if subprocess.run([*pip, "-r", str(LOCK)]).returncode == 0:
            break
        if attempt == 2:
            sys.exit("pip could not install requirements.lock: read its message above.")
    STAMP.write_text(lock_hash() + "\n")
    print("Ready.", flush=True)


if __name__ == "__main__":
    main()

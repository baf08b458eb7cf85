"""Colab and Kaggle: install only packages that do not fit, and restart at most once."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from utils.course.errors import CourseError
from utils.course.language import tr
from utils.course.paths import ROOT

# changing the version of one of these breaks a running kernel ("dtype size changed")
PROTECTED = ("torch", "numpy", "pandas", "ipykernel", "ipython")
NEEDED = ("trl", "bitsandbytes", "underthesea", "datasets", "pyarrow", "peft", "transformers")
NEEDED += ("accelerate", "tokenizers", "huggingface_hub", "safetensors", "nbclient", "nbformat")
NEEDED += ("SQLAlchemy", "gradio", "psutil", "sentence-transformers", "sacrebleu")
TORCHAO_FLOOR = Version("0.16")  # PEFT raises ImportError for an older version
MOUNT = "/content/drive"
DRIVE = Path(MOUNT, "MyDrive", "preference-tuning-artifacts")  # exists only if Drive is mounted
RESTARTED = Path(tempfile.gettempdir()) / "preference-tuning-restarted"


class InstallError(CourseError, RuntimeError):
    """The packages of the course could not be installed or loaded."""


def hosted() -> bool:
    """Whether this is Colab or Kaggle."""
    return "google.colab" in sys.modules or "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def requirements() -> dict[str, str]:
    """Package -> version range, from requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pairs = [re.match(r"([\w-]+)(.*)", line.split("#")[0].strip()) for line in lines]
    return {pair.group(1): pair.group(2) for pair in pairs if pair}


def locked(text: str) -> dict[str, str]:
    """Package -> version in the text of a requirements.lock for this platform and this Python.

    >>> locked("# tools\\nruff==0.17.5\\npywinpty==3.1.2 ; os_name == 'no such system'\\n")
    {'ruff': '0.17.5'}
    """
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    wanted = [Requirement(line) for line in lines if line]
    return {
        each.name: str(each.specifier).removeprefix("==")
        for each in wanted
        if each.marker is None or each.marker.evaluate()
    }


def satisfied(version: str, wanted: str) -> bool:
    """Whether a version is in a range like `>=4.7,<6`; pre-releases and local versions count.

    >>> satisfied("2.11.0+cu128", ">=2.11,<3")
    True
    """
    return SpecifierSet(wanted).contains(version, prereleases=True)


def to_install(installed: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """The requirements that the image does not meet, without the protected packages."""
    return [
        name + wanted[name]
        for name in NEEDED
        if name not in PROTECTED
        and (name not in installed or not satisfied(installed[name], wanted[name]))
    ]


def to_keep(installed: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Constraints that keep the versions of protected packages and of packages that already fit.

    Without them, the newest datasets would change huggingface_hub, which other packages of the
    image pin.
    """
    return [
        f"{name}=={version}"
        for name, version in installed.items()
        if name in PROTECTED or (name in NEEDED and satisfied(version, wanted[name]))
    ]


def installed_versions(names: Sequence[str]) -> dict[str, str]:
    """The versions of those named packages that are installed; no package is imported."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _pip(*arguments: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "-q", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
    )
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["pip printed nothing"])[-1]
        raise InstallError(
            tr(
                "The course's packages could not be installed ({reason}): run this cell again; "
                "if it fails again, choose Runtime > Disconnect and delete runtime, and start "
                "again.",
                reason=reason,
            )
        )


def prepare() -> None:
    """Install missing packages on Colab and Kaggle; elsewhere or the second time, do nothing."""
    if not hosted():
        return
    before = installed_versions([*NEEDED, *PROTECTED, "torchao"])
    if "torchao" in before and Version(before["torchao"]) < TORCHAO_FLOOR:
        _pip("uninstall", "-y", "torchao")
    wanted = requirements()
    missing = to_install(before, wanted)
    if not missing:
        return
    print(tr("Installing {packages} …", packages=", ".join(missing)), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(to_keep(before, wanted)), encoding="utf-8")
        _pip("install", "-c", str(constraints), *missing)
    importlib.invalidate_caches()
    after = installed_versions(NEEDED)
    moved = [name for name in NEEDED if before.get(name) != after.get(name)]
    loaded = [name for name in moved if name.lower() in sys.modules]
    if not loaded:
        return
    if RESTARTED.exists():
        raise InstallError(
            tr(
                "{packages} was loaded before it was replaced, and the runtime has already "
                "restarted once: choose Runtime > Restart session, then run all cells.",
                packages=", ".join(loaded),
            )
        )
    RESTARTED.touch()
    print(
        tr(
            "{packages} was already loaded: the runtime restarts once; run all again.",
            packages=", ".join(loaded),
        )
    )
    _restart()


def keep_on_drive() -> None:
    """Mount Google Drive and keep artifacts, checkpoints and votes there.

    On Colab every notebook runs on its own machine. Drive is the storage that they share, so the
    next notebook finds there what this notebook hands over.
    """
    try:
        from google.colab import drive
    except ImportError:
        print(
            tr("KEEP_ON_DRIVE works only on Colab: here all files stay in the folder artifacts/.")
        )
        return
    drive.mount(MOUNT)
    os.environ["COURSE_ARTIFACTS"] = str(DRIVE)
    print(tr("Artifacts, checkpoints and votes are kept on Drive, in {folder}.", folder=DRIVE.name))


def _restart() -> None:
    from IPython import get_ipython

    get_ipython().kernel.do_shutdown(restart=True)
    raise SystemExit

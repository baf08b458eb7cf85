"""What the course installs: versions, licences, and known vulnerabilities where they can be asked.

A report for a person to read: it never fails, neither on a finding nor without a network.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.course.colab import locked

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
TIMEOUT = 300  # seconds for the vulnerability service
PERMISSIVE = re.compile(
    r"(MIT|0?BSD|ISC|Apache|PSF|Python Software Foundation|Zlib|CC0|BSL-1|CNRI|Unlicense)"
)


@dataclass(frozen=True)
class Package:
    """One line of the lock and what is known of it."""

    name: str
    locked: str
    installed: str  # "-" where it is missing
    licence: str

    @property
    def note(self) -> str:
        """What a reader should look at."""
        notes = []
        if self.installed != self.locked:
            notes.append(f"{self.installed} is installed")
        if not permissive(self.licence):
            notes.append("licence: read it" if self.licence == "unknown" else "not permissive")
        return ", ".join(notes)


def licence(metadata: importlib.metadata.PackageMetadata) -> str:
    """The licence expression; else the classifiers'; else the first line of the licence field."""
    if expression := metadata.get("License-Expression"):
        return expression
    marks = [c.split(" :: ")[-1] for c in metadata.get_all("Classifier") or []]
    marks = [mark for mark in marks if mark.endswith("License") or "License" in mark]
    field = (metadata.get("License") or "").strip().splitlines()
    return " AND ".join(marks) or (field[0][:60] if field else "unknown")


def permissive(text: str) -> bool:
    """Whether an expression can be met by permissive licences alone.

    >>> permissive("MIT AND (GPL-3.0 OR BSD-3-Clause)"), permissive("MIT AND MPL-2.0")
    (True, False)
    """
    inner = re.search(r"\(([^()]*)\)", text)
    if inner and re.search(r"\b(OR|AND)\b", inner.group(1)):
        met = "MIT" if permissive(inner.group(1)) else "Other"
        return permissive(text[: inner.start()] + met + text[inner.end() :])
    if re.search(r"\bOR\b", text):
        return any(permissive(part) for part in re.split(r"\bOR\b", text))
    return all(PERMISSIVE.match(part.strip()) for part in re.split(r"\bAND\b", text))


def packages(text: str) -> list[Package]:
    """What the lock names, with what is installed here."""
    found = []
    for name, version in locked(text).items():
        try:
            metadata = importlib.metadata.metadata(name)
            here, terms = metadata["Version"].split("+")[0], licence(metadata)
        except importlib.metadata.PackageNotFoundError:
            here, terms = "-", "unknown"
        found.append(Package(name, version, here, terms))
    return sorted(found, key=lambda package: package.name.lower())


def vulnerabilities(lock: Path = LOCK) -> tuple[list[str], str]:
    """(findings, what was looked up) by pip-audit, which uv brings for the occasion."""
    try:
        import uv

        program = uv.find_uv_bin()
    except ImportError:
        program = shutil.which("uv")
    if program is None:
        return [], "not looked up: uv, which brings pip-audit, is not installed"
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    try:
        run = subprocess.run(
            [program, "tool", "run", "pip-audit", "-r", str(lock), *options],
            env=os.environ | {"UV_CACHE_DIR": str(ROOT / ".cache" / "uv")},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        answers = json.loads(run.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return [], f"not looked up: no answer within {TIMEOUT} seconds"
    except (ValueError, KeyError):
        last = (run.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
        return [], f"not looked up: {last[:160]}"
    known = [answer for answer in answers if "vulns" in answer]
    if not known:
        return [], "not looked up: the registry here has no vulnerability service"
    findings = [
        f"{answer['name']} {answer['version']}: {flaw['id']}"
        + (f", mended in {', '.join(flaw['fix_versions'])}" if flaw.get("fix_versions") else "")
        for answer in known
        for flaw in answer["vulns"]
    ]
    return findings, f"{len(known)} of {len(answers)} packages looked up"


def main() -> None:
    """Print the table, what to look at, and the vulnerabilities."""
    found = packages(LOCK.read_text(encoding="utf-8"))
    wide = max(len(package.name) for package in found)
    print(f"{'package':{wide}}  {'locked':12}  {'licence':44}  note")
    for package in found:
        terms = package.licence if len(package.licence) <= 44 else package.licence[:43] + "…"
        print(f"{package.name:{wide}}  {package.locked:12}  {terms:44}  {package.note}".rstrip())
    noted = [package.name for package in found if package.note]
    print(f"\n{len(found)} packages, {len(noted)} to look at: {', '.join(noted) or 'none'}.")
    findings, scope = vulnerabilities()
    count = "" if scope.startswith("not") else f", {len(findings)} found"
    print(f"Known vulnerabilities: {scope}{count}.")
    for finding in findings:
        print(f"  {finding}")


if __name__ == "__main__":
    main()

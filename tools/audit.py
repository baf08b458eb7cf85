"""Report the versions, licences and known vulnerabilities of the course's packages.

The tools pip-licenses and pip-audit find them; uv downloads both tools for this run. The report is
for a person to read, so it never fails: neither on a finding nor without a network.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.course.colab import locked
from utils.course.paths import ROOT

LOCK = ROOT / "requirements.lock"
TIMEOUT = 80  # seconds per tool, including its download
PERMISSIVE = re.compile(
    r"(MIT|0?BSD|ISC|Apache|PSF|Python Software Foundation|Zlib|CC0|BSL-1|CNRI|Unlicense)"
)


def permissive(text: str) -> bool:
    """Whether permissive licences alone satisfy a licence expression.

    >>> permissive("MIT AND (GPL-3.0 OR BSD-3-Clause)"), permissive("MIT; MPL-2.0")
    (True, False)
    """
    inner = re.search(r"\(([^()]*)\)", text)
    if inner and re.search(r"\b(OR|AND)\b", inner.group(1)):
        met = "MIT" if permissive(inner.group(1)) else "Other"
        return permissive(text[: inner.start()] + met + text[inner.end() :])
    if re.search(r"\bOR\b", text):
        return any(permissive(part) for part in re.split(r"\bOR\b", text))
    return all(PERMISSIVE.match(part.strip()) for part in re.split(r"\bAND\b|;", text))


def answer(tool: str, *options: str) -> tuple[object, str]:
    """Run a tool: (the JSON that it prints, "") or (None, the reason why there is none)."""
    try:
        import uv

        program = uv.find_uv_bin()
    except ImportError:
        program = shutil.which("uv")
    if program is None:
        return None, f"not looked up: uv, which downloads {tool}, is not installed"
    try:
        run = subprocess.run(
            [program, "tool", "run", tool, *options, "--format", "json"],
            env=os.environ | {"UV_CACHE_DIR": str(ROOT / ".cache" / "uv")},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        return json.loads(run.stdout), ""
    except subprocess.TimeoutExpired:
        return None, f"not looked up: no answer within {TIMEOUT} seconds"
    except ValueError:
        last = (run.stderr.strip().splitlines() or [f"{tool} printed nothing"])[-1]
        return None, f"not looked up: {last[:160]}"


def packages(text: str) -> tuple[list[dict[str, str]], str]:
    """(the lock's packages with installed version, licence and note, the reason if empty)."""
    answers, why = answer("pip-licenses", "--python", sys.executable, "--with-system")
    here = {canonicalize_name(each["Name"]): each for each in answers or []}
    found = []
    for name, version in locked(text).items() if here else []:
        each = here.get(canonicalize_name(name), {"Version": "no version", "License": "UNKNOWN"})
        installed, licence = each["Version"].split("+")[0], each["License"]
        notes = [f"{installed} is installed"] if installed != version else []
        if not permissive(licence):
            notes.append("licence unknown" if licence == "UNKNOWN" else "not permissive")
        found.append(
            {"package": name, "locked": version, "licence": licence, "note": ", ".join(notes)}
        )
    return sorted(found, key=lambda package: package["package"].lower()), why


def vulnerabilities() -> tuple[list[str], str]:
    """(findings, how many packages were looked up or why none)."""
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off"]
    found, why = answer("pip-audit", "-r", str(LOCK), *options)
    if found is None:
        return [], why
    known = [package for package in found["dependencies"] if "vulns" in package]
    if not known:
        return [], "not looked up: the registry here has no vulnerability service"
    findings = [
        f"{package['name']} {package['version']}: {flaw['id']}"
        + (f", fixed in {', '.join(flaw['fix_versions'])}" if flaw.get("fix_versions") else "")
        for package in known
        for flaw in package["vulns"]
    ]
    return findings, f"{len(known)} of {len(found['dependencies'])} packages looked up"


def main() -> None:
    """Print the table of packages, those to check, and the known vulnerabilities."""
    found, why = packages(LOCK.read_text(encoding="utf-8"))
    for package in [{name: name for name in found[0]}, *found] if found else []:
        cells = {
            name: text if len(text) <= 44 else text[:43] + "…" for name, text in package.items()
        }
        print("{package:28}  {locked:12}  {licence:44}  {note}".format(**cells).rstrip())
    noted = [package["package"] for package in found if package["note"]]
    known = f"{len(found)} packages, {len(noted)} to check: {', '.join(noted) or 'none'}"
    print(f"\nLicences: {why or known}.")
    findings, scope = vulnerabilities()
    count = "" if scope.startswith("not") else f", {len(findings)} found"
    print(f"Known vulnerabilities: {scope}{count}.")
    for finding in findings:
        print(f"  {finding}")


if __name__ == "__main__":
    main()

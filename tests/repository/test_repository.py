"""Files that must agree with one another."""

import importlib.metadata
import json
import re
import subprocess
import sys

import pytest
from packaging.utils import canonicalize_name

from utils.course import colab
from utils.course.notebooks import files
from utils.course.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import badges
import bootstrap

NOTEBOOKS = files()


def lock() -> dict[str, str]:
    return colab.locked((ROOT / "requirements.lock").read_text(encoding="utf-8"))


def test_every_requirement_is_locked_inside_its_range():
    locked = {canonicalize_name(name): version for name, version in lock().items()}
    for name, wanted in colab.requirements().items():
        assert canonicalize_name(name) in locked, f"{name} is not in requirements.lock"
        version = locked[canonicalize_name(name)]
        assert colab.satisfied(version, wanted), f"{name} {version} is outside {wanted}"


def test_requirements_have_a_floor_and_a_ceiling():
    for name, wanted in colab.requirements().items():
        assert re.fullmatch(r">=[\d.]+,<[\d.]+", wanted), f"{name}{wanted}"


def test_conda_installs_the_same_requirements():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert "-r requirements.txt" in text
    python = re.search(r"requires-python = \">=([\d.]+)\"", (ROOT / "pyproject.toml").read_text())
    assert f"python>={python.group(1)}" in text


def test_the_lock_is_what_runs_here():
    wrong = {
        name: (version, found)
        for name, version in lock().items()
        if (found := importlib.metadata.version(name).split("+")[0]) != version
    }
    assert wrong == {}


def test_badges_and_clone_urls_come_from_one_place():
    current = badges.settings()
    for path in NOTEBOOKS:
        text = "\n".join("".join(c["source"]) for c in json.loads(path.read_text())["cells"])
        assert badges.badges(current["repository"], current["tag"], path.stem) in text
        assert f'REPO, TAG = "{current["repository"]}", "{current["tag"]}"' in text
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert badges.badges(current["repository"], current["tag"], path.stem) in readme
    assert f"git clone https://github.com/{current['repository']}" in readme


def test_make_badges_rewrites_every_mention(tmp_path, monkeypatch):
    for name in ("pyproject.toml", "README.md", "README.vi.md"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "notebooks").mkdir()
    for path in NOTEBOOKS:
        (tmp_path / "notebooks" / path.name).write_bytes(path.read_bytes())
    former = badges.settings()["repository"]
    monkeypatch.setattr(badges, "ROOT", tmp_path)
    badges.main("new-owner/new.name")
    everything = "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    assert former not in everything
    assert everything.count("new-owner/new.name") >= 1 + 3 * len(NOTEBOOKS)
    with pytest.raises(SystemExit, match="owner/name"):
        badges.main("nonsense")


def test_a_broken_environment_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / "my venv")
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / "my venv" / ".installed")
    monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / "my venv" / "bin" / "python")
    assert "missing" in bootstrap.fault()
    (tmp_path / "my venv").mkdir()
    assert "requirements.lock" in bootstrap.fault()
    bootstrap.STAMP.write_text(bootstrap.lock_hash())
    assert "does not start" in bootstrap.fault()
    bootstrap.PYTHON.parent.mkdir()
    bootstrap.PYTHON.symlink_to(sys.executable)
    assert bootstrap.fault() is None or "found nothing" in bootstrap.fault()


def test_no_tracked_file_names_a_place_on_a_machine():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split("\n")
    forbidden = re.compile(r"/(work|farm|root|home/[a-z]+)/")
    found = []
    for name in filter(None, tracked):
        path = ROOT / name
        if path.suffix in {".png", ".jpg"} or not path.exists():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if forbidden.search(line):
                found.append(f"{name}:{number}")
    assert found == []

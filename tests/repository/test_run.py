"""The commands of tools/run.py on everyday machines, and how set-up chooses what to install."""

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers import chains
from utils.course import colab, notebooks
from utils.course.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import bootstrap
import lock
import run

WORKFLOW = ROOT / ".github" / "workflows" / "test.yml"
NEEDS_SHELL = pytest.mark.skipif(
    os.name == "nt", reason="it stands in for Python by a shell script"
)
# What stands in for the Python of .venv: the check finds no fault, and a step shows how it runs.
STAND_IN = f"""#!/bin/sh
[ "$1" = -c ] && exit 0
exec "{sys.executable}" - "$@" <<'PROGRAM'
import os, sys
print(sys.argv[1:], os.getcwd(), sys.flags.utf8_mode, sys.stdout.encoding, "học …")
print(os.environ.get("OMP_NUM_THREADS"), os.environ.get("COURSE_PROFILE"))
sys.exit(3 if "tools/demo.py" in sys.argv and "--fail" in sys.argv else 0)
PROGRAM
"""


@pytest.fixture
def course(tmp_path) -> Path:
    """The files that the commands need, in a folder as a student may name it."""
    folder = tmp_path / "khoá học"
    (folder / "tools").mkdir(parents=True)
    for name in ("run.py", "bootstrap.py"):
        shutil.copy(ROOT / "tools" / name, folder / "tools")
    for name in ("requirements.lock", "Makefile"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv" / "bin").mkdir(parents=True)
    program = folder / ".venv" / "bin" / "python"
    program.write_text(STAND_IN, encoding="utf-8")
    program.chmod(0o755)
    (folder / ".venv" / ".installed").write_text(bootstrap.lock_hash())
    return folder


def call(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """tools/run.py from another folder, on a console that does not say UTF-8."""
    console = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0", "LC_ALL": "C"}
    kept = {k: v for k, v in os.environ.items() if k not in {"OMP_NUM_THREADS", "COURSE_PROFILE"}}
    return subprocess.run(
        [sys.executable, str(folder / "tools" / "run.py"), *words],
        cwd=folder.parent,
        env=kept | console | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


# --- The commands --------------------------------------------------------------------------------


def test_help_names_every_target_from_a_path_with_a_space_and_diacritics(course):
    done = call(course, "help")
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"(?m)^([a-z][a-z-]*) .*? \w", done.stdout)
    assert [name for name in listed if name in run.TARGETS] == list(run.TARGETS)
    assert "…" in done.stdout
    assert call(course).stdout == done.stdout
    assert all(target.words for target in run.TARGETS.values())


@NEEDS_SHELL
def test_a_step_runs_in_the_folder_of_the_course_with_utf8(course):
    done = call(course, "demo", "--port", "7861")
    assert done.returncode == 0, done.stderr
    shown, seen, _ = done.stdout.splitlines()
    assert shown == "python tools/demo.py --port 7861"
    expected = ["tools/demo.py", "--port", "7861"], str(course)
    assert seen == f"{expected[0]} {expected[1]} 1 utf-8 học …"
    assert call(course, "demo", "--fail").returncode == 3


def test_relative_paths_mean_the_folder_of_the_command(tmp_path, monkeypatch):
    """The README's COURSE_FEEDBACK_DATA=my_faculty: a kernel works in another folder."""
    (tmp_path / "my_faculty").mkdir()
    monkeypatch.chdir(tmp_path)
    given = {
        "COURSE_FEEDBACK_DATA": "my_faculty",
        "COURSE_PREFERENCE_DATA": "06",
        "COURSE_POLICY": "someone/gpt2",
        "COURSE_ARTIFACTS": "made",
        "COURSE_VOTES": "sqlite:///votes/votes.sqlite",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    run.make_paths_absolute()
    assert {name: os.environ[name] for name in given} == given | {
        "COURSE_FEEDBACK_DATA": str(tmp_path / "my_faculty"),
        "COURSE_ARTIFACTS": str(tmp_path / "made"),
        "COURSE_VOTES": f"sqlite:///{tmp_path.as_posix()}/votes/votes.sqlite",
    }
    before = dict(os.environ)
    run.make_paths_absolute()
    assert dict(os.environ) == before


@NEEDS_SHELL
def test_the_steps_of_test_run_in_order_with_their_environment(course):
    out = call(course, "test").stdout.splitlines()
    shown = [line for line in out if line.split("=")[0].startswith(("python ", "OMP", "COURSE"))]
    assert [" ".join(line.split()[:4]) for line in shown] == [
        "python -m ruff check",
        "python -m ruff format",
        "OMP_NUM_THREADS=1 python -m pytest",
    ]
    settings = [line for line in out if re.fullmatch(r"(1|None) (lab|None)", line)]
    assert settings == ["None None", "None None", "1 None"]


@NEEDS_SHELL
def test_the_first_step_that_fails_ends_the_target(course):
    stand_in = course / ".venv" / "bin" / "python"
    stand_in.write_text(STAND_IN.replace('"tools/demo.py" in sys.argv and "--fail"', '"--check"'))
    done = call(course, "test")
    assert done.returncode == 3
    assert "ruff format" in done.stdout and "-m pytest" not in done.stdout


def test_test_all_is_test_with_one_variable_more():
    """And the notebooks at full size; the Vietnamese edition runs as short lessons."""
    long = [step for step in run.TARGETS["test-all"].steps if "pytest" in step.arguments]
    assert long[0].environment == {"OMP_NUM_THREADS": "1", "COURSE_TEST_ALL": "1"}
    assert "--nbmake" in run.NOTEBOOKS.arguments
    for step in (*run.LINT, run.VIETNAMESE, run.NOTEBOOKS):
        assert step in run.TARGETS["test-all"].steps


def required(notebook: Path) -> list[str]:
    """The numbers of the notebooks whose artifacts this one requires."""
    text = notebook.read_text(encoding="utf-8")
    return re.findall(r'course\.require\(\\"(\d\d)_', text)


def test_a_chain_of_notebooks_has_every_artifact_that_they_require():
    """So the two chains of `make test-notebooks` can run side by side."""
    assert not doctest.testmod(chains).failed
    links = 0
    for path in notebooks.files():
        for needed in required(path):
            assert chains.chain_of(f"notebooks/{needed}_") == chains.chain_of(path.name)
            assert needed <= path.name[:2], "a chain runs in the order of the numbers"
            links += 1
    assert links > 5


def test_a_chain_of_ci_has_every_artifact_that_its_notebooks_require():
    """On a slow machine CI runs one of them; together they hold every notebook."""
    (given,) = re.findall(r"CHAINS=\((.*?)\)", (run.ROOT / ".ci" / "run").read_text("utf-8"))
    chosen = [chain.split() for chain in re.findall(r'"(.*?)"', given)]
    assert {number for chain in chosen for number in chain} == set(notebooks.LESSONS)
    for chain in chosen:
        for place, number in enumerate(chain):
            needed = {*required(notebooks.path_of(number))} - {number}
            assert needed <= set(chain[:place]), f"{number} comes before what it requires"


@pytest.mark.parametrize("words", [["nothing"], ["test", "00"]])
def test_a_wrong_word_is_one_sentence(course, words):
    done = call(course, *words)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and words[-1] in done.stderr


@NEEDS_SHELL
def test_ctrl_c_lets_the_step_end_and_shows_no_traceback(course):
    import signal
    import time

    stand_in = course / ".venv" / "bin" / "python"
    stand_in.write_text(
        '#!/bin/sh\n[ "$1" = -c ] && exit 0\n'
        "trap 'echo closed; exit 1' INT\necho open\nwhile :; do sleep 0.1; done\n"
    )
    child = subprocess.Popen(
        [sys.executable, str(course / "tools" / "run.py"), "jupyter"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while "open" not in child.stdout.readline():
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGINT)  # the terminal sends it to the whole group
    out, errors = child.communicate(timeout=30)
    assert child.returncode == run.INTERRUPTED
    assert "closed" in out and errors == ""


def test_clean_keeps_the_votes_and_does_not_follow_links(course):
    shared = course.parent / "shared"
    shared.mkdir()
    (shared / "kept").touch()
    shutil.rmtree(course / ".venv")
    (course / ".venv").symlink_to(shared, target_is_directory=True)
    for name in (".cache/x", "artifacts/lab/model", "artifacts/votes.sqlite-wal"):
        (course / name).parent.mkdir(parents=True, exist_ok=True)
        (course / name).touch()
    assert call(course, "clean").returncode == 0
    left = [path.relative_to(course).as_posix() for path in (course / "artifacts").iterdir()]
    assert left == ["artifacts/votes.sqlite-wal"]
    assert not (course / ".cache").exists() and not (course / ".venv").exists()
    assert (shared / "kept").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_every_rule_of_the_makefile_calls_the_target_of_its_name():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    rules = re.search(r"(?m)^\.PHONY: (.*)$", makefile).group(1).split()
    assert set(rules) == set(run.TARGETS)
    alone = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    for name in rules:
        given = {"badges": ("REPO", "a/b"), "grade": ("FOLDER", "class A")}.get(name)
        asked = ["make", "-n", name, *(["=".join(given)] if given else [])]
        done = subprocess.run(
            asked, cwd=ROOT, env=alone, capture_output=True, text=True, check=True
        )
        told = done.stdout
        word = f'{name} "{given[1]}"' if given else name
        assert told.rstrip().endswith(f"tools/run.py {word}")


def test_readme_and_contributing_name_the_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in run.TARGETS:
        assert re.search(rf"`?(make|run\.py) {name}\b", readme + contributing), name
    for text in (readme, contributing):
        for name in re.findall(r"(?m)(?:`|^)(?:make|python tools/run\.py) ([a-z-]+)", text):
            assert name in run.TARGETS, name
    assert "python tools/run.py course" in readme
    for path in ("LICENSE-DATA", "tools/run.py"):
        assert path in readme
    for path in (".github/workflows/test.yml", ".github/ISSUE_TEMPLATE", ".devcontainer"):
        assert path in contributing


# --- What set-up installs ------------------------------------------------------------------------


class Machine:
    """A machine on which every program that set-up starts only takes notes."""

    def __init__(self, monkeypatch, tmp_path):
        self.calls, self.settings, self.failing = [], "", ()
        self.monkeypatch = monkeypatch
        for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
            monkeypatch.delenv(name)
        monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / "python")
        monkeypatch.setattr(bootstrap.subprocess, "run", self.note)
        self.has(system="linux", driver=False, uv=None)

    def has(self, system: str, driver: bool, uv: str | None) -> None:
        self.monkeypatch.setattr(bootstrap.sys, "platform", system)
        self.monkeypatch.setattr(bootstrap, "has_nvidia_driver", lambda: driver)
        self.monkeypatch.setattr(bootstrap.shutil, "which", {"uv": uv}.get)

    def note(self, command, env=None, **_):
        if "config" in command:
            return subprocess.CompletedProcess(command, 0, self.settings)
        words = " ".join(command).replace(str(bootstrap.PYTHON), "python")
        backend = (env or {}).get("UV_TORCH_BACKEND", "")
        self.calls.append((words.split(" install")[0], backend))
        self.index = (env or {}).get("UV_DEFAULT_INDEX")
        failed = any(words.startswith(start) for start in self.failing)
        return subprocess.CompletedProcess(command, int(failed))


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return Machine(monkeypatch, tmp_path)


PIP, OWN_UV = "python -m pip", "python -m uv pip"


@pytest.mark.parametrize(
    ("system", "driver", "uv", "calls", "printed"),
    [
        ("linux", False, None, [(PIP, ""), (OWN_UV, "cpu")], bootstrap.CUDA_FREE),
        ("linux", False, "uv", [("uv pip", "cpu")], bootstrap.CUDA_FREE),
        ("linux", True, "uv", [("uv pip", "")], ""),
        ("linux", True, None, [(PIP, "")], ""),
        ("win32", False, None, [(PIP, "")], ""),
        ("darwin", False, "uv", [("uv pip", "")], ""),
    ],
)
def test_the_build_of_torch_and_the_installer(machine, capsys, system, driver, uv, calls, printed):
    machine.has(system, driver, uv)
    bootstrap.install()
    assert machine.calls == calls
    assert capsys.readouterr().out.strip() == printed


def test_without_the_cpu_build_set_up_goes_on_and_says_what_comes(machine, capsys):
    machine.failing = (OWN_UV,)
    bootstrap.install()
    assert machine.calls == [(PIP, ""), (OWN_UV, "cpu"), (PIP, "")]
    assert capsys.readouterr().out.splitlines() == [bootstrap.CUDA_FREE, bootstrap.CUDA_AFTER_ALL]


def test_pip_that_is_told_of_other_sources_decides(machine, capsys):
    machine.has("linux", False, "uv")
    machine.settings = "global.find-links='a folder'\n:env:.default-timeout='180'\n"
    bootstrap.install()
    assert machine.calls == [(PIP, "")]
    assert capsys.readouterr().out.strip() == bootstrap.PIP_DECIDES


def test_uv_is_told_of_the_mirror_that_pip_uses(machine):
    machine.has("linux", False, "uv")
    machine.settings = "global.index-url='file:///mirror/simple'\n"
    bootstrap.install()
    assert machine.index == "file:///mirror/simple"
    machine.monkeypatch.setenv("UV_TORCH_BACKEND", "cu130")  # who says so gets it
    bootstrap.install()
    assert machine.calls[-1] == ("uv pip", "cu130")


def test_a_registry_that_fails_twice_is_one_sentence(machine):
    machine.failing = (PIP,)
    with pytest.raises(SystemExit, match=r"could not install requirements\.lock"):
        bootstrap.install()
    assert machine.calls == [(PIP, "")] * 3  # uv, then the lock twice


def verify(tmp_path, text: str) -> str:
    """What the check of an environment says of a lock, here."""
    path = tmp_path / "requirements.lock"
    path.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", bootstrap.VERIFY, str(path)], capture_output=True, text=True
    )
    return done.stderr.strip()


def test_the_python_of_the_environment_can_make_it_anew(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    monkeypatch.setattr(bootstrap.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(bootstrap.sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr(
        bootstrap.subprocess,
        "run",
        lambda command, **_: calls.append(command) or subprocess.CompletedProcess(command, 0),
    )
    bootstrap.create()
    assert [command[0] for command in calls] == [sys._base_executable]


def test_the_check_reads_markers(tmp_path):
    pytest_version = f"pytest=={pytest.__version__}"
    elsewhere = "no-such-package==1 ; sys_platform == 'nowhere'"
    assert verify(tmp_path, f"# a comment\n{elsewhere}\n{pytest_version}\n") == ""
    here = "no-such-package==1 ; sys_platform != 'nowhere'"
    assert verify(tmp_path, here) == "no-such-package 1 (found nothing)"
    two = f"pytest==1 ; python_version < '3.11'\n{pytest_version} ; python_version >= '3.11'\n"
    assert verify(tmp_path, two) == ""
    assert verify(tmp_path, "pytest==1\n") == f"pytest 1 (found {pytest.__version__})"


def test_another_python_does_not_make_the_environment_anew(monkeypatch):
    """`make` and `python tools/run.py` may start with different ones."""
    before = bootstrap.lock_hash()
    monkeypatch.setattr(sys, "version", "another")
    assert bootstrap.lock_hash() == before


# --- The lock on every platform ------------------------------------------------------------------

PINNED = [Requirement(line) for line in bootstrap.LOCK.read_text().splitlines() if "==" in line]
SYSTEMS = {  # the values that markers are compared with
    "linux": ("posix", "x86_64"),
    "win32": ("nt", "AMD64"),
    "darwin": ("posix", "arm64"),
}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", lock.PYTHONS)
def test_every_platform_has_each_package_once(system, python):
    name, machine = SYSTEMS[system]
    environment = {
        "sys_platform": system,
        "os_name": name,
        "platform_machine": machine,
        "python_version": python,
        "python_full_version": f"{python}.9",
    }
    chosen = [p.name for p in PINNED if p.marker is None or p.marker.evaluate(environment)]
    assert len(chosen) == len(set(chosen))
    assert {canonicalize_name(name) for name in colab.requirements()} <= set(chosen)
    only = {"pywinpty": "win32", "appnope": "darwin"}
    for package, home in only.items():
        assert (package in chosen) == (system == home)
    assert ("ptyprocess" in chosen) == (system != "win32")
    assert ("audioop-lts" in chosen) == (python == "3.13")
    assert not [package for package in chosen if lock.CUDA.match(f"{package}==")]


@pytest.mark.long
@pytest.mark.parametrize("platform", lock.PLATFORMS)
@pytest.mark.parametrize("python", lock.PYTHONS)
def test_the_lock_resolves_with_wheels_alone(platform, python, tmp_path):
    if lock.uv() is None:
        pytest.skip("uv, which resolves for another Python, is not installed: pip install uv.")
    out = tmp_path / "resolved.txt"
    asked = ("--python-platform", platform, "--python-version", python, "--only-binary", ":all:")
    done = lock.resolve(bootstrap.LOCK, out, *asked)
    if done.returncode and re.search(r"Failed to fetch|error sending request|dns", done.stderr):
        pytest.skip(f"No package registry: {done.stderr.strip().splitlines()[-1].strip()}")
    assert done.returncode == 0, done.stderr
    resolved = lock.without_cuda(out.read_text(encoding="utf-8")).splitlines()
    pinned = {f"{pin.name}{pin.specifier}" for pin in PINNED}
    assert {"torch", "bitsandbytes"} <= {line.split("==")[0] for line in resolved}
    assert set(resolved) - pinned == set()  # nothing comes that the lock does not name


def test_the_examples_in_docstrings_hold():
    assert all(doctest.testmod(module).attempted for module in (lock, colab))
    assert not any(doctest.testmod(module).failed for module in (lock, colab))


def test_the_cuda_packages_are_recognised():
    lines = ["torch==2.13.0", "triton==3.7.1", "nvidia-nvtx==13.0.85", "cuda-toolkit==13.0.3.0"]
    kept = lock.without_cuda("\n".join([*lines, "tritonclient==1"]))
    assert kept.split() == ["torch==2.13.0", "tritonclient==1"]


# --- GitHub, the development container, the licence of the data ----------------------------------


def commands_of(text: str) -> set[str]:
    return set(re.findall(r"python tools/run\.py ([a-z-]+)", text))


def test_the_workflow_runs_targets_that_exist_on_the_pythons_of_the_lock():
    text = WORKFLOW.read_text(encoding="utf-8")
    assert {"test", "test-all", "setup", "course", "site"} == commands_of(text) <= set(run.TARGETS)
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == list(lock.PYTHONS)
    machines = jobs["smoke"]["strategy"]["matrix"]["machine"]
    assert {name.split("-")[0] for name in machines} == {"ubuntu", "windows", "macos"}
    triggers = yaml.safe_load(text)[True]  # YAML 1.1 reads `on` as true
    assert triggers["schedule"][0]["cron"].split()[2:4] == ["*", "*"]
    assert triggers["schedule"][0]["cron"].split()[4] != "*"  # weekly


def test_the_issue_forms_have_what_github_requires():
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert {path.name for path in forms} == {
        "cell_fails_on_colab.yml",
        "config.yml",
        "own_data.yml",
    }
    variables = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem == "config":
            continue
        assert form["name"] and form["description"]
        fields = [part for part in form["body"] if part["type"] != "markdown"]
        assert len({part["id"] for part in fields}) == len(fields)
        assert all(part["attributes"]["label"] for part in fields)
        for variable in re.findall(r"COURSE_\w+", path.read_text(encoding="utf-8")):
            assert variable in variables
    form = yaml.safe_load((forms[0]).read_text(encoding="utf-8"))
    offered = next(part for part in form["body"] if part.get("id") == "notebook")["attributes"]
    assert offered["options"] == sorted(p.stem[:2] for p in (ROOT / "notebooks").glob("*.ipynb"))


def test_the_pull_request_template_and_the_container_name_targets_that_exist():
    for name in (".github/pull_request_template.md", ".devcontainer/devcontainer.json"):
        named = commands_of((ROOT / name).read_text(encoding="utf-8"))
        assert named and named <= set(run.TARGETS)
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["image"].rpartition(":")[2] in lock.PYTHONS


def test_the_licence_of_the_data_is_the_whole_legal_code():
    text = (ROOT / "LICENSE-DATA").read_text(encoding="utf-8")
    sections = re.findall(r"(?m)^Section (\d) -- ", text)
    assert sections == list("12345678")
    assert "Creative Commons Attribution 4.0 International Public License" in text
    assert not re.search("ShareAlike|NonCommercial|NoDeriv", text)
    assert "LICENSE-DATA" in (ROOT / "data" / "README.md").read_text(encoding="utf-8")


def test_the_site_is_published_from_the_folder_that_it_is_built_into():
    text = (WORKFLOW.parent / "site.yml").read_text(encoding="utf-8")
    assert commands_of(text) == {"site"}
    jobs = yaml.safe_load(text)["jobs"]
    uses = {step.get("uses", "").split("@")[0]: step for step in jobs["build"]["steps"]}
    upload = uses["actions/upload-pages-artifact"]
    assert upload["with"]["path"] in run.TARGETS["site"].words
    assert set(jobs["publish"]["permissions"]) == {"pages", "id-token"}
    assert jobs["publish"]["needs"] == "build" and "main" in jobs["publish"]["if"]

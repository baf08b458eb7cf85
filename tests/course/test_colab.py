"""The set-up cell on Colab: the packages it installs there, and its effects when it runs."""

import ast
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from utils.course import colab
from utils.course.notebooks import files, path_of
from utils.course.paths import ROOT

PYTHONS = ("3.12", "3.13")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
# cannot stand in one resolution with PyPI's torch, whose CUDA is 13; Colab's own build has 12.8
CUDA_12 = "cudf-cu12"
MUST_MOVE = {"datasets", "pyarrow", "torchao"}  # TRL needs newer ones; PEFT rejects this torchao
NOT_ON_COLAB = {"psycopg", "segno"}  # a store on a PostgreSQL server; `make class`, on a laptop


def pins(text: str) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return dict(line.split("==") for line in lines if "==" in line)


IMAGE = pins((ROOT / "tests" / "course" / "colab_image.txt").read_text(encoding="utf-8"))


# --- What pip would install there ----------------------------------------------------------------


def resolve(folder: Path, python: str, wanted: list[str], kept: list[str] = ()) -> dict[str, str]:
    """The versions that a resolver chooses on Colab's platform, preferring those of the image."""
    try:
        import uv

        program = uv.find_uv_bin()
    except ImportError:
        program = shutil.which("uv")
    if program is None:
        pytest.skip("uv, which resolves for another Python, is not installed: pip install uv.")
    files = {
        "wanted.in": wanted,
        "kept.txt": kept,
        "chosen.txt": [f"{n}=={IMAGE[n]}" for n in IMAGE],
    }
    for name, lines in files.items():
        # PyPI's torch carries no local version such as +cu128
        text = "\n".join(re.sub(r"\+\w+$", "", line) for line in lines)
        (folder / name).write_text(text, encoding="utf-8")
    # an existing output file gives the preferred versions, as pip prefers installed ones
    command = "pip compile wanted.in -c kept.txt -o chosen.txt --only-binary :all: --no-config"
    command += f" --python-version {python} --python-platform x86_64-manylinux_2_28"
    run = subprocess.run(
        [program, *command.split(), "--no-header", "--no-annotate", "--quiet"],
        cwd=folder,
        env=os.environ | {"UV_CACHE_DIR": str(ROOT / ".cache" / "uv")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if run.returncode and re.search(r"Failed to fetch|error sending request|dns", run.stderr):
        pytest.skip(f"No package registry: {run.stderr.strip().splitlines()[-1].strip()}")
    assert run.returncode == 0, run.stderr
    chosen = pins((folder / "chosen.txt").read_text(encoding="utf-8"))
    return {canonicalize_name(name): version for name, version in chosen.items()}


@pytest.fixture(scope="module", params=PYTHONS)
def resolution(request, tmp_path_factory):
    """The versions that result from the pip command of `prepare` on the image."""
    folder = tmp_path_factory.mktemp("colab")
    wanted = colab.requirements()
    asked, kept = colab.to_install(IMAGE, wanted), colab.to_keep(IMAGE, wanted)
    return request.param, resolve(folder, request.param, asked, kept), kept


@pytest.mark.long
def test_the_install_cell_resolves_and_moves_only_what_must_move(resolution, capsys):
    python, chosen, kept = resolution
    here = {canonicalize_name(name): version.split("+")[0] for name, version in IMAGE.items()}
    moved = {n: (here[n], v) for n, v in chosen.items() if n in here and here[n] != v}
    with capsys.disabled():
        shown = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in sorted(moved.items()))
        print(f"\nColab, Python {python}: moves {shown}")
    assert {"trl", "bitsandbytes", "underthesea"} <= set(chosen)
    assert set(moved) >= MUST_MOVE - {"torchao"}
    assert not set(moved) & set(colab.PROTECTED)
    assert not set(moved) & {canonicalize_name(pin.split("==")[0]) for pin in kept}


@pytest.mark.long
def test_nothing_else_in_the_image_is_broken_by_it(resolution, tmp_path):
    python, chosen, _ = resolution
    after = {canonicalize_name(name): version for name, version in IMAGE.items()} | chosen
    everything = [f"{name}=={version}" for name, version in after.items()]
    resolve(
        tmp_path, python, [pin for pin in everything if not pin.startswith((CUDA_12, "torchao"))]
    )


@pytest.mark.long
def test_cudf_bears_the_new_pyarrow(tmp_path):
    """cudf is resolved alone, because PyPI's torch excludes it; Colab's own torch does not."""
    chosen = resolve(
        tmp_path, PYTHONS[-1], [f"{CUDA_12}=={IMAGE[CUDA_12]}", "pyarrow>=21", "datasets>=4.7"]
    )
    assert chosen["pandas"] == IMAGE["pandas"]


@pytest.mark.long
def test_a_constraint_that_cannot_hold_is_an_error_not_a_move(tmp_path):
    with pytest.raises(AssertionError, match="No solution"):
        resolve(tmp_path, PYTHONS[-1], ["trl>=1.16,<1.17"], ["pyarrow==18.1.0"])


def imported_distributions() -> dict[str, str]:
    """Distribution -> where the course's package or a notebook imports it."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("utils/**/*.py")}
    for path in files():
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        sources[path.name] = "\n".join(
            re.sub(r"(?m)^(\s*)[%!].*", r"\1pass", text) for text in code
        )
    owner, found = importlib.metadata.packages_distributions(), {}
    for where, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for module in modules:
                for name in owner.get(module.split(".")[0], [])[:1]:
                    found[canonicalize_name(name)] = where
    return found


def test_whatever_the_course_imports_is_in_the_image_or_installed():
    named = {canonicalize_name(name) for name in (*colab.NEEDED, *colab.PROTECTED, *IMAGE)}
    # packages such as starlette come as dependencies of a named package
    brought = set()
    for name in named:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            for line in importlib.metadata.requires(name) or []:
                if "extra ==" not in line:
                    brought.add(canonicalize_name(NAME.match(line).group()))
    imported = imported_distributions()
    assert {"torch", "trl", "datasets"} <= set(imported)
    lacking = {n: where for n, where in imported.items() if n not in named | brought | NOT_ON_COLAB}
    assert lacking == {}


# --- `prepare` with a pip that only takes notes --------------------------------------------------


@pytest.fixture
def session(monkeypatch, tmp_path):
    """A Colab runtime whose pip only records its calls."""
    image, calls = dict(IMAGE), []
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(
        colab, "installed_versions", lambda names: {n: image[n] for n in names if n in image}
    )
    monkeypatch.setattr(colab, "RESTARTED", tmp_path / "restarted")

    def pip(*arguments):
        calls.append(arguments)
        if arguments[0] == "install":
            kept = Path(arguments[2]).read_text(encoding="utf-8").split()
            calls[-1] = (*arguments, *kept)
            wanted = colab.requirements()
            for requirement in arguments[3:]:
                name = requirement.split(">")[0]
                image[name] = wanted[name].split(">=")[1].split(",")[0]
        else:
            image.pop(arguments[2])

    monkeypatch.setattr(colab, "_pip", pip)
    restarts = []
    monkeypatch.setattr(colab, "_restart", lambda: restarts.append(1))
    return image, calls, restarts


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.setattr(colab, "_pip", lambda *_: pytest.fail("pip was called"))
    colab.prepare()


def test_what_fits_is_kept_and_what_does_not_is_not():
    kept = pins("\n".join(colab.to_keep(IMAGE, colab.requirements())))
    assert set(colab.PROTECTED) <= set(kept)
    for name in ("huggingface_hub", "transformers", "tokenizers", "peft", "gradio"):
        assert kept[name] == IMAGE[name]
    assert not {"datasets", "pyarrow", "trl", "wandb", "torchao"} & set(kept)


def test_a_loaded_package_that_moves_twice_asks_for_a_restart_by_hand(session, monkeypatch):
    image, _, restarts = session
    for name in colab.NEEDED:
        monkeypatch.delitem(sys.modules, name.lower(), raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    colab.prepare()
    assert len(restarts) == 1
    image["pyarrow"] = IMAGE["pyarrow"]
    with pytest.raises(RuntimeError, match=r"pyarrow was loaded .* Restart session"):
        colab.prepare()
    assert len(restarts) == 1


def test_a_dependency_that_moved_while_loaded_restarts_too(session, monkeypatch):
    """huggingface_hub is not requested, but pip may have to change its version."""
    image, _, restarts = session
    for name in colab.NEEDED:
        monkeypatch.delitem(sys.modules, name.lower(), raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.ModuleType("huggingface_hub"))
    noting = colab._pip
    monkeypatch.setattr(
        colab, "_pip", lambda *a: (noting(*a), image.update(huggingface_hub="2.4.0"))
    )
    colab.prepare()
    assert len(restarts) == 1


def test_a_pip_that_fails_is_one_sentence(monkeypatch, tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'a long story' >&2; echo 'ERROR: no disk' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(RuntimeError, match=r"\(ERROR: no disk\): run this cell again"):
        colab._pip("install", "nothing")


def test_requirements_accept_the_image_where_it_has_the_package():
    wanted = colab.requirements()
    for name in set(colab.NEEDED) & set(IMAGE) - {"datasets", "pyarrow"}:
        assert colab.satisfied(IMAGE[name], wanted[name]), name
    for name in colab.PROTECTED:
        if name in wanted:
            assert colab.satisfied(IMAGE[name], wanted[name]), name


@pytest.mark.parametrize(
    ("version", "wanted", "inside"),
    [
        ("4.0.0", ">=4.7,<6", False),
        ("4.7.0", ">=4.7,<6", True),
        ("5.2.0", ">=4.7,<6", True),
        ("6.0", ">=4.7,<6", False),
        ("2.11.0+cu128", ">=2.11,<3", True),
        ("0.10.0", ">=0.16", False),
        ("4.8.0.dev0", ">=4.7,<6", True),
    ],
)
def test_ranges(version, wanted, inside):
    assert colab.satisfied(version, wanted) is inside


# --- The first cell of a notebook, in a process of its own on a simulated Colab -------------------

FAKE_PIP = '''
"""A pip that takes notes and changes nothing but the versions that the image claims."""
import json, re, shutil, sys
from pathlib import Path

SITE = Path(__file__).parents[1]
words = sys.argv[1:]
kept = Path(words[words.index("-c") + 1]).read_text().split() if "-c" in words else []
with open(SITE / "calls.jsonl", "a") as file:
    file.write(json.dumps({"words": words, "kept": kept}) + "\\n")
if words[0] == "uninstall":
    shutil.rmtree(next(SITE.glob(f"{words[2]}-*.dist-info")))
for word in words if words[0] == "install" else []:
    if bounds := re.match(r"([\\w-]+)>=([\\d.]+),<", word):
        name, version = bounds.groups()
        for old in SITE.glob(f"{name}-*.dist-info"):
            shutil.rmtree(old)
        folder = SITE / f"{name}-{version}.dist-info"
        folder.mkdir()
        text = f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
        (folder / "METADATA").write_text(text)
'''

DRIVER = '''
"""Runs the cell as Colab's kernel would: google.colab is loaded and /content is a folder."""
import json, os, sys, time, types
import google.colab
import IPython

for name in os.environ["LOADED"].split():
    sys.modules[name] = types.ModuleType(name)
restarts = []
kernel = types.SimpleNamespace(do_shutdown=lambda restart: restarts.append(restart))
IPython.get_ipython = lambda: types.SimpleNamespace(kernel=kernel)
isdir = os.path.isdir
os.path.isdir = lambda path: path == "/content" or (path != "/kaggle" and isdir(path))
cell = open(os.environ["CELL"], encoding="utf-8").read()
ended, names = [], {}
for _ in range(int(os.environ["TIMES"])):
    try:
        exec(cell, names)
        ended.append("ran")
    except SystemExit:
        ended.append("left")
        break
found = {"ended": ended, "restarts": restarts}
if "course" in names:
    from utils.course.hub import read_token

    found |= {"notebook": names["course"].notebook, "token": read_token()}
    found["from"] = sys.modules["utils"].__file__
print("FOUND", json.dumps(found))
'''

REFUSALS = {
    "missing": "raise SecretNotFoundError(name)",
    "denied": "raise NotebookAccessError(name)",
    "outside the UI": "raise TimeoutException('no frontend')",
    "granted": "return 'hf_from_the_secret'",
}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A repository with the current working tree under the tag that the notebooks clone."""
    repository = tmp_path_factory.mktemp("published")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "utils", "notebooks", "data", "*.t*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in filter(lambda name: (ROOT / name).is_file(), listed):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, repository / name)
    tag = re.search(r'tag = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")).group(1)
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "all"], ["tag", tag]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    return repository


class Colab:
    """One simulated machine: its home, its site-packages, and the calls of its pip."""

    def __init__(self, folder: Path, published: Path) -> None:
        self.site, self.home, self.published = folder / "site", folder / "home", published
        (self.site / "google" / "colab").mkdir(parents=True)
        self.home.mkdir()
        (self.site / "pip").mkdir()
        for name in ("pip/__init__.py", "google/__init__.py", "google/colab/__init__.py"):
            (self.site / name).touch()
        (self.site / "pip" / "__main__.py").write_text(FAKE_PIP)
        (self.site / "driver.py").write_text(DRIVER)
        # the image's versions of packages to remove or change; 0.0.1 hides one of this machine
        claimed = dict.fromkeys(("trl", "bitsandbytes", "underthesea"), "0.0.1")
        for name, version in claimed.items() | {name: IMAGE[name] for name in MUST_MOVE}.items():
            info = self.site / f"{name}-{version}.dist-info"
            info.mkdir()
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (info / "METADATA").write_text(text)
        code = json.loads(path_of("01").read_text(encoding="utf-8"))["cells"]
        first = next(cell for cell in code if cell["cell_type"] == "code")
        (self.site / "cell.txt").write_text("".join(first["source"]), encoding="utf-8")
        self.secret("missing")

    def secret(self, answer: str) -> None:
        """Set what google.colab.userdata returns from now on."""
        (self.site / "google" / "colab" / "userdata.py").write_text(
            textwrap.dedent(
                f"""
                class SecretNotFoundError(Exception): ...
                class NotebookAccessError(Exception): ...
                class TimeoutException(Exception): ...
                def get(name):
                    {REFUSALS[answer]}
                """
            )
        )

    def pip_calls(self) -> list[dict]:
        notes = self.site / "calls.jsonl"
        return (
            [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
        )

    def run(self, times: int = 1, loaded: str = "", **environment: str) -> tuple[dict, str]:
        """Run the first cell in a new kernel; return its result and its output."""
        tmp = self.home / "tmp"
        tmp.mkdir(exist_ok=True)
        git = {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{self.published}/.git.insteadOf",
            "GIT_CONFIG_VALUE_0": "https://github.com/" + repository(),
        }
        settings = {
            "HOME": str(self.home),
            "TMPDIR": str(tmp),
            "PYTHONPATH": str(self.site),
            "CELL": str(self.site / "cell.txt"),
            "TIMES": str(times),
            "LOADED": loaded,
            "COURSE_PROFILE": "lab",
        }
        dropped = {"HF_TOKEN", "KAGGLE_KERNEL_RUN_TYPE"}
        base = {name: value for name, value in os.environ.items() if name not in dropped}
        run = subprocess.run(
            [sys.executable, str(self.site / "driver.py")],
            cwd=self.home,
            env=base | git | settings | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0, run.stderr
        printed, _, found = run.stdout.rpartition("FOUND ")
        return json.loads(found), printed


def repository() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'repository = "(.+)"', text).group(1)


@pytest.fixture
def machine(tmp_path, published):
    return Colab(tmp_path, published)


def test_the_first_cell_fresh_then_again_then_after_a_restart(machine):
    found, printed = machine.run(times=2)
    assert found["ended"] == ["ran", "ran"]
    assert found["restarts"] == []
    assert found["notebook"] == "01_phobert_reward_model"
    assert found["from"].startswith(str(machine.home / "preference-tuning"))  # the clone, not here
    removal, install = machine.pip_calls()  # and no third call when the cell runs again
    assert removal["words"][:3] == ["uninstall", "-y", "torchao"]
    asked = {NAME.match(word).group() for word in install["words"] if ">=" in word}
    assert asked >= {"trl", "bitsandbytes", "underthesea", "datasets", "pyarrow"}
    held = set(pins("\n".join(install["kept"])))
    assert held == set(colab.PROTECTED) | (set(colab.NEEDED) - asked)
    assert printed.count("Installing") == 1
    found, printed = machine.run()
    assert found["ended"] == ["ran"]
    assert len(machine.pip_calls()) == 2
    assert "Installing" not in printed


def test_the_first_cell_with_pyarrow_loaded_restarts_once(machine):
    found, printed = machine.run(times=2, loaded="pyarrow")
    assert found == {"ended": ["left"], "restarts": [True]}
    assert "pyarrow was already loaded: the runtime restarts once" in printed
    found, printed = machine.run()  # the new kernel has not imported anything yet
    assert found["ended"] == ["ran"] and found["restarts"] == []
    assert "Installing" not in printed


@pytest.mark.parametrize("answer", REFUSALS)
def test_the_secret_when_it_is_given_and_when_it_is_not(machine, answer):
    machine.secret(answer)
    found, _ = machine.run(HF_TOKEN="hf_from_the_environment")
    expected = "hf_from_the_secret" if answer == "granted" else "hf_from_the_environment"
    assert found["token"] == expected

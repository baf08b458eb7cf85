"""The subpackages of `utils`: the README has the same map, and none imports from above."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import utils
from utils.course.paths import ROOT

HOUSE = ROOT / "utils"
FOUNDATION = {"door"}  # it exports the names of the rooms, and is not a room


def map_of(text: str) -> dict[str, str]:
    """Room -> what is inside, from lines of two columns, from the top down."""
    return dict(re.findall(r"(?m)^([a-z]+) {2,}(\S.*)$", text))


ROOMS = list(map_of(utils.__doc__))


def arrows_of(text: str) -> dict[str, str]:
    """Room -> the rooms that it imports, from lines with an arrow."""
    return dict(re.findall(r"(?m)^([a-z]+) → (.+)$", text))


def room_of(path: Path) -> str:
    inside = path.relative_to(HOUSE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "utils":
            deep = node.module.split(".")[1:]
            found |= {deep[0]} if deep else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("utils.")}
    return found


MODULES = sorted(path for path in HOUSE.rglob("*.py") if path.parent != HOUSE)


def test_every_folder_and_module_is_on_the_map():
    rooms = {room_of(path) for path in HOUSE.rglob("*.py")} - {"__init__"} - FOUNDATION
    assert rooms == set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_a_room_imports_from_rooms_below_it(path):
    below = set(ROOMS[ROOMS.index(room_of(path)) :]) | FOUNDATION
    assert imported(path) <= below


def test_the_readme_has_the_same_map():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert map_of(readme) == map_of(utils.__doc__)


@pytest.mark.parametrize("file", ["README.md", "README.vi.md", "utils/__init__.py"])
def test_the_arrows_are_drawn_from_the_imports(file):
    drawn = {room: set() for room in ROOMS}
    for path in [*MODULES, HOUSE / "losses.py"]:
        drawn[room_of(path)] |= imported(path) - {room_of(path)} - FOUNDATION
    wanted = {
        room: ", ".join(below for below in ROOMS if below in rooms)
        for room, rooms in drawn.items()
        if rooms
    }
    assert arrows_of((ROOT / file).read_text(encoding="utf-8")) == wanted


@pytest.mark.parametrize("room", [room for room in ROOMS if (HOUSE / room).is_dir()])
def test_a_door_gives_every_name_that_it_lists(room):
    package = importlib.import_module(f"utils.{room}")
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match=rf"The room utils\.{room} has no 'nothing'"):
        package.nothing  # noqa: B018


def test_a_door_loads_nothing_heavy_until_it_is_used():
    rooms = ", ".join(f"utils.{room}" for room in ROOMS)
    program = f"import sys, {rooms}; print('torch' in sys.modules, 'datasets' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["True", "False"]  # losses is tensors, the other rooms are closed


def modules_in(path: Path) -> list[tuple[str, str, int]]:
    """Each (module of `utils`, attribute, line) that a file reads through the module's name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named: dict[str, set[str]] = {}  # a function may import another module by the same name
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "utils":
            for alias in node.names:
                deep = f"{node.module}.{alias.name}"
                if (ROOT / deep.replace(".", "/")).with_suffix(".py").is_file():
                    named.setdefault(alias.asname or alias.name, set()).add(deep)
    stored = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    stored |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return [
        (next(iter(named[node.value.id])), node.attr, node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and len(named.get(node.value.id, ())) == 1
        and node.value.id not in stored
    ]


@pytest.mark.parametrize("folder", ["benchmarks", "tests", "tools", "utils"])
def test_every_name_that_is_read_from_a_module_is_in_it(folder):
    """A script that no test runs must not ask a module for a name that has moved."""
    missing = [
        f"{path.relative_to(ROOT)}:{line}: {module} has no {attribute}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for module, attribute, line in modules_in(path)
        if not hasattr(importlib.import_module(module), attribute)
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("folder", ["benchmarks", "tools"])
def test_every_name_that_is_imported_from_a_module_is_in_it(folder):
    missing = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "utils":
                for alias in node.names:
                    module = importlib.import_module(node.module)
                    found = hasattr(module, alias.name) or importlib.util.find_spec(
                        f"{node.module}.{alias.name}"
                    )
                    if not found:
                        missing.append(f"{path.relative_to(ROOT)}:{node.lineno}: {alias.name}")
    assert not missing, "\n".join(missing)

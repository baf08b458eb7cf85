"""Every keyword that the course passes to a library's configuration exists there, in the oldest
version that requirements.txt allows (Colab's image has it), the locked and the newest one."""

import ast
import importlib
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from utils.course import colab
from utils.course.notebooks import files
from utils.course.paths import ROOT

HOMES = {  # configuration -> the module that has it
    "SFTConfig": "trl",
    "DPOConfig": "trl",
    "GRPOConfig": "trl",
    "RLOOConfig": "trl",
    "RewardConfig": "trl",
    "ORPOConfig": "trl.experimental.orpo",
    "TrainingArguments": "transformers",
    "BitsAndBytesConfig": "transformers",
    "LoraConfig": "peft",
}
LIBRARIES = ("transformers", "peft", "trl")
VERSIONS = ("oldest", "newest")
Function = ast.FunctionDef | ast.AsyncFunctionDef


class UnfollowedError(Exception):
    """A ** whose keys cannot be read from the source: write it so that they can."""


# --- What the course passes ----------------------------------------------------------------------


@dataclass(frozen=True)
class Use:
    """One call of a configuration."""

    config: str
    keywords: frozenset[str]
    where: str


class Course:
    """The course's sources, with the keys that each `**name` brings."""

    def __init__(self, sources: dict[str, str]) -> None:
        self.trees = {where: ast.parse(text) for where, text in sources.items()}
        self.parents: dict[ast.AST, ast.AST] = {}
        self.functions: dict[str, list[Function]] = {}
        self.classes: dict[str, ast.ClassDef] = {}
        self.asked: set[ast.AST] = set()
        self.open: set[int] = set()  # names that are being followed
        for node in self._nodes():
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
            if isinstance(node, Function):
                self.functions.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.ClassDef):
                self.classes[node.name] = node

    def _nodes(self) -> Iterator[ast.AST]:
        for tree in self.trees.values():
            yield from ast.walk(tree)

    def scopes(self, node: ast.AST) -> Iterator[ast.AST]:
        """The functions around a node from the inside out, then its module."""
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, Function | ast.Module):
                yield node

    def bound(self, name: str, node: ast.AST) -> list[tuple[ast.expr, int | None]]:
        """(what is assigned to a name seen from a node, its position if unpacked)."""
        for scope in self.scopes(node):
            if found := self._assigned(scope).get(name):
                return found
        return []

    @cache  # noqa: B019 - one Course a test session
    def _assigned(self, scope: ast.AST) -> dict[str, list[tuple[ast.expr, int | None]]]:
        found: dict[str, list[tuple[ast.expr, int | None]]] = {}
        for part in ast.walk(scope):
            match part:
                case ast.Assign():
                    targets, value = part.targets, part.value
                case ast.For() | ast.comprehension():
                    targets, value = [part.target], part.iter
                case ast.AnnAssign() | ast.AugAssign() | ast.NamedExpr() if part.value:
                    targets, value = [part.target], part.value
                case _:
                    continue
            for target in targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append((value, None))
                for index, element in enumerate(getattr(target, "elts", [])):
                    if isinstance(element, ast.Name):
                        found.setdefault(element.id, []).append((value, index))
        return found

    def configs(self, called: ast.expr, node: ast.AST) -> set[str]:
        """The configurations that an expression which is called may stand for."""
        name = getattr(called, "attr", getattr(called, "id", None))
        if name in HOMES:
            return {name}
        meant: set[str] = set()
        for value, index in self.bound(name, node) if isinstance(called, ast.Name) else []:
            if index is None and not isinstance(value, ast.Call):
                meant |= {
                    name for name in HOMES if isinstance(value, ast.Name) and value.id == name
                }
            for row in ast.walk(value):
                if index is not None and isinstance(row, ast.Tuple) and index < len(row.elts):
                    element = row.elts[index]
                    meant |= {n for n in HOMES if isinstance(element, ast.Name) and element.id == n}
        return meant

    def uses(self) -> Iterator[Use]:
        """Every call of a configuration, of `partial` on one and of `replace` on one."""
        for where, tree in self.trees.items():
            for call in ast.walk(tree):
                if not isinstance(call, ast.Call):
                    continue
                name = getattr(call.func, "attr", getattr(call.func, "id", None))
                configs = self.configs(call.func, call)
                if name == "partial" and call.args:
                    configs = self.configs(call.args[0], call)
                elif name == "replace" and call.args and isinstance(call.args[0], ast.Name):
                    made = [value for value, _ in self.bound(call.args[0].id, call)]
                    made = [value for value in made if isinstance(value, ast.Call)]
                    configs = set().union(*(self.configs(m.func, m) for m in made))
                for config in configs:
                    location = f"{where}:{call.lineno}"
                    try:
                        keywords = frozenset(self.passed(call))
                    except UnfollowedError as error:
                        raise UnfollowedError(f"{location}, {config}(**…): {error}") from None
                    yield Use(config, keywords, location)

    def passed(self, call: ast.Call) -> set[str]:
        """The keywords of a call, those behind ** included."""
        named = {keyword.arg for keyword in call.keywords if keyword.arg}
        opened = [self.keys(keyword.value) for keyword in call.keywords if keyword.arg is None]
        return named.union(*opened)

    def keys(self, value: ast.expr) -> set[str]:
        """The keys of an expression that makes a dict."""
        match value:
            case ast.Dict():
                found = set()
                for key, inner in zip(value.keys, value.values, strict=True):
                    found |= self.keys(inner) if key is None else self._constant(key)
                return found
            case ast.BinOp(op=ast.BitOr()):
                return self.keys(value.left) | self.keys(value.right)
            case ast.IfExp():
                return self.keys(value.body) | self.keys(value.orelse)
            case ast.BoolOp():
                return set().union(*map(self.keys, value.values))
            case ast.Call(func=ast.Name(id="dict")):
                return self.passed(value).union(*map(self.keys, value.args))
            case ast.Call(func=ast.Name(id="asdict"), args=[settings]):
                return self.fields(settings)
            case ast.Call():
                return self.returned(value)
            case ast.Name():
                return self.named(value)
        raise UnfollowedError(f"cannot read the keys of {ast.unparse(value)}")

    def _constant(self, key: ast.expr) -> set[str]:
        if isinstance(key, ast.Constant):
            return {key.value}
        raise UnfollowedError(f"the key {ast.unparse(key)} is not a constant")

    def returned(self, call: ast.Call) -> set[str]:
        """What a function of the course returns."""
        name = getattr(call.func, "attr", getattr(call.func, "id", None))
        if not self.functions.get(name):
            raise UnfollowedError(f"{ast.unparse(call.func)} is no function of the course")
        found = set()
        for function in self.near(self.functions[name], call):
            for node in ast.walk(function):
                if isinstance(node, ast.Return) and node.value is not None:
                    found |= self.keys(node.value)
        return found

    def named(self, name: ast.Name) -> set[str]:
        """The keys of a name: all that is assigned to it, or what its function's callers pass."""
        values = self.bound(name.id, name)
        if values:
            if (key := id(values)) in self.open:  # `kept = kept | {…}` brings nothing new of itself
                return set()
            self.open.add(key)
            found = set().union(*(self.keys(value) for value, _ in values))
            self.open.remove(key)
            return found | self.added(name)
        for scope in self.scopes(name):
            arguments = getattr(scope, "args", None)
            if arguments and arguments.kwarg and arguments.kwarg.arg == name.id:
                return self.brought(scope)
            if arguments and name.id in self.parameters(scope):
                return self.handed(scope, name.id)
        raise UnfollowedError(f"nothing is assigned to {name.id}")

    def added(self, name: ast.Name) -> set[str]:
        """Keys added later: `name["key"] = value` and `name.update(…)`."""
        found = set()
        for node in ast.walk(list(self.scopes(name))[-1]):
            match node:
                case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=owner), slice=key)]):
                    found |= self._constant(key) if owner == name.id else set()
                case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr="update")):
                    if owner == name.id:
                        found |= self.passed(node).union(*map(self.keys, node.args))
        return found

    def brought(self, function: Function) -> set[str]:
        """What the callers of a function with **options pass beyond its named parameters."""
        if function in self.asked:
            return set()  # it calls itself, or its callers are its callees
        self.asked.add(function)
        own = set(self.parameters(function))
        found = set().union(*(self.passed(call) - own for call in self.calls(function)))
        self.asked.remove(function)
        return found

    def handed(self, function: Function, parameter: str) -> set[str]:
        """The keys of the dicts that a function's callers hand to one parameter."""
        index, found = self.parameters(function).index(parameter), set()
        for call in self.calls(function):
            named = [k.value for k in call.keywords if k.arg == parameter]
            plain = call.args[index : index + 1]
            if not named + plain or any(isinstance(a, ast.Starred) for a in call.args[:index]):
                raise UnfollowedError(f"what is handed to {parameter} in {ast.unparse(call)}")
            found |= self.keys((named + plain)[0])
        return found

    def parameters(self, function: Function) -> list[str]:
        """The named parameters, those by position first."""
        return [a.arg for a in (*function.args.args, *function.args.kwonlyargs)]

    def calls(self, function: Function) -> list[ast.Call]:
        """Where a function is called: in its own file, else anywhere."""
        calls = [node for node in self._nodes() if isinstance(node, ast.Call)]
        named = [
            c for c in calls if getattr(c.func, "attr", getattr(c.func, "id", "")) == function.name
        ]
        return self.near(named, function)

    def near(self, nodes: list, here: ast.AST) -> list:
        """Those in the same file as a node; all of them where there is none."""
        module = list(self.scopes(here))[-1]
        return [node for node in nodes if list(self.scopes(node))[-1] is module] or nodes

    def fields(self, settings: ast.expr) -> set[str]:
        """The fields of `profile.sft`: of the dataclass that annotates a field named `sft`."""
        wanted = getattr(settings, "attr", None)
        for node in self._nodes():
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == wanted:
                owner = self.classes.get(ast.unparse(node.annotation))
                if owner:
                    body = [part for part in owner.body if isinstance(part, ast.AnnAssign)]
                    return {part.target.id for part in body}
        raise UnfollowedError(f"{ast.unparse(settings)} is no settings of a profile")


def code_of(notebook: Path) -> str:
    """A notebook's code cells as one module, IPython's own commands left out."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", "\n".join(code))


@cache
def course_uses() -> tuple[Use, ...]:
    sources = {path.name: code_of(path) for path in files()}
    for folder in ("utils", "benchmarks", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            sources[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
    return tuple(Course(sources).uses())


# --- What a library accepts ----------------------------------------------------------------------


def installed_parameters(config: str) -> set[str]:
    """The named parameters of the installed version; a **kwargs that swallows all counts not."""
    made = getattr(importlib.import_module(HOMES[config]), config)
    parameters = inspect.signature(made.__init__).parameters.values()
    return {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self"}


class Sources:
    """The classes of some packages, read from source text without importing any."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts

    def parameters(self, name: str) -> set[str]:
        """The named parameters of a class's own __init__, else the fields of it and its bases."""
        for text in self.texts.values():
            if re.search(rf"(?m)^class {name}\b", text):
                tree = ast.parse(text)
                break
        else:
            return set()  # a base outside these packages
        owner = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
        for node in owner.body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                return {a.arg for a in (*node.args.args, *node.args.kwonlyargs)} - {"self"}
        found = set().union(
            *(self.parameters(base.id) for base in owner.bases if hasattr(base, "id"))
        )
        for node in owner.body:
            if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
                outside = node.value is not None and "init=False" in ast.unparse(node.value)
                found = found - {node.target.id} if outside else found | {node.target.id}
        return found


def installed_sources() -> Sources:
    """The same reading on what is installed, to compare it with `inspect`."""
    texts = {}
    for library in LIBRARIES:
        folder = Path(importlib.util.find_spec(library).origin).parent
        texts |= {str(p): p.read_text(encoding="utf-8") for p in folder.rglob("*config*.py")}
    folder = Path(importlib.util.find_spec("transformers").origin).parent
    texts["arguments"] = (folder / "training_args.py").read_text(encoding="utf-8")
    return Sources(texts)


def wheel(library: str, wanted: str) -> Path:
    """The wheel of a library in a version range, from the registry into .cache/."""
    folder = ROOT / ".cache" / "wheels"
    command = ["download", "--no-deps", "--only-binary", ":all:", "-d", str(folder)]
    run = subprocess.run(
        [sys.executable, "-m", "pip", *command, f"{library}{wanted}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["pip printed no reason"])[-1]
        pytest.skip(f"{library}{wanted} could not be fetched, so drift is not looked at: {last}")
    return folder / re.search(rf"{library}-[\w.]+-py3-none-any\.whl", run.stdout).group()


def oldest(wanted: str) -> str:
    """`>=5.15,<6` -> `==5.15`: the floor itself."""
    return wanted.split(",")[0].replace(">=", "==")


@cache
def fetched(which: str) -> tuple[dict[str, str], Sources]:
    """The libraries' versions and their sources, oldest or newest that requirements.txt allows."""
    versions, texts = {}, {}
    for library in LIBRARIES:
        wanted = colab.requirements()[library]
        path = wheel(library, oldest(wanted) if which == "oldest" else wanted)
        versions[library] = path.name.split("-")[1]
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if re.search(r"(config\w*|training_args)\.py$", name):
                    texts[name] = archive.read(name).decode("utf-8")
    return versions, Sources(texts)


def strangers(uses: tuple[Use, ...], accepted: dict[str, set[str]]) -> list[str]:
    """What is passed and not accepted, each with the line that passes it."""
    return [
        f"{use.where}: {use.config} has no {name}"
        for use in uses
        for name in sorted(use.keywords - accepted[use.config])
    ]


# --- The tests -----------------------------------------------------------------------------------


def test_every_keyword_exists_in_the_locked_versions():
    uses = course_uses()
    assert {"TrainingArguments", "GRPOConfig", "RLOOConfig"} <= {use.config for use in uses}
    assert strangers(uses, {config: installed_parameters(config) for config in HOMES}) == []


@pytest.mark.long
@pytest.mark.parametrize("which", VERSIONS)
def test_every_keyword_exists_in_the(which):
    versions, sources = fetched(which)
    locked = {library: importlib.metadata.version(library) for library in LIBRARIES}
    if versions == locked:
        pytest.skip(f"the {which} that requirements.txt allows is what is locked: {locked}")
    accepted = {config: sources.parameters(config) for config in HOMES}
    assert all(accepted.values()), (
        f"{versions}: {[c for c, found in accepted.items() if not found]}"
    )
    assert strangers(course_uses(), accepted) == [], versions


@pytest.mark.parametrize("config", HOMES)
def test_reading_the_source_finds_what_inspect_finds(config):
    assert installed_sources().parameters(config) == installed_parameters(config)


MADE_UP = """
def options(deep):
    quiet = {"report_to": "none", **dict(logging_strateggy="no")}
    quiet["save_strattegy"] = "no"
    return quiet | {"seeed": 1}

def train(**more):
    return SFTConfig(output_dir="x", **more)

settings = options(True)
first = DPOConfig(beta=0.1, betta=0.2, **settings)
train(packingg=True, seed=3)
make, trainer, coefficient = {"a": (GRPOConfig, GRPOTrainer, 1)}["a"]
make(betaa=1); trainer(not_a_configs_keyword=1)
second = partial(trl.SFTConfig, max_seq_length=1)
third = replace(first, max_prompt_length=1)
for kind, name in ((RLOOConfig, "a"), (ORPOConfig, "b")):
    kind(warmup_ratio=0.1)

def arguments(size, **changes):
    return RewardConfig(**{"per_device_train_batch_size": size, **changes})

def trainer_for(model, **changes):
    return trainer_for(model, **changes) or RewardTrainer(arguments(1, **changes))

trainer_for(policy, evaluation_strategy="no")

def common(stage, precision):
    return {"output_dir": stage, **precision}

exact = dict(use_cpu=True, no_cuda=True)
TrainingArguments(**common("sft", exact), tokenizer=1)
"""


def test_a_made_up_keyword_is_caught_wherever_it_hides():
    accepted = {config: installed_parameters(config) for config in HOMES}
    found = strangers(tuple(Course({"x": MADE_UP}).uses()), accepted)
    assert sorted(line.split(": ")[1] for line in found) == [
        "DPOConfig has no betta",
        "DPOConfig has no logging_strateggy",
        "DPOConfig has no max_prompt_length",
        "DPOConfig has no save_strattegy",
        "DPOConfig has no seeed",
        "GRPOConfig has no betaa",
        "ORPOConfig has no warmup_ratio",
        "RLOOConfig has no warmup_ratio",
        "RewardConfig has no evaluation_strategy",
        "SFTConfig has no max_seq_length",
        "SFTConfig has no packingg",
        "TrainingArguments has no no_cuda",
        "TrainingArguments has no tokenizer",
    ]


@pytest.mark.parametrize("hidden", ["**unknown", "**json.loads(text)", "**{key: 1}", "**rows[0]"])
def test_keywords_that_cannot_be_read_are_an_error_not_a_pass(hidden):
    with pytest.raises(UnfollowedError, match=r"x:1, DPOConfig"):
        list(Course({"x": f"DPOConfig({hidden})"}).uses())


def test_settings_of_a_profile_bring_their_fields():
    source = "class Run:\n    beta: float\n    steps: int\n\nclass Profile:\n    dpo: Run\n\n"
    (use,) = Course({"x": source + "DPOConfig(**asdict(course.profile.dpo))"}).uses()
    assert use.keywords == {"beta", "steps"}

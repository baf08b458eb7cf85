"""No text of a file, a model or a visitor is executed, and no secret leaves the machine."""

import ast
import html
import json
import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from utils.course import artifacts, folders
from utils.course.artifacts import ArtifactError, Shelf
from utils.course.notebooks import files
from utils.course.paths import ROOT
from utils.show import demo, plots
from utils.votes import panel as widgets

sys.path.insert(0, str(ROOT / "tools"))
import audit

ATTACK = """<script>alert(1)</script><img src=x onerror=alert(2)>"'&</td></div><b onclick='x()'>"""


# --- Sources -------------------------------------------------------------------------------------


@cache
def trees() -> dict[str, ast.Module]:
    """Every program and notebook of the course, parsed; the tests themselves left out."""
    found = {}
    for folder in ("utils", "tools", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    for path in files():
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        text = re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", "\n".join(code))
        found[path.name] = ast.parse(text)
    return found


DANGERS = "S102,S301,S302,S307,S506,S602,S604,S605,TID251"


def ruff(*arguments: str, source: str | None = None) -> str:
    """What ruff's rules against dangers find, whatever a comment would switch off."""
    run = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--ignore-noqa", f"--select={DANGERS}", *arguments],
        input=source,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert not run.stderr.startswith("error"), run.stderr
    return run.stdout if run.returncode else ""


def options(tree: ast.AST) -> list[str]:
    """Options, unknown to ruff, with which a library runs what a file or a repository says."""
    harmless = {
        "trust_remote_code": "False",
        "allow_pickle": "False",
        "use_safetensors": "True",
        "shell": "False",  # ruff sees a constant only
    }
    return [
        f"line {node.lineno}: {option.arg}={ast.unparse(option.value)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for option in node.keywords
        if ast.unparse(option.value) != harmless.get(option.arg, ast.unparse(option.value))
    ]


def test_nothing_runs_what_it_reads():
    assert ruff("utils", "tools", "benchmarks", "notebooks") == ""
    assert {where: found for where, tree in trees().items() if (found := options(tree))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import torch\ntorch.load(path)",
        "from torch import load as read\nread(path)",
        "import torch\ntorch.save(weights, path)",
        "import pickle\npickle.loads(body)",
        "import joblib\njoblib.load(path)",
        "import pandas as pd\npd.read_pickle(path)",
        "import subprocess\nsubprocess.run(line, shell=True)  # noqa: S602",
        "import os\nos.system(line)",
        "eval(text)",
        "exec(text)",
        "import yaml\nyaml.load(text)",
    ],
)
def test_ruff_sees_each_danger(line):
    assert ruff("--stdin-filename=utils/x.py", "-", source=line)


@pytest.mark.parametrize(
    "line",
    [
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "AutoModel.from_pretrained(name, use_safetensors=False)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=flag)",
    ],
)
def test_each_dangerous_option_is_seen(line):
    assert len(options(ast.parse(line))) == 1


def test_what_is_harmless_passes():
    harmless = "import json\nmodel.eval()\nnp.load(p, allow_pickle=False)\njson.load(file)\n"
    assert ruff("--stdin-filename=utils/x.py", "-", source=harmless) == ""
    assert options(ast.parse(harmless)) == []


def test_the_switch_for_foreign_code_is_named_nowhere():
    """Nor in a dict that becomes keywords."""
    for where, tree in trees().items():
        constants = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
        assert "trust_remote_code" not in constants, where


# --- Secrets -------------------------------------------------------------------------------------

SECRET = re.compile(
    rb"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|sk-[A-Za-z0-9_-]{32,}"
    rb"|AKIA[0-9A-Z]{16}|AIza[\w-]{35}|xox[abp]-[\w-]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    rb"|://[^/\s:@\"'{}<>]+:(?!password|\*\*\*)[^/\s:@\"'{}<>]{6,}@"
)
TEXTS = {".json", ".jsonl", ".txt", ".csv", ".md", ".log", ".ipynb", ".yaml", ".yml", ".html", ""}


def committed() -> list[Path]:
    """The files that git tracks or would add."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def written() -> list[Path]:
    """The files that runs have written: artifacts and logs."""
    roots = [ROOT / "artifacts", ROOT / ".ci" / "output", ROOT / ".cache" / "logs"]
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    return [path for path in files if path.suffix in TEXTS]


def secrets_in(content: bytes) -> list[bytes]:
    own = os.environ.get("HF_TOKEN", "").strip().encode()
    found = [match.group()[:12] for match in SECRET.finditer(content)]
    return found + ([b"HF_TOKEN's own value"] if len(own) > 8 and own in content else [])


@pytest.mark.parametrize("files", [committed, written])
def test_no_token_in_any_file(files):
    found = {}
    for path in files():
        if inside := secrets_in(path.read_bytes()):
            found[path.relative_to(ROOT).as_posix()] = inside
    assert found == {}


def test_tokens_are_seen(monkeypatch):
    for start, body in (
        ("hf_", "a1B2" * 8),
        ("ghp_", "Z9" * 18),
        ("-----BEGIN RSA ", "PRIVATE KEY"),
    ):
        assert secrets_in((start + body).encode())
    assert secrets_in(b"postgresql://an:geheim" + b"nis@host/votes")
    assert not secrets_in(b"postgresql+psycopg://user:password@host/database hf_token HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "a-token-of-mine")
    assert secrets_in(b"x a-token-of-mine y")


def test_a_notebook_never_shows_a_token():
    """Neither by printing the variable nor by a login form in the outputs."""
    for where, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("print"):
                assert "token()" not in ast.unparse(node) and "HF_TOKEN'" not in ast.unparse(
                    node
                ), where


# --- HTML ----------------------------------------------------------------------------------------

TAG = re.compile(r"</?[a-z][a-z0-9]*[\s>/]")
# plain text of our own that is a field of a constant table
TRUSTED = {"entry.notebook"}
# the style sheet and the script of the slides
TRUSTED |= {
    f"(ROOT / 'tools' / 'slides.{kind}').read_text(encoding='utf-8')" for kind in ("css", "js")
}
# functions of libraries that make HTML and escape the texts in it
CONVERTERS = {
    "ansi2html",  # nbconvert: what a cell printed
    "convert_with_local_state",  # math-core: a formula
    "decode_contents",  # Beautiful Soup: parsed HTML
    "get_style_defs",  # Pygments: the colours of code
    "highlight",  # Pygments: code
    "render",  # mistune and markdown-it: Markdown
    "renderInline",
}
SCOPES = (ast.FunctionDef, ast.Module, ast.GeneratorExp, ast.ListComp, ast.SetComp)
NUMBERS = {"int", "float", "bool"}
SINKS = {"HTML", "Markdown", "Latex", "Markup"}
NUMERIC = re.compile(r"[+,]?(\.\d+)?[defg%]|,|0\d+")


class Html:
    """Whether what stands between tags in one module is escaped, a number or our own constant."""

    def __init__(self, tree: ast.Module, numbers: set[str] = frozenset()) -> None:
        self.tree, self.numbers = tree, numbers
        self.parents = {c: n for n in ast.walk(tree) for c in ast.iter_child_nodes(n)}
        self.functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        self.asked: set[tuple] = set()

    def scopes(self, node: ast.AST):
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, SCOPES):
                yield node

    def safe(self, node: ast.expr) -> bool:
        """True for escaped text, numbers, constants and what is put together of these."""
        if ast.unparse(node) in TRUSTED:
            return True
        match node:
            case ast.Constant():
                return True
            case ast.JoinedStr():
                return all(map(self.safe, node.values))
            case ast.FormattedValue(format_spec=ast.JoinedStr(values=[ast.Constant(value=form)])):
                return bool(NUMERIC.fullmatch(form)) or self.safe(node.value)
            case ast.FormattedValue() | ast.Starred():
                return self.safe(node.value)
            case ast.IfExp():
                return self.safe(node.body) and self.safe(node.orelse)
            case ast.BoolOp():
                return all(map(self.safe, node.values))
            case ast.BinOp():
                return self.safe(node.left) and self.safe(node.right)
            case ast.Compare():
                return True
            case ast.Tuple() | ast.List() | ast.Set():
                return all(map(self.safe, node.elts))
            case ast.Dict():
                return all(map(self.safe, node.values))
            case ast.GeneratorExp() | ast.ListComp() | ast.SetComp():
                return self.safe(node.elt)
            case ast.Subscript():
                return self.safe(node.value)
            case ast.Attribute():
                return node.attr in self.numbers
            case ast.Call():
                return self._call(node)
            case ast.Name():
                return self._name(node)
        return False

    def _call(self, call: ast.Call) -> bool:
        name = ast.unparse(call.func)
        if name in {"escape", "html.escape", "len", "int", "float", "round", "sum"}:
            return True
        if name == "Markup" or name.rpartition(".")[2] in CONVERTERS:
            return all(map(self.safe, call.args)) if name == "Markup" else True
        if name.startswith("Markup(") and isinstance(call.func, ast.Attribute):
            # its methods escape their arguments; what is marked is looked at for itself
            return call.func.attr in {"format", "join"}
        if name.endswith((".strip", ".rstrip", ".removeprefix", ".removesuffix")):
            return self.safe(call.func.value)
        if name.endswith(".join") and len(call.args) == 1:
            return self.safe(call.func.value) and self.safe(call.args[0])
        if name in {"sorted", "list", "set", "reversed"}:
            return all(map(self.safe, call.args))
        function = self.functions.get(name)
        if function is None:
            return False
        returned = [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value]
        return bool(returned) and all(map(self.safe, returned))

    def _name(self, name: ast.Name) -> bool:
        if (name.id, id(self.parents.get(name))) in self.asked:
            return True  # a name that is made of itself, as in x += "…"
        self.asked.add((name.id, id(self.parents.get(name))))
        for scope in self.scopes(name):
            given = list(self._assigned(scope, name.id))
            if given:
                return all(map(self.safe, given))
            if isinstance(scope, ast.FunctionDef):
                names = [a.arg for a in (*scope.args.args, *scope.args.kwonlyargs)]
                if name.id in names:
                    return self._parameter(scope, name.id)
        return False

    def _assigned(self, scope: ast.AST, name: str):
        for node in ast.walk(scope):
            pairs = []
            if isinstance(node, ast.Assign):
                pairs = [(target, node.value) for target in node.targets]
            elif isinstance(node, ast.AugAssign | ast.AnnAssign) and node.value is not None:
                pairs = [(node.target, node.value)]
            elif isinstance(node, ast.For | ast.comprehension):
                pairs = [(node.target, node.iter)]
            for target, value in pairs:
                if isinstance(target, ast.Name) and target.id == name:
                    yield value
                names = [getattr(e, "id", None) for e in getattr(target, "elts", [])]
                if name in names:
                    # position by position where the value shows them
                    whole = isinstance(value, ast.Tuple) and len(value.elts) == len(names)
                    yield value.elts[names.index(name)] if whole else value

    def _parameter(self, function: ast.FunctionDef, name: str) -> bool:
        """A parameter: a number by its annotation, or safe wherever this module passes it."""
        arguments = [*function.args.args, *function.args.kwonlyargs]
        own = next(a for a in arguments if a.arg == name)
        if own.annotation is not None and ast.unparse(own.annotation) in NUMBERS:
            return True
        if not function.name.startswith("_"):
            return False  # called from anywhere
        index, passed = arguments.index(own), []
        for call in ast.walk(self.tree):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == function.name:
                passed += call.args[index : index + 1] if own in function.args.args else []
                passed += [k.value for k in call.keywords if k.arg == name]
        return bool(passed) and all(map(self.safe, passed))

    def holes(self) -> list[str]:
        """Text between tags, or handed to HTML(…), that is not safe."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.JoinedStr):
                constants = [v.value for v in node.values if isinstance(v, ast.Constant)]
                if any(map(TAG.search, constants)):
                    found += [v for v in node.values if not self.safe(v)]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in SINKS:
                content = node.args[:1] + [k.value for k in node.keywords if k.arg == "value"]
                found += [value for value in content if not self.safe(value)]
        return sorted({f"line {node.lineno}: {ast.unparse(node)}" for node in found})


@cache
def numeric_fields() -> set[str]:
    """Attributes that the course's dataclasses declare as numbers, and a widget's."""
    found = {"value"}
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) in NUMBERS:
                found.add(ast.unparse(node.target))
    return found | {"total"}


@pytest.mark.parametrize("where", trees())
def test_whatever_stands_between_tags_is_escaped(where):
    assert Html(trees()[where], numeric_fields()).holes() == []


@pytest.mark.parametrize(
    "program",
    [
        "HTML(text)",
        "HTML(f'<b>{text}</b>')",
        "def shown(text):\n    return f'<td>{text}</td>'",
        "def _cell(text):\n    return f'<td>{text}</td>'\nHTML(_cell(answer))",
        "rows = ''.join(f'<li>{point}</li>' for point in rubric)",
        "body = '<b>' + answer\nHTML(body)",
        "gr.HTML(value=model.answer)",
        "page = f'<a href={link}>x</a>'",
        "Markup(text)",
        "Markup('<b>' + text + '</b>')",
        "Markup('<b>%s</b>' % text)",
        "Markup('<b>{}</b>'.format(text))",
        "Markup(f'<b>{text}</b>').format(1)",
        "Markup('<b>{}</b>').format(Markup(text))",
        "Markup(path.read_text(encoding='utf-8'))",
    ],
)
def test_unescaped_text_is_seen(program):
    assert Html(ast.parse(program)).holes()


@pytest.mark.parametrize(
    "program",
    [
        "HTML(f'<b>{escape(text)}</b>')",
        "def _cell(text):\n    return f'<td>{html.escape(text)}</td>'\nHTML(_cell(answer))",
        "COLOUR = '#fff'\nHTML(f'<b style=\"color:{COLOUR}\">{len(rows)}</b>')",
        "rows = ''.join(f'<li>{escape(point)}</li>' for point in rubric)\nHTML('<ul>' + rows)",
        "print(f'{a} < {b}')",
        "HTML(f'<b>{share:.1%}</b>')",
        "Markup('<b>{}</b>').format(text)",
        "Markup(', ').join(texts)",
        "HTML(Markup('<b>{}</b>').format(text))",
        "Markup('<pre>{}</pre>').format(Markup(highlight(code, lexer, formatter)))",
    ],
)
def test_escaped_text_passes(program):
    assert Html(ast.parse(program)).holes() == []


class Seen(HTMLParser):
    """The tags and attributes that a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.text += data


def assert_harmless(markup: str) -> None:
    seen = Seen(markup)
    assert not {"script", "img", "iframe", "object", "a"} & set(seen.tags), seen.tags
    assert not [name for name in seen.attributes if name.startswith("on") or name == "src"]
    assert ATTACK in html.unescape(seen.text) or ATTACK in seen.text


def test_answers_side_by_side_are_text():
    shown = widgets.Shown("x", ATTACK, ATTACK, ATTACK, "", "", False)
    assert_harmless(widgets.pair_html(shown))
    assert_harmless(widgets.side_by_side([{ATTACK: ATTACK}]).data)
    assert_harmless(widgets._note_html(ATTACK))


def test_a_table_of_texts_is_text():
    assert_harmless(plots.table([{ATTACK: ATTACK}]).to_html())
    assert_harmless(plots.table([{"answer": ATTACK}]).to_html())


def test_the_panel_shows_hostile_pairs_and_rubrics_as_text(tmp_path):
    from utils.votes.store import open_store

    pair = {"question": ATTACK, "first": ATTACK, "second": ATTACK}
    store = open_store(f"sqlite:///{tmp_path / 'votes.sqlite'}")
    panel = widgets.LabelPanel([pair], store, annotator=ATTACK[:80], rubric=[ATTACK])
    assert_harmless(panel.view.value)
    assert panel.counter.value.count("<") == 2
    panel.command_field.value = ATTACK
    assert "<script" not in panel.note.value
    for choice in ("a", "undo"):
        panel._act(choice)
        assert "<script" not in panel.note.value


def test_the_demo_shows_models_and_visitors_as_text():
    assert_harmless(demo._status(ATTACK))
    entry = demo.MODELS[0]
    assert all(re.fullmatch(r"\d\d", entry.notebook) for entry in demo.MODELS)  # see TRUSTED
    from dataclasses import replace

    entries, answer = (replace(entry, name=ATTACK), entry), demo.Answer(text=ATTACK, tokens=3)
    assert_harmless(demo._note(entries, (answer, answer), 0))


# --- File names ----------------------------------------------------------------------------------

ESCAPES = [
    "../evil",
    "a/b",
    "/etc/evil",
    "..",
    ".",
    "",
    ".hidden",
    "a\\b",
    "C:evil",
    "a\0b",
    "~x\n",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_an_artifact_never_leaves_its_shelf(tmp_path, name):
    shelf = Shelf(tmp_path / "artifacts" / "lab", drive=tmp_path / "drive")
    (tmp_path / "artifacts").mkdir()
    for attempt in (
        lambda: artifacts.find(name, shelf),
        lambda: artifacts.require(name, shelf),
        lambda: artifacts.publish(name, shelf, metrics={}).__enter__(),
    ):
        with pytest.raises(ArtifactError, match="cannot have the name"):
            attempt()
    left = [path.name for path in tmp_path.rglob("*")]
    assert left == ["artifacts"]


def test_a_manifest_cannot_name_files_elsewhere(tmp_path):
    shelf = Shelf(tmp_path / "lab")
    (tmp_path / "secret.txt").write_text("x")
    with artifacts.publish("honest", shelf, metrics={}):
        pass
    manifest = shelf.folder / "honest" / "manifest.json"
    listing = json.loads(manifest.read_text())
    listing["files"]["../../secret.txt"] = {
        "bytes": 1,
        "sha256": folders.content_hash(tmp_path / "secret.txt"),
    }
    manifest.write_text(json.dumps(listing))
    assert "missing" in folders.fault(shelf.folder / "honest")


def test_an_export_of_votes_stays_where_it_is_asked_for(tmp_path):
    """Hostile names in votes are content, never part of a path."""
    from utils.votes.store import Vote, read_votes, write_votes

    vote = Vote("../../x", ATTACK, "/etc/passwd", "..", "a", annotator="../evil")
    assert write_votes([vote], tmp_path / "out" / "votes.jsonl") == 1
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()] == [
        "out/votes.jsonl"
    ]
    assert read_votes(tmp_path / "out" / "votes.jsonl") == [vote]


# --- The audit of what is installed --------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "free"),
    [
        ("MIT", True),
        ("BSD License", True),
        ("Apache License, Version 2.0", True),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("MIT AND (GPL-3.0 OR BSD-3-Clause)", True),
        ("MIT License; Mozilla Public License 2.0 (MPL 2.0)", False),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", False),
        ("LGPL-3.0-only", False),
        ("GNU General Public License v3 (GPLv3)", False),
        ("AGPL-3.0", False),
        ("UNKNOWN", False),
    ],
)
def test_licences_that_are_not_permissive_are_flagged(terms, free):
    assert audit.permissive(terms) is free


@pytest.fixture
def answering(tmp_path, monkeypatch):
    """A fake uv that runs a given script."""

    def install(script: str) -> None:
        program = tmp_path / "uv"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setitem(sys.modules, "uv", None)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return install


def test_what_is_installed_is_compared_with_the_lock(answering):
    installed = [
        {"Name": "Left_Pad", "Version": "2.0+cpu", "License": "MIT"},
        {"Name": "right", "Version": "1.1", "License": "LGPL-3.0-only"},
        {"Name": "not locked", "Version": "1", "License": "MIT"},
    ]
    answering(f"echo '{json.dumps(installed)}'")
    found, _ = audit.packages("left-pad==2.0\nright==1.0\nmissing==3\n")
    assert {package["package"]: package["note"] for package in found} == {
        "left-pad": "",
        "right": "1.1 is installed, not permissive",
        "missing": "no version is installed, licence unknown",
    }


def test_known_vulnerabilities_are_named(answering):
    flaw = {"id": "CVE-2026-1", "fix_versions": ["2.1"]}
    bad = {"name": "left", "version": "2.0", "vulns": [flaw]}
    good, unknown = (
        {"name": "right", "version": "1", "vulns": []},
        {"name": "x", "skip_reason": "-"},
    )
    answer = json.dumps({"dependencies": [bad, good, unknown]})
    answering(f"echo '{answer}'; exit 1")
    findings, scope = audit.vulnerabilities()
    assert findings == ["left 2.0: CVE-2026-1, fixed in 2.1"]
    assert scope == "2 of 3 packages looked up"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'ConnectionError: no route' >&2; exit 1", "no route"),
        (
            'echo \'{"dependencies": [{"name": "x", "skip_reason": "-"}]}\'',
            "no vulnerability service",
        ),
        ("exit 0", "printed nothing"),
        ("sleep 5", "no answer within 1 seconds"),
    ],
)
def test_without_a_network_the_audit_reports_and_does_not_fail(
    answering, monkeypatch, script, reason
):
    monkeypatch.setattr(audit, "TIMEOUT", 1)
    answering(script)
    findings, scope = audit.vulnerabilities()
    assert findings == [] and scope.startswith("not looked up") and reason in scope


def test_without_uv_the_audit_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", "")
    audit.main()
    out = capsys.readouterr().out
    assert "Licences: not looked up: uv" in out
    assert "Known vulnerabilities: not looked up: uv" in out

"""Grading a folder: every result, and what a notebook must not be able to do."""

import csv
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import grade
from tools.grading import cells, sandbox
from tools.grading.judging import ERROR, FAILED, LATE, MISSING, PASSED, Limits
from utils.course.notebooks import files, path_of
from utils.course.paths import ROOT
from utils.exercises import notebook_00, notebook_02
from utils.exercises.checks import names_of

RIGHT = "def f(logp, reference_logp, beta):\n    return beta * (logp - reference_logp)\n"
WRONG = "def f(logp, reference_logp, beta):\n    return logp - reference_logp\n"
HANDED_IN = 'check("04.2", f);'


def write(path: Path, *sources: str) -> None:
    """A notebook of these code cells; they have no ids."""
    made = [
        {"cell_type": "code", "source": source, "metadata": {}, "outputs": []} for source in sources
    ]
    text = {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(text), encoding="utf-8")


def graded(folder: Path, *sources: str, seconds: float = 30) -> dict[str, tuple[str, str]]:
    """Exercise -> result and message of a notebook of these cells."""
    path = folder / "student.ipynb"
    write(path, *sources)
    rows, _ = grade.grade(path, "student", Limits(seconds))
    return {row.exercise: (row.result, row.message) for row in rows}


# --- Which cells count ---------------------------------------------------------------------------


def test_the_courses_own_notebooks_are_not_attempted_and_run_nothing():
    for path in files():
        rows, layers = grade.grade(path, path.stem, Limits())
        assert [row.exercise for row in rows] == names_of(path.stem[:2])
        assert {row.result for row in rows} == {MISSING}
        assert layers == []  # no process was started


def test_every_exercise_of_the_course_is_found_in_its_notebook():
    for path in files():
        assert list(cells.exercises(cells.code_of(path))) == names_of(path.stem[:2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken", b"{", "not a notebook"),
        ("empty", b"", "not a notebook"),
        ("list", b"[]", "not a notebook"),
        ("bytes", b"\xff\xfe\x00", "not a notebook"),
        ("numbers", b'{"cells": [1, 2]}', "not a notebook"),
        ("old", b'{"worksheets": []}', "not a notebook"),
        ("nested", b"[" * 200_000, "not a notebook"),
        ("no_cells", b'{"cells": []}', "no exercise"),
    ],
)
def test_a_file_that_is_no_notebook_is_one_row(tmp_path, name, content, message):
    path = tmp_path / f"{name}.ipynb"
    path.write_bytes(content)
    (row,), _ = grade.grade(path, name, Limits())
    assert row.result == ERROR and message in row.message


def test_a_notebook_named_after_a_lesson_without_its_cells_has_rows(tmp_path):
    write(tmp_path / "04_an.ipynb", "print(1)")
    rows, _ = grade.grade(tmp_path / "04_an.ipynb", "an", Limits())
    assert [(row.exercise, row.result) for row in rows] == [
        (name, MISSING) for name in ("04.1", "04.2", "04.3", "04.4")
    ]


def test_cells_are_found_by_number_and_the_last_attempt_counts(tmp_path):
    shipped = next(s for s in cells.code_of(path_of("04")) if '"04.2"' in s)
    found = graded(
        tmp_path,
        "raise SystemExit('a cell without an exercise is not run')",
        'check("04.4", broken(',
        f"{WRONG}{HANDED_IN}",
        f"%%time\n!pip list\nfrom utils.exercises import check\n{RIGHT}{HANDED_IN}",
        shipped + "\n# a comment is no attempt",
        "# check('04.3', lambda margin, beta: margin)",
    )
    assert found["04.2"] == (PASSED, "right.")
    assert found["04.3"][0] == MISSING
    assert found["04.4"][0] == ERROR and "line 1 of the cell" in found["04.4"][1]


def test_a_scratch_cell_after_the_exercise_does_not_count(tmp_path):
    scratch = 'check ("04.2", f)  # once more'
    found = graded(tmp_path, f"{RIGHT}{HANDED_IN}", scratch)
    assert found["04.2"][0] == PASSED
    assert graded(tmp_path, scratch)["04.2"][0] == ERROR


def test_what_a_mac_adds_to_an_archive_is_no_student(tmp_path):
    (tmp_path / "__MACOSX").mkdir()
    for name in ("an.ipynb", "._an.ipynb", "__MACOSX/._an.ipynb", "__MACOSX/an.ipynb"):
        write(tmp_path / name, RIGHT)
    assert grade.notebooks(tmp_path) == [tmp_path / "an.ipynb"]


def test_what_stands_beside_an_attempt_does_not_decide(tmp_path):
    """Prints of the lesson's tensors fail here, and lines after the exercise are not run."""
    cell = f"print(logits)\n{RIGHT}print(f(logits))\n{HANDED_IN}\nraise SystemExit"
    assert graded(tmp_path, cell)["04.2"][0] == PASSED


def test_the_course_gives_what_an_exercise_builds_on_and_no_solution(tmp_path):
    """00.9 may use `sequence_logps` and `F`, which the lesson defined; 00.1 may not use itself."""
    right = "average_logps = lambda z, t, m: sequence_logps(z, t, m) / m.sum(1)\n"
    found = graded(
        tmp_path,
        'sequence_logps = attempt("00.1", sequence_logps)',
        "def bradley_terry_loss(c, r):\n    return -F.logsigmoid(c - r).mean()\n"
        'bradley_terry_loss = attempt("00.2", bradley_terry_loss)',
        "def sequence_logps(*a):\n    return 1 / 0",
        right + 'check("00.9", average_logps);',
    )
    assert found["00.1"][0] == ERROR and "NameError" in found["00.1"][1]
    assert found["00.2"][0] == PASSED
    assert found["00.9"][0] == PASSED  # with the course's function, not the student's other cell


def test_the_folded_solutions_pass_in_an_edition_of_another_language(tmp_path):
    """Gradients, masks and two exercises in one cell, between text cells in Vietnamese."""
    names = {"sequence_logps": "00.1", "policy_gradient_loss": "00.3", "dpo_loss": "00.7"}
    sources = [
        f"{inspect.getsource(getattr(notebook_00, function))}\n"
        f'{function} = attempt("{name}", {function})'
        for function, name in names.items()
    ]
    both = "".join(inspect.getsource(getattr(notebook_00, name)) for name in ("k1", "k3"))
    sources.append(f'{both}\nk1, k3 = attempt("00.5", k1), attempt("00.6", k3)')
    head = "from collections.abc import Callable\nfrom torch import Tensor\n"
    path = tmp_path / "00_bài tập.ipynb"
    write(path, "import os\nos.environ['COURSE_LANG'] = 'vi'", *(head + s for s in sources))
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"].insert(1, {"cell_type": "markdown", "source": ["## Bài tập"], "id": "x"})
    path.write_text(json.dumps(notebook), encoding="utf-8")
    rows, _ = grade.grade(path, "an", Limits(30))
    found = {row.exercise: row.result for row in rows}
    passed = {*names.values(), "00.5", "00.6"}
    # 00.7 uses bradley_terry_loss, which is the course's own here
    assert {name for name, result in found.items() if result == PASSED} == passed


def test_the_mistake_is_named_as_in_the_notebook(tmp_path):
    wrong = inspect.getsource(notebook_02.gae).replace("gamma * lam * running", "gamma * running")
    head = "import torch\nfrom torch import Tensor\n"
    cell = f'{head}{wrong}\ngae = attempt("02.4", gae)\nadvantages = gae(rewards, values)'
    assert graded(tmp_path, cell)["02.4"] == (FAILED, "λ is missing: A_t = δ_t + γλ A_{t+1}.")


# --- What a notebook must not be able to do ------------------------------------------------------

KERNEL = pytest.mark.skipif(
    not sandbox.is_known_linux(), reason="Only Linux on x86-64 has a kernel that refuses this."
)
# each body stands in a function that the judge calls, or is the whole cell
FORGERIES = {
    "another check": f"def check(*a):\n    return True\n{WRONG}{HANDED_IN}",
    "a patched course": (
        "import utils.exercises.checks as c, utils.exercises as e, builtins\n"
        "c.check = e.check = c.judge_of = lambda *a: None\nc._EXERCISES['04.2'] = lambda f: None\n"
        f"{WRONG}{HANDED_IN}"
    ),
    "a patched torch": (f"import torch\ntorch.allclose = lambda *a, **k: True\n{WRONG}{HANDED_IN}"),
    "a result on every open file": (
        "import json, os\n"
        "for message in ({'verdict': None}, {'result': 'passed'}, {'found': 'stub'}):\n"
        "    for place in range(40):\n"
        "        try:\n"
        "            os.write(place, json.dumps(message).encode() + b'\\n')\n"
        "        except OSError:\n"
        f"            pass\n{WRONG}{HANDED_IN}"
    ),
    "a number that equals everything": (
        "class Any(float):\n    __eq__ = __le__ = __lt__ = lambda *a: True\n    __hash__ = None\n"
        f"def f(*a):\n    return Any(3)\n{HANDED_IN}"
    ),
    "the solutions": (
        f"from utils.exercises.notebook_04 import _implicit_reward\n{WRONG}{HANDED_IN}"
    ),
    "the judge in memory": (
        "import gc\nfor x in gc.get_objects():\n    try:\n"
        "        if getattr(x, '__name__', '') == '_implicit_reward':\n"
        "            x.__code__ = (lambda attempt: None).__code__\n"
        f"    except Exception:\n        pass\n{WRONG}{HANDED_IN}"
    ),
}


@pytest.mark.parametrize("cell", FORGERIES.values(), ids=list(FORGERIES))
def test_a_result_cannot_be_forged(tmp_path, cell):
    assert graded(tmp_path, cell)["04.2"][0] in (FAILED, ERROR)


ATTACKS = {  # the body of a function for 00.1 … in order; it must raise an error, or end itself
    "leave": "sys.exit(0)",
    "end the process": "os._exit(0)",
    "crash": "ctypes.string_at(0)",
    "fill the memory": "return [bytearray(2**28) for _ in range(64)]",
    "send too much": "return 'x' * 20_000_000",
    "call itself": "return f(*a)",
}
REFUSED = {  # the kernel, or Python before it, says no
    "end the teacher's process": "os.kill(os.getppid(), 9)",
    "end it past Python": "assert ctypes.CDLL(None).kill(os.getppid(), 9) == 0",
    "connect": "socket.create_connection(('127.0.0.1', 9), 1)",
    "connect past Python": "assert ctypes.CDLL(None).socket(2, 1, 0) >= 0",
    "start a program": "subprocess.run(['true'])",
    "fork past Python": "assert ctypes.CDLL(None).fork() >= 0",
    "read a secret": "open(SECRET).read()",
    "read it past Python": "assert ctypes.CDLL(None).open(SECRET.encode(), 0) >= 0",
    "write elsewhere": "open(SECRET, 'a').write('x')",
    "change rights": "os.chmod(SECRET, 0)",
    "raise the limits past Python": (
        "assert ctypes.CDLL(None).prlimit(0, 9, bytes([255] * 16), None) == 0"
    ),
}


def attacks(folder: Path, bodies: dict[str, str], seconds: float = 30) -> dict[str, str]:
    """Name -> what grading says of a function with each of these bodies."""
    names = names_of("00")[: len(bodies)]
    assert len(names) == len(bodies)
    head = f"import ctypes, os, resource, socket, subprocess, sys\nSECRET = {str(folder / 's')!r}\n"
    made = [
        f"{head}def f(*a):\n    {body}\nf = attempt('{name}', f)"
        for name, body in zip(names, bodies.values(), strict=True)
    ]
    found = graded(folder, *made, seconds=seconds)
    assert PASSED not in {result for result, _ in found.values()}
    return {what: " ".join(found[name]) for name, what in zip(names, bodies, strict=True)}


def test_code_that_ends_itself_costs_only_its_own_exercise(tmp_path):
    found = attacks(tmp_path, ATTACKS)
    assert found["leave"] == "error your code stopped with SystemExit: 0"
    assert "the status 0" in found["end the process"]
    assert "signal" in found["crash"]
    assert "emory" in found["fill the memory"] or "signal" in found["fill the memory"]
    assert "larger than" in found["send too much"]
    assert "RecursionError" in found["call itself"]


@KERNEL
def test_the_kernel_refuses_what_the_exercises_do_not_need(tmp_path):
    (tmp_path / "s").write_text("a token")
    found = attacks(tmp_path, REFUSED)
    for what, result in found.items():
        past = "past" in what
        assert result.startswith("error") and ("AssertionError" if past else "Error") in result, (
            what
        )
    assert (tmp_path / "s").read_text() == "a token"


def test_endless_code_is_stopped_and_the_next_exercise_is_judged(tmp_path):
    found = graded(
        tmp_path,
        f"while True:\n    print('x' * 10_000)\n{HANDED_IN}",
        'def g(*a):\n    while True:\n        pass\ncheck("04.3", g)',
        "def h(judge, first, second):\n    rows = zip(first, second)\n"
        "    won = [(judge(a, b), 1 - judge(b, a)) for a, b in rows]\n"
        "    return sum(x if x == y else 0.5 for x, y in won) / len(won)\n"
        'check("04.4", h)',
        seconds=3,
    )
    assert [found[name][0] for name in ("04.2", "04.3", "04.4")] == [LATE, LATE, PASSED]


def test_the_environment_has_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    # the message is cut: the cell looks for itself, so that no name is cut off
    found = "[k for k, v in os.environ.items() if k == 'PYTHONPATH' or 'secret' in v]"
    cell = f"import os\ndef f(*a):\n    raise ValueError({found})\n{HANDED_IN}"
    result, message = graded(tmp_path, cell)["04.2"]
    assert result == ERROR and "ValueError: ['PYTHONPATH']" in message


# --- The table -----------------------------------------------------------------------------------


def test_the_command_writes_a_table_and_a_summary(tmp_path):
    folder = tmp_path / "lớp A"
    (folder / "An" / ".ipynb_checkpoints").mkdir(parents=True)
    write(folder / "An" / "04.ipynb", RIGHT + HANDED_IN)
    write(folder / "An" / ".ipynb_checkpoints" / "04.ipynb", RIGHT + HANDED_IN)
    write(folder / "=Bình.ipynb", "def f(*a):\n    raise ValueError('=1+1\\n' * 999)\n" + HANDED_IN)
    (folder / "Chi.ipynb").write_text("no notebook")
    (folder / "link.ipynb").symlink_to(folder / "An" / "04.ipynb")
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "grade.py", folder, "--seconds", "30"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr
    with (folder / "grades.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == grade.COLUMNS
    assert [row[:3] for row in rows[1:]] == [
        ["'=Bình", "04.1", MISSING],
        ["'=Bình", "04.2", ERROR],
        ["'=Bình", "04.3", MISSING],
        ["'=Bình", "04.4", MISSING],
        ["An/04", "04.1", MISSING],
        ["An/04", "04.2", PASSED],
        ["An/04", "04.3", MISSING],
        ["An/04", "04.4", MISSING],
        ["Chi", "", ERROR],
    ]
    assert all(len(row[3]) <= grade.LONGEST for row in rows)
    assert "3 notebooks, 9 results: 2 error, 6 not attempted, 1 passed" in done.stdout
    assert "Protection while the code ran: " in done.stdout


def test_a_missing_folder_is_one_sentence(tmp_path):
    for given in ([], [tmp_path / "nowhere"], [tmp_path]):
        done = subprocess.run(
            [sys.executable, ROOT / "tools" / "grade.py", *given], capture_output=True, text=True
        )
        assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1


def test_a_field_cannot_be_a_formula_of_a_spreadsheet():
    assert [grade.clean(text)[0] for text in ("=1", "+1", "-1", "@x", " =1", "ok")] == [*"'''''o"]
    assert grade.clean("a\x00\x1b[31m\ud800b") == "a [31m b"

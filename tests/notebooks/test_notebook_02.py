"""Notebook 02's folded solutions are those that its cells use, and each passes its check."""

import inspect
import json
import re

import numpy as np
import pytest
import torch

from tests.notebooks.test_notebook_00 import body
from utils.course.notebooks import path_of
from utils.exercises import check, notebook_02

PARTS = {
    "up_to_end": "02.1",
    "token_kl": "02.2",
    "per_token_rewards": "02.3",
    "gae": "02.4",
    "whiten": "02.5",
    "policy_loss": "02.6",
    "value_loss": "02.7",
    "minibatch_loss": "02.8",
}
LAST = {"my_best": "02.9", "my_minimum": "02.10"}


def sources(kind: str) -> list[str]:
    everything = json.loads(path_of("02").read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in everything if cell["cell_type"] == kind]


def folded() -> dict[str, str]:
    """Function name -> code of each solution that the notebook shows folded."""
    prose = "\n".join(sources("markdown"))
    blocks = re.findall(r"(?s)<summary>Solution.*?```python\n(.*?)```", prose)
    return {re.match(r"def (\w+)", block).group(1): block for block in blocks}


def test_the_exercises_stand_in_the_order_of_their_numbers():
    code = "\n".join(sources("code"))
    asked = re.findall(r"""(?:check|attempt)\("(02\.\d+)", (\w+)\)""", code)
    assert dict((name, number) for number, name in asked) == PARTS | LAST
    assert [number for number, _ in asked] == [f"02.{n}" for n in range(1, 11)]


@pytest.mark.parametrize("name", PARTS)
def test_the_cells_use_the_solution_that_is_folded(name):
    assert body(folded()[name]) == body(inspect.getsource(getattr(notebook_02, name)))


@pytest.mark.parametrize("name", PARTS | LAST)
def test_every_folded_solution_passes_its_check(name, capsys):
    names = {"torch": torch, "np": np}
    exec(compile(folded()[name], "solution", "exec"), names)
    assert check((PARTS | LAST)[name], names[name]), capsys.readouterr().out


def test_each_stub_has_the_arguments_of_its_solution():
    stubs = "\n".join(source for source in sources("code") if "# your code" in source)
    for name in PARTS:
        assert folded()[name].splitlines()[0] in stubs

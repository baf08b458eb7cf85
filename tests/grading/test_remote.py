"""The judge reaches the same verdict when the student's function is in another process."""

import numpy as np
import pytest
import torch

from tests.exercises.test_checks import RIGHT, WRONG
from tools.grading import wire
from tools.grading.judging import Limits, Process, StudentError
from tools.grading.student import Student, failure
from utils.exercises.checks import judge_of


class Loop(Process):
    """Both sides in this process; every message is written as JSON and read again."""

    def __init__(self, attempt):
        self.limits, self.calls, self.functions, self.answer = Limits(), 0, [], None
        self.student = Student(self, {})
        self.student.attempt = attempt

    def ask(self, functions=None, **request):
        self.functions = functions or []
        action = getattr(self.student, request.pop("do"))
        try:
            reply = action(wire.message(wire.line(request)))
        except Exception as error:
            raise type(failure(error)["name"], (StudentError,), {})(str(error)) from None
        return wire.message(wire.line(reply))

    def send(self, **message):  # the student's side calls a function of the judge
        self._answer(wire.message(wire.line(message)), self.functions)

    def _send(self, **message):
        self.answer = wire.message(wire.line(message))

    def receive(self):
        return self.answer


def verdict(name, attempt):
    """The judge's sentence, or the error that stopped it."""
    try:
        return judge_of(name)(attempt)
    except Exception as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_attempt_is_right_through_messages(name):
    assert verdict(name, Loop(RIGHT[name])) is None


@pytest.mark.parametrize(("name", "attempt", "message"), WRONG)
def test_a_mistake_is_named_with_the_same_words(name, attempt, message):
    assert verdict(name, Loop(attempt)) == verdict(name, attempt)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, -1.5, float("inf"), "tiếng Việt", (1, [2.0, "x"]), {"a": 1, 2: None}),
        *({1, 2}, np.float32(0.5), np.arange(6).reshape(2, 3), np.zeros((0, 2)), np.array(True)),
        *(torch.arange(4), torch.zeros(2, 0), torch.tensor(1.5, dtype=torch.bfloat16)),
    ],
)
def test_a_value_comes_back_as_it_was(value):
    found = wire.decode(wire.message(wire.line({"value": wire.encode(value)}))["value"])
    if isinstance(value, np.ndarray | np.generic):
        assert found.dtype == value.dtype and np.array_equal(found, value)
        assert np.shape(found) == np.shape(value)
    elif isinstance(value, torch.Tensor):
        assert found.dtype == value.dtype and torch.equal(found, value)
    else:
        assert found == value and type(found) is type(value)


def test_what_the_judge_does_not_know_arrives_as_a_name_only():
    class Trap:
        def __eq__(self, other):
            return True

    found = wire.decode(wire.encode(Trap()))
    assert type(found).__name__ == "Trap" and found != 1
    assert list(wire.decode(wire.encode(x for x in range(3)))) == [0, 1, 2]


@pytest.mark.parametrize(
    "value",
    [
        [1],
        {},
        {"kind": "tensor"},
        {"kind": "tensor", "dtype": "float32", "shape": [9], "data": "AAAA", "grad": False},
        {"kind": "array", "dtype": "O", "shape": [], "data": ""},
        {"kind": "dict", "items": [[{"kind": "list", "items": []}, 1]]},
        {"kind": "vote", "fields": {"nothing": 1}},
    ],
)
def test_nonsense_is_one_kind_of_error(value):
    with pytest.raises(wire.WireError):
        wire.decode(value)


def test_nested_messages_are_refused():
    with pytest.raises(wire.WireError):
        wire.message(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")

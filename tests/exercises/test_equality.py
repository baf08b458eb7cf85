"""The comparison of two losses can fail, in value and in gradient."""

import sys

import pytest
import torch

from utils.exercises import equality
from utils.exercises.equality import distances, same, trl_orpo_loss, value_and_gradients


@pytest.fixture(autouse=True)
def no_equalities(monkeypatch):
    monkeypatch.setattr(equality, "EQUALITIES", {})


@pytest.fixture
def x():
    return [torch.tensor([1.0, 2.0], requires_grad=True)]


def square(x):
    return (x * x).sum()


def half_detached(x):
    return (x * x.detach()).sum()


def test_distances_by_hand(x):
    assert distances(square, square, x) == (0.0, 0.0)
    assert distances(lambda x: square(x) + 3, square, x) == (3.0, 0.0)
    assert distances(half_detached, square, x) == (0.0, 2.0)  # 2x against x, at x = 2
    assert distances(lambda x: x * x, square, x) == (float("inf"), float("inf"))


def test_a_value_without_a_gradient_has_the_gradient_zero(x):
    value, (slope,) = value_and_gradients(lambda x: square(x).detach(), x)
    assert value == 5 and slope.tolist() == [0.0, 0.0]


def test_an_equality_is_printed_and_kept_once(x, capsys):
    for _ in range(2):
        same(square, lambda x: x.square().sum(), x, "toy · torch")
    assert capsys.readouterr().out == "equal: toy · torch (value to 0e+00, gradient to 0e+00)\n" * 2
    assert equality.EQUALITIES == {
        "toy · torch": {"value differs by": 0.0, "gradient differs by": 0.0}
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (half_detached, "toy: the value is off by 0, the gradient by 2"),
        (lambda x: x * x, "off by inf"),
        (lambda x: square(x) * float("nan"), "off by nan"),
    ],
)
def test_what_is_not_equal_stops_and_is_not_kept(x, wrong, message):
    with pytest.raises(AssertionError, match=message):
        same(wrong, square, x, "toy")
    assert equality.EQUALITIES == {}


def test_two_constants_are_no_equality(x):
    with pytest.raises(AssertionError, match="the library's gradient is zero"):
        same(lambda x: 0 * square(x), lambda x: 0 * square(x), x, "toy")


def test_a_trl_without_orpo_does_not_stop(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trl.experimental.orpo", None)
    logps = [torch.tensor([-1.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)]
    same(trl_orpo_loss, trl_orpo_loss, [*logps, torch.tensor(1.0, requires_grad=True)], "ORPO")
    assert capsys.readouterr().out == "not compared: ORPO (this TRL has no ORPO)\n"
    assert equality.EQUALITIES == {}

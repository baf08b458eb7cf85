import pytest
import torch

from utils.checks import check
from utils.evaluation import minimal_kl


def _token_rewards(kl, scores, mask, beta):
    rewards = -beta * kl * mask
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores
    return rewards


RIGHT = {
    "01.1": lambda z: torch.where(z.argmax(-1) == 0, z[:, 0], torch.zeros(len(z))),
    "01.2": lambda c: (
        ((w := (sum(c) / torch.tensor(c, dtype=torch.float)) ** 0.5) * sum(c))
        / (w * torch.tensor(c)).sum()
    ).tolist(),
    "01.3": lambda z, y: float(
        min(
            torch.linspace(0.25, 5, 200),
            key=lambda t: float(torch.nn.functional.cross_entropy(z / t, y)),
        )
    ),
    "02.1": lambda r, end: (r == end).long().cumsum(1) - (r == end).long() == 0,
    "02.2": _token_rewards,
    "02.3": minimal_kl,
}
WRONG = [
    ("02.1", lambda r, end: (r == end).long().cumsum(1) == 0, "the end token itself counts"),
    ("02.1", lambda r, end: r != end, "everything after the first one"),
    ("02.2", lambda k, s, m, b: _token_rewards(k, s, m, 1.0), "multiply the KL by beta"),
    ("02.2", lambda k, s, m, b: _token_rewards(-k, s, m, b), "it is subtracted"),
    ("02.2", lambda k, s, m, b: torch.where(m, s[:, None] - b * k, 0.0), "only the last one may"),
    ("02.3", lambda r, q: minimal_kl([sum(r) / 3], q), "you averaged the rates first"),
    ("02.3", lambda r, q: sum(minimal_kl([p], q) for p in r) / 3, "one common tilt"),
    ("02.3", lambda r, q: minimal_kl(r, q) / 0.6931, "that is in bits"),
    ("01.1", lambda z: z[:, 0], "where another class wins it must be 0"),
    ("01.1", lambda z: z.softmax(-1)[:, 0], "these are probabilities"),
    ("01.1", lambda z: z[:, 2] * (z.argmax(-1) == 2), "negative has index 0"),
    ("01.1", lambda z: z.sum(), "shape"),
    ("01.1", lambda z: 1 / 0, "ZeroDivisionError"),
    ("01.2", lambda c: [(sum(c) / n) ** 0.5 for n in c], "right up to a factor"),
    ("01.2", lambda c: [sum(c) / n for n in c], "full inverse frequency"),
    ("01.2", lambda c: [n / sum(c) for n in c], "the rare class must weigh more"),
    ("01.3", lambda z, y: 0.4, "you found 1/T"),
    ("01.3", lambda z, y: 1.0, "temperature 1 changes nothing"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_right_solutions_pass(name, capsys):
    assert check(name, RIGHT[name])
    assert capsys.readouterr().out == f"{name}: right.\n"


@pytest.mark.parametrize(("name", "attempt", "said"), WRONG)
def test_typical_mistakes_are_named(name, attempt, said, capsys):
    assert not check(name, attempt)
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("name", RIGHT)
def test_a_missing_attempt_does_not_stop_the_run(name, capsys):
    assert not check(name, ...)
    assert "no attempt yet" in capsys.readouterr().out


def test_every_exercise_has_two_named_mistakes():
    for name in RIGHT:
        assert sum(wrong == name for wrong, _, _ in WRONG) >= 2


def test_an_unknown_exercise():
    with pytest.raises(KeyError, match=r"01\.1"):
        check("99.9", 1)

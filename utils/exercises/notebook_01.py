"""Notebook 01: weighted loss, reward, log-odds, class weights, temperature.

The solutions of 01.1 and 01.2 are the functions that the notebook shows folded.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.course.language import tr
from utils.exercises.checks import Verdict, exercise
from utils.exercises.equality import close, no_tensor, value_and_gradients

_LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.3, 0.1, 1.5], [-0.5, 0.2, -0.9], [1.2, 1.1, 1.0]])
_EXPECTED = torch.tensor([2.0, 0.0, 0.0, 1.2])  # the negative logit where it is the largest


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The cross-entropy, as a mean over the rows with the weight of each row's class."""
    logps = logits.log_softmax(-1)  # (rows, classes)
    picked = logps.gather(1, labels[:, None]).squeeze(1)  # (rows,)
    return -(weights[labels] * picked).sum() / weights[labels].sum()


@exercise("01.1", solution=weighted_loss)
def _weighted_loss(attempt: Callable[..., Tensor]) -> Verdict:
    """`attempt(logits, labels, weights) -> loss`, divided by the sum of the rows' weights."""
    logits = _LOGITS.clone().requires_grad_()
    labels, weights = torch.tensor([0, 1, 2, 1]), torch.tensor([1.0, 4.0, 1.5])
    result = attempt(logits, labels, weights)
    if not isinstance(result, Tensor):
        return no_tensor(result)
    value, (slope,) = value_and_gradients(lambda z: attempt(z, labels, weights), [logits])
    wanted, (right,) = value_and_gradients(lambda z: weighted_loss(z, labels, weights), [logits])
    rows = -logits.detach().log_softmax(-1)[range(4), labels]
    if value.shape == (4,):
        return "you return one loss per row: the result is one number, the weighted mean."
    if value.shape != ():
        return tr(
            "the loss must be one number, and yours has shape {shape}.", shape=tuple(value.shape)
        )
    mistakes = {
        "the sign is wrong: the loss is minus the log-probability of the true class.": -wanted,
        "your loss does not use the weights.": rows.mean(),
        "you divide by the number of rows: divide by the sum of the rows' weights.": (
            weights[labels] * rows
        ).mean(),
        "you return the weighted sum: divide by the sum of the rows' weights.": (
            weights[labels] * rows
        ).sum(),
        "you divide by the sum over the classes: add up the weights of the rows.": (
            weights[labels] * rows
        ).sum()
        / weights.sum(),
        "these are probabilities: use log_softmax, because the loss is a log-probability.": (
            (weights[labels] * -(-rows).exp()).sum() / weights[labels].sum()
        ),
    }
    for message, mistake in mistakes.items():
        if close(value, mistake):
            return message
    if not close(value, wanted):
        return tr(
            "the loss should be {wanted:.4f} in this example: yours is {found:.4f}.",
            wanted=float(wanted),
            found=float(value),
        )
    if not close(slope, right):
        return "the value is right, but its gradient is not: use neither detach nor item here."
    return None


def negative_reward(logits: Tensor) -> Tensor:
    """r = z_negative if the class is negative, else 0."""
    z = logits[:, 0]
    return torch.where(logits.argmax(-1) == 0, z, torch.zeros_like(z))


@exercise("01.2", solution=negative_reward)
def _reward(attempt: Callable[[Tensor], Tensor]) -> Verdict:
    """`attempt(logits) -> rewards`, r = z_negative if the class is negative, else 0."""
    answer = torch.as_tensor(attempt(_LOGITS.clone()))
    if answer.shape != _EXPECTED.shape:
        return tr(
            "give one reward per text, shape (4,): yours has shape {shape}.",
            shape=tuple(answer.shape),
        )
    low = torch.tensor([[-0.3, -0.9, -1.2]])  # negative is the largest, and below zero
    if torch.allclose(answer.float(), _EXPECTED):
        if torch.allclose(torch.as_tensor(attempt(low)).float(), low[:, 0]):
            return None
        return "the largest logit may be below zero: r is then z_negative too, and not 0."
    if torch.allclose(answer.float(), _LOGITS[:, 0]):
        return "you return every text's negative logit: where another class wins it must be 0."
    if torch.allclose(answer.float(), _LOGITS.softmax(-1)[:, 0], atol=1e-4):
        return "these are probabilities: the reward here is the raw logit z, before the softmax."
    if torch.allclose(answer.float(), _LOGITS[:, 2] * (_LOGITS.argmax(-1) == 2)):
        return "you reward the positive class: negative has index 0."
    if torch.allclose(answer.float(), _LOGITS[:, 0].clamp(min=0)):
        return "a positive z is not enough: the negative logit must be the largest of the three."
    return "the rewards of the four rows of logits used here should be 2.0, 0, 0 and 1.2."


@exercise("01.3")
def _log_odds(attempt: Callable[[Tensor], Tensor]) -> Verdict:
    """`attempt(logits) -> log-odds`, ln p - ln(1 - p) with p = p(negative), without overflow."""
    wanted = _LOGITS[:, 0] - _LOGITS[:, 1:].logsumexp(-1)
    answer = torch.as_tensor(attempt(_LOGITS.clone())).float()
    if answer.shape != wanted.shape:
        return tr(
            "give one number per text, shape (4,): yours has shape {shape}.",
            shape=tuple(answer.shape),
        )
    p = _LOGITS.softmax(-1)[:, 0]
    mistakes = {
        "that is p(negative): take ln p - ln(1 - p).": p,
        "that is ln p alone: subtract ln(1 - p).": p.log(),
        "these are the odds p / (1 - p): take their logarithm.": p / (1 - p),
        "the sign is wrong: the result grows with p(negative).": -wanted,
        "that is the logit alone: subtract ln(1 - p) as well.": _LOGITS[:, 0],
        "that is the lead over the largest other logit: use logsumexp of the other two.": (
            _LOGITS[:, 0] - _LOGITS[:, 1:].amax(-1)
        ),
    }
    for message, mistake in mistakes.items():
        if torch.allclose(answer, mistake, atol=1e-4):
            return message
    if not torch.allclose(answer, wanted, atol=1e-4):
        return tr(
            "the first text should get {wanted:.4f}: yours gets {found:.4f}.",
            wanted=float(wanted[0]),
            found=float(answer[0]),
        )
    sure = torch.tensor([[60.0, 0.0, 0.0]])
    if not torch.allclose(torch.as_tensor(attempt(sure)).float(), torch.tensor([59.3069])):
        return (
            "right for usual logits, but with the logits 60, 0, 0 the probability rounds to 1 and "
            "ln(1 - p) is infinite: subtract the logsumexp of the other two logits from z."
        )
    return None


@exercise("01.4")
def _class_weights(attempt: Callable[[list[int], float], Sequence[float]]) -> Verdict:
    """`attempt(counts, exponent) -> weights`, in the proportion of (total / count) ** exponent.

    Every scale is right, because the weighted mean divides by the sum of the weights.
    """
    counts = torch.tensor([400.0, 25.0, 575.0])

    def answer(exponent: float) -> Tensor:
        return torch.as_tensor(attempt(counts.int().tolist(), exponent)).float()

    half, full = answer(0.5), answer(1.0)
    if half.shape != counts.shape:
        return tr(
            "give one weight per class, shape (3,): yours has shape {shape}.",
            shape=tuple(half.shape),
        )
    if not (half > 0).all():
        return "every weight must be above 0."
    if torch.allclose(half / half[0], full / full[0], rtol=1e-3):
        return "the result is the same for the exponents 0.5 and 1: use the exponent."
    if half[1] < half[0]:
        return "the rare class must weigh more than the frequent ones, and yours weighs less."
    for given, weights in ((0.5, half), (1.0, full)):
        wanted = (counts[0] / counts) ** given
        if not torch.allclose(weights / weights[0], wanted, rtol=1e-3):
            return tr(
                "with the exponent {exponent:g} the second class should weigh {wanted:.2f} "
                "times as much as the first: yours weighs {found:.2f} times as much.",
                exponent=given,
                wanted=float(wanted[1]),
                found=float(weights[1] / weights[0]),
            )
    return None


@exercise("01.5")
def _calibrated(attempt: Callable[[Tensor, Tensor], float]) -> Verdict:
    """`attempt(logits, labels) -> temperature` that minimises the negative log-likelihood."""
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(4000, 3, generator=generator) * 1.5
    labels = torch.multinomial(honest.softmax(-1), 1, generator=generator).squeeze(1)
    answer = float(attempt(honest * 2.5, labels))
    if abs(answer - 2.5) < 0.15:
        return None
    if abs(answer - 0.4) < 0.05:
        return "you found 1/T: divide the logits by the temperature, do not multiply."
    if abs(answer - 1.0) < 0.05:
        return "temperature 1 changes nothing: check that the search runs on the given logits."
    return tr(
        "these logits are 2.5 times too large, so T should be near 2.5: yours is {found:.2f}.",
        found=answer,
    )

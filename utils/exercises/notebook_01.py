"""Notebook 01: reward, class weights, temperature."""

from collections.abc import Callable

import torch

from utils.exercises.checks import Verdict, exercise

_LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.3, 0.1, 1.5], [-0.5, 0.2, -0.9], [1.2, 1.1, 1.0]])
_EXPECTED = torch.tensor([2.0, 0.0, 0.0, 1.2])  # the negative logit where it is the largest


@exercise("01.1")
def _reward_by_hand(attempt: Callable[[torch.Tensor], torch.Tensor]) -> Verdict:
    """`attempt(logits) -> rewards`, r = z_negative if the class is negative, else 0."""
    answer = torch.as_tensor(attempt(_LOGITS.clone()))
    if answer.shape != _EXPECTED.shape:
        return f"give one reward per text, shape (4,): yours has shape {tuple(answer.shape)}."
    if torch.allclose(answer.float(), _EXPECTED):
        return None
    if torch.allclose(answer.float(), _LOGITS[:, 0]):
        return "you return every text's negative logit: where another class wins it must be 0."
    if torch.allclose(answer.float(), _LOGITS.softmax(-1)[:, 0], atol=1e-4):
        return "these are probabilities: the reward here is the raw logit z, before the softmax."
    if torch.allclose(answer.float(), _LOGITS[:, 2] * (_LOGITS.argmax(-1) == 2)):
        return "you reward the positive class: negative has index 0."
    if torch.allclose(answer.float(), _LOGITS[:, 0].clamp(min=0)):
        return "a positive z is not enough: the negative logit must be the largest of the three."
    return "the rewards of the four rows of logits used here should be 2.0, 0, 0 and 1.2."


@exercise("01.2")
def _balanced_weights(attempt: Callable[[list[int]], list[float]]) -> Verdict:
    """`attempt(counts) -> weights`: (total / count) ** 0.5, scaled to a mean of 1 over the rows."""
    counts = torch.tensor([400.0, 25.0, 575.0])
    raw = (counts.sum() / counts) ** 0.5
    wanted = raw * counts.sum() / (raw * counts).sum()
    answer = torch.as_tensor(attempt(counts.int().tolist())).float()
    if answer.shape != wanted.shape:
        return f"give one weight per class, shape (3,): yours has shape {tuple(answer.shape)}."
    if torch.allclose(answer, wanted, rtol=1e-3):
        return None
    if torch.allclose(answer, raw, rtol=1e-3):
        return (
            "your weights are right up to a factor: divide them by their mean over the rows, "
            "because another factor changes the effective learning rate."
        )
    if torch.allclose(answer / answer[0], (counts[0] / counts), rtol=1e-3):
        return (
            "that is the full inverse frequency: take its square root, because the exponent is 0.5."
        )
    if answer[1] < answer[0]:
        return "the rare class must weigh more than the frequent ones, and yours weighs less."
    return "take the square root of total / count, and scale it so that the mean over rows is 1."


@exercise("01.3")
def _calibrated(attempt: Callable[[torch.Tensor, torch.Tensor], float]) -> Verdict:
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
    return f"these logits are 2.5 times too large, so T should be near 2.5: yours is {answer:.2f}."

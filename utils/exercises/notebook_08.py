"""Notebook 08: shifting labels, summed log-probabilities, robust DPO."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.course.language import tr
from utils.exercises.checks import Verdict, exercise
from utils.losses import dpo_loss

_LABELS = torch.tensor([[5, 6, 1], [7, 1, 0]])  # 1 is the end token, 0 is padding
_START = 3  # not 0, so that the start token differs from the padding


@exercise("08.1")
def _shifted(attempt: Callable[[Tensor, int], Tensor]) -> Verdict:
    """`attempt(labels, start) -> decoder input`, both (batch, answer)."""
    given = _LABELS.clone()
    answer = torch.as_tensor(attempt(given, _START))
    wanted = torch.tensor([[_START, 5, 6], [_START, 7, 1]])
    if not torch.equal(given, _LABELS):
        return "your function changes the labels it was given: copy them, the loss needs them."
    if torch.equal(answer, wanted):
        return None
    if answer.shape == (2, 4):
        return "there is one token too many: drop the last label, which is only predicted."
    if answer.shape == (2, 2):
        return "the start token is missing: the decoder needs it to predict the first label."
    if answer.shape != wanted.shape:
        return tr(
            "give the shape of the labels, (2, 3): yours is {shape}.", shape=tuple(answer.shape)
        )
    if torch.equal(answer, _LABELS.roll(1, dims=1)):
        return "you rotate the labels: the last one moves to the front, where `start` must be."
    if torch.equal(answer[:, :-1], _LABELS[:, 1:]):
        return "you shift to the left: the decoder would read the token that it has to predict."
    if torch.equal(answer, torch.tensor([[0, 5, 6], [0, 7, 1]])):
        return "the first token must be `start`, which need not be 0 in every model."
    return "[[5, 6, 1], [7, 1, 0]] with start 3 should become [[3, 5, 6], [3, 7, 1]]."


@exercise("08.2")
def _summed(attempt: Callable[[Tensor, Tensor, Sequence[int]], Tensor]) -> Verdict:
    """`attempt(logits, labels, lengths) -> (batch,)`; one 0 of the labels is a real token."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 8, generator=generator)
    labels, lengths = torch.tensor([[5, 0, 6, 1], [7, 1, 0, 0]]), [4, 2]
    logps = logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    real = torch.arange(4) < torch.tensor(lengths)[:, None]
    wanted = (logps * real).sum(-1)
    answer = torch.as_tensor(attempt(logits.clone(), labels.clone(), lengths)).float()
    if answer.shape != wanted.shape:
        return tr(
            "give one number per answer, shape (2,): yours has shape {shape}.",
            shape=tuple(answer.shape),
        )

    def close(other: Tensor) -> bool:
        return torch.allclose(answer, other, atol=1e-4)

    if close(wanted):
        return None
    if close(-wanted):
        return "the sign is wrong: a log-probability is negative, and yours are positive."
    if close(wanted / torch.tensor(lengths)) or close(logps.mean(-1)):
        return "you average: DPO needs the log-probability of the whole answer, which is the sum."
    if close(logps.sum(-1)):
        return "the padding counts too in yours: mask every position from the row's length on."
    if close((logps * (labels != 0)).sum(-1)):
        return "you mask by token, but the 0 inside the first answer is real: mask by length."
    shifted = logits[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:, None]).squeeze(-1)
    if close((shifted * real[:, 1:]).sum(-1)):
        return "that is the shift of a decoder-only model: here position t predicts label t itself."
    raw = logits.gather(-1, labels[..., None]).squeeze(-1)
    if close((raw * real).sum(-1)):
        return "these are logits: take log_softmax over the vocabulary before you gather."
    return "apply log_softmax, gather the labels, set positions past each length to 0, and sum."


@exercise("08.3")
def _robust(attempt: Callable[[Tensor, Tensor, float, float], Tensor]) -> Verdict:
    """`attempt(chosen, rejected, beta, flipped) -> loss`, averaged over the pairs."""
    chosen, rejected = torch.tensor([2.0, -1.0, 4.0]), torch.tensor([-1.0, 0.5, 1.0])
    beta, flipped, zero = 0.3, 0.2, torch.zeros(3)
    margin = beta * (chosen - rejected)
    right = torch.nn.functional.logsigmoid(margin)
    wrong = torch.nn.functional.logsigmoid(-margin)
    options = {"beta": beta, "variant": "robust", "label_smoothing": flipped}
    wanted = dpo_loss(chosen, rejected, zero, zero, **options)
    answer = torch.as_tensor(attempt(chosen, rejected, beta, flipped)).float()
    if answer.shape == chosen.shape and torch.allclose(answer.mean(), wanted, atol=1e-4):
        return "each pair is right: now average over the batch, because a loss is one number."
    if answer.numel() != 1:
        return tr(
            "the loss must be one number, and yours has shape {shape}.", shape=tuple(answer.shape)
        )

    def close(other: Tensor) -> bool:
        return torch.allclose(answer.reshape(()), other, atol=1e-4)

    if close(wanted):
        return None
    if close(wanted * (1 - 2 * flipped)):
        return "divide by 1 - 2 · flipped: without it the loss is biased and too small."
    if close(-((1 - flipped) * right + flipped * wrong).mean()):
        return "that is label smoothing (conservative DPO): robust DPO subtracts the flipped term."
    if close(-right.mean()):
        return "that is plain DPO: your loss does not use the share of flipped labels."
    unscaled = dpo_loss(chosen, rejected, zero, zero, **{**options, "beta": 1.0})
    if close(unscaled):
        return "β is missing: the margin is β times the difference of the log-ratios."
    if close(-wanted):
        return "the sign is wrong: the loss must fall when the chosen answer becomes likelier."
    return (
        "the loss is the mean of (-(1 - ε) ln σ(m) + ε ln σ(-m)) / (1 - 2ε), "
        "with m = β (chosen - rejected)."
    )

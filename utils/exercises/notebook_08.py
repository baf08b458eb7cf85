"""Notebook 08: shifting labels, summed log-probabilities, robust DPO."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.exercises.checks import Verdict, exercise
from utils.losses import dpo_loss

_LABELS = torch.tensor([[5, 6, 1], [7, 1, 0]])  # 1 ends, 0 fills up
_START = 3  # not 0, so that a filler and a start can be told apart


@exercise("08.1")
def _shifted(attempt: Callable[[Tensor, int], Tensor]) -> Verdict:
    """`attempt(labels, start) -> decoder input`, both (batch, answer)."""
    given = _LABELS.clone()
    answer = torch.as_tensor(attempt(given, _START))
    wanted = torch.tensor([[_START, 5, 6], [_START, 7, 1]])
    if not torch.equal(given, _LABELS):
        return "your function changes the labels it was given: the loss needs them as they were."
    if torch.equal(answer, wanted):
        return None
    if answer.shape == (2, 4):
        return "one token too many: the last label is predicted, never read, so drop it."
    if answer.shape == (2, 2):
        return "the start token is missing: without it nothing predicts the first label."
    if answer.shape != wanted.shape:
        return f"the shape of the labels is wanted, (2, 3), yours is {tuple(answer.shape)}."
    if torch.equal(answer, _LABELS.roll(1, dims=1)):
        return "you rotate: the last label comes round to the front, where the start token belongs."
    if torch.equal(answer[:, :-1], _LABELS[:, 1:]):
        return "you shift to the left: the decoder would read the very token that it predicts next."
    if torch.equal(answer, torch.tensor([[0, 5, 6], [0, 7, 1]])):
        return "the first token must be `start`, which need not be 0 in every model."
    return "expected [[3, 5, 6], [3, 7, 1]] for the labels [[5, 6, 1], [7, 1, 0]] and start 3."


@exercise("08.2")
def _summed(attempt: Callable[[Tensor, Tensor, Sequence[int]], Tensor]) -> Verdict:
    """`attempt(logits, labels, lengths) -> (batch,)`; a real 0 stands among the labels."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 8, generator=generator)
    labels, lengths = torch.tensor([[5, 0, 6, 1], [7, 1, 0, 0]]), [4, 2]
    logps = logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    real = torch.arange(4) < torch.tensor(lengths)[:, None]
    wanted = (logps * real).sum(-1)
    answer = torch.as_tensor(attempt(logits.clone(), labels.clone(), lengths)).float()
    if answer.shape != wanted.shape:
        return f"one number per answer is wanted, (2,), yours has shape {tuple(answer.shape)}."

    def close(other: Tensor) -> bool:
        return torch.allclose(answer, other, atol=1e-4)

    if close(wanted):
        return None
    if close(-wanted):
        return "the sign: these are costs, a log-probability is negative."
    if close(wanted / torch.tensor(lengths)) or close(logps.mean(-1)):
        return "you average: DPO wants the log-probability of the whole answer, the sum."
    if close(logps.sum(-1)):
        return "the padding counts too: mask every position from the row's length on."
    if close((logps * (labels != 0)).sum(-1)):
        return "you mask by token: the 0 inside the first answer is real, mask by length."
    shifted = logits[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:, None]).squeeze(-1)
    if close((shifted * real[:, 1:]).sum(-1)):
        return "that is the shift of a decoder-only model: here position t predicts label t itself."
    raw = logits.gather(-1, labels[..., None]).squeeze(-1)
    if close((raw * real).sum(-1)):
        return "these are logits: take log_softmax over the vocabulary before you gather."
    return "log_softmax, gather at the labels, zero from each row's length on, then sum."


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
        return "right for each pair: now average over the batch, a loss is one number."
    if answer.numel() != 1:
        return f"one number is wanted, yours has shape {tuple(answer.shape)}."

    def close(other: Tensor) -> bool:
        return torch.allclose(answer.reshape(()), other, atol=1e-4)

    if close(wanted):
        return None
    if close(wanted * (1 - 2 * flipped)):
        return "divide by 1 - 2 · flipped: else the loss is biased, and too small."
    if close(-((1 - flipped) * right + flipped * wrong).mean()):
        return "that is label smoothing (conservative DPO): robust DPO subtracts the flipped term."
    if close(-right.mean()):
        return "that is plain DPO: the share of flipped labels plays no part in it."
    unscaled = dpo_loss(chosen, rejected, zero, zero, **{**options, "beta": 1.0})
    if close(unscaled):
        return "β is missing: the margin is β times the difference of the log-ratios."
    if close(-wanted):
        return "the sign: a loss falls when the chosen answer gains."
    return (
        "(-(1 - ε) ln σ(m) + ε ln σ(-m)) / (1 - 2ε), with m = β (chosen - rejected), then the mean."
    )

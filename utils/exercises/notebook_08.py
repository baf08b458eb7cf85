"""Notebook 08: the parts of DPO for a T5, then the exercises at the end of the notebook.

The solutions of 08.1 to 08.3 are the functions that the notebook shows folded.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.course.language import tr
from utils.exercises.checks import Verdict, exercise
from utils.exercises.equality import close, no_tensor, value_and_gradients
from utils.losses import dpo_loss

_LABELS = torch.tensor([[5, 6, 1], [7, 1, 0]])  # 1 is the end token, 0 is padding
_START = 3  # not 0, so that the start token differs from the padding


# --- 08.1: what the decoder reads ----------------------------------------------------------------


def shift(answers: Tensor, start: int) -> Tensor:
    """What the decoder reads while it predicts the answers: both (batch, answer)."""
    first = torch.full_like(answers[:, :1], start)
    return torch.cat([first, answers[:, :-1]], dim=1)


@exercise("08.1", solution=shift)
def _shifted(attempt: Callable[[Tensor, int], Tensor]) -> Verdict:
    """`attempt(labels, start) -> decoder input`, both (batch, answer)."""
    answer = torch.as_tensor(attempt(_LABELS.clone(), _START))
    wanted = torch.tensor([[_START, 5, 6], [_START, 7, 1]])
    if torch.equal(answer, wanted):
        if answer.dtype == _LABELS.dtype:
            return None
        return "the decoder reads token numbers: keep the dtype of the labels."
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


# --- 08.2: the log-probability of an answer ------------------------------------------------------


def summed(logits: Tensor, answers: Tensor, mask: Tensor) -> Tensor:
    """The log-probability of each answer, a sum over its tokens: (batch,)."""
    logps = logits.log_softmax(-1).gather(-1, answers[..., None]).squeeze(-1)
    return torch.where(mask, logps, 0.0).sum(-1)


@exercise("08.2", solution=summed)
def _summed(attempt: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Verdict:
    """`attempt(logits, answers, mask) -> (batch,)`; one 0 of the answers is a real token."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 8, generator=generator)
    answers, lengths = torch.tensor([[5, 0, 6, 1], [7, 1, 0, 0]]), torch.tensor([4, 2])
    mask = torch.arange(4) < lengths[:, None]
    logps = logits.log_softmax(-1).gather(-1, answers[..., None]).squeeze(-1)
    wanted = (logps * mask).sum(-1)
    given = attempt(logits.clone(), answers.clone(), mask.clone())
    answer = torch.as_tensor(given).float()
    if answer.shape != wanted.shape:
        return tr(
            "give one number per answer, shape (2,): yours has shape {shape}.",
            shape=tuple(answer.shape),
        )
    shifted = logits[:, :-1].log_softmax(-1).gather(-1, answers[:, 1:, None]).squeeze(-1)
    raw = logits.gather(-1, answers[..., None]).squeeze(-1)
    mistakes = {
        "the sign is wrong: a log-probability is negative, and yours are positive.": -wanted,
        "you average: DPO needs the log-probability of the whole answer, which is the sum.": (
            wanted / lengths
        ),
        "the padding counts too in yours: set every position to 0 where the mask is False.": (
            logps.sum(-1)
        ),
        "you mask by token, but the 0 inside the first answer is real: use the mask.": (
            (logps * (answers != 0)).sum(-1)
        ),
        "that is the shift of a decoder-only model: here position t predicts token t itself.": (
            (shifted * mask[:, 1:]).sum(-1)
        ),
        "these are logits: take log_softmax over the vocabulary before you gather.": (
            (raw * mask).sum(-1)
        ),
        "you average over all positions: DPO needs the sum over the real tokens.": logps.mean(-1),
    }
    if close(answer, wanted):
        return None
    for message, mistake in mistakes.items():
        if close(answer, mistake):
            return message
    return "apply log_softmax, gather the answers, set the padding to 0, and sum."


# --- 08.3: the loss ------------------------------------------------------------------------------


def dpo(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """DPO's loss, averaged over the pairs, from log-probabilities (batch,)."""
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return -torch.nn.functional.logsigmoid(margin).mean()


@exercise("08.3", solution=dpo)
def _dpo(attempt: Callable[..., Tensor]) -> Verdict:
    """`attempt(chosen, rejected, ref_chosen, ref_rejected, beta) -> loss`, with its gradient."""
    beta = 0.3
    numbers = [torch.tensor(row, requires_grad=True) for row in ([-9.0, -14.0], [-11.0, -12.0])]
    reference = torch.tensor([-10.0, -12.5]), torch.tensor([-10.5, -13.5])

    def measured(loss: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        value, slopes = value_and_gradients(lambda c, r: loss(c, r, *reference, beta), numbers)
        return value, torch.stack(slopes)

    found = attempt(*numbers, *reference, beta)
    if not isinstance(found, Tensor):
        return no_tensor(found)
    if found.shape == (2,) and close(found.mean(), dpo(*numbers, *reference, beta)):
        return "each pair is right: now average over the batch, because a loss is one number."
    if found.numel() != 1:
        return tr(
            "the loss must be one number, and yours has shape {shape}.", shape=tuple(found.shape)
        )
    value, slope = measured(attempt)
    answer, wanted = (value.reshape(()), slope), measured(dpo)
    if all(map(close, answer, wanted)):
        return None
    mistakes = {
        "the sign is wrong: the loss must fall when the chosen answer becomes likelier.": (
            lambda c, r, p, q, b: -dpo(c, r, p, q, b)
        ),
        "chosen and rejected are confused: the margin is chosen minus rejected.": (
            lambda c, r, p, q, b: dpo(r, c, q, p, b)
        ),
        "the reference is missing: subtract its log-probabilities.": (
            lambda c, r, p, q, b: dpo(c, r, 0 * p, 0 * q, b)
        ),
        "the reference is added: subtract its log-probabilities.": (
            lambda c, r, p, q, b: dpo(c, r, -p, -q, b)
        ),
        "β is missing: the margin is β times the difference of the log-ratios.": (
            lambda c, r, p, q, b: dpo(c, r, p, q, 1.0)
        ),
        "that is minus the margin: the logarithm of its sigmoid is missing.": (
            lambda c, r, p, q, b: -b * ((c - p) - (r - q)).mean()
        ),
        "the logarithm is missing: the loss is minus the logarithm of the sigmoid.": (
            lambda c, r, p, q, b: -torch.sigmoid(b * ((c - p) - (r - q))).mean()
        ),
    }
    for message, mistake in mistakes.items():
        if all(map(close, answer, measured(mistake))):
            return message
    if close(answer[0], wanted[0]):
        return "the value is right, but the gradient is not: do not detach the policy's numbers."
    return tr(
        "the loss of the example is {wanted}: yours is {found}.",
        wanted=f"{wanted[0].item():.4f}",
        found=f"{answer[0].item():.4f}",
    )


# --- At the end of the notebook ------------------------------------------------------------------


@exercise("08.4")
def _stopped(attempt: Callable[[Sequence[float], int], tuple[int, int]]) -> Verdict:
    """`attempt(losses, patience) -> (last, kept)`, indices of evaluations."""
    first, second = [0.70, 0.60, 0.64, 0.55, 0.58, 0.57, 0.50], [0.70, 0.61, 0.52, 0.44]
    answers = [attempt(list(losses), 2) for losses in (first, second)]
    if answers[1] is None and answers[0] is not None:
        return "a loss that always falls never stops the run: the last evaluation is the best one."
    if any(not isinstance(answer, tuple | list) or len(answer) != 2 for answer in answers):
        return "return two indices: that of the last evaluation, and that of the one that is kept."
    found, falling = (tuple(int(index) for index in answer) for answer in answers)
    if (found, falling) == ((5, 3), (3, 3)):
        return None
    mistakes = {
        (5, 5): "you keep the last model: early stopping keeps the one with the lowest loss.",
        (
            2,
            1,
        ): "you stop at the first rise: wait for `patience` evaluations without a new minimum.",
        (2, 2): "you stop at the first rise, and you keep the last model instead of the best one.",
        (6, 6): "your run goes on too long: it stops when the lowest loss is 2 evaluations old.",
        (5, 6): "the run has stopped before evaluation 6: its loss is never measured.",
        (6, 4): "count from 0: the first evaluation has index 0.",
        (3, 5): "first the index of the last evaluation, then that of the one that is kept.",
    }
    return mistakes.get(
        found,
        "with patience 2 the losses 0.70, 0.60, 0.64, 0.55, 0.58, 0.57, 0.50 stop the run after "
        "evaluation 5, and evaluation 3 is kept.",
    )


@exercise("08.5")
def _one_row(attempt: Callable[[Tensor, Tensor, Sequence[int], Sequence[int]], Tensor]) -> Verdict:
    """`attempt(logits, rows, prompt_lengths, lengths) -> (batch,)` of a decoder-only model."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 6, 8, generator=generator)
    # 1 is the end token and also the padding, as in GPT-2
    rows = torch.tensor([[4, 5, 6, 7, 2, 1], [3, 6, 1, 1, 1, 1]])
    prompts, lengths = [3, 1], [6, 3]
    at = torch.arange(6)
    begins, ends = (torch.tensor(numbers)[:, None] for numbers in (prompts, lengths))
    logps = logits[:, :-1].log_softmax(-1).gather(-1, rows[:, 1:, None]).squeeze(-1)
    at_next = at[1:]  # column j of logps predicts token j + 1

    def total(first: Tensor, stop: Tensor, numbers: Tensor = logps) -> Tensor:
        return (numbers * ((at_next >= first) & (at_next < stop))).sum(-1)

    wanted = total(begins, ends)
    answer = torch.as_tensor(attempt(logits.clone(), rows.clone(), prompts, lengths)).float()
    if answer.shape != wanted.shape:
        return tr(
            "give one number per answer, shape (2,): yours has shape {shape}.",
            shape=tuple(answer.shape),
        )
    if close(answer, wanted):
        return None
    unshifted = logits.log_softmax(-1).gather(-1, rows[..., None]).squeeze(-1)
    raw = logits[:, :-1].gather(-1, rows[:, 1:, None]).squeeze(-1)
    far = torch.full_like(ends, 99)
    mistakes = {
        "nothing is shifted: the logits at position t predict the token at t + 1.": (
            (unshifted * ((at >= begins) & (at < ends))).sum(-1)
        ),
        "the prompt counts in yours: only the answer's tokens may.": total(0 * begins, ends),
        "the first token of the answer is missing: the prompt's last position predicts it.": (
            total(begins + 1, ends)
        ),
        "the last token of the prompt counts in yours: the answer begins after it.": (
            total(begins - 1, ends)
        ),
        "the padding counts in yours: stop at the row's length.": total(begins, far),
        "the end token is missing: it is part of the answer, although the padding looks like it.": (
            total(begins, ends, logps * (rows[:, 1:] != 1))
        ),
        "you average: DPO needs the sum over the answer's tokens.": (
            wanted / (ends - begins).squeeze(1)
        ),
        "these are logits: take log_softmax over the vocabulary before you gather.": (
            total(begins, ends, raw)
        ),
        "the sign is wrong: a log-probability is negative, and yours are positive.": -wanted,
    }
    for message, mistake in mistakes.items():
        if close(answer, mistake):
            return message
    return (
        "position t predicts token t + 1: sum the tokens from the prompt's length up to the row's."
    )


@exercise("08.6")
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

    def equal(other: Tensor) -> bool:
        return torch.allclose(answer.reshape(()), other, atol=1e-4)

    if equal(wanted):
        return None
    if equal(wanted * (1 - 2 * flipped)):
        return "divide by 1 - 2 · flipped: without it the loss is biased and too small."
    if equal(-((1 - flipped) * right + flipped * wrong).mean()):
        return "that is label smoothing (conservative DPO): robust DPO subtracts the flipped term."
    if equal(-right.mean()):
        return "that is plain DPO: your loss does not use the share of flipped labels."
    unscaled = dpo_loss(chosen, rejected, zero, zero, **{**options, "beta": 1.0})
    if equal(unscaled):
        return "β is missing: the margin is β times the difference of the log-ratios."
    if equal(-wanted):
        return "the sign is wrong: the loss must fall when the chosen answer becomes likelier."
    return (
        "the loss is the mean of (-(1 - ε) ln σ(m) + ε ln σ(-m)) / (1 - 2ε), "
        "with m = β (chosen - rejected)."
    )

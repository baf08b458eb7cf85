"""Notebook 02: masks, rewards per token, the smallest KL for a share of negatives."""

import math
from collections.abc import Callable

import torch

from utils.exercises.checks import Verdict, exercise

_RESPONSES = torch.tensor([[5, 2, 6, 2], [5, 6, 7, 8], [2, 2, 5, 5]])


@exercise("02.1")
def _mask_after_end(attempt: Callable[[torch.Tensor, int], torch.Tensor]) -> Verdict:
    """`attempt(responses, end) -> mask`, True up to and including the first end."""
    answer = torch.as_tensor(attempt(_RESPONSES.clone(), 2)).bool()
    wanted = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    if answer.shape != wanted.shape:
        return f"give one True or False per token: yours has shape {tuple(answer.shape)}."
    if torch.equal(answer, wanted):
        return None
    if torch.equal(answer, torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()):
        return "the end token itself counts, because the policy must learn to write it."
    if torch.equal(answer, _RESPONSES != 2):
        return "you mask only the end tokens: everything after the first one must be False too."
    if torch.equal(answer, torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()):
        return "your mask goes up to the last end token: the text ends at the first one."
    return "for the tokens 5 2 6 2 with end token 2 the mask is True, True, False, False."


@exercise("02.2")
def _per_token_rewards(attempt: Callable[..., torch.Tensor]) -> Verdict:
    """`attempt(kl, scores, mask, beta) -> rewards` (batch, response)."""
    kl = torch.tensor([[0.5, 0.25, 9.0], [0.1, 0.2, 0.4]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    scores, beta = torch.tensor([2.0, 1.0]), 0.2
    wanted = torch.tensor([[-0.1, 1.95, 0.0], [-0.02, -0.04, 0.92]])
    answer = torch.as_tensor(attempt(kl.clone(), scores.clone(), mask.clone(), beta)).float()
    if answer.shape != wanted.shape:
        return f"give one reward per token, shape (2, 3): yours has shape {tuple(answer.shape)}."
    if torch.allclose(answer, wanted, atol=1e-5):
        return None
    if torch.allclose(answer[:, 2], torch.tensor([2.0 - 1.8, 0.92]), atol=1e-5):
        return "you add the score in the last column: add it at each row's last unmasked token."
    plain = wanted + (beta - 1) * kl * mask
    if torch.allclose(answer, plain, atol=1e-5):
        return "you did not multiply the KL by beta."
    if torch.allclose(answer, wanted + 2 * beta * kl * mask, atol=1e-5):
        return "you add the KL: it is a penalty, so it is subtracted."
    if answer[0, 2].abs() > 1e-6:
        return "tokens after the end must get 0: use the mask."
    spread = torch.where(mask, scores[:, None] - beta * kl, 0.0)
    if torch.allclose(answer, spread, atol=1e-5):
        return "you give the whole score to every token: only the last one may have it."
    return "the rewards here should be [[-0.10, 1.95, 0], [-0.02, -0.04, 0.92]]."


@exercise("02.3")
def _least_kl(attempt: Callable[[list[float], float], float]) -> Verdict:
    """`attempt(rates, share) -> nats`."""
    rates, share, wanted = [0.2, 0.5, 0.8], 0.9, 0.4654
    answer = float(attempt(list(rates), share))
    if abs(answer - wanted) < 2e-3:
        return None
    new, old = share, sum(rates) / 3
    pooled = new * math.log(new / old) + (1 - new) * math.log((1 - new) / (1 - old))
    if abs(answer - pooled) < 2e-3:
        return "you averaged the rates first: each prompt has its own rate and its own KL."
    each = [new * math.log(new / p) + (1 - new) * math.log((1 - new) / (1 - p)) for p in rates]
    if abs(answer - sum(each) / 3) < 2e-3:
        return "you bring every prompt to the same share: one common tilt λ needs less KL."
    if abs(answer - wanted / math.log(2)) < 2e-3:
        return "that is in bits: use the natural logarithm, which gives nats."
    return (
        "for the rates 0.2, 0.5 and 0.8 and the share 0.9 the smallest KL is near 0.47, and "
        f"yours is {answer:.3f}."
    )

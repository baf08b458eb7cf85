"""Exercises: `check("01.1", attempt)` says right, or names the mistake."""

import math
from collections.abc import Callable

import torch

Verdict = str | None  # None when right, else what is wrong
_EXERCISES: dict[str, Callable[..., Verdict]] = {}


def exercise(name: str) -> Callable:
    """Register the judge of one exercise."""

    def register(judge: Callable[..., Verdict]) -> Callable[..., Verdict]:
        _EXERCISES[name] = judge
        return judge

    return register


def check(name: str, attempt: object) -> bool:
    """Judge an attempt and print one line; a missing attempt never stops a run."""
    if name not in _EXERCISES:
        raise KeyError(f"No exercise is called {name!r}: the names are {', '.join(_EXERCISES)}.")
    if attempt is None or attempt is ...:
        print(f"{name}: no attempt yet.")
        return False
    try:
        verdict = _EXERCISES[name](attempt)
    except Exception as error:
        verdict = f"your code stopped with {type(error).__name__}: {error}"
    print(f"{name}: {'right.' if verdict is None else 'not yet: ' + verdict}")
    return verdict is None


_LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.3, 0.1, 1.5], [-0.5, 0.2, -0.9], [1.2, 1.1, 1.0]])
_EXPECTED = torch.tensor([2.0, 0.0, 0.0, 1.2])  # the negative logit where negative wins


@exercise("01.1")
def _reward_by_hand(attempt: Callable[[torch.Tensor], torch.Tensor]) -> Verdict:
    """`attempt(logits) -> rewards`, r = z_negative if the class is negative, else 0."""
    answer = torch.as_tensor(attempt(_LOGITS.clone()))
    if answer.shape != _EXPECTED.shape:
        return f"one reward a text is wanted, shape (4,), yours has shape {tuple(answer.shape)}."
    if torch.allclose(answer.float(), _EXPECTED):
        return None
    if torch.allclose(answer.float(), _LOGITS[:, 0]):
        return "you return the negative logit of every text: where another class wins it must be 0."
    if torch.allclose(answer.float(), _LOGITS.softmax(-1)[:, 0], atol=1e-4):
        return "these are probabilities: the reward here is the raw logit z, before the softmax."
    if torch.allclose(answer.float(), _LOGITS[:, 2] * (_LOGITS.argmax(-1) == 2)):
        return "you reward the positive class: negative has index 0."
    if torch.allclose(answer.float(), _LOGITS[:, 0].clamp(min=0)):
        return (
            "a positive z is not enough: the class must be negative, so compare the three logits."
        )
    return "expected 2.0, 0, 0 and 1.2 on the four rows of logits used here."


@exercise("01.2")
def _balanced_weights(attempt: Callable[[list[int]], list[float]]) -> Verdict:
    """`attempt(counts) -> weights`: (total / count) ** 0.5, scaled to a mean of 1 over the rows."""
    counts = torch.tensor([400.0, 25.0, 575.0])
    raw = (counts.sum() / counts) ** 0.5
    wanted = raw * counts.sum() / (raw * counts).sum()
    answer = torch.as_tensor(attempt(counts.int().tolist())).float()
    if answer.shape != wanted.shape:
        return f"one weight a class is wanted, shape (3,), yours has shape {tuple(answer.shape)}."
    if torch.allclose(answer, wanted, rtol=1e-3):
        return None
    if torch.allclose(answer, raw, rtol=1e-3):
        return "right up to a factor: divide by the mean over rows, or the learning rate changes."
    if torch.allclose(answer / answer[0], (counts[0] / counts), rtol=1e-3):
        return (
            "that is the full inverse frequency: take its square root, as the profile's 0.5 asks."
        )
    if answer[1] < answer[0]:
        return "the rare class must weigh more than the frequent ones, yours weighs less."
    return "take the square root of total / count, then scale so that the mean over rows is 1."


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
        return "temperature 1 changes nothing: did the search run, and on the logits given?"
    return f"these logits are 2.5 times too large, so T should be near 2.5; yours is {answer:.2f}."


_RESPONSES = torch.tensor([[5, 2, 6, 2], [5, 6, 7, 8], [2, 2, 5, 5]])


@exercise("02.1")
def _mask_after_end(attempt: Callable[[torch.Tensor, int], torch.Tensor]) -> Verdict:
    """`attempt(responses, end) -> mask`, True up to and including the first end."""
    answer = torch.as_tensor(attempt(_RESPONSES.clone(), 2)).bool()
    wanted = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    if answer.shape != wanted.shape:
        return f"one True or False a token is wanted, yours has shape {tuple(answer.shape)}."
    if torch.equal(answer, wanted):
        return None
    if torch.equal(answer, torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()):
        return "the end token itself counts: the policy must learn to write it."
    if torch.equal(answer, _RESPONSES != 2):
        return "only the end tokens are out: everything after the first one must be out too."
    if torch.equal(answer, torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()):
        return "you go up to the last end: the first one ends the text."
    return "in 5 2 6 2 with end 2 the mask is True, True, False, False."


@exercise("02.2")
def _per_token_rewards(attempt: Callable[..., torch.Tensor]) -> Verdict:
    """`attempt(kl, scores, mask, beta) -> rewards` (batch, response)."""
    kl = torch.tensor([[0.5, 0.25, 9.0], [0.1, 0.2, 0.4]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    scores, beta = torch.tensor([2.0, 1.0]), 0.2
    wanted = torch.tensor([[-0.1, 1.95, 0.0], [-0.02, -0.04, 0.92]])
    answer = torch.as_tensor(attempt(kl.clone(), scores.clone(), mask.clone(), beta)).float()
    if answer.shape != wanted.shape:
        return f"one reward a token is wanted, shape (2, 3), yours has {tuple(answer.shape)}."
    if torch.allclose(answer, wanted, atol=1e-5):
        return None
    if torch.allclose(answer[:, 2], torch.tensor([2.0 - 1.8, 0.92]), atol=1e-5):
        return "the score lands in the last column: it belongs on the last token that counts."
    plain = wanted + (beta - 1) * kl * mask
    if torch.allclose(answer, plain, atol=1e-5):
        return "did you multiply the KL by beta?"
    if torch.allclose(answer, wanted + 2 * beta * kl * mask, atol=1e-5):
        return "the KL is a price: it is subtracted."
    if answer[0, 2].abs() > 1e-6:
        return "tokens after the end must get 0: use the mask."
    spread = torch.where(mask, scores[:, None] - beta * kl, 0.0)
    if torch.allclose(answer, spread, atol=1e-5):
        return "every token gets the whole score: only the last one may."
    return "expected [[-0.10, 1.95, 0], [-0.02, -0.04, 0.92]] on the two rows used here."


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
        return "you bring every prompt to the same share: one common tilt λ is cheaper."
    if abs(answer - wanted / math.log(2)) < 2e-3:
        return "that is in bits: use the natural logarithm for nats."
    return (
        f"for rates 0.2, 0.5, 0.8 and share 0.9 the least KL is near 0.47, yours is {answer:.3f}."
    )

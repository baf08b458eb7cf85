"""Notebook 04: where DPO ends, implicit reward, the weight of a pair, a fair win rate."""

from collections.abc import Callable

import torch

from utils.course.language import tr
from utils.exercises.checks import Verdict, exercise


def end_of_dpo(rate: torch.Tensor, worth: float, beta: float) -> torch.Tensor:
    """The rate of an attribute in the policy that is best for its worth and this β."""
    return torch.sigmoid(torch.logit(rate) + worth / beta)


@exercise("04.1", end_of_dpo)
def _end_of_dpo(attempt: Callable[..., torch.Tensor]) -> Verdict:
    """`attempt(rate, worth, beta) -> rate where DPO ends`."""
    rate, worth, beta = torch.tensor([0.45, 0.2]), 1.2, 0.5
    answers = [torch.as_tensor(attempt(each, worth, beta)).float() for each in rate]
    answer = torch.stack([each.reshape(()) for each in answers])
    logit = torch.logit(rate)
    if torch.allclose(answer, torch.sigmoid(logit + worth / beta), atol=1e-5):
        return None
    if torch.allclose(answer, logit + worth / beta, atol=1e-5):
        return "that is the logit of the rate: apply the sigmoid to get the rate."
    if torch.allclose(answer, torch.sigmoid(logit + worth * beta), atol=1e-5):
        return "you multiply by beta: a small beta must lead further away, so divide by it."
    if torch.allclose(answer, torch.sigmoid(rate + worth / beta), atol=1e-5):
        return "the reward is added to the logit of the reference rate, not to the rate."
    if torch.allclose(answer, torch.sigmoid(torch.full_like(rate, worth / beta)), atol=1e-5):
        return "the reference is missing: DPO starts from its rate."
    if torch.allclose(answer, rate + worth / beta, atol=1e-5):
        return "the reward is added to the logit, so that the rate stays between 0 and 1."
    return "for 0.45 with a worth of 1.2 and beta 0.5 the rate is 0.900."


@exercise("04.2")
def _implicit_reward(attempt: Callable[..., torch.Tensor]) -> Verdict:
    """`attempt(logp, reference_logp, beta) -> reward`."""
    logp, reference = torch.tensor([-10.0, -30.0]), torch.tensor([-12.0, -25.0])
    answer = torch.as_tensor(attempt(logp, reference, 0.2)).float()
    if answer.shape != (2,):
        return tr(
            "give one reward per answer, shape (2,): yours has shape {shape}.",
            shape=tuple(answer.shape),
        )
    wanted = torch.tensor([0.4, -1.0])
    if torch.allclose(answer, wanted):
        return None
    if torch.allclose(answer, -wanted):
        return "the sign is wrong: an answer that the policy makes likelier has a positive reward."
    if torch.allclose(answer, wanted / 0.2):
        return "beta is missing: multiply by beta."
    if torch.allclose(answer, 0.2 * logp):
        return "the reference is missing: subtract its log-probability from the policy's."
    if torch.allclose(answer, 0.2 * (logp.exp() - reference.exp()), atol=1e-4):
        return "take the difference of the logarithms, not of the probabilities."
    return "for -10 and -30 against -12 and -25 at beta 0.2 the rewards are 0.4 and -1."


@exercise("04.3")
def _pull(attempt: Callable[..., torch.Tensor]) -> Verdict:
    """`attempt(margin, beta) -> -dL/dmargin` of the sigmoid loss."""
    margin = torch.tensor([-20.0, 0.0, 20.0])
    answer = torch.as_tensor(attempt(margin, 0.1)).float()
    wanted = 0.1 * torch.sigmoid(-0.1 * margin)
    if answer.shape != (3,):
        return tr(
            "give one weight per pair, shape (3,): yours has shape {shape}.",
            shape=tuple(answer.shape),
        )
    if torch.allclose(answer, wanted, atol=1e-5):
        return None
    if torch.allclose(answer, 0.1 * torch.sigmoid(0.1 * margin), atol=1e-5):
        return "the sign inside the sigmoid is wrong: a pair that is right already has less weight."
    if torch.allclose(answer, wanted / 0.1, atol=1e-5):
        return "the derivative has a factor beta, by the chain rule: multiply by it."
    if torch.allclose(answer, -wanted, atol=1e-5):
        return "the loss falls as the margin grows, so minus the slope is positive."
    if torch.allclose(answer, -torch.nn.functional.logsigmoid(0.1 * margin), atol=1e-5):
        return "that is the loss: return minus its derivative."
    return "at margin 0 and beta 0.1 the result is 0.05."


@exercise("04.4")
def _win_rate(attempt: Callable[..., float]) -> Verdict:
    """`attempt(judge, first, second) -> share won by first`, each pair judged in both orders."""
    first, second = ["a", "bb", "c", "dd"], ["aa", "b", "c", "d"]

    def longer(a: str, b: str) -> float:
        return 0.5 if len(a) == len(b) else float(len(a) > len(b))

    def always_first(a: str, b: str) -> float:
        return 1.0

    def timid(a: str, b: str) -> float:  # sees a winner only in the first place
        return 1.0 if len(a) > len(b) else 0.5

    fair, biased, changed = (
        attempt(judge, first, second) for judge in (longer, always_first, timid)
    )
    if abs(fair - 0.625) < 1e-6 and abs(biased - 0.5) < 1e-6:
        if abs(changed - 0.5) < 1e-6:
            return None
        return "a verdict that changes with the order is a tie: do not average the two verdicts."
    if abs(biased - 1.0) < 1e-6:
        return "a judge that always prefers the first answer gives 1 in yours: ask in both orders."
    if abs(fair - 0.5) < 1e-6:
        return "a tie counts half, not zero."
    if abs(fair - 2 / 3) < 1e-6:
        return "you leave the ties out of the count: divide by all questions."
    if abs(fair - 0.375) < 1e-6:
        return "that is the share of the second: return the share won by the first."
    return "for the results 0, 1, ½ and 1 the win rate is 0.625."

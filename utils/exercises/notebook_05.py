"""Notebook 05: odds, means over tokens, SimPO."""

from collections.abc import Callable

import torch

from utils.course.language import tr
from utils.exercises.checks import Verdict, exercise


@exercise("05.1")
def _log_odds(attempt: Callable[[torch.Tensor], torch.Tensor]) -> Verdict:
    """`attempt(p) -> ln(p / (1 - p))`."""
    p = torch.tensor([0.5, 0.1, 0.8])
    answer = torch.as_tensor(attempt(p.clone())).float()
    wanted = torch.log(p / (1 - p))
    if answer.shape != wanted.shape:
        return tr(
            "give one number per probability, shape (3,): yours is {shape}.",
            shape=tuple(answer.shape),
        )
    if torch.allclose(answer, wanted, atol=1e-5):
        return None
    if torch.allclose(answer, wanted.exp(), atol=1e-5):
        return "these are the odds: take their logarithm."
    if torch.allclose(answer, -wanted, atol=1e-5):
        return "your fraction is upside down: the odds are p over 1 - p."
    if torch.allclose(answer, torch.log(p), atol=1e-5):
        return "the 1 - p is missing: divide p by it before the logarithm."
    if torch.allclose(answer, wanted / torch.log(torch.tensor(2.0)), atol=1e-4):
        return "use the natural logarithm."
    return "the log odds of 0.5, 0.1 and 0.8 are 0, -2.197 and 1.386."


@exercise("05.2")
def _means(attempt: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Verdict:
    """`attempt(logps, mask) -> mean over the tokens that count`, (batch,)."""
    logps = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -1.0, -2.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    answer = torch.as_tensor(attempt(logps.clone(), mask.clone())).float()
    if answer.shape != (2,):
        return tr(
            "give one mean per row, shape (2,): yours has shape {shape}.", shape=tuple(answer.shape)
        )
    if torch.allclose(answer, torch.tensor([-1.5, -2.0])):
        return None
    if torch.allclose(answer, logps.mean(1)):
        return "your mean includes the padding: use the mask."
    if torch.allclose(answer, torch.tensor([-3.0, -6.0])):
        return "that is the sum: divide by the number of tokens that count."
    if torch.allclose(answer, torch.tensor([-1.0, -2.0])):
        return "you divide by the width of the table: divide by each row's number of tokens."
    return "the means of the two rows are -1.5 and -2."


@exercise("05.3")
def _simpo(attempt: Callable[..., torch.Tensor]) -> Verdict:
    """`attempt(chosen, rejected, beta, gamma) -> loss`, from mean log-probabilities per token."""
    chosen, rejected = torch.tensor([-1.0, -0.5]), torch.tensor([-1.5, -2.0])
    beta, gamma = 2.0, 0.5

    def loss(lead: torch.Tensor) -> torch.Tensor:
        return -torch.nn.functional.logsigmoid(lead).mean()

    answer = torch.as_tensor(attempt(chosen, rejected, beta, gamma)).float()
    if answer.numel() != 1:
        return tr(
            "the loss must be one number, yours has shape {shape}: take the mean.",
            shape=tuple(answer.shape),
        )
    gap = chosen - rejected
    if torch.allclose(answer, loss(beta * gap - gamma), atol=1e-5):
        return None
    if torch.allclose(answer, loss(beta * gap), atol=1e-5):
        return "the margin gamma is missing: subtract it inside the sigmoid."
    if torch.allclose(answer, loss(beta * gap + gamma), atol=1e-5):
        return "you add the margin, which makes the task easier: subtract gamma."
    if torch.allclose(answer, loss(beta * (gap - gamma)), atol=1e-5):
        return "you multiply gamma by beta: beta multiplies the difference only."
    if torch.allclose(answer, -loss(beta * gap - gamma), atol=1e-5):
        return "the sign is wrong: a loss is minus the log-likelihood."
    return "the loss is the mean over the pairs of -ln σ(beta · (chosen - rejected) - gamma)."

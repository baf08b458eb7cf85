"""Notebook 05: odds, means over tokens, SimPO."""

from collections.abc import Callable

import torch

from utils.exercises.checks import Verdict, exercise


@exercise("05.1")
def _log_odds(attempt: Callable[[torch.Tensor], torch.Tensor]) -> Verdict:
    """`attempt(p) -> ln(p / (1 - p))`."""
    p = torch.tensor([0.5, 0.1, 0.8])
    answer = torch.as_tensor(attempt(p.clone())).float()
    wanted = torch.log(p / (1 - p))
    if answer.shape != wanted.shape:
        return f"one number a probability is wanted, shape (3,), yours has {tuple(answer.shape)}."
    if torch.allclose(answer, wanted, atol=1e-5):
        return None
    if torch.allclose(answer, wanted.exp(), atol=1e-5):
        return "these are the odds: take their logarithm."
    if torch.allclose(answer, -wanted, atol=1e-5):
        return "upside down: odds are p over 1 - p."
    if torch.allclose(answer, torch.log(p), atol=1e-5):
        return "the 1 - p is missing."
    if torch.allclose(answer, wanted / torch.log(torch.tensor(2.0)), atol=1e-4):
        return "use the natural logarithm."
    return "ln odds of 0.5, 0.1 and 0.8 are 0, -2.197 and 1.386."


@exercise("05.2")
def _means(attempt: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Verdict:
    """`attempt(logps, mask) -> mean over what counts`, (batch,)."""
    logps = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -1.0, -2.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    answer = torch.as_tensor(attempt(logps.clone(), mask.clone())).float()
    if answer.shape != (2,):
        return f"one mean per row is wanted, shape (2,), yours has {tuple(answer.shape)}."
    if torch.allclose(answer, torch.tensor([-1.5, -2.0])):
        return None
    if torch.allclose(answer, logps.mean(1)):
        return "padding counts in yours: use the mask."
    if torch.allclose(answer, torch.tensor([-3.0, -6.0])):
        return "that is the sum: divide by the number of tokens that count."
    if torch.allclose(answer, torch.tensor([-1.0, -2.0])):
        return "you divide by the width: divide by the tokens of each row."
    return "the means of the two rows are -1.5 and -2."


@exercise("05.3")
def _simpo(attempt: Callable[..., torch.Tensor]) -> Verdict:
    """`attempt(chosen, rejected, beta, gamma) -> loss`, means a token given."""
    chosen, rejected = torch.tensor([-1.0, -0.5]), torch.tensor([-1.5, -2.0])
    beta, gamma = 2.0, 0.5

    def loss(lead: torch.Tensor) -> torch.Tensor:
        return -torch.nn.functional.logsigmoid(lead).mean()

    answer = torch.as_tensor(attempt(chosen, rejected, beta, gamma)).float()
    if answer.numel() != 1:
        return f"one loss is wanted, yours has shape {tuple(answer.shape)}: take the mean."
    gap = chosen - rejected
    if torch.allclose(answer, loss(beta * gap - gamma), atol=1e-5):
        return None
    if torch.allclose(answer, loss(beta * gap), atol=1e-5):
        return "the margin gamma is missing."
    if torch.allclose(answer, loss(beta * gap + gamma), atol=1e-5):
        return "the margin makes it harder: subtract gamma."
    if torch.allclose(answer, loss(beta * (gap - gamma)), atol=1e-5):
        return "gamma stands outside: beta multiplies the difference only."
    if torch.allclose(answer, -loss(beta * gap - gamma), atol=1e-5):
        return "a loss is minus the log-likelihood: turn the sign."
    return "minus ln sigma of beta times the difference less gamma, averaged over the pairs."

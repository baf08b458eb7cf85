"""Notebook 00: averaged log-probabilities, DPO for noisy labels, leave-one-out, DPO's optimum."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from utils import losses
from utils.exercises.checks import Verdict, exercise


def _close(answer: torch.Tensor, wanted: torch.Tensor) -> bool:
    return answer.shape == wanted.shape and torch.allclose(answer, wanted, atol=1e-4)


@exercise("00.1")
def _average_logps(attempt: Callable[..., torch.Tensor]) -> Verdict:
    """`attempt(logits, tokens, mask) -> (batch,)`, the mean log-probability per response token."""
    numbers = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 4, generator=numbers)
    tokens = torch.randint(4, (2, 6), generator=numbers)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0]]).bool()
    summed = losses.sequence_logps(logits, tokens, mask)
    answer = torch.as_tensor(attempt(logits.clone(), tokens.clone(), mask.clone())).float()
    if _close(answer, summed / mask.sum(1)):
        return None
    if answer.shape != summed.shape:
        return f"give one number per row, shape (2,): yours has shape {tuple(answer.shape)}."
    if _close(answer, summed):
        return "you summed the log-probabilities: divide by the row's number of response tokens."
    if _close(answer, summed / 6) or _close(answer, summed / 5):
        return "you divide by the length of the row: divide by its number of response tokens."
    if _close(answer, summed / mask.sum()):
        return "you divide by the tokens of the whole batch: divide by the tokens of each row."
    picked = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    if _close(answer, (picked * mask).sum(1) / mask.sum(1)):
        return "the logits at position t predict token t + 1, so you must shift by one."
    every = losses.token_logps(logits[:, :-1], tokens[:, 1:])
    if _close(answer, every.mean(1)):
        return "your mean includes the prompt and the padding: use the mask to leave them out."
    first, yours = float(summed[0] / 3), float(answer[0])
    return f"the first of the two rows used here should give {first:.4f}, yours gives {yours:.4f}."


@exercise("00.2")
def _dpo_for_flipped_labels(attempt: Callable[..., torch.Tensor]) -> Verdict:
    """`attempt(chosen, rejected, reference_chosen, reference_rejected, beta, flipped) -> loss`."""
    logps = -10 * torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    beta, flipped = 0.3, 0.2
    answer = torch.as_tensor(attempt(*logps.clone(), beta, flipped)).float()

    def dpo(numbers: torch.Tensor = logps, beta: float = beta, share: float = flipped) -> float:
        return losses.dpo_loss(*numbers, beta=beta, label_smoothing=share)

    if _close(answer, dpo()):
        return None
    margins = beta * (logps[0] - logps[2] - logps[1] + logps[3])
    each = -(1 - flipped) * F.logsigmoid(margins) - flipped * F.logsigmoid(-margins)
    if _close(answer, each):
        return "you return one loss per pair: average them over the batch."
    if answer.shape != ():
        return f"the loss must be one number, and yours has shape {tuple(answer.shape)}."
    if _close(answer, -dpo()):
        return "the sign is wrong: the loss is minus the log-likelihood."
    if _close(answer, dpo(share=0.0)):
        return "that is plain DPO: your loss does not use the share of flipped labels."
    if _close(answer, dpo(share=1 - flipped)):
        return "the two weights are swapped: the label as given has the weight 1 - flipped."
    if _close(answer, dpo(beta=1.0)):
        return "beta is missing: multiply the margin by it, inside the sigmoid."
    if _close(answer, dpo(torch.stack([*logps[:2], *torch.zeros(2, 6)]))):
        return "the reference is missing: subtract its log-probabilities from the policy's."
    robust = losses.dpo_loss(*logps, beta=beta, variant="robust", label_smoothing=flipped)
    if _close(answer, robust):
        return "that is robust DPO, which subtracts the second term: add that term here."
    return (
        f"on the six pairs used here the loss is {float(dpo()):.4f}, and yours is "
        f"{float(answer):.4f}."
    )


@exercise("00.3")
def _leave_one_out(attempt: Callable[[torch.Tensor], torch.Tensor]) -> Verdict:
    """`attempt(rewards) -> advantages`, both (prompts, answers)."""
    rewards = torch.tensor([[1.0, 2.0, 6.0, 3.0], [0.0, 0.0, 4.0, 0.0], [5.0, 5.0, 5.0, 5.0]])
    answer = torch.as_tensor(attempt(rewards.clone())).float()
    centred = rewards - rewards.mean(1, keepdim=True)
    wanted = centred * 4 / 3  # r - (sum - r) / 3, in another form
    if answer.shape != wanted.shape:
        return f"give one advantage per answer, shape (3, 4): yours is {tuple(answer.shape)}."
    if _close(answer, wanted):
        return None
    if _close(answer, centred):
        return "your baseline counts the answer itself: take the mean of the other three rewards."
    if _close(answer, rewards - rewards.sum(1, keepdim=True) + rewards):
        return "you subtract the sum of the other rewards: divide it by how many there are."
    if _close(answer, rewards - (rewards.sum(1, keepdim=True) - rewards) / 4):
        return "the other answers are one fewer: divide their sum by the number of answers - 1."
    scaled = centred / (rewards.std(1, keepdim=True) + 1e-4)
    if torch.allclose(answer, scaled, atol=1e-2):
        return "that is GRPO's advantage: do not divide by the standard deviation here."
    if _close(answer, rewards - (rewards.sum(0) - rewards) / 2) or _close(
        answer, rewards - rewards.mean(0)
    ):
        return "the baseline mixes prompts: average over dimension 1, the answers to one prompt."
    if _close(answer, wanted - rewards) or _close(answer, rewards - wanted):
        return "that is the baseline: subtract it from the rewards."
    if _close(answer, -wanted):
        return "the sign is wrong: the advantage is the reward minus the baseline."
    return "for the rewards 1, 2, 6 and 3 the advantages are -2.667, -1.333, 4 and 0."


@exercise("00.4")
def _optimum_of_dpo(attempt: Callable[..., torch.Tensor]) -> Verdict:
    """`attempt(reference_logps, wins, beta) -> log-probabilities` of the DPO optimum."""
    rewards, beta = torch.tensor([1.0, 0.2, -0.5, 0.4]), 0.5
    reference = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    wins = torch.sigmoid(rewards[:, None] - rewards[None, :])
    answer = torch.as_tensor(attempt(reference.clone(), wins.clone(), beta)).detach().float()
    if answer.shape != rewards.shape:
        return f"give one log-probability per answer: yours has shape {tuple(answer.shape)}."
    found = answer.exp()
    if (answer <= 1e-4).all() and abs(float(found.sum()) - 1) > 1e-3:
        return f"the probabilities sum to {float(found.sum()):.3f}, not 1: return log_softmax."
    if torch.allclose(answer, (reference + rewards / beta).softmax(0), atol=2e-2):
        return "these are probabilities: return their logarithms."

    def near(policy: torch.Tensor, within: float = 1e-2) -> bool:
        return bool((found - policy).abs().max() < within)

    if near((reference + rewards / beta).softmax(0)):
        return None
    if near(reference.exp()):
        return "this is still the reference: check that the optimiser changes the scores."
    if near((rewards / beta).softmax(0)):
        return "the reference is missing: the implicit reward is beta · ln(policy / reference)."
    if near((reference + rewards).softmax(0)):
        return "beta is missing: the implicit reward is beta · ln(policy / reference)."
    if near((reference - rewards / beta).softmax(0)):
        return "your policy prefers the answers that lose: wins[i, j] is how often i beats j."
    if near((reference + rewards * beta).softmax(0)):
        return "you divide by beta where DPO multiplies: the implicit reward is beta · log-ratio."
    if near((reference + 50 * rewards).softmax(0), 0.05):
        return "one answer gets all the probability: count each pair as wins[i, j] and wins[j, i]."
    best, yours = (
        [round(p, 3) for p in policy.tolist()]
        for policy in ((reference + rewards / beta).softmax(0), found)
    )
    return (
        f"the optimum, reference · e^(reward / beta) scaled to sum to 1, is {best} here, and "
        f"yours is {yours}: try more steps."
    )

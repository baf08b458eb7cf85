"""Notebook 00: the losses of the lesson, then the exercises at its end.

The judges of 00.1 to 00.8 compare value and gradient on a small example, the others values. The
solutions of 00.1 to 00.8 are the functions that the notebook shows folded.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import losses
from utils.course.language import tr
from utils.exercises.checks import Verdict, exercise
from utils.exercises.equality import close, loss_verdict

Loss = Callable[..., Tensor]


def _leaves(*rows: object) -> list[Tensor]:
    return [torch.tensor(row, requires_grad=True) for row in rows]


# --- 00.1: the log-probability of an answer ------------------------------------------------------


def sequence_logps(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Summed log-probability of each answer, (batch,)."""
    logps = logits[:, :-1].log_softmax(-1)
    picked = logps.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return (picked * mask[:, 1:]).sum(-1)


@exercise("00.1", solution=sequence_logps)
def _sequence_logps(attempt: Loss) -> Verdict:
    """`attempt(logits, tokens, mask) -> (batch,)`, summed over the answer's tokens."""
    numbers = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 6, 5, generator=numbers).requires_grad_()
    tokens = torch.randint(5, (2, 6), generator=numbers)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0]]).bool()
    after_prompt = mask.long().cummax(1).values.bool()
    before_padding = mask.long().flip(1).cummax(1).values.flip(1).bool()

    def right(z: Tensor, mask: Tensor = mask) -> Tensor:
        return sequence_logps(z, tokens, mask)

    def picked(scores: Tensor, tokens: Tensor = tokens[:, 1:]) -> Tensor:
        return scores.gather(-1, tokens[..., None]).squeeze(-1)

    def each(z: Tensor) -> Tensor:
        return picked(z[:, :-1].log_softmax(-1))

    real = mask[:, 1:]
    mistakes = {
        "the sign is wrong: return the log-likelihood, without a minus.": lambda z: -right(z),
        "you averaged: sum over the answer's tokens.": lambda z: right(z) / mask.sum(1),
        "you averaged over the length of the row: sum over the answer's tokens.": lambda z: (
            each(z) * real
        ).mean(-1),
        "the shift is missing: the logits at position t predict token t + 1.": lambda z: (
            picked(z.log_softmax(-1), tokens) * mask
        ).sum(-1),
        "you shifted in the wrong direction: drop the last logits and the first token.": lambda z: (
            picked(z[:, 1:].log_softmax(-1), tokens[:, :-1]) * real
        ).sum(-1),
        "you shifted the tokens but not the mask: use mask[:, 1:].": lambda z: (
            each(z) * mask[:, :-1]
        ).sum(-1),
        "you counted the prompt and the padding: multiply by the mask.": lambda z: each(z).sum(-1),
        "you counted the prompt: the mask is true on the answer only.": lambda z: right(
            z, before_padding
        ),
        "you counted the padding: the mask is true on the answer only.": lambda z: right(
            z, after_prompt
        ),
        "you summed logits: apply log_softmax over the vocabulary first.": lambda z: (
            picked(z[:, :-1]) * real
        ).sum(-1),
        "you summed probabilities: use log_softmax in place of softmax.": lambda z: (
            picked(z[:, :-1].softmax(-1)) * real
        ).sum(-1),
        "you normalised over positions: log_softmax goes over the last dimension.": lambda z: (
            picked(z[:, :-1].log_softmax(1)) * real
        ).sum(-1),
        "this is one number per token: sum over the last dimension.": lambda z: each(z) * real,
        "this is one number for the batch: sum over the last dimension only.": lambda z: right(
            z
        ).sum(),
    }
    return loss_verdict(lambda z: attempt(z, tokens, mask), right, [logits], mistakes)


# --- 00.2: Bradley-Terry -------------------------------------------------------------------------


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-ln σ(chosen - rejected), averaged."""
    return -F.logsigmoid(chosen - rejected).mean()


@exercise("00.2", solution=bradley_terry_loss)
def _bradley_terry_loss(attempt: Loss) -> Verdict:
    """`attempt(chosen, rejected) -> ()`, both (batch,)."""
    pairs = _leaves([2.0, 0.3, -1.0], [0.0, 0.1, 1.5])
    mistakes = {
        "the sign is wrong: the loss is minus the log-likelihood.": lambda c, r: F.logsigmoid(
            c - r
        ).mean(),
        "chosen and rejected are swapped: d is chosen - rejected.": lambda c, r: bradley_terry_loss(
            r, c
        ),
        "you averaged before the logarithm: average the losses of the pairs.": lambda c, r: (
            -F.logsigmoid((c - r).mean())
        ),
        "you averaged the probabilities before the logarithm: average the losses.": lambda c, r: (
            -(c - r).sigmoid().mean().log()
        ),
        "this is minus the probability: take its logarithm.": lambda c, r: (
            -(c - r).sigmoid().mean()
        ),
        "this is the probability of the wrong order: take -ln σ(d).": lambda c, r: (
            (r - c).sigmoid().mean()
        ),
        "this is one loss per pair: average over the batch.": lambda c, r: -F.logsigmoid(c - r),
        "you summed: average over the batch.": lambda c, r: -F.logsigmoid(c - r).sum(),
        "this is the margin loss: the Bradley-Terry loss is -ln σ(d).": losses.margin_loss,
    }
    verdict = loss_verdict(attempt, bradley_terry_loss, pairs, mistakes)
    far = _leaves([-200.0], [0.0])
    if verdict or abs(attempt(*far).item() - 200) < 0.01:
        return verdict
    return tr(
        "for d = -200 your loss is {found}, and it should be 200: use F.logsigmoid or "
        "torch.logaddexp, which do not overflow.",
        found=attempt(*far).item(),
    )


# --- 00.3: the policy gradient -------------------------------------------------------------------


def policy_gradient_loss(logps: Tensor, advantages: Tensor) -> Tensor:
    """Minus log-probability times advantage, averaged; the advantage is a constant."""
    return -(logps * advantages.detach()).mean()


@exercise("00.3", solution=policy_gradient_loss)
def _policy_gradient_loss(attempt: Loss) -> Verdict:
    """`attempt(logps, advantages) -> ()`, both (samples,)."""
    samples = _leaves([-0.7, -1.6, -1.2, -0.4], [1.5, 2.0, -1.0, 0.25])
    mistakes = {
        "the value is right, but the advantage must be detached: it is a constant here.": (
            lambda p, a: -(p * a).mean()
        ),
        "the sign is wrong: the optimiser minimises, and we want more reward.": lambda p, a: (
            p * a.detach()
        ).mean(),
        "the sign is wrong, and the advantage is not detached.": lambda p, a: (p * a).mean(),
        "you detached the log-probabilities: detach the advantages.": lambda p, a: (
            -(p.detach() * a).mean()
        ),
        "nothing has a gradient: detach the advantages only.": lambda p, a: (
            -(p * a).mean().detach()
        ),
        "you used probabilities: the formula has their logarithms.": lambda p, a: (
            -(p.exp() * a.detach()).mean()
        ),
        "the advantage is missing: every sample is pushed up.": lambda p, a: -p.mean(),
        "you averaged before the product: average the products.": lambda p, a: (
            -p.mean() * a.detach().mean()
        ),
        "you summed: average over the samples.": lambda p, a: -(p * a.detach()).sum(),
        "this is one loss per sample: average over them.": lambda p, a: -(p * a.detach()),
    }
    return loss_verdict(attempt, policy_gradient_loss, samples, mistakes)


# --- 00.4: PPO's clip ----------------------------------------------------------------------------


def clipped_policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, clip_range: float = 0.2
) -> Tensor:
    """max(-A·ratio, -A·clip(ratio)), one number per token."""
    ratio = (logps - old_logps).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped)


@exercise("00.4", solution=clipped_policy_loss)
def _clipped_policy_loss(attempt: Loss) -> Verdict:
    """`attempt(logps, old_logps, advantages, clip_range) -> (texts, tokens)`."""
    moved = torch.tensor([[0.0, 0.5, -0.5, 0.25], [0.5, -0.5, -0.1, 0.25]])  # all sides of the clip
    old = torch.tensor([[-1.0, -1.4, -0.8, -2.0], [-1.2, -0.9, -1.7, -1.1]])
    gains, clip = torch.tensor([[1.5], [-0.7]]), 0.3

    def right(p: Tensor, clip: float = clip, old: Tensor = old) -> Tensor:
        return clipped_policy_loss(p, old, gains, clip)

    def ratio(p: Tensor) -> Tensor:
        return (p - old).exp()

    def bound(p: Tensor) -> Tensor:
        return ratio(p).clamp(1 - clip, 1 + clip)

    mistakes = {
        "the sign is wrong: the loss is minus the gain.": lambda p: -right(p),
        "the ratio is upside down: it is new / old, exp(logps - old_logps).": lambda p: (
            clipped_policy_loss(old, p, gains, clip)
        ),
        "minimum and maximum are confused: of the two losses, take the larger one.": lambda p: (
            torch.minimum(-gains * ratio(p), -gains * bound(p))
        ),
        "you return the clipped term only: take the maximum with the unclipped one.": lambda p: (
            -gains * bound(p)
        ),
        "nothing is clipped: the second term needs the ratio between 1 - ε and 1 + ε.": lambda p: (
            -gains * ratio(p)
        ),
        "exp is missing: logps - old_logps is the logarithm of the ratio.": lambda p: torch.maximum(
            -gains * (p - old), -gains * (p - old).clamp(1 - clip, 1 + clip)
        ),
        "you clip to -ε and ε: clip the ratio to 1 - ε and 1 + ε.": lambda p: torch.maximum(
            -gains * ratio(p), -gains * ratio(p).clamp(-clip, clip)
        ),
        "you clip the logarithm of the ratio: clip the ratio itself.": lambda p: torch.maximum(
            -gains * ratio(p), -gains * (p - old).clamp(-clip, clip).exp()
        ),
        "old_logps is missing: the ratio is exp(logps - old_logps).": lambda p: right(
            p, old=0 * old
        ),
        "you do not use clip_range: it is 0.3 in this example.": lambda p: right(p, clip=0.2),
        "you averaged: return one number per token, without a mean.": lambda p: right(p).mean(),
    }
    logps = (old + moved).requires_grad_()
    return loss_verdict(lambda p: attempt(p, old, gains, clip), right, [logps], mistakes)


# --- 00.5 and 00.6: two estimators of the KL -----------------------------------------------------


def k1(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """The logarithm of policy / reference, one number per token."""
    return logps - reference_logps


def k3(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """q/p - 1 - ln(q/p) with q the reference and p the policy, one number per token."""
    difference = reference_logps - logps
    return difference.exp() - 1 - difference


def _judge_estimator(attempt: Loss, right: Loss, mistakes: Mapping[str, Loss]) -> Verdict:
    """Compare on three tokens; the reference is a constant, so it has no gradient."""
    (logps,) = _leaves([-0.7, -1.2, -1.6])
    reference = torch.tensor([-0.9, -0.3, -1.6])

    def with_reference(estimator: Loss) -> Loss:
        return lambda p: estimator(p, reference)

    known = {message: with_reference(mistake) for message, mistake in mistakes.items()}
    return loss_verdict(with_reference(attempt), with_reference(right), [logps], known)


@exercise("00.5", solution=k1)
def _k1(attempt: Loss) -> Verdict:
    """`attempt(logps, reference_logps)`, elementwise."""
    mistakes = {
        "the ratio is inverted: k1 is logps - reference_logps.": lambda p, q: q - p,
        "this is the ratio: k1 is its logarithm.": lambda p, q: (p - q).exp(),
        "k1 may be negative: do not take the absolute value.": lambda p, q: (p - q).abs(),
        "this is k2, half the square: k1 is the logarithm of the ratio itself.": lambda p, q: (
            (p - q).square() / 2
        ),
        "this is k3: k1 is the logarithm of the ratio alone.": k3,
        "do not weight by the probability: the tokens are samples from the policy.": lambda p, q: (
            p.exp() * (p - q)
        ),
        "you averaged: return one number per token.": lambda p, q: (p - q).mean(),
    }
    return _judge_estimator(attempt, k1, mistakes)


@exercise("00.6", solution=k3)
def _k3(attempt: Loss) -> Verdict:
    """`attempt(logps, reference_logps)`, elementwise."""
    mistakes = {
        "the ratio is inverted: k3 has reference / policy.": lambda p, q: k3(q, p),
        "the sign is wrong: k3 is never negative.": lambda p, q: -k3(p, q),
        "the - 1 is missing: k3 is 0 where both are equal.": lambda p, q: k3(p, q) + 1,
        "the logarithm is missing: subtract it from the ratio - 1.": lambda p, q: (q - p).exp() - 1,
        "you added the logarithm: subtract it.": lambda p, q: (q - p).exp() - 1 + (q - p),
        "the ratio needs exp: the inputs are logarithms.": lambda p, q: (q - p) - 1 - (q - p),
        "this is k1.": k1,
        "this is k1 with the ratio inverted.": lambda p, q: q - p,
        "you averaged: return one number per token.": lambda p, q: k3(p, q).mean(),
    }
    return _judge_estimator(attempt, k3, mistakes)


# --- 00.7: DPO -----------------------------------------------------------------------------------


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """Bradley-Terry on implicit rewards, averaged."""
    chosen_rewards = beta * (chosen_logps - reference_chosen_logps)
    rejected_rewards = beta * (rejected_logps - reference_rejected_logps)
    return bradley_terry_loss(chosen_rewards, rejected_rewards)


@exercise("00.7", solution=dpo_loss)
def _dpo_loss(attempt: Loss) -> Verdict:
    """`attempt(chosen, rejected, reference_chosen, reference_rejected, beta) -> ()`."""
    policy = _leaves([-9.0, -14.0, -6.0], [-11.0, -12.5, -7.0])
    chosen, rejected = torch.tensor([[-10.0, -13.0, -7.5], [-10.5, -13.5, -6.0]])
    beta = 0.3

    def right(c: Tensor, r: Tensor, beta: float = beta, weight: float = 1.0) -> Tensor:
        return dpo_loss(c, r, weight * chosen, weight * rejected, beta)

    def margin(c: Tensor, r: Tensor) -> Tensor:
        return beta * ((c - chosen) - (r - rejected))

    mistakes = {
        "the reference is missing: subtract its log-probabilities.": lambda c, r: right(
            c, r, weight=0
        ),
        "the reference has the wrong sign: subtract it from the answer's log-probability.": (
            lambda c, r: right(c, r, weight=-1)
        ),
        "beta is missing: multiply the log-ratios by it.": lambda c, r: right(c, r, beta=1.0),
        "you do not use beta: it is 0.3 in this example.": lambda c, r: right(c, r, beta=0.1),
        "beta stands outside: multiply by it inside the sigmoid.": lambda c, r: (
            beta * right(c, r, beta=1.0)
        ),
        "you divide by beta: multiply the log-ratios by it.": lambda c, r: right(
            c, r, beta=1 / beta
        ),
        "chosen and rejected are swapped: m is chosen minus rejected.": lambda c, r: right(
            c, r, beta=-beta
        ),
        "the sign is wrong: the loss is minus the log-likelihood.": lambda c, r: F.logsigmoid(
            margin(c, r)
        ).mean(),
        "you averaged before the logarithm: average the losses of the pairs.": lambda c, r: (
            -F.logsigmoid(margin(c, r).mean())
        ),
        "this is minus the probability: take its logarithm.": lambda c, r: (
            -margin(c, r).sigmoid().mean()
        ),
        "this is one loss per pair: average over the batch.": lambda c, r: (
            -F.logsigmoid(margin(c, r))
        ),
        "you summed: average over the batch.": lambda c, r: -F.logsigmoid(margin(c, r)).sum(),
    }
    return loss_verdict(lambda c, r: attempt(c, r, chosen, rejected, beta), right, policy, mistakes)


# --- 00.8: ORPO ----------------------------------------------------------------------------------


def orpo_loss(
    chosen_logps: Tensor, rejected_logps: Tensor, chosen_nll: Tensor, beta: float = 0.1
) -> Tensor:
    """The SFT loss plus beta times -ln σ of the log odds ratio, averaged."""

    def log_odds(logps: Tensor) -> Tensor:
        return logps - torch.log1p(-logps.exp())

    ratio = log_odds(chosen_logps) - log_odds(rejected_logps)
    return chosen_nll - beta * F.logsigmoid(ratio).mean()


@exercise("00.8", solution=orpo_loss)
def _orpo_loss(attempt: Loss) -> Verdict:
    """`attempt(chosen_logps, rejected_logps, chosen_nll, beta) -> ()`."""
    inputs, beta = _leaves([-0.4, -1.2, -2.5], [-0.9, -1.0, -4.0], 1.3), 0.3

    def right(c: Tensor, r: Tensor, nll: Tensor, beta: float = beta) -> Tensor:
        return orpo_loss(c, r, nll, beta)

    def log_odds_ratio(c: Tensor, r: Tensor) -> Tensor:
        return c.exp().logit() - r.exp().logit()

    def from_ratio(ratio: Callable[[Tensor, Tensor], Tensor]) -> Loss:
        return lambda c, r, nll: nll - beta * F.logsigmoid(ratio(c, r)).mean()

    def plus(logps: Tensor) -> Tensor:
        return logps - torch.log1p(logps.exp())

    mistakes = {
        "these are probabilities, not odds: the term log1p(-p) is missing.": (
            from_ratio(lambda c, r: c - r)
        ),
        "the odds are p / (1 - p): your log1p adds p.": from_ratio(lambda c, r: plus(c) - plus(r)),
        "log1p needs the probability, -logps.exp(): you gave it the log-probability.": (
            from_ratio(lambda c, r: (c - torch.log1p(-c)) - (r - torch.log1p(-r)))
        ),
        "you compare odds: compare their logarithms.": from_ratio(
            lambda c, r: c.exp() / (1 - c.exp()) - r.exp() / (1 - r.exp())
        ),
        "chosen and rejected are swapped: chosen is in the numerator.": from_ratio(
            lambda c, r: log_odds_ratio(r, c)
        ),
        "the SFT loss is missing: add chosen_nll.": lambda c, r, nll: right(c, r, 0 * nll),
        "the second term has the wrong sign: it is minus beta times ln σ.": lambda c, r, nll: (
            2 * nll - right(c, r, nll)
        ),
        "beta is missing: multiply the second term by it.": lambda c, r, nll: right(
            c, r, nll, beta=1.0
        ),
        "you do not use beta: it is 0.3 in this example.": lambda c, r, nll: right(
            c, r, nll, beta=0.1
        ),
        "you averaged before the logarithm: average the terms of the pairs.": lambda c, r, nll: (
            nll - beta * F.logsigmoid(log_odds_ratio(c, r).mean())
        ),
        "this is one loss per pair: average over the batch.": lambda c, r, nll: (
            nll - beta * F.logsigmoid(log_odds_ratio(c, r))
        ),
        "you summed: average over the batch.": lambda c, r, nll: (
            nll - beta * F.logsigmoid(log_odds_ratio(c, r)).sum()
        ),
    }
    return loss_verdict(lambda c, r, nll: attempt(c, r, nll, beta), right, inputs, mistakes)


# --- The exercises at the end --------------------------------------------------------------------


@exercise("00.9")
def _average_logps(attempt: Callable[..., Tensor]) -> Verdict:
    """`attempt(logits, tokens, mask) -> (batch,)`, the mean log-probability per response token."""
    numbers = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 4, generator=numbers)
    tokens = torch.randint(4, (2, 6), generator=numbers)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0]]).bool()
    summed = losses.sequence_logps(logits, tokens, mask)
    answer = torch.as_tensor(attempt(logits.clone(), tokens.clone(), mask.clone())).float()
    if close(answer, summed / mask.sum(1)):
        return None
    if answer.shape != summed.shape:
        return tr(
            "give one number per row, shape (2,): yours has shape {shape}.",
            shape=tuple(answer.shape),
        )
    if close(answer, summed):
        return "you summed the log-probabilities: divide by the row's number of response tokens."
    if close(answer, summed / 6) or close(answer, summed / 5):
        return "you divide by the length of the row: divide by its number of response tokens."
    if close(answer, summed / mask.sum()):
        return "you divide by the tokens of the whole batch: divide by the tokens of each row."
    picked = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    if close(answer, (picked * mask).sum(1) / mask.sum(1)):
        return "the logits at position t predict token t + 1, so you must shift by one."
    every = losses.token_logps(logits[:, :-1], tokens[:, 1:])
    if close(answer, every.mean(1)):
        return "your mean includes the prompt and the padding: use the mask to leave them out."
    first, yours = float(summed[0] / 3), float(answer[0])
    return tr(
        "the first of the two rows used here should give {first:.4f}, yours gives {yours:.4f}.",
        first=first,
        yours=yours,
    )


@exercise("00.10")
def _dpo_for_flipped_labels(attempt: Callable[..., Tensor]) -> Verdict:
    """`attempt(chosen, rejected, reference_chosen, reference_rejected, beta, flipped) -> loss`."""
    logps = -10 * torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    beta, flipped = 0.3, 0.2
    answer = torch.as_tensor(attempt(*logps.clone(), beta, flipped)).float()

    def dpo(numbers: Tensor = logps, beta: float = beta, share: float = flipped) -> float:
        return losses.dpo_loss(*numbers, beta=beta, label_smoothing=share)

    if close(answer, dpo()):
        return None
    margins = beta * (logps[0] - logps[2] - logps[1] + logps[3])
    each = -(1 - flipped) * F.logsigmoid(margins) - flipped * F.logsigmoid(-margins)
    if close(answer, each):
        return "you return one loss per pair: average them over the batch."
    if answer.shape != ():
        return tr(
            "the loss must be one number, and yours has shape {shape}.", shape=tuple(answer.shape)
        )
    if close(answer, -dpo()):
        return "the sign is wrong: the loss is minus the log-likelihood."
    if close(answer, dpo(share=0.0)):
        return "that is plain DPO: your loss does not use the share of flipped labels."
    if close(answer, dpo(share=1 - flipped)):
        return "the two weights are swapped: the label as given has the weight 1 - flipped."
    if close(answer, dpo(beta=1.0)):
        return "beta is missing: multiply the margin by it, inside the sigmoid."
    if close(answer, dpo(torch.stack([*logps[:2], *torch.zeros(2, 6)]))):
        return "the reference is missing: subtract its log-probabilities from the policy's."
    robust = losses.dpo_loss(*logps, beta=beta, variant="robust", label_smoothing=flipped)
    if close(answer, robust):
        return "that is robust DPO, which subtracts the second term: add that term here."
    return tr(
        "on the six pairs used here the loss is {wanted:.4f}, and yours is {found:.4f}.",
        wanted=float(dpo()),
        found=float(answer),
    )


@exercise("00.11")
def _leave_one_out(attempt: Callable[[Tensor], Tensor]) -> Verdict:
    """`attempt(rewards) -> advantages`, both (prompts, answers)."""
    rewards = torch.tensor([[1.0, 2.0, 6.0, 3.0], [0.0, 0.0, 4.0, 0.0], [5.0, 5.0, 5.0, 5.0]])
    answer = torch.as_tensor(attempt(rewards.clone())).float()
    centred = rewards - rewards.mean(1, keepdim=True)
    wanted = centred * 4 / 3  # r - (sum - r) / 3, in another form
    if answer.shape != wanted.shape:
        return tr(
            "give one advantage per answer, shape (3, 4): yours is {shape}.",
            shape=tuple(answer.shape),
        )
    if close(answer, wanted):
        return None
    if close(answer, centred):
        return "your baseline counts the answer itself: take the mean of the other three rewards."
    if close(answer, rewards - rewards.sum(1, keepdim=True) + rewards):
        return "you subtract the sum of the other rewards: divide it by how many there are."
    if close(answer, rewards - (rewards.sum(1, keepdim=True) - rewards) / 4):
        return "the other answers are one fewer: divide their sum by the number of answers - 1."
    scaled = centred / (rewards.std(1, keepdim=True) + 1e-4)
    if torch.allclose(answer, scaled, atol=1e-2):
        return "that is GRPO's advantage: do not divide by the standard deviation here."
    if close(answer, rewards - (rewards.sum(0) - rewards) / 2) or close(
        answer, rewards - rewards.mean(0)
    ):
        return "the baseline mixes prompts: average over dimension 1, the answers to one prompt."
    if close(answer, wanted - rewards) or close(answer, rewards - wanted):
        return "that is the baseline: subtract it from the rewards."
    if close(answer, -wanted):
        return "the sign is wrong: the advantage is the reward minus the baseline."
    return "for the rewards 1, 2, 6 and 3 the advantages are -2.667, -1.333, 4 and 0."


@exercise("00.12")
def _optimum_of_dpo(attempt: Callable[..., Tensor]) -> Verdict:
    """`attempt(reference_logps, wins, beta) -> log-probabilities` of the DPO optimum."""
    rewards, beta = torch.tensor([1.0, 0.2, -0.5, 0.4]), 0.5
    reference = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    wins = torch.sigmoid(rewards[:, None] - rewards[None, :])
    answer = torch.as_tensor(attempt(reference.clone(), wins.clone(), beta)).detach().float()
    if answer.shape != rewards.shape:
        return tr(
            "give one log-probability per answer: yours has shape {shape}.",
            shape=tuple(answer.shape),
        )
    found = answer.exp()
    if (answer <= 1e-4).all() and abs(float(found.sum()) - 1) > 1e-3:
        return tr(
            "the probabilities sum to {total:.3f}, not 1: return log_softmax.",
            total=float(found.sum()),
        )
    if torch.allclose(answer, (reference + rewards / beta).softmax(0), atol=2e-2):
        return "these are probabilities: return their logarithms."

    def near(policy: Tensor, within: float = 1e-2) -> bool:
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
    return tr(
        "the optimum, reference · e^(reward / beta) scaled to sum to 1, is {best} "
        "here, and yours is {yours}: try more steps.",
        best=best,
        yours=yours,
    )

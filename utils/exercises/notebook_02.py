"""Notebook 02: the parts of PPO, then the exercises at its end.

The solutions of 02.1 to 02.8 are the functions that the notebook shows folded. Each judge compares
with the solution on a small example, in value, and in gradient where a loss is asked for.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from utils.course.language import tr
from utils.exercises.checks import Verdict, exercise
from utils.exercises.equality import close, loss_verdict, no_tensor, other_shape

Function = Callable[..., Tensor]
_MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()


def _drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _verdict(
    attempt: Function,
    right: Function,
    mistakes: Mapping[str, Function],
    otherwise: Verdict = None,  # for wrong numbers that are no known mistake's; default: show a row
) -> Verdict:
    """None if the attempt gives the right tensor, else the mistake that gives the same one."""
    answer, wanted = attempt(), right()
    if not isinstance(answer, Tensor):
        return no_tensor(answer)
    answer = answer.to(wanted.dtype)
    if close(answer, wanted):
        return None
    for message, mistake in mistakes.items():
        if close(answer, mistake().to(wanted.dtype)):
            return message
    if answer.shape != wanted.shape:
        return other_shape(wanted, answer)
    if otherwise:
        return otherwise
    row = int((answer - wanted).abs().flatten(1).amax(1).argmax()) if wanted.dim() > 1 else 0
    shown = [
        ", ".join(f"{number:.3f}" for number in part.reshape(len(_MASK), -1)[row].tolist())
        if part.dim() > 1
        else f"{part.mean().item():.4f}"
        for part in (wanted, answer)
    ]
    return tr(
        "a row of the example should be {wanted}: yours is {found}.",
        wanted=shown[0],
        found=shown[1],
    )


def _loss_verdict(attempt: Function, right: Function, mistakes: Mapping[str, Function]) -> Verdict:
    """The verdict on a loss of (logps or values)."""
    return loss_verdict(attempt, right, [_drawn(3, 4, seed=11).mul(0.4).requires_grad_()], mistakes)


# --- 02.1: the mask ------------------------------------------------------------------------------


def up_to_end(responses: Tensor, end: int) -> Tensor:
    """True up to and including the first end token, (batch, response)."""
    ends = (responses == end).long()
    return ends.cumsum(1) - ends == 0


@exercise("02.1", solution=up_to_end)
def _up_to_end(attempt: Function) -> Verdict:
    """`attempt(responses, end) -> mask`."""
    rows = torch.tensor([[5, 2, 6, 2], [5, 6, 7, 8], [2, 2, 5, 5]])
    ends = (rows == 2).long()
    mistakes = {
        "the end token itself counts, because the policy must learn to write it.": lambda: (
            ends.cumsum(1) == 0
        ),
        "you mask only the end tokens: everything after the first one must be False too.": lambda: (
            rows != 2
        ),
        "your mask goes up to the last end token: the text ends at the first one.": lambda: (
            (ends.flip(1).cumsum(1).flip(1) > 0) | (ends.sum(1, keepdim=True) == 0)
        ),
        "your mask is True where it should be False: True means that a token counts.": lambda: (
            ~up_to_end(rows, 2)
        ),
        "a text without an end token counts as a whole.": lambda: (
            up_to_end(rows, 2) & ends.any(1, keepdim=True)
        ),
    }
    given = attempt(rows.clone(), 2)
    if isinstance(given, Tensor) and given.shape == rows.shape and given.dtype != torch.bool:
        return "return True and False (a bool tensor): the code below indexes with the mask."
    return _verdict(
        lambda: given,
        lambda: up_to_end(rows, 2),
        mistakes,
        tr("for the tokens 5 2 6 2 with end token 2 the mask is True, True, False, False."),
    )


# --- 02.2: the KL per token ----------------------------------------------------------------------


def token_kl(logits: Tensor, reference_logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """ln p - ln q of each sampled token, 0 where the mask is False: (batch, response)."""
    chosen = [
        part.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
        for part in (logits, reference_logits)
    ]
    return (chosen[0] - chosen[1]) * mask


@exercise("02.2", solution=token_kl)
def _token_kl(attempt: Function) -> Verdict:
    """`attempt(logits, reference_logits, tokens, mask) -> (batch, response)`."""
    logits, reference = _drawn(3, 4, 5, seed=1), _drawn(3, 4, 5, seed=2)
    tokens = torch.tensor([[0, 3, 1, 4], [2, 2, 0, 1], [4, 0, 3, 3]])

    def picked(scores: Tensor) -> Tensor:
        return scores.gather(-1, tokens[..., None]).squeeze(-1)

    p, q = logits.log_softmax(-1), reference.log_softmax(-1)

    def right(mask: Tensor = _MASK) -> Tensor:
        return token_kl(logits, reference, tokens, mask)

    mistakes = {
        "the sign is wrong: it is ln p - ln q, with p the policy.": lambda: -right(),
        "tokens after the end must be 0: multiply by the mask.": lambda: right(
            torch.ones_like(_MASK)
        ),
        "you used logits: apply log_softmax over the vocabulary first.": lambda: (
            picked(logits - reference) * _MASK
        ),
        "you used probabilities: subtract their logarithms.": lambda: (
            picked(p.exp() - q.exp()) * _MASK
        ),
        "you divided the logarithms: ln(p / q) is their difference.": lambda: picked(p / q) * _MASK,
        "this is the exact KL over the vocabulary: here take only the sampled token.": lambda: (
            (p.exp() * (p - q)).sum(-1) * _MASK
        ),
        "this is one number per text: the KL is needed at each token.": lambda: right().sum(1),
        "this is k3: take ln p - ln q, which is k1.": lambda: (
            (picked(q - p).exp() - 1 - picked(q - p)) * _MASK
        ),
    }
    given = (logits, reference, tokens, _MASK)
    return _verdict(lambda: attempt(*(x.clone() for x in given)), right, mistakes)


# --- 02.3: rewards per token ---------------------------------------------------------------------


def per_token_rewards(kl: Tensor, scores: Tensor, mask: Tensor, beta: float) -> Tensor:
    """-β KL at every token that counts, plus the score at the last one: (batch, response)."""
    rewards = -beta * kl * mask
    last = mask.sum(1) - 1
    rewards[torch.arange(len(scores)), last] += scores
    return rewards


@exercise("02.3", solution=per_token_rewards)
def _per_token_rewards(attempt: Function) -> Verdict:
    """`attempt(kl, scores, mask, beta) -> rewards` (batch, response)."""
    kl = torch.tensor([[0.5, 0.25, 0.1, 9.0], [0.1, -0.2, 0.4, 0.3], [0.7, 0.6, 8.0, 7.0]])
    scores, beta = torch.tensor([2.0, 1.0, 0.5]), 0.2

    def right(kl: Tensor = kl, beta: float = beta) -> Tensor:
        return per_token_rewards(kl, scores, _MASK, beta)

    def at(column: Tensor) -> Tensor:
        rewards = -beta * kl * _MASK
        rewards[torch.arange(3), column] += scores
        return rewards

    mistakes = {
        "you add the score in the last column: add it at each row's last unmasked token.": lambda: (
            at(torch.full((3,), 3))
        ),
        "you did not multiply the KL by beta.": lambda: right(beta=1.0),
        "you add the KL: it is a penalty, so it is subtracted.": lambda: right(-kl),
        "tokens after the end must get 0: use the mask.": lambda: right() - beta * kl * ~_MASK,
        "you give the whole score to every token: only the last one may have it.": lambda: (
            torch.where(_MASK, scores[:, None] - beta * kl, 0.0)
        ),
        "you add the score one token too late: the last token is at mask.sum(1) - 1.": lambda: at(
            _MASK.sum(1).clamp(max=3)
        ),
        "the score is missing: the last token receives it.": lambda: -beta * kl * _MASK,
        "the KL is missing: every token pays beta times its own.": lambda: right(0 * kl),
        "you subtract the whole KL at the last token: each token pays for its own.": lambda: (
            per_token_rewards(0 * kl, scores - beta * (kl * _MASK).sum(1), _MASK, beta)
        ),
    }
    return _verdict(
        lambda: attempt(kl.clone(), scores.clone(), _MASK.clone(), beta), right, mistakes
    )


# --- 02.4: generalised advantage estimation ------------------------------------------------------


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Advantages (batch, response): A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V_{t+1} - V_t."""
    advantages, running = torch.zeros_like(rewards), 0.0
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = delta + gamma * lam * running
        advantages[:, t] = running
    return advantages


@exercise("02.4", solution=gae)
def _gae(attempt: Function) -> Verdict:
    """`attempt(rewards, values, gamma, lam) -> advantages` (batch, response)."""
    rewards, values = _drawn(3, 4, seed=3) * _MASK, _drawn(3, 4, seed=4) * _MASK
    gamma, lam = 0.9, 0.8

    def right(gamma: float = gamma, lam: float = lam) -> Tensor:
        return gae(rewards, values, gamma, lam)

    def with_last_value() -> Tensor:
        longer = torch.cat([values, values[:, -1:]], 1)
        return gae(torch.cat([rewards, longer[:, -1:] * 0], 1), longer, gamma, lam)[:, :-1]

    def forwards() -> Tensor:
        following = torch.cat([values[:, 1:], torch.zeros(3, 1)], 1)
        deltas, running, found = rewards + gamma * following - values, 0.0, []
        for t in range(4):
            running = deltas[:, t] + gamma * lam * running
            found.append(running)
        return torch.stack(found, 1)

    following = torch.cat([values[:, 1:], torch.zeros(3, 1)], 1)
    mistakes = {
        "λ is missing: A_t = δ_t + γλ A_{t+1}.": lambda: right(lam=1.0),
        "γ is missing, in δ and in front of λ.": lambda: right(gamma=1.0),
        "γ is missing in front of λ: A_t = δ_t + γλ A_{t+1}.": lambda: right(lam=lam / gamma),
        "the values are missing: δ_t = r_t + γ V_{t+1} - V_t.": lambda: gae(
            rewards, 0 * values, gamma, lam
        ),
        "the value of the next token is missing: δ_t = r_t + γ V_{t+1} - V_t.": lambda: gae(
            rewards - values, 0 * values, gamma, lam
        ),
        "the sign of the values is wrong: δ_t = r_t + γ V_{t+1} - V_t.": lambda: gae(
            rewards, -values, gamma, lam
        ),
        "these are the temporal differences δ: add up the later ones, with weights γλ.": lambda: (
            rewards + gamma * following - values
        ),
        "you go forwards: an advantage adds up what comes later, so start at the end.": forwards,
        "after the last token there is no value: V_{t+1} is 0 there.": with_last_value,
        "these are the returns: the advantage is without the value.": lambda: right() + values,
    }
    return _verdict(lambda: attempt(rewards.clone(), values.clone(), gamma, lam), right, mistakes)


# --- 02.5: whitening -----------------------------------------------------------------------------


def whiten(advantages: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the tokens that count, 0 elsewhere: (batch, response)."""
    counted = advantages[mask]
    return (advantages - counted.mean()) / (counted.var() + 1e-8).sqrt() * mask


@exercise("02.5", solution=whiten)
def _whiten(attempt: Function) -> Verdict:
    """`attempt(advantages, mask) -> (batch, response)`."""
    advantages = _drawn(3, 4, seed=5) * 2 + 1  # not 0 outside the mask, to show a missing mask
    counted = advantages[_MASK]

    def right() -> Tensor:
        return whiten(advantages, _MASK)

    def per_row() -> Tensor:
        rows = [whiten(advantages[[i]], _MASK[[i]]) for i in range(3)]
        return torch.cat(rows)

    everywhere = (advantages - counted.mean()) / counted.std()
    mistakes = {
        "mean and variance must come from the tokens that count: use the mask.": lambda: (
            (advantages - advantages.mean()) / advantages.std() * _MASK
        ),
        "mean and variance must come from the tokens that count, and the rest is 0.": lambda: (
            (advantages - advantages.mean()) / advantages.std()
        ),
        "tokens that do not count must be 0 afterwards.": lambda: everywhere,
        "you divide by the variance: divide by its root, the standard deviation.": lambda: (
            (advantages - counted.mean()) / counted.var() * _MASK
        ),
        "the mean is still there: subtract it first.": lambda: advantages / counted.std() * _MASK,
        "you subtract the mean, but you do not divide by the standard deviation.": lambda: (
            (advantages - counted.mean()) * _MASK
        ),
        "you whiten each row alone: use one mean and one variance for the batch.": per_row,
        "the masked tokens count as zeros in your mean: divide by mask.sum().": lambda: (
            (advantages - (advantages * _MASK).mean()) / (advantages * _MASK).std() * _MASK
        ),
    }
    verdict = _verdict(lambda: attempt(advantages.clone(), _MASK.clone()), right, mistakes)
    biased = (advantages - counted.mean()) / counted.std(correction=0) * _MASK
    if verdict and close(torch.as_tensor(attempt(advantages.clone(), _MASK.clone())), biased):
        return "you divide by the number of tokens: the variance of a sample divides by it minus 1."
    return verdict


# --- 02.6: the clipped policy loss ---------------------------------------------------------------


def policy_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """-min(ratio A, clip(ratio) A), one number per token."""
    ratio = (logps - old_logps).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


@exercise("02.6", solution=policy_loss)
def _policy_loss(attempt: Function) -> Verdict:
    """`attempt(logps, old_logps, advantages, clip) -> (batch, response)`."""
    old, gains, clip = _drawn(3, 4, seed=6).mul(0.4), _drawn(3, 4, seed=7), 0.3

    def right(p: Tensor, old: Tensor = old, gains: Tensor = gains, clip: float = clip) -> Tensor:
        return policy_loss(p, old, gains, clip)

    def ratio(p: Tensor) -> Tensor:
        return (p - old).exp()

    mistakes = {
        "the sign is wrong: the loss is minus the gain.": lambda p: -right(p),
        "the ratio is upside down: it is new / old, exp(logps - old_logps).": lambda p: policy_loss(
            old, p, gains, clip
        ),
        "minimum and maximum are confused: take the smaller of the two gains.": lambda p: (
            -torch.maximum(ratio(p) * gains, ratio(p).clamp(1 - clip, 1 + clip) * gains)
        ),
        "you return the clipped term only: take the minimum with the unclipped one.": lambda p: (
            -ratio(p).clamp(1 - clip, 1 + clip) * gains
        ),
        "nothing is clipped: the second term needs the ratio between 1 - ε and 1 + ε.": lambda p: (
            -ratio(p) * gains
        ),
        "exp is missing: logps - old_logps is the logarithm of the ratio.": lambda p: (
            -torch.minimum((p - old) * gains, (p - old).clamp(1 - clip, 1 + clip) * gains)
        ),
        "you clip to -ε and ε: clip the ratio to 1 - ε and 1 + ε.": lambda p: (
            -torch.minimum(ratio(p) * gains, ratio(p).clamp(-clip, clip) * gains)
        ),
        "you do not use clip: it is 0.3 in this example.": lambda p: right(p, clip=0.2),
        "you averaged: return one number per token, without a mean.": lambda p: right(p).mean(),
    }
    return _loss_verdict(lambda p: attempt(p, old, gains, clip), right, mistakes)


# --- 02.7: the clipped value loss ----------------------------------------------------------------


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """½ max((V - R)², (clip(V) - R)²), one number per token."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


@exercise("02.7", solution=value_loss)
def _value_loss(attempt: Function) -> Verdict:
    """`attempt(values, old_values, returns, clip) -> (batch, response)`."""
    old, returns, clip = _drawn(3, 4, seed=8).mul(0.4), _drawn(3, 4, seed=9), 0.3

    def right(v: Tensor, clip: float = clip) -> Tensor:
        return value_loss(v, old, returns, clip)

    def near(v: Tensor) -> Tensor:
        return old + (v - old).clamp(-clip, clip)

    def error(v: Tensor) -> Tensor:
        return (v - returns) ** 2

    mistakes = {
        "the factor ½ is missing.": lambda v: 2 * right(v),
        "minimum and maximum are confused: take the larger of the two errors.": lambda v: (
            0.5 * torch.minimum(error(v), error(near(v)))
        ),
        "nothing is clipped: the second error uses a value near the old one.": lambda v: (
            0.5 * error(v)
        ),
        "you return the clipped term only: take the maximum with the unclipped one.": lambda v: (
            0.5 * error(near(v))
        ),
        "you clip the value itself: clip its distance from the old value.": lambda v: (
            0.5 * torch.maximum(error(v), error(v.clamp(-clip, clip)))
        ),
        "you clip around 1, as for a ratio: clip the distance to ± clip.": lambda v: (
            0.5 * torch.maximum(error(v), error(v.clamp(1 - clip, 1 + clip)))
        ),
        "you compare with the old values: the target is the return.": lambda v: (
            0.5 * torch.maximum((v - old) ** 2, (near(v) - old) ** 2)
        ),
        "the square is missing.": lambda v: (
            0.5 * torch.maximum((v - returns).abs(), (near(v) - returns).abs())
        ),
        "you averaged: return one number per token, without a mean.": lambda v: right(v).mean(),
    }
    return _loss_verdict(lambda v: attempt(v, old, returns, clip), right, mistakes)


# --- 02.8: the loss of a minibatch ---------------------------------------------------------------


def minibatch_loss(
    policy_losses: Tensor, value_losses: Tensor, mask: Tensor, value_coef: float
) -> Tensor:
    """The mean policy loss plus value_coef times the mean value loss, over tokens that count."""
    return policy_losses[mask].mean() + value_coef * value_losses[mask].mean()


@exercise("02.8", solution=minibatch_loss)
def _minibatch_loss(attempt: Function) -> Verdict:
    """`attempt(policy_losses, value_losses, mask, value_coef) -> ()`."""
    of_values, weight = _drawn(3, 4, seed=10) ** 2, 0.1

    def right(p: Tensor, v: Tensor = of_values, weight: float = weight) -> Tensor:
        return minibatch_loss(p, v, _MASK, weight)

    def rows(x: Tensor) -> Tensor:
        return ((x * _MASK).sum(1) / _MASK.sum(1)).mean()

    mistakes = {
        "the value loss needs its weight value_coef.": lambda p: right(p, weight=1.0),
        "the value loss is missing: add value_coef times its mean.": lambda p: right(p, weight=0.0),
        "the value loss is subtracted: both losses are to become smaller.": lambda p: right(
            p, weight=-weight
        ),
        "the sign of the policy loss is wrong: it is a loss already.": lambda p: right(-p),
        "tokens that do not count are in your mean: use the mask.": lambda p: (
            p.mean() + weight * of_values.mean()
        ),
        "you divide by all positions: divide by the number of tokens that count.": lambda p: (
            (p * _MASK).mean() + weight * (of_values * _MASK).mean()
        ),
        "you average each row first: every token has the same weight here.": lambda p: (
            rows(p) + weight * rows(of_values)
        ),
        "you summed: average over the tokens that count.": lambda p: (
            p[_MASK].sum() + weight * of_values[_MASK].sum()
        ),
    }
    return _loss_verdict(lambda p: attempt(p, of_values, _MASK, weight), right, mistakes)


# --- At the end of the notebook ------------------------------------------------------------------


@exercise("02.9")
def _best_objective(attempt: Callable[[np.ndarray, float], float]) -> Verdict:
    """`attempt(rewards, beta) -> J`, rewards of one prompt's base samples."""
    rewards, beta = [0.0, 0.0, 1.0, 0.5], 0.25

    def right(beta: float = beta) -> float:
        return beta * math.log(sum(math.exp(r / beta) for r in rewards) / len(rewards))

    answer = float(attempt(np.array(rewards), beta))
    if not abs(answer - right()) < 1e-3:
        mistakes = {
            "the factor beta in front of the logarithm is missing.": right() / beta,
            "you did not divide the rewards by beta.": beta
            * math.log(sum(math.exp(r) for r in rewards) / 4),
            "you multiplied the rewards by beta: divide them by it.": beta
            * math.log(sum(math.exp(r * beta) for r in rewards) / 4),
            "you summed the exponentials: take their mean.": right() + beta * math.log(4),
            "this is the mean reward, which the base policy has: an optimum is higher.": sum(
                rewards
            )
            / 4,
            "this is the largest reward: to write only that text costs KL.": max(rewards),
        }
        for message, value in mistakes.items():
            if abs(answer - value) < 1e-3:
                return message
        return tr(
            "for rewards 0, 0, 1, ½ and β = ¼ it is {wanted:.3f}: yours is {found:.3f}.",
            wanted=right(),
            found=answer,
        )
    far = float(attempt(np.array([0.0, 4.0]), 0.001))
    if abs(far - (4.0 + 0.001 * math.log(0.5))) < 1e-3:
        return None
    return tr(
        "for rewards 0 and 4 and β = 0.001 your result is {found}, and it should be 3.999: "
        "subtract the largest reward before the exponential, and add it again after the logarithm.",
        found=far,
    )


@exercise("02.10")
def _least_kl(attempt: Callable[[np.ndarray, float], float]) -> Verdict:
    """`attempt(rates, share) -> nats`."""
    rates, share, wanted = [0.2, 0.5, 0.8], 0.9, 0.4654
    answer = float(attempt(np.array(rates), share))
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
    return tr(
        "for the rates 0.2, 0.5 and 0.8 and the share 0.9 the smallest KL is near 0.47, and "
        "yours is {found:.3f}.",
        found=answer,
    )

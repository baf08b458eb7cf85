"""Right answers to the exercises of notebook 00, and wrong ones with the message that each gets.

The right answers are written in another way than the course's solutions.
"""

import torch
import torch.nn.functional as F

from utils import losses


def _average(logits, tokens, mask):
    return losses.sequence_logps(logits, tokens, mask) / mask[:, 1:].sum(-1)


def _unshifted(logits, tokens, mask):
    picked = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    return (picked * mask).sum(-1) / mask.sum(-1)


def _smoothed(chosen, rejected, reference_chosen, reference_rejected, beta, flipped):
    m = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return -((1 - flipped) * F.logsigmoid(m) + flipped * F.logsigmoid(-m)).mean()


def _subtracted(c, r, rc, rr, beta, flipped):
    m = beta * ((c - rc) - (r - rr))
    kept, turned = (1 - flipped) * F.logsigmoid(m), flipped * F.logsigmoid(-m)
    return -((kept - turned) / (1 - 2 * flipped)).mean()


def _leave_one_out(rewards):
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def _fit(reference, wins, beta, start=None, steps=100):
    scores = (reference if start is None else start).clone().requires_grad_()
    optimizer = torch.optim.LBFGS([scores], max_iter=steps, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        implicit = beta * (scores.log_softmax(0) - reference)
        loss = -(wins * F.logsigmoid(implicit[:, None] - implicit[None, :])).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return scores.detach().log_softmax(0)


# --- the losses of the lesson: the right ones in another way, and what goes wrong ---


def _logps(logits, tokens, mask):
    labels = tokens.masked_fill(~mask, -100)[:, 1:]
    return -F.cross_entropy(logits[:, :-1].mT, labels, reduction="none").sum(-1)


def _every(z, t):
    return losses.token_logps(z[:, :-1], t[:, 1:])


def _scores(z, t, subtract=0.0):
    return (z[:, :-1] - subtract).gather(-1, t[:, 1:, None]).squeeze(-1)


def _bradley_terry(chosen, rejected):
    return torch.logaddexp(torch.zeros(()), rejected - chosen).mean()


def _reinforce(logps, advantages):
    return (-logps * advantages.detach()).sum() / len(logps)


def _clip(logps, old, gains, clip_range=0.2):
    ratio = torch.exp(logps - old)
    return -torch.minimum(gains * ratio, gains * ratio.clamp(1 - clip_range, 1 + clip_range))


def _bound(logps, old, gains, clip_range=0.2):
    return -gains * torch.exp(logps - old).clamp(1 - clip_range, 1 + clip_range)


def _k3(logps, reference):
    return torch.expm1(reference - logps) + logps - reference


def _dpo(chosen, rejected, reference_chosen, reference_rejected, beta=0.1):
    margin = chosen - rejected - reference_chosen + reference_rejected
    return F.softplus(-beta * margin).mean()


def _margins(c, r, rc, rr, b):
    return b * ((c - rc) - (r - rr))


def _orpo(chosen, rejected, nll, beta=0.1):
    return nll + beta * F.softplus(rejected.exp().logit() - chosen.exp().logit()).mean()


def _odds(logps):
    return logps.exp() / (1 - logps.exp())


def _ratio(c, r):
    return _odds(c).log() - _odds(r).log()


RIGHT = {
    "00.1": _logps,
    "00.2": _bradley_terry,
    "00.3": _reinforce,
    "00.4": _clip,
    "00.5": lambda p, q: -(q - p),
    "00.6": _k3,
    "00.7": _dpo,
    "00.8": _orpo,
    "00.9": _average,
    "00.10": _smoothed,
    "00.11": _leave_one_out,
    "00.12": _fit,
}
WRONG = [
    ("00.1", lambda z, t, m: {}.get(m), "your function returns nothing"),
    ("00.1", lambda z, t, m: 1.5, "your function returns float"),
    ("00.1", lambda z, t, m: -_logps(z, t, m), "the sign is wrong"),
    ("00.1", lambda z, t, m: _logps(z, t, m) / m.sum(1), "you averaged: sum"),
    ("00.1", lambda z, t, m: (_every(z, t) * m[:, 1:]).mean(1), "the length of the row"),
    ("00.1", lambda z, t, m: (losses.token_logps(z, t) * m).sum(1), "the shift is missing"),
    ("00.1", lambda z, t, m: (losses.token_logps(z[:, 1:], t[:, :-1]) * m[:, 1:]).sum(1), "direct"),
    ("00.1", lambda z, t, m: (_every(z, t) * m[:, :-1]).sum(1), "but not the mask"),
    ("00.1", lambda z, t, m: _every(z, t).sum(1), "the prompt and the padding"),
    ("00.1", lambda z, t, m: _logps(z, t, m.flip(1).cummax(1).values.flip(1)), "the prompt: "),
    ("00.1", lambda z, t, m: _logps(z, t, m.cummax(1).values), "you counted the padding"),
    ("00.1", lambda z, t, m: (_scores(z, t) * m[:, 1:]).sum(1), "you summed logits"),
    ("00.1", lambda z, t, m: (_every(z, t).exp() * m[:, 1:]).sum(1), "you summed probabilities"),
    (
        "00.1",
        lambda z, t, m: (_scores(z, t, z[:, :-1].logsumexp(1, True)) * m[:, 1:]).sum(1),
        "you normalised over positions",
    ),
    ("00.1", lambda z, t, m: _every(z, t) * m[:, 1:], "one number per token"),
    ("00.1", lambda z, t, m: _logps(z, t, m).sum(), "one number for the batch"),
    (
        "00.1",
        lambda z, t, m: _logps(z.detach(), t, m),
        "the value is right, but it has no gradient",
    ),
    ("00.1", lambda z, t, m: _logps(z, t, m)[None], "must have shape (2,): yours is (1, 2)"),
    ("00.2", lambda c, r: -_bradley_terry(c, r), "the sign is wrong"),
    ("00.2", lambda c, r: _bradley_terry(r, c), "chosen and rejected are swapped"),
    ("00.2", lambda c, r: -F.logsigmoid((c - r).mean()), "averaged before the logarithm"),
    ("00.2", lambda c, r: -torch.sigmoid(c - r).mean().log(), "averaged the probabilities"),
    ("00.2", lambda c, r: -torch.sigmoid(c - r).mean(), "minus the probability"),
    ("00.2", lambda c, r: (1 - torch.sigmoid(c - r)).mean(), "probability of the wrong order"),
    ("00.2", lambda c, r: F.softplus(r - c), "one loss per pair"),
    ("00.2", lambda c, r: F.softplus(r - c).sum(), "you summed"),
    ("00.2", lambda c, r: (1 - c + r).relu().mean(), "the margin loss"),
    ("00.2", lambda c, r: torch.log(1 + torch.exp(r - c)).mean(), "for d = -200 your loss is inf"),
    ("00.2", lambda c, r: -torch.log(torch.sigmoid(c - r) + 1e-8).mean(), "it should be 200"),
    ("00.2", lambda c, r: F.softplus((r - c).clamp(-20, 20)).mean(), "it should be 200"),
    ("00.2", lambda c, r: _bradley_terry(c, r.detach()), "but the gradient is not"),
    ("00.3", lambda p, a: -(p * a).mean(), "the advantage must be detached"),
    ("00.3", lambda p, a: (p * a.detach()).mean(), "the sign is wrong: the optimiser"),
    ("00.3", lambda p, a: (p * a).mean(), "and the advantage is not detached"),
    ("00.3", lambda p, a: -(p.detach() * a).mean(), "you detached the log-probabilities"),
    ("00.3", lambda p, a: -(p * a).detach().mean(), "nothing has a gradient"),
    ("00.3", lambda p, a: -(p.exp() * a.detach()).mean(), "you used probabilities"),
    ("00.3", lambda p, a: -p.mean(), "the advantage is missing"),
    ("00.3", lambda p, a: -(p.mean() * a.detach().mean()), "averaged before the product"),
    ("00.3", lambda p, a: -(p * a.detach()).sum(), "you summed"),
    ("00.3", lambda p, a: -p * a.detach(), "one loss per sample"),
    ("00.4", lambda p, o, a, e: -_clip(p, o, a, e), "the sign is wrong"),
    ("00.4", lambda p, o, a, e: _clip(o, p, a, e), "the ratio is upside down"),
    ("00.4", lambda p, o, a, e: -_clip(p, o, -a, e), "minimum and maximum are confused"),
    ("00.4", _bound, "you return the clipped term only"),
    ("00.4", lambda p, o, a, e: -a * (p - o).exp(), "nothing is clipped"),
    ("00.4", lambda p, o, a, e: torch.max(_bound(p, o, a, e), -a * (p - o)), "in this example"),
    (
        "00.4",
        lambda p, o, a, e: -torch.min(a * (p - o), a * (p - o).clamp(1 - e, 1 + e)),
        "exp is missing",
    ),
    (
        "00.4",
        lambda p, o, a, e: -torch.min(a * (p - o).exp(), a * (p - o).exp().clamp(-e, e)),
        "you clip to -ε and ε",
    ),
    (
        "00.4",
        lambda p, o, a, e: -torch.min(a * (p - o).exp(), a * (p - o).clamp(-e, e).exp()),
        "you clip the logarithm of the ratio",
    ),
    ("00.4", lambda p, o, a, e: _clip(p, 0, a, e), "old_logps is missing"),
    ("00.4", lambda p, o, a, e: _clip(p, o, a), "you do not use clip_range"),
    ("00.4", lambda p, o, a, e: _clip(p, o, a, e).mean(), "you averaged"),
    ("00.5", lambda p, q: q - p, "the ratio is inverted"),
    ("00.5", lambda p, q: (p - q).exp(), "this is the ratio"),
    ("00.5", lambda p, q: (p - q).abs(), "may be negative"),
    ("00.5", lambda p, q: (p - q) ** 2 / 2, "this is k2"),
    ("00.5", _k3, "this is k3"),
    ("00.5", lambda p, q: p.exp() * (p - q), "do not weight by the probability"),
    ("00.5", lambda p, q: (p - q).mean(), "you averaged"),
    ("00.6", lambda p, q: _k3(q, p), "the ratio is inverted: k3"),
    ("00.6", lambda p, q: -_k3(p, q), "the sign is wrong"),
    ("00.6", lambda p, q: (q - p).exp() - (q - p), "the - 1 is missing"),
    ("00.6", lambda p, q: torch.expm1(q - p), "the logarithm is missing"),
    ("00.6", lambda p, q: torch.expm1(q - p) + (q - p), "you added the logarithm"),
    ("00.6", lambda p, q: (q - p) - 1 - (q - p), "the ratio needs exp"),
    ("00.6", lambda p, q: p - q, "this is k1."),
    ("00.6", lambda p, q: q - p, "this is k1 with the ratio inverted"),
    ("00.6", lambda p, q: _k3(p, q).mean(), "you averaged"),
    ("00.7", lambda c, r, rc, rr, b: _dpo(c, r, 0, 0, b), "the reference is missing"),
    ("00.7", lambda c, r, rc, rr, b: _dpo(c, r, -rc, -rr, b), "the reference has the wrong sign"),
    ("00.7", lambda c, r, rc, rr, b: _dpo(c, r, rr, rc, b), "the reference has the wrong sign"),
    ("00.7", lambda c, r, rc, rr, b: _dpo(c, r, rc, rr, 1.0), "beta is missing"),
    ("00.7", lambda c, r, rc, rr, b: _dpo(c, r, rc, rr), "you do not use beta"),
    ("00.7", lambda c, r, rc, rr, b: b * _dpo(c, r, rc, rr, 1.0), "beta stands outside"),
    ("00.7", lambda c, r, rc, rr, b: _dpo(c, r, rc, rr, 1 / b), "you divide by beta"),
    ("00.7", lambda c, r, rc, rr, b: _dpo(r, c, rr, rc, b), "chosen and rejected are swapped"),
    ("00.7", lambda *given: -_dpo(*given), "the sign is wrong"),
    ("00.7", lambda *given: F.softplus(-_margins(*given).mean()), "averaged before the logarithm"),
    ("00.7", lambda *given: -_margins(*given).sigmoid().mean(), "minus the probability"),
    ("00.7", lambda *given: F.softplus(-_margins(*given)), "one loss per pair"),
    ("00.7", lambda *given: F.softplus(-_margins(*given)).sum(), "you summed"),
    ("00.8", lambda c, r, n, b: n + b * F.softplus(r - c).mean(), "the term log1p(-p) is missing"),
    (
        "00.8",
        lambda c, r, n, b: (
            n + b * F.softplus(r - c - (r.exp() + 1).log() + (c.exp() + 1).log()).mean()
        ),
        "your log1p adds p",
    ),
    (
        "00.8",
        lambda c, r, n, b: n + b * F.softplus(r - c - torch.log1p(-r) + torch.log1p(-c)).mean(),
        "you gave it the log-probability",
    ),
    ("00.8", lambda c, r, n, b: n + b * F.softplus(_odds(r) - _odds(c)).mean(), "you compare odds"),
    ("00.8", lambda c, r, n, b: _orpo(r, c, n, b), "chosen and rejected are swapped"),
    ("00.8", lambda c, r, n, b: _orpo(c, r, n, b) - n, "the SFT loss is missing"),
    ("00.8", lambda c, r, n, b: _orpo(c, r, n, -b), "the second term has the wrong sign"),
    ("00.8", lambda c, r, n, b: _orpo(c, r, n, 1.0), "beta is missing"),
    ("00.8", lambda c, r, n, b: _orpo(c, r, n), "you do not use beta"),
    (
        "00.8",
        lambda c, r, n, b: n + b * F.softplus(-_ratio(c, r).mean()),
        "averaged before the logarithm",
    ),
    ("00.8", lambda c, r, n, b: n + b * F.softplus(-_ratio(c, r)), "one loss per pair"),
    ("00.8", lambda c, r, n, b: n + b * F.softplus(-_ratio(c, r)).sum(), "you summed"),
    ("00.9", losses.sequence_logps, "you summed"),
    ("00.9", lambda z, t, m: losses.sequence_logps(z, t, m) / z.shape[1], "length of the row"),
    ("00.9", lambda z, t, m: losses.sequence_logps(z, t, m) / m.sum(), "whole batch"),
    ("00.9", _unshifted, "shift by one"),
    ("00.9", lambda z, t, m: losses.token_logps(z[:, :-1], t[:, 1:]).mean(1), "use the mask"),
    ("00.9", lambda z, t, m: _average(z, t, m).mean(), "one number per row"),
    ("00.9", lambda z, t, m: -_average(z, t, m), "the first of the two rows used here should give"),
    ("00.10", lambda c, r, rc, rr, b, f: _smoothed(c, r, rc, rr, b, 0.0), "plain DPO"),
    ("00.10", lambda c, r, rc, rr, b, f: _smoothed(c, r, rc, rr, b, 1 - f), "weights are swapped"),
    ("00.10", lambda c, r, rc, rr, b, f: _smoothed(c, r, rc, rr, 1.0, f), "beta is missing"),
    ("00.10", lambda c, r, rc, rr, b, f: _smoothed(c, r, 0, 0, b, f), "the reference is missing"),
    ("00.10", lambda *given: -_smoothed(*given), "the sign"),
    ("00.10", _subtracted, "robust DPO"),
    ("00.11", lambda r: r - r.mean(1, keepdim=True), "counts the answer itself"),
    ("00.11", lambda r: r - (r.sum(1, keepdim=True) - r), "divide it by how many"),
    ("00.11", lambda r: r - (r.sum(1, keepdim=True) - r) / r.shape[1], "one fewer"),
    ("00.11", lambda r: (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-6), "GRPO"),
    ("00.11", lambda r: r - r.mean(0), "mixes prompts"),
    ("00.11", lambda r: (r.sum(1, keepdim=True) - r) / 3, "that is the baseline"),
    ("00.11", lambda r: r.mean(), "one advantage per answer"),
    ("00.12", lambda ref, wins, beta: ref, "still the reference"),
    ("00.12", lambda ref, wins, beta: _fit(ref, wins, beta).exp(), "these are probabilities"),
    ("00.12", lambda ref, wins, beta: _fit(ref, wins, beta) + 1, "yours is"),
    ("00.12", lambda ref, wins, beta: _fit(ref, wins, beta) - 1, "return log_softmax"),
    ("00.12", lambda ref, wins, beta: _fit(torch.zeros(4), wins, beta), "the reference is missing"),
    ("00.12", lambda ref, wins, beta: _fit(ref, wins, 1.0), "beta is missing"),
    ("00.12", lambda ref, wins, beta: _fit(ref, wins.T, beta), "prefers the answers that lose"),
    ("00.12", lambda ref, wins, beta: _fit(ref, wins, 1 / beta), "you divide by beta"),
    ("00.12", lambda ref, wins, beta: _fit(ref, (wins > 0.5).float(), beta), "one answer gets all"),
]

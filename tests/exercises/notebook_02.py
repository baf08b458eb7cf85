import math

import torch

from utils.exercises import notebook_02 as solved
from utils.judge.metrics import best_objective, minimal_kl


def _best(rewards, beta):
    return float(best_objective([[r] for r in rewards], beta)[0])


def _naive(rewards, beta):
    return beta * math.log(sum(math.exp(r / beta) for r in rewards) / len(rewards))


RIGHT = {
    "02.1": solved.up_to_end,
    "02.2": solved.token_kl,
    "02.3": solved.per_token_rewards,
    "02.4": solved.gae,
    "02.5": solved.whiten,
    "02.6": solved.policy_loss,
    "02.7": solved.value_loss,
    "02.8": solved.minibatch_loss,
    "02.9": _best,
    "02.10": minimal_kl,
}
WRONG = [
    ("02.1", lambda r, end: (r == end).long().cumsum(1) == 0, "the end token itself counts"),
    ("02.1", lambda r, end: r != end, "everything after the first one"),
    ("02.1", lambda r, end: solved.up_to_end(r, end).int(), "a bool tensor"),
    ("02.1", lambda r, end: ~solved.up_to_end(r, end), "True means that a token counts"),
    ("02.2", lambda p, q, t, m: solved.token_kl(q, p, t, m), "the sign is wrong"),
    ("02.2", lambda p, q, t, m: solved.token_kl(p, q, t, m | True), "multiply by the mask"),
    (
        "02.2",
        lambda p, q, t, m: (p - q).gather(-1, t[..., None]).squeeze(-1) * m,
        "apply log_softmax",
    ),
    ("02.2", lambda p, q, t, m: solved.token_kl(p, q, t, m).sum(1), "one number per text"),
    (
        "02.3",
        lambda k, s, m, b: solved.per_token_rewards(k, s, m, 1.0),
        "did not multiply the KL by beta",
    ),
    ("02.3", lambda k, s, m, b: solved.per_token_rewards(-k, s, m, b), "it is subtracted"),
    ("02.3", lambda k, s, m, b: torch.where(m, s[:, None] - b * k, 0.0), "only the last one may"),
    (
        "02.3",
        lambda k, s, m, b: torch.cat(
            [-b * k[:, :3] * m[:, :3], (s - b * k[:, 3] * m[:, 3])[:, None]], 1
        ),
        "in the last column",
    ),
    ("02.4", lambda r, v, g, x: solved.gae(r, v, g, 1.0), "λ is missing"),
    ("02.4", lambda r, v, g, x: solved.gae(r, v, 1.0, x), "γ is missing, in δ"),
    ("02.4", lambda r, v, g, x: solved.gae(r, 0 * v, g, x), "the values are missing"),
    ("02.4", lambda r, v, g, x: solved.gae(r, v, g, x) + v, "these are the returns"),
    ("02.4", lambda r, v, g, x: solved.gae(r, v, g, 0.0), "temporal differences"),
    ("02.5", lambda a, m: (a - a.mean()) / a.std() * m, "use the mask"),
    ("02.5", lambda a, m: a / a[m].std() * m, "the mean is still there"),
    ("02.5", lambda a, m: (a - a[m].mean()) / a[m].std(), "must be 0 afterwards"),
    ("02.5", lambda a, m: (a - a[m].mean()) / a[m].std(correction=0) * m, "minus 1"),
    ("02.6", lambda p, o, a, c: -solved.policy_loss(p, o, a, c), "the sign is wrong"),
    ("02.6", lambda p, o, a, c: -(p - o).exp() * a, "nothing is clipped"),
    ("02.6", lambda p, o, a, c: solved.policy_loss(p, o, a, 0.2), "do not use clip"),
    ("02.6", lambda p, o, a, c: solved.policy_loss(p.detach(), o, a, c), "it has no gradient"),
    ("02.7", lambda v, o, r, c: 2 * solved.value_loss(v, o, r, c), "½ is missing"),
    ("02.7", lambda v, o, r, c: 0.5 * (v - r) ** 2, "nothing is clipped"),
    ("02.7", lambda v, o, r, c: solved.value_loss(v, o, o, c), "the target is the return"),
    ("02.8", lambda p, v, m, c: solved.minibatch_loss(p, v, m, 1.0), "its weight value_coef"),
    ("02.8", lambda p, v, m, c: p.mean() + c * v.mean(), "do not count are in your mean"),
    ("02.8", lambda p, v, m, c: (p * m).mean() + c * (v * m).mean(), "divide by all positions"),
    ("02.9", lambda r, b: _best(r, b) / b, "the factor beta"),
    ("02.9", lambda r, b: sum(r) / len(r), "this is the mean reward"),
    ("02.9", _naive, "OverflowError"),
    ("02.10", lambda r, q: minimal_kl([sum(r) / 3], q), "you averaged the rates first"),
    ("02.10", lambda r, q: sum(minimal_kl([p], q) for p in r) / 3, "one common tilt"),
    ("02.10", lambda r, q: minimal_kl(r, q) / 0.6931, "that is in bits"),
]

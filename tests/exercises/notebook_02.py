import torch

from utils.judge.metrics import minimal_kl


def _token_rewards(kl, scores, mask, beta):
    rewards = -beta * kl * mask
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores
    return rewards


RIGHT = {
    "02.1": lambda r, end: (r == end).long().cumsum(1) - (r == end).long() == 0,
    "02.2": _token_rewards,
    "02.3": minimal_kl,
}
WRONG = [
    ("02.1", lambda r, end: (r == end).long().cumsum(1) == 0, "the end token itself counts"),
    ("02.1", lambda r, end: r != end, "everything after the first one"),
    ("02.2", lambda k, s, m, b: _token_rewards(k, s, m, 1.0), "did not multiply the KL by beta"),
    ("02.2", lambda k, s, m, b: _token_rewards(-k, s, m, b), "it is subtracted"),
    ("02.2", lambda k, s, m, b: torch.where(m, s[:, None] - b * k, 0.0), "only the last one may"),
    ("02.3", lambda r, q: minimal_kl([sum(r) / 3], q), "you averaged the rates first"),
    ("02.3", lambda r, q: sum(minimal_kl([p], q) for p in r) / 3, "one common tilt"),
    ("02.3", lambda r, q: minimal_kl(r, q) / 0.6931, "that is in bits"),
]

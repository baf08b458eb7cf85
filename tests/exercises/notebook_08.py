import torch
from torch.nn.functional import logsigmoid


def _logps(logits, labels):
    return logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)


def _real(labels, lengths):
    return torch.arange(labels.shape[1]) < torch.tensor(lengths)[:, None]


def _shift(labels, start):
    return torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)


def _shift_in_place(labels, start):
    labels[:, 1:] = labels[:, :-1].clone()
    labels[:, 0] = start
    return labels


def _robust(chosen, rejected, beta, flipped):
    margin = beta * (chosen - rejected)
    kept, lost = (1 - flipped) * logsigmoid(margin), flipped * logsigmoid(-margin)
    return ((lost - kept) / (1 - 2 * flipped)).mean()


RIGHT = {
    "08.1": _shift,
    "08.2": lambda z, y, n: (_logps(z, y) * _real(y, n)).sum(-1),
    "08.3": _robust,
}
WRONG = [
    ("08.1", lambda y, s: y.roll(1, dims=1), "you rotate"),
    ("08.1", lambda y, s: torch.cat([torch.full_like(y[:, :1], s), y], 1), "one token too many"),
    ("08.1", lambda y, s: y[:, :-1], "the start token is missing"),
    ("08.1", lambda y, s: torch.cat([y[:, 1:], torch.full_like(y[:, :1], s)], 1), "to the left"),
    ("08.1", lambda y, s: _shift(y, 0), "must be `start`"),
    ("08.1", _shift_in_place, "changes the labels"),
    ("08.2", lambda z, y, n: _logps(z, y).mean(-1), "you average"),
    ("08.2", lambda z, y, n: (_logps(z, y) * _real(y, n)).sum(-1) / torch.tensor(n), "you average"),
    ("08.2", lambda z, y, n: _logps(z, y).sum(-1), "the padding counts too"),
    ("08.2", lambda z, y, n: (_logps(z, y) * (y != 0)).sum(-1), "you mask by token"),
    (
        "08.2",
        lambda z, y, n: (_logps(z[:, :-1], y[:, 1:]) * _real(y, n)[:, 1:]).sum(-1),
        "decoder-only",
    ),
    (
        "08.2",
        lambda z, y, n: (z.gather(-1, y[..., None]).squeeze(-1) * _real(y, n)).sum(-1),
        "these are logits",
    ),
    ("08.2", lambda z, y, n: -(_logps(z, y) * _real(y, n)).sum(-1), "the sign"),
    ("08.2", lambda z, y, n: _logps(z, y), "shape (2, 4)"),
    ("08.3", lambda c, r, b, f: _robust(c, r, b, f) * (1 - 2 * f), "divide by 1 - 2"),
    (
        "08.3",
        lambda c, r, b, f: (
            -((1 - f) * logsigmoid(b * (c - r)) + f * logsigmoid(b * (r - c))).mean()
        ),
        "label smoothing",
    ),
    ("08.3", lambda c, r, b, f: -logsigmoid(b * (c - r)).mean(), "plain DPO"),
    ("08.3", lambda c, r, b, f: _robust(c, r, 1.0, f), "β is missing"),
    ("08.3", lambda c, r, b, f: -_robust(c, r, b, f), "the sign"),
    ("08.3", lambda c, r, b, f: torch.stack([_robust(*p, b, f) for p in zip(c, r)]), "average"),  # noqa: B905
]

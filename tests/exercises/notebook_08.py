import torch
from torch.nn.functional import logsigmoid

from utils.exercises.notebook_08 import dpo, shift, summed


def _logps(logits, labels):
    return logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)


def _shift_in_place(labels, start):
    labels[:, 1:] = labels[:, :-1].clone()
    labels[:, 0] = start
    return labels


def _robust(chosen, rejected, beta, flipped):
    margin = beta * (chosen - rejected)
    kept, lost = (1 - flipped) * logsigmoid(margin), flipped * logsigmoid(-margin)
    return ((lost - kept) / (1 - 2 * flipped)).mean()


def _stop(losses, patience):
    best = 0
    for last, loss in enumerate(losses):
        best = last if loss < losses[best] else best
        if last - best == patience:
            break
    return last, best


def _stop_at_a_rise(losses, patience):
    for last in range(1, len(losses)):
        if losses[last] > losses[last - 1]:
            return last, last - 1
    return last, last


def _stop_after_rises(losses, patience):
    rises = 0
    for last in range(1, len(losses)):
        rises = rises + 1 if losses[last] > losses[last - 1] else 0
        if rises == patience:
            break
    return last, min(range(last + 1), key=losses.__getitem__)


def _stop_or_nothing(losses, patience):
    for last in range(len(losses)):
        if last - min(range(last + 1), key=losses.__getitem__) == patience:
            return _stop(losses, patience)
    return None


def _one_row(logits, rows, prompts, lengths, first=0, mean=False, end=None):
    """The solution of 08.5; `first` moves the answer's beginning, `end` drops a token."""
    sums = []
    for row, (start, stop) in enumerate(zip(prompts, lengths, strict=True)):
        places = range(start + first, stop)
        logps = [logits[row, at - 1].log_softmax(-1)[rows[row, at]] for at in places]
        kept = [logp for logp, at in zip(logps, places, strict=True) if rows[row, at] != end]
        sums.append(sum(kept) / (len(kept) if mean else 1))
    return torch.stack(sums)


def _unshifted(logits, rows, prompts, lengths):
    logps = _logps(logits, rows)
    return torch.stack([logps[r, a:b].sum() for r, (a, b) in enumerate(zip(prompts, lengths))])  # noqa: B905


RIGHT = {
    "08.1": shift,
    "08.2": summed,
    "08.3": dpo,
    "08.4": _stop,
    "08.5": _one_row,
    "08.6": _robust,
}
WRONG = [
    ("08.1", lambda y, s: y.roll(1, dims=1), "you rotate"),
    ("08.1", lambda y, s: shift(y, s).float(), "keep the dtype"),
    ("08.1", lambda y, s: torch.cat([torch.full_like(y[:, :1], s), y], 1), "one token too many"),
    ("08.1", lambda y, s: y[:, :-1], "the start token is missing"),
    ("08.1", lambda y, s: torch.cat([y[:, 1:], torch.full_like(y[:, :1], s)], 1), "to the left"),
    ("08.1", lambda y, s: shift(y, 0), "must be `start`"),
    ("08.1", _shift_in_place, "changes a tensor that it was given"),
    ("08.2", lambda z, y, m: _logps(z, y).mean(-1), "you average over all"),
    ("08.2", lambda z, y, m: summed(z, y, m) / m.sum(-1), "you average"),
    ("08.2", lambda z, y, m: _logps(z, y).sum(-1), "the padding counts too"),
    ("08.2", lambda z, y, m: (_logps(z, y) * (y != 0)).sum(-1), "you mask by token"),
    (
        "08.2",
        lambda z, y, m: (_logps(z[:, :-1], y[:, 1:]) * m[:, 1:]).sum(-1),
        "decoder-only",
    ),
    (
        "08.2",
        lambda z, y, m: (z.gather(-1, y[..., None]).squeeze(-1) * m).sum(-1),
        "these are logits",
    ),
    ("08.2", lambda z, y, m: -summed(z, y, m), "the sign"),
    ("08.2", lambda z, y, m: _logps(z, y), "shape (2, 4)"),
    ("08.3", lambda c, r, p, q, b: -dpo(c, r, p, q, b), "the sign"),
    ("08.3", lambda c, r, p, q, b: dpo(r, c, q, p, b), "are confused"),
    ("08.3", lambda c, r, p, q, b: dpo(c, r, 0 * p, 0 * q, b), "the reference is missing"),
    ("08.3", lambda c, r, p, q, b: dpo(c, r, -p, -q, b), "the reference is added"),
    ("08.3", lambda c, r, p, q, b: dpo(c, r, p, q, 1.0), "β is missing"),
    ("08.3", lambda c, r, p, q, b: -(b * (c - p - r + q)).mean(), "logarithm of its sigmoid"),
    ("08.3", lambda c, r, p, q, b: -torch.sigmoid(b * (c - p - r + q)).mean(), "logarithm is"),
    ("08.3", lambda c, r, p, q, b: -logsigmoid(b * (c - p - r + q)), "now average"),
    ("08.3", lambda c, r, p, q, b: dpo(c.detach(), r.detach(), p, q, b), "the gradient is not"),
    ("08.3", lambda c, r, p, q, b: dpo(c, r, p, q, b).item(), "returns float: return a tensor"),
    ("08.3", lambda c, r, p, q, b: dpo(c, r, p, q, 2 * b), "yours is"),
    ("08.4", _stop_at_a_rise, "at the first rise"),
    ("08.4", _stop_after_rises, "goes on too long"),
    ("08.4", _stop_or_nothing, "always falls"),
    ("08.4", lambda losses, patience: (_stop(losses, patience)[0],) * 2, "keep the last model"),
    (
        "08.4",
        lambda losses, patience: (_stop(losses, patience)[0], losses.index(min(losses))),
        "never measured",
    ),
    ("08.4", lambda losses, patience: _stop(losses, patience)[1], "return two indices"),
    ("08.4", lambda losses, patience: _stop(losses, patience)[::-1], "first the index"),
    (
        "08.4",
        lambda losses, patience: tuple(index + 1 for index in _stop(losses, patience)),
        "count from 0",
    ),
    ("08.5", _unshifted, "nothing is shifted"),
    ("08.5", lambda z, y, p, n: _one_row(z, y, [1, 1], n), "prompt counts"),
    ("08.5", lambda z, y, p, n: _one_row(z, y, [2, 1], n), "last token of the prompt"),
    ("08.5", lambda z, y, p, n: _one_row(z, y, p, n, first=1), "first token of the answer"),
    ("08.5", lambda z, y, p, n: _one_row(z, y, p, [6, 6]), "padding counts"),
    ("08.5", lambda z, y, p, n: _one_row(z, y, p, n, end=1), "end token is missing"),
    ("08.5", lambda z, y, p, n: _one_row(z, y, p, n, mean=True), "you average"),
    ("08.5", lambda z, y, p, n: -_one_row(z, y, p, n), "the sign"),
    ("08.5", lambda z, y, p, n: _logps(z, y), "shape (2, 6)"),
    ("08.6", lambda c, r, b, f: _robust(c, r, b, f) * (1 - 2 * f), "divide by 1 - 2"),
    (
        "08.6",
        lambda c, r, b, f: (
            -((1 - f) * logsigmoid(b * (c - r)) + f * logsigmoid(b * (r - c))).mean()
        ),
        "label smoothing",
    ),
    ("08.6", lambda c, r, b, f: -logsigmoid(b * (c - r)).mean(), "plain DPO"),
    ("08.6", lambda c, r, b, f: _robust(c, r, 1.0, f), "β is missing"),
    ("08.6", lambda c, r, b, f: -_robust(c, r, b, f), "the sign"),
    ("08.6", lambda c, r, b, f: torch.stack([_robust(*p, b, f) for p in zip(c, r)]), "average"),  # noqa: B905
]

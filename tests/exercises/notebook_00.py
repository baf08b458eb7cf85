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


RIGHT = {
    "00.1": _average,
    "00.2": _smoothed,
    "00.3": _leave_one_out,
    "00.4": _fit,
}
WRONG = [
    ("00.1", losses.sequence_logps, "you summed"),
    ("00.1", lambda z, t, m: losses.sequence_logps(z, t, m) / z.shape[1], "length of the row"),
    ("00.1", lambda z, t, m: losses.sequence_logps(z, t, m) / m.sum(), "whole batch"),
    ("00.1", _unshifted, "shift by one"),
    ("00.1", lambda z, t, m: losses.token_logps(z[:, :-1], t[:, 1:]).mean(1), "use the mask"),
    ("00.1", lambda z, t, m: _average(z, t, m).mean(), "one number per row"),
    ("00.1", lambda z, t, m: -_average(z, t, m), "the first of the two rows used here should give"),
    ("00.2", lambda c, r, rc, rr, b, f: _smoothed(c, r, rc, rr, b, 0.0), "plain DPO"),
    ("00.2", lambda c, r, rc, rr, b, f: _smoothed(c, r, rc, rr, b, 1 - f), "weights are swapped"),
    ("00.2", lambda c, r, rc, rr, b, f: _smoothed(c, r, rc, rr, 1.0, f), "beta is missing"),
    ("00.2", lambda c, r, rc, rr, b, f: _smoothed(c, r, 0, 0, b, f), "the reference is missing"),
    ("00.2", lambda *given: -_smoothed(*given), "the sign"),
    ("00.2", _subtracted, "robust DPO"),
    ("00.3", lambda r: r - r.mean(1, keepdim=True), "counts the answer itself"),
    ("00.3", lambda r: r - (r.sum(1, keepdim=True) - r), "divide it by how many"),
    ("00.3", lambda r: r - (r.sum(1, keepdim=True) - r) / r.shape[1], "one fewer"),
    ("00.3", lambda r: (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-6), "GRPO"),
    ("00.3", lambda r: r - r.mean(0), "mixes prompts"),
    ("00.3", lambda r: (r.sum(1, keepdim=True) - r) / 3, "that is the baseline"),
    ("00.3", lambda r: r.mean(), "one advantage per answer"),
    ("00.4", lambda ref, wins, beta: ref, "still the reference"),
    ("00.4", lambda ref, wins, beta: _fit(ref, wins, beta).exp(), "these are probabilities"),
    ("00.4", lambda ref, wins, beta: _fit(ref, wins, beta) + 1, "yours is"),
    ("00.4", lambda ref, wins, beta: _fit(ref, wins, beta) - 1, "return log_softmax"),
    ("00.4", lambda ref, wins, beta: _fit(torch.zeros(4), wins, beta), "the reference is missing"),
    ("00.4", lambda ref, wins, beta: _fit(ref, wins, 1.0), "beta is missing"),
    ("00.4", lambda ref, wins, beta: _fit(ref, wins.T, beta), "prefers the answers that lose"),
    ("00.4", lambda ref, wins, beta: _fit(ref, wins, 1 / beta), "you divide by beta"),
    ("00.4", lambda ref, wins, beta: _fit(ref, (wins > 0.5).float(), beta), "one answer gets all"),
]

import torch
from torch.nn.functional import logsigmoid


def _both_orders(judge, first, second):
    results = []
    for a, b in zip(first, second, strict=True):
        forward, backward = judge(a, b), 1 - judge(b, a)
        results.append(forward if forward == backward else 0.5)
    return sum(results) / len(results)


def _without(judge, first, second, keep):
    """Judge in both orders, but handle ties with `keep`."""
    results = []
    for a, b in zip(first, second, strict=True):
        forward, backward = judge(a, b), 1 - judge(b, a)
        results.append(forward if forward == backward else 0.5)
    return keep(results)


def _ties_lost(judge, first, second):
    return _without(judge, first, second, lambda r: sum(x == 1 for x in r) / len(r))


def _ties_out(judge, first, second):
    def share(results):
        decided = [x for x in results if x != 0.5]
        return sum(decided) / len(decided) if decided else 0.5

    return _without(judge, first, second, share)


RIGHT = {
    "04.1": lambda logp, reference, beta: beta * (logp - reference),
    "04.2": lambda margin, beta: beta * torch.sigmoid(-beta * margin),
    "04.3": _both_orders,
}
WRONG = [
    ("04.1", lambda logp, reference, beta: beta * (reference - logp), "the sign"),
    ("04.1", lambda logp, reference, beta: logp - reference, "multiply by beta"),
    ("04.1", lambda logp, reference, beta: beta * logp, "the reference is missing"),
    ("04.1", lambda lp, ref, beta: beta * (lp.exp() - ref.exp()), "not of the probabilities"),
    ("04.2", lambda margin, beta: beta * torch.sigmoid(beta * margin), "the sign inside"),
    ("04.2", lambda margin, beta: torch.sigmoid(-beta * margin), "a factor beta"),
    ("04.2", lambda margin, beta: -beta * torch.sigmoid(-beta * margin), "minus the slope"),
    ("04.2", lambda margin, beta: -logsigmoid(beta * margin), "that is the loss"),
    (
        "04.3",
        lambda judge, first, second: sum(map(judge, first, second)) / len(first),
        "ask in both orders",
    ),
    ("04.3", _ties_lost, "a tie counts half"),
    ("04.3", _ties_out, "divide by all questions"),
    ("04.3", lambda judge, a, b: 1 - _both_orders(judge, a, b), "share of the second"),
]

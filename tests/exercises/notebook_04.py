import torch
from torch.nn.functional import logsigmoid


def _both_orders(judge, first, second):
    results = []
    for a, b in zip(first, second, strict=True):
        forward, backward = judge(a, b), 1 - judge(b, a)
        results.append(forward if forward == backward else 0.5)
    return sum(results) / len(results)


def _average(judge, first, second):
    both = [judge(a, b) + 1 - judge(b, a) for a, b in zip(first, second, strict=True)]
    return sum(both) / 2 / len(both)


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
    "04.1": lambda rate, worth, beta: torch.sigmoid(torch.logit(rate) + worth / beta),
    "04.2": lambda logp, reference, beta: beta * (logp - reference),
    "04.3": lambda margin, beta: beta * torch.sigmoid(-beta * margin),
    "04.4": _both_orders,
}
WRONG = [
    ("04.1", lambda rate, worth, beta: torch.logit(rate) + worth / beta, "apply the sigmoid"),
    ("04.1", lambda r, w, beta: torch.sigmoid(torch.logit(r) + w * beta), "divide by it"),
    ("04.1", lambda r, w, beta: torch.sigmoid(r + w / beta), "to the logit of the reference"),
    ("04.1", lambda r, w, beta: torch.sigmoid(0 * r + w / beta), "the reference is missing"),
    ("04.1", lambda rate, worth, beta: rate + worth / beta, "between 0 and 1"),
    ("04.1", lambda rate, worth, beta: print(rate), "returns nothing: end it with `return`"),
    ("04.2", lambda logp, reference, beta: beta * (reference - logp), "the sign"),
    ("04.2", lambda logp, reference, beta: logp - reference, "multiply by beta"),
    ("04.2", lambda logp, reference, beta: beta * logp, "the reference is missing"),
    ("04.2", lambda lp, ref, beta: beta * (lp.exp() - ref.exp()), "not of the probabilities"),
    ("04.3", lambda margin, beta: beta * torch.sigmoid(beta * margin), "the sign inside"),
    ("04.3", lambda margin, beta: torch.sigmoid(-beta * margin), "a factor beta"),
    ("04.3", lambda margin, beta: -beta * torch.sigmoid(-beta * margin), "minus the slope"),
    ("04.3", lambda margin, beta: -logsigmoid(beta * margin), "that is the loss"),
    (
        "04.4",
        lambda judge, first, second: sum(map(judge, first, second)) / len(first),
        "ask in both orders",
    ),
    ("04.4", _average, "do not average the two verdicts"),
    ("04.4", _ties_lost, "a tie counts half"),
    ("04.4", _ties_out, "divide by all questions"),
    ("04.4", lambda judge, a, b: 1 - _both_orders(judge, a, b), "share of the second"),
]

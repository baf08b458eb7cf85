import torch
from torch.nn.functional import cross_entropy


def by_rows(logits, labels):
    return -logits.log_softmax(-1)[range(len(labels)), labels]


RIGHT = {
    "01.1": lambda z, y, w: cross_entropy(z, y, w),
    "01.2": lambda z: torch.where(z.argmax(-1) == 0, z[:, 0], torch.zeros(len(z))),
    "01.3": lambda z: z[:, 0] - torch.logaddexp(z[:, 1], z[:, 2]),
    "01.4": lambda counts, a: [(sum(counts) / n) ** a for n in counts],
    "01.5": lambda z, y: float(
        min(torch.linspace(0.25, 5, 200), key=lambda t: float(cross_entropy(z / t, y)))
    ),
}
WRONG = [
    ("01.1", lambda z, y, w: cross_entropy(z, y), "does not use the weights"),
    ("01.1", lambda z, y, w: (w[y] * by_rows(z, y)).mean(), "the number of rows"),
    ("01.1", lambda z, y, w: (w[y] * by_rows(z, y)).sum(), "the weighted sum"),
    ("01.1", lambda z, y, w: (w[y] * by_rows(z, y)).sum() / w.sum(), "the sum over the classes"),
    ("01.1", lambda z, y, w: w[y] * by_rows(z, y), "one loss per row"),
    ("01.1", lambda z, y, w: -cross_entropy(z, y, w), "the sign is wrong"),
    (
        "01.1",
        lambda z, y, w: -(w[y] * z.softmax(-1)[range(len(y)), y]).sum() / w[y].sum(),
        "these are probabilities",
    ),
    ("01.1", lambda z, y, w: cross_entropy(z.detach(), y, w), "its gradient is not"),
    ("01.1", lambda z, y, w: cross_entropy(z, y, w).item(), "return a tensor"),
    ("01.2", lambda z: z[:, 0], "where another class wins it must be 0"),
    ("01.2", lambda z: z.softmax(-1)[:, 0], "these are probabilities"),
    ("01.2", lambda z: z[:, 2] * (z.argmax(-1) == 2), "negative has index 0"),
    ("01.2", lambda z: z[:, 0].clamp(min=0) * (z.argmax(-1) == 0), "may be below zero"),
    ("01.2", lambda z: z.sum(), "shape"),
    ("01.2", lambda z: 1 / 0, "ZeroDivisionError"),
    ("01.3", lambda z: z.softmax(-1)[:, 0], "that is p(negative)"),
    ("01.3", lambda z: z[:, 0] - z[:, 1:].amax(-1), "the lead over the largest other logit"),
    ("01.3", lambda z: (p := z.softmax(-1)[:, 0]).log() - (1 - p).log(), "rounds to 1"),
    ("01.4", lambda counts, a: [(sum(counts) / n) ** 0.5 for n in counts], "use the exponent"),
    ("01.4", lambda counts, a: [n**a for n in counts], "the rare class must weigh more"),
    ("01.4", lambda counts, a: [1 + a / n for n in counts], "times as much as the first"),
    ("01.5", lambda z, y: 0.4, "you found 1/T"),
    ("01.5", lambda z, y: 1.0, "temperature 1 changes nothing"),
]

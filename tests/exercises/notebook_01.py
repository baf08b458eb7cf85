import torch

RIGHT = {
    "01.1": lambda z: torch.where(z.argmax(-1) == 0, z[:, 0], torch.zeros(len(z))),
    "01.2": lambda c: (
        ((w := (sum(c) / torch.tensor(c, dtype=torch.float)) ** 0.5) * sum(c))
        / (w * torch.tensor(c)).sum()
    ).tolist(),
    "01.3": lambda z, y: float(
        min(
            torch.linspace(0.25, 5, 200),
            key=lambda t: float(torch.nn.functional.cross_entropy(z / t, y)),
        )
    ),
}
WRONG = [
    ("01.1", lambda z: z[:, 0], "where another class wins it must be 0"),
    ("01.1", lambda z: z.softmax(-1)[:, 0], "these are probabilities"),
    ("01.1", lambda z: z[:, 2] * (z.argmax(-1) == 2), "negative has index 0"),
    ("01.1", lambda z: z.sum(), "shape"),
    ("01.1", lambda z: 1 / 0, "ZeroDivisionError"),
    ("01.2", lambda c: [(sum(c) / n) ** 0.5 for n in c], "right up to a factor"),
    ("01.2", lambda c: [sum(c) / n for n in c], "full inverse frequency"),
    ("01.2", lambda c: [n / sum(c) for n in c], "the rare class must weigh more"),
    ("01.3", lambda z, y: 0.4, "you found 1/T"),
    ("01.3", lambda z, y: 1.0, "temperature 1 changes nothing"),
]

import torch
from torch.nn.functional import logsigmoid

RIGHT = {
    "05.1": lambda p: torch.log(p) - torch.log(1 - p),
    "05.2": lambda logps, mask: (logps * mask).sum(1) / mask.sum(1),
    "05.3": lambda c, r, beta, gamma: -logsigmoid(beta * (c - r) - gamma).mean(),
}
WRONG = [
    ("05.1", lambda p: p / (1 - p), "take their logarithm"),
    ("05.1", lambda p: torch.log((1 - p) / p), "upside down"),
    ("05.1", torch.log, "1 - p is missing"),
    ("05.1", lambda p: torch.log2(p / (1 - p)), "natural logarithm"),
    ("05.2", lambda logps, mask: logps.mean(1), "use the mask"),
    ("05.2", lambda logps, mask: (logps * mask).sum(1), "that is the sum"),
    ("05.2", lambda logps, mask: (logps * mask).mean(1), "divide by the width of the table"),
    ("05.3", lambda c, r, beta, gamma: -logsigmoid(beta * (c - r)).mean(), "gamma is missing"),
    ("05.3", lambda c, r, b, g: -logsigmoid(b * (c - r) + g).mean(), "subtract gamma"),
    ("05.3", lambda c, r, b, g: -logsigmoid(b * (c - r - g)).mean(), "you multiply gamma by beta"),
    ("05.3", lambda c, r, b, g: logsigmoid(b * (c - r) - g).mean(), "the sign is wrong"),
]

"""Ask any reward for scores; when it fails, say on which text."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.course.errors import CourseError

Reward = Callable[[list[str]], Sequence[float] | Tensor]


class RewardError(CourseError, RuntimeError):
    """A reward that raised, or returned something else than one finite number per text."""


def score_texts(reward: Reward, texts: list[str]) -> Tensor:
    """One finite number per text (batch,); a batch that fails is halved until the text is found."""
    cause, suspects = None, list(texts)
    try:
        scores = torch.as_tensor(reward(list(texts)), dtype=torch.float32).detach().cpu()
        if scores.shape == (len(texts),) and scores.isfinite().all():
            return scores
        problem = f"returned shape {tuple(scores.shape)} for {len(texts)} texts"
        if scores.shape == (len(texts),):
            bad = int((~scores.isfinite()).nonzero()[0])
            problem, suspects = f"returned {scores[bad].item()}", [texts[bad]]
    except Exception as error:
        problem, cause = f"raised {type(error).__name__} ({error})", error
    if len(suspects) > 1:
        score_texts(reward, suspects[: len(suspects) // 2])
        score_texts(reward, suspects[len(suspects) // 2 :])
    others = f" and {len(suspects) - 1} others" if len(suspects) > 1 else ""
    raise RewardError(
        f"The reward {problem} on the text {suspects[0]!r}{others}: make it return one finite "
        "number for every text, the empty one included."
    ) from cause

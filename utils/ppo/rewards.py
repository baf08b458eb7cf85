"""Compute the scores of texts with any reward function; an error names the text that failed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.course.errors import CourseError
from utils.course.language import tr

Reward = Callable[[list[str]], Sequence[float] | Tensor]


class RewardError(CourseError, RuntimeError):
    """The reward raised an error, or did not return one finite number per text."""


def score_texts(reward: Reward, texts: list[str]) -> Tensor:
    """One finite score per text (batch,); a failing batch is halved until the text is found."""
    cause, suspects = None, list(texts)
    try:
        scores = torch.as_tensor(reward(list(texts)), dtype=torch.float32).detach().cpu()
        if scores.shape == (len(texts),) and scores.isfinite().all():
            return scores
        problem = tr(
            "returned shape {shape} for {count} texts", shape=tuple(scores.shape), count=len(texts)
        )
        if scores.shape == (len(texts),):
            bad = int((~scores.isfinite()).nonzero()[0])
            problem = tr("returned {value}", value=scores[bad].item())
            suspects = [texts[bad]]
    except Exception as error:
        cause = error
        problem = tr("raised {kind} ({error})", kind=type(error).__name__, error=error)
    if len(suspects) > 1:
        score_texts(reward, suspects[: len(suspects) // 2])
        score_texts(reward, suspects[len(suspects) // 2 :])
        raise RewardError(
            tr(
                "The reward {problem} on the text {text!r} and {others} others: make it return "
                "one finite number for every text, including the empty text.",
                problem=problem,
                text=suspects[0],
                others=len(suspects) - 1,
            )
        ) from cause
    raise RewardError(
        tr(
            "The reward {problem} on the text {text!r}: make it return one finite number for "
            "every text, including the empty text.",
            problem=problem,
            text=suspects[0],
        )
    ) from cause

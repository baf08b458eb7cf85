"""Which of two answers is better: a judge without training, by similarity to a reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics import CHRF

CHARACTERS = CHRF(lowercase=True)  # n-grams of 1 to 6 characters without spaces, β = 2
Judge = Callable[[str, str, str, str], float]  # question, first, second, reference -> 1, ½ or 0


def chrf(answer: str, reference: str) -> float:
    """chrF, 0 to 1: the F-score of the shared character n-grams; recall has weight four.

    >>> chrf("hà nội", "hà nội"), chrf("xyz", "hà nội")
    (1.0, 0.0)
    """
    return CHARACTERS.sentence_score(answer, [reference]).score / 100


def similarity_judge(tie: float = 0.01) -> Judge:
    """The answer with the higher chrF to the reference wins; a lead below `tie` is a draw."""

    def judge(question: str, first: str, second: str, reference: str) -> float:
        lead = chrf(first, reference) - chrf(second, reference)
        return 0.5 if abs(lead) < tie else float(lead > 0)

    return judge


@dataclass(frozen=True)
class Duels:
    """One result per question: 1 if the first model's answer won, ½ for a tie, 0 if it lost."""

    results: np.ndarray
    longer: np.ndarray  # length of the first model's answer minus the second's, in syllables
    disagreed: int  # number of questions where the order of the answers changed the verdict

    @property
    def win_rate(self) -> float:
        """The share of questions won by the first model; ties count half."""
        return float(self.results.mean())

    @property
    def ties(self) -> float:
        """The share of ties."""
        return float(np.mean(self.results == 0.5))

    @property
    def length_controlled(self) -> float:
        """The win rate at equal length, from a logistic fit on the difference in length."""
        return length_controlled(self.results, self.longer)


def duels(
    questions: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    references: Sequence[str],
    judge: Judge,
) -> Duels:
    """Judge every pair in both orders; a verdict that depends on the order is a tie."""
    results, disagreed = [], 0
    for question, a, b, reference in zip(questions, first, second, references, strict=True):
        forward, backward = judge(question, a, b, reference), 1 - judge(question, b, a, reference)
        disagreed += forward != backward
        results.append(forward if forward == backward else 0.5)
    longer = [len(a.split()) - len(b.split()) for a, b in zip(first, second, strict=True)]
    return Duels(np.array(results), np.array(longer, dtype=float), disagreed)


def length_controlled(results: np.ndarray, longer: np.ndarray, penalty: float = 1e-3) -> float:
    """P(win) at equal length, by logistic regression of the result on the length difference.

    >>> round(length_controlled(np.array([1.0, 0.0] * 50), np.array([3.0, -3.0] * 50)), 2)
    0.5
    """
    scale = longer.std() or 1.0
    columns = np.stack([np.ones_like(longer), longer / scale], 1)
    weights = np.zeros(2)
    for _ in range(50):  # Newton steps on the penalised likelihood
        p = 1 / (1 + np.exp(-np.clip(columns @ weights, -30, 30)))
        gradient = columns.T @ (p - results) + penalty * len(results) * weights
        curvature = (columns * (p * (1 - p))[:, None]).T @ columns
        curvature += penalty * len(results) * np.eye(2)
        weights -= np.linalg.solve(curvature, gradient)
    return float(1 / (1 + np.exp(-weights[0])))

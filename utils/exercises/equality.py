"""Equality of two losses: the same value and the same gradient, for the same inputs.

`loss_verdict` judges a student's loss by it, and names a known mistake.
`same(ours, library, inputs, name)` asserts it and stores the result in `EQUALITIES`. The two
functions with `trl_` in their names call the losses of TRL's trainers on given log-probabilities.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from utils.course.language import tr
from utils.exercises.checks import Verdict

Loss = Callable[..., Tensor]
TOLERANCE = 1e-5
EQUALITIES: dict[str, dict[str, float]] = {}  # name -> differences, of every equality that held


def close(answer: Tensor, wanted: Tensor) -> bool:
    """Whether an answer of an exercise has the wanted shape and, to 1e-4, the wanted numbers."""
    return answer.shape == wanted.shape and torch.allclose(answer.to(wanted), wanted, atol=1e-4)


def no_tensor(result: object) -> str:
    """The sentence on an attempt that returned something else than a tensor."""
    if result is None:
        return tr("your function returns nothing: return a tensor.")
    return tr("your function returns {found}: return a tensor.", found=type(result).__name__)


def value_and_gradients(loss: Loss, inputs: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The value of a loss, and its gradient (that of the sum) for each input.

    >>> value_and_gradients(lambda x: x * x, [torch.tensor(3.0, requires_grad=True)])
    (tensor(9.), (tensor(6.),))
    """
    value = loss(*inputs)
    if not value.requires_grad:
        return value, tuple(torch.zeros_like(x) for x in inputs)
    return value.detach(), torch.autograd.grad(value.sum(), inputs, materialize_grads=True)


def other_shape(wanted: Tensor, found: Tensor) -> str:
    """The sentence on a result of another shape."""
    return tr(
        "the result must have shape {wanted}: yours is {found}.",
        wanted=tuple(wanted.shape),
        found=tuple(found.shape),
    )


def _numbers(values: Tensor) -> str:
    """Up to four numbers for a message."""
    shown = ", ".join(f"{number:.4f}" for number in values.flatten()[:4].tolist())
    return shown + (", ..." if values.numel() > 4 else "")


def loss_verdict(
    attempt: Loss, solution: Loss, inputs: Sequence[Tensor], mistakes: Mapping[str, Loss]
) -> Verdict:
    """None if value and gradient are the solution's, else the mistake that has the attempt's."""
    result = attempt(*inputs)
    if not isinstance(result, Tensor):
        return no_tensor(result)
    value, gradients = value_and_gradients(attempt, inputs)

    def equal(loss: Loss) -> bool:
        other, slopes = value_and_gradients(loss, inputs)
        return close(value, other) and all(map(close, gradients, slopes))

    if equal(solution):
        return None
    for message, mistake in mistakes.items():
        if equal(mistake):
            return message
    wanted, _ = value_and_gradients(solution, inputs)
    if value.shape != wanted.shape:
        return other_shape(wanted, value)
    if not close(value, wanted):
        return tr(
            "the result should be {wanted} in this example: yours is {found}.",
            wanted=_numbers(wanted),
            found=_numbers(value),
        )
    if not any(slope.any() for slope in gradients):
        return "the value is right, but it has no gradient: use neither detach nor item here."
    return "the value is right, but the gradient is not: look for a detach too many or too few."


def distances(one: Loss, other: Loss, inputs: Sequence[Tensor]) -> tuple[float, float]:
    """The largest difference of two losses in value, and in gradient; infinite if shapes differ."""
    (value, gradients), (reference, slopes) = (
        value_and_gradients(loss, inputs) for loss in (one, other)
    )
    if value.shape != reference.shape:
        return float("inf"), float("inf")
    worst = torch.stack([(a - b).abs().max() for a, b in zip(gradients, slopes, strict=True)]).max()
    return (value - reference).abs().max().item(), worst.item()


def same(ours: Loss, library: Loss, inputs: Sequence[Tensor], name: str) -> None:
    """Assert that two losses have the same value and gradient; print and store the differences."""
    try:
        slopes = value_and_gradients(library, inputs)[1]
    except ImportError as error:
        print(tr("not compared: {name} ({error})", name=name, error=error))
        return
    assert any(slope.any() for slope in slopes), tr(
        "{name}: the library's gradient is zero", name=name
    )
    value, gradient = distances(ours, library, inputs)
    assert value < TOLERANCE and gradient < TOLERANCE, tr(
        "{name}: the value is off by {value:.2g}, the gradient by {gradient:.2g}",
        name=name,
        value=value,
        gradient=gradient,
    )
    EQUALITIES[name] = {"value differs by": value, "gradient differs by": gradient}
    print(
        tr(
            "equal: {name} (value to {value:.0e}, gradient to {gradient:.0e})",
            name=name,
            value=value,
            gradient=gradient,
        )
    )


def trl_grpo_loss(
    trainer: object,
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    reference_logps: Tensor | None = None,
    beta: float = 0.0,
) -> Tensor:
    """The loss of TRL's GRPOTrainer for given log-probabilities (batch, response).

    The trainer asks a model for log-probabilities; here it receives `logps` in place of a model's.
    `advantages` is (batch,). `beta` is what `GRPOConfig(beta=...)` sets.
    """
    trainer.beta = beta
    trainer.model.eval()  # in training the trainer divides by the gradient accumulation steps
    tokens = torch.zeros(logps.shape, dtype=torch.long)  # no token is read
    answers = SimpleNamespace(log_probs=logps, entropy=torch.zeros_like(logps))
    return trainer.compute_loss(
        lambda **_: answers,
        {
            "prompt_ids": tokens[:, :1],
            "prompt_mask": tokens[:, :1],
            "completion_ids": tokens,
            "completion_mask": mask,
            "advantages": advantages,
            "old_per_token_logps": old_logps,
            "ref_per_token_logps": reference_logps,
        },
    )


def trl_orpo_loss(chosen_logps: Tensor, rejected_logps: Tensor, chosen_nll: Tensor) -> Tensor:
    """ORPO with the odds-ratio term of TRL's ORPOTrainer; ImportError if TRL has no ORPO."""
    try:
        from trl.experimental.orpo import ORPOTrainer
    except ImportError:
        raise ImportError(tr("this TRL has no ORPO")) from None
    attributes = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    term = ORPOTrainer.odds_ratio_loss(attributes, chosen_logps, rejected_logps)[0]
    return chosen_nll - term.mean()

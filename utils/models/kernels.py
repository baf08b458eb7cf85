"""TRL's fused output layer: whether its Triton kernels work here, and what it computes without."""

import functools

import torch

from utils.course.language import tr


def _agrees() -> bool:
    """Whether the fused output layer gives the log-probabilities and gradients of plain torch."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    generator = torch.Generator().manual_seed(0)
    dtype = torch.float16  # both a T4 and an A100 compute in it
    states, weight = (torch.randn(rows, 32, generator=generator) for rows in (5, 48))
    states = states.to("cuda", dtype).requires_grad_()
    weight, targets = weight.to("cuda", dtype), torch.arange(5, device="cuda")
    fused = ChunkedLogProbFunction.apply(states, weight, None, targets, 1.0, 32, None, 1.0, ())[0]
    found = torch.autograd.grad(fused.sum(), states)[0].float()
    plain = (states.float() @ weight.float().T).log_softmax(-1)[targets, targets]
    wanted = torch.autograd.grad(plain.sum(), states)[0].float()
    torch.cuda.synchronize()
    return bool((fused - plain).abs().max() < 0.1 and (found - wanted).abs().max() < 0.1)


def _answers_only(device: torch.device) -> bool:
    """TRL's trainers ask about Triton only to decide whether to skip tokens without a label."""
    return True


@functools.cache
def check_triton() -> None:
    """If Triton is installed but does not work, switch it off in TRL and print one line about it.

    TRL uses Triton whenever it is installed, and would fail in the middle of a training. Without
    Triton, it computes the logits of all tokens, because some devices compile again for each new
    number of tokens. CPUs and GPUs do not, so here it computes only those of the answers.
    """
    import trl.trainer.utils as users
    from trl.kernels import chunked_logprob

    if not torch.cuda.is_available() or not chunked_logprob._use_triton(torch.device("cuda")):
        users._use_triton = _answers_only
        return
    try:
        reason = None if _agrees() else tr("its numbers are wrong")
    except Exception as error:  # compiler, driver and Triton raise errors of different classes
        reason = type(error).__name__
    if reason:
        print(
            tr(
                "Triton does not work on this GPU ({reason}): TRL computes without it, more "
                "slowly.",
                reason=reason,
            )
        )
        chunked_logprob._use_triton = lambda device: False
        users._use_triton = _answers_only
        users.is_triton_available = lambda: False

"""Whether TRL's Triton kernels work on this GPU, asked before a training depends on them."""

import functools

import torch


def _agrees() -> bool:
    """Whether the fused output layer gives the log-probabilities and gradients of plain torch."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    generator = torch.Generator().manual_seed(0)
    dtype = torch.float16  # what a T4 computes in, and an A100 can
    states, weight = (torch.randn(rows, 32, generator=generator) for rows in (5, 48))
    states = states.to("cuda", dtype).requires_grad_()
    weight, targets = weight.to("cuda", dtype), torch.arange(5, device="cuda")
    fused = ChunkedLogProbFunction.apply(states, weight, None, targets, 1.0, 32, None, 1.0, ())[0]
    found = torch.autograd.grad(fused.sum(), states)[0].float()
    plain = (states.float() @ weight.float().T).log_softmax(-1)[targets, targets]
    wanted = torch.autograd.grad(plain.sum(), states)[0].float()
    torch.cuda.synchronize()
    return bool((fused - plain).abs().max() < 0.1 and (found - wanted).abs().max() < 0.1)


@functools.cache
def check_triton() -> None:
    """Where Triton is installed and does not work, TRL computes without it, and a line says so.

    TRL takes Triton wherever it is installed; a failure would come in the middle of a training.
    """
    if not torch.cuda.is_available():
        return
    import trl.trainer.utils as users
    from trl.kernels import chunked_logprob

    if not chunked_logprob._use_triton(torch.device("cuda")):
        return
    try:
        reason = None if _agrees() else "its numbers are wrong"
    except Exception as error:  # a compiler's, a driver's or Triton's own, each of another class
        reason = type(error).__name__
    if reason:
        print(f"Triton does not work on this GPU ({reason}): TRL computes without it, more slowly.")
        for module in (chunked_logprob, users):
            module._use_triton = lambda device: False
        users.is_triton_available = lambda: False

"""Each process works on some rows of every minibatch.

After gathering, the rows are in the order of the original batch. Accelerate's PartialState holds
this process's rank and the number of processes. A single process copies and sends nothing.
"""

import atexit
from collections.abc import Iterable

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from utils.course.errors import SettingError
from utils.course.language import tr


def join(device: torch.device, minibatch_size: int) -> int:
    """Connect the processes and return this process's rank, which is 0 for a single process."""
    state = PartialState(cpu=device.type == "cpu")
    if minibatch_size % state.num_processes:
        raise SettingError(
            tr(
                "PPOConfig.minibatch_size {size} cannot be shared among {processes} processes: "
                "make it a multiple of their number.",
                size=minibatch_size,
                processes=state.num_processes,
            )
        )
    if state.num_processes > 1:  # otherwise gloo's threads abort the process when it exits
        atexit.register(state.destroy_process_group)
    return state.process_index


def mine(order: Tensor, minibatch_size: int) -> Tensor:
    """This process's rows of each minibatch: (batch,) -> (minibatches, rows)."""
    state = PartialState()
    share = minibatch_size // state.num_processes
    return order.view(-1, state.num_processes, share)[:, state.process_index]


def gather(share: Tensor, minibatch_size: int) -> Tensor:
    """This process's rows of a batch -> the whole batch, in its original order."""
    processes = PartialState().num_processes
    if processes == 1:
        return share
    parts = [torch.empty_like(share) for _ in range(processes)]
    dist.all_gather(parts, share.contiguous())
    rows = minibatch_size // processes
    batch = torch.stack([part.unflatten(0, (-1, rows)) for part in parts], 1)
    return batch.flatten(0, 2)  # (minibatches, processes, rows) -> (batch,)


def add(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all processes."""
    if PartialState().num_processes > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by that of the first process."""
    if PartialState().num_processes > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)

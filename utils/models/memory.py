"""GPU memory: recognise an out-of-memory error, free memory, and continue with smaller batches."""

import gc
from collections.abc import Callable, Sequence

import torch

from utils.course import progress
from utils.course.errors import CourseError
from utils.course.language import tr


def ran_out(error: BaseException) -> bool:
    """Whether an error of torch, cuBLAS or cuDNN means that a GPU's memory does not suffice."""
    words = ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def release() -> None:
    """Free the memory of models that are no longer referenced.

    A trainer and its model refer to each other, so only the garbage collector finds them.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Row numbers in batches of similar length, each of at most `tokens` tokens including padding.

    >>> batches([5, 1, 1, 4], tokens=8)
    [[1, 2], [3], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    found: list[list[int]] = []
    for row in order:  # in ascending length: the last row of a batch is the longest
        if found and (len(found[-1]) + 1) * lengths[row] <= tokens:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def in_batches(
    lengths: Sequence[int], run: Callable[[list[int]], None], tokens: int, what: str
) -> None:
    """Call `run` on the row numbers of each batch; a batch that does not fit is halved.

    A batch size that did not fit is not tried again in this call.
    """
    left, shown = batches(lengths, tokens), progress.bar(what, len(lengths), "row")
    with shown:
        while left:
            rows = left.pop(0)
            try:
                run(rows)
            except Exception as error:
                if not ran_out(error):
                    raise
                if len(rows) == 1:
                    raise CourseError(
                        tr(
                            "{what}: one row of {tokens} tokens does not fit into this GPU's "
                            "memory: free other models, shorten the row, or use a smaller model.",
                            what=tr(what),
                            tokens=lengths[rows[0]],
                        )
                    ) from error
                tokens = max(lengths[row] for row in rows) * (len(rows) // 2)
            else:
                shown.update(len(rows))
                continue
            release()
            pending = [*rows, *(row for batch in left for row in batch)]
            left = [
                [pending[at] for at in batch]
                for batch in batches([lengths[row] for row in pending], tokens)
            ]

"""Batches by tokens, and the handling of a batch that does not fit."""

import pytest
import torch

from utils.course.errors import CourseError
from utils.models import memory


@pytest.mark.parametrize("tokens", [7, 20, 64, 10**6])
def test_batches_hold_every_row_once_and_no_more_tokens_than_allowed(tokens):
    lengths = [3, 9, 1, 1, 7, 20, 4, 4, 2]
    found = memory.batches(lengths, tokens)
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
    for batch in found:
        width = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * width <= tokens
    widths = [max(lengths[row] for row in batch) for batch in found]
    assert widths == sorted(widths)


def scarce(limit: int, lengths: list[int], done: list[list[int]]):
    """Work that does not fit when rows times their width exceed the limit."""

    def run(rows: list[int]) -> None:
        if len(rows) * max(lengths[row] for row in rows) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        done.append(rows)

    return run


def test_a_batch_that_does_not_fit_is_halved_and_every_row_is_done_once():
    lengths, done = [5] * 16 + [9] * 4, []
    memory.in_batches(lengths, scarce(23, lengths, done), tokens=1000, what="answers")
    assert sorted(row for rows in done for row in rows) == list(range(20))
    assert max(len(rows) for rows in done) > 1


def test_a_row_that_never_fits_is_one_sentence():
    lengths = [5, 50]
    with pytest.raises(CourseError, match="answers: one row of 50 tokens does not fit"):
        memory.in_batches(lengths, scarce(20, lengths, []), tokens=1000, what="answers")


def test_other_errors_pass_through():
    def broken(rows: list[int]) -> None:
        raise ValueError("another fault")

    with pytest.raises(ValueError, match="another fault"):
        memory.in_batches([1], broken, tokens=10, what="answers")


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("Expected all tensors to be on the same device"), False),
        (MemoryError(), False),
    ],
)
def test_what_counts_as_running_out(error, verdict):
    assert memory.ran_out(error) is verdict

"""Notebook 03: labels, the size of an adapter, packing."""

from collections.abc import Callable

from utils.course.language import tr
from utils.exercises.checks import Verdict, exercise

_PROMPT, _ANSWER = [7, 8, 9], [4, 5, 2]  # 2 ends the turn


@exercise("03.1")
def _labels(attempt: Callable[[list[int], list[int]], list[int]]) -> Verdict:
    """`attempt(prompt_ids, answer_ids) -> labels` of the whole row."""
    answer = list(attempt(list(_PROMPT), list(_ANSWER)))
    if answer == [-100, -100, -100, 4, 5, 2]:
        return None
    if answer == [*_PROMPT, *_ANSWER]:
        return "the prompt is learned too in yours: its labels must be -100."
    if answer == [-100, -100, -100, 4, 5, -100]:
        return "you mask the token that ends the turn: the model would never stop."
    if answer == [4, 5, 2]:
        return "the labels must go over the whole row: each token of the prompt needs one too."
    if answer == [-100, -100, 4, 5, 2, -100] or answer == [-100, -100, 4, 5, 2]:
        return "do not shift the labels: the model shifts them itself."
    if len(answer) == 6 and answer[3:] == [4, 5, 2] and -100 not in answer[:3]:
        return "the labels of the prompt must have the value -100: cross-entropy skips no other."
    return "for the prompt 7 8 9 and the answer 4 5 2 the labels are -100 -100 -100 4 5 2."


@exercise("03.2")
def _trained(attempt: Callable[[list[tuple[int, int]], int], int]) -> Verdict:
    """`attempt(shapes, rank) -> parameters`."""
    shapes, rank = [(64, 32), (16, 64)], 4
    wanted = 4 * (64 + 32) + 4 * (16 + 64)
    answer = int(attempt(list(shapes), rank))
    if answer == wanted:
        return None
    if answer == 64 * 32 + 16 * 64:
        return "that is the size of the frozen weights: LoRA trains A (r, in) and B (out, r)."
    if answer == wanted // 2 or answer in (4 * (64 + 16), 4 * (32 + 64)):
        return "you counted only one of the two matrices A and B."
    if answer == (64 + 32) + (16 + 64):
        return "the rank is missing: multiply by the rank."
    return tr(
        "weights of 64x32 and 16x64 at rank 4 need {wanted} parameters: yours is {answer}.",
        wanted=wanted,
        answer=answer,
    )


@exercise("03.3")
def _pack(attempt: Callable[[list[int], int], list[list[int]]]) -> Verdict:
    """`attempt(lengths, limit) -> packs` of row numbers."""
    lengths, limit = [4, 8, 1, 4, 2, 1], 10
    packs = [list(pack) for pack in attempt(list(lengths), limit)]
    rows = sorted(row for pack in packs for row in pack)
    if rows != list(range(len(lengths))):
        if 8 in rows or len(rows) != len(set(rows)):
            return "a pack must hold row numbers, not lengths, and each row number once."
        return "every row must be in exactly one pack."
    if any(sum(lengths[row] for row in pack) > limit for pack in packs):
        return tr("one of your packs is longer than the limit of {limit}.", limit=limit)
    if len(packs) == 2:
        if len(list(attempt([2, 3, 1, 9, 5, 4, 6], limit))) == 3:
            return None
        return "the lengths 2 3 1 9 5 4 6 fit into 3 packs of 10: take the longest rows first."
    if packs == [[0], [1, 2], [3, 4, 5]]:
        return "you filled the packs in the order of the rows: take the longest rows first."
    if all(len(pack) == 1 for pack in packs):
        return "every row has a pack of its own: put a row into a pack that still has room."
    return tr("these rows fit into 2 packs of 10, and you need {count} packs.", count=len(packs))

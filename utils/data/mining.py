"""Rejected answers by search: the nearest answers to other questions, with controls.

An answer to another question is fluent and on a close topic, so telling it from the right one
takes reading the question. Three things can spoil such pairs, and each has a control here: the
found answer may be right for this question too, it may be told by its length, and one answer may
serve as the rejected one so often that it is learned as bad whatever the question.
"""

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from utils.course import hub, progress
from utils.course.errors import CourseError
from utils.course.profiles import PairMining
from utils.data.text import duplicate_key, say_longer, segment_all

TF_IDF = "tf-idf"  # the lab's embedding, made here; any other identifier is an encoder's
DIMENSIONS = 4096
# Entries are multiples of 1/4096, rounded down: a product of two unit rows is then a sum of
# multiples of 2 ** -24 up to 1, exact in float32 in whatever order a processor adds them up.
STEPS = 4096
ANY = (-1.0, 1.1)  # a band that every likeness is in
Ranked = list[tuple[int, float]]  # rows and their likeness, the nearest first


@dataclass(frozen=True)
class Controls:
    """What a found answer must satisfy to become a rejected one."""

    candidates: int = 60  # nearest answers looked at for each question
    choices: int = 8  # admissible ones among which the length is balanced
    answer_ceiling: float = 0.4  # likeness to the right answer from which it may be right too
    question_ceiling: float = 0.6  # likeness of the two questions from which they ask the same
    band: tuple[float, float] = (0.0, 1.0)  # hardness wanted: likeness of question and answer
    slack: float = 0.6  # share of the nearest one's likeness that a choice must have
    max_uses: int = 3  # how often one answer may be rejected, while others are left


@dataclass(frozen=True)
class Found:
    """The answer chosen as the rejected one of a row."""

    index: int  # the row whose right answer it is
    similarity: float  # of the question and this answer
    to_chosen: float  # of the right answer and this answer


class MiningError(CourseError, ValueError):
    """Rows for which no rejected answer can be found, with the way out."""


def _features(text: str) -> Counter[str]:
    """Syllables, neighbouring syllables and runs of three letters, marked by their kind."""
    words = duplicate_key(text).split()
    letters = f" {' '.join(words)} "
    found = Counter(f"s {word}" for word in words)
    found.update(f"b {first} {second}" for first, second in pairwise(words))
    found.update(letters[at : at + 3] for at in range(len(letters) - 2))
    return found


def text_vectors(*groups: Sequence[str]) -> list[np.ndarray]:
    """TF-IDF unit rows for each group of texts, features hashed to columns.

    How rare a feature is, is counted over all groups. Similarities of these rows are exact.
    """
    counted = [[_features(text) for text in group] for group in groups]
    documents: Counter[str] = Counter()
    for features in (row for group in counted for row in group):
        documents.update(features.keys())
    total = sum(map(len, groups))
    # rounded to 1/64, so that the last bit of a processor's logarithm does not matter
    rarity = {name: round(64 * math.log(1 + total / n)) for name, n in documents.items()}
    column = {name: zlib.crc32(name.encode()) % DIMENSIONS for name in documents}
    vectors = []
    for group in counted:
        rows = np.zeros((len(group), DIMENSIONS), dtype=np.float32)
        for row, features in zip(rows, group, strict=True):
            weights: Counter[int] = Counter()
            for name, count in features.items():
                weights[column[name]] += min(count, 3) * rarity[name]
            size = math.sqrt(sum(weight * weight for weight in weights.values()))
            for place, weight in weights.items():
                row[place] = math.floor(STEPS * weight / size)
        vectors.append(rows / np.float32(STEPS))
    return vectors


def embed(texts: Sequence[str], settings: PairMining, device: str) -> np.ndarray:
    """Unit rows for texts: TF-IDF in the lab, a Vietnamese sentence encoder elsewhere.

    How rare a feature is, is counted over these texts: give questions and answers together.
    """
    if settings.model_id == TF_IDF:
        return text_vectors(texts)[0]
    from sentence_transformers import SentenceTransformer

    half = {"dtype": "float16"} if device == "cuda" else {}
    folder = str(hub.fetch(settings.model_id))
    encoder = SentenceTransformer(folder, device=device, model_kwargs=half)
    segmented = segment_all(texts)  # it learned from words joined by underscores
    if limit := getattr(encoder, "max_seq_length", None):
        # a token has a byte at least: a short text need not be counted
        counted = [
            len(encoder.tokenizer(text)["input_ids"]) if len(text.encode()) + 2 > limit else 0
            for text in segmented
        ]
        say_longer(counted, limit, "texts")
    rows = encoder.encode(
        segmented,
        batch_size=settings.batch_size,
        convert_to_numpy=True,
        show_progress_bar=progress.live(),
    ).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def check_unit_rows(rows: np.ndarray, what: str) -> None:
    """Stops when a row is not of unit length: its dot products are no cosines.

    A row of nothing but zeros may stay: a text without any letter is like no other.
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    wrong = np.flatnonzero(~((lengths == 0) | (np.abs(lengths - 1) <= 0.02)))
    if len(wrong):
        raise MiningError(
            f"{len(wrong)} of {len(rows)} rows of {what} are not of unit length (row "
            f"{wrong[0] + 1} has {lengths[wrong[0]]:.3g}): divide each row by its length first."
        )


def nearest(
    queries: np.ndarray, documents: np.ndarray, k: int, *, block: int = 512, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest documents of each query by cosine, exact: indices and similarities (n, k).

    Rows must have unit length. Works through blocks of queries, so that memory holds one block
    of similarities at a time; of equal ones the document that stands first wins on a CPU.

    `sentence_transformers.util.semantic_search` does the same. On a CPU it takes two to four times
    as long, and of equal similarities it may return any: the TF-IDF rows have many of these, so
    the mined pairs would no longer be the same everywhere. Importing it takes seven seconds.
    """
    check_unit_rows(queries, "the queries")
    check_unit_rows(documents, "the documents")
    return _search(device)(queries, documents, k, block)


def _search(device: str) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return _nearest_on_gpu if device == "cuda" else _nearest


def _nearest_on_gpu(
    queries: np.ndarray, documents: np.ndarray, k: int, block: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    import torch

    held = torch.from_numpy(documents).to("cuda")
    found = []
    for start in progress.track(range(0, len(queries), block), "search", unit="block"):
        part = torch.from_numpy(queries[start : start + block]).to("cuda")
        found.append([side.cpu().numpy() for side in (part @ held.T).topk(k)])  # (block, k) twice
    similarities, indices = (np.concatenate(side) for side in zip(*found, strict=True))
    return indices, similarities


def _nearest(
    queries: np.ndarray, documents: np.ndarray, k: int, block: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    count = len(documents)
    if not 1 <= k <= count:
        raise ValueError(f"k={k}: choose 1 to {count}, the number of documents.")
    indices = np.empty((len(queries), k), dtype=np.int64)
    similarities = np.empty((len(queries), k), dtype=np.float32)
    held = np.empty((min(block, len(queries)), count), dtype=np.float32)
    # The documents form at least k groups. The best of each group are so many similarities, so
    # the k-th best of these is not above the k-th best of all, and nearly all others are below it.
    groups = min(count, max(8 * k, count // 64))
    for start in range(0, len(queries), block):
        part = queries[start : start + block]
        found = np.matmul(part, documents.T, out=held[: len(part)])  # (block, documents)
        grouped = found[:, : count // groups * groups].reshape(len(part), -1, groups)
        floors = np.partition(grouped.max(axis=1), -k, axis=1)[:, -k]
        for row, (values, floor) in enumerate(zip(found, floors, strict=True), start):
            near = np.flatnonzero(values >= floor)
            order = near[np.argsort(-values[near], kind="stable")[:k]]
            indices[row], similarities[row] = order, values[order]
    return indices, similarities


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.dot(first.astype(np.float64), second.astype(np.float64)))


def mine(
    questions: Sequence[str],
    answers: Sequence[str],
    *,
    facts: Sequence[str | None] | None = None,
    values: Sequence[str | None] | None = None,
    strata: Sequence[str] | None = None,
    vectors: tuple[np.ndarray, np.ndarray] | None = None,
    controls: Controls | None = None,
    device: str = "cpu",
) -> list[Found]:
    """For each question the answer to another one that is to be rejected.

    `facts` and `values`, where known, say which rows ask the same or have the same short answer:
    these are never paired. Where they are not known, the ceilings of `controls` decide. Lengths
    are balanced within each of `strata`. `vectors` are unit rows of the questions and of the
    answers, from any encoder; without them both are made of letters and syllables.
    """
    controls = controls or Controls()
    n = len(questions)
    if n < 2 or len(answers) != n:
        raise MiningError(f"{n} questions and {len(answers)} answers: give at least 2 of each.")
    facts = facts or [None] * n
    values = values or [None] * n
    strata = strata or [""] * n
    asked, answered = vectors or text_vectors(questions, answers)
    check_unit_rows(asked, "the questions")
    check_unit_rows(answered, "the answers")
    keys = [duplicate_key(answer) for answer in answers]
    indices, similarities = _search(device)(asked, answered, min(controls.candidates, n))

    def right_too(row: int, other: int) -> bool:
        """May the other row's answer be right for this row's question?"""
        if row == other or keys[row] == keys[other]:
            return True
        if facts[row] is not None and facts[other] is not None:
            return facts[row] == facts[other] or values[row] == values[other]
        return (
            _cosine(answered[row], answered[other]) >= controls.answer_ceiling
            or _cosine(asked[row], asked[other]) >= controls.question_ceiling
        )

    uses: Counter[str] = Counter()
    longer: defaultdict[str, int] = defaultdict(int)  # chosen longer minus rejected longer

    def fair(row: int, ranked: Ranked, band: tuple[float, float], most: int) -> Ranked:
        """The first few of the ranked answers that satisfy the controls."""
        low, high = band
        return _nearest_few(
            (
                (other, s)
                for other, s in ranked
                if low <= s <= high and uses[keys[other]] < most and not right_too(row, other)
            ),
            controls,
        )

    found: list[Found] = []
    for row in range(n):
        near = list(zip(indices[row].tolist(), similarities[row].tolist(), strict=True))
        choices = fair(row, near, controls.band, controls.max_uses)
        if not choices:  # search them all, and give up the band, then the limit on uses
            every, at = _nearest(asked[row : row + 1], answered, n)
            near = list(zip(every[0].tolist(), at[0].tolist(), strict=True))
            choices = (
                fair(row, near, controls.band, controls.max_uses)
                or fair(row, near, ANY, controls.max_uses)
                or fair(row, near, ANY, n)
            )
        if not choices:
            raise MiningError(
                f"Row {row + 1}: every other answer may be right for {questions[row]!r}: "
                "add rows, or raise the ceilings."
            )
        size = len(answers[row])
        # the nearest that brings the lengths back into balance, else simply the nearest
        want_longer = longer[strata[row]] > 0
        balanced = [c for c in choices if (len(answers[c[0]]) > size) == want_longer]
        index, similarity = (balanced or choices)[0]
        uses[keys[index]] += 1
        longer[strata[row]] += (size > len(answers[index])) - (size < len(answers[index]))
        to_chosen = _cosine(answered[row], answered[index])
        found.append(Found(index, round(similarity, 4), round(to_chosen, 4)))
    return found


def _nearest_few(candidates: Iterable[tuple[int, float]], controls: Controls) -> Ranked:
    """The first candidates, as far as they are about as near as the first."""
    kept: Ranked = []
    for other, similarity in candidates:
        if kept and similarity < controls.slack * kept[0][1]:
            break
        kept.append((other, similarity))
        if len(kept) == controls.choices:
            break
    return kept


def longer_wins(chosen: Sequence[str], rejected: Sequence[str]) -> float:
    """How often a judge that takes the longer answer is right; equal lengths count half.

    >>> longer_wins(["abc", "a", "ab"], ["a", "abc", "cd"])
    0.5
    """
    right = sum(
        (len(c) > len(r)) + (len(c) == len(r)) / 2 for c, r in zip(chosen, rejected, strict=True)
    )
    return right / len(chosen)


def report(
    pairs: Iterable[dict[str, str]],
    *,
    hardness: Sequence[float] = (0.15, 0.35),
    vectors: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> dict[str, float]:
    """What to look at before training on pairs of question, chosen and rejected.

    `hardness` has the two likenesses of question and rejected answer that part easy from medium
    and medium from hard pairs; `vectors` are unit rows of questions, chosen and rejected.
    """
    rows = list(pairs)
    if not rows:
        raise MiningError("No pairs to report on: build some first.")
    questions, chosen, rejected = (
        [row[column] for row in rows] for column in ("question", "chosen", "rejected")
    )
    q, c, r = vectors or text_vectors(questions, chosen, rejected)
    to_rejected = np.einsum("ij,ij->i", q, r)
    to_chosen = np.einsum("ij,ij->i", q, c)
    between = np.einsum("ij,ij->i", c, r)
    repeated = Counter(map(duplicate_key, questions))
    used = Counter(map(duplicate_key, rejected))
    easy, hard = hardness
    said: dict[str, float] = {
        "pairs": len(rows),
        "repeated_questions": sum(count - 1 for count in repeated.values()),
        "chosen_equals_rejected": sum(
            duplicate_key(a) == duplicate_key(b) for a, b in zip(chosen, rejected, strict=True)
        ),
        "most_used_rejected": max(used.values()),
        "longer_wins": longer_wins(chosen, rejected),
        "nearer_wins": float(np.mean((to_chosen > to_rejected) + (to_chosen == to_rejected) / 2)),
        "mean_length_chosen": float(np.mean([len(text) for text in chosen])),
        "mean_length_rejected": float(np.mean([len(text) for text in rejected])),
        "easy": float(np.mean(to_rejected < easy)),
        "medium": float(np.mean((to_rejected >= easy) & (to_rejected < hard))),
        "hard": float(np.mean(to_rejected >= hard)),
    }
    for name, likeness in (("question_rejected", to_rejected), ("chosen_rejected", between)):
        for percent in (5, 50, 95):
            said[f"{name}_p{percent}"] = float(np.percentile(likeness, percent))
    return {name: round(value, 4) for name, value in said.items()}

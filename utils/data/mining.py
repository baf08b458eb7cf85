"""Rejected answers by search: the nearest answers to other questions, with controls.

An answer to another question is fluent and on a close topic, so a model must read the question to
tell it from the right answer. Three things can spoil such pairs, and each has a control here. The
found answer may be right for this question too. Its length may give it away. One answer may be
the rejected one so often that the model learns it as bad for every question.
"""

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from utils.course import hub, progress
from utils.course.errors import CourseError, SettingError
from utils.course.language import tr
from utils.course.profiles import PairMining
from utils.data.text import duplicate_key, say_longer, segment_all

TF_IDF = "tf-idf"  # the lab's embedding, computed here; any other identifier names an encoder
DIMENSIONS = 4096
# Entries are multiples of 1/4096, rounded down. A product of two unit rows is then a sum of
# multiples of 2 ** -24 up to 1, which is exact in float32 for every order of summation.
STEPS = 4096
ANY = (-1.0, 1.1)  # a band that contains every similarity
Ranked = list[tuple[int, float]]  # rows and their similarity, the nearest first


@dataclass(frozen=True)
class Controls:
    """The conditions on a found answer for becoming a rejected one."""

    candidates: int = 60  # number of nearest answers examined for each question
    choices: int = 8  # number of admissible answers among which the length is balanced
    answer_ceiling: float = 0.4  # similarity to the right answer; from here it may be right too
    question_ceiling: float = 0.6  # similarity of the questions; from here they may ask the same
    band: tuple[float, float] = (0.0, 1.0)  # hardness: allowed similarity of question and answer
    slack: float = 0.6  # smallest similarity of a choice, as a share of the nearest one's
    max_uses: int = 3  # how often one answer may be rejected while other answers are left


@dataclass(frozen=True)
class Found:
    """The answer that becomes the rejected one of a row."""

    index: int  # the row whose right answer it is
    similarity: float  # similarity of the question and this answer
    to_chosen: float  # similarity of the right answer and this answer


class MiningError(CourseError, ValueError):
    """Rows for which no rejected answer can be found; the message names what to do."""


def _features(text: str) -> Counter[str]:
    """Counts of syllables, pairs of neighbouring syllables and letter trigrams."""
    words = duplicate_key(text).split()
    letters = f" {' '.join(words)} "
    found = Counter(f"s {word}" for word in words)
    found.update(f"b {first} {second}" for first, second in pairwise(words))
    found.update(letters[at : at + 3] for at in range(len(letters) - 2))
    return found


def text_vectors(*groups: Sequence[str]) -> list[np.ndarray]:
    """TF-IDF rows of unit length for each group of texts, features hashed to columns.

    Document frequencies are counted over all groups. Similarities of these rows are exact.
    """
    counted = [[_features(text) for text in group] for group in groups]
    documents: Counter[str] = Counter()
    for features in (row for group in counted for row in group):
        documents.update(features.keys())
    total = sum(map(len, groups))
    # rounded to 1/64, so that processors whose logarithms differ in the last bit agree
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
            for index, weight in weights.items():
                row[index] = math.floor(STEPS * weight / size)
        vectors.append(rows / np.float32(STEPS))
    return vectors


def embed(texts: Sequence[str], settings: PairMining, device: str) -> np.ndarray:
    """Rows of unit length for texts: TF-IDF in the lab, a Vietnamese sentence encoder elsewhere.

    Document frequencies are counted over these texts, so give questions and answers together.
    """
    if settings.model_id == TF_IDF:
        return text_vectors(texts)[0]
    from sentence_transformers import SentenceTransformer

    half = {"dtype": "float16"} if device == "cuda" else {}
    folder = str(hub.fetch(settings.model_id))
    encoder = SentenceTransformer(folder, device=device, model_kwargs=half)
    segmented = segment_all(texts)  # the encoder was trained on segmented words
    if limit := getattr(encoder, "max_seq_length", None):
        # a token has at least one byte, so the tokens of a short text need not be counted
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
    """Raise an error if a row is not of unit length, because its dot products are not cosines.

    A row of zeros is allowed: it belongs to a text without letters, which is similar to no other.
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    wrong = np.flatnonzero(~((lengths == 0) | (np.abs(lengths - 1) <= 0.02)))
    if len(wrong):
        raise MiningError(
            tr(
                "{count} of {total} rows of {what} are not of unit length (row {row} has "
                "{length:.3g}): divide each row by its length first.",
                count=len(wrong),
                total=len(rows),
                what=tr(what),
                row=wrong[0] + 1,
                length=lengths[wrong[0]],
            )
        )


def nearest(
    queries: np.ndarray, documents: np.ndarray, k: int, *, block: int = 512, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest documents of each query by cosine, exact: indices and similarities (n, k).

    Rows must have unit length. The search works on one block of queries at a time, so that memory
    holds the similarities of one block. On a CPU the first document wins among equal similarities.

    `sentence_transformers.util.semantic_search` does the same, but on a CPU it is two to four
    times slower, and it may return any of several equal similarities. The TF-IDF rows have many of
    these, so the mined pairs would differ between machines. Importing it takes seven seconds.
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
        raise SettingError(
            tr(
                "k={k} is not possible: choose 1 to {count}, the number of documents.",
                k=k,
                count=count,
            )
        )
    indices = np.empty((len(queries), k), dtype=np.int64)
    similarities = np.empty((len(queries), k), dtype=np.float32)
    held = np.empty((min(block, len(queries)), count), dtype=np.float32)
    # The documents form at least k groups. The k-th largest of the groups' maxima is at most the
    # k-th largest similarity of all documents, so it is a floor that leaves few candidates.
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
    """For each question, find the answer to another question that becomes its rejected answer.

    Two rows with the same entry in `facts` ask the same, and two rows with the same entry in
    `values` have the same short answer: they are never paired. Where the facts are unknown, the
    ceilings of `controls` decide. Lengths are balanced within each of `strata`. `vectors` are rows
    of unit length for the questions and the answers, from any encoder; the default is TF-IDF.
    """
    controls = controls or Controls()
    n = len(questions)
    if n < 2 or len(answers) != n:
        raise MiningError(
            tr(
                "There are {questions} questions and {answers} answers: give equally many, at "
                "least 2.",
                questions=n,
                answers=len(answers),
            )
        )
    facts = facts or [None] * n
    values = values or [None] * n
    strata = strata or [""] * n
    asked, answered = vectors or text_vectors(questions, answers)
    check_unit_rows(asked, "the questions")
    check_unit_rows(answered, "the answers")
    keys = [duplicate_key(answer) for answer in answers]
    indices, similarities = _search(device)(asked, answered, min(controls.candidates, n))

    def right_too(row: int, other: int) -> bool:
        """Whether the other row's answer may be right for this row's question."""
        if row == other or keys[row] == keys[other]:
            return True
        if facts[row] is not None and facts[other] is not None:
            same_value = values[row] is not None and values[row] == values[other]
            return facts[row] == facts[other] or same_value
        return (
            _cosine(answered[row], answered[other]) >= controls.answer_ceiling
            or _cosine(asked[row], asked[other]) >= controls.question_ceiling
        )

    uses: Counter[str] = Counter()
    # per stratum: rows whose chosen answer is longer minus rows whose rejected answer is longer
    longer: defaultdict[str, int] = defaultdict(int)

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
        if not choices:  # search all answers, then drop the band, then the limit on uses
            every, at = _nearest(asked[row : row + 1], answered, n)
            near = list(zip(every[0].tolist(), at[0].tolist(), strict=True))
            choices = (
                fair(row, near, controls.band, controls.max_uses)
                or fair(row, near, ANY, controls.max_uses)
                or fair(row, near, ANY, n)
            )
        if not choices:
            raise MiningError(
                tr(
                    "Row {row}: every other answer may be right for {question!r}: add rows, or "
                    "raise the ceilings.",
                    row=row + 1,
                    question=questions[row],
                )
            )
        size = len(answers[row])
        # take the nearest answer that improves the balance of lengths, else the nearest answer
        want_longer = longer[strata[row]] > 0
        balanced = [c for c in choices if (len(answers[c[0]]) > size) == want_longer]
        index, similarity = (balanced or choices)[0]
        uses[keys[index]] += 1
        longer[strata[row]] += (size > len(answers[index])) - (size < len(answers[index]))
        to_chosen = _cosine(answered[row], answered[index])
        found.append(Found(index, round(similarity, 4), round(to_chosen, 4)))
    return found


def _nearest_few(candidates: Iterable[tuple[int, float]], controls: Controls) -> Ranked:
    """The first candidates, up to the first one that is much less similar than the nearest."""
    kept: Ranked = []
    for other, similarity in candidates:
        if kept and similarity < controls.slack * kept[0][1]:
            break
        kept.append((other, similarity))
        if len(kept) == controls.choices:
            break
    return kept


def longer_wins(chosen: Sequence[str], rejected: Sequence[str]) -> float:
    """The accuracy of a judge that prefers the longer answer; equal lengths count half.

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
    """Figures to check before training on pairs of question, chosen and rejected.

    `hardness` has two similarities of question and rejected answer: the borders between easy and
    medium pairs and between medium and hard pairs. `vectors` are rows of unit length for
    questions, chosen and rejected answers.
    """
    rows = list(pairs)
    if not rows:
        raise MiningError(tr("There are no pairs to report on: build some first."))
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
    figures: dict[str, float] = {
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
    for name, similarities in (("question_rejected", to_rejected), ("chosen_rejected", between)):
        for percent in (5, 50, 95):
            figures[f"{name}_p{percent}"] = float(np.percentile(similarities, percent))
    return {name: round(value, 4) for name, value in figures.items()}

"""Pairs of answers to vote on: their identity, their order on the screen, and their files."""

import hashlib
import json
import random
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.course.errors import CourseError
from utils.course.language import tr
from utils.votes.files import write_whole

Pair = Mapping[str, str]  # question, first, second; model_first and model_second if known
TEXTS = ("question", "first", "second")
FIELDS = (*TEXTS, "model_first", "model_second")
MAX_NAME = 80  # characters of a campaign's name, and of a name in the panel


class PairError(CourseError, ValueError):
    """Pairs that nobody can vote on, or a file that does not contain pairs."""


def storable(text: str) -> str:
    """The text with U+FFFD for what SQL or UTF-8 cannot store: NUL and lone surrogates.

    >>> storable("trăng\\x00 sao")
    'trăng\\ufffd sao'
    """
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\x00", "\ufffd")


def clean(pair: Pair) -> dict[str, str]:
    """The five fields of a pair as the store keeps them; an unknown maker is ""."""
    return {name: storable(pair.get(name) or "") for name in FIELDS}


def item_of(pair: Pair) -> str:
    """The identity of a pair: a hash of the question, of both answers and of their makers.

    Two rounds, two machines and two classmates get the same item only for the same pair.

    >>> item_of({"question": "Vì sao?", "first": "Do biển.", "second": "Do tán xạ."})
    'fe6c28cd0d23deda'
    """
    fields = clean(pair)
    content = json.dumps([fields[name] for name in FIELDS], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Raise an error if a pair has no question or answer, or if a pair occurs twice."""
    for number, pair in enumerate(pairs):
        if missing := [name for name in TEXTS if not isinstance(pair.get(name), str)]:
            raise PairError(
                tr(
                    "Pair {number} has {found} and no {missing}: a pair is a dict with question, "
                    "first and second.",
                    number=number,
                    found=", ".join(pair),
                    missing=missing[0],
                )
            )
    item, times = Counter(map(item_of, pairs)).most_common(1)[0] if pairs else ("", 1)
    if times > 1:
        number = [item_of(pair) for pair in pairs].index(item)
        raise PairError(
            tr(
                "Pair {number} occurs {times} times: remove the repetitions.",
                number=number,
                times=times,
            )
        )


def tidy(name: str) -> str:
    """A name in NFC with single spaces, so that two keyboards write the same one."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def campaign_name(name: str) -> str:
    """A campaign's name in one form: tidy, and not empty or too long."""
    short = tidy(storable(name[: 4 * MAX_NAME]))
    if not short or len(short) > MAX_NAME or len(name) > 4 * MAX_NAME:
        raise PairError(
            tr(
                "A campaign's name has 1 to {most} characters, and this one has {found}: choose "
                "another name.",
                most=MAX_NAME,
                found=len(name),
            )
        )
    return short


# --- What is shown, in which order ---------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """One pair as it is shown on the screen."""

    item: str
    question: str
    answer_a: str  # on the left
    answer_b: str  # on the right
    model_a: str
    model_b: str
    swapped: bool  # whether the pair's second answer is A


def shown(pair: Pair, swapped: bool) -> Shown:
    """The pair on the screen; with `swapped`, the second answer stands on the left."""
    fields, sides = clean(pair), ("second", "first") if swapped else ("first", "second")
    texts = [fields[side] for side in sides]
    models = [fields[f"model_{side}"] for side in sides]
    return Shown(item_of(pair), fields["question"], *texts, *models, swapped)


def pair_of(screen: Shown) -> dict[str, str]:
    """The pair that a screen (or a vote) shows: the inverse of `shown`."""
    sides = ("b", "a") if screen.swapped else ("a", "b")
    texts = [getattr(screen, f"{kind}_{side}") for kind in ("answer", "model") for side in sides]
    return dict(zip(FIELDS, (screen.question, *texts), strict=True))


def queue(pairs: Sequence[Pair], seed: int = 0, repeat_share: float = 0.1) -> list[Shown]:
    """All pairs with sides drawn by seed and item, then a share of them again with swapped sides.

    The same seed gives the same queue, so a restart continues where it stopped.
    """
    check_pairs(pairs)
    sides = [random.Random(f"{seed} {item_of(pair)}").random() < 0.5 for pair in pairs]
    drawn = random.Random(f"{seed} again").sample(
        range(len(pairs)), round(repeat_share * len(pairs))
    )
    return [shown(pair, side) for pair, side in zip(pairs, sides, strict=True)] + [
        shown(pairs[number], not sides[number]) for number in drawn
    ]


# --- Files ---------------------------------------------------------------------------------------


def write_pairs(path: str | Path, campaign: str, pairs: Sequence[Pair]) -> int:
    """Write a campaign's name and pairs as JSON, for another machine or another class."""
    check_pairs(pairs)
    content = {"campaign": campaign_name(campaign), "pairs": [clean(pair) for pair in pairs]}
    write_whole(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return len(pairs)


def read_pairs(path: str | Path) -> tuple[str, list[dict[str, str]]]:
    """The campaign's name and the pairs of a file that `write_pairs` wrote."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        pairs = [dict(pair) for pair in content["pairs"]]
        name = campaign_name(str(content["campaign"]))
    except OSError as error:
        raise PairError(
            tr(
                "{file} cannot be read ({reason}): check its path.",
                file=path.name,
                reason=error.strerror,
            )
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, PairError):
            raise
        raise PairError(
            tr(
                "{file} is not a file of pairs: write one with write_pairs, or as JSON with "
                '"campaign" and "pairs".',
                file=path.name,
            )
        ) from None
    check_pairs(pairs)
    return name, [clean(pair) for pair in pairs]

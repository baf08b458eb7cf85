"""From text to a number: the sentiment classifier as the reward of the course."""

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PhobertTokenizer, PreTrainedModel

from utils.course import hub
from utils.course.errors import SettingError
from utils.course.language import tr
from utils.course.profiles import RewardModel
from utils.data.feedback import NEGATIVE, SENTIMENTS
from utils.data.text import segment_all
from utils.models import standins
from utils.models.language import STAND_IN
from utils.models.lengths import Say, cut

PHOBERT_V2 = "vinai/phobert-base-v2"
KINDS = ("logit", "capped", "probability", "log_odds")


def encode(
    tokenizer: object, texts: Sequence[str], max_length: int, *, say: Say = print
) -> dict[str, list]:
    """Token ids of the segmented texts; training, evaluation and reward all use this function.

    Texts of more than `max_length` tokens are cut, and one line reports how many.
    """
    ids = tokenizer(segment_all(texts))["input_ids"]
    ids = cut(ids, max_length, "sentences", end=tokenizer.eos_token_id, say=say)
    return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}


def classify(
    model: torch.nn.Module,
    tokenizer: object,
    texts: Sequence[str],
    *,
    max_length: int,
    batch_size: int = 128,
    say: Say = print,
) -> torch.Tensor:
    """Logits (texts, 3) on the CPU; texts of similar length share a batch."""
    encoded = encode(tokenizer, texts, max_length, say=say)["input_ids"]
    order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))
    logits = torch.zeros(len(encoded), len(SENTIMENTS))
    model.eval()
    with torch.inference_mode():
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            batch = tokenizer.pad({"input_ids": [encoded[r] for r in rows]}, return_tensors="pt")
            logits[rows] = model(**batch.to(model.device)).logits.float().cpu()
    return logits


def negative_reward(
    logits: torch.Tensor, kind: str = "logit", cap: float | None = None
) -> torch.Tensor:
    """The reward of the course: r = z_negative if the class is negative, else 0.

    `capped` limits z from above. `probability` is p(negative), and `log_odds` is
    ln p(negative) - ln(1 - p(negative)), both for every class. Only these two stay the same when a
    number is added to all three logits, which changes no probability.

    >>> negative_reward(torch.tensor([[2.0, 0.1, -1.0], [0.2, 0.1, 3.0]]))
    tensor([2., 0.])
    """
    if kind not in KINDS:
        raise SettingError(
            tr(
                "Reward kind {kind!r} does not exist: choose {known}.",
                kind=kind,
                known=", ".join(KINDS),
            )
        )
    if kind == "probability":
        return logits.softmax(-1)[:, NEGATIVE]
    if kind == "log_odds":
        others = [code for code in range(len(SENTIMENTS)) if code != NEGATIVE]
        return logits[:, NEGATIVE] - logits[:, others].logsumexp(-1)
    z = logits[:, NEGATIVE]
    if kind == "capped":
        if cap is None:
            raise SettingError(tr("Reward kind 'capped' needs a cap, for instance cap=4.0."))
        z = z.clamp(max=cap)
    return torch.where(logits.argmax(-1) == NEGATIVE, z, torch.zeros_like(z))


class SentimentReward:
    """`reward(texts) -> tensor`: segments and tokenises the texts itself, then scores them.

    The line about cut texts is printed only once, because a training calls it hundreds of times.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: object,
        *,
        max_length: int,
        kind: str = "logit",
        cap: float | None = None,
        batch_size: int = 128,
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_length, self.kind, self.cap = max_length, kind, cap
        self.batch_size, self.has_reported = batch_size, False

    @classmethod
    def load(
        cls, folder: Path, device: str = "cpu", kind: str = "logit", cap: float | None = None
    ) -> "SentimentReward":
        """Load the reward that notebook 01 handed over."""
        settings = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
        model = AutoModelForSequenceClassification.from_pretrained(folder / "model").to(device)
        tokenizer = PhobertTokenizer.from_pretrained(folder / "model")
        return cls(model, tokenizer, max_length=settings["max_length"], kind=kind, cap=cap)

    def save(self, folder: Path) -> None:
        """Save the weights, the tokenizer and the maximum length of the training."""
        self.model.save_pretrained(folder / "model")
        self.tokenizer.save_pretrained(folder / "model")
        text = json.dumps({"max_length": self.max_length}) + "\n"
        (folder / "reward.json").write_text(text, encoding="utf-8")

    def logits(self, texts: Sequence[str]) -> torch.Tensor:
        """Logits (texts, 3)."""
        return classify(
            self.model,
            self.tokenizer,
            texts,
            max_length=self.max_length,
            batch_size=self.batch_size,
            say=self._say_once,
        )

    def _say_once(self, sentence: str) -> None:
        if not self.has_reported:
            print(tr("The reward: {sentence} Later cuts are not reported.", sentence=sentence))
        self.has_reported = True

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """One reward per text."""
        return negative_reward(self.logits(texts), self.kind, self.cap)

    def negative(self, texts: Sequence[str]) -> torch.Tensor:
        """Whether each text's class is negative; the sign of the reward does not say it."""
        return self.logits(texts).argmax(-1) == NEGATIVE


# --- Before training ---------------------------------------------------------------------------


def sentiment_classifier(
    settings: RewardModel, texts: Sequence[str], device: str
) -> tuple[PreTrainedModel, PhobertTokenizer]:
    """A new 3-class head on PhoBERT, or on a stand-in whose vocabulary is made from `texts`."""
    source = settings.model_id
    if source == STAND_IN:
        source = standins.phobert(texts)
    elif os.environ.get("COURSE_PHOBERT", "").lower() == "v2":
        source = PHOBERT_V2
        print(
            tr(
                "{model} is under AGPL-3.0: a service that uses it must offer its source code.",
                model=PHOBERT_V2,
            )
        )
    if settings.model_id != STAND_IN:
        source = hub.fetch(source)
    tokenizer = PhobertTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(
        source,
        dtype=torch.float32,
        num_labels=len(SENTIMENTS),
        id2label=dict(enumerate(SENTIMENTS)),
        label2id={name: code for code, name in enumerate(SENTIMENTS)},
    )
    return model.to(device), tokenizer


class WordDropout:
    """A transform for `dataset.with_transform`: replaces random tokens by <mask>, anew each epoch.

    It uses Python's own random generator, whose state is saved in the Trainer's checkpoints.
    """

    def __init__(self, tokenizer: PhobertTokenizer, share: float) -> None:
        self.mask, self.special = tokenizer.mask_token_id, set(tokenizer.all_special_ids)
        self.share = share

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        """The same rows with some tokens masked, but never <s>, </s> or padding."""

        def hide(token: int) -> int:
            drawn = random.random() < self.share
            return self.mask if drawn and token not in self.special else token

        return {**rows, "input_ids": [[hide(token) for token in ids] for ids in rows["input_ids"]]}

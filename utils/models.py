"""Load models and tokenizers the way the profile asks."""

import os
import random
from collections.abc import Sequence

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PhobertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from utils import standins
from utils.data import SENTIMENTS
from utils.profiles import Policy, RewardModel

STAND_IN = "stand-in"
PHOBERT_V2 = "vinai/phobert-base-v2"


def sentiment_classifier(
    settings: RewardModel, texts: Sequence[str], device: str
) -> tuple[PreTrainedModel, PhobertTokenizer]:
    """A fresh three-class head on PhoBERT, or on the stand-in whose words come from `texts`."""
    source = settings.model_id
    if source == STAND_IN:
        source = standins.phobert(texts)
    elif os.environ.get("COURSE_PHOBERT", "").lower() == "v2":
        source = PHOBERT_V2
        print(
            f"{PHOBERT_V2} is under AGPL-3.0: who serves it must offer the source of the service."
        )
    tokenizer = PhobertTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(
        source,
        dtype=torch.float32,
        num_labels=len(SENTIMENTS),
        id2label=dict(enumerate(SENTIMENTS)),
        label2id={name: code for code, name in enumerate(SENTIMENTS)},
    )
    return model.to(device), tokenizer


def language_model(
    settings: Policy, texts: Sequence[str], device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy before training: GPT-2 from the Hub, or the stand-in that knows no word yet.

    COURSE_POLICY names another causal language model, for instance `gpt2`.
    """
    source = os.environ.get("COURSE_POLICY") or settings.model_id
    if source == STAND_IN:
        source = standins.gpt2(texts)
    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.to(device), tokenizer


class WordDropout:
    """A transform for `dataset.with_transform`: hides tokens behind <mask>, anew each epoch."""

    def __init__(self, tokenizer: PhobertTokenizer, share: float, seed: int) -> None:
        self.mask, self.special = tokenizer.mask_token_id, set(tokenizer.all_special_ids)
        self.share, self.generator = share, random.Random(seed)

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        """The same rows with some tokens hidden; <s>, </s> and padding never."""

        def hide(token: int) -> int:
            drawn = self.generator.random() < self.share
            return self.mask if drawn and token not in self.special else token

        return {**rows, "input_ids": [[hide(token) for token in ids] for ids in rows["input_ids"]]}

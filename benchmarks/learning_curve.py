"""Accuracy over the number of training sentences, for notebook 01. Writes learning_curve.json.

    OMP_NUM_THREADS=1 python benchmarks/learning_curve.py

Two models are trained on nested parts of the shipped feedback and scored on its whole test split:
the lab's stand-in, whose weights are random before the training, and TF-IDF with logistic
regression. Each seed draws its own order of the sentences and its own weights. The stand-in learns
its vocabulary and its word vectors from the same part. It has the profile's epochs, but at least
`MIN_STEPS` steps, so that small parts are not trained too briefly. No epoch is selected.
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
import transformers
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch.nn.functional import cross_entropy

from utils.course.profiles import TABLE, RewardModel
from utils.data import fingerprint, load_feedback
from utils.judge import accuracy, macro_f1
from utils.models import WordDropout, classify, encode, sentiment_classifier

SIZES = (500, 1000, 2000, 4000, None)  # None: all rows of train
SEEDS = (0, 1, 2)
MIN_STEPS = 300
NAMES = {"stand-in": "stand-in", "linear": "TF-IDF + logistic regression"}
Rows = tuple[list[str], list[int]]


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """One epoch: random batches of rows of similar length, so that little is padding."""
    order = random.sample(range(len(lengths)), len(lengths))
    chunk = 50 * size
    ordered: list[int] = []
    for first in range(0, len(order), chunk):
        ordered += sorted(order[first : first + chunk], key=lambda row: lengths[row])
    epoch = [ordered[first : first + size] for first in range(0, len(ordered), size)]
    return random.sample(epoch, len(epoch))


def train_stand_in(train: Rows, test: Rows, settings: RewardModel, seed: int) -> np.ndarray:
    """Train the stand-in with the notebook's loss and schedule; return its classes for test."""
    texts, labels = train[0], torch.tensor(train[1])
    torch.manual_seed(seed)
    random.seed(seed)
    model, tokenizer = sentiment_classifier(settings, texts, "cpu")
    hide = WordDropout(tokenizer, settings.word_dropout)
    ids = encode(tokenizer, texts, settings.max_length, say=lambda _: None)["input_ids"]
    counts = torch.bincount(labels, minlength=3).clamp(min=1)
    weights = (len(labels) / counts) ** settings.class_weight_exponent
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=0.05, fused=True
    )
    per_epoch = -(-len(ids) // settings.batch_size)
    steps = max(MIN_STEPS, round(settings.epochs * per_epoch))
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    done = 0
    while done < steps:
        for rows in batches([len(row) for row in ids], settings.batch_size)[: steps - done]:
            hidden = hide({"input_ids": [ids[row] for row in rows]})
            logits = model(**tokenizer.pad(hidden, return_tensors="pt")).logits
            loss = (1 - settings.label_smoothing) * cross_entropy(logits, labels[rows], weights)
            loss = loss - settings.label_smoothing * logits.log_softmax(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
    logits = classify(model, tokenizer, test[0], max_length=settings.max_length, say=lambda _: None)
    return logits.argmax(-1).numpy()


def train_linear(train: Rows, test: Rows) -> np.ndarray:
    """Train the notebook's baseline; return its classes for test."""
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
    model = make_pipeline(vectors, LogisticRegression(C=10, max_iter=2000))
    return model.fit(*train).predict(test[0])


def measure(
    train: Rows, test: Rows, settings: RewardModel, sizes: Sequence[int | None], seeds: Sequence
) -> list[dict[str, object]]:
    """One row per model, size and seed: accuracy and macro F1 on test."""
    truth, found = np.array(test[1]), []
    for seed in seeds:
        order = np.random.RandomState(seed).permutation(len(train[0]))
        for size in sizes:
            drawn = order[:size]
            part = [train[0][row] for row in drawn], [train[1][row] for row in drawn]
            predicted = {
                NAMES["stand-in"]: train_stand_in(part, test, settings, seed),
                NAMES["linear"]: train_linear(part, test),
            }
            for name, guess in predicted.items():
                row = {"model": name, "rows": len(drawn), "seed": seed}
                row["accuracy"] = round(accuracy(truth, guess), 4)
                row["macro_f1"] = round(macro_f1(truth, guess), 4)
                found.append(row)
                print(row, flush=True)
    return found


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rows, to check that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    data = load_feedback(offline=True)
    train, test = (
        (list(data[s]["sentence"]), list(data[s]["sentiment"])) for s in ("train", "test")
    )
    settings = TABLE["lab"].reward_model
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:  # the stand-ins of the parts are not kept
        os.environ["COURSE_CACHE"] = cache
        sizes, seeds = ((60, 120), (0,)) if arguments.quick else (SIZES, SEEDS)
        rows = measure(train, test, settings, sizes, seeds)
    report = {
        "data": fingerprint(data),
        "test_rows": len(test[0]),
        "settings": {
            "batch_size": settings.batch_size,
            "epochs": settings.epochs,
            "learning_rate": settings.learning_rate,
            "least_steps": MIN_STEPS,
        },
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

"""The benchmark of notebook 01's learning curve, at a small size."""

import json
import random
from dataclasses import replace

import pytest

from benchmarks import learning_curve as benchmark
from utils.course.paths import ROOT
from utils.course.profiles import TABLE

SETTINGS = TABLE["lab"].reward_model


def test_an_epoch_has_every_row_once_and_little_padding():
    random.seed(0)
    lengths = [random.randint(3, 60) for _ in range(1000)]
    epoch = benchmark.batches(lengths, 32)
    assert sorted(row for batch in epoch for row in batch) == list(range(1000))
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in epoch)
    assert padded < 1.1 * sum(lengths)


def test_both_models_are_scored_on_each_part(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "MIN_STEPS", 3)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    rows = [
        "thầy dạy rất hay .",
        "không có ý kiến .",
        "phòng học quá nóng .",
        "cô rất tận tâm .",
    ] * 8
    data = rows, [2, 1, 0, 2] * 8
    found = benchmark.measure(data, data, replace(SETTINGS, epochs=1), (16, None), (0,))
    models = set(benchmark.NAMES.values())
    assert {(row["model"], row["rows"]) for row in found} == {
        (m, n) for m in models for n in (16, 32)
    }
    linear = [row for row in found if row["model"] == benchmark.NAMES["linear"]]
    assert linear[-1]["accuracy"] == 1.0  # it was trained on the same rows


def test_the_committed_run_is_of_todays_settings():
    path = ROOT / "benchmarks" / "learning_curve.json"
    committed = json.loads(path.read_text(encoding="utf-8"))
    for name in ("batch_size", "epochs", "learning_rate"):
        assert committed["settings"][name] == pytest.approx(getattr(SETTINGS, name))
    seeds = {row["seed"] for row in committed["rows"]}
    assert len(committed["rows"]) == len(seeds) * len(benchmark.SIZES) * len(benchmark.NAMES)

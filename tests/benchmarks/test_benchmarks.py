"""The committed results of the benchmarks say what their issue asks for."""

import json

import pytest

from benchmarks import determinism
from utils.course.paths import ROOT

FOLDER = ROOT / "benchmarks"


def test_ppo_speed():
    found = json.loads((FOLDER / "ppo.json").read_text(encoding="utf-8"))
    assert len(found["sizes"]) >= 3
    for size in found["sizes"]:
        speeds = [size[f"{who}_episodes_per_second"] for who in ("ours", "trl", "naive")]
        assert min(speeds) > 0
        assert size["ratio_to_trl"] >= 2
        assert size["ratio_to_naive"] > 1
        assert size["ours_peak_mb"] < size["trl_peak_mb"]


def test_ppo_quality():
    found = json.loads((FOLDER / "ppo_quality.json").read_text(encoding="utf-8"))
    assert len({run["seed"] for run in found["runs"]}) >= 3
    for run in found["runs"]:
        assert run["KL"] >= run["least KL"]
        assert run["negative (judge)"] > found["before"]["negative (judge)"]


def test_training_speed_against_the_original_settings():
    for name, wanted in (("sft", 2.0), ("dpo", 1.5)):
        found = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["lab"]
        assert found["ratio_to_original"] >= wanted, name
        losses = [found[way]["held_out_loss"] for way in ("ours", "original")]
        assert abs(losses[0] / losses[1] - 1) < 0.02, name
        assert found["ours"]["peak_mb"] < found["original"]["peak_mb"]


def test_the_determinism_report_finds_what_differs_and_leaves_clocks_alone(tmp_path):
    for folder, kl in (("a", 1.5), ("b", 1.75)):
        for notebook in ("04_x", "04_x.former"):
            place = tmp_path / folder / notebook
            place.mkdir(parents=True)
            metrics = {"kl": kl, "win_rate": 0.5, "train_seconds": kl, "profile": "lab"}
            (place / "metrics.json").write_text(json.dumps(metrics))
    found = determinism.compare(tmp_path / "a", tmp_path / "b")
    assert found == {"04_x": {"figures": 2, "differ": {"kl": [1.5, 1.75]}}}
    with pytest.raises(SystemExit, match="run both first"):
        determinism.compare(tmp_path / "a", tmp_path / "none")


def test_same_seed_same_figures():
    """Two runs of the course, recorded."""
    found = json.loads((FOLDER / "determinism.json").read_text(encoding="utf-8"))["notebooks"]
    assert len(found) == 9
    assert all(not each["differ"] for each in found.values())

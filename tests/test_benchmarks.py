"""The committed results of the benchmarks say what their issue asks for."""

import json

from utils.notebooks import ROOT

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

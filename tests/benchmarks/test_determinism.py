"""The comparison of two runs of the course with the same seed."""

import json

import pytest

from benchmarks import determinism


def test_the_report_finds_what_differs_and_leaves_clocks_alone(tmp_path):
    for folder, kl in (("a", 1.5), ("b", 1.75)):
        for notebook in ("04_x", "04_x.former"):
            target = tmp_path / folder / notebook
            target.mkdir(parents=True)
            metrics = {"kl": kl, "win_rate": 0.5, "train_seconds": kl, "profile": "lab"}
            (target / "metrics.json").write_text(json.dumps(metrics))
    found = determinism.compare(tmp_path / "a", tmp_path / "b")
    assert found == {"04_x": {"figures": 2, "differ": {"kl": [1.5, 1.75]}}}
    with pytest.raises(SystemExit, match="run both first"):
        determinism.compare(tmp_path / "a", tmp_path / "none")

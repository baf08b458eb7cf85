"""The benchmark of the search for the nearest answers, at a small size."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from benchmarks import mining as benchmark
from utils.course.paths import ROOT

SIZE = benchmark.Size(
    4000, 64, candidates=4, block=512, naive_rows=20, part=1024, rounds=2, peak_side=256
)


@pytest.fixture(scope="module")
def committed():
    path = ROOT / "benchmarks" / "mining.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_tiny_run_measures_what_the_committed_one_did(committed):
    found = benchmark.measure(SIZE)
    assert set(found) == set(committed) - {"machine", "versions"}
    assert found["same_as_naive"] == 1
    assert found["seconds"] <= found["slowest_seconds"]
    assert found["gflops"] == pytest.approx(2 * 4000**2 * 64 / found["seconds"] / 1e9, rel=0.5)
    assert found["whole_matrix_mb"] == round(4000 * 4000 * 4 / 2**20, 1)


def test_the_row_by_row_loop_is_the_sorted_whole():
    queries, documents = benchmark.unit_rows(6, 8, 0), benchmark.unit_rows(40, 8, 1)
    assert np.allclose(np.linalg.norm(documents, axis=1), 1, atol=1e-6)
    indices, similarities = benchmark.row_by_row(queries, documents, 5)
    whole = queries.astype(np.float64) @ documents.T.astype(np.float64)
    assert np.array_equal(indices, np.argsort(-whole, axis=1)[:, :5])
    assert np.allclose(similarities, -np.sort(-whole, axis=1)[:, :5], atol=1e-6)


def test_the_committed_run_is_of_todays_settings(committed):
    assert committed.items() >= asdict(benchmark.Size()).items()

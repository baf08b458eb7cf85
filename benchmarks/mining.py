"""The search of notebook 06 at the size of the real data: 65,017 x 65,017. Writes mining.json.

    OMP_NUM_THREADS=2 python benchmarks/mining.py

The vectors are random unit rows of 768 dimensions, as a Vietnamese sentence encoder returns them.
Three programs are timed: the search block by block, the same search row by row (a few rows,
extrapolated to all), and the complete `mine` with its controls. Of repeated runs the fastest one
counts, for each part separately, because other jobs on the machine can only add time. The slowest
time and the load are recorded as well. Peak memory is that of the process, including the
vectors and Python.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from threadpoolctl import threadpool_info

from utils.data.mining import Controls, mine, nearest


@dataclass(frozen=True)
class Size:
    rows: int = 65_017  # of Vi-Alpaca-Preference's train split
    dimensions: int = 768
    candidates: int = Controls.candidates
    block: int = 512
    naive_rows: int = 100
    part: int = 2048  # questions timed together
    rounds: int = 3
    peak_side: int = 4096  # of the square matrices whose product is the peak


QUICK = Size(600, 32, candidates=5, block=64, naive_rows=50, part=200, rounds=2, peak_side=64)


def unit_rows(rows: int, dimensions: int, seed: int) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((rows, dimensions), dtype=np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def row_by_row(queries: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The simplest implementation: a product and a full sort for each question."""
    ranked = [np.argsort(-(documents @ query), kind="stable")[:k] for query in queries]
    found = [documents[order] @ query for order, query in zip(ranked, queries, strict=True)]
    return np.array(ranked), np.array(found)


def timed(run: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def matmul_rate(side: int) -> float:
    """The speed of one float32 matrix product in GFLOP/s, with the same library and threads."""
    a, b = (np.random.default_rng(seed).random((side, side), np.float32) for seed in (0, 1))
    return 2 * side**3 / timed(lambda: a @ b)[0] / 1e9


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(size: Size) -> dict[str, object]:
    asked, answered = (unit_rows(size.rows, size.dimensions, seed) for seed in (0, 1))
    k = size.candidates
    load = os.getloadavg()[0]
    found, rates, fastest, slowest = [], [], 0.0, 0.0
    for start in range(0, size.rows, size.part):
        part = asked[start : start + size.part]
        runs = [
            timed(lambda part=part: nearest(part, answered, k, block=size.block))
            for _ in range(size.rounds)
        ]
        fastest += min(seconds for seconds, _ in runs)
        slowest += max(seconds for seconds, _ in runs)
        found.append(runs[0][1])
        memory = peak_mb()
        rates.append(matmul_rate(size.peak_side))
    indices, similarities = (np.concatenate(columns) for columns in zip(*found, strict=True))
    some = slice(0, size.naive_rows)
    naive_runs = [timed(lambda: row_by_row(asked[some], answered, k)) for _ in range(size.rounds)]
    naive_seconds, (same, theirs) = min(naive_runs, key=lambda run: run[0])
    np.testing.assert_allclose(similarities[some], theirs, atol=1e-6)
    controls = Controls(candidates=k)
    texts = [f"câu {row}" + " nữa" * (row % 40) for row in range(size.rows)]
    mined = [
        timed(lambda: mine(texts, texts, vectors=(asked, answered), controls=controls))
        for _ in range(size.rounds - 1)
    ]
    assert all(other.index != row for row, other in enumerate(mined[0][1]))
    speed = 2 * size.rows**2 * size.dimensions / fastest / 1e9
    naive_whole = naive_seconds / size.naive_rows * size.rows
    return {
        **asdict(size),
        "seconds": round(fastest, 4),
        "slowest_seconds": round(slowest, 4),
        "gflops": round(speed, 1),
        "matmul_peak_gflops": round(max(rates), 1),
        "share_of_matmul_peak": round(speed / max(rates), 3),
        "peak_mb": round(memory, 1),
        "whole_matrix_mb": round(size.rows**2 * 4 / 2**20, 1),
        "naive_seconds_by_proportion": round(naive_whole, 1),
        "times_faster_than_naive": round(naive_whole / fastest, 1),
        "same_as_naive": round(float(np.mean(indices[some] == same)), 5),
        "mine_seconds": round(min(seconds for seconds, _ in mined), 2),
        "mine_slowest_seconds": round(max(seconds for seconds, _ in mined), 2),
        "mine_peak_mb": round(peak_mb(), 1),
        "load_before": round(load, 1),  # mean number of runnable processes in the last minute
    }


def machine() -> dict[str, object]:
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    threads = max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
    return {"cpu": model, "cores": os.cpu_count(), "threads": threads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny size, to check that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    found = measure(QUICK if arguments.quick else Size())
    found["machine"] = machine()
    found["versions"] = {"python": platform.python_version(), "numpy": np.__version__}
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(
        f"{found['rows']:,} x {found['rows']:,}: {found['seconds']} s, "
        f"{found['share_of_matmul_peak']:.0%} of the matmul peak, {found['peak_mb']:,} MB; "
        f"{found['times_faster_than_naive']} x a row-by-row loop; "
        f"with all controls {found['mine_seconds']} s"
    )


if __name__ == "__main__":
    main()

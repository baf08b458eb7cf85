"""The tables of the site's page of measurements, from the JSON files of benchmarks/."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.course.notebooks import LESSONS
from utils.course.paths import BENCHMARKS

Value = str | float | None  # None: not measured
NONE = "–"  # in a row that has no such value


@dataclass(frozen=True)
class Table:
    """A table; the words of its key and of its columns stand in site/words.json."""

    key: str
    files: tuple[str, ...]
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Value]]
    machine: str


def read(name: str) -> dict:
    """A file of benchmarks/."""
    return json.loads((BENCHMARKS / name).read_text(encoding="utf-8"))


def machine(data: dict) -> str:
    """The machine of a benchmark in a few words."""
    found = data["machine"]
    return found if isinstance(found, str) else f"{found['cpu']}, {found['cores']} cores"


def span(values: Sequence[float]) -> str:
    """The lowest and the highest of several rounds.

    >>> span([3.18, 2.99])
    '2.99–3.18'
    """
    return f"{min(values)}–{max(values)}"


def notebooks() -> Table:
    """Minutes and memory of each notebook: measured in the lab, estimated for the GPUs."""
    lab, gpu = read("lab.json"), read("memory.json")["notebooks"]
    rows = []
    for number in LESSONS:
        cells: list[Value] = [number]
        for known in (lab["notebooks"]["lab"], gpu["t4"], gpu["a100"]):
            found = known.get(number, {})
            cells += [found.get("minutes"), found.get("peak_gb")]
        rows.append(cells)
    columns = ("notebook", "lab_min", "lab_gb", "t4_min", "t4_gb", "a100_min", "a100_gb")
    return Table("notebooks", ("lab.json", "memory.json"), columns, rows, machine(lab))


def ppo() -> Table:
    """PPO's episodes per second beside TRL's and a plain loop's."""
    data = read("ppo.json")
    rows = [
        [
            size["name"],
            *(size[f"{way}_episodes_per_second"] for way in ("ours", "trl", "naive")),
            span(size["ratios_to_trl"]),
            size["separate_value_ratio_to_trl"],
            size["ours_peak_mb"],
            size["trl_peak_mb"],
        ]
        for size in data["sizes"]
    ]
    columns = ("size", "ours_eps", "trl_eps", "loop_eps", "ratio", "ratio_separate")
    columns = (*columns, "ours_mb", "trl_mb")
    return Table("ppo", ("ppo.json",), columns, rows, machine(data))


def training(name: str, unit: str, ways: Sequence[str]) -> Table:
    """A training with our settings and with the original ones."""
    data = read(f"{name}.json")
    rows = [
        [f"@{way}", *(data["lab"][way][key] for key in (unit, "peak_mb", "held_out_loss"))]
        for way in ways
    ]
    return Table(name, (f"{name}.json",), ("way", unit, "peak_mb", "loss"), rows, machine(data))


def mining() -> Table:
    """The search for pairs in blocks, beside a loop over rows and the whole matrix."""
    data = read("mining.json")
    rows = [
        ["@blocks", data["rows"], data["seconds"], data["peak_mb"]],
        ["@loop", data["rows"], data["naive_seconds_by_proportion"], None],
        ["@matrix", data["rows"], None, data["whole_matrix_mb"]],
    ]
    columns = ("way", "questions", "seconds", "memory_mb")
    return Table("mining", ("mining.json",), columns, rows, machine(data))


def orpo() -> Table:
    """ORPO beside SFT and DPO, over seeds."""
    data = read("orpo_quality.json")
    keys = (
        "method",
        "seed",
        "preference_accuracy",
        "moved_towards_chosen",
        "chrf",
        "ended",
        "kl",
        "tokens",
    )
    rows = [
        [round(run[key], 3) if isinstance(run[key], float) else run[key] for key in keys]
        for run in data["runs"]
    ]
    return Table("orpo", ("orpo_quality.json",), keys, rows, machine(data))


def frontier() -> Table:
    """The end of each training of PPO, RLOO, GRPO and SFT, and best-of-n, on held-out prompts."""
    data = read("frontier.json")
    keys = ("kl", "share", "negative_rate", "objective")
    rows = []
    for run in data["runs"]:
        end = [round(run["points"][-1][key], 3) for key in keys]
        labels = [run["method"], run["seed"] or NONE, run["episodes"] or NONE]
        rows.append([*labels, *end, round(run["gain"], 2)])
    columns = ("way", "seed", "episodes", *keys, "gain")
    return Table("frontier", ("frontier.json",), columns, rows, machine(data))


def attributes() -> Table:
    """The rates of the attributes of form that each training reached, beside the prediction."""
    data = read("attributes.json")
    rows = []
    for run in data["runs"]:
        rate, predicted = (
            round(sum(rates) / len(rates), 3) if rates else NONE
            for rates in (run["rates"], run["predicted_rates"])
        )
        facts = [run["way"], run["strength"] or NONE, run["seed"], rate, predicted]
        rows.append([*facts, round(run["kl"], 2), round(run["content_kept"], 2)])
    columns = ("way", "beta", "seed", "rate", "predicted", "kl_form", "content_kept")
    return Table("attributes", ("attributes.json",), columns, rows, machine(data))


def on_policy() -> Table:
    """One round of DPO on the model's own answers, and its controls."""
    data = read("on_policy.json")
    rows = [
        [run["arm"], run["seed"], round(run["score"], 2), round(run["kl_of_answers"], 2)]
        for run in data["runs"]
    ]
    columns = ("way", "seed", "score", "kl")
    return Table("on_policy", ("on_policy.json",), columns, rows, machine(data))


def classroom() -> Table:
    """The class page under load."""
    runs = read("classroom.json")["runs"]
    counts = ("clients", "store", "votes", "kills", "lost", "double")
    keys = (*counts, "p50_ms", "p95_ms", "others_p95_ms")
    rows = [[run[key] for key in keys] for run in runs]
    return Table("classroom", ("classroom.json",), keys, rows, runs[0]["machine"])


def determinism() -> Table:
    """How many figures of two runs with the same seed differ."""
    data = read("determinism.json")
    rows = [[k[:2], row["figures"], len(row["differ"])] for k, row in data["notebooks"].items()]
    columns = ("notebook", "figures", "differ")
    return Table("determinism", ("determinism.json",), columns, rows, machine(data))


TABLES: tuple[Callable[[], Table], ...] = (
    notebooks,
    ppo,
    lambda: training("sft", "tokens_per_second", ("ours", "original", "original_full")),
    lambda: training("dpo", "pairs_per_second", ("ours", "original")),
    mining,
    frontier,
    attributes,
    on_policy,
    orpo,
    classroom,
    determinism,
)

"""Stage C of `gpu.py`: the speed of the course's code on this GPU, compared with alternatives.

Rounds are interleaved (A B A B …) in rotating order. A speed is that of the median round. A ratio
is computed within each round, and the median is reported. Models have real sizes and random
weights.
The work and the methods are those of `benchmarks/sft.py`, `dpo.py` and `ppo.py`.
"""

import functools
import math
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from unittest.mock import patch

import torch

from benchmarks import common, dpo, ppo, sft
from benchmarks.common import Run
from benchmarks.gpu_parity import PROFILES, Item, precisions, quick_loading
from utils.course.paths import ROOT
from utils.course.profiles import TABLE, Profile
from utils.models import logprobs, memory
from utils.models.precision import DTYPES
from utils.ppo import sampling

ROWS = {"Llama-3.2-1B": 256, "Llama-3.1-8B": 64, "tiny": 8}  # rows of SFT, pairs of DPO
TRL_FOLDER = ROOT / ".cache" / f"trl-{ppo.TRL}"  # where benchmarks/ppo.py installs it


def items(quick: bool) -> dict[str, Item]:
    """Every item of this stage by its name; the most important items come first."""
    shapes = ["tiny"] if quick else ["Llama-3.2-1B", "Llama-3.1-8B"]
    found: dict[str, Item] = {}
    for shape in shapes:
        for precision in precisions():
            for kind in (sft_speed, dpo_speed):
                name = f"{kind.__name__.removesuffix('_speed')} {shape}, {precision}"
                found[name] = functools.partial(kind, shape, precision, quick)
        if shape == shapes[0]:
            found["ppo against a plain loop"] = functools.partial(ppo_speed, ("naive",), quick)
            if not quick and (TRL_FOLDER / f"trl-{ppo.TRL}.dist-info" / "RECORD").exists():
                found[f"ppo against TRL {ppo.TRL}"] = functools.partial(alone, quick)
            for precision in precisions():
                found[f"decoding, {precision}"] = functools.partial(decoding, precision, quick)
    return found


def compared(
    runs: dict[str, Callable[[], Run]], rounds: int, amounts: dict[str, float]
) -> dict[str, object]:
    """Amounts per second and peak memory of each method, and its time over the first one's."""
    peaks = dict.fromkeys(runs, 0.0)

    def watched(name: str) -> Run:
        memory.release()  # free the memory of the previous round
        held = [runs[name]()]

        def timed() -> Callable[[], dict[str, float]]:
            torch.cuda.reset_peak_memory_stats()
            reached = held.pop()()()  # keep nothing that would count in another method's peak
            peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated() / 1e6)
            return lambda: reached

        return timed

    seconds, _, reached = common.interleaved(
        {name: functools.partial(watched, name) for name in runs}, rounds, "cuda"
    )
    found: dict[str, object] = {"rounds": rounds, **amounts}
    for name in runs:
        middle = statistics.median(seconds[name])
        found[name] = {
            **{f"{what}_per_second": amount / middle for what, amount in amounts.items()},
            "peak_mb": peaks[name],
            "seconds": seconds[name],
            **{what: value for what, value in reached[name].items() if not math.isnan(value)},
        }
    first, *others = runs
    for other in others:
        ratios = [b / a for a, b in zip(seconds[first], seconds[other], strict=True)]
        found[f"ratio_to_{other}"] = statistics.median(ratios)
        found[f"ratios_to_{other}"] = ratios
    return found


def profile_of(precision: str, quick: bool) -> Profile:
    """The profile that computes in this precision."""
    profile = TABLE[PROFILES[precision]]
    if not quick:
        return profile
    return replace(
        profile,
        sft=replace(profile.sft, max_length=128, accumulation=1),
        dpo=replace(profile.dpo, max_length=96, accumulation=1),
    )


def sft_speed(shape: str, precision: str, quick: bool) -> dict[str, object]:
    """Compare our packing with TRL's packing, and with padding (the course's first settings)."""

    def trls() -> AbstractContextManager:
        """Within the block TRL's own trainer packs, with the same arguments."""
        from trl import SFTTrainer

        return patch("utils.finetune.packing.PackedSFTTrainer", SFTTrainer)

    def packed_by(context: Callable[[], AbstractContextManager]) -> Run:
        train = sft.prepared("ours", task)

        def run() -> Callable[[], dict[str, float]]:
            with context():
                return train()

        return run

    with tempfile.TemporaryDirectory() as folder, quick_loading():
        task = sft.cuda_task(shape, profile_of(precision, quick), ROWS[shape], folder)
        runs = {
            "ours": lambda: packed_by(nullcontext),
            "trl_packing": lambda: packed_by(trls),
            "trl_padding": lambda: sft.prepared("original", task),
        }
        return compared(runs, 1 if quick else 3, {"tokens": task["tokens"]})


def dpo_speed(shape: str, precision: str, quick: bool) -> dict[str, object]:
    """Compare the shared prompt with TRL's trainer."""
    with tempfile.TemporaryDirectory() as folder, quick_loading():
        task = dpo.cuda_task(shape, profile_of(precision, quick), ROWS[shape], folder)
        runs = {
            "ours": lambda: dpo.prepared("ours", task),
            "trl": lambda: dpo.prepared("original", task),
        }
        amounts = {"pairs": ROWS[shape], "tokens": task["tokens"]}
        return compared(runs, 1 if quick else 3, amounts)


def ppo_speed(others: tuple[str, ...], quick: bool) -> dict[str, object]:
    """Compare our PPO with other trainers; each runs once before the clock starts."""
    size = (ppo.QUICK_SIZES if quick else ppo.CUDA_SIZES)[0]
    made = {name: ppo.method(name, size, "cuda") for name in ("ours", *others)}
    for run in made.values():
        run(1)

    def prepared(name: str) -> Run:
        def train() -> Callable[[], dict[str, float]]:
            made[name](size.updates)
            return dict

        return train

    runs = {name: functools.partial(prepared, name) for name in made}
    return compared(runs, size.rounds, {"episodes": size.batch * size.updates})


def alone(quick: bool) -> dict[str, object]:
    """Compare with TRL's last PPOTrainer, in a separate process because it needs another TRL."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(ppo_speed, (("trl",), quick))


def decoding(precision: str, quick: bool) -> dict[str, object]:
    """One token per row: the compiled step with its static cache, and the dynamic cache."""
    from transformers import GPT2LMHeadModel

    size = (ppo.QUICK_SIZES if quick else ppo.CUDA_SIZES)[0]
    make, _ = ppo.models_and_tokenizer(size, "cuda")
    model = make(GPT2LMHeadModel).eval()
    sampling.fuse_gelu(model)
    trunk, head = logprobs.trunk_and_head(model)
    prompts = torch.tensor(ppo.prompts_of(size)[: size.batch], device="cuda")
    seen = torch.ones_like(prompts, dtype=torch.bool)
    draws = torch.rand(size.batch, size.response, device="cuda")
    static = sampling.compiled_step(trunk, size.prompt + size.response)

    def written(step: tuple | None) -> Callable[[], dict[str, float]]:
        with torch.autocast("cuda", DTYPES[precision]):
            given = (trunk, head, prompts, seen, draws)
            sampling.sample_responses(*given, end=-1, temperature=1.0, static=step)
        return dict

    for step in (static, static, None):  # the first call compiles, the second captures a CUDA graph
        written(step)
    runs = {
        "static": lambda: functools.partial(written, static),
        "dynamic": lambda: functools.partial(written, None),
    }
    found = compared(runs, 1 if quick else 9, {"tokens": size.response})
    for name in runs:
        found[name]["milliseconds_per_token"] = 1e3 / found[name]["tokens_per_second"]
    return found | {"rows": size.batch}

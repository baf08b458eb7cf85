"""The GPU memory of each stage of the course, and the minutes of each notebook.

    python benchmarks/memory.py [--quick] [--out FILE]

`benchmarks/fake_gpu.py` simulates them at the real sizes of the profiles t4 and a100, on a machine
without a GPU. `benchmarks/gpu_stages.py` contains the stages: each uses the longest rows that its
profile allows. The minutes of a notebook come from the same simulation at mean lengths. `--quick`
runs a few stages and writes nothing.
"""

import argparse
import functools
import json
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers

from benchmarks.fake_gpu import CARDS, simulated
from benchmarks.gpu_stages import (
    ANSWER,
    CHAT,
    HACKED,
    PROMPT,
    adaptation,
    classification,
    encoding,
    evaluation,
    few_rows,
    generation,
    loaded,
    pair_step,
    ppo,
    reference_pass,
    reward_step,
    sft_step,
    small_gpt2,
    t5,
)
from utils.course.profiles import TABLE, Profile
from utils.models import chat, logprobs

GB = 2**30
OVERHEAD = 0.6  # GB: the CUDA context and the workspaces of cuBLAS, which no tensor holds
FORM = 80  # tokens of a question and an answer with attributes
LONGEST, USUAL = 200, 75  # GPT-2 tokens of the longest sentence; in a typical batch
TRAIN, VALIDATION, TEST = 11_426, 1_583, 3_166  # sentences of UIT-VSFC
ALPACA = 65_017  # questions with answers
ASSUMPTIONS = [
    "Every figure is simulated or estimated; nothing here was measured on a GPU.",
    "1 GB is 2**30 bytes. A process can use 14.5 GB of a T4, and 38 GB of an A100 with 40 GB.",
    f"{OVERHEAD} GB are added for the CUDA context and the workspaces of cuBLAS.",
    "Fragments of the allocator and the private pool of CUDA graphs are not counted.",
    "Every row of a batch is as long as the profile allows, and every token of it is learned.",
    "Without a mask, grouped attention on a T4 takes torch's math kernel in fp32 (2.11 to 2.13).",
    "bitsandbytes dequantises a layer's weight as a whole; for small batches a GPU may take less.",
    "Sailor2-1B has 48 layers and an output layer of its own: inferred from the size of its Q4_0 "
    "file; the other configurations are published.",
    f"The longest sentence has {LONGEST} GPT-2 tokens; the longest of a usual batch has {USUAL}.",
    "Products reach 25 % of 65 TFLOP/s on a T4 and 35 % of 312 on an A100, in fp32 60 % of 8.1 and "
    "of 19.5. Memory is read and written at 60 % of 300 and of 1500 GB/s.",
    "Python and CUDA start an operation in 20 µs beside a T4 and in 12 µs beside an A100.",
    f"Vi-Alpaca has {PROMPT} tokens per prompt and {ANSWER} per answer on average. Generation runs "
    "to its limit, as one answer of each batch is long, and each token costs what the last does.",
    "A batch of UIT-VSFC is padded to 45 PhoBERT tokens and 60 GPT-2 tokens on average.",
    "Human-Like pairs have 25 tokens per prompt and 160 per answer on average.",
    "underthesea segments 11,000 syllables per second; Vi-Alpaca has 125 per question with answer.",
    "The minutes include installing and loading (4, and 9 for the 8B model of notebook 07) and "
    "half a minute per further loading of a chat model (3 for the 8B); not voting and reading.",
]

# --- All stages ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """The result of a stage."""

    shape: str
    peak: float  # GB
    seconds: float  # per micro-batch, batch or token


@functools.cache
def simulate(profile: str, stage: Callable[..., str], *given: object) -> Found:
    """Run a stage on the simulated GPU of a profile."""
    with simulated(TABLE[profile]) as gpu:
        shape = stage(gpu, TABLE[profile], *given)
        found = Found(shape, gpu.peak / GB, gpu.seconds())
        gpu.resident = []
    return found


BESIDE = " beside another model"  # of the same kind, as in sweeps and side runs


def stages(profile: Profile) -> list[tuple]:
    """One tuple per stage: notebook, model, name, function, and the function's arguments."""
    top, width = profile.reward_model.max_length, profile.dpo.max_length
    rows, held = profile.policy.adapt_batch_size, profile.policy.adapt_eval_batch_size
    found: list[tuple] = [
        ("01", "PhoBERT-base", "training, longest rows", reward_step, top),
        ("01", "PhoBERT-base", f"training, longest rows{BESIDE}", reward_step, top),
        ("01", "PhoBERT-base", "training, usual rows", reward_step, 64),
        ("01", "PhoBERT-base", "evaluation, longest rows", classification, top, True),
        ("02", "GPT-2", "adaptation, longest sentence", adaptation, rows, LONGEST, True),
        ("02", "GPT-2", "adaptation's evaluation, longest", adaptation, held, LONGEST, False),
        ("02", "GPT-2", "adaptation's evaluation, usual", adaptation, held, USUAL, False),
        ("02", "GPT-2", "PPO: sampling", ppo, "sampling"),
        ("02", "GPT-2", "PPO: scoring", ppo, "scoring"),
        ("02", "GPT-2", "PPO: learning", ppo, "learning"),
        ("02", "GPT-2", "PPO without the KL: learning", ppo, "learning", HACKED),
    ]
    for name in CHAT:
        found += [
            ("03", name, "SFT", sft_step, name),
            ("03", name, f"SFT{BESIDE}", sft_step, name),
            ("03", name, "gradients of eight short rows", few_rows, name),
            ("03", name, "log-probabilities", evaluation, name, 1024),
            ("03", name, "log-probabilities, none padded", evaluation, name, 512, False),
            ("03", name, "generation", generation, name),
            ("04", name, "DPO", pair_step, name, "dpo"),
            ("04", name, f"DPO{BESIDE}", pair_step, name, "dpo"),
            ("04", name, "reference", reference_pass, name, "dpo"),
            ("04", name, "gradients of four short pairs", few_rows, name),
            ("04", name, "log-probabilities", evaluation, name, width),
            ("04", name, "generation", generation, name),
            ("05", name, "ORPO", pair_step, name, "orpo"),
            ("05", name, f"ORPO{BESIDE}", pair_step, name, "orpo"),
            ("05", name, f"log-probabilities{BESIDE}", evaluation, name, width),
            ("05", name, f"generation{BESIDE}", generation, name),
        ]
    large, small = "Llama-3.1-8B", (("T5-small", t5), ("GPT-2", small_gpt2))
    found += [
        ("06", "PhoBERT-base", "encoding, longest rows", encoding, 256),
        ("07", large, "generation", generation, large),
        ("07", large, "log-probabilities", evaluation, large, profile.labelling.max_length),
        ("07", large, "DPO", pair_step, large, "labelling"),
        ("07", large, "reference", reference_pass, large, "labelling"),
    ]
    for part, what in (("sft", "SFT"), ("dpo", "DPO"), ("evaluation", "evaluation of DPO")):
        found += [("08", name, what, stage, part) for name, stage in small]
    return found


# --- Minutes -------------------------------------------------------------------------------------


def chat_minutes(profile: Profile, name: str) -> dict[str, float]:
    """Minutes of notebooks 03 to 05 with a chat model, or of 07 with its 8B model."""
    new, mean = profile.chat.max_new_tokens, (PROMPT, ANSWER)
    cost = functools.partial(simulate, profile.name)
    held, limit = profile.dpo.held_out, profile.sft.batch_size * profile.sft.max_length

    def wrote(questions: int) -> float:
        batches = math.ceil(questions * (PROMPT + new) / chat.REPLY_TOKENS)
        return batches * new * cost(generation, name, PROMPT).seconds

    def read(questions: int, sides: int = 2) -> float:
        batches = questions * sides * sum(mean) / logprobs.BATCH_TOKENS
        return batches * cost(evaluation, name, sum(mean)).seconds

    def kl(questions: int) -> float:  # answers are sampled, and both models score them
        return wrote(questions) + read(questions)

    def sft(rows: int, epochs: float = 1) -> float:
        return epochs * rows * sum(mean) / limit * cost(sft_step, name).seconds

    def pairs(part: str, rows: int, epochs: float = 1, reference: int = 0) -> float:
        run = getattr(profile, part)
        step = epochs * rows / run.batch_size * cost(pair_step, name, part, mean).seconds
        if not reference:
            return step
        batches = rows / run.batch_size / reference
        return step + batches * cost(reference_pass, name, part, mean).seconds

    if name not in CHAT:
        run = profile.labelling
        asked = run.questions - run.held_out
        pairs_drawn = run.draws * asked
        drawn = 2 * run.draws * wrote(asked)
        voted = pairs("labelling", pairs_drawn, run.epochs, 2)
        judged = 2 * (wrote(run.held_out) + wrote(3 * run.held_out)) + 3 * kl(run.held_out)
        return {"07": 9 + 3 + (drawn + voted + judged) / 60}
    one, two, three = profile.sft, profile.dpo, profile.orpo
    side, form = 2 * (sft(one.side_rows) + wrote(min(100, held))), profile.attributes
    form_sft = 2 * (form.reference_pairs + form.pairs) * FORM / sum(mean) * sft(1)  # short rows
    seconds = {
        "03": sft(one.rows, one.epochs) + 2 * (read(held, 1) + wrote(held)) + side,
        "04": pairs("dpo", two.rows, two.epochs, 4) + 5 * kl(32) + sft(2 * two.rows)
        + 4 * (read(held) + wrote(min(100, held))) + kl(min(100, held))
        + form_sft + pairs("dpo", form.pairs),
        "05": pairs("orpo", one.rows + two.rows, three.epochs)
        + 4 * (read(held) + wrote(min(100, held))),
    }  # fmt: skip
    loadings = {"03": 3, "04": 4, "05": 6}
    return {key: 4 + 0.5 * loadings[key] + value / 60 for key, value in seconds.items()}


def small_minutes(profile: Profile) -> dict[str, float]:
    """Minutes of notebooks 01, 02, 06 and 08."""
    cost = functools.partial(simulate, profile.name)
    reward, run, small = profile.reward_model, profile.ppo, profile.small_dpo
    segmented = 13 / 11_000  # seconds per sentence of feedback

    def rewarded(texts: int) -> float:
        return texts * segmented + texts / 128 * cost(classification, 45, False).seconds

    def drawn(texts: int) -> float:  # without the compiled step, a minibatch at a time
        eager = cost(ppo, "sampling").seconds + cost(ppo, "scoring").seconds
        return math.ceil(texts / run.minibatch_size) * eager

    def updates(number: int) -> float:
        minibatches = run.batch_size / run.minibatch_size
        learned = cost(ppo, "scoring").seconds + run.epochs * cost(ppo, "learning").seconds
        each = cost(ppo, "sampling").seconds + minibatches * learned + rewarded(run.batch_size)
        return number * each

    epoch = TRAIN / reward.batch_size * cost(reward_step, 45).seconds
    epoch += VALIDATION / 128 * cost(classification, 45, True).seconds
    first = 2 * reward.epochs * epoch  # on segmented text, and on raw text
    first += (TRAIN + VALIDATION + TEST) * segmented + 5 * rewarded(TEST)
    policy = profile.policy
    adapted = policy.adapt_epochs * (
        TRAIN / policy.adapt_batch_size
        * cost(adaptation, policy.adapt_batch_size, 60, True).seconds
        + VALIDATION / policy.adapt_eval_batch_size
        * cost(adaptation, policy.adapt_eval_batch_size, 60, False).seconds
    )  # fmt: skip
    texts = policy.held_out_prompts
    judged = (policy.base_samples + 3) * (drawn(texts) + rewarded(texts))
    looked = (6 + run.updates // 16) * (drawn(texts) + rewarded(texts))  # points of the frontier
    trained = updates(run.updates + 2 * (run.value_updates or run.updates // 3))
    second = adapted + judged + looked + trained
    rows, batch = min(profile.pair_mining.rows, ALPACA), profile.pair_mining.batch_size
    sixth = rows * 125 / 11_000 + 2 * rows / batch * cost(encoding, 110).seconds + 120
    lengths, eighth = (25, 160), 120.0  # judges, tables
    for stage in (t5, small_gpt2):
        step = {part: cost(stage, part, lengths).seconds for part in ("sft", "dpo", "evaluation")}
        trainings = 2 if stage is t5 else 1  # T5 also learns from labels that a coin drew
        trained = 2 * small.sft_epochs * step["sft"] + trainings * small.dpo_epochs * step["dpo"]
        eighth += small.train_pairs / small.batch_size * trained
        watched = small.validation_pairs * (small.sft_epochs + 2 * trainings * small.dpo_epochs)
        references = trainings * small.train_pairs + 4 * small.held_out
        eighth += (references + watched) / 32 * step["evaluation"]
    found = {"01": first, "02": second, "06": sixth, "08": eighth}
    return {key: 4 + value / 60 for key, value in found.items()}


# --- The report ----------------------------------------------------------------------------------


def settings(profile: Profile) -> dict[str, object]:
    """The sizes that the figures depend on: the profile without its rates, and budgets."""
    parts = {part: row for part, row in asdict(profile).items() if isinstance(row, dict)}
    found = {f"{part}.{name}": value for part, row in parts.items() for name, value in row.items()}
    kept = {k: v for k, v in found.items() if not isinstance(v, (float, dict)) or "epochs" in k}
    budgets = (logprobs.BATCH_TOKENS, logprobs.BLOCK_NUMBERS, chat.REPLY_TOKENS)
    kept |= {"precision": profile.precision, "budgets": budgets}
    return json.loads(json.dumps(kept))


def rows_of(profile: Profile, wanted: list[tuple]) -> list[dict]:
    """One row per stage: its peak, and whether it fits."""
    rows, limit = [], CARDS[profile.name].limit
    for notebook, model, what, stage, *given in wanted:
        found = simulate(profile.name, stage, *given)
        other = simulate(profile.name, loaded, model).peak if what.endswith(BESIDE) else 0.0
        peak, whole = found.peak + other, found.peak + other + OVERHEAD
        rows.append(
            {
                "profile": profile.name, "notebook": notebook, "model": model, "stage": what,
                "shape": found.shape, "peak_gb": round(peak, 2),
                "with_overhead_gb": round(whole, 2), "fits": whole <= limit,
                "seconds": round(found.seconds, 4),
            }
        )  # fmt: skip
        print("{profile:5} {notebook} {model:13} {stage:33} {shape:18}".format(**rows[-1]), end="")
        print(f" {whole:6.2f} GB" + ("" if rows[-1]["fits"] else f"  beyond {limit} GB"))
    return rows


def notebooks_of(profile: Profile, rows: list[dict]) -> dict[str, dict]:
    """The highest peak and the minutes of each notebook, with the default chat model."""
    each = {name: chat_minutes(profile, name) for name in (*CHAT, "Llama-3.1-8B")}
    minutes = small_minutes(profile) | each["Llama-3.1-8B"] | each[CHAT[0]]
    found = {}
    for key in sorted(minutes):
        peaks = [r["peak_gb"] for r in rows if r["notebook"] == key and r["model"] not in CHAT[1:]]
        found[key] = {
            "peak_gb": max(peaks),
            "with_overhead_gb": round(max(peaks) + OVERHEAD, 2),
            "minutes": round(minutes[key]),
        }
        if key in each[CHAT[0]]:
            found[key]["minutes_by_model"] = {name: round(each[name][key]) for name in CHAT}
        print(f"{profile.name:5} {key} {found[key]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory and minutes on a GPU, simulated.")
    parser.add_argument("--quick", action="store_true", help="a few stages; writes nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if asked.quick:
        wanted = [s for s in stages(TABLE["t4"]) if s[1] not in CHAT[1:] and s[0] in ("01", "04")]
        rows_of(TABLE["t4"], wanted)
        return
    report: dict = {
        "limits": {name: card.limit for name, card in CARDS.items()},
        "overhead_gb": OVERHEAD,
        "assumptions": ASSUMPTIONS,
        "settings": {name: settings(TABLE[name]) for name in CARDS},
        "rows": [],
        "notebooks": {},
    }
    for name in CARDS:
        rows = rows_of(TABLE[name], stages(TABLE[name]))
        report["rows"] += rows
        report["notebooks"][name] = notebooks_of(TABLE[name], rows)
    asked.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

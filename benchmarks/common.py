"""Shared by the benchmarks: models, rows, results by seed, rounds, peak memory."""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from trl import DPOConfig, SFTConfig

from benchmarks.ppo import machine
from utils import models
from utils.course.profiles import TABLE, AdapterTraining, Profile
from utils.course.session import keep_freed_memory, set_seed
from utils.data.pairs import load_preferences
from utils.data.reading import fingerprint
from utils.finetune.packing import PackedSFTTrainer
from utils.finetune.shared_prompt import SharedPromptDPOTrainer
from utils.finetune.training import run
from utils.models.adapters import content_hash
from utils.models.precision import DTYPES, precision_arguments

SHAPES = {  # layers, width, inner width, heads, key-value heads, vocabulary, tied
    "Llama-3.2-1B": (16, 2048, 8192, 32, 8, 128_256, True),
    "Llama-3.2-3B": (28, 3072, 8192, 24, 8, 128_256, True),
    "Llama-3.1-8B": (32, 4096, 14_336, 32, 8, 128_256, False),
    "tiny": (2, 64, 128, 4, 2, 600, True),  # only to check that the program runs
}
Run = Callable[[], Callable[[], dict[str, float]]]  # trains; the function it returns scores it


def quiet() -> None:
    import datasets
    import transformers

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


# --- The lab: the stand-in and the shipped pairs -------------------------------------------------


def lab(rows: int, held_out: int) -> tuple[str, object, object]:
    """The stand-in's folder, the training rows and the held-out rows."""
    pairs = load_preferences(offline=True)
    folder, _ = models.chat_source(TABLE["lab"].chat, pairs)
    train = pairs["train"].shuffle(seed=0).select(range(rows))
    return folder, train, pairs["test"].select(range(held_out))


class LabBench:
    """The stand-in of the lab, the shipped pairs, and adapters that are trained on them."""

    def __init__(self, profile: Profile, scratch: Path) -> None:
        keep_freed_memory()  # as every notebook of the lab does
        self.profile, self.scratch = profile, scratch
        self.pairs = load_preferences(quiet=True)
        self.folder, self.name = models.chat_source(profile.chat, self.pairs)
        self.tokenizer = models.chat_tokenizer(self.folder)

    @property
    def facts(self) -> dict[str, object]:
        """What every run of a benchmark shares: the profile, the pairs and the base model."""
        return {
            "profile": self.profile.name,
            "model": self.name,
            "base": content_hash(self.folder),
            "data": fingerprint(self.pairs),
        }

    def training_arguments(self, seed: int, **sizes: object) -> dict[str, object]:
        """What SFTConfig and DPOConfig share: one epoch, without checkpoints."""
        return {
            "output_dir": str(self.scratch / "checkpoints"),
            "num_train_epochs": 1,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "save_strategy": "no",
            "report_to": "none",
            "seed": seed,
            **precision_arguments(self.profile),
            **sizes,
        }

    def stage_arguments(self, run: AdapterTraining, seed: int) -> dict[str, object]:
        """The profile's settings of a stage."""
        return self.training_arguments(
            seed,
            per_device_train_batch_size=run.batch_size,
            gradient_accumulation_steps=run.accumulation,
            gradient_checkpointing=run.checkpointing,
            learning_rate=run.learning_rate,
            max_length=run.max_length,
        )

    def fresh(self, seed: int) -> PeftModel:
        """The base with a new adapter."""
        set_seed(seed)
        base, _ = models.chat_model(self.folder, self.profile)
        return get_peft_model(base, models.lora(self.profile.chat))

    def train_sft(self, policy: PeftModel, rows: Dataset, config: SFTConfig) -> None:
        """Supervised training on question, chosen."""
        trainer = PackedSFTTrainer(
            policy,
            config,
            processing_class=self.tokenizer,
            train_dataset=models.sft_rows(rows),
        )
        run(trainer)

    def train_pairs(
        self,
        kind: type[SharedPromptDPOTrainer],
        policy: PeftModel,
        pairs: Dataset,
        config: DPOConfig,
    ) -> None:
        """DPO or ORPO on the pairs that fit."""
        fit = config.max_length, config.per_device_train_batch_size, config.seed
        trainer = kind(
            policy,
            args=config,
            train_dataset=models.preference_rows(models.fitting(pairs, self.tokenizer, *fit)),
            processing_class=self.tokenizer,
        )
        run(trainer)

    def dpo(self, policy: PeftModel, pairs: Dataset, seed: int) -> None:
        """DPO as in notebook 04."""
        config = DPOConfig(
            beta=self.profile.dpo.beta,
            train_sampling_strategy="sequential",
            precompute_ref_log_probs=True,
            **self.stage_arguments(self.profile.dpo, seed),
        )
        self.train_pairs(SharedPromptDPOTrainer, policy, pairs, config)

    def logps(self, policy: PeftModel, rows: Dataset) -> np.ndarray:
        """ln π of the chosen and of the rejected answers of the rows, (2, rows)."""
        questions = models.conversations(rows)
        sides = [rows[side] for side in ("chosen", "rejected")]
        return np.stack(
            [models.answer_logps(policy, self.tokenizer, questions, side)[0] for side in sides]
        )

    def saved(self, policy: PeftModel, name: str) -> Path:
        """The folder in which the adapter of a policy is saved."""
        out = self.scratch / name
        out.mkdir(exist_ok=True)
        models.save_adapter(policy, self.tokenizer, out, self.name)
        return out


def smaller(profile: Profile) -> Profile:
    """The least training, to check that the program runs."""
    return replace(
        profile,
        sft=replace(profile.sft, rows=16),
        dpo=replace(profile.dpo, batch_size=4),
        chat=replace(profile.chat, max_new_tokens=8),
    )


def options(description: str, program: str) -> argparse.Namespace:
    """`--out`, by default the JSON beside the program, and `--quick`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path(program).with_suffix(".json"))
    parser.add_argument(
        "--quick", action="store_true", help="least training, to check that it runs"
    )
    return parser.parse_args()


def continued(out: Path, facts: dict[str, object], replace: bool = False) -> dict:
    """What `out` holds, to be continued; nothing if it has other facts and is to be replaced.

    Otherwise a file with other facts ends the program unharmed.
    """
    result = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    other = [name for name, value in facts.items() if result and result.get(name) != value]
    if other and replace:
        return {}
    if other:
        names = ", ".join(other)
        sys.exit(f"{out.name} was measured with another {names}: move it away, or give --out.")
    return result


def seed_by_seed(
    out: Path,
    facts: dict[str, object],
    seeds: Sequence[int],
    runs: Callable[[int], list[dict]],
    conclude: Callable[[dict], None],
) -> None:
    """Add the runs of every seed that `out` does not have yet, and write it after each seed.

    `conclude` gets the whole result before it is written.
    """
    result = continued(out, facts) or {**facts, "machine": machine("cpu"), "runs": []}
    for seed in seeds:
        if any(each["seed"] == seed for each in result["runs"]):
            continue
        result["runs"] += runs(seed)
        conclude(result)
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        out.write_text(text, encoding="utf-8")


def digits(verdicts: Iterable[bool]) -> str:
    """One digit per pair: 1 if the verdict is true, else 0."""
    return "".join("01"[int(verdict)] for verdict in verdicts)


def numbers(texts: Iterable[str]) -> np.ndarray:
    """The digits of each text as numbers, (texts, pairs)."""
    return np.array([[int(digit) for digit in text] for text in texts])


def interval(
    verdicts: np.ndarray, questions: Sequence[str], draws: int = 1000
) -> tuple[float, float, float]:
    """The mean of (seeds, pairs), and its 95 % interval over drawn questions.

    All pairs of a question are drawn together. Seeds are averaged first, so that the interval
    covers the choice of questions and not the seed.

    >>> interval(np.array([[1, 1, 0, 0]]), ["a", "a", "a", "a"])
    (0.5, 0.5, 0.5)
    """
    names, group = np.unique(np.asarray(questions), return_inverse=True)
    right = np.bincount(group, verdicts.mean(axis=0), len(names))
    pairs = np.bincount(group, minlength=len(names))
    drawn = np.random.default_rng(0).integers(len(names), size=(draws, len(names)))
    means = right[drawn].sum(axis=1) / pairs[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(right.sum() / pairs.sum()), float(low), float(high)


# --- CUDA: real architectures with random weights, lengths like those of real data ---------------


def word_tokenizer(vocabulary: int) -> object:
    """A tokenizer with one token per word, so that a text has as many tokens as words."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<end>": 1} | {f"w{i}": i for i in range(2, vocabulary)}
    backend = Tokenizer(kinds.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<pad>", padding_side="right"
    )


def random_words(count: int, median: float, spread: float, vocabulary: int, seed: int) -> list[str]:
    """Random texts; their lengths in words are log-normal with the given median."""
    numbers = random.Random(seed)
    lengths = [max(3, round(numbers.lognormvariate(0, spread) * median)) for _ in range(count)]
    return [" ".join(f"w{numbers.randrange(2, vocabulary)}" for _ in range(n)) for n in lengths]


def random_llama(shape: str, profile: Profile) -> torch.nn.Module:
    """A Llama with random weights in four bits, packed layer by layer.

    So the 16-bit weights of an 8B model never have to be on the device all at once.
    """
    import bitsandbytes as bnb
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, inner, heads, groups, vocabulary, tied = SHAPES[shape]
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    dtype = DTYPES[profile.precision]
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            packed = bnb.nn.Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=False,
                compute_dtype=dtype,
                quant_type="nf4",
            )
            packed.weight = bnb.nn.Params4bit(
                layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
            )
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, packed.to(profile.device))
    model.is_loaded_in_4bit = True
    return model.to(profile.device)


# --- Rounds and peak memory ----------------------------------------------------------------------


def scores(trainer: object, held_out_loss: Callable[[object], float]) -> dict[str, float]:
    """The steps and the losses of a finished training."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    last = losses[-max(1, len(losses) // 4) :]
    return {
        "steps": trainer.state.global_step,
        "training_loss_of_last_quarter": sum(last) / len(last),
        "held_out_loss": held_out_loss(trainer.model),
    }


def interleaved(
    runs: dict[str, Callable[[], Run]], rounds: int, device: str
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, dict[str, float]]]:
    """Seconds and CPU seconds of each round of each method, in rotating order; the last scores.

    CPU seconds do not count while another job uses the machine. The clock covers the training only:
    the outer function prepares it (loads a model), and the scores are computed after the clock.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in names}
    reached = {}
    for turn in range(rounds):
        for offset in range(len(names)):
            name = names[(turn + offset) % len(names)]
            train = runs[name]()
            begin, worked = time.perf_counter(), time.process_time()
            score = train()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begin)
            cpu_seconds[name].append(time.process_time() - worked)
            reached[name] = score()
            print(f"  {name}: {seconds[name][-1]:.1f} s, CPU {cpu_seconds[name][-1]:.1f} s")
    return seconds, cpu_seconds, reached


def report_of(
    runs: dict[str, Callable[[], Run]],
    rounds: int,
    device: str,
    rows: int,
    tokens: int,
    peak: Callable[[str], float],
) -> dict:
    """Speed, peak memory and scores of each method, and the other methods' time over ours."""
    seconds, cpu_seconds, reached = interleaved(runs, rounds, device)
    found: dict = {"rows": rows, "tokens": tokens, "rounds": rounds}
    for name in runs:
        middle = statistics.median(seconds[name])
        found[name] = {
            "pairs_per_second": round(rows / middle, 2),
            "tokens_per_second": round(tokens / middle, 1),
            "peak_mb": peak(name),
            "seconds": [round(value, 2) for value in seconds[name]],
            "cpu_seconds": [round(value, 2) for value in cpu_seconds[name]],
            **{key: round(value, 4) for key, value in reached[name].items()},
        }
    for other in list(runs)[1:]:
        for label, spent in (("ratio", seconds), ("cpu_ratio", cpu_seconds)):
            each = [b / a for a, b in zip(spent["ours"], spent[other], strict=True)]
            found[f"{label}_to_{other}"] = round(statistics.median(each), 2)
            found[f"{label}s_to_{other}"] = [round(value, 2) for value in each]
    return found


def print_peak(prepare: Callable[[], Run], device: str) -> None:
    """Train once and print the peak memory in MB.

    On a CPU it is counted above the loaded model; on CUDA it is the whole allocation.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        prepare()()
        print(torch.cuda.max_memory_allocated() / 1e6)
        return
    import psutil

    train = prepare()
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # restart the high-water mark
    train()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM"))
    print((int(peak.split()[1]) * 1024 - before) / 1e6)


def peak_of(program: str, arguments: Sequence[str]) -> float:
    """The number that a new process of the same program prints last."""
    command = [sys.executable, program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The memory run {arguments} failed: {done.stderr.strip()[-2000:]}")
    return round(float(done.stdout.split()[-1]), 1)


def arguments(description: str, methods: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="a few rows, to check that it runs")
    parser.add_argument("--out", type=Path, help="default: the JSON beside this program")
    parser.add_argument("--note", default="", help="for the JSON: what else ran at the same time")
    parser.add_argument("--peak-of", choices=methods, help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=SHAPES, help=argparse.SUPPRESS)
    parser.add_argument("--profile", choices=TABLE, default="t4", help=argparse.SUPPRESS)
    return parser.parse_args()


def main(
    program: str,
    description: str,
    methods: Sequence[str],
    lab_task: Callable[[bool, str], dict],
    cuda_task: Callable[[str, Profile, int, str], dict],
    runs_of: Callable[[dict], dict[str, Callable[[], Run]]],
) -> None:
    """Measure every task of a device, its peak memory in new processes, and write the JSON."""
    asked = arguments(description, methods)
    quiet()
    tasks = [("lab", None, None)]
    if asked.device == "cuda":
        shapes = ["tiny"] if asked.quick else ["Llama-3.2-1B"]
        tasks = [(f"{s} {name}", s, name) for s in shapes for name in ("t4", "a100")]
    # 1.0 and more at the start: something else ran
    report: dict = {"device": asked.device, "load_at_start": round(os.getloadavg()[0], 2)}
    with tempfile.TemporaryDirectory() as folder:

        def make(shape: str | None, profile: str | None) -> dict:
            if shape is None:
                return lab_task(asked.quick, folder)
            return cuda_task(shape, TABLE[profile], 32 if asked.quick else 256, folder)

        if asked.peak_of:
            task = make(asked.shape, asked.profile)
            return print_peak(runs_of(task)[asked.peak_of], asked.device)
        for label, shape, profile in tasks:
            extra = ["--device", asked.device, *(["--quick"] if asked.quick else [])]
            extra += ["--shape", shape, "--profile", profile] if shape else []

            def peak(method: str, extra: list[str] = extra) -> float:
                return peak_of(program, [*extra, "--peak-of", method])

            task = make(shape, profile)
            rounds = 1 if asked.quick else 3
            size = (task["profile"].device, len(task["rows"]), task["tokens"])
            report[label] = report_of(runs_of(task), rounds, *size, peak)
        if asked.device == "cuda" and not asked.quick:  # do larger models fit a T4?
            for shape in ("Llama-3.2-3B", "Llama-3.1-8B"):
                extra = ["--device", "cuda", "--shape", shape, "--profile", "t4"]
                report[f"{shape} t4 peak_mb"] = peak_of(program, [*extra, "--peak-of", "ours"])
    if asked.device == "cpu":
        report["cuda"] = "not measured"
    write(report, asked, program)


def write(report: dict, asked: argparse.Namespace, program: str) -> None:
    import bitsandbytes
    import peft
    import transformers
    import trl

    libraries = (torch, transformers, trl, peft, bitsandbytes)
    report["machine"] = machine(asked.device)
    if asked.note:
        report["note"] = asked.note
    report["versions"] = {library.__name__: library.__version__ for library in libraries}
    out = asked.out or Path(program).with_suffix(".json")
    if asked.device == "cuda" and out.exists():  # keep what was measured on the CPU
        report = json.loads(out.read_text(encoding="utf-8")) | {"cuda": report}
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

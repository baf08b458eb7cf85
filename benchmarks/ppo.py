"""Episodes per second of our PPO, compared with TRL 1.12's PPOTrainer and a plain loop.

    python benchmarks/ppo.py [--device cuda] [--quick] [--out FILE]

Equal work: the same GPT-2 with random weights, prompts and responses of the same lengths (no text
can end early: the end-of-text id lies outside the model's vocabulary), one minibatch per batch, the
same number of epochs, and a random reward that takes no time. TRL needs a separate value model; our
PPO and the plain loop compute the values from the policy's trunk. `ours_separate_value` is our PPO
with a value model like TRL's, which shows how much of the speed comes from the shared trunk.

Rounds are interleaved in one process, in rotating order. A ratio is computed within each round, and
the median over rounds is reported. Peak memory comes from a new process per method: the highest
resident size (on CUDA: the highest allocation) minus that after the imports.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.course.paths import ROOT

TRL = "1.12.0"
METHODS = ("ours", "trl", "naive", "ours_separate_value")


@dataclass(frozen=True)
class Size:
    name: str
    layers: int
    width: int
    vocabulary: int
    batch: int = 64  # episodes per update
    updates: int = 1  # in one timed run
    rounds: int = 5
    prompt: int = 16  # tokens
    response: int = 32  # tokens
    epochs: int = 4


CPU_SIZES = (
    Size("GPT-2 4x128, vocabulary 4,000", 4, 128, 4_000),
    Size("GPT-2 6x192, vocabulary 8,000", 6, 192, 8_000, rounds=4),
    Size("GPT-2 6x256, vocabulary 16,000", 6, 256, 16_000, batch=32, rounds=4),
)
CUDA_SIZES = (Size("GPT-2 124M", 12, 768, 50_257, updates=4),)
QUICK_SIZES = (Size("quick", 1, 32, 100, batch=4, rounds=1, prompt=4, response=4, epochs=2),)


def fetch_trl() -> Path:
    """The folder of TRL 1.12.0, installed apart so that the course's own TRL stays unchanged."""
    folder = ROOT / ".cache" / f"trl-{TRL}"
    if not (folder / f"trl-{TRL}.dist-info" / "RECORD").exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as new:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            command = [*pip, "--target", f"{new}/trl", f"trl=={TRL}"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["pip printed no reason"]
                raise RuntimeError(f"pip could not install trl=={TRL} aside ({lines[-1]})")
            with contextlib.suppress(OSError):  # another process was faster
                os.replace(f"{new}/trl", folder)
    return folder


# --- The three methods: each returns a function that runs a given number of updates --------------


def models_and_tokenizer(size: Size, device: str) -> tuple[Callable, object]:
    """A function that creates equal GPT-2s, and a tokenizer with one token per word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, PreTrainedTokenizerFast

    config = GPT2Config(
        n_layer=size.layers,
        n_embd=size.width,
        n_head=max(1, size.width // 64),
        vocab_size=size.vocabulary,
        n_positions=max(64, size.prompt + size.response),
        bos_token_id=None,
        eos_token_id=None,
    )
    words = {f"w{i}": i for i in range(size.vocabulary)}
    words |= {"<end>": size.vocabulary, "<pad>": size.vocabulary + 1}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<pad>"
    )

    def make(kind: type, **changes: object) -> torch.nn.Module:
        torch.manual_seed(0)
        return kind(GPT2Config(**config.to_dict() | changes)).to(device)

    return make, tokenizer


def prompts_of(size: Size) -> list[list[int]]:
    import torch

    numbers = torch.Generator().manual_seed(0)
    shape = (4 * size.batch, size.prompt)
    return torch.randint(size.vocabulary, shape, generator=numbers).tolist()


def random_reward(texts: list[str]) -> object:
    import torch

    return torch.randn(len(texts))


def ours(size: Size, device: str, shared: bool = True) -> Callable[[int], None]:
    from transformers import GPT2LMHeadModel

    from utils.ppo.trainer import PPOConfig, PPOTrainer

    make, tokenizer = models_and_tokenizer(size, device)
    config = PPOConfig(
        batch_size=size.batch,
        minibatch_size=size.batch,
        epochs=size.epochs,
        learning_rate=1e-5,
        max_new_tokens=size.response,
        shared_value_head=shared,
    )
    trainer = PPOTrainer(
        make(GPT2LMHeadModel), tokenizer, random_reward, prompts_of(size), config, progress=False
    )

    def run(updates: int) -> None:
        for _ in range(updates):
            trainer.update(trainer.experience(trainer.rollout()))

    return run


def trl(size: Size, device: str) -> Callable[[int], None]:
    for name in [name for name in sys.modules if name.split(".")[0] == "trl"]:
        del sys.modules[name]  # the course's TRL, which has no PPO trainer
    sys.path.insert(0, str(fetch_trl()))
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch
    from datasets import Dataset
    from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    class RandomReward(torch.nn.Module):
        """A reward model that takes no time, with the interface that TRL needs."""

        base_model_prefix = "backbone"

        def backbone(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
            hidden = torch.randn(*input_ids.shape, 1, device=input_ids.device)
            return SimpleNamespace(hidden_states=[hidden])

        def score(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden

    make, tokenizer = models_and_tokenizer(size, device)
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        total_episodes=size.batch * size.updates,
        per_device_train_batch_size=size.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=size.epochs,
        local_rollout_forward_batch_size=size.batch,
        num_sample_generations=0,
        response_length=size.response,
        temperature=1.0,
        learning_rate=1e-5,
        use_cpu=device == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = PPOTrainer(
        config,
        tokenizer,
        make(GPT2LMHeadModel),
        make(GPT2LMHeadModel),
        RandomReward(),
        Dataset.from_list([{"input_ids": prompt} for prompt in prompts_of(size)]),
        make(GPT2ForSequenceClassification, num_labels=1, pad_token_id=None),
    )

    def run(updates: int) -> None:
        trainer.args.num_total_batches = updates
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()

    return run


def naive(size: Size, device: str) -> Callable[[int], None]:
    """The simplest PPO: `generate`, logits of whole sequences, autograd, a value head."""
    import torch
    from transformers import GPT2LMHeadModel

    from utils import losses

    make, tokenizer = models_and_tokenizer(size, device)
    policy, reference = make(GPT2LMHeadModel).eval(), make(GPT2LMHeadModel).eval()
    head = torch.nn.Linear(size.width, 1, device=device)
    parameters = [*policy.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    prompts = torch.tensor(prompts_of(size), device=device)
    mask = torch.ones(size.batch, size.response, dtype=torch.bool, device=device)

    def score(model: GPT2LMHeadModel, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = model(tokens, output_hidden_states=True)
        logps = output.logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])
        values = head(output.hidden_states[-1])[:, :-1]
        return tuple(x[:, -size.response :].squeeze(-1) for x in (logps, values))

    def update() -> None:
        rows = torch.randint(len(prompts), (size.batch,))
        with torch.no_grad():
            tokens = policy.generate(
                prompts[rows],
                attention_mask=torch.ones_like(prompts[rows]),
                do_sample=True,
                top_k=0,
                max_new_tokens=size.response,
            )
            scores = random_reward(tokenizer.batch_decode(tokens)).to(device)
            old_logps, old_values = score(policy, tokens)
            kl = old_logps - score(reference, tokens)[0]
            rewards = losses.per_token_rewards(kl, scores, mask, 0.05)
            advantages, returns = losses.gae(rewards, old_values)
            advantages = losses.masked_whiten(advantages, mask)
        for _ in range(size.epochs):
            logps, values = score(policy, tokens)
            loss = losses.clipped_policy_loss(logps, old_logps, advantages).mean()
            loss = loss + 0.1 * losses.clipped_value_loss(values, old_values, returns).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

    def run(updates: int) -> None:
        for _ in range(updates):
            update()

    return run


def method(name: str, size: Size, device: str) -> Callable[[int], None]:
    if name == "ours_separate_value":
        return ours(size, device, shared=False)
    return {"ours": ours, "trl": trl, "naive": naive}[name](size, device)


# --- Measuring -----------------------------------------------------------------------------------


def timed(run: Callable[[int], None], updates: int, device: str) -> float:
    import torch

    start = time.perf_counter()
    run(updates)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matmul_peak(device: str) -> float:
    """The fastest float32 matrix product of this machine in GFLOP/s, with the same threads."""
    import torch

    side = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device) for _ in range(2))

    def run(repeats: int) -> None:
        for _ in range(repeats):
            torch.mm(a, b)

    run(1)
    return 2 * side**3 / min(timed(run, 1, device) for _ in range(10)) / 1e9


def flops_of(run: Callable[[int], None]) -> float:
    """The floating-point operations of the matrix products in one update."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run(1)
    return float(counter.get_total_flops())


def peak_memory(name: str, size: Size, device: str) -> float:
    """The peak memory of a new process in MB, minus its size after the imports."""
    command = [sys.executable, __file__, "--device", device, "--peak-of", name]
    command += ["--size", json.dumps(vars(size))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The memory run of {name} failed: {done.stderr.strip()[-2000:]}")
    return float(done.stdout.split()[-1])


def report_peak(name: str, size: Size, device: str) -> None:
    import psutil
    import torch

    if name == "trl":  # imports TRL before the memory is measured
        trl(QUICK_SIZES[0], device)(1)
    else:
        method(name, QUICK_SIZES[0], device)(1)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        method(name, size, device)(1)
        print(torch.cuda.max_memory_allocated() / 1e6)
        return
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # restart the high-water mark
    method(name, size, device)(1)
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print((int(peak.split()[1]) * 1024 - before) / 1e6)


def measure(size: Size, device: str) -> dict[str, object]:
    runs = {name: method(name, size, device) for name in METHODS}
    flops = {name: flops_of(run) for name, run in runs.items()}  # this also warms up each method
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    peaks = []
    for turn in range(size.rounds):
        peaks.append(matmul_peak(device))
        for offset in range(len(METHODS)):
            name = METHODS[(turn + offset) % len(METHODS)]
            seconds[name].append(timed(runs[name], size.updates, device))
    episodes = size.batch * size.updates
    found: dict[str, object] = {"name": size.name, **vars(size)}
    for name in METHODS:
        middle = statistics.median(seconds[name])
        found[f"{name}_episodes_per_second"] = round(episodes / middle, 2)
        share = flops[name] * size.updates / middle / 1e9 / max(peaks)
        found[f"{name}_share_of_matmul_peak"] = round(share, 3)
        found[f"{name}_gflop_per_update"] = round(flops[name] / 1e9, 2)
    for other in ("trl", "naive"):
        ratios = [b / a for a, b in zip(seconds["ours"], seconds[other], strict=True)]
        found[f"ratio_to_{other}"] = round(statistics.median(ratios), 2)
        found[f"ratios_to_{other}"] = [round(ratio, 2) for ratio in ratios]
    ratios = zip(seconds["ours_separate_value"], seconds["trl"], strict=True)
    found["separate_value_ratio_to_trl"] = round(statistics.median(b / a for a, b in ratios), 2)
    found["matmul_peak_gflops"] = round(max(peaks), 1)
    for name in ("ours", "trl", "naive"):
        found[f"{name}_peak_mb"] = round(peak_memory(name, size, device), 1)
    return found


def machine(device: str) -> dict[str, object]:
    import torch

    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    found = {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return found | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="one tiny size, to check that it runs")
    parser.add_argument("--out", type=Path, help="default: benchmarks/ppo.json, or ppo_cuda.json")
    parser.add_argument("--peak-of", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    device = arguments.device
    if arguments.peak_of:
        return report_peak(arguments.peak_of, Size(**arguments.size), device)
    fetch_trl()
    sizes = CPU_SIZES if device == "cpu" else CUDA_SIZES
    report = {"sizes": [], "device": device, "machine": machine(device)}
    for size in QUICK_SIZES if arguments.quick else sizes:
        found = measure(size, device)
        report["sizes"].append(found)
        print(
            f"{size.name}: ours {found['ours_episodes_per_second']} episodes/s, "
            f"{found['ratio_to_trl']} x TRL {TRL}, {found['ratio_to_naive']} x the plain loop; "
            f"peak {found['ours_peak_mb']} MB against TRL's {found['trl_peak_mb']} MB"
        )
    import accelerate
    import torch

    libraries = {"torch": torch, "transformers": transformers, "accelerate": accelerate}
    report["versions"] = {
        "python": platform.python_version(),
        "trl": sys.modules["trl"].__version__,
        **{name: library.__version__ for name, library in libraries.items()},
    }
    default = ROOT / "benchmarks" / ("ppo.json" if device == "cpu" else "ppo_cuda.json")
    out = arguments.out or default
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

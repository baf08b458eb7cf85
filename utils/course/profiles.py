"""One table of sizes, identifiers, precisions and learning rates: lab, t4, a100."""

import os
from dataclasses import dataclass, replace

from utils.course.errors import CourseError
from utils.course.language import later, tr

CPU_VARIABLE = "COURSE_ALLOW_CPU"
PROFILE_VARIABLE = "COURSE_PROFILE"
QUICK_VARIABLE = "COURSE_QUICK"
OLDEST = (7, 5)  # a T4's capability; Kaggle's P100 has 6.0


@dataclass(frozen=True)
class RewardModel:
    """Notebook 01: the sentiment classifier that becomes the reward."""

    model_id: str  # a Hub identifier, or "stand-in" for a tiny model that is built locally
    batch_size: int
    epochs: float
    learning_rate: float
    max_length: int  # tokens; 99% of the feedback is much shorter
    class_weight_exponent: float  # 0: all rows have equal weight; 1: all classes have equal weight
    label_smoothing: float  # prevents unnecessarily large logits
    word_dropout: float  # fraction of tokens masked in training


@dataclass(frozen=True)
class Policy:
    """Notebook 02: the language model that writes feedback, before any reward."""

    model_id: str
    adapt_epochs: int  # passes over the train split's sentences
    adapt_batch_size: int
    adapt_eval_batch_size: int  # small, because a large vocabulary's logits need much memory
    adapt_learning_rate: float
    prompt_words: int  # first words of a sentence that the policy continues
    held_out_prompts: int  # of the test split, for every evaluation
    base_samples: int  # texts per prompt, to estimate p(negative) before training
    reward_kind: str  # a kind of utils.models.negative_reward
    reward_cap: float  # the highest reward of a text, for the kind "capped"


@dataclass(frozen=True)
class PPORun:
    """Notebook 02: the settings of `utils.ppo.PPOConfig` that differ between profiles."""

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
    kl_estimator: str = "k1"
    lam: float = 1.0
    value_lam: float | None = None
    whiten_advantages: bool = True
    shared_value_head: bool = True
    value_learning_rate: float | None = None
    value_updates: int = 0


@dataclass(frozen=True)
class ChatModel:
    """A chat model of the Hub."""

    hub_id: str  # or "stand-in" for a tiny model that is built locally
    copy: str | None = None  # an ungated copy of the weights, for users without access
    licence: str = ""  # the terms, which a user must know before choosing the model
    licence_id: str = ""  # the Hub's identifier of these terms; "other: name" if it has none


@dataclass(frozen=True)
class ChatModels:
    """Notebooks 03 to 05 and 07: the models that answer questions, and the adapter on them."""

    choices: dict[str, ChatModel]  # the keys are values of COURSE_MODEL; the first is the default
    labelled: ChatModel  # notebook 07 collects votes on this model's answers
    lora_rank: int
    lora_alpha: int
    labelled_lora_alpha: int  # lora_alpha in notebook 07
    max_new_tokens: int
    standin_tokens: int  # tokens of a stand-in's pre-training


@dataclass(frozen=True, kw_only=True)
class AdapterTraining:
    """What notebooks 03, 04, 05 and 07 all choose when they train an adapter."""

    epochs: float
    batch_size: int  # packed rows in notebook 03, pairs in the others
    accumulation: int
    learning_rate: float  # of an adapter: ten to a hundred times that of full fine-tuning
    max_length: int  # tokens per packed row, or per prompt with one answer
    checkpointing: bool  # of activations: less memory, but about a third more time


@dataclass(frozen=True, kw_only=True)
class SFTRun(AdapterTraining):
    """Notebook 03: supervised fine-tuning on the chosen answers."""

    rows: int  # at most this many of train: 65,000 take longer than a T4 session
    save_steps: int
    side_rows: int  # rows of the short trainings that demonstrate a mistake


@dataclass(frozen=True, kw_only=True)
class DPORun(AdapterTraining):
    """Notebook 04: preferences on top of notebook 03's adapter."""

    rows: int
    save_steps: int
    beta: float
    held_out: int  # pairs of test for every evaluation


@dataclass(frozen=True)
class AttributeRun:
    """Notebooks 04 and 05: pairs whose preference is known exactly (utils/data/attributes.py)."""

    questions: int  # few, so that the reference knows their answers and only the attributes differ
    reference_pairs: int  # both answers of these pairs train the reference
    pairs: int
    chosen_rate: float
    rejected_rate: float
    sft_batch_size: int  # packed rows
    batch_size: int  # pairs
    sft_learning_rate: float
    learning_rate: float
    max_length: int
    beta: float


@dataclass(frozen=True, kw_only=True)
class ORPORun(AdapterTraining):
    """Notebook 05: preferences and answers in one stage, on the rows of 03 and 04."""

    save_steps: int
    weight: float  # λ, the weight of the odds ratio


@dataclass(frozen=True)
class PairMining:
    """Notebook 06: the rejected answers, found among the answers to other questions."""

    model_id: str  # a sentence encoder for segmented Vietnamese, or "tf-idf"
    batch_size: int  # texts per forward pass of the encoder
    rows: int  # at most this many rows of train
    candidates: int  # nearest answers that are examined for each question
    answer_ceiling: float  # above this similarity of two answers, both may be right
    question_ceiling: float  # above this similarity, two questions may ask the same


@dataclass(frozen=True, kw_only=True)
class Labelling(AdapterTraining):
    """Notebook 07: answers to vote on, and DPO on the votes."""

    families: tuple[str, ...]  # of systematic questions; (): the science questions
    questions: int  # number of questions
    held_out: int  # questions without votes, for every evaluation
    draws: int  # pairs of answers to each of the other questions
    temperatures: tuple[float, float]  # of a pair's first and second answer
    beta: float
    sft_weight: float  # weight of the supervised loss on chosen answers; 0: plain DPO


@dataclass(frozen=True)
class SmallDPO:
    """Notebook 08: SFT, then DPO, of a T5 and of a GPT-2 on Human-Like pairs."""

    t5_id: str  # an encoder-decoder
    gpt2_id: str
    judge_pairs: int  # pairs of train, used only for the style judge
    validation_pairs: int  # pairs of train, used only to decide when a training stops
    train_pairs: int  # at most this many of the other pairs
    held_out: int  # pairs of test for every evaluation
    max_prompt_length: int  # tokens, including the end token
    max_answer_length: int
    batch_size: int  # pairs; a batch has twice as many answers
    sft_epochs: int
    t5_sft_learning_rate: float
    gpt2_sft_learning_rate: float
    dpo_epochs: int
    t5_dpo_learning_rate: float
    gpt2_dpo_learning_rate: float
    beta: float
    max_new_tokens: int


@dataclass(frozen=True)
class Profile:
    """What one kind of machine runs, in the order of the notebooks."""

    name: str
    device: str  # "cpu" or "cuda"
    precision: str  # "fp32", "fp16" (T4) or "bf16" (capability 8 and later)
    offline: bool  # shipped data and stand-ins; nothing is downloaded from the Hub
    reward_model: RewardModel  # 01
    policy: Policy  # 02
    ppo: PPORun  # 02
    chat: ChatModels  # 03, 04, 05, 07
    sft: SFTRun  # 03
    dpo: DPORun  # 04
    attributes: AttributeRun  # 04
    orpo: ORPORun  # 05
    pair_mining: PairMining  # 06
    labelling: Labelling  # 07
    small_dpo: SmallDPO  # 08


# --- The rows. A GPU's row sets each field itself; beside a value that is also the lab's is why. --

# 01
_LAB_REWARD = RewardModel(
    model_id="stand-in",
    batch_size=32,
    epochs=5,
    learning_rate=1e-3,  # high, because the weights are not pre-trained
    max_length=64,
    class_weight_exponent=0.5,
    label_smoothing=0.05,
    word_dropout=0.15,  # needed because the stand-in is not pre-trained on other texts
)
_GPU_REWARD = RewardModel(
    model_id="vinai/phobert-base",
    batch_size=32,  # as in the lab; usual for BERT
    epochs=4,
    learning_rate=2e-5,  # usual for BERT
    max_length=256,  # PhoBERT's maximum
    class_weight_exponent=0.5,  # as in the lab: neutral rows are rare in both data sets
    label_smoothing=0.05,  # as in the lab: it limits the reward for any model
    word_dropout=0.0,
)

# 02
_LAB_POLICY = Policy(
    model_id="stand-in",
    adapt_epochs=6,
    adapt_batch_size=32,
    adapt_eval_batch_size=128,
    adapt_learning_rate=2e-3,
    prompt_words=2,
    held_out_prompts=600,
    base_samples=16,
    reward_kind="capped",
    reward_cap=1.0,  # below most logits of negative texts, so that it limits the reward
)
_GPU_POLICY = Policy(
    model_id="NlpHUST/gpt2-vietnamese",
    adapt_epochs=3,
    adapt_batch_size=32,  # as in the lab; it fits a T4: benchmarks/memory.json
    adapt_eval_batch_size=32,  # small, because each token has 50,257 logits
    adapt_learning_rate=5e-5,  # usual for GPT-2
    prompt_words=2,  # the same task as in the lab
    held_out_prompts=600,  # as many as in the lab, so the intervals have the same width
    base_samples=16,  # as in the lab, so p(negative) is estimated as precisely
    reward_kind="capped",  # the same reward as in the lab
    reward_cap=1.0,  # the cap of that reward
)
_LAB_PPO = PPORun(
    updates=144,  # 24 for the values, 120 for the policy
    batch_size=256,
    minibatch_size=64,
    epochs=1,  # a second pass over the same texts adds as much noise as it adds progress
    learning_rate=3e-4,
    anneal=True,
    max_new_tokens=24,
    kl_coef=0.1,  # with a reward of at most 1 the optimum writes almost only negative texts
    value_coef=1.0,
    kl_limit=100.0,
    precision="fp32",
    kl_estimator="exact",
    lam=0.8,
    value_lam=1.0,
    whiten_advantages=False,
    shared_value_head=False,
    value_learning_rate=1e-3,
    value_updates=24,
)
_T4_PPO = PPORun(
    updates=120,  # as many episodes as in the lab, so that the curves can be compared
    batch_size=256,  # as in the lab, so the updates can be compared
    minibatch_size=64,  # as in the lab; it fits a T4: benchmarks/memory.json
    epochs=2,
    learning_rate=1.5e-5,  # TRL's examples for GPT-2 use 1e-5 to 3e-5
    anneal=True,  # as in the lab: late noise adds less KL
    max_new_tokens=24,  # the same task as in the lab
    kl_coef=0.1,  # as in the lab, because the reward has the same scale
    value_coef=0.1,  # one trunk and the sampled KL: the lab's settings need more memory
    kl_limit=100.0,  # as in the lab: it stops only a run that has failed
    precision="fp16",
)

# 03 to 05 and 07
CHAT_MODELS = {
    "llama": ChatModel(
        "meta-llama/Llama-3.2-1B-Instruct",
        copy="unsloth/Llama-3.2-1B-Instruct",
        licence="Llama 3.2 Community License",
        licence_id="llama3.2",
    ),
    "qwen": ChatModel(
        "Qwen/Qwen2.5-3B-Instruct",
        licence=later("Qwen Research License: it forbids commercial use"),
        licence_id="other: qwen-research",
    ),
    "qwen3": ChatModel("Qwen/Qwen3-1.7B", licence="Apache-2.0", licence_id="apache-2.0"),
    "sailor": ChatModel(  # made for Vietnamese
        "sail/Sailor2-1B-Chat", licence="Apache-2.0", licence_id="apache-2.0"
    ),
}
_STANDIN_CHAT = ChatModel("stand-in")
_LAB_CHAT = ChatModels(
    choices=dict.fromkeys(CHAT_MODELS, _STANDIN_CHAT),
    labelled=_STANDIN_CHAT,
    lora_rank=16,
    lora_alpha=16,
    labelled_lora_alpha=16,
    max_new_tokens=48,
    standin_tokens=520_000,
)
_GPU_CHAT = ChatModels(
    choices=CHAT_MODELS,
    labelled=ChatModel(
        "meta-llama/Llama-3.1-8B-Instruct",
        copy="unsloth/Meta-Llama-3.1-8B-Instruct",
        licence="Llama 3.1 Community License",
        licence_id="llama3.1",
    ),
    lora_rank=16,  # with alpha = rank: the first version's values
    lora_alpha=16,  # as above
    labelled_lora_alpha=32,  # the first version's value in notebook 07
    max_new_tokens=256,
    standin_tokens=520_000,  # as in the lab, whose adapters the demo loads on a GPU too
)

# 03
_LAB_SFT = SFTRun(
    epochs=1,
    batch_size=3,
    accumulation=1,
    learning_rate=5e-3,  # at 2e-3 the stand-in learns the form of an answer, and no content
    max_length=96,  # a model of three layers cannot learn to write long answers
    checkpointing=False,
    rows=4_000,  # most of them are short enough
    save_steps=200,
    side_rows=600,
)
_T4_SFT = SFTRun(
    epochs=1,  # every profile reads each row once
    batch_size=4,
    accumulation=4,
    learning_rate=2e-4,  # learns on real weights: benchmarks/real_weights.json
    max_length=1024,
    checkpointing=True,
    rows=3_200,  # at most 45 minutes per notebook on a T4, by benchmarks/memory.py
    save_steps=50,  # a few minutes on a T4
    side_rows=400,
)
# Without checkpointing, Qwen2.5-3B fits into 40 GB with batches of 4 packed rows, but not with 8.
_A100_SFT = replace(_T4_SFT, rows=16_000, checkpointing=False)

# 04
_LAB_DPO = DPORun(
    epochs=1,
    batch_size=8,
    accumulation=1,
    learning_rate=3e-4,
    max_length=448,  # longer than 99 % of the shipped rows
    checkpointing=False,
    rows=400,  # half a minute on 2 cores
    save_steps=50,
    beta=0.1,
    held_out=250,
)
_T4_DPO = DPORun(
    epochs=1,  # every profile reads each row once
    batch_size=4,
    accumulation=4,
    learning_rate=5e-5,  # 2e-5 raises the plain accuracy by 3 points only: real_weights.json
    max_length=768,
    checkpointing=True,
    rows=1_600,
    save_steps=50,  # as in 03
    beta=0.1,  # as in the paper
    held_out=240,
)
_LAB_ATTRIBUTES = AttributeRun(
    questions=16,
    reference_pairs=700,
    pairs=700,
    chosen_rate=0.6,
    rejected_rate=0.3,
    sft_batch_size=1,
    batch_size=8,
    sft_learning_rate=6e-3,
    learning_rate=3e-4,  # at 1e-3 the content moves as well, which makes the rates too high
    max_length=256,
    beta=1.0,
)
_GPU_ATTRIBUTES = AttributeRun(
    questions=16,  # as in the lab: the same experiment on another model
    reference_pairs=700,  # as in the lab, for the same reason
    pairs=1_000,
    chosen_rate=0.6,  # as in the lab: the rates and beta determine where DPO ends
    rejected_rate=0.3,  # as in the lab, for the same reason
    sft_batch_size=4,
    batch_size=8,  # as in the lab; the pairs are short
    sft_learning_rate=2e-4,  # as in 03; not measured for these pairs
    learning_rate=5e-5,  # as in 04; not measured for these pairs
    max_length=256,  # as in the lab: the same texts
    beta=1.0,  # as in the lab: the end of DPO depends on it
)
_A100_DPO = replace(_T4_DPO, rows=8_000, batch_size=16, accumulation=1, held_out=500)

# 05
_LAB_ORPO = ORPORun(
    epochs=1,  # the rows of SFT and DPO together
    batch_size=8,
    accumulation=1,
    learning_rate=2e-3,
    max_length=448,
    checkpointing=False,
    save_steps=50,
    weight=0.3,
)
_T4_ORPO = ORPORun(
    epochs=1,  # the rows of SFT and DPO together
    batch_size=4,
    accumulation=4,
    learning_rate=2e-4,  # with weight 1.0; 1e-4 and 0.3 teach answers, no preference: real_weights
    max_length=768,
    checkpointing=True,
    save_steps=50,  # as in 03
    weight=1.0,
)
_A100_ORPO = replace(_T4_ORPO, batch_size=16, accumulation=1)

# 06
_LAB_PAIRS = PairMining(
    model_id="tf-idf",
    batch_size=128,
    rows=5_000,
    candidates=60,
    answer_ceiling=0.4,
    question_ceiling=0.6,
)
_GPU_PAIRS = PairMining(
    model_id="bkai-foundation-models/vietnamese-bi-encoder",
    batch_size=128,  # it fits a T4: benchmarks/memory.json; the lab's TF-IDF does not use it
    rows=70_000,  # all of Vi-Alpaca
    candidates=60,  # as in the lab; not measured on a GPU
    answer_ceiling=0.75,  # higher than for TF-IDF, as an encoder's similarities are higher;
    question_ceiling=0.8,  # both ceilings were chosen without a measurement
)

# 07
_LAB_LABELLING = Labelling(
    epochs=6,
    batch_size=16,
    accumulation=1,
    learning_rate=1e-3,
    max_length=256,
    checkpointing=False,
    # of all systematic families, those to which a stand-in of notebook 04 most often gave the right
    # value (a model of the former sample of 3,581 pairs: 27 of the 55 questions of test, greedy)
    families=("phân loại", "đếm chữ cái", "chẵn lẻ", "màu sắc", "châu lục"),
    questions=175,
    held_out=55,  # all of them in the shipped test split
    draws=4,
    temperatures=(0.6, 0.8),
    beta=0.1,
    sft_weight=1.0,  # also called RPO; not compared with plain DPO
)
_GPU_LABELLING = Labelling(
    epochs=3,  # the first version's values: epochs, batch, learning rate and beta
    batch_size=4,
    accumulation=1,  # a step is one batch, as in the first version
    learning_rate=5e-5,
    max_length=512,
    checkpointing=True,
    families=(),
    questions=140,  # all of them
    held_out=40,
    draws=1,
    temperatures=(0.7, 1.0),
    beta=0.1,  # the first version's value
    sft_weight=0.0,
)

# 08
_LAB_SMALL = SmallDPO(
    t5_id="stand-in",
    gpt2_id="stand-in",
    judge_pairs=60,
    validation_pairs=40,
    train_pairs=180,
    held_out=60,
    max_prompt_length=40,
    max_answer_length=112,
    batch_size=16,
    sft_epochs=6,  # the validation loss hardly falls after that
    t5_sft_learning_rate=3e-3,
    gpt2_sft_learning_rate=2e-3,
    dpo_epochs=4,  # the validation loss hardly falls after that
    t5_dpo_learning_rate=3e-4,
    gpt2_dpo_learning_rate=3e-4,
    beta=0.1,
    max_new_tokens=60,
)
# English models, because the Hub's pairs are in English. For Vietnamese models, set
# COURSE_T5=VietAI/vit5-base (MIT) and COURSE_POLICY=NlpHUST/gpt2-vietnamese.
_GPU_SMALL = SmallDPO(
    t5_id="google-t5/t5-small",
    gpt2_id="openai-community/gpt2",
    judge_pairs=500,
    validation_pairs=200,  # a loss of 200 pairs is precise enough to stop by
    train_pairs=4_000,
    held_out=500,
    max_prompt_length=128,
    max_answer_length=256,
    batch_size=8,
    sft_epochs=1,
    t5_sft_learning_rate=3e-4,
    gpt2_sft_learning_rate=5e-5,
    dpo_epochs=1,
    t5_dpo_learning_rate=5e-5,
    gpt2_dpo_learning_rate=1e-5,
    beta=0.1,  # the paper's
    max_new_tokens=128,
)

_LAB = Profile(
    "lab",
    "cpu",
    "fp32",
    offline=True,
    reward_model=_LAB_REWARD,
    policy=_LAB_POLICY,
    ppo=_LAB_PPO,
    chat=_LAB_CHAT,
    sft=_LAB_SFT,
    dpo=_LAB_DPO,
    attributes=_LAB_ATTRIBUTES,
    orpo=_LAB_ORPO,
    pair_mining=_LAB_PAIRS,
    labelling=_LAB_LABELLING,
    small_dpo=_LAB_SMALL,
)
_T4 = Profile(
    "t4",
    "cuda",
    "fp16",
    offline=False,
    reward_model=_GPU_REWARD,
    policy=_GPU_POLICY,
    ppo=_T4_PPO,
    chat=_GPU_CHAT,
    sft=_T4_SFT,
    dpo=_T4_DPO,
    attributes=_GPU_ATTRIBUTES,
    orpo=_T4_ORPO,
    pair_mining=_GPU_PAIRS,
    labelling=_GPU_LABELLING,
    small_dpo=_GPU_SMALL,
)
_A100 = replace(
    _T4,
    name="a100",
    precision="bf16",
    ppo=replace(_T4_PPO, precision="bf16"),
    sft=_A100_SFT,
    dpo=_A100_DPO,
    orpo=_A100_ORPO,
)

TABLE = {profile.name: profile for profile in (_LAB, _T4, _A100)}


class ProfileError(CourseError, ValueError):
    """A setting that this machine cannot run."""


def quick(profile: Profile) -> Profile:
    """The profile with so few rows that a notebook is a lesson of ten minutes or so on a T4.

    Notebook 07 takes the smaller chat model, as the large one alone downloads for longer than that.
    Its artifacts lie in a folder of their own, so that a full run never takes them for its own.
    """
    return replace(
        profile,
        name=f"{profile.name}-quick",
        reward_model=replace(profile.reward_model, epochs=min(1.0, profile.reward_model.epochs)),
        policy=replace(profile.policy, adapt_epochs=1, held_out_prompts=200, base_samples=8),
        ppo=replace(
            profile.ppo,
            updates=20,
            batch_size=128,
            value_updates=min(4, profile.ppo.value_updates),
        ),
        sft=replace(profile.sft, rows=800, side_rows=200),
        attributes=replace(profile.attributes, reference_pairs=300, pairs=300),
        dpo=replace(profile.dpo, rows=320, held_out=32),
        pair_mining=replace(profile.pair_mining, rows=3_000),
        small_dpo=replace(
            profile.small_dpo,
            train_pairs=400,
            held_out=60,
            sft_epochs=min(2, profile.small_dpo.sft_epochs),
            dpo_epochs=min(2, profile.small_dpo.dpo_epochs),
        ),
        labelling=replace(profile.labelling, questions=60, held_out=20),
        chat=replace(
            profile.chat,
            labelled=next(iter(profile.chat.choices.values())),
            max_new_tokens=min(128, profile.chat.max_new_tokens),
            standin_tokens=60_000,
        ),
    )


def _capability() -> tuple[int, int] | None:
    """The CUDA capability, or None without a CUDA device."""
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def use_one_gpu() -> None:
    """Let CUDA see one GPU: TRL's trainers refuse several in one process, and Kaggle lends two.

    It works before CUDA starts, so it is the first thing that a notebook does.
    """
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


def choose() -> Profile:
    """The profile of this machine, or the one that COURSE_PROFILE names."""
    capability = _capability()
    if capability is not None and (visible := _gpus()) > 1:
        raise ProfileError(
            tr(
                "{visible} GPUs are visible and a notebook trains on one: set "
                "CUDA_VISIBLE_DEVICES=0 and restart the kernel.",
                visible=visible,
            )
        )
    asked = os.environ.get(PROFILE_VARIABLE, "").strip().lower()
    if asked and asked not in TABLE:
        raise ProfileError(
            tr(
                "{variable}={asked} is not one of {known}: choose one.",
                variable=PROFILE_VARIABLE,
                asked=asked,
                known=", ".join(TABLE),
            )
        )
    # bf16 by capability: `torch.cuda.is_bf16_supported()` is also true on a T4, which emulates bf16
    if capability is not None and capability < OLDEST and asked != "lab":
        raise ProfileError(
            tr(
                "This GPU has capability {major}.{minor} and the course needs "
                "{oldest_major}.{oldest_minor} or later: choose a T4 (on Kaggle: Settings > "
                "Accelerator > GPU T4 x2), or set {variable}=lab to work on the CPU.",
                major=capability[0],
                minor=capability[1],
                oldest_major=OLDEST[0],
                oldest_minor=OLDEST[1],
                variable=PROFILE_VARIABLE,
            )
        )
    native_bf16 = capability is not None and capability[0] >= 8
    name = asked or ("lab" if capability is None else "a100" if native_bf16 else "t4")
    profile = TABLE[name]
    if os.environ.get(QUICK_VARIABLE) == "1":
        profile = quick(profile)
    if profile.device == "cuda" and capability is None:
        if os.environ.get(CPU_VARIABLE) != "1":
            raise ProfileError(
                tr(
                    "{variable}={name} needs a CUDA device and this machine has none: unset it for "
                    "the lab profile, or set {cpu_variable}=1 to run it slowly on the CPU.",
                    variable=PROFILE_VARIABLE,
                    name=name,
                    cpu_variable=CPU_VARIABLE,
                )
            )
        ppo = replace(profile.ppo, precision="fp32")
        return replace(profile, device="cpu", precision="fp32", ppo=ppo)
    if name == "a100" and not native_bf16:
        raise ProfileError(
            tr(
                "{variable}=a100 computes in bf16 and this GPU has capability {major}.{minor} "
                "(8.0 needed): use {variable}=t4.",
                variable=PROFILE_VARIABLE,
                major=capability[0],
                minor=capability[1],
            )
        )
    return profile


def describe(profile: Profile) -> str:
    """One line for the banner: what machine, what precision, what data and models."""
    models = tr("shipped data, stand-in models") if profile.offline else tr("models from the Hub")
    return tr(
        "profile {name} ({device}, {precision}; {models})",
        name=profile.name,
        device=profile.device,
        precision=profile.precision,
        models=models,
    )

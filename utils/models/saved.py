"""The models that the notebooks saved, and the answers of two of them to one prompt.

1. MODELS: the models that can be chosen, and the notebook that makes each of them.
2. Library: loads each model once and checks it by its manifest.
3. write, answer_logp: generate an answer token by token; compute its log-probability.
4. answer_both: generate two answers in parallel, then compute their implicit rewards.
"""

import json
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from operator import attrgetter
from pathlib import Path
from threading import Lock

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from utils import losses
from utils.course import artifacts, profiles
from utils.course.errors import CourseError
from utils.data.pairs import load_preferences
from utils.models import adapters, chat, chat_standins, logprobs
from utils.models.draws import DRAWS, generator
from utils.models.language import STAND_IN, local_or_hub

# --- 1. The models that can be chosen ------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A model that a notebook saves."""

    key: str  # the name that a vote records
    label: str  # the name that the demo shows
    loader: str  # a key of LOADERS
    artifact: str  # the artifact's name, which is the notebook's file name without .ipynb
    folder: str  # the model's folder inside the artifact
    reference: str = ""  # the key of its reference model; "" if there is none
    beta_field: str = ""  # the profile's field that holds β, the coefficient of the KL term

    @property
    def beta(self) -> float:
        """β, the coefficient of the KL term, from this machine's profile."""
        return attrgetter(self.beta_field)(profiles.choose())

    @property
    def notebook(self) -> str:
        """The number of the notebook that makes it."""
        return self.artifact[:2]


_PPO, _SFT = "02_gpt2_ppo_negative_feedback", "03_llama_sft_vi_alpaca"
_DPO, _ORPO, _HUMAN = "04_llama_dpo_vi_alpaca", "05_orpo_vs_dpo", "08_dpo_t5_gpt2_and_demo"
_VOTES, _SMALL = "07_collect_preferences", "small_dpo.beta"
MODELS = (
    Entry("gpt2-base", "GPT-2 nhận xét · gốc", "causal", _PPO, "reference"),
    Entry("gpt2-ppo", "GPT-2 nhận xét · PPO", "causal", _PPO, "policy", "gpt2-base", "ppo.kl_coef"),
    Entry("llama-base", "Llama · gốc", "base", _SFT, "adapter"),
    Entry("llama-sft", "Llama · SFT", "adapter", _SFT, "adapter"),
    Entry("llama-dpo", "Llama · DPO", "adapter", _DPO, "adapter", "llama-sft", "dpo.beta"),
    Entry("llama-orpo", "Llama · ORPO", "adapter", _ORPO, "adapter"),
    Entry("llama-votes", "Llama · DPO từ phiếu bầu", "adapter", _VOTES, "adapter"),
    Entry("t5-sft", "T5 trò chuyện · SFT", "seq2seq", _HUMAN, "t5_sft"),
    Entry("t5-dpo", "T5 trò chuyện · DPO", "seq2seq", _HUMAN, "t5_dpo", "t5-sft", _SMALL),
    Entry("gpt2-sft", "GPT-2 trò chuyện · SFT", "causal", _HUMAN, "gpt2_sft"),
    Entry("gpt2-dpo", "GPT-2 trò chuyện · DPO", "causal", _HUMAN, "gpt2_dpo", "gpt2-sft", _SMALL),
)


class SavedModelError(CourseError, RuntimeError):
    """An error that the user can correct; the message is in Vietnamese and in English."""

    def __init__(self, vietnamese: str, english: str) -> None:
        super().__init__(english)
        self.sentences = vietnamese, english


# --- 2. Loading models ---------------------------------------------------------------------------

KEPT = 4  # models in memory
MAX_CHARACTERS, MAX_PROMPT = 4000, 512  # limits of a prompt, in characters and in tokens
MAX_TOKENS = 256  # limit of an answer
Pair = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def _whole(kind: type, folder: Path) -> Pair:
    """A complete model from a folder that `save_pretrained` wrote."""
    model = kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device), AutoTokenizer.from_pretrained(folder)


def _chat(folder: Path, *, adapted: bool) -> Pair:
    """A chat model with 4-bit weights, as in notebook 03, with or without its adapter."""
    profile = profiles.choose()
    note = json.loads((folder.parent / adapters.BASE_NOTE).read_text(encoding="utf-8"))
    kind, _, rest = note["base"].partition(" ")
    if rest == STAND_IN:
        build = chat_standins.BUILDERS[kind]
        pairs = load_preferences(offline=profile.offline, quiet=True)
        base = str(build(adapters.base_documents(pairs), tokens=profile.chat.standin_tokens))
    else:
        base = local_or_hub(note["base"])
    adapters.check_base(folder.parent, base)
    model, _ = adapters.chat_model(base, profile)
    if adapted:
        model = PeftModel.from_pretrained(model, folder)
    return model, AutoTokenizer.from_pretrained(folder)


LOADERS: dict[str, Callable[[Path], Pair]] = {
    "causal": partial(_whole, AutoModelForCausalLM),
    "seq2seq": partial(_whole, AutoModelForSeq2SeqLM),
    "base": partial(_chat, adapted=False),
    "adapter": partial(_chat, adapted=True),
}


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to generate answers."""

    entry: Entry
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def context(self) -> int:
        """The length of the model's context in tokens, for prompt and answer together."""
        return logprobs.positions(self.model)

    @property
    def ends(self) -> set[int]:
        """The tokens that end an answer."""
        more = self.model.generation_config.eos_token_id
        return {self.tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])}

    def encode(self, prompt: str) -> list[int]:
        """The prompt's tokens in the format that this model was trained with."""
        if self.tokenizer.chat_template:
            return chat.prompt_ids(self.tokenizer, prompt)
        ids, end = self.tokenizer(prompt)["input_ids"], self.tokenizer.eos_token_id
        unended = self.model.config.is_encoder_decoder and ids[-1:] != [end]
        return [*ids, end] if unended else ids

    def text(self, tokens: list[int]) -> str:
        """The tokens as text; the last letter is left out while some of its bytes are missing."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True).rstrip("\ufffd").strip()


def load(entry: Entry, shelf: artifacts.Shelf) -> Loaded:
    """Load the model from its artifact after checking every file; use the GPU if there is one."""
    folder, reason = artifacts.find(entry.artifact, shelf)
    label, number = entry.label, entry.notebook
    if folder is None:
        raise SavedModelError(
            f"Chưa có {label}: hãy chạy notebook {number} trước.",
            f"{label} is not available ({reason}): run notebook {number} first.",
        )
    try:
        model, tokenizer = LOADERS[entry.loader](folder / entry.folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        cause = str(error) if isinstance(error, CourseError) else type(error).__name__
        raise SavedModelError(
            f"Không nạp được {label}: hãy chạy lại notebook {number}.",
            f"{label} cannot be loaded ({cause}): run notebook {number} again.",
        ) from error
    return Loaded(entry, model.eval(), tokenizer)


class Library:
    """The models of one shelf; each is loaded at its first use, and the latest stay in memory."""

    def __init__(self, shelf: artifacts.Shelf) -> None:
        self.shelf, self._lock = shelf, Lock()
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        found = {entry.artifact: None for entry in MODELS}
        found = {name: artifacts.find(name, shelf)[0] for name in found}
        self.available = {  # key -> a model whose artifact exists
            entry.key: entry
            for entry in MODELS
            if found[entry.artifact] and (found[entry.artifact] / entry.folder).is_dir()
        }

    def get(self, key: str | None) -> Loaded:
        """The model with this key."""
        if key not in self.available:
            raise SavedModelError("Hãy chọn hai mô hình.", "Choose two models.")
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = load(self.available[key], self.shelf)
            self._loaded.move_to_end(key)
            while len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)
            return self._loaded[key]


# --- 3. One answer -------------------------------------------------------------------------------


def prompt_tokens(loaded: Loaded, prompt: str) -> list[int]:
    """The prompt's tokens; an error with a clear message if it is empty or too long."""
    prompt = unicodedata.normalize("NFC", prompt).strip()
    if not prompt:
        raise SavedModelError("Hãy nhập một câu hỏi.", "Type a question.")
    limit, label = min(MAX_PROMPT, loaded.context // 2), loaded.entry.label
    length = f"{len(prompt)} ký tự", f"{len(prompt)} characters"
    if len(prompt) <= MAX_CHARACTERS:  # a much longer text is not tokenised at all
        tokens = loaded.encode(prompt)
        if len(tokens) <= limit:
            return tokens
        length = f"{len(tokens)} token", f"{len(tokens)} tokens"
    raise SavedModelError(
        f"Câu hỏi quá dài ({length[0]}; {label} nhận tối đa {limit} token): hãy rút ngắn.",
        f"The prompt is too long ({length[1]}; {label} accepts {limit} tokens): shorten it.",
    )


@torch.inference_mode()
def write(
    loaded: Loaded, prompt: list[int], draws: list[float], temperature: float
) -> Iterator[int]:
    """Yield the answer's tokens, one per random number in `draws`, including the end token."""
    model, ends, cache = loaded.model, loaded.ends, None
    tokens, name, extra = torch.tensor([prompt], device=model.device), "input_ids", {}
    if model.config.is_encoder_decoder:
        extra = {"encoder_outputs": model.get_encoder()(input_ids=tokens)}
        tokens = tokens.new_tensor([[model.config.decoder_start_token_id]])
        name = "decoder_input_ids"
    for draw in draws:
        made = model(**{name: tokens}, **extra, past_key_values=cache, use_cache=True)
        cache, logits = made.past_key_values, made.logits[:, -1].float()  # (1, vocabulary)
        if temperature > 0:
            token = losses.inverse_cdf(logits / temperature, logits.new_tensor([draw]))
        else:
            token = logits.argmax(-1)
        yield token.item()
        if token.item() in ends:
            return
        tokens = token.unsqueeze(0)


def answer_logp(loaded: Loaded, prompt: list[int], answer: list[int]) -> float:
    """ln π(answer | prompt) at temperature 1, summed over the answer's tokens."""
    return logprobs.answer_logps(loaded.model, [prompt], [answer]).item()


def implicit_reward(
    library: Library, key: str, prompt: list[int], answer: list[int]
) -> float | None:
    """β (ln π - ln π_ref) of an answer, in nats; None if there is no reference."""
    policy = library.get(key)
    if policy.entry.reference not in library.available:
        return None
    reference = library.get(policy.entry.reference)
    ratio = answer_logp(policy, prompt, answer) - answer_logp(reference, prompt, answer)
    return policy.entry.beta * ratio


# --- 4. Two answers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """The part of an answer that one model has generated so far."""

    text: str = ""
    tokens: int = 0
    reward: float | None = None  # nats; None without a reference


def answer_both(
    library: Library,
    keys: tuple[str, str],
    prompt: str,
    *,
    temperature: float,
    max_tokens: int,
    seed: int,
) -> Iterator[tuple[Answer, Answer]]:
    """Yield both answers after each new token; the last pair includes the implicit rewards.

    The random numbers depend on the seed and on the side, so a model can be compared with itself.
    """
    pair = [library.get(key) for key in keys]
    prompts = [prompt_tokens(loaded, prompt) for loaded in pair]
    streams = []
    for side, (loaded, tokens) in enumerate(zip(pair, prompts, strict=True)):
        limit = min(max_tokens, MAX_TOKENS, loaded.context - len(tokens))
        draws = torch.rand(limit, generator=generator(seed, DRAWS, side))
        streams.append(write(loaded, tokens, draws.tolist(), temperature))
    written: tuple[list[int], list[int]] = [], []
    answers = [Answer(), Answer()]
    for new in zip_longest(*streams):
        for side, token in enumerate(new):
            if token is not None:
                written[side].append(token)
                text = pair[side].text(written[side])
                answers[side] = Answer(text, len(written[side]))
        yield answers[0], answers[1]
    asked = zip(keys, prompts, written, strict=True)
    rewards = [implicit_reward(library, *answer) for answer in asked]
    yield replace(answers[0], reward=rewards[0]), replace(answers[1], reward=rewards[1])

"""The models that the notebooks saved, and the answers of two of them to one prompt.

1. MODELS: the models that can be chosen, and the notebook that makes each of them.
2. Library: loads each model once and checks it by its manifest.
3. write, answer_logp: generate an answer token by token; compute its log-probability.
4. answer_both: generate two answers in parallel, then both models score both answers.
"""

import json
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
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
from utils.course.language import later, tr
from utils.data.pairs import load_preferences
from utils.models import adapters, chat, chat_standins, logprobs, memory
from utils.models.draws import DRAWS, generator
from utils.models.language import STAND_IN, local_or_hub

# --- 1. The models that can be chosen ------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A model that a notebook saves."""

    key: str  # the name that a vote records
    name: str  # the name that the demo shows, in English
    loader: str  # a key of LOADERS
    artifact: str  # the artifact's name, which is the notebook's file name without .ipynb
    folder: str  # the model's folder inside the artifact
    reference: str = ""  # the key of its reference model; "" if there is none
    beta_field: str = ""  # the profile's field that holds β, the coefficient of the KL term

    @property
    def label(self) -> str:
        """The name in the student's language."""
        return tr(self.name)

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
_VOTES, _VOTED, _SMALL = "07_collect_preferences", "labelling.beta", "small_dpo.beta"
_BASE, _TUNED = later("GPT-2 feedback · base"), later("GPT-2 feedback · PPO")
_START, _LEARNED = later("Llama · before the votes"), later("Llama · DPO on the votes")
MODELS = (
    Entry("gpt2-base", _BASE, "causal", _PPO, "reference"),
    Entry("gpt2-ppo", _TUNED, "causal", _PPO, "policy", "gpt2-base", "ppo.kl_coef"),
    Entry("llama-base", later("Llama · base"), "base", _SFT, "adapter"),
    Entry("llama-sft", later("Llama · SFT"), "adapter", _SFT, "adapter"),
    Entry("llama-dpo", later("Llama · DPO"), "adapter", _DPO, "adapter", "llama-sft", "dpo.beta"),
    Entry("llama-orpo", later("Llama · ORPO"), "adapter", _ORPO, "adapter"),
    Entry("llama-start", _START, "start", _VOTES, "adapter"),
    Entry("llama-votes", _LEARNED, "adapter", _VOTES, "adapter", "llama-start", _VOTED),
    Entry("t5-sft", later("T5 chat · SFT"), "seq2seq", _HUMAN, "t5_sft"),
    Entry("t5-dpo", later("T5 chat · DPO"), "seq2seq", _HUMAN, "t5_dpo", "t5-sft", _SMALL),
    Entry("gpt2-sft", later("GPT-2 chat · SFT"), "causal", _HUMAN, "gpt2_sft"),
    Entry("gpt2-dpo", later("GPT-2 chat · DPO"), "causal", _HUMAN, "gpt2_dpo", "gpt2-sft", _SMALL),
)


class SavedModelError(CourseError, RuntimeError):
    """An error that the user can correct: one sentence in the student's language."""


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
    """A chat model with 4-bit weights, as in notebook 03, with or without the adapter `folder`."""
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


def _start(folder: Path) -> Pair:
    """The model on whose answers people voted: with its adapter if it had one, else the base."""
    start = folder.parent / adapters.START
    return _chat(start if start.is_dir() else folder, adapted=start.is_dir())


LOADERS: dict[str, Callable[[Path], Pair]] = {
    "causal": partial(_whole, AutoModelForCausalLM),
    "seq2seq": partial(_whole, AutoModelForSeq2SeqLM),
    "base": partial(_chat, adapted=False),
    "adapter": partial(_chat, adapted=True),
    "start": _start,
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


def _out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the GPU or of the machine does not suffice."""
    host = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    return host or memory.ran_out(error)


@contextmanager
def _enough_memory(*labels: str) -> Iterator[None]:
    """Turn an out-of-memory error within the block into one sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        names = ", ".join(labels)
        raise SavedModelError(
            tr(
                "Out of memory with {names}: ask for fewer tokens, or choose smaller models.",
                names=names,
            )
        ) from None


def load(entry: Entry, shelf: artifacts.Shelf) -> Loaded:
    """Load the model from its artifact after checking every file; use the GPU if there is one."""
    folder, reason = artifacts.find(entry.artifact, shelf)
    label, number = entry.label, entry.notebook
    if folder is None:
        raise SavedModelError(
            tr(
                "{model} is not available ({reason}): run notebook {number} first.",
                model=label,
                reason=reason,
                number=number,
            )
        )
    try:
        model, tokenizer = LOADERS[entry.loader](folder / entry.folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if _out_of_memory(error):
            raise
        cause = str(error) if isinstance(error, CourseError) else type(error).__name__
        raise SavedModelError(
            tr(
                "{model} cannot be loaded ({cause}): run notebook {number} again.",
                model=label,
                cause=cause,
                number=number,
            )
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

    def get(self, key: str | None, keep: Collection[str] = ()) -> Loaded:
        """The model with this key; the oldest ones but those in `keep` make room before it loads.

        If the memory does not suffice, all others but those in `keep` go, and it is tried again.
        """
        if key not in self.available:
            raise SavedModelError(tr("Choose two models."))
        with self._lock:
            if key not in self._loaded:
                self._make_room(KEPT - 1, keep)
                self._loaded[key] = self._load(self.available[key], keep)
            self._loaded.move_to_end(key)
            return self._loaded[key]

    def _load(self, entry: Entry, keep: Collection[str]) -> Loaded:
        try:
            return load(entry, self.shelf)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, SavedModelError) or not _out_of_memory(error):
                raise
        self._make_room(0, keep)
        with _enough_memory(entry.label):
            return load(entry, self.shelf)

    def _make_room(self, most: int, keep: Collection[str]) -> None:
        """Let models go, the oldest first, until at most `most` are left."""
        for key in [key for key in self._loaded if key not in keep]:
            if len(self._loaded) <= most:
                break
            del self._loaded[key]
        memory.release()


# --- 3. One answer -------------------------------------------------------------------------------


def prompt_tokens(loaded: Loaded, prompt: str) -> list[int]:
    """The prompt's tokens; an error with a clear message if it is empty or too long."""
    limit, label = min(MAX_PROMPT, loaded.context // 2), loaded.entry.label
    length = tr("{count} characters", count=len(prompt))
    if len(prompt) <= MAX_CHARACTERS:  # a longer text is neither normalised nor tokenised
        prompt = unicodedata.normalize("NFC", prompt).strip()
        if not prompt:
            raise SavedModelError(tr("Type a question."))
        tokens = loaded.encode(prompt)
        if len(tokens) <= limit:
            return tokens
        length = tr("{count} tokens", count=len(tokens))
    raise SavedModelError(
        tr(
            "The question is too long ({length}; {model} accepts {limit} tokens): shorten it.",
            length=length,
            model=label,
            limit=limit,
        )
    )


@dataclass
class Written:
    """The tokens that a model has generated so far."""

    by: Loaded
    tokens: list[int]

    @property
    def ended(self) -> bool:
        """Whether the model has ended its answer."""
        return bool(self.tokens) and self.tokens[-1] in self.by.ends


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


def answer_tokens(loaded: Loaded, written: Written) -> list[int]:
    """The answer in this model's tokens; its own answer keeps the tokens that it generated."""
    if loaded.tokenizer.get_vocab() == written.by.tokenizer.get_vocab():
        return written.tokens
    text = written.by.text(written.tokens)
    if loaded.tokenizer.chat_template:
        ids = chat.answer_ids(loaded.tokenizer, text)
        return ids if written.ended else _before_the_end(ids, loaded.ends)
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids, loaded.tokenizer.eos_token_id] if written.ended else ids


def _before_the_end(tokens: list[int], ends: set[int]) -> list[int]:
    first = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:first]


def answer_logp(loaded: Loaded, prompt: list[int], answer: list[int]) -> float:
    """ln π(answer | prompt) at temperature 1, summed over the answer's tokens."""
    return logprobs.answer_logps(loaded.model, [prompt], [answer]).item()


def implicit_rewards(
    library: Library, policy: Loaded, prompt: str, answers: tuple[Written, ...]
) -> list[float | None]:
    """β (ln π - ln π_ref) of each answer under one model, in nats; None without a reference.

    Both answers are scored, because a single model's reward of its own answer compares nothing. An
    answer that is empty, or longer than a model can read, has no reward: another model's answer may
    have more tokens for this one.
    """
    entry = policy.entry
    if entry.reference not in library.available:
        return [None] * len(answers)
    reference = library.get(entry.reference, keep=[written.by.entry.key for written in answers])
    rewards = []
    for written in answers:
        sides = [
            (model, prompt_tokens(model, prompt), answer_tokens(model, written))
            for model in (policy, reference)
        ]
        if any(not ids or len(begin) + len(ids) > model.context for model, begin, ids in sides):
            rewards.append(None)
            continue
        of_policy, of_reference = (answer_logp(*side) for side in sides)
        rewards.append(entry.beta * (of_policy - of_reference))
    return rewards


# --- 4. Two answers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """The part of an answer that one model has generated so far."""

    text: str = ""
    tokens: int = 0
    rewards: tuple[float | None, float | None] = (None, None)  # of model 1, model 2; in nats


def answer_both(
    library: Library,
    keys: tuple[str, str],
    prompt: str,
    *,
    temperature: float,
    max_tokens: int,
    seed: int,
    score: bool = True,
) -> Iterator[tuple[Answer, Answer]]:
    """Yield both answers after each new token; with `score`, a last pair has the implicit rewards.

    The random numbers depend on the seed and on the side, so a model can be compared with itself.
    """
    pair = [library.get(key, keep=keys) for key in keys]
    labels = dict.fromkeys(loaded.entry.label for loaded in pair)
    with _enough_memory(*labels):
        prompts = [prompt_tokens(loaded, prompt) for loaded in pair]
        streams = []
        for side, (loaded, tokens) in enumerate(zip(pair, prompts, strict=True)):
            limit = min(max_tokens, MAX_TOKENS, loaded.context - len(tokens))
            draws = torch.rand(limit, generator=generator(seed, DRAWS, side))
            streams.append(write(loaded, tokens, draws.tolist(), temperature))
        written = Written(pair[0], []), Written(pair[1], [])
        answers = [Answer(), Answer()]
        for new in zip_longest(*streams):
            for side, token in enumerate(new):
                if token is not None:
                    written[side].tokens.append(token)
                    text = pair[side].text(written[side].tokens)
                    answers[side] = Answer(text, len(written[side].tokens))
            yield answers[0], answers[1]
    if not score:
        return
    one, two = (_rewards(library, loaded, prompt, written) for loaded in pair)
    yield tuple(
        replace(answer, rewards=rewards)
        for answer, rewards in zip(answers, zip(one, two, strict=True), strict=True)
    )


def _rewards(
    library: Library, policy: Loaded, prompt: str, written: tuple[Written, Written]
) -> list[float | None]:
    """The implicit rewards; None if the memory does not suffice or a reference cannot be used."""
    try:
        with _enough_memory(policy.entry.label):
            return implicit_rewards(library, policy, prompt, written)
    except CourseError:  # the answers are there, and can be voted on without scores
        return [None] * len(written)

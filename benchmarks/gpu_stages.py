"""Every stage of the course that fills a GPU, at its real size, for `benchmarks/memory.py`.

Each stage is a function that runs inside `fake_gpu.simulated`. It builds the models as the notebook
does, stores in `gpu.resident` the other objects that the notebook has on the GPU, runs the stage,
and returns its shape. Rows are as long as the profile allows, unless lengths are given.
"""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, StaticCache

from benchmarks import fake_gpu
from benchmarks.fake_gpu import GPU, fused_head, prepare, states_of, tokens, train
from utils import losses
from utils.course.profiles import Profile
from utils.finetune import seq2seq_dpo, shared_prompt
from utils.models import adapters, chat, logprobs
from utils.models.precision import DTYPES
from utils.ppo import sampling
from utils.ppo.policy import ActorCritic

PROMPT, ANSWER = 70, 180  # mean tokens of Vi-Alpaca in the chat template
SHORT_PROMPT = 40  # little more than the template, so that two long answers fill the longest row
TWO_WORDS = 8  # tokens of the longest prompt of notebook 02

# --- Models --------------------------------------------------------------------------------------


def llama(hidden: int, layers: int, inner: int, tied: bool) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=128_256, hidden_size=hidden, num_hidden_layers=layers, intermediate_size=inner,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=tied,
    )  # fmt: skip


def qwen(
    kind: type, hidden: int, layers: int, inner: int, heads: int, groups: int, tied: bool
) -> transformers.PreTrainedConfig:
    return kind(
        vocab_size=151_936, hidden_size=hidden, num_hidden_layers=layers, intermediate_size=inner,
        num_attention_heads=heads, num_key_value_heads=groups, tie_word_embeddings=tied,
    )  # fmt: skip


CONFIGS = {
    "Llama-3.2-1B": llama(2048, 16, 8192, tied=True),
    "Qwen2.5-3B": qwen(transformers.Qwen2Config, 2048, 36, 11_008, 16, 2, tied=True),
    "Qwen3-1.7B": qwen(transformers.Qwen3Config, 2048, 28, 6144, 16, 8, tied=True),
    "Sailor2-1B": qwen(transformers.Qwen2Config, 896, 48, 4864, 14, 2, tied=False),
    "Llama-3.1-8B": llama(4096, 32, 14_336, tied=False),
    "PhoBERT-base": transformers.RobertaConfig(
        vocab_size=64_001, max_position_embeddings=258, type_vocab_size=1, num_labels=3
    ),
    "GPT-2": transformers.GPT2Config(),
    "T5-small": transformers.T5Config(),
}
CHAT = ("Llama-3.2-1B", "Qwen2.5-3B", "Qwen3-1.7B", "Sailor2-1B")  # the choices of COURSE_MODEL


def phobert() -> PreTrainedModel:
    maker = transformers.AutoModelForSequenceClassification
    return maker.from_config(CONFIGS["PhoBERT-base"], dtype=torch.float32)


def gpt2() -> PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_config(CONFIGS["GPT-2"], dtype=torch.float32)


def small_t5() -> PreTrainedModel:
    maker = transformers.AutoModelForSeq2SeqLM
    return maker.from_config(CONFIGS["T5-small"], dtype=torch.float32)


def chat_model(profile: Profile, name: str, *frozen: str) -> PeftModel:
    """A base in four bits with one trainable adapter and frozen ones; all adapters are in fp32."""
    config, dtype = CONFIGS[name], DTYPES[profile.precision]
    base = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model = get_peft_model(fake_gpu.in_four_bits(base), adapters.lora(profile.chat))
    for adapter in frozen:
        model.add_adapter(adapter, adapters.lora(profile.chat))
    model.set_adapter("default")
    return model


# --- Stages of 01, 02 and 06: the reward, the policy, the encoder --------------------------------


def reward_step(gpu: GPU, profile: Profile, length: int) -> str:
    """01: a training step of all of PhoBERT's weights."""
    rows, model = profile.reward_model.batch_size, phobert()
    prepare(model, profile.precision)
    labels = torch.zeros(rows, dtype=torch.long)

    def loss() -> Tensor:
        logits = model(input_ids=tokens(rows, length), attention_mask=tokens(rows, length)).logits
        return F.cross_entropy(logits.float(), labels, torch.ones(3), label_smoothing=0.05)

    train(gpu, model, loss)
    return f"{rows} x {length}"


def classification(gpu: GPU, profile: Profile, length: int, trained: bool) -> str:
    """128 sentences: 01's evaluation under autocast with AdamW's states, or a reward in fp32."""
    model = phobert()
    gpu.resident = states_of(model) if trained else []
    prepare(model, profile.precision if trained else "fp32")
    ids = tokens(128, length)
    gpu.once(lambda: model.eval()(input_ids=ids, attention_mask=ids))
    return f"128 x {length}"


def encoding(gpu: GPU, profile: Profile, length: int) -> str:
    """06: a batch of the sentence encoder, whose weights are in half precision."""
    rows = profile.pair_mining.batch_size
    model = transformers.AutoModel.from_config(CONFIGS["PhoBERT-base"], dtype=torch.float16).eval()
    ids = tokens(rows, length)
    gpu.once(lambda: model(input_ids=ids, attention_mask=ids))
    return f"{rows} x {length}"


def adaptation(gpu: GPU, profile: Profile, rows: int, length: int, training: bool) -> str:
    """02: language modelling with all logits, as transformers computes its loss."""
    model, ids = gpt2(), tokens(rows, length)
    prepare(model, profile.precision)
    if training:
        train(gpu, model, lambda: model(input_ids=ids, attention_mask=ids, labels=ids).loss)
    else:
        gpu.resident = states_of(model)
        gpu.once(lambda: model.eval()(input_ids=ids, attention_mask=ids, labels=ids))
    return f"{rows} x {length}"


MAIN, HACKED = "main run", "run without the KL"


def session(when: str) -> list[object]:
    """The models that notebook 02's variables hold on the GPU during a run."""
    base, student, noisy = gpt2(), gpt2(), gpt2()
    resident = [phobert(), base, states_of(base), noisy, student]  # `adapting` holds the states
    if when == HACKED:  # beside the policy and the reference of the main run
        policy = gpt2()
        resident += [policy, gpt2(), states_of(policy), states_of(policy)[::2]]
    return resident


def whole_states(trunk: nn.Module, rollout: sampling.Rollout, rows: Tensor) -> Tensor:
    """`sampling.response_states` for responses that all have the maximum length."""
    attention = rollout.attention[rows]
    hidden = trunk(
        input_ids=rollout.tokens[rows, :-1], attention_mask=attention[:, :-1],
        position_ids=losses.positions(attention)[:, :-1], use_cache=False,
    ).last_hidden_state  # fmt: skip
    return hidden[:, attention.shape[1] - rollout.mask.shape[1] - 1 :][rollout.mask[rows]]


def ppo(gpu: GPU, profile: Profile, part: str, when: str = MAIN) -> str:
    """02: "sampling" with the static cache, or "scoring" or "learning" of a minibatch."""
    run, words = profile.ppo, SimpleNamespace(eos_token_id=0, pad_token_id=0)
    new, rows = run.max_new_tokens, run.minibatch_size
    gpu.resident, (policy, reference) = session(when), (gpt2(), gpt2())
    sampling.fuse_gelu(reference)
    pair = ActorCritic(
        policy, words, reference, max_new_tokens=new, temperature=1.0, shared_value_head=True,
        precision=run.precision, batch_size=rows,
    )  # fmt: skip
    learner = nn.ModuleList([policy, pair.critic])
    cache = StaticCache(config=pair.trunk.config, max_cache_len=TWO_WORDS + new)
    given = [[1] * TWO_WORDS] * run.batch_size, torch.rand(run.batch_size, new)
    pair.static = (pair.trunk, cache)
    sample = functools.partial(pair.sample, *given, compiled=True)
    if part == "sampling":
        gpu.resident += states_of(learner)
        gpu.once(sample)
        return f"{run.batch_size} x ({TWO_WORDS} + {new})"
    rollout, some, gpu.learned = sample(), torch.arange(rows), rows * new

    def loss() -> Tensor:
        logps, values = pair.logps_and_values(rollout, some)
        clipped = losses.clipped_policy_loss(logps, logps.detach(), torch.ones_like(logps))
        return clipped.mean() + losses.clipped_value_loss(values, values.detach(), values).mean()

    with mock.patch.object(sampling, "response_states", whole_states):
        if part == "learning":
            train(gpu, learner, loss)
        else:
            gpu.resident += states_of(learner)
            gpu.once(lambda: (loss(), pair.reference_logps(rollout, some)))
    return f"{rows} x ({TWO_WORDS} + {new})"


# --- Stages of 03 to 05 and 07: chat models ------------------------------------------------------


def loaded(gpu: GPU, profile: Profile, name: str) -> str:
    """A model that stays on the GPU while another one is used, as in sweeps."""
    gpu.resident = [phobert() if name == "PhoBERT-base" else chat_model(profile, name)]
    gpu.start()
    return name


def sft_step(gpu: GPU, profile: Profile, name: str) -> str:
    """03: a training step on packed rows."""
    run, model = profile.sft, chat_model(profile, name)
    fused_head(model)
    prepare(model, profile.precision, run.checkpointing)
    ids, gpu.learned = tokens(run.batch_size, run.max_length), run.batch_size * (run.max_length - 1)
    given = {"input_ids": ids, "position_ids": ids, "labels": ids, "fused_lm_head": True}
    train(gpu, model, lambda: model(**given).loss, run.accumulation)
    return f"{run.batch_size} x {run.max_length}"


Lengths = tuple[int, int] | None  # of prompt and answer; None: the longest that the profile allows


def longest(run: object, lengths: Lengths) -> tuple[int, int]:
    """Tokens of prompt and answer."""
    return lengths or (SHORT_PROMPT, run.max_length - SHORT_PROMPT)


def pair_logps(
    gpu: GPU, count: int, prompt: int, answer: int
) -> tuple[Callable[[nn.Module], Tensor], str]:
    """The log-probabilities that `PromptOnce` computes: (2 · pairs, prompt + answer - 1)."""
    joined = prompt + 2 * answer + 1  # tokens of the row that contains both answers
    two, one = tokens(2 * count, prompt + answer), tokens(count, joined)
    seen = torch.ones(count, 1, joined, joined, dtype=torch.bool)
    row = {"input_ids": one, "position_ids": one, "attention_mask": seen, "labels": one}
    columns = tokens(2 * count, prompt + answer - 1)
    gpu.learned = 2 * count * answer

    def logps(model: nn.Module) -> Tensor:
        with mock.patch.object(shared_prompt, "joined", lambda *_: (row, columns)):
            return shared_prompt.PromptOnce(model)(two, two, two, fused_lm_head=True).log_probs

    return logps, f"{count} x {joined}"


def pair_step(gpu: GPU, profile: Profile, name: str, part: str, lengths: Lengths = None) -> str:
    """04 ("dpo"), 05 ("orpo"), 07 ("labelling"): a step on pairs that share their prompt."""
    run = getattr(profile, part)
    prompt, answer = longest(run, lengths)
    model = chat_model(profile, name, *(() if part == "orpo" else ("reference", "ref")))
    fused_head(model)
    prepare(model, profile.precision, run.checkpointing)
    logps, shape = pair_logps(gpu, run.batch_size, prompt, answer)

    def loss() -> Tensor:
        chosen, rejected = logps(model).sum(1).chunk(2)
        if part == "orpo":
            return losses.orpo_loss(chosen / answer, rejected / answer, -chosen.mean() / answer)
        return losses.dpo_loss(chosen, rejected, chosen.detach(), rejected.detach())

    train(gpu, model, loss, run.accumulation)
    return shape


def few_rows(gpu: GPU, profile: Profile, name: str) -> str:
    """03, 04: the gradients of eight rows, or of both answers of four pairs, without checkpointing.

    The notebooks take the shortest texts; here they are as long as the mean.
    """
    model, shape = chat_model(profile, name, "reference", "ref"), (8, PROMPT + ANSWER)
    fused_head(model)
    prepare(model, profile.precision)
    ids, gpu.learned = tokens(*shape), 8 * ANSWER

    @torch.enable_grad()
    def step() -> None:
        found = model(input_ids=ids, attention_mask=ids, labels=ids, fused_lm_head=True)
        found.log_probs.mean().backward()

    gpu.once(step)
    return "{} x {}".format(*shape)


def reference_pass(
    gpu: GPU, profile: Profile, name: str, part: str, lengths: Lengths = None
) -> str:
    """04, 07: the reference's log-probabilities of one batch, before training."""
    run, model = getattr(profile, part), chat_model(profile, name, "reference", "ref")
    fused_head(model)
    prepare(model, profile.precision)
    count = run.batch_size * {"dpo": 4, "labelling": 2}[part]
    logps, shape = pair_logps(gpu, count, *longest(run, lengths))
    gpu.once(lambda: logps(model))
    return shape


def evaluation(gpu: GPU, profile: Profile, name: str, length: int, padded: bool = True) -> str:
    """03 to 05, 07: one batch of `logprobs.answer_logps` after training."""
    model, rows = chat_model(profile, name, "reference"), logprobs.BATCH_TOKENS // length
    gpu.resident = states_of(model)
    prompt = min(PROMPT, length // 2)
    gpu.learned, gpu.answer = rows * (length - prompt), not padded
    asked, replied = [[1] * prompt] * rows, [[1] * (length - prompt)] * rows
    gpu.once(lambda: logprobs.answer_logps(model, asked, replied))
    return f"{rows} x {length}"


def next_token(model: nn.Module, rows: int, known: int, read: int) -> None:
    """A step of `generate`: read `read` tokens with `known` ones in the cache, draw one token."""
    cache, config = DynamicCache(config=model.config), model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = rows, config.num_key_value_heads, known, width
    for layer in range(config.num_hidden_layers if known else 0):
        cache.update(*(torch.empty(shape, dtype=model.dtype) for _ in "kv"), layer)
    given = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    logits = model(input_ids=tokens(rows, read), attention_mask=tokens(rows, known + read), **given)
    scores = logits.logits[:, -1].to(torch.float32, copy=True)
    torch.multinomial(scores.softmax(-1), 1)


def generation(gpu: GPU, profile: Profile, name: str, prompt: int = SHORT_PROMPT) -> str:
    """03 to 05, 07: one batch of `chat.reply`: its prompts, then its last token (its time)."""
    model, new = chat_model(profile, name, "reference").eval(), profile.chat.max_new_tokens
    gpu.resident = states_of(model)
    rows = chat.REPLY_TOKENS // (prompt + new)
    gpu.once(lambda: next_token(model, rows, 0, prompt))
    first = gpu.peak
    gpu.once(lambda: next_token(model, rows, prompt + new - 1, 1))
    gpu.peak = max(first, gpu.peak)
    return f"{rows} x ({prompt} + {new})"


# --- Stages of 08: small models ------------------------------------------------------------------


def t5(gpu: GPU, profile: Profile, part: str, lengths: Lengths = None) -> str:
    """08: T5 in fp32: "sft", "dpo" or the "evaluation" of 32 pairs; earlier models stay."""
    run, first, model = profile.small_dpo, small_t5(), small_t5()
    prompt, answer = lengths or (run.max_prompt_length, run.max_answer_length)
    count = 32 if part == "evaluation" else run.batch_size
    gpu.resident = [first, small_t5(), states_of(first), gpt2(), gpt2(), states_of(gpt2())]
    model.config.decoder_start_token_id = 0
    prepare(model, "fp32")
    ids, labels, both = tokens(count, prompt), tokens(count, answer), tokens(2 * count, answer)
    batch = {"prompts": ids, "prompt_mask": ids, "answers": both, "answer_mask": both.bool()}

    def dpo() -> Tensor:
        chosen, rejected = seq2seq_dpo.answer_logps(model, batch)
        return losses.dpo_loss(chosen, rejected, chosen.detach(), rejected.detach())

    if part == "sft":
        train(gpu, model, lambda: model(input_ids=ids, attention_mask=ids, labels=labels).loss)
        return f"{count} x ({prompt} + {answer})"
    seq2seq_dpo.disable_dropout(model)
    if part == "dpo":  # with drawn labels it is the last training, beside both DPO models
        gpu.resident += [small_t5(), states_of(first), gpt2(), gpt2(), states_of(gpt2())]
        train(gpu, model, dpo)
    else:
        gpu.resident += states_of(model)
        gpu.once(dpo)
    return f"{count} x ({prompt} + 2 · {answer})"


def small_gpt2(gpu: GPU, profile: Profile, part: str, lengths: Lengths = None) -> str:
    """08: GPT-2 with TRL: "sft", "dpo" or the "evaluation" of 32 pairs; earlier models stay."""
    run, model, reference = profile.small_dpo, gpt2(), gpt2()
    prompt, answer = lengths or (run.max_prompt_length, run.max_answer_length)
    rows = {"sft": run.batch_size, "dpo": 2 * run.batch_size, "evaluation": 64}[part]
    gpu.resident = [small_t5(), small_t5(), small_t5()]
    gpu.resident += [states_of(small_t5()), states_of(small_t5())]
    gpu.resident += [gpt2(), gpt2(), states_of(gpt2())]
    for each in (model, reference):
        fused_head(each)
        prepare(each, profile.precision)
        each.train(part == "sft")  # otherwise dropout is off
    ids, gpu.learned = tokens(rows, prompt + answer), rows * answer
    given = {"input_ids": ids, "attention_mask": ids, "labels": ids, "fused_lm_head": True}

    def loss() -> Tensor:
        found = model(**given)
        if part == "sft":
            return found.loss
        with torch.no_grad():
            before = reference(**given).log_probs.sum(1).chunk(2)
        return losses.dpo_loss(*found.log_probs.sum(1).chunk(2), *before)

    if part == "evaluation":
        gpu.resident += states_of(model)
        gpu.once(loss)
    else:
        train(gpu, model, loss)
    return f"{rows} x {prompt + answer}"

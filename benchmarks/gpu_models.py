"""Models of real sizes with random weights, for a machine that cannot download the real ones.

`build` writes a model as the Hub would hold it: the configuration of `gpu_stages.CONFIGS`, the
tokenizer of a stand-in, whose vocabulary is smaller than that of the configuration, and random
weights. The weights are written in shards, one tensor at a time, so that 8 billion of them need
little CPU memory. A Llama's weights are changed so that it writes tokens that its tokenizer knows,
and ends its sentences: otherwise no rule could prefer one of its answers in notebook 07.
"""

import copy
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import torch
import transformers
from transformers import PreTrainedConfig

from benchmarks.gpu_stages import CONFIGS
from utils.models import chat_standins, standins

SHARD = 2 * 10**9  # bytes
SPREAD = 0.02  # standard deviation of the weights: logits near zero, a first loss near ln V
WRITTEN = {".": 0.1, "end": 0.03}  # the chance of a full stop and of the end, at every token
KINDS = {  # a configuration's name -> the stand-in whose tokenizer it takes
    "PhoBERT-base": "phobert",
    "GPT-2": "gpt2",
    "T5-small": "t5",
    "Llama-3.2-1B": "llama",
}
TINY = {  # only to check that the program runs
    "phobert": {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 1024},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2},
    "llama": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "head_dim": 32,
    },
}
LAYERS = {"num_hidden_layers": 1, "num_layers": 1, "num_decoder_layers": 1}
UNKNOWN = 100  # rows of a tiny vocabulary that its tokenizer does not know
FROM_TOKENIZER = (
    "architectures",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
)


def stand_in(kind: str, texts: Sequence[str]) -> Path:
    """The folder of a stand-in whose vocabulary is learned from the texts."""
    if kind == "llama":
        talk = list(itertools.pairwise(texts[:100]))  # as questions and answers
        with patch.object(chat_standins, "_pretrain"):  # only its tokenizer is used
            return chat_standins.llama(talk)
    return {"phobert": standins.phobert, "gpt2": standins.gpt2, "t5": standins.t5}[kind](texts)


def config_of(name: str, source: Path, tiny: bool) -> PreTrainedConfig:
    """The real sizes, or tiny ones, with the special tokens of the stand-in."""
    given = transformers.AutoConfig.from_pretrained(source)
    if tiny:
        sizes = {**LAYERS, **TINY[KINDS[name]], "vocab_size": given.vocab_size + UNKNOWN}
        changed = {key: value for key, value in sizes.items() if hasattr(given, key)}
        settings = {**given.to_dict(), **changed}
        settings.pop("layer_types", None)  # one entry per layer, so it is computed again
        return type(given)(**settings)
    config = copy.deepcopy(CONFIGS[name])
    for field in FROM_TOKENIZER:
        if hasattr(given, field):
            setattr(config, field, getattr(given, field))
    return config


def weights(
    config: PreTrainedConfig, dtype: torch.dtype, device: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor that `save_pretrained` would write; each is drawn on `device`."""
    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
    written: set[int] = set()
    for name, empty in model.state_dict(keep_vars=True).items():
        if id(empty) in written:  # tied to a tensor that was written already
            continue
        written.add(id(empty))
        if empty.dim() == 1:
            fill = torch.zeros if name.endswith("bias") else torch.ones
            yield name, fill(empty.shape, dtype=dtype)
        else:
            drawn = torch.randn(empty.shape, device=device)
            yield name, drawn.mul_(SPREAD).to(dtype).cpu()


def chances(source: Path) -> torch.Tensor:
    """The wanted probability of each token that the tokenizer in this folder knows."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    found = torch.full((len(tokenizer),), (1 - sum(WRITTEN.values())) / len(tokenizer))
    found[tokenizer.convert_tokens_to_ids(".")] = WRITTEN["."]
    found[tokenizer.eos_token_id] = WRITTEN["end"]
    return found


def ending(
    tensors: Iterator[tuple[str, torch.Tensor]], chance: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """Change the weights of a Llama so that it draws tokens with these chances, whatever it reads.

    The last dimension of the hidden state is near 1 at every token, because no layer writes to it.
    The others are small, so it is the only one after the last norm. The output layer is the
    embedding: its last column decides the logits.
    """
    for name, tensor in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor *= 0.001
            tensor[-1] = 0
        elif name.endswith("embed_tokens.weight"):
            last = tensor.shape[1] ** 0.5  # that dimension after the last norm
            tensor *= 0.1
            tensor[:, -1] = 0  # the tokenizer does not know these tokens
            tensor[: len(chance), -1] = 1 + (chance / chance.median()).log() / last
        yield name, tensor


def save(
    config: PreTrainedConfig, folder: Path, tensors: Iterator[tuple[str, torch.Tensor]]
) -> None:
    """Write the configuration, and the weights as safetensors in shards."""
    from safetensors.torch import save_file

    config.save_pretrained(folder)
    file_of: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    files: list[Path] = []

    def write() -> None:
        files.append(folder / f"model-{len(files) + 1:05}.safetensors")
        save_file(shard, files[-1], metadata={"format": "pt"})
        file_of.update(dict.fromkeys(shard, files[-1].name))
        shard.clear()

    for name, tensor in tensors:
        if shard and sum(held.nbytes for held in shard.values()) + tensor.nbytes > SHARD:
            write()
        shard[name] = tensor
    write()
    if len(files) == 1:
        files[0].rename(folder / "model.safetensors")
    else:
        index = {"metadata": {}, "weight_map": file_of}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def build(name: str, texts: Sequence[str], folder: Path, *, tiny: bool, device: str) -> Path:
    """A model's folder: the files of the stand-in's tokenizer, the configuration, the weights."""
    source = stand_in(KINDS[name], texts)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    others = shutil.ignore_patterns("*.safetensors", "manifest.json", "metrics.json")
    shutil.copytree(source, part, ignore=others)
    torch.manual_seed(0)
    config = config_of(name, source, tiny)
    config.dtype = torch.float16
    tensors = weights(config, config.dtype, device)
    save(config, part, ending(tensors, chances(source)) if KINDS[name] == "llama" else tensors)
    return part.rename(folder)  # the folder appears only when it is complete

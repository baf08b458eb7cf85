"""What the loopback Hub serves: stand-ins under the real names, the shipped samples as parquet."""

import itertools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import torch
import transformers
from datasets import Dataset

from tests.hub.server import Repository
from utils.course import profiles
from utils.data import feedback as data
from utils.data import pairs as preference_data
from utils.models import chat_standins, standins

CHAT = profiles.TABLE["t4"].chat
GATED = {  # name -> ungated copy
    model.hub_id: model.copy for model in (CHAT.choices["llama"], CHAT.labelled) if model.copy
}


def shrunk(source: Path, target: Path, **sizes: int) -> Path:
    """The same tokenizer and architecture with other sizes and fresh weights."""
    weights = "*.safetensors"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(weights, "manifest.json"))
    config = transformers.AutoConfig.from_pretrained(source)
    settings = {**config.to_dict(), **sizes}
    settings.pop("layer_types", None)  # one entry per layer, so it is computed again
    transformers.set_seed(0)
    model = getattr(transformers, config.architectures[0])(type(config)(**settings))
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.bias"):  # zero in a new Qwen2, not in a trained one
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(target)
    return target


def end_soon(folder: Path, odds: float) -> None:
    """Let a GPT-2 end its text after a token with probability `odds`, so that it writes little."""
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    end, body = model.config.eos_token_id, model.transformer
    with torch.no_grad():  # only the end token uses the last dimension
        body.wte.weight[:, -1] = 0
        body.wte.weight[end] = 0
        body.wte.weight[end, -1] = 1
        body.ln_f.weight[-1] = 0
        body.ln_f.bias[-1] = math.log(odds / (1 - odds) * model.config.vocab_size)
    model.save_pretrained(folder)


def sentence_encoder(source: Path, target: Path) -> Path:
    """A sentence-transformers folder whose vector of a text is the mean of random word vectors.

    Texts without a common word are therefore not neighbours, as with a trained encoder.
    """
    from sentence_transformers import SentenceTransformer, models

    words = shutil.copytree(source, target.with_name(target.name + "-words"))
    body = transformers.AutoModel.from_pretrained(words)
    with torch.no_grad():
        for name, parameter in body.named_parameters():
            if "position_embeddings" in name or "token_type" in name or "output.dense" in name:
                parameter.zero_()
    body.save_pretrained(words)
    parts = models.Transformer(str(words)), models.Pooling(body.config.hidden_size)
    SentenceTransformer(modules=parts, device="cpu").save(str(target))
    return target


def write_parquet(rows: Sequence[dict], features: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    Dataset.from_dict(columns, features=features).to_parquet(path)


def data_sets(folder: Path, rows: int) -> list[Repository]:
    """The three data sets in the layouts of the Hub, at most `rows` per split."""
    shelves = []
    feedback = data.load_feedback(quiet=True)
    target = folder / "feedback"
    for split, content in feedback.items():
        kept = content.select(range(min(rows, len(content))))
        write_parquet(list(kept), data.FEATURES, target / "default" / split / "0000.parquet")
    name, revision = data.FEEDBACK_HUB_ID, data.FEEDBACK_HUB_REVISION
    shelves.append(Repository(name, target, "dataset", revision))
    pairs = {
        preference_data.PREFERENCES: preference_data.load_preferences(quiet=True),
        preference_data.HUMAN_LIKE: preference_data.load_human_like(quiet=True),
    }
    for source, content in pairs.items():
        target = folder / source.sample.name
        # Human-Like has no test split on the Hub
        for split in preference_data.SPLITS[: 1 if source.columns[0] == "prompt" else 2]:
            kept = content[split].select(range(min(rows, len(content[split]))))
            path = target / "data" / f"{split}-00000-of-00001.parquet"
            write_parquet(list(kept), source.features, path)
        (target / "README.md").write_text("---\nlicense: other\n---\n", encoding="utf-8")
        shelves.append(Repository(source.hub_id, target, "dataset"))
    return shelves


def models(folder: Path, texts: Sequence[str]) -> list[Repository]:
    """Every model that the profiles name, very small, with a vocabulary learned from `texts`."""
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"intermediate_size": 64}
    phobert = shrunk(standins.phobert(texts), folder / "phobert", **small)
    one_layer = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 1024}
    gpt2 = shrunk(standins.gpt2(texts), folder / "gpt2", **one_layer)
    brief = shutil.copytree(gpt2, folder / "gpt2-vietnamese")
    end_soon(brief, odds=0.95)
    small |= {"num_key_value_heads": 1, "max_position_embeddings": 4096}
    small |= {"hidden_size": 64, "intermediate_size": 128}  # 64 weights share a scale in 4 bits
    talk = list(itertools.pairwise(texts[:100]))  # as questions and answers
    with patch.object(chat_standins, "_pretrain"):  # their weights are not used here
        llama = shrunk(chat_standins.llama(talk), folder / "llama", **small)
        qwen = shrunk(chat_standins.qwen2(talk), folder / "qwen", **small)
        qwen3 = shrunk(chat_standins.qwen3(talk), folder / "qwen3", **small, head_dim=32)
    tiny = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 1}
    t5 = shrunk(standins.t5(texts), folder / "t5", num_decoder_layers=1, **tiny)
    folders = {
        "vinai/phobert-base": phobert,
        "bkai-foundation-models/vietnamese-bi-encoder": sentence_encoder(phobert, folder / "bkai"),
        "NlpHUST/gpt2-vietnamese": brief,
        "openai-community/gpt2": gpt2,
        "google-t5/t5-small": t5,
        CHAT.choices["qwen"].hub_id: qwen,
        CHAT.choices["sailor"].hub_id: qwen,
        CHAT.choices["qwen3"].hub_id: qwen3,
        **dict.fromkeys(GATED.values(), llama),
    }
    open_to_all = [Repository(name, target) for name, target in folders.items()]
    return open_to_all + [Repository(name, llama, gated=True) for name in GATED]


def sentences(repositories: Sequence[Repository]) -> list[str]:
    """The sentences of all data sets, from which vocabularies are learned."""
    found = []
    for repository in repositories:
        for path in sorted(repository.folder.rglob("*.parquet")):
            columns = Dataset.from_parquet(str(path)).to_dict().values()
            found += [text for column in columns for text in column if isinstance(text, str)]
    return found

"""A minimal PPO run: an artificial language, three architectures, a reward for words.

As a program (`python tests/helpers/tiny_ppo.py OUT.json [FOLDER [KILL_AT]]`) it writes its history
and is killed by SIGKILL after update KILL_AT. The tests of checkpoints and of several processes use
it.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils.ppo.trainer import PPOConfig, PPOTrainer

VOCABULARY = 40
END = 0
PROMPTS = ["w3 w4", "w5", "w6 w7 w8 w9", "w10 w11 w12", "w13 w3 w5 w7 w9"]


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<end>": END, "<pad>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>")


def policy(kind: str = "gpt2", seed: int = 0, dropout: float = 0.1, end_bias: float = 0.0):
    """A random policy in training mode with dropout; `end_bias` makes its texts end early."""
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    common = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "bos_token_id": END,
        "eos_token_id": END,
        "initializer_range": 0.3,
    }
    if kind == "gpt2":
        config = GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=64,
            vocab_size=VOCABULARY,
            bos_token_id=END,
            eos_token_id=END,
            initializer_range=0.3,
            embd_pdrop=dropout,
            resid_pdrop=dropout,
            attn_pdrop=dropout,
        )
    elif kind == "llama":
        config = LlamaConfig(**size, **common, num_key_value_heads=1, intermediate_size=64)
    else:
        config = Qwen2Config(**size, **common, num_key_value_heads=1, intermediate_size=64)
    model = AutoModelForCausalLM.from_config(config)
    if end_bias:
        head = torch.nn.Linear(32, VOCABULARY)
        head.weight = model.get_output_embeddings().weight
        torch.nn.init.zeros_(head.bias)
        head.bias.data[END] = end_bias
        model.set_output_embeddings(head)
    return model.train()


def drifted(model: torch.nn.Module, amount: float = 0.02) -> torch.nn.Module:
    """The policy with a fixed change of its weights, so that it differs from its reference."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=noise)
    return model


def reward(texts: list[str]) -> list[float]:
    """Odd words raise the reward, even words lower it."""
    return [sum(0.3 if int(word[1:]) % 2 else -0.3 for word in text.split()) for text in texts]


def config(**changes) -> PPOConfig:
    settings = {
        "updates": 6,
        "batch_size": 8,
        "minibatch_size": 4,
        "epochs": 2,
        "learning_rate": 3e-3,
        "max_new_tokens": 6,
        "kl_coef": 0.1,
        "checkpoint_every": 2,
        "seed": 3,
    }
    return PPOConfig(**(settings | changes))


def trainer(changes: dict | None = None, model: torch.nn.Module | None = None, **options):
    options = {"progress": False} | options
    return PPOTrainer(
        model or policy(), tokenizer(), reward, PROMPTS, config(**(changes or {})), **options
    )


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    folder = sys.argv[2] if len(sys.argv) > 2 else None
    kill_at = int(sys.argv[3]) if len(sys.argv) > 3 else 0

    def die(metrics: dict) -> None:
        if metrics["update"] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    changes = json.loads(os.environ.get("TINY_PPO", "{}"))  # settings of one test
    run = trainer(
        {"target_kl": 0.5, "kl_horizon": 40, "whiten_rewards": True} | changes,
        policy(seed=int(os.environ.get("RANK", 0)), end_bias=1.0),
        checkpoint_dir=folder,
        on_update=die,
    )
    history = run.train()
    if run.rank == 0:
        weights = sum(p.double().abs().sum().item() for p in run.parameters.values())
        found = {"history": history, "weights": weights, "processes": PartialState().num_processes}
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

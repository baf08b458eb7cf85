"""Runs updates of TRL 1.12's real PPOTrainer on given responses and writes what they computed.

`python tests/helpers/trl_ppo_worker.py CASES.json FOLDER` with TRL 1.12 first on PYTHONPATH; a
process of its own, because the course's environment holds a newer TRL without PPO. The cases are
named, and FOLDER receives NAME.safetensors of each.
"""

import contextlib
import copy
import io
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2ForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from tests.helpers import tiny_ppo
from utils.ppo.sampling import fuse_gelu


class WordReward(torch.nn.Module):
    """`tiny_ppo.reward` with the interface that TRL needs."""

    base_model_prefix = "backbone"

    def backbone(self, input_ids, **_):
        worth = torch.where(input_ids % 2 == 1, 0.3, -0.3) * (input_ids >= 2)
        totals = worth.sum(1, keepdim=True).unsqueeze(-1)
        return SimpleNamespace(hidden_states=[totals.expand(-1, input_ids.shape[1], 1)])

    def score(self, hidden):
        return hidden


def value_model(policy) -> GPT2ForSequenceClassification:
    """A value model whose trunk starts as the policy's and whose head is random."""
    config = GPT2Config(**policy.config.to_dict() | {"num_labels": 1, "pad_token_id": 1})
    model = GPT2ForSequenceClassification(config)
    model.transformer = copy.deepcopy(policy.transformer)
    torch.manual_seed(7)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    return model


WHITEN = ppo_trainer.masked_whiten


def update(case: dict) -> dict[str, torch.Tensor]:
    """What one update of TRL computes in this case."""
    responses = {tuple(prompt): answer for prompt, answer in case["episodes"]}
    policy, reference = tiny_ppo.drifted(tiny_ppo.policy()), tiny_ppo.policy()
    values = value_model(policy)
    for model in (policy, reference, values):
        fuse_gelu(model)
    tokenizer = tiny_ppo.tokenizer()
    tokenizer.padding_side = "left"
    found = {"score.weight": values.score.weight.detach().clone()}

    def given_responses(model, queries, size, pad, generation_config):
        rows = [responses[tuple(ids[ids != pad].tolist())] for ids in queries]
        tokens = torch.cat([queries, torch.tensor(rows)], 1)
        logits = ppo_trainer.forward(model, tokens, pad).logits[:, queries.shape[1] - 1 : -1]
        noise = torch.Generator().manual_seed(11)
        logits = logits + case["noise"] * torch.randn(logits.shape, generator=noise)
        logits = logits / (case["temperature"] + 1e-7)
        found["tokens"] = tokens
        found["old_logps"] = logits.log_softmax(-1).gather(-1, tokens[:, queries.shape[1] :, None])
        return tokens, logits

    seen = []

    def recorded_whiten(tensor, mask, shift_mean=True):
        seen.append((tensor.clone(), WHITEN(tensor, mask, shift_mean)))
        return seen[-1][1]

    ppo_trainer.batch_generation, ppo_trainer.masked_whiten = given_responses, recorded_whiten
    rows = [{"input_ids": prompt} for prompt, _ in case["episodes"]]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = PPOConfig(
            output_dir=folder,
            total_episodes=len(rows),
            per_device_train_batch_size=len(rows),
            gradient_accumulation_steps=1,
            num_mini_batches=1,
            num_ppo_epochs=1,
            local_rollout_forward_batch_size=len(rows),
            num_sample_generations=0,
            response_length=len(rows[0]),
            learning_rate=1e-3,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            stop_token="eos" if case["ends"] else None,
            temperature=case["temperature"],
            **case["settings"],
        )
        trainer = PPOTrainer(
            config,
            tokenizer,
            policy,
            reference,
            WordReward(),
            Dataset.from_list(rows),
            values,
        )
        backward = trainer.accelerator.backward

        def recorded_backward(loss):
            backward(loss)
            found["loss"] = loss.detach()
            for owner, model in {"policy": policy, "value": values}.items():
                for name, parameter in model.named_parameters():
                    found[f"{owner}.{name}"] = parameter.grad.clone()

        trainer.accelerator.backward = recorded_backward
        trainer.log = lambda metrics: found.update(
            policy_loss=torch.tensor(metrics["loss/policy_avg"]),
            value_loss=torch.tensor(metrics["loss/value_avg"]),
        )
        trainer.train()
    if config.whiten_rewards:
        found["rewards"] = seen[0][1]
    found["raw_advantages"], found["advantages"] = seen[-1]
    return {name: tensor.contiguous() for name, tensor in found.items()}


def main() -> None:
    torch.set_num_threads(1)
    for name, case in json.loads(Path(sys.argv[1]).read_text()).items():
        save_file(update(case), Path(sys.argv[2]) / f"{name}.safetensors")


if __name__ == "__main__":
    main()

"""One row per pair must give the same results as two rows per pair."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from trl import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from tests.helpers import chat_worker
from utils import models
from utils.finetune.shared_prompt import PromptOnce, SharedPromptDPOTrainer, joined, pair_logps

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
KINDS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    ),
}
LENGTHS = [(5, 3, 6), (1, 4, 1), (7, 1, 2), (2, 9, 9)]  # prompt, chosen, rejected


def batch(lengths: list[tuple[int, int, int]] = LENGTHS, extra: int = 0) -> dict[str, Tensor]:
    """A batch as TRL's collator makes it: chosen rows, then rejected rows, padded on the right."""
    draw = torch.Generator().manual_seed(0)
    width = max(p + max(c, r) for p, c, r in lengths) + extra
    ids = torch.zeros(2 * len(lengths), width, dtype=torch.long)
    real, answer = torch.zeros_like(ids), torch.zeros_like(ids)
    for pair, (prompt, *answers) in enumerate(lengths):
        asked = torch.randint(1, 40, (prompt,), generator=draw)
        for row, length in zip((pair, pair + len(lengths)), answers, strict=True):
            ids[row, :prompt] = asked
            ids[row, prompt : prompt + length] = torch.randint(1, 40, (length,), generator=draw)
            real[row, : prompt + length] = 1
            answer[row, prompt : prompt + length] = 1
    return {"input_ids": ids, "attention_mask": real, "completion_mask": answer}


def labels_of(inputs: dict[str, Tensor]) -> Tensor:
    return inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)


def made(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return model


def test_a_pair_in_one_row():
    ids = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 6, 0]])
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    labels = torch.tensor([[-100, -100, -100, 4, 5], [-100, -100, -100, 6, -100]])
    inputs, columns = joined(ids, real, labels)
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 4, 5, 3, 6]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert inputs["labels"].tolist() == [[-100, -100, -100, 4, 5, -100, 6]]
    assert inputs["attention_mask"][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 1],
    ]
    assert columns[0].tolist()[2:4] == [2, 3]  # 4 and 5 are predicted there
    assert columns[1].tolist()[2] == 5  # and 6 from the second copy of the prompt's last token


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extra", [0, 3])
def test_outputs_and_gradients_equal_two_rows(kind, extra):
    inputs, model = batch(extra=extra), made(kind)
    labels = labels_of(inputs)
    rows = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    plain = model(**rows, labels=labels, fused_lm_head=True)
    gradients = torch.autograd.grad(plain.log_probs.pow(2).sum(), list(model.parameters()))
    once = PromptOnce(model)(**rows, labels=labels, use_cache=False, fused_lm_head=True)
    for name in ("log_probs", "entropy", "mean_logits", "is_top1"):
        ours, theirs = getattr(once, name), getattr(plain, name)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, msg=f"{kind}: {name}")
    ours = torch.autograd.grad(once.log_probs.pow(2).sum(), list(model.parameters()))
    for mine, theirs in zip(ours, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_neither_answer_sees_the_other():
    model, inputs = made("llama"), batch()
    before, mask = pair_logps(model, inputs)
    for side in (slice(0, 4), slice(4, 8)):
        changed = {name: values.clone() for name, values in inputs.items()}
        answer = changed["completion_mask"][side].bool()
        changed["input_ids"][side][answer] = 39 - changed["input_ids"][side][answer]
        after, _ = pair_logps(model, changed)
        other = torch.ones(8, dtype=torch.bool)
        other[side] = False
        torch.testing.assert_close(after[other], before[other], atol=1e-6, rtol=1e-6)
        assert (after[~other] != before[~other])[mask[~other]].all()


def test_two_prompts_are_refused():
    inputs = batch()
    inputs["input_ids"][0, 1] += 1
    with pytest.raises(ValueError, match="one prompt"):
        pair_logps(made("llama"), inputs)


def test_fewer_tokens_are_computed():
    inputs = batch([(20, 5, 5)] * 4)
    made_of, _ = joined(inputs["input_ids"], inputs["attention_mask"], labels_of(inputs))
    assert made_of["input_ids"].numel() == 4 * (20 + 5 + 1 + 5)
    assert inputs["input_ids"].numel() == 8 * 25


@pytest.fixture(scope="module", params=["llama", "qwen"])
def both(request, tmp_path_factory):
    """TRL's trainer and ours with the same adapter, and the first batch of each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(models.CHAT_VARIABLE, request.param)
        folder = chat_worker.stand_in()
        trained = chat_worker.shaken(chat_worker.adapted(folder))
        found, inputs = {}, None
        for kind in (DPOTrainer, SharedPromptDPOTrainer):
            policy = copy.deepcopy(trained)
            trainer = chat_worker.dpo_trainer(
                policy,
                folder,
                chat_worker.pairs(8)["train"],
                tmp_path_factory.mktemp(kind.__name__),
                4,
                1,
                kind=kind,
                precompute_ref_log_probs=True,
                beta=0.3,
                loss_type=["sigmoid", "sft", "ipo"],
                loss_weights=[1.0, 0.5, 0.01],
            )
            chat_worker.shaken(policy, by=0.05, seed=9)  # policy and reference differ
            rows = [trainer.train_dataset[at] for at in range(4)]
            inputs = inputs or trainer._prepare_inputs(trainer.data_collator(rows))
            loss = trainer.compute_loss(policy, inputs)
            learned = {n: p for n, p in policy.named_parameters() if p.requires_grad}
            loss.backward()
            found[kind.__name__] = (
                trainer.train_dataset.to_pandas(),
                loss.item(),
                {name: values[-1] for name, values in trainer._metrics["train"].items()},
                {name: p.grad for name, p in learned.items()},
            )
    return list(found.values())


def test_the_trainer_equals_trl(both):
    (theirs, their_loss, their_metrics, their_gradients), (ours, loss, metrics, gradients) = both
    for side in ("ref_chosen_logps", "ref_rejected_logps"):
        mine, same = (torch.tensor(rows[side].to_numpy()) for rows in (ours, theirs))
        torch.testing.assert_close(mine, same, atol=1e-3, rtol=0)
    assert loss == pytest.approx(their_loss, abs=1e-5)
    assert set(metrics) == set(their_metrics)
    tokens = metrics.pop("num_tokens"), their_metrics.pop("num_tokens")
    assert tokens[0] == tokens[1]
    assert metrics == pytest.approx(their_metrics, abs=1e-4)
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-3)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())


def test_an_attention_that_takes_no_mask_of_its_own_is_refused(tmp_path):
    folder = chat_worker.stand_in()
    model = chat_worker.adapted(folder)
    model.config._attn_implementation = "flash_attention_2"
    rows = chat_worker.pairs(8)["train"]
    with pytest.raises(ValueError, match="needs attn_implementation='sdpa'"):
        chat_worker.dpo_trainer(model, folder, rows, tmp_path, 4, 1)
    with pytest.raises(ValueError, match="needs attn_implementation='sdpa'"):
        pair_logps(model, batch())  # as ORPO does
